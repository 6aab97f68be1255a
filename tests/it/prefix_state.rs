//! Virtual tokens as the state of a sequence in llama.cpp: what lies where in the file, by a reader of its own.

use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, exit, fixtures, json, ptplus, stderr};

/// Three layers, two heads of 32 for keys, five virtual tokens; a llama, whose keys are reordered.
const CASE: &str = "prefix/llama-prefix";
const BASE: &str = "lora/llama-dora/base";
const LAYERS: usize = 3;
const HEADS: usize = 2;
const D: usize = 32;
const P: usize = 5;

fn adapter() -> PathBuf {
    fixtures().join(CASE).join("adapter")
}

fn convert(adapter: &Path, base: &str, output: &Path, more: &[&str]) -> (i32, String) {
    let base = fixtures().join(base);
    let args = ["convert".as_ref(), adapter.as_os_str(), "--base".as_ref(), base.as_os_str()];
    let rest = ["-o".as_ref(), output.as_os_str(), "--to".as_ref(), "llama-state".as_ref()];
    let out = ptplus(args.into_iter().chain(rest).chain(more.iter().map(AsRef::as_ref)));
    (exit(&out), stderr(&out))
}

fn made(more: &[&str]) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("a.bin");
    let (code, text) = convert(&adapter(), BASE, &file, more);
    assert_eq!(code, 0, "{text}");
    std::fs::read(&file).unwrap()
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u32(&mut self) -> u32 {
        let (head, rest) = self.0.split_at(4);
        self.0 = rest;
        u32::from_le_bytes(head.try_into().unwrap())
    }

    fn u32s(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.u32()).collect()
    }

    fn f32s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| f32::from_bits(self.u32())).collect()
    }
}

/// `prompt_embeddings` at token, layer, keys or values, head, component.
fn stated(raw: &RawAdapter, at: [usize; 5]) -> f32 {
    let [token, layer, half, head, i] = at;
    raw.tensors["prompt_embeddings"].values[(((token * LAYERS + layer) * 2 + half) * HEADS + head) * D + i]
}

#[test]
fn keys_are_reordered_and_values_transposed_where_llama_cpp_has_them_so() {
    let raw = RawAdapter::read(&adapter());
    let width = HEADS * D;
    for (flag, is_transposed) in [("off", 1), ("on", 0)] {
        let bytes = made(&["--flash-attn", flag, "--cache-type-k", "f32", "--cache-type-v", "F32"]);
        let mut file = Reader(&bytes);
        assert_eq!(file.u32s(3), [0x6767_7371, 4, P as u32]);
        assert_eq!(file.u32s(P), [0; P]);
        assert_eq!(file.u32s(2), [1, P as u32]);
        for position in 0..P as u32 {
            assert_eq!(file.u32s(3), [position, 1, 0]);
        }
        assert_eq!(file.u32s(4), [is_transposed, LAYERS as u32, 0, 0]);
        for layer in 0..LAYERS {
            assert_eq!(file.u32s(3), [0, 4 * width as u32, 0]);
            let found = file.f32s(P * width);
            for (token, x) in (0..P).flat_map(|t| (0..width).map(move |x| (t, x))) {
                let (head, i) = (x / D, x % D);
                let from = i % 2 * (D / 2) + i / 2;
                assert_eq!(found[token * width + x], stated(&raw, [token, layer, 0, head, from]));
            }
        }
        for layer in 0..LAYERS {
            let place = |token: usize, x: usize| if flag == "off" { x * P + token } else { token * width + x };
            let head: &[u32] = if flag == "off" { &[0, 4, width as u32] } else { &[0, 4 * width as u32, 0] };
            assert_eq!(file.u32s(3), head);
            let found = file.f32s(P * width);
            for (token, x) in (0..P).flat_map(|t| (0..width).map(move |x| (t, x))) {
                assert_eq!(found[place(token, x)], stated(&raw, [token, layer, 1, x / D, x % D]));
            }
        }
        assert!(file.0.is_empty());
    }
}

