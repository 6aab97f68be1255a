//! Shared by the integration tests: the fixtures, the built tool, and a way to write variants of an adapter.
#![allow(dead_code)] // each test file uses its own part

mod base_gguf;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub use base_gguf::base_gguf;
use serde_json::Value;

/// The models under `fixtures/models`, each with base, adapter and PyTorch's answer.
pub const MODELS: [&str; 7] =
    ["llama-mha", "llama-gqa", "qwen2", "qwen3", "mistral-swa", "qwen3-pre-rope", "llama-pre-rope"];

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

pub fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// `base`, or `base.gguf` and so the same model in GGUF.
pub fn base_as(form: &str, name: &str) -> PathBuf {
    match form {
        "base.gguf" => base_gguf(name),
        _ => model(name).join(form),
    }
}

/// The real base. Tests that need it have `real_base` in their names and are ignored, so that none passes without having run:
/// `cargo test -- --ignored real_base` runs them.
pub fn smollm2() -> PathBuf {
    let path = fixtures().join("fetched/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "run fixtures/fetch-smollm2.sh first, which fetches the real base");
    path
}

pub fn ptplus<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptplus")).args(args).output().expect("the tool runs")
}

pub fn exit(out: &Output) -> i32 {
    out.status.code().unwrap_or(-1)
}

pub fn stdout(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).expect("UTF-8")
}

pub fn stderr(out: &Output) -> String {
    String::from_utf8(out.stderr.clone()).expect("UTF-8")
}

/// Runs with `--json` and parses the one document on stdout.
pub fn json<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> (i32, Value) {
    let out = Command::new(env!("CARGO_BIN_EXE_ptplus")).args(args).arg("--json").output().expect("the tool runs");
    let document =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {} {}", stdout(&out), stderr(&out)));
    (exit(&out), document)
}

/// An F32 tensor in memory: shape and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    pub fn bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// `[a, b, c] -> [a, c, b]`
    pub fn transposed(&self) -> Tensor {
        let [a, b, c] = self.shape[..] else { panic!("three dimensions") };
        let mut values = Vec::with_capacity(self.values.len());
        for i in 0..a {
            for k in 0..c {
                for j in 0..b {
                    values.push(self.values[(i * b + j) * c + k]);
                }
            }
        }
        Tensor { shape: vec![a, c, b], values }
    }

    /// Entries of `axis` in the order that `order` lists.
    pub fn permuted(&self, axis: usize, order: &[usize]) -> Tensor {
        let n = self.shape[axis];
        let outer: usize = self.shape[..axis].iter().product();
        let inner: usize = self.shape[axis + 1..].iter().product();
        let mut values = Vec::with_capacity(self.values.len());
        for o in 0..outer {
            for &k in order {
                values.extend_from_slice(&self.values[(o * n + k) * inner..][..inner]);
            }
        }
        let mut shape = self.shape.clone();
        shape[axis] = order.len();
        Tensor { shape, values }
    }
}

/// An adapter as a plain configuration and plain tensors, to change and write again.
#[derive(Clone)]
pub struct RawAdapter {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
}

impl RawAdapter {
    pub fn read(folder: &Path) -> RawAdapter {
        let config = serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
        RawAdapter { config, tensors: read_safetensors(&folder.join("adapter_model.safetensors")) }
    }

    pub fn fixture(name: &str) -> RawAdapter {
        Self::read(&model(name).join("adapter"))
    }

    /// Writes a canonical folder with the safetensors crate, not with our own writer.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), self.config.to_string()).unwrap();
        write_safetensors(&folder.join("adapter_model.safetensors"), &self.tensors);
    }

    /// Applies `change` to every tensor whose name ends in `suffix`.
    pub fn change(&mut self, suffix: &str, change: impl Fn(&Tensor) -> Tensor) {
        for (name, t) in &mut self.tensors {
            if name.ends_with(suffix) {
                *t = change(t);
            }
        }
    }
}

