//! The model card: `README.md` with the front matter that the Hugging Face hub reads. It is its owner's to edit, so nothing here
//! is read again.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::form::PackedForm;
use super::sections::{
    FOR_PEOPLE, Of, defaults, describe, front_matter, made_with, markdown, tensor_table, verification,
};
use crate::about::About;
use crate::adapter::Adapter;
use crate::adapter::lora::{Lora, Module};
use crate::adapter::plus::{self, Plus};
use crate::adapter::prefix::VirtualTokens;
use crate::base::BaseModel;
use crate::format::bundle::CHAT_TEMPLATE_FILE;
use crate::format::hub::is_hub_id;
use crate::import::source::WEIGHTS_FILE;
use crate::import::stated::BASE_MISMATCH_IGNORED;
use crate::pipeline::Converted;
use crate::validate::Validated;
use crate::verify::Report;

/// What a card says.
pub struct Card<'a> {
    /// The adapter as it is in the bundle.
    pub adapter: &'a Validated,
    /// What it says.
    pub about: &'a About,
    /// A description that the packer wrote, which may be Markdown; one from the adapter's file is not trusted so far.
    pub description: Option<&'a str>,
    /// Its base.
    pub base: &'a BaseModel,
    /// The weights' file in the bundle.
    pub weights_file: &'a str,
    /// Every form of the adapter, this one first.
    pub forms: &'a [PackedForm],
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
        let base = markdown(&base_name(self.adapter.adapter(), self.base));
        let name = self.about.name.as_deref().map(markdown);
        let _ = match self.adapter.adapter() {
            Adapter::Plus(_) => write!(
                out,
                "# {}\n\n\
                 A [Prefix-Tuning+](https://arxiv.org/abs/2506.13674) adapter for {base}: in each adapted layer every attention head's output gets\n\
                 `memory_scale * phi(query_scale * q) @ M` added. It needs its base model, and a runtime that adds this term.\n\n",
                name.unwrap_or_else(|| format!("Prefix-Tuning+ adapter for {base}"))
            ),
            Adapter::Lora(_) => write!(
                out,
                "# {}\n\n\
                 A [LoRA](https://arxiv.org/abs/2106.09685) for {base}: to each adapted weight W of its base model `scale * B A` is added.\n\n",
                name.unwrap_or_else(|| format!("LoRA for {base}"))
            ),
            Adapter::Prefix(prefix) => {
                let (method, n) = (prefix.method, prefix.n_tokens());
                let what = match prefix.tokens {
                    VirtualTokens::KeysValues(_) => "keys and values of every layer, as attention finds them",
                    VirtualTokens::Embeddings(_) => "input embeddings",
                };
                write!(
                    out,
                    "# {}\n\n\
                     {} ([paper]({})) for {base}: {n} virtual tokens in front of every sequence, {what}; the text follows at position {n}.\n\n",
                    name.unwrap_or_else(|| format!("{} for {base}", method.title())),
                    method.title(),
                    method.paper()
                )
            }
        };
        describe(&mut out, self.about, self.description);
        self.running(&mut out);
        verification(&mut out, Of::Adapter, self.report, self.reference, self.notes, self.forms);
        out.push_str("## What it is\n\n");
        let rows = match self.adapter.adapter() {
            Adapter::Plus(plus) => self.plus_rows(plus),
            Adapter::Lora(lora) => self.lora_rows(lora),
            Adapter::Prefix(prefix) => prefix.fields().into_iter().map(|(key, value)| (key, value.text())).collect(),
        };
        out.push_str("| | |\n|---|---|\n");
        for (what, value) in rows.into_iter().chain([("suggested file name", format!("`{}`", self.download_name))]) {
            let _ = writeln!(out, "| {what} | {value} |");
        }
        out.push('\n');
        self.tensors(&mut out);
        self.origin(&mut out);
        out
    }

    fn front_matter(&self) -> String {
        let (library, kinds): (_, &[&str]) = match self.adapter.adapter() {
            // What the hub shows for PEFT needs PEFT's files.
            Adapter::Plus(_) if !self.is_peft() => ("ptplus", &["prefix-tuning-plus", "prefix-tuning", "adapter"]),
            Adapter::Plus(_) => ("peft", &["prefix-tuning-plus", "prefix-tuning", "adapter"]),
            Adapter::Lora(_) => ("peft", &["lora", "adapter"]),
            Adapter::Prefix(_) => ("peft", &["virtual-tokens", "adapter"]),
        };
        let forms = [("gguf", self.is_gguf()), ("safetensors", self.is_peft())];
        let forms = forms.into_iter().filter(|(_, is_there)| *is_there).map(|(form, _)| form);
        front_matter(self.about, "adapter", library, kinds.iter().copied().chain(forms).collect())
    }

    fn is_gguf(&self) -> bool {
        self.weights_file.ends_with(".gguf")
    }

    /// Whether the folder is a PEFT model.
    fn is_peft(&self) -> bool {
        self.forms.iter().any(|form| form.file == WEIGHTS_FILE)
    }

    fn running(&self, out: &mut String) {
        let is_lora = self.adapter.adapter().as_lora().is_some();
        let is_of_peft = self.adapter.adapter().as_plus().is_none();
        out.push_str("## Use\n\nWith ptplus, which checks every file first:\n\n```sh\nptplus check . --base BASE");
        if let Some(key) = self.public_key {
            let _ = write!(out, " --trusted-key KEY   # the signer says it is {key}");
        }
        out.push_str("\nptplus run --base BASE --adapter . -p PROMPT\n```\n\n");
        out.push_str("In a llama.cpp program, started by ptplus, or in llama.cpp inside ptplus:\n\n```sh\nptplus exec --adapter . -- llama-server -m BASE.gguf\nptplus run --engine llama.cpp --base BASE.gguf --adapter . -p PROMPT\n");
        if is_lora && self.is_gguf() {
            let template = if self.about.chat_template.is_some() {
                format!(" --jinja --chat-template-file {CHAT_TEMPLATE_FILE}")
            } else {
                String::new()
            };
            let _ = writeln!(out, "llama-cli -m BASE.gguf --lora adapter.gguf{template} -p PROMPT");
        }
        out.push_str("```\n\n");
        let (folder, place) = match (self.is_gguf(), self.is_peft()) {
            (true, false) => {
                let package = if is_of_peft { "" } else { ", with the Python package of ptplus" };
                let _ = write!(
                    out,
                    "In PyTorch{package}, from safetensors that are made beside the bundle, not in it:\n\n```sh\nptplus convert . -o ../adapter-safetensors --to safetensors\n```\n\n"
                );
                ("../adapter-safetensors", "")
            }
            (true, true) => {
                let package = if is_of_peft { "" } else { " and the Python package of ptplus" };
                let _ = write!(out, "In PyTorch, with PEFT{package}: this folder is a PEFT model, too.\n\n");
                (".", "")
            }
            (false, _) => {
                let package = if is_of_peft { "" } else { " and the Python package of ptplus" };
                let _ = write!(out, "In PyTorch, with PEFT{package}: this folder is a PEFT model.\n\n");
                (
                    ".",
                    "And as one file for llama.cpp, beside the bundle, not in it:\n\n```sh\nptplus convert . -o ../adapter.gguf --base BASE\n```\n\n",
                )
            }
        };
        let import = if is_of_peft { "" } else { "import ptplus.peft\n" };
        let base = self.about.base_model.as_deref().unwrap_or("BASE");
        let _ = write!(
            out,
            "```python\n{import}from peft import PeftModel; from transformers import AutoModelForCausalLM\n\
             model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({}), \"{folder}\")\n```\n\n",
            Value::from(base)
        );
        out.push_str(place);
        out.push_str(match self.about.chat_template {
            Some(_) => "The adapter brings the chat template that it was trained with, which the commands above use; `--chat-template-file FILE` overrides it.\n\n",
            None => {
                "If the adapter was trained with another chat template than the base's, add `--chat-template-file FILE` with that template to\n\
                 `ptplus run`; under a template that it does not know, an adapter can answer with nothing.\n\n"
            }
        });
        defaults(out, self.about);
    }

    fn lora_rows(&self, lora: &Lora) -> Vec<(&'static str, String)> {
        let layers: Vec<String> = self.adapter.adapter().layer_numbers().map(|i| i.to_string()).collect();
        let kinds: Vec<String> = lora.kinds().into_iter().map(|kind| format!("`{kind}`")).collect();
        let ranks: BTreeSet<usize> = lora.modules.values().map(Module::rank).collect();
        let scales: BTreeSet<String> = lora.modules.values().map(|m| (m.scale.factor as f32).to_string()).collect();
        let list = |items: Vec<String>| items.join(", ");
        vec![
            ("adapted layers", list(layers)),
            ("adapted weights", format!("{}: {}", lora.modules.len(), list(kinds))),
            ("ranks", list(ranks.iter().map(usize::to_string).collect())),
            ("scales, the factors on B A", list(scales.into_iter().collect())),
        ]
    }

    fn plus_rows(&self, a: &Plus) -> Vec<(&'static str, String)> {
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
        vec![
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
        ]
    }

    fn tensors(&self, out: &mut String) {
        let consumed = self.adapter.ledger.consumed();
        tensor_table(out, consumed.map(|e| (e.name.clone(), e.dtype.to_string(), e.shape.clone())));
    }

    fn origin(&self, out: &mut String) {
        made_with(out, self.command);
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
        out.push_str(FOR_PEOPLE);
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
        Some(id) if is_hub_id(id) => id.to_owned(),
        Some(path) => path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path).to_owned(),
        None => base.name.clone().unwrap_or_else(|| format!("a {} model", base.config.family)),
    }
}