#[test]
fn the_file_is_the_same_whatever_it_is_made_of() {
    let temp = tempfile::tempdir().unwrap();
    let one = made(&[]);
    assert_eq!(one, made(&["--flash-attn", "on", "--cache-type-v", "f16", "--n-seq", "1", "--state-version", "4"]));
    let (gguf, base) = (temp.path().join("a.gguf"), fixtures().join(BASE));
    let args: [std::ffi::OsString; 5] = ["convert".into(), adapter().into(), "--base".into(), base.into(), "-o".into()];
    let out = ptplus(args.into_iter().chain([gguf.clone().into()]));
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let file = temp.path().join("b.bin");
    assert_eq!(convert(&gguf, BASE, &file, &[]).0, 0);
    assert_eq!(std::fs::read(&file).unwrap(), one);
    // Another llama.cpp, and a context that keeps sequences apart.
    let older = made(&["--state-version", "3"]);
    assert_eq!(older.len(), one.len() - 8, "version 3 does not say what is rotated");
    assert_eq!((older[4], one[4]), (3, 4));
    let apart = made(&["--n-seq", "3"]);
    assert_eq!(apart.len(), one.len() + 8);
    assert!(apart.ends_with(&[0; 8]), "the other streams are empty");
    assert_ne!(made(&["--flash-attn", "off"]), one);
}

#[test]
fn what_cannot_be_a_state_is_refused_by_its_code() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("a.bin");
    let lora = fixtures().join("lora/llama-plain/adapter");
    let (prompt, other) = (fixtures().join("prefix/qwen3-ptuning/adapter"), "models/mistral-swa/base");
    for (path, base, more, code) in [
        (&adapter(), BASE, &["--state-version", "5"][..], 2),
        (&adapter(), BASE, &["--cache-type-k", "q6_k"], 2),
        (&adapter(), BASE, &["--cache-type-v", "q8_0", "--flash-attn", "off"], 2),
        (&adapter(), BASE, &["--n-seq", "0"], 2),
        (&adapter(), BASE, &["--outtype", "f16"], 2),
        (&adapter(), BASE, &["--query-tap", "post_rope"], 2),
        (&adapter(), other, &[], 4),
        (&prompt, other, &[], if hidden_differs() { 4 } else { 0 }),
        (&lora, BASE, &[], 7),
    ] {
        let (found, text) = convert(path, base, &file, more);
        assert_eq!(found, code, "{more:?}: {text}");
        assert!(code == 0 || !file.exists());
        let _ = std::fs::remove_file(&file);
    }
    // Flags of a state without one.
    let (base, gguf) = (fixtures().join(BASE), temp.path().join("a.gguf"));
    let args: [std::ffi::OsString; 5] = ["convert".into(), adapter().into(), "--base".into(), base.into(), "-o".into()];
    let out = ptplus(args.into_iter().chain([gguf.into(), "--flash-attn".into(), "on".into()]));
    assert_eq!(exit(&out), 2, "{}", stderr(&out));
    // A state is no adapter.
    assert_eq!(convert(&adapter(), BASE, &file, &[]).0, 0);
    let (code, found) = json(["inspect".into(), file.into_os_string()]);
    assert_eq!(code, 7, "{found}");
    assert!(found["error"]["message"].as_str().unwrap().contains("state of a sequence in llama.cpp"), "{found}");
}

