//! The reference models in GGUF. Others wrote those files, and with their weights they would be in the repository twice:
//! `base.gguf.head` keeps what comes before the weights, and these are put behind it from the folder beside it. Nothing
//! of ptplus has a part in that, and the digest of the original is held, so what tests read is the original.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

const ALIGNMENT: usize = 32;

/// Whose query and key rows GGUF files keep in pairs.
const ROWS_IN_PAIRS: [&str; 2] = ["llama", "mistral"];

const NAMES: [(&str, &str); 14] = [
    ("token_embd", "embed_tokens"),
    ("output_norm", "norm"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("output", "lm_head"),
];

/// The file of the model of this name under `fixtures/models`, made beside the tests' programs.
pub fn base_gguf(name: &str) -> PathBuf {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    let listed = fs::read_to_string(models.with_file_name("base.gguf.sha256")).unwrap();
    let mut lines = listed.lines().map(|line| line.split_once("  ").unwrap());
    let (digest, _) = lines.find(|(_, file)| *file == format!("{name}/base.gguf")).expect("the file is listed");
    let folder = std::env::current_exe().unwrap().parent().unwrap().join("fixtures").join(name);
    let path = folder.join("base.gguf");
    let is_original = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).eq(pairs(digest));
    if !fs::read(&path).is_ok_and(|bytes| is_original(&bytes)) {
        let bytes = made(&models.join(name));
        assert!(is_original(&bytes), "{name}: what was put together is not the original");
        fs::create_dir_all(&folder).unwrap();
        let file = tempfile::NamedTempFile::new_in(&folder).unwrap();
        fs::write(file.path(), bytes).unwrap();
        file.persist(&path).unwrap();
    }
    path
}

fn pairs(digest: &str) -> impl Iterator<Item = &str> {
    (0..digest.len()).step_by(2).map(|i| &digest[i..i + 2])
}

fn made(model: &Path) -> Vec<u8> {
    let mut out = fs::read(model.join("base.gguf.head")).unwrap();
    let stored = fs::read(model.join("base/model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&stored).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&fs::read(model.join("base/config.json")).unwrap()).unwrap();
    let size = |key: &str| config[key].as_u64().map(|n| n as usize);
    let head_dim =
        size("head_dim").unwrap_or_else(|| size("hidden_size").unwrap() / size("num_attention_heads").unwrap());
    let in_pairs = ROWS_IN_PAIRS.contains(&config["model_type"].as_str().unwrap());
    let known: HashMap<_, _> = NAMES.into();
    let (tensors, data) = tensors(&out);
    for (name, offset) in tensors {
        let (module, part) = name.rsplit_once('.').unwrap();
        let (layer, module) = match module.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, module)) => (format!("model.layers.{layer}."), module),
            None => (if module == "output" { "" } else { "model." }.to_owned(), module),
        };
        // Divisors of the rotation are in no folder, and in the head.
        let Some(theirs) = known.get(module) else { continue };
        let weight = weights.tensor(&format!("{layer}{theirs}.{part}")).unwrap();
        out.resize(data + offset, 0);
        match in_pairs && ["attn_q", "attn_k"].contains(&module) {
            true => out.extend(rows_in_pairs(weight.data(), weight.shape()[0], head_dim)),
            false => out.extend_from_slice(weight.data()),
        }
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// Of each head the halves' rows by turns.
fn rows_in_pairs(data: &[u8], n_rows: usize, head_dim: usize) -> Vec<u8> {
    let rows: Vec<&[u8]> = data.chunks_exact(data.len() / n_rows).collect();
    let half = head_dim / 2;
    rows.chunks_exact(head_dim)
        .flat_map(|head| (0..half).flat_map(|i| [head[i], head[half + i]]))
        .flatten()
        .copied()
        .collect()
}

/// Names of a GGUF file's tensors and where each lies in the data, and where that begins.
fn tensors(head: &[u8]) -> (Vec<(String, usize)>, usize) {
    let mut rest = &head[8..];
    let (n_tensors, n_keys) = (number(&mut rest, 8), number(&mut rest, 8));
    for _ in 0..n_keys {
        text(&mut rest);
        match number(&mut rest, 4) {
            4..=6 => drop(number(&mut rest, 4)),
            7 => drop(number(&mut rest, 1)),
            8 => drop(text(&mut rest)),
            other => panic!("none of these files has a value of type {other}"),
        }
    }
    let tensors = (0..n_tensors).map(|_| {
        let name = text(&mut rest);
        for _ in 0..number(&mut rest, 4) {
            number(&mut rest, 8);
        }
        number(&mut rest, 4);
        (name, number(&mut rest, 8))
    });
    let tensors = tensors.collect();
    (tensors, (head.len() - rest.len()).next_multiple_of(ALIGNMENT))
}

fn number(rest: &mut &[u8], n_bytes: usize) -> usize {
    let (bytes, after) = rest.split_at(n_bytes);
    *rest = after;
    bytes.iter().rev().fold(0, |sum, b| sum << 8 | *b as usize)
}

fn text(rest: &mut &[u8]) -> String {
    let n_bytes = number(rest, 8);
    let (bytes, after) = rest.split_at(n_bytes);
    *rest = after;
    String::from_utf8(bytes.to_vec()).unwrap()
}
