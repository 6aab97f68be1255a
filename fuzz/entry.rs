//! What is fuzzed: each function reads `data` as one format and checks what it accepts. A panic is a finding.
//!
//! Used by the targets in `fuzz_targets` and by `tests/hostile`.

use std::collections::BTreeMap;
use std::path::Path;

use ptplus::adapter::lora::{MAX_RANK, Rules};
use ptplus::adapter::prefix::{VirtualTokens, to_prompt_embeddings};
use ptplus::base::BaseConfig;
use ptplus::error::{Error, Result};
use ptplus::format::bundle::manifest::{self, FileEntry, Manifest};
use ptplus::format::bundle::tar::{self, Strictness};
use ptplus::format::gguf::{self, Value};
use ptplus::format::{FilePlan, StoredTensor, TensorSpec, json, pickle, safetensors};
use ptplus::import;
use ptplus::import::mapping::Mapping;
use ptplus::import::source::Source;
use ptplus::import::stated::Stated;
use ptplus::tensor::{Bytes, shape};
use ptplus::validate;

/// A reader and its checks; says whether the data was accepted.
pub type Target = fn(&[u8]) -> bool;

/// Every format by name.
pub const TARGETS: [(&str, Target); 11] = [
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("zip", zip),
    ("pickle", pickle),
    ("config", config),
    ("json", json),
    ("layout", layout),
    ("lora", lora),
    ("manifest", manifest),
    ("prefix", prefix),
    ("tar", archive),
];

/// Whether it was accepted; an error must print as one short line.
fn accepted<T>(result: Result<T>) -> Option<T> {
    result.map_err(|e: Error| check_line(&e.to_string())).ok()
}

fn check_line(line: &str) {
    assert!(!line.chars().any(char::is_control), "{line:?}");
    assert!(line.len() < 40_000, "{} bytes", line.len());
}

/// A GGUF file. What is accepted can be written and read again, the same.
pub fn gguf(data: &[u8]) -> bool {
    let Some(g) = accepted(gguf::parse(Path::new("x.gguf"), &data.to_vec().into())) else { return false };
    let mut end = 0;
    for t in &g.tensors {
        assert_eq!(t.bytes.len(), shape::len_bytes(&t.shape, t.dtype).unwrap());
        assert!(t.file_offset >= end && t.file_offset.is_multiple_of(g.alignment.into()));
        end = t.file_offset + t.bytes.len() as u64;
        t.lazy().map(drop).unwrap_or_else(|e| check_line(&e.to_string()));
    }
    assert!(end <= g.len_bytes && g.len_bytes == data.len() as u64);
    for (_, v) in g.metadata.iter() {
        if let Value::Array(a) = v {
            assert_eq!(a.iter().count(), a.len());
        }
        let _ = (v.to_string(), v.to_json(Some(8)));
    }
    let again = written(&gguf::plan(&g.metadata, &specs(&g.tensors)).unwrap(), &g.tensors);
    let twice = gguf::parse(Path::new("y.gguf"), &again.clone().into()).unwrap();
    assert_eq!(contents(&twice.tensors), contents(&g.tensors));
    assert_eq!(written(&gguf::plan(&twice.metadata, &specs(&twice.tensors)).unwrap(), &twice.tensors), again);
    true
}

/// A safetensors file. What is accepted is the same to the safetensors crate, and can be written and read again.
pub fn safetensors(data: &[u8]) -> bool {
    let Some(s) = accepted(safetensors::parse(Path::new("x.safetensors"), &data.to_vec().into())) else {
        return false;
    };
    let theirs = ::safetensors::SafeTensors::deserialize(data).unwrap();
    assert_eq!(theirs.len(), s.tensors.len());
    for t in &s.tensors {
        let view = theirs.tensor(&t.name).unwrap();
        assert_eq!((view.shape(), view.data()), (&*t.shape, &*t.bytes));
        assert_eq!(view.dtype().to_string(), t.dtype.to_string());
    }
    let again = written(&safetensors::plan(&s.metadata, &specs(&s.tensors)).unwrap(), &s.tensors);
    let twice = safetensors::parse(Path::new("y.safetensors"), &again.clone().into()).unwrap();
    assert_eq!((contents(&twice.tensors), &twice.metadata), (contents(&s.tensors), &s.metadata));
    assert_eq!(written(&safetensors::plan(&twice.metadata, &specs(&twice.tensors)).unwrap(), &twice.tensors), again);
    true
}

