//! The model card: `README.md` with the front matter that the Hugging Face hub reads.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use crate::adapter::Adapter;
use crate::adapter::lora::{Lora, Module};
use crate::adapter::plus::{self, Plus};
use crate::base::BaseModel;
use crate::import::stated::BASE_MISMATCH_IGNORED;
use crate::pipeline::Converted;
use crate::validate::Validated;
use crate::verify::Report;

/// What a card says.
pub struct Card<'a> {
    /// The adapter as it is in the bundle.
    pub adapter: &'a Validated,
    /// Its base.
    pub base: &'a BaseModel,
    /// The weights' file in the bundle.
    pub weights_file: &'a str,
    /// Name suggested for a download.
    pub download_name: &'a str,
    /// The verification.
    pub report: &'a Report,
    /// What it was compared with.
    pub reference: &'a str,
    /// The conversion, if there was one.
    pub converted: Option<&'a Converted>,
    /// What a reader should know.
    pub notes: &'a [String],
    /// The canonical digest.
    pub digest: &'a str,
    /// The command that made the bundle.
    pub command: &'a str,
    /// Base64 of the key that signs the bundle.
    pub public_key: Option<&'a str>,
}

impl Card<'_> {
    /// The whole text.
    pub fn text(&self) -> String {
        let mut out = self.front_matter();
        let base_name = base_name(self.adapter.adapter(), self.base);
        let base = markdown(&base_name);
        let _ = match self.adapter.adapter() {
            Adapter::Plus(_) => write!(
                out,
                "# Prefix-Tuning+ adapter for {base}\n\n\
                 A [Prefix-Tuning+](https://arxiv.org/abs/2506.13674) adapter: in each adapted layer every attention head's output gets\n\
                 `memory_scale * phi(query_scale * q) @ M` added. It needs its base model, and a runtime that adds this term.\n\n"
            ),
            Adapter::Lora(_) => write!(
                out,
                "# LoRA for {base}\n\n\
                 A [LoRA](https://arxiv.org/abs/2106.09685): to each adapted weight W of its base model `scale * B A` is added.\n\n"
            ),
        };
        match self.adapter.adapter() {
            Adapter::Plus(plus) => self.table(plus, &mut out),
            Adapter::Lora(lora) => self.lora_table(lora, &mut out),
        }
        self.tensors(&mut out);
        self.verification(&mut out);
        self.running(&mut out);
        let _ = write!(
            out,
            "## Origin\n\nMade by ptplus {} with\n\n{fence}sh\n{}\n{fence}\n\n",
            env!("CARGO_PKG_VERSION"),
            crate::error::escape(self.command),
            fence = fence(self.command)
        );
        if let Some(record) = self.adapter.adapter().extra().get(crate::import::RECORD_KEY).and_then(Value::as_object) {
            let _ = writeln!(out, "Conventions that the checkpoint did not state were settled by:\n");
            for (key, by) in record {
                let _ = writeln!(out, "- {}: {}", markdown(key), markdown(by.as_str().unwrap_or(&by.to_string())));
            }
            out.push('\n');
        }
        if self.adapter.adapter().extra().get(BASE_MISMATCH_IGNORED) == Some(&Value::Bool(true)) {
            out.push_str(
                "**The base given was not the one that the adapter was made for; that was ignored on request.**\n\n",
            );
        }
        if let Some(digest) = self.converted.and_then(|c| c.source_sha256.as_deref()) {
            let _ = writeln!(out, "Digest of the source: `{digest}`  ");
        }
        let _ = writeln!(out, "Digest of the adapter, independent of its file: `{}`", self.digest);
        out
    }

    fn front_matter(&self) -> String {
        let stated = self.adapter.adapter().extra().get("base_model_name_or_path").and_then(Value::as_str);
        let mut out = String::from("---\n");
        // The hub links to what this names, so only a hub name will do; a path of the trainer's machine is none.
        if let Some(id) = stated.filter(|s| is_hub_name(s)) {
            // A JSON string is one of YAML.
            let _ = write!(out, "base_model: {}\nbase_model_relation: adapter\n", Value::from(id));
        }
        out.push_str(match self.adapter.adapter() {
            Adapter::Plus(_) => "library_name: ptplus\ntags:\n- prefix-tuning-plus\n- prefix-tuning\n- adapter\n",
            Adapter::Lora(_) => "library_name: peft\ntags:\n- lora\n- adapter\n",
        });
        out.push_str(if self.weights_file.ends_with(".gguf") { "- gguf\n" } else { "- safetensors\n" });
        out.push_str("---\n\n");
        out
    }

    fn lora_table(&self, lora: &Lora, out: &mut String) {
        let layers: Vec<String> = self.adapter.adapter().layer_numbers().map(|i| i.to_string()).collect();
        let kinds: Vec<String> = lora.kinds().into_iter().map(|kind| format!("`{kind}`")).collect();
        let ranks: BTreeSet<usize> = lora.modules.values().map(Module::rank).collect();
        let scales: BTreeSet<String> = lora.modules.values().map(|m| (m.scale.factor as f32).to_string()).collect();
        let list = |items: Vec<String>| items.join(", ");
        out.push_str("| | |\n|---|---|\n");
        for (what, value) in [
            ("adapted layers", list(layers)),
            ("adapted weights", format!("{}: {}", lora.modules.len(), list(kinds))),
            ("ranks", list(ranks.iter().map(usize::to_string).collect())),
            ("scales, the factors on B A", list(scales.into_iter().collect())),
            ("suggested file name", format!("`{}`", self.download_name)),
        ] {
            let _ = writeln!(out, "| {what} | {value} |");
        }
        out.push('\n');
    }

    fn table(&self, a: &Plus, out: &mut String) {
        let (c, g) = (&a.config.conventions, &a.config.geometry);
        let layers = if a.layers.len() == g.n_layers {
            format!("all {}", g.n_layers)
        } else {
            let list: Vec<String> = a.layers.keys().map(usize::to_string).collect();
            format!("{} of {}: {}", list.len(), g.n_layers, list.join(", "))
        };
        let order = match (&self.adapter.origin.gguf_architecture, self.adapter.origin.row_order) {
            (Some(architecture), order) => format!("{order} (GGUF architecture `{architecture}`)"),
            (None, order) => format!("{order} (Hugging Face)"),
        };
        out.push_str("| | |\n|---|---|\n");
        for (what, value) in [
            ("adapted layers", layers),
            ("phi", format!("`{}`{}", c.feature_map, learned(a))),
            ("query tap", format!("`{}`", c.query_tap)),
            ("query scale, memory scale", format!("{}, {}", c.query_scale, c.memory_scale)),
            ("memories", format!("`{}`", c.memory_sharing)),
            (
                "heads, key/value heads, head dim, features",
                format!("{}, {}, {}, {}", g.n_heads, g.n_kv_heads, g.head_dim, g.n_features),
            ),
            ("row order of the query's components", order),
            ("suggested file name", format!("`{}`", self.download_name)),
        ] {
            let _ = writeln!(out, "| {what} | {value} |");
        }
        out.push('\n');
    }

    fn tensors(&self, out: &mut String) {
        out.push_str("## Tensors\n\n| tensor | type | shape |\n|---|---|---|\n");
        for e in self.adapter.ledger.consumed() {
            let _ = writeln!(out, "| `{}` | {} | `{:?}` |", e.name, e.dtype, e.shape);
        }
        out.push('\n');
    }

    fn verification(&self, out: &mut String) {
        let m = &self.report.metrics;
        let x = super::reports::two_digits;
        let limit = self.report.limits.max_abs.map_or(String::new(), |l| format!(" (limit {:.1e})", x(l)));
        let _ = write!(
            out,
            "## Verification\n\nBefore this bundle was made, the file in it was run on its base and compared with {}:\n\n\
             | figure | value |\n|---|---|\n\
             | largest difference of a logit | {:.1e}{limit} |\n\
             | effect of the adapter on the logits | {:.1e} |\n\
             | mean KL divergence, nats | {:.1e} |\n\
             | same top token | {} % of {} positions |\n\n",
            self.reference,
            x(m.max_abs),
            x(self.report.found_effect),
            x(m.mean_kl),
            x(m.top1_agreement * 100.0),
            m.n_positions
        );
        for note in self.notes {
            let _ = writeln!(out, "- {}", markdown(note));
        }
        if !self.notes.is_empty() {
            out.push('\n');
        }
    }

    fn running(&self, out: &mut String) {
        out.push_str("## Use\n\nCheck the bundle, and that a base is the one that it was made for:\n\n```sh\nptplus check . --base BASE");
        if let Some(key) = self.public_key {
            let _ = write!(out, " --trusted-key KEY   # the signer says it is {key}");
        }
        out.push_str("\n```\n\n");
        if self.adapter.adapter().as_lora().is_some() {
            return self.running_lora(out);
        }
        if self.weights_file.ends_with(".gguf") {
            out.push_str(
                "With ptplus, on its own engine or on an unmodified llama.cpp (`docs/LLAMA_CPP.md` of ptplus has the C and preload libraries):\n\n\
                 ```sh\nptplus run --base BASE --adapter adapter.gguf -p PROMPT\nptplus run --engine llama.cpp --base BASE.gguf --adapter adapter.gguf -p PROMPT\n```\n\n\
                 In PyTorch: convert to safetensors, beside the bundle and not in it, then load the folder with `PeftModel.from_pretrained` after `import ptplus.peft`, or with `ptplus.load_adapter` (the Python package of ptplus):\n\n\
                 ```sh\nptplus convert adapter.gguf -o ../adapter-safetensors --to safetensors\n```\n\n",
            );
        } else {
            out.push_str(
                "In PyTorch: load this folder with `PeftModel.from_pretrained` after `import ptplus.peft`, or with `ptplus.load_adapter` (the Python package of ptplus). With ptplus, and for llama.cpp (a file beside the bundle, not in it):\n\n\
                 ```sh\nptplus run --base BASE --adapter . -p PROMPT\nptplus convert . -o ../adapter.gguf --base BASE\n```\n\n",
            );
        }
        out.push_str(
            "If the adapter was trained with another chat template than the base's, add `--chat-template-file FILE` with that template to\n\
             `ptplus run`; under a template that it does not know, an adapter can answer with nothing.\n\n",
        );
    }
}

