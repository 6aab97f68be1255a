//! Bundles that are damaged or made to break out: refused, with every file named.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::commands::{pack, text};
use crate::common::{exit, json, ptplus, stderr};

/// Places and codes of the findings.
fn findings(bundle: &Path, more: &[&str]) -> (i32, Vec<(String, String)>) {
    let (code, report) = json([&["check", &text(bundle)], more].concat());
    let list = report["findings"].as_array().cloned().unwrap_or_default();
    let field = |f: &serde_json::Value, name: &str| f[name].as_str().unwrap_or_default().to_owned();
    (code, list.iter().map(|f| (field(f, "place"), field(f, "code"))).collect())
}

#[test]
fn every_kind_of_damage_to_a_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let b = dir.path().join("b");
    pack("llama-pre-rope", &b, &[]);
    assert_eq!(findings(&b, &[]), (0, vec![]));
    let add = |path: &Path, n: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes.resize(bytes.len() + n, b'x');
        std::fs::write(path, bytes).unwrap();
    };
    add(&b.join("reports/conversion.json"), 1);
    std::fs::remove_file(b.join("reports/verification.json")).unwrap();
    std::fs::write(b.join("extra"), b"").unwrap();
    std::fs::create_dir(b.join("empty")).unwrap();
    std::fs::rename(b.join("adapter.gguf"), dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), b.join("adapter.gguf")).unwrap();
    let (code, mut found) = findings(&b, &[]);
    found.sort();
    let expected = [
        ("adapter.gguf", "bundle-link"),
        ("adapter.gguf", "bundle-missing"),
        ("empty/", "bundle-extra"),
        ("extra", "bundle-extra"),
        ("reports/conversion.json", "bundle-changed"),
        ("reports/verification.json", "bundle-missing"),
    ];
    assert_eq!(code, 6);
    assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    // What is damaged is no adapter either, and nothing is made of it.
    for args in [vec!["inspect"], vec!["validate"], vec!["unpack", "-o", "never"]] {
        let out = ptplus([vec![args[0], &text(&b)], args[1..].to_vec()].concat());
        assert_eq!(exit(&out), 6, "{args:?}: {}", stderr(&out));
        assert!(stderr(&out).contains("reports/verification.json"), "{}", stderr(&out));
    }
    std::fs::remove_file(b.join("manifest.json")).unwrap();
    let (code, found) = findings(&b, &[]);
    assert_eq!(code, 6);
    assert!(found.contains(&("manifest.json".into(), "bundle-missing".into())));
}

#[test]
fn signatures_cannot_be_dropped_swapped_or_borrowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["a", "b"] {
        assert_eq!(exit(&ptplus(["keygen", &text(&path(&format!("{name}.key"))), "--no-password"])), 0);
    }
    let (key_a, key_b) = (text(&path("a.key")), text(&path("b.key")));
    let (public_a, public_b) = (text(&path("a.pub")), text(&path("b.pub")));
    pack("llama-pre-rope", &path("signed"), &["--sign", &key_a]);
    pack("qwen2", &path("other"), &["--sign", &key_a]);
    pack("llama-pre-rope", &path("unsigned"), &[]);
    let code = |bundle: &str, key: &str| findings(&path(bundle), &["--trusted-key", key]);
    assert_eq!(code("signed", &public_a).0, 0);
    assert_eq!(code("signed", &public_b), (6, vec![("manifest.json.minisig".into(), "signature-invalid".into())]));
    assert_eq!(code("unsigned", &public_a), (6, vec![("manifest.json.minisig".into(), "signature-missing".into())]));
    // Another bundle's signature by the same key.
    let signature = path("signed/manifest.json.minisig");
    let own = std::fs::read(&signature).unwrap();
    std::fs::copy(path("other/manifest.json.minisig"), &signature).unwrap();
    assert_eq!(findings(&path("signed"), &[]).0, 6);
    // Dropped: the manifest says that there was one.
    std::fs::remove_file(&signature).unwrap();
    assert_eq!(findings(&path("signed"), &[]).0, 6);
    std::fs::write(&signature, own).unwrap();
    assert_eq!(findings(&path("signed"), &[]).0, 0);
    // A secret key is no public key, and no file is none.
    assert_eq!(code("signed", &key_b).0, 3);
    assert_eq!(code("signed", &text(&path("absent"))).0, 1);
}

