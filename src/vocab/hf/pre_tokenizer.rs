//! How text is split before pairs are merged: from the content of `tokenizer.json` to llama.cpp's name for it.

use serde_json::Value;

/// One step of a pre-tokenizer, without what only shifts offsets.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    /// Each match of the expression is a piece, and so is what lies between.
    Split(&'a str),
    /// Each digit is a piece.
    EachDigit,
    /// Bytes to printable characters, after splitting as GPT-2 does, or not.
    ByteLevel { splits: bool },
}

/// A way to split that llama.cpp knows. Sources: the expressions in `llm_tokenizer_bpe` and the names in
/// `llama_vocab::impl::load` of llama-vocab.cpp, and the expressions that it quotes from the models' tokenizer.json.
struct PreTokenizer {
    name: &'static str,
    steps: &'static [Step<'static>],
    /// `ignore_merges` of the model, as llama.cpp has it for this name; `None`: both, the vocabulary being such that it
    /// makes no difference.
    ignore_merges: Option<bool>,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PLAIN_BYTES: Step = Step::ByteLevel { splits: false };
const GPT2_BYTES: Step = Step::ByteLevel { splits: true };

const KNOWN: &[PreTokenizer] = &[
    PreTokenizer { name: "llama-bpe", steps: &[Step::Split(LLAMA3), PLAIN_BYTES], ignore_merges: Some(true) },
    PreTokenizer { name: "smaug-bpe", steps: &[Step::Split(LLAMA3), PLAIN_BYTES], ignore_merges: Some(false) },
    PreTokenizer { name: "qwen2", steps: &[Step::Split(QWEN2), PLAIN_BYTES], ignore_merges: Some(false) },
    PreTokenizer { name: "qwen35", steps: &[Step::Split(QWEN35), PLAIN_BYTES], ignore_merges: Some(false) },
    PreTokenizer { name: "tekken", steps: &[Step::Split(TEKKEN), PLAIN_BYTES], ignore_merges: None },
    PreTokenizer { name: "gpt-4o", steps: &[Step::Split(GPT4O), PLAIN_BYTES], ignore_merges: Some(false) },
    PreTokenizer { name: "smollm", steps: &[Step::EachDigit, GPT2_BYTES], ignore_merges: Some(false) },
    PreTokenizer { name: "gpt-2", steps: &[GPT2_BYTES], ignore_merges: Some(false) },
];

/// llama.cpp's name of what `pre_tokenizer` and `ignore_merges` of a tokenizer.json say; `None` where it is not known.
pub(super) fn name(pre_tokenizer: &Value, ignore_merges: bool) -> Option<&'static str> {
    let steps = super::steps(pre_tokenizer, "pretokenizers").ok()?;
    let steps = steps.into_iter().map(step).collect::<Option<Vec<_>>>()?;
    let fits = |k: &&PreTokenizer| k.steps == steps && k.ignore_merges.is_none_or(|i| i == ignore_merges);
    KNOWN.iter().find(fits).map(|k| k.name)
}

/// The names in the table, for messages.
pub(super) fn known_names() -> String {
    KNOWN.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")
}

fn step(v: &Value) -> Option<Step<'_>> {
    match v["type"].as_str()? {
        "Split" => {
            let plain = v["behavior"].as_str()? == "Isolated" && !flag(v, "invert", false)?;
            v["pattern"]["Regex"].as_str().filter(|_| plain).map(Step::Split)
        }
        "Digits" => (v["individual_digits"].as_bool() == Some(true)).then_some(Step::EachDigit),
        "ByteLevel" => (v["add_prefix_space"].as_bool() == Some(false))
            .then_some(Step::ByteLevel { splits: flag(v, "use_regex", true)? }),
        _ => None,
    }
}

fn flag(v: &Value, field: &str, default: bool) -> Option<bool> {
    if v[field].is_null() { Some(default) } else { v[field].as_bool() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_content_decides_and_what_is_not_known_has_no_name() {
        let bytes = |splits: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": splits});
        let split = |regex: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
        };
        let digits =
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes(true)]});
        for (v, ignore_merges, expected) in [
            (split(LLAMA3), true, Some("llama-bpe")),
            (split(LLAMA3), false, Some("smaug-bpe")),
            (split(QWEN2), false, Some("qwen2")),
            (split(QWEN2), true, None),
            (split(QWEN35), false, Some("qwen35")),
            (split(TEKKEN), true, Some("tekken")),
            (split(TEKKEN), false, Some("tekken")),
            (split(GPT4O), false, Some("gpt-4o")),
            (split(GPT4O), true, None),
            (split(r"\s+"), false, None),
            (digits, false, Some("smollm")),
            (bytes(true), false, Some("gpt-2")),
            (bytes(false), false, None),
            (json!({"type": "Sequence", "pretokenizers": [bytes(true)]}), false, Some("gpt-2")),
            (json!({"type": "Sequence", "pretokenizers": [split(QWEN2)]}), false, Some("qwen2")),
            (
                json!({"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": []}, bytes(true)]}),
                false,
                Some("gpt-2"),
            ),
            (json!({"type": "Sequence", "pretokenizers": []}), false, None),
            (json!({"type": "Sequence"}), false, None),
            (json!({"type": "ByteLevel", "add_prefix_space": false}), false, Some("gpt-2")),
            (json!({"type": "ByteLevel", "add_prefix_space": true}), false, None),
            (json!({"type": "Whitespace"}), false, None),
            (Value::Null, false, None),
        ] {
            assert_eq!(name(&v, ignore_merges), expected, "{v} {ignore_merges}");
        }
    }
}
