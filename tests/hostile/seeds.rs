//! Right files to start from when files are damaged: at least ten for each format.

use std::path::{Path, PathBuf};

use crate::pickle::assembler::{self, Pickle, dict_of, good_pickle};
use crate::{archive, base_gguf, gguf_adapter, gguf_file, layout, lora, manifest, prefix, safetensors};

/// The seeds of a target of [`crate::damage::entry::TARGETS`].
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "gguf" => gguf(),
        "safetensors" => small_files("pickle/torch-2.4.1", ".safetensors")
            .into_iter()
            .chain(small_files("formats", ".safetensors"))
            .chain([safetensors::file("{}", 0)])
            .collect(),
        "zip" => {
            let files =
                small_files("pickle/torch-2.15.0", ".pt").into_iter().chain(small_files("pickle/torch-2.4.1", ".pt"));
            files.take(12).chain([assembler::archive(&good_pickle())]).collect()
        }
        "pickle" => pickles(),
        "config" => {
            let folders = children(&fixtures().join("models"));
            let files =
                folders.iter().flat_map(|m| [m.join("base/config.json"), m.join("adapter/adapter_config.json")]);
            files.map(|p| std::fs::read(p).expect("a fixture")).collect()
        }
        "json" => {
            let mut all = small_files("formats", ".json");
            all.extend(of("config").into_iter().take(7));
            all.extend([&b"\xef\xbb\xbf[1,-2.5e-3,\"\\u00e9\",null]"[..], b" {\"\":{}} ", b"7"].map(<[u8]>::to_vec));
            all
        }
        "layout" => layout::right_files(),
        "lora" => {
            let folders = children(&fixtures().join("lora")).into_iter().filter(|p| p.is_dir());
            let files = folders.map(|f| std::fs::read(f.join("adapter/adapter_config.json")).expect("a fixture"));
            files.chain([lora::with("", None).into()]).collect()
        }
        "prefix" => prefix::right_files(),
        "manifest" => manifest::right_files(),
        "tar" => archive::right_files(),
        other => panic!("no seeds for {other}"),
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("fixtures").map(|e| e.expect("fixtures").path()).collect();
    all.sort();
    all
}

fn small_files(dir: &str, ending: &str) -> Vec<Vec<u8>> {
    let paths = children(&fixtures().join(dir)).into_iter().filter(|p| p.to_string_lossy().ends_with(ending));
    paths.map(|p| std::fs::read(p).expect("a fixture")).filter(|bytes| bytes.len() < 2500).collect()
}

fn gguf() -> Vec<Vec<u8>> {
    let mut all = small_files("formats", ".gguf");
    all.retain(|file| file[..8] != *b"GGUF\0\0\0\x03");
    all.extend([gguf_file::Raw::two().build(), gguf_adapter::right_file(), base_gguf::right_file()]);
    all
}

fn pickles() -> Vec<Vec<u8>> {
    let nested = |p: Pickle| p.op(b"}").text("a").tensor(0, &[6], &[1]).op(b"s").text("b").op(b"]K\x01as");
    vec![
        good_pickle(),
        dict_of(|p| p.tensor(1, &[5], &[1])),
        dict_of(|p| p.tensor(0, &[3, 2], &[1, 3])),
        dict_of(|p| p.tensor(0, &[2, 3], &[0, 1])),
        dict_of(|p| p.tensor(0, &[], &[])),
        dict_of(|p| p.op(b"]q\x01").tensor(0, &[2], &[1]).op(b"a")),
        dict_of(nested),
        dict_of(|p| p.op(b"(K\x01N\x88\x89G\x3f\xf0\0\0\0\0\0\0t")),
        dict_of(|p| p.global("collections", "OrderedDict").op(b")R}b")),
        dict_of(|p| p.op(b"\x8a\x02\xff\x00")),
        dict_of(|p| p.op(b"U\x03abcq\x00h\x00\x86")),
    ]
}
