//! Every command on every table: what one reader refuses well another must not stumble over, and what is accepted goes on
//! through hashes, conversions and comparisons. In this process on all cases, and through the tool on a sample.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use ptplus::base::BaseModel;
use ptplus::bundle::{claims, diff, digest};
use ptplus::error::Result;
use ptplus::export::types::{OutType, TypeRules};
use ptplus::format::bundle::tar::Strictness;
use ptplus::format::bundle::{Bundle, check, signature};
use ptplus::import::{self, Options, mapping::Mapping};
use ptplus::inspect;
use ptplus::pipeline::{self, Convert, ConvertBase, Format, Tokenizer};
use ptplus::transform::cast::Overflow;
use ptplus::validate::BaseMismatch;
use ptplus::verify::probe::Probe;

use crate::case::Case;
use crate::pickle::assembler::{self, Entry, Pickle};
use crate::{
    adapter, archive, base_config, base_gguf, gguf, gguf_adapter, index, manifest, probe, safetensors, tokenizer_files,
};

/// What a command does with a path, its output in a folder.
type Work = fn(&Path, &Path) -> Result<()>;

const WORK: [(&str, Work); 15] = [
    ("inspect", |path, _| inspect::inspect(path).map(drop)),
    ("inspect --suggest-layout", |path, _| import::suggest_layout(path, None).map(drop)),
    ("hash", |path, _| digest::of_path(path).map(drop)),
    ("validate", |path, _| pipeline::read_adapter(path, None).map(drop)),
    ("validate --base", |path, _| BaseModel::open(path).and_then(|b| pipeline::read_adapter(path, Some(&b))).map(drop)),
    ("diff", |path, _| {
        let adapter = pipeline::read_adapter(path, None)?;
        digest::of_tensors(&adapter);
        diff::diff(&adapter, &adapter).map(drop)
    }),
    ("convert to GGUF", |path, out| {
        let output = out.join("a.gguf");
        let mut job = Convert::new(path, &output, Format::Gguf);
        job.architecture = Some("llama");
        pipeline::convert(&job).map(drop)
    }),
    ("convert to safetensors", |path, out| {
        pipeline::convert(&Convert::new(path, &out.join("a"), Format::Safetensors)).map(drop)
    }),
    ("quantize", |path, out| {
        let (output, rules) = (out.join("q.gguf"), TypeRules::from(OutType::parse("q8_0")?));
        let mut job = Convert::new(path, &output, Format::Gguf);
        (job.architecture, job.types) = (Some("llama"), &rules);
        pipeline::convert(&job).map(drop)
    }),
    ("convert a base", |path, out| {
        pipeline::convert_base(&ConvertBase {
            about: None,
            base: path,
            output: &out.join("b.gguf"),
            merge: &[],
            base_mismatch: BaseMismatch::Refuse,
            prove: None,
            tokenizer: Tokenizer::Known,
            types: &TypeRules::from(OutType::Keep),
            max_error: &[],
            overflow: Overflow::Saturate,
            overwrite: ptplus::format::Overwrite::Never,
            dry_run: false,
            progress: &|_, _| {},
        })
        .map(drop)
    }),
    ("check", |path, _| {
        let bundle = Bundle::open_as(path, Strictness::Unpack)?;
        let checked = check::check(&bundle, None);
        if let (Some(manifest), Ok(imported)) = (&checked.manifest, import::read_bundle(&bundle, None))
            && let Ok(adapter) = ptplus::validate::check(imported, None)
        {
            claims::compare(manifest, &bundle, &adapter);
        }
        Ok(())
    }),
    ("--probe", |path, _| Probe::open(path).map(drop)),
    ("--layout", |path, _| {
        Mapping::open(path)?;
        import::read(path, &Options { layout: Some(path.to_owned()), ..Options::default() }, None).map(drop)
    }),
    ("--trusted-key", |path, _| signature::public_key(&path.to_string_lossy()).map(drop)),
    ("doctor", |path, _| ptplus::doctor::diagnose(path).map(drop)),
];

/// The commands that panic on `path`.
fn panics_on(path: &Path) -> Vec<&'static str> {
    let out = tempfile::tempdir().expect("a folder");
    let panics = |work: &Work| catch_unwind(AssertUnwindSafe(|| drop(work(path, out.path())))).is_err();
    WORK.iter().filter(|(_, work)| panics(work)).map(|(name, _)| *name).collect()
}

