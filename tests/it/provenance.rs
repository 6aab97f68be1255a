//! Outputs record what was asked for, not how it was typed: the same bytes from every spelling of a command.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{exit, model, stderr};

/// Runs a line of words in `folder`.
#[track_caller]
fn run(folder: &Path, words: &[&str]) {
    let out = Command::new(env!("CARGO_BIN_EXE_ptplus")).args(words).current_dir(folder).output().unwrap();
    assert_eq!(exit(&out), 0, "{words:?}: {}", stderr(&out));
}

/// A folder with `adapter`, `base` and `probe.safetensors`.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let m = model("llama-pre-rope");
    for name in ["adapter", "base", "probe.safetensors"] {
        std::os::unix::fs::symlink(m.join(name), dir.path().join(name)).unwrap();
    }
    std::fs::create_dir(dir.path().join("deep")).unwrap();
    dir
}

/// Every spelling writes `out` or `deep/out` (a file or a folder), and all must be equal; returns the bytes.
fn all_the_same(dir: &Path, extension: &str, spellings: &[&str]) -> Vec<u8> {
    let mut first: Option<(Vec<u8>, &str)> = None;
    for spelling in spellings {
        let outputs: Vec<PathBuf> =
            ["out", "NAME", "deep/out"].iter().map(|n| dir.join(format!("{n}{extension}"))).collect();
        for output in &outputs {
            let _ = std::fs::remove_file(output);
            let _ = std::fs::remove_dir_all(output);
        }
        run(dir, &spelling.split(' ').collect::<Vec<_>>());
        let made = outputs.iter().find(|o| o.exists()).unwrap_or_else(|| panic!("{spelling}: no output"));
        let bytes = match made.is_dir() {
            true => {
                let mut names: Vec<_> = std::fs::read_dir(made).unwrap().map(|e| e.unwrap().path()).collect();
                names.sort();
                names.iter().filter(|p| p.is_file()).flat_map(|p| std::fs::read(p).unwrap()).collect()
            }
            false => std::fs::read(made).unwrap(),
        };
        match &first {
            None => first = Some((bytes, spelling)),
            Some((expected, of)) => assert!(bytes == *expected, "{spelling}\ndiffers from\n{of}"),
        }
    }
    first.unwrap().0
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[test]
fn convert_writes_the_same_bytes_however_its_flags_are_spelt() {
    let dir = folder();
    let absolute = dir.path().join("adapter").to_str().unwrap().to_owned();
    let bytes = all_the_same(
        dir.path(),
        ".gguf",
        &[
            "convert adapter -o out.gguf --base base --outtype q8_0",
            "convert adapter -fo NAME.gguf --base base --outtype q8_0",
            "convert -fqoNAME.gguf adapter --base base --outtype q8_0",
            "convert -qfo deep/out.gguf adapter/ --base=base/ --outtype=Q8_0",
            "convert --outfile=NAME.gguf --outtype 8 --base ./base adapter/.",
            "--json convert --output out.gguf --to GGUF --base deep/../base --outtype Q8_0 -- ./adapter",
            "convert adapter -o out.gguf --base base --outtype q8_0 --threads 1 --device cpu --on-unfit FALLBACK -v",
            "convert adapter -o out.gguf --base base --outtype q8_0 --report deep/page.html --force",
            &format!("convert {absolute} -o out.gguf --base base --outtype q8_0"),
        ],
    );
    assert!(holds(&bytes, "ptplus convert adapter --base base --outtype q8_0"));
    assert!(!holds(&bytes, "NAME") && !holds(&bytes, "out.gguf"));
}

#[test]
fn statements_are_recorded_by_what_they_say() {
    let dir = folder();
    let bytes = all_the_same(
        dir.path(),
        ".gguf",
        &[
            "convert adapter -o out.gguf --arch llama --query-scale 1 --max-error rmse=0.5 --max-error cosine=0.1 --transpose-memory=false",
            "convert adapter -o out.gguf --max-error COSINE=1e-1 --max-error rmse=.5 --transpose-memory=false --query-scale 1.0 --arch llama",
            "convert --transpose-memory=false --query-scale=1e0 --max-error=cosine=.1 --max-error=rmse=0.50 --max-error=rmse=.5 adapter -oNAME.gguf --arch=llama",
        ],
    );
    assert!(holds(&bytes, "--max-error cosine=0.1 --max-error rmse=0.5"));
    all_the_same(
        dir.path(),
        ".gguf",
        &[
            "convert adapter -o out.gguf --base base --probe probe.safetensors --tolerance max_abs=1,mean_kl=0.5",
            "convert adapter -o out.gguf --base base --probe ./probe.safetensors --tolerance=mean_kl=.5,max_abs=1.0",
        ],
    );
}

#[test]
fn quantize_and_pack_write_the_same_bytes_however_their_flags_are_spelt() {
    let dir = folder();
    let bytes = all_the_same(
        dir.path(),
        ".gguf",
        &[
            "quantize adapter -o out.gguf q4_0 --base base --tensor-type blk.0=q8_0",
            "quantize -fo NAME.gguf --base=base --tensor-type=blk.0=Q8_0 ./adapter Q4_0",
            "quantize --tensor-type blk.0=8 adapter 2 --base base/ --outfile deep/out.gguf -q",
        ],
    );
    assert!(holds(&bytes, "ptplus quantize adapter q4_0 --tensor-type"), "{}", String::from_utf8_lossy(&bytes[..4000]));
    for extension in ["", ".tar"] {
        let spellings = [
            "pack adapter --base base -o outX --outtype q8_0",
            "pack -fo NAMEX --to gguf --outtype=Q8_0 --base=./base adapter/",
            "pack -qo deep/outX adapter --base base --outtype 8 --device cpu",
        ]
        .map(|s| s.replace('X', extension));
        all_the_same(dir.path(), extension, &spellings.each_ref().map(String::as_str));
    }
}

#[test]
fn the_demo_records_the_commands_that_it_shows() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["demo", "kept"]);
    let bytes = std::fs::read(dir.path().join("kept/adapter.gguf")).unwrap();
    assert!(holds(&bytes, "ptplus convert adapter --base base --probe probe.safetensors"));
    assert!(!holds(&bytes, "ptplus demo"));
}