/// A PyTorch checkpoint, archive or legacy file. What is accepted can be walked, and its tensors lie in their storages.
pub fn zip(data: &[u8]) -> bool {
    let Some(checkpoint) = accepted(pickle::read(Path::new("x.pt"), data.to_vec().into())) else { return false };
    for (keys, t) in checkpoint.tensors() {
        let _ = pickle::dotted(&keys);
        // Checksums are compared here; a wrong one is an error.
        if let Some(view) = accepted(t.lazy()) {
            assert_eq!(view.shape(), &*t.shape);
            assert_eq!(view.to_bytes().len(), shape::len_bytes(&t.shape, t.dtype()).unwrap());
        }
    }
    true
}

/// A pickle inside a right archive with one storage of 24 bytes.
pub fn pickle(data: &[u8]) -> bool {
    zip(&super::assembler::archive(data))
}

/// `config.json` and `adapter_config.json`.
pub fn config(data: &[u8]) -> bool {
    let Some(value) = accepted(json::parse(data)) else { return false };
    let base = accepted(BaseConfig::from_json(Path::new("config.json"), &value));
    if let Some(c) = &base {
        assert!(c.n_heads % c.n_kv_heads == 0 && c.layers.len() == c.n_layers);
        assert!(c.rms_eps.is_finite() && c.ropes.iter().all(|r| r.theta.is_finite() && r.theta > 0.0));
    }
    let adapter = accepted(Stated::from_json(value));
    if let Some(s) = &adapter {
        let c = &s.conventions;
        assert!([c.query_scale, c.memory_scale].into_iter().flatten().all(|x| (x as f32).is_finite()));
    }
    base.is_some() || adapter.is_some()
}

/// Any JSON. What is accepted can be written and read again, the same.
pub fn json(data: &[u8]) -> bool {
    let Some(value) = accepted(json::parse(data)) else { return false };
    assert_eq!(json::parse(value.to_string().as_bytes()).unwrap(), value);
    true
}

/// A layout file, asked about some names.
pub fn layout(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Some(mapping) = accepted(Mapping::parse(text)) else { return false };
    let mut matching = mapping.matching();
    for name in ["net.0.m", "layers.12.memory", "x", "тензор.3", ""] {
        let _ = accepted(mapping.read(name, &mut matching));
    }
    true
}

/// `adapter_config.json` of a LoRA: ranks and factors of some modules.
pub fn lora(data: &[u8]) -> bool {
    let Some(serde_json::Value::Object(config)) = accepted(json::parse_config(data)) else { return false };
    let Some(rules) = accepted(Rules::of(&config)) else { return false };
    for module in ["model.layers.1.self_attn.q_proj", "lm_head", "тензор", ""] {
        let rank = rules.rank(module);
        assert!((1..=MAX_RANK).contains(&rank));
        assert!(rules.scale(module, rank).factor.is_finite());
    }
    true
}

/// Virtual tokens in GGUF. What is accepted has one shape in every layer.
pub fn prefix(data: &[u8]) -> bool {
    let path = Path::new("x.gguf");
    let Some(file) = accepted(gguf::parse(path, &data.to_vec().into())) else { return false };
    let Some(imported) = accepted(import::read_source(path, Source::Gguf(file))) else { return false };
    let Ok(valid) = validate::check(imported, None).map_err(|r| check_line(&r.into_error().to_string())) else {
        return false;
    };
    let Some(prefix) = valid.adapter().as_prefix() else { return false };
    assert!(prefix.n_tokens() > 0);
    let shapes: Vec<_> = prefix.tensors().map(|(_, t)| t.shape()).collect();
    assert!(shapes.windows(2).all(|two| two[0] == two[1]));
    if let VirtualTokens::KeysValues(layers) = &prefix.tokens {
        assert_eq!(
            to_prompt_embeddings(layers).unwrap().n_elements(),
            prefix.tensors().map(|(_, t)| t.n_elements()).sum::<usize>()
        );
    }
    true
}