impl Card<'_> {
    fn running_lora(&self, out: &mut String) {
        out.push_str(match self.weights_file.ends_with(".gguf") {
            true => {
                "With any llama.cpp program, for a base in GGUF, and with ptplus:\n\n\
                 ```sh\nllama-cli -m BASE.gguf --lora adapter.gguf -p PROMPT\nptplus run --base BASE --adapter adapter.gguf -p PROMPT\n```\n\n\
                 In PyTorch, with PEFT: convert to safetensors, beside the bundle and not in it, then `PeftModel.from_pretrained`:\n\n\
                 ```sh\nptplus convert adapter.gguf -o ../adapter-safetensors --to safetensors\n```\n\n"
            }
            false => {
                "In PyTorch, with PEFT: `PeftModel.from_pretrained` of this folder. With ptplus, and for llama.cpp (a file beside the bundle, not in it):\n\n\
                 ```sh\nptplus run --base BASE --adapter . -p PROMPT\nptplus convert . -o ../adapter.gguf --base BASE\n```\n\n"
            }
        });
    }
}

fn learned(a: &Plus) -> &'static str {
    let has = |f: fn(&plus::Layer) -> bool| a.layers.values().any(f);
    match (has(|l| l.feature_weight.is_some()), has(|l| l.normalizer.is_some())) {
        (true, true) => " on a learned feature map, normalised",
        (true, false) => " on a learned feature map",
        (false, true) => ", normalised",
        (false, false) => "",
    }
}