/// Where the bytes of a case go; what comes back is what commands are given.
type Place = fn(&Path, &[u8]) -> PathBuf;

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).expect("a file");
    path
}

fn tables() -> Vec<(&'static str, Vec<Case>, Place)> {
    vec![
        ("gguf", gguf::cases(), |dir, bytes| file(dir, "x.gguf", bytes)),
        ("gguf adapter", gguf_adapter::cases(), |dir, bytes| file(dir, "x.gguf", bytes)),
        ("gguf base", base_gguf::cases(), |dir, bytes| file(dir, "x.gguf", bytes)),
        ("safetensors", safetensors::cases(), |dir, bytes| file(dir, "x.safetensors", bytes)),
        ("safetensors index", index::cases(), |dir, bytes| file(dir, "x.safetensors.index.json", bytes)),
        ("probe", probe::cases(), |dir, bytes| file(dir, "probe.safetensors", bytes)),
        ("archive", archive::cases(), |dir, bytes| file(dir, "x.tar", bytes)),
        ("archive to unpack", archive::foreign_cases(), |dir, bytes| file(dir, "x.tar", bytes)),
        ("adapter_config.json", adapter::cases(), |dir, bytes| {
            file(dir, "adapter_model.safetensors", &adapter::right_weights());
            file(dir, "adapter_config.json", bytes);
            dir.to_owned()
        }),
        ("config.json", base_config::cases(), |dir, bytes| {
            file(dir, "model.safetensors", &base_config::weights());
            file(dir, "config.json", bytes);
            dir.to_owned()
        }),
        ("manifest", manifest::cases(), |dir, bytes| {
            file(dir, "adapter.gguf", &gguf_adapter::right_file());
            file(dir, "manifest.json", bytes);
            dir.to_owned()
        }),
        ("tokenizer.json", tokenizer_files::cases(), |dir, bytes| {
            file(dir, "model.safetensors", &base_config::weights());
            file(dir, "config.json", base_config::right().as_bytes());
            file(dir, "tokenizer.json", bytes);
            dir.to_owned()
        }),
    ]
}

#[test]
fn no_command_panics_on_a_sample_of_any_table() {
    check_panics(3);
}

#[test]
#[ignore = "six seconds"]
fn no_command_panics_on_any_table() {
    check_panics(1);
}

/// Every command on every `step`th case.
fn check_panics(step: usize) {
    let mut failures = Vec::new();
    for (table, cases, place) in tables() {
        for case in cases.iter().step_by(step) {
            let Some(bytes) = case.small() else { continue };
            let dir = tempfile::tempdir().expect("a folder");
            let found = panics_on(&place(dir.path(), bytes));
            failures.extend(found.into_iter().map(|command| format!("{table}: {}: {command}", case.name)));
        }
    }
    assert!(failures.is_empty(), "{} panics\n{}", failures.len(), failures.join("\n"));
}

/// Six elements of each type that PyTorch has, in views that are not contiguous.
fn strided_views() -> Vec<(String, Vec<u8>)> {
    const TYPES: [&str; 17] = [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "complex64",
        "complex128",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "float8_e4m3fn",
        "float8_e5m2",
    ];
    let view = |dtype: &str, shape: &[i32], strides: &[i32]| {
        let pickle = assembler::dict_of(|p: Pickle| {
            let p = p.global("torch._utils", "_rebuild_tensor_v3").op(b"((").text("storage");
            let p = p.global("torch.storage", "UntypedStorage").text("0").text("cpu").int(192).op(b"tQ");
            let p = p.int(1).ints(shape).ints(strides).op(b"\x89").no_hooks().global("torch", dtype);
            p.op(b"tR")
        });
        let mut entries = assembler::entries(&pickle);
        entries[2] = Entry::new("a/data/0", &(0..192).map(|i| (i % 2) as u8).collect::<Vec<_>>());
        assembler::zip(&entries, &assembler::End::default())
    };
    let mut all = Vec::new();
    for dtype in TYPES {
        for (shape, strides) in [(&[2, 3][..], &[1, 2][..]), (&[3], &[2]), (&[2, 2], &[0, 3]), (&[5], &[0])] {
            all.push((format!("{dtype} {shape:?} {strides:?}"), view(dtype, shape, strides)));
        }
    }
    all
}

