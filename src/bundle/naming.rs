//! The name under which an adapter would be offered for download, as ggml suggests:
//! `BaseName-SizeLabel-FineTune-Version-Encoding.gguf`, a LoRA's `BaseName-SizeLabel-Version-Encoding-LoRA.gguf`.

use crate::adapter::Kind;
use crate::tensor::DType;

const FINE_TUNE: &str = "prefix-tuning-plus";
/// The layout's version, where the adapter has none of its own.
const VERSION: &str = "1";

/// Characters of the base's name that go into it: the whole is the name of a file.
const MAX_BASE_NAME: usize = 96;

/// The suggested name, of an adapter of this kind or of a model into which some were merged. `base` is the base's name, perhaps with an organization; `n_parameters` the base's, for the size
/// label where the name has none.
pub fn download_name(
    kind: Option<Kind>,
    base: Option<&str>,
    n_parameters: u64,
    version: Option<&str>,
    encoding: DType,
) -> String {
    let version = version.map(|v| v.strip_prefix('v').unwrap_or(v)).filter(|v| is_version(v)).unwrap_or(VERSION);
    let base = base.unwrap_or("base").trim_end_matches('/');
    let name = base.rsplit('/').next().unwrap_or(base);
    let clean = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' });
    let clean: String = clean.take(MAX_BASE_NAME).collect();
    let words: Vec<&str> = clean.split('-').filter(|w| !w.is_empty()).collect();
    let (before, size, after) = match words.iter().position(|w| is_size_label(w)) {
        Some(i) => (&words[..i], words[i].to_owned(), &words[i + 1..]),
        None => (&words[..], size_label(n_parameters), &[][..]),
    };
    let base_name = if before.is_empty() { "base".to_owned() } else { before.join("-") };
    // A point would look like the beginning of an ending, and the naming rule has none outside sizes and versions.
    let plain = |text: &str| text.replace('.', "-");
    let (fine_tune, suffix) = match kind {
        Some(Kind::Plus) => (vec![FINE_TUNE.to_owned()], ""),
        Some(Kind::Lora) => (Vec::new(), "-LoRA"),
        Some(Kind::Prefix) => (vec!["virtual-tokens".to_owned()], ""),
        None => (vec!["merged".to_owned()], ""),
    };
    let parts = [vec![plain(&base_name), size], after.iter().map(|w| plain(w)).collect(), fine_tune];
    format!("{}-v{version}-{}{suffix}.gguf", parts.concat().join("-"), encoding.name())
}

/// `1`, `1.2.3`.
fn is_version(text: &str) -> bool {
    text.len() <= 32 && text.split('.').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// `8B`, `1.5B`, `135M`, `8x7B`.
fn is_size_label(word: &str) -> bool {
    let Some(number) = word.strip_suffix(['K', 'M', 'B', 'T', 'k', 'm', 'b', 't']) else { return false };
    let number = number.split_once('x').map_or(number, |(n, rest)| if n.parse::<u32>().is_ok() { rest } else { "" });
    number.starts_with(|c: char| c.is_ascii_digit()) && number.parse::<f64>().is_ok()
}

fn size_label(n: u64) -> String {
    let (value, unit) = match n {
        0..1_000_000 => (n as f64 / 1e3, "K"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "M"),
        _ => (n as f64 / 1e9, "B"),
    };
    let digits = usize::from(value < 10.0);
    let text = format!("{value:.digits$}");
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule_of_ggml() {
        // The expression of ggml's docs/gguf.md, with groups that this crate's regex has no need to name.
        let rule = regex::Regex::new(
            r"^[A-Za-z0-9\s]*(?:-(?:[A-Za-z\s][A-Za-z0-9\s]*|[0-9\s]*))*-(?:\d+x)?(?:\d+\.)?\d+[A-Za-z](?:-[A-Za-z0-9\s-]+)?-v\d+(?:\.\d+)*-[\w_]+\.gguf$",
        )
        .unwrap();
        let cases = [
            (Some("HuggingFaceTB/SmolLM2-135M-Instruct"), "SmolLM2-135M-Instruct-prefix-tuning-plus-v1-Q8_0.gguf"),
            (Some("meta-llama/Llama-3.1-8B"), "Llama-3-1-8B-prefix-tuning-plus-v1-Q8_0.gguf"),
            (Some("Qwen2.5-1.5B-Instruct"), "Qwen2-5-1.5B-Instruct-prefix-tuning-plus-v1-Q8_0.gguf"),
            (Some("/home/x/my model"), "my-model-1.2M-prefix-tuning-plus-v1-Q8_0.gguf"),
            (None, "base-1.2M-prefix-tuning-plus-v1-Q8_0.gguf"),
        ];
        for (base, expected) in cases {
            let name = download_name(Some(Kind::Plus), base, 1_234_567, None, DType::Q8_0);
            let lora = download_name(Some(Kind::Lora), base, 1_234_567, None, DType::Q8_0);
            assert_eq!(lora.strip_suffix("-LoRA.gguf"), name.replace("-prefix-tuning-plus", "").strip_suffix(".gguf"));
            assert_eq!(name, expected);
            assert!(rule.is_match(&name), "{name}");
        }
        for (version, expected) in [("1.2", "v1.2"), ("v3", "v3"), ("nightly", "v1"), ("1.", "v1"), ("../x", "v1")] {
            let name = download_name(Some(Kind::Lora), None, 1_234_567, Some(version), DType::F16);
            assert_eq!(name, format!("base-1.2M-{expected}-F16-LoRA.gguf"));
        }
        let merged = download_name(None, Some("a/SmolLM2-135M"), 1, None, DType::F16);
        assert_eq!(merged, "SmolLM2-135M-merged-v1-F16.gguf");
        assert_eq!(size_label(8_030_000_000), "8B");
    }
}