/// The manifest of a bundle.
pub fn manifest(data: &[u8]) -> bool {
    let Some(manifest) = accepted(Manifest::parse(data)) else { return false };
    check_manifest(data, &manifest);
    true
}

/// Paths stay inside the bundle and differ; a manifest with a digest of itself is what we would write.
pub fn check_manifest(text: &[u8], manifest: &Manifest) {
    let all =
        |m: &Manifest| -> BTreeMap<String, FileEntry> { m.files.clone().into_iter().chain(m.texts.clone()).collect() };
    let stated = all(manifest);
    for (path, file) in &stated {
        check_path(path);
        assert!(manifest::is_sha256(&file.sha256));
    }
    if text.len() > 1 << 16 {
        // At a limit, the fields that we would add go beyond it.
        return;
    }
    let written = manifest::write(&stated, manifest.document.clone());
    let again = Manifest::parse(&written).unwrap();
    assert!(again.has_self_digest && all(&again) == stated);
    // One that keeps no texts apart is of an earlier build, or of somebody else.
    let by_us = manifest.document.get("tool") == again.document.get("tool") && manifest.files == again.files;
    assert!(!(manifest.has_self_digest && by_us && manifest.document.contains_key("texts")) || written == text);
}

/// The archive of a bundle, read as `check` and as `unpack` read it; accepted if the first does.
pub fn archive(data: &[u8]) -> bool {
    [Strictness::Unpack, Strictness::Exact].map(|strictness| {
        let (files, findings) = tar::read("x.tar", &data.to_vec().into(), strictness);
        findings.iter().for_each(|f| check_line(&f.line()));
        if findings.is_empty() {
            check_archive(data, &files, strictness);
        }
        findings.is_empty()
    })[1]
}

/// Paths stay inside the bundle; what was read exactly is what we would write.
pub fn check_archive(data: &[u8], files: &BTreeMap<String, Bytes>, strictness: Strictness) {
    files.keys().for_each(|path| check_path(path));
    assert!(files.values().map(|content| content.len()).sum::<usize>() <= data.len());
    if strictness == Strictness::Exact {
        let sizes: Vec<(&str, u64)> = files.iter().map(|(path, c)| (path.as_str(), c.len() as u64)).collect();
        let (placed, len) = tar::plan(&sizes).unwrap();
        let mut written = vec![0; len as usize];
        for (p, content) in placed.iter().zip(files.values()) {
            let at = p.header_offset as usize;
            written[at..][..p.header.len()].copy_from_slice(&p.header);
            written[at + p.header.len()..][..content.len()].copy_from_slice(content);
        }
        assert_eq!(written, data);
    }
}

fn check_path(path: &str) {
    let parts: Vec<_> = Path::new(path).components().collect();
    let stays = parts.iter().all(|part| matches!(part, std::path::Component::Normal(_)));
    assert!(!parts.is_empty() && stays && !path.contains('\\'), "{path:?}");
}

fn specs(tensors: &[StoredTensor]) -> Vec<TensorSpec> {
    tensors.iter().map(|t| TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() }).collect()
}

fn contents(tensors: &[StoredTensor]) -> Vec<(&str, &'static str, &[usize], &[u8])> {
    tensors.iter().map(|t| (&*t.name, t.dtype.name(), &*t.shape, &*t.bytes)).collect()
}

/// The planned file with the tensors' bytes.
fn written(plan: &FilePlan, tensors: &[StoredTensor]) -> Vec<u8> {
    let mut file = plan.header.clone();
    file.resize(plan.len_bytes as usize, 0);
    for (planned, t) in plan.tensors.iter().zip(tensors) {
        file[planned.file_offset as usize..][..t.bytes.len()].copy_from_slice(&t.bytes);
    }
    file
}