#[test]
fn no_command_panics_on_a_checkpoint() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut failures = Vec::new();
    for (name, bytes) in strided_views() {
        let path = file(dir.path(), "x.pt", &bytes);
        let found = panics_on(&path);
        // Whatever its numbers are, a tensor that is read is hashed.
        if found.is_empty()
            && inspect::inspect(&path).is_ok()
            && let Err(e) = digest::of_path(&path)
        {
            failures.push(format!("{name}: {e}"));
        }
        failures.extend(found.into_iter().map(|command| format!("{name}: {command}")));
    }
    for folder in ["pickle/torch-2.4.1", "pickle/torch-2.15.0"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
        for path in std::fs::read_dir(folder).expect("fixtures").map(|e| e.expect("a file").path()) {
            failures.extend(panics_on(&path).into_iter().map(|command| format!("{}: {command}", path.display())));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every how manieth case goes through the tool; each costs a process.
const EVERY: usize = 16;

/// Command lines that are given a hostile path in the place of `X`; `A`, `B` and `P` are right ones.
const LINES: [&str; 24] = [
    "inspect X --json",
    "hash --tensors X",
    "hash X --json",
    "validate X",
    "validate X --base B --json",
    "validate A --base X",
    "check X",
    "check X --base B --json",
    "diff X A",
    "diff A X --json",
    "convert X -o out.gguf --arch llama",
    "convert X -o out --to safetensors",
    "convert A X -o out --to gguf --base B",
    "convert A -o out.gguf --base X",
    "convert A -o out.gguf --base B --probe X",
    "convert A -o out.gguf --base B --layout X",
    "quantize X -o out.gguf q8_0",
    "quantize X -o out.gguf q4_k_m --report out.html",
    "verify X --base B --probe P",
    "verify A --base X --probe P --json",
    "pack X --base B -o out",
    "unpack X -o out --force",
    "run --base X -p hi -n 1",
    "run --base B --adapter X -p hi -n 1",
];

#[test]
fn every_command_ends_with_an_exit_code_of_its_own() {
    let m = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/llama-pre-rope");
    let right = |name: &str| m.join(name).to_string_lossy().into_owned();
    let mut failures = Vec::new();
    let mut turn = 0;
    let mut run = |name: &str, dir: &Path, path: &Path| {
        let line = LINES[turn % LINES.len()];
        turn += 1;
        let words = line.split(' ').map(|word| match word {
            "X" => path.to_string_lossy().into_owned(),
            "A" => right("adapter"),
            "B" => right("base"),
            "P" => right("probe.safetensors"),
            other => other.to_owned(),
        });
        let out =
            Command::new(env!("CARGO_BIN_EXE_ptplus")).args(words).current_dir(dir).output().expect("the tool runs");
        let said = String::from_utf8_lossy(&out.stderr);
        let is_plain = !said.lines().any(|l| l.chars().any(char::is_control));
        // Of many, those that are right are converted; that an output is left by a failure is another matter.
        let is_left = dir.join("out").exists() || dir.join("out.gguf").exists();
        let is_whole = out.status.success() || !is_left || line.starts_with("convert A X");
        if !matches!(out.status.code(), Some(0..=7)) || !is_plain || !is_whole {
            failures.push(format!("{name}: {line}: {:?}, {is_plain}, {is_whole}: {said}", out.status.code()));
        }
    };
    for (table, cases, place) in tables() {
        for case in cases.iter().step_by(EVERY) {
            let Some(bytes) = case.small() else { continue };
            let dir = tempfile::tempdir().expect("a folder");
            let inner = dir.path().join("x");
            std::fs::create_dir(&inner).expect("a folder");
            run(&format!("{table}: {}", case.name), dir.path(), &place(&inner, bytes));
        }
    }
    for (name, bytes) in strided_views().into_iter().step_by(3) {
        let dir = tempfile::tempdir().expect("a folder");
        run(&name, dir.path(), &file(dir.path(), "x.pt", &bytes));
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}
