//! The card of a bundle of a model: a base with adapters merged into it.

use std::fmt::Write as _;

use super::form::{PackedForm, Part};
use super::sections::{
    FOR_PEOPLE, Of, defaults, describe, front_matter, made_with, markdown, tensor_table, verification,
};
use crate::about::About;
use crate::base::BaseModel;
use crate::format::bundle::MODEL_FILE;
use crate::verify::Report;

/// What a card says.
pub struct ModelCard<'a> {
    /// The model as it is in the bundle.
    pub model: &'a BaseModel,
    /// What it says.
    pub about: &'a About,
    /// A description that the packer wrote, which may be Markdown.
    pub description: Option<&'a str>,
    /// The name of the base.
    pub base_name: &'a str,
    /// What was merged into it.
    pub parts: &'a [Part],
    /// Every form of the model, the first one first.
    pub forms: &'a [PackedForm],
    /// Name suggested for a download.
    pub download_name: &'a str,
    /// The verification.
    pub report: &'a Report,
    /// What it was compared with.
    pub reference: &'a str,
    /// What a reader should know.
    pub notes: &'a [String],
    /// The command that made the bundle.
    pub command: &'a str,
    /// Base64 of the key that signs the bundle.
    pub public_key: Option<&'a str>,
}

impl ModelCard<'_> {
    /// The whole text.
    pub fn text(&self) -> String {
        let mut out = front_matter(self.about, "finetune", "gguf", vec!["gguf", "lora", "merged"]);
        let base = markdown(self.base_name);
        let title =
            self.about.name.as_deref().map(markdown).unwrap_or_else(|| format!("{base} with a LoRA merged into it"));
        let (what, each) = match self.parts {
            [_] => ("a [LoRA](https://arxiv.org/abs/2106.09685)", "is"),
            _ => ("several [LoRAs](https://arxiv.org/abs/2106.09685)", "are"),
        };
        let _ = write!(
            out,
            "# {title}\n\n{base} with {what} merged into it: `scale * B A` {each} added to its weights once and for all. It is a whole model, and\n\
             needs no other.\n\n"
        );
        describe(&mut out, self.about, self.description);
        self.running(&mut out);
        verification(&mut out, Of::Model, self.report, self.reference, self.notes, self.forms);
        self.table(&mut out);
        made_with(&mut out, self.command);
        out.push_str("The base's weights are in it, so its licence holds for this model, too.\n");
        out.push_str(FOR_PEOPLE);
        out
    }

    fn running(&self, out: &mut String) {
        out.push_str("## Use\n\nWith ptplus, which checks every file first:\n\n```sh\nptplus check .");
        if let Some(key) = self.public_key {
            let _ = write!(out, " --trusted-key KEY   # the signer says it is {key}");
        }
        let _ = write!(
            out,
            "\nptplus run --base . -p PROMPT\n```\n\n\
             In a llama.cpp program, as any model, or checked and started by ptplus:\n\n\
             ```sh\nllama-server -m {MODEL_FILE} --jinja\nptplus exec --base . -- llama-server\n```\n\n\
             In PyTorch, which decodes it (with the packages transformers and gguf):\n\n\
             ```python\nfrom transformers import AutoModelForCausalLM\n\
             model = AutoModelForCausalLM.from_pretrained(\".\", gguf_file=\"{MODEL_FILE}\")\n```\n\n"
        );
        if self.about.chat_template.is_some() {
            out.push_str("The file has the chat template, which the commands above use.\n\n");
        }
        defaults(out, self.about);
    }

    fn table(&self, out: &mut String) {
        out.push_str("## What it is\n\n| | |\n|---|---|\n");
        let _ = writeln!(out, "| base | {} |", markdown(self.base_name));
        for part in self.parts {
            let _ = writeln!(
                out,
                "| merged | {}, {}, times {}, digest `{}` |",
                markdown(&part.name),
                part.kind,
                part.scale,
                part.digest.canonical
            );
        }
        let c = &self.model.config;
        for (what, value) in [
            ("architecture", format!("`{}`", self.model.gguf_architecture())),
            ("layers, hidden size, vocabulary", format!("{}, {}, {}", c.n_layers, c.hidden_size, c.vocab_size)),
            ("suggested file name", format!("`{}`", self.download_name)),
        ] {
            let _ = writeln!(out, "| {what} | {value} |");
        }
        out.push('\n');
        let tensors = self.model.tensors_in_file_order();
        tensor_table(out, tensors.map(|t| (t.name.clone(), t.dtype.to_string(), t.shape.clone())));
    }
}
