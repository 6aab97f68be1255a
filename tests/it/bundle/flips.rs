//! Every single bit of a bundle counts.
//!
//! The default run takes a sample; `cargo test --test it -- --ignored every_bit` takes all of some 60 KiB, and
//! `--ignored random_bits` flips bits of a 1 GiB bundle (PTPLUS_FLIPS of them, 200 by default; PTPLUS_SEED above 0 says which).

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ptplus::format::bundle::check::{Checked, Demands, check, check_reporting, file_sha256};
use ptplus::format::bundle::manifest::{self, FileEntry};
use ptplus::format::bundle::signature::{PublicKey, public_key};
use ptplus::format::bundle::tar::Strictness;
use ptplus::format::bundle::{Bundle, MANIFEST_FILE, is_for_people};
use ptplus::tensor::Bytes;
use rayon::prelude::*;

use crate::common::{exit, model, ptplus, stderr};

const MIN_BITS: usize = 16 * 1024 * 8;

/// A bundle with everything that one can have (several forms, template, sampling, provenance, both signatures), as folder and as
/// archive, of some 60 KiB.
struct Bundles {
    _dir: tempfile::TempDir,
    folder: PathBuf,
    archive: PathBuf,
    key: PublicKey,
}

fn bundles(signed: bool) -> Bundles {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let m = model("llama-pre-rope");
    let made = ptplus(["keygen".into(), path("k.key"), "--no-password".into()]);
    assert_eq!(exit(&made), 0, "{}", stderr(&made));
    let made = ptplus([
        "keygen".into(),
        path("k.pem"),
        "--public".into(),
        path("pem.pub"),
        "--oms".into(),
        "--no-password".into(),
    ]);
    assert_eq!(exit(&made), 0, "{}", stderr(&made));
    std::fs::write(path("template.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    for output in ["folder", "archive.tar"] {
        let mut args = vec!["pack".into(), m.join("adapter"), "--base".into(), m.join("base"), "--outtype".into()];
        args.extend(["f16,q8_0".into(), "--to".into(), "gguf,safetensors".into(), "-o".into(), path(output)]);
        args.extend([
            "--license".into(),
            "mit".into(),
            "--system".into(),
            "Be brief.".into(),
            "--temp".into(),
            "0".into(),
        ]);
        args.extend(["--chat-template-file".into(), path("template.jinja")]);
        if signed {
            args.extend(["--sign".into(), path("k.key"), "--sign-oms".into(), path("k.pem")]);
        }
        let out = ptplus(args);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
    }
    let key = public_key(path("k.pub").to_str().unwrap()).unwrap();
    Bundles { folder: path("folder"), archive: path("archive.tar"), key, _dir: dir }
}

/// What went unnoticed, or was blamed on something else.
fn missed(checked: &Checked, file: &str, what: &str) -> Option<String> {
    let named = checked.findings.iter().any(|f| f.place.starts_with(file));
    (!named).then(|| format!("{what} of {file}: {:?}", checked.findings))
}

/// Texts for people count where they are asked for, all else always.
fn check_owner(bundle: &Bundle, trusted: Option<&PublicKey>, owner: &str) -> Checked {
    check_reporting(bundle, Demands { trusted, is_strict: is_for_people(owner), ..Demands::default() }, &|_, _| {})
}

/// Flips bits of each file of a folder, one at a time; the number of flips.
fn flip_folder(folder: &Path, key: Option<&PublicKey>, step: usize) -> usize {
    let whole = Bundle::open(folder).unwrap();
    assert!(check(&whole, key).pass(), "{:?}", check(&whole, key).findings);
    let bits: Vec<(&String, &Bytes, usize)> =
        whole.files.iter().flat_map(|(path, bytes)| (0..bytes.len() * 8).map(move |b| (path, bytes, b))).collect();
    assert!(bits.len() >= MIN_BITS, "{}", bits.len());
    let tried: Vec<_> = bits.into_iter().step_by(step).collect();
    let misses: Vec<String> = tried
        .par_iter()
        .filter_map(|(path, bytes, bit)| {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let mut flipped = whole.clone();
            flipped.files.insert((*path).clone(), bad.into());
            missed(&check_owner(&flipped, key, path), path, &format!("bit {bit}"))
        })
        .collect();
    assert!(misses.is_empty(), "{} unnoticed: {:#?}", misses.len(), &misses[..misses.len().min(5)]);
    tried.len()
}

/// The same of an archive; a bit of a header or of padding belongs to the file that it is about.
fn flip_archive(archive: &Path, key: Option<&PublicKey>, step: usize) -> usize {
    let bytes = std::fs::read(archive).unwrap();
    let open = |bytes: Vec<u8>| Bundle::from_tar(archive, &bytes.into(), Strictness::Exact);
    let whole = open(bytes.clone());
    assert!(check(&whole, key).pass());
    let mut owners: Vec<(usize, String)> = Vec::new();
    let mut offset = 0;
    for (path, content) in &whole.files {
        offset += 512 + content.len().next_multiple_of(512);
        owners.push((offset, path.clone()));
    }
    owners.push((bytes.len(), archive.file_name().unwrap().to_str().unwrap().to_owned()));
    let tried: Vec<usize> = (0..bytes.len() * 8).step_by(step).collect();
    assert!(bytes.len() * 8 >= MIN_BITS);
    let misses: Vec<String> = tried
        .par_iter()
        .filter_map(|bit| {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (_, owner) = owners.iter().find(|(end, _)| bit / 8 < *end).unwrap();
            missed(&check_owner(&open(bad), key, owner), owner, &format!("bit {bit}"))
        })
        .collect();
    assert!(misses.is_empty(), "{} unnoticed: {:#?}", misses.len(), &misses[..misses.len().min(5)]);
    tried.len()
}

fn flip_all(step: usize) {
    for signed in [false, true] {
        let b = bundles(signed);
        let keys = if signed { vec![None, Some(&b.key)] } else { vec![None] };
        for key in keys {
            let (folder, archive) = (flip_folder(&b.folder, key, step), flip_archive(&b.archive, key, step));
            let kind = match (signed, key) {
                (false, _) => "unsigned",
                (true, None) => "signed, no key trusted",
                (true, Some(_)) => "signed, key trusted",
            };
            println!("{kind}: {folder} flips of the folder, {archive} of the archive, each noticed and its file named");
        }
    }
}

#[test]
fn sampled_bits_of_a_bundle_count() {
    flip_all(5839);
}

#[test]
#[ignore = "a quarter of a minute"]
fn more_bits_of_a_bundle_count() {
    flip_all(487);
}

#[test]
#[ignore = "minutes"]
fn every_bit_of_a_bundle_counts() {
    flip_all(1);
}

#[test]
#[ignore = "needs 1 GiB of disk, and reads it once for each flip"]
fn random_bits_of_a_large_bundle_count() {
    const SIZE: usize = 1 << 30;
    let n: usize = std::env::var("PTPLUS_FLIPS").map_or(200, |v| v.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("adapter.gguf");
    let mut state: u64 = std::env::var("PTPLUS_SEED").map_or(1, |v| v.parse().unwrap());
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let content: Vec<u8> = (0..SIZE / 8).flat_map(|_| random().to_le_bytes()).collect();
    std::fs::write(&weights, &content).unwrap();
    let entry = FileEntry { size: SIZE as u64, sha256: file_sha256(&Bytes::from(content)) };
    let text = manifest::write(&BTreeMap::from([("adapter.gguf".to_owned(), entry)]), Default::default());
    std::fs::write(dir.path().join(MANIFEST_FILE), text).unwrap();
    assert!(check(&Bundle::open(dir.path()).unwrap(), None).pass());
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&weights).unwrap();
    let flip = |bit: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, bit / 8).unwrap();
        byte[0] ^= 1 << (bit % 8);
        file.write_all_at(&byte, bit / 8).unwrap();
    };
    for _ in 0..n {
        let bit = random() % (SIZE as u64 * 8);
        flip(bit);
        let checked = check(&Bundle::open(dir.path()).unwrap(), None);
        flip(bit);
        assert_eq!(missed(&checked, "adapter.gguf", &format!("bit {bit}")), None);
    }
    assert!(check(&Bundle::open(dir.path()).unwrap(), None).pass());
    println!("{n} random flips of a 1 GiB bundle, each noticed and its file named");
}