/// A tar archive of these entries: path, type, link target, content.
fn archive(entries: &[(&str, tar::EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, kind, link, content) in entries {
        let mut h = tar::Header::new_ustar();
        // `set_path` refuses what is tried here.
        h.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        h.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        h.set_entry_type(*kind);
        h.set_size(content.len() as u64);
        h.set_mode(0o644);
        h.set_uid(0);
        h.set_gid(0);
        h.set_mtime(0);
        h.set_cksum();
        out.extend_from_slice(h.as_bytes());
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn no_entry_of_an_archive_leaves_the_target() {
    use tar::EntryType as T;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let cases: [(&str, &str, T, &str); 14] = [
        ("parent", "../escaped", T::Regular, ""),
        ("deep parent", "a/../../escaped", T::Regular, ""),
        ("absolute", "/tmp/ptplus-escaped", T::Regular, ""),
        ("backslash", "..\\escaped", T::Regular, ""),
        ("dot", "./../escaped", T::Regular, ""),
        ("two dots in front", "././escaped", T::Regular, ""),
        ("symbolic link", "link", T::Symlink, "/etc/passwd"),
        ("hard link", "link", T::Link, "/etc/passwd"),
        ("device", "device", T::Char, ""),
        ("pipe", "pipe", T::Fifo, ""),
        ("folder outside", "../escaped/", T::Directory, ""),
        ("long name of GNU", "././@LongLink", T::GNULongName, ""),
        ("extended header", "PaxHeaders/x", T::XHeader, ""),
        ("sparse", "sparse", T::GNUSparse, ""),
    ];
    for (what, name, kind, link) in cases {
        let file = path("bad.tar");
        std::fs::write(&file, archive(&[(name, kind, link, b""), ("manifest.json", T::Regular, "", b"{}")])).unwrap();
        for args in [vec!["unpack", "-o", &text(&path("target"))], vec!["check"]] {
            let out = ptplus([vec![args[0], &text(&file)], args[1..].to_vec()].concat());
            assert_eq!(exit(&out), 6, "{what}: {}", stderr(&out));
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{what} left something");
    }
    assert!(!Path::new("/tmp/ptplus-escaped").exists());
}

#[test]
fn archives_that_tar_makes_are_unpacked_and_not_taken_for_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    pack("llama-pre-rope", &path("b"), &[]);
    for (name, format) in [("gnu.tar", "gnu"), ("ustar.tar", "ustar")] {
        let made = std::process::Command::new("tar")
            .arg(format!("--format={format}"))
            .arg("-cf")
            .arg(path(name))
            .arg("-C")
            .arg(path("b"))
            .arg(".")
            .status()
            .unwrap();
        assert!(made.success());
        let out = ptplus(["unpack", &text(&path(name)), "-o", &text(&path(&format!("from-{format}")))]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        assert_eq!(findings(&path(&format!("from-{format}")), &[]), (0, vec![]));
        let (code, found) = findings(&path(name), &[]);
        assert_eq!(code, 6);
        assert!(!found.is_empty());
    }
    // A folder around all files, and what macOS keeps beside them.
    let files = ptplus::format::bundle::Bundle::open(&path("b")).unwrap().files;
    let attributes = b"28 SCHILY.xattr.user.a=b\nc\n\n";
    let of_mac = b"\0\x05\x16\x07\0\x02\0\0Mac OS X";
    let with = |folder: &str, more: &[(&str, tar::EntryType, &[u8])]| {
        let mut entries: Vec<(String, tar::EntryType, &[u8])> = Vec::new();
        entries.extend(more.iter().map(|(name, kind, content)| ((*name).to_owned(), *kind, *content)));
        entries
            .extend(files.iter().map(|(name, bytes)| (format!("{folder}{name}"), tar::EntryType::Regular, &**bytes)));
        let entries: Vec<_> =
            entries.iter().map(|(name, kind, content)| (name.as_str(), *kind, "", *content)).collect();
        archive(&entries)
    };
    use tar::EntryType::{Directory, Regular, XHeader};
    for (name, bytes, code) in [
        ("folder", with("my bundle/", &[("my bundle/", Directory, b"")]), 0),
        ("dot folder", with("./b/", &[]), 0),
        ("mac", with("", &[("._README.md", Regular, of_mac), ("._.", Regular, of_mac)]), 0),
        ("mac folder", with("b/", &[("._b", Regular, of_mac), ("b/._README.md", Regular, of_mac)]), 0),
        ("attributes", with("", &[("PaxHeader/README.md", XHeader, attributes)]), 0),
        ("a file that is only called so", with("", &[("._README.md", Regular, b"text")]), 6),
        ("one beside the folder", with("b/", &[("other", Regular, b"")]), 6),
        ("two folders", with("a/b/", &[]), 6),
        ("a link said in a header", with("", &[("PaxHeader/README.md", XHeader, b"20 linkpath=/etc/aa\n")]), 6),
    ] {
        let (file, target) = (path(&format!("{name}.tar")), path(&format!("from {name}")));
        std::fs::write(&file, bytes).unwrap();
        let out = ptplus(["unpack", &text(&file), "-o", &text(&target)]);
        assert_eq!((exit(&out), target.exists()), (code, code == 0), "{name}: {}", stderr(&out));
        if code == 0 {
            assert_eq!(findings(&target, &[]), (0, vec![]), "{name}");
            let out = ptplus(["check", &text(&file)]);
            assert!(exit(&out) == 6 && stderr(&out).contains("`ptplus unpack` takes it"), "{name}: {}", stderr(&out));
        }
    }
    // Cut anywhere, an archive of ours is refused.
    pack("llama-pre-rope", &path("ours.tar"), &[]);
    let whole = std::fs::read(path("ours.tar")).unwrap();
    let name = Path::new("ours.tar");
    for cut in (0..whole.len()).step_by(509) {
        for strictness in
            [ptplus::format::bundle::tar::Strictness::Exact, ptplus::format::bundle::tar::Strictness::Unpack]
        {
            let opened = ptplus::format::bundle::Bundle::from_tar(name, &whole[..cut].to_vec().into(), strictness);
            assert!(!ptplus::format::bundle::check::check(&opened, None).pass(), "cut at {cut}");
        }
    }
}