pub fn read_safetensors(file: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    parsed
        .tensors()
        .into_iter()
        .filter(|(_, t)| t.dtype() == safetensors::Dtype::F32)
        .map(|(name, t)| {
            let values = t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            (name, Tensor { shape: t.shape().to_vec(), values })
        })
        .collect()
}

pub fn write_safetensors(file: &Path, tensors: &BTreeMap<String, Tensor>) {
    let data: Vec<(String, Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone(), t.bytes())).collect();
    let views = data.iter().map(|(n, s, b)| {
        (n.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.clone(), b).unwrap())
    });
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// What `torch.save` writes of a dictionary of tensors.
pub fn write_checkpoint<'a>(file: &Path, tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) {
    use std::io::Write;
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    let int = |n: usize| [b"J", &(n as i32).to_le_bytes()[..]].concat();
    let ints = |ns: &[usize]| [b"(", &ns.iter().flat_map(|n| int(*n)).collect::<Vec<u8>>()[..], b"t"].concat();
    let mut archive = zip::ZipWriter::new(std::fs::File::create(file).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut put = |name: &str, bytes: &[u8]| {
        archive.start_file(format!("archive/{name}"), stored).unwrap();
        archive.write_all(bytes).unwrap();
    };
    let mut pickle = b"\x80\x02}".to_vec();
    let mut storages = Vec::new();
    for (i, (name, t)) in tensors.into_iter().enumerate() {
        let strides: Vec<usize> = (0..t.shape.len()).map(|k| t.shape[k + 1..].iter().product()).collect();
        let storage = [&b"(X\x07\0\0\0storagectorch\nFloatStorage\n"[..], &text(&i.to_string()), &text("cpu")].concat();
        pickle.extend([&text(name)[..], b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage].concat());
        pickle.extend([int(t.values.len()), b"tQ".to_vec(), int(0), ints(&t.shape), ints(&strides)].concat());
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtRs");
        storages.push((format!("data/{i}"), t.bytes()));
    }
    pickle.push(b'.');
    put("data.pkl", &pickle);
    put("byteorder", b"little");
    storages.iter().for_each(|(name, bytes)| put(name, bytes));
    put("version", b"3\n");
    archive.finish().unwrap();
}

/// `ptplus convert FROM -o TO` and more.
pub fn convert(from: &Path, to: &Path, extra: &[&str]) -> std::process::Output {
    let mut args = vec!["convert".into(), from.as_os_str().to_owned(), "-o".into(), to.as_os_str().to_owned()];
    args.extend(extra.iter().map(Into::into));
    ptplus(args)
}

/// The base of a fixture, for a command line.
pub fn base(name: &str) -> String {
    model(name).join("base").to_string_lossy().into_owned()
}

/// Converts to a canonical folder in F32.
pub fn import(source: &Path, out: &Path, base: Option<&Path>, more: &[&str]) -> std::process::Output {
    let mut args: Vec<std::ffi::OsString> = vec![
        "convert".into(),
        source.into(),
        "--to".into(),
        "safetensors".into(),
        "-o".into(),
        out.into(),
        "--outtype=f32".into(),
    ];
    if let Some(base) = base {
        args.extend(["--base".into(), base.into()]);
    }
    args.extend(more.iter().map(Into::into));
    ptplus(args)
}

/// Largest distance of an element from the reference, relative to the largest element of the tensor.
pub fn distance(a: &RawAdapter, b: &RawAdapter) -> f32 {
    assert_eq!(a.tensors.keys().collect::<Vec<_>>(), b.tensors.keys().collect::<Vec<_>>());
    let mut worst = 0f32;
    for (name, x) in &a.tensors {
        let y = &b.tensors[name];
        assert_eq!(x.shape, y.shape, "{name}");
        let size = y.values.iter().fold(0f32, |m, v| m.max(v.abs()));
        worst = x.values.iter().zip(&y.values).fold(worst, |w, (p, q)| w.max((p - q).abs() / size));
    }
    worst
}