/// By a Gemma whose file's keys are multiplied with sqrt(16 / 12): of nine virtual tokens, layers with the window of 6 keep the last six.
#[test]
fn layers_with_a_window_have_a_cache_of_their_own_and_keys_are_as_the_base_file_has_them() {
    const TOKENS: usize = 9;
    let temp = tempfile::tempdir().unwrap();
    let (prefix, base) = (fixtures().join("prefix/gemma3-prefix/adapter"), "models/gemma3/base");
    let file = temp.path().join("a.bin");
    let (code, text) =
        convert(&prefix, base, &file, &["--flash-attn", "on", "--cache-type-k", "f32", "--cache-type-v", "f32"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("multiplied with 1.154701"), "{text}");
    let bytes = std::fs::read(&file).unwrap();
    let raw = RawAdapter::read(&prefix);
    let at = |token: usize, layer: usize, half: usize| {
        let first = ((token * 3 + layer) * 2 + half) * 16;
        raw.tensors["prompt_embeddings"].values[first..][..16].to_vec()
    };
    let mut found = Reader(&bytes);
    assert_eq!(found.u32s(3), [0x6767_7371, 4, TOKENS as u32]);
    found.u32s(TOKENS);
    for (first, layers) in [(0, &[1][..]), (3, &[0, 2])] {
        assert_eq!(found.u32s(2), [1, (TOKENS - first) as u32]);
        for position in first..TOKENS {
            assert_eq!(found.u32s(3), [position as u32, 1, 0]);
        }
        assert_eq!(found.u32s(4), [0, layers.len() as u32, 0, 0]);
        for (half, layer) in [0, 1].into_iter().flat_map(|half| layers.iter().map(move |l| (half, *l))) {
            assert_eq!(found.u32s(3), [0, 4 * 16, 0]);
            for token in first..TOKENS {
                for (found, stated) in found.f32s(16).into_iter().zip(at(token, layer, half)) {
                    let factor = if half == 0 { (16_f32 / 12.0).sqrt() } else { 1.0 };
                    assert!((found - stated * factor).abs() <= 1e-6 * stated.abs(), "{token} {layer} {half}");
                }
            }
        }
    }
    assert!(found.0.is_empty());
    // The base's GGUF file, which says so, gives the same.
    let (gguf, other) = (temp.path().join("base.gguf"), temp.path().join("b.bin"));
    let folder = fixtures().join(base);
    let out = ptplus(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), gguf.as_os_str()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let flags = ["--cache-type-k", "f32", "--cache-type-v", "f32"];
    let (code, text) = convert(&prefix, gguf.to_str().unwrap(), &other, &flags);
    assert_eq!((code, text.contains("multiplied")), (0, false), "{text}");
    assert!(std::fs::read(&other).unwrap() == bytes);
}

#[test]
fn of_a_bundle_the_form_that_is_asked_for_becomes_the_state() {
    let temp = tempfile::tempdir().unwrap();
    let (bundle, file) = (temp.path().join("b.tar"), temp.path().join("a.bin"));
    let base = fixtures().join(BASE);
    let args: [std::ffi::OsString; 5] = ["pack".into(), adapter().into(), "--base".into(), base.into(), "-o".into()];
    let out = ptplus(args.into_iter().chain([bundle.clone().into(), "--outtype".into(), "f16,q8_0".into()]));
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let of = |form: &[&str]| {
        let (code, text) = convert(&bundle, BASE, &file, &[form, &["--force"]].concat());
        assert_eq!(code, 0, "{text}");
        std::fs::read(&file).unwrap()
    };
    assert!(of(&[]) == of(&["--form", "f16"]));
    assert!(of(&[]) != of(&["--form", "q8_0"]));
    assert_eq!(convert(&bundle, BASE, &file, &["--form", "q4_0", "--force"]).0, 2);
}

fn hidden_differs() -> bool {
    let hidden = |base: &str| {
        let text = std::fs::read(fixtures().join(base).join("config.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["hidden_size"].clone()
    };
    hidden("lora/qwen3-all-linear/base") != hidden("models/mistral-swa/base")
}

#[test]
fn a_state_that_the_probe_does_not_confirm_is_not_written() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("a.bin");
    let probe = fixtures().join(CASE).join("probe.safetensors");
    let probe = probe.to_str().unwrap();
    assert_eq!(convert(&adapter(), BASE, &file, &["--probe", probe]).0, 0);
    std::fs::remove_file(&file).unwrap();
    let wrong = temp.path().join("wrong");
    let mut raw = RawAdapter::read(&adapter());
    raw.tensors.get_mut("prompt_embeddings").unwrap().values[7] += 1.0;
    raw.write(&wrong);
    assert_eq!(convert(&wrong, BASE, &file, &["--probe", probe]).0, 5);
    assert!(!file.exists());
}