/// The base's name for people: what the adapter states, its last part where it is a path; else what the base states.
pub fn base_name(adapter: &Adapter, base: &BaseModel) -> String {
    let stated = adapter.extra().get("base_model_name_or_path").and_then(Value::as_str).filter(|s| !s.is_empty());
    match stated {
        Some(id) if is_hub_name(id) => id.to_owned(),
        Some(path) => path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path).to_owned(),
        None => base.name.clone().unwrap_or_else(|| format!("a {} model", base.config.family)),
    }
}

/// `organization/name`.
pub fn is_hub_name(text: &str) -> bool {
    let is_part = |s: &str| {
        !s.is_empty() && !s.starts_with(['.', '-']) && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    text.split_once('/').is_some_and(|(organization, name)| is_part(organization) && is_part(name))
}

/// Text from a file, without what Markdown or HTML would act on.
fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in crate::error::escape(text).chars() {
        if "\\`*_[]<>#|!&".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Backticks around a text that may hold some.
fn fence(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(3.max(longest + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_file_is_no_markup() {
        assert_eq!(markdown("<b>[x](y)\n"), r"\<b\>\[x\](y)\\n");
        assert_eq!(fence("a ``` b"), "````");
        assert_eq!(fence("a"), "```");
        assert!(is_hub_name("HuggingFaceTB/SmolLM2-135M-Instruct"));
        for other in ["a", "/a/b", "a/b/c", "../b", "a/", "a b/c", "./a"] {
            assert!(!is_hub_name(other), "{other}");
        }
    }
}
