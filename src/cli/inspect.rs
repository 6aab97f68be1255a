use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use super::base_check;
use super::reading::Reading;
use super::table;
use super::ui::{Status, Ui};
use super::units::bytes;
use crate::adapter::Kind;
use crate::adapter::plus::FIELDS;
use crate::error::{Result, escape};
use crate::import::suggest_layout;
use crate::inspect::{Inspection, TensorLine, inspect_with};
use serde_json::{Value, json};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ptplus inspect adapter.gguf\n  ptplus inspect checkpoint.pt --base model/\n  ptplus inspect checkpoint.pt --suggest-layout > layout.toml"
)]
pub struct Arguments {
    /// Adapter, base model, GGUF or safetensors file or folder
    path: PathBuf,
    /// Base model, for sizes that a checkpoint does not state
    #[arg(long)]
    base: Option<PathBuf>,
    /// Print a first draft of a layout file for the tensors found
    #[arg(long)]
    suggest_layout: bool,
    #[command(flatten)]
    reading: Reading,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let base = a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    if a.suggest_layout {
        let text = suggest_layout(&a.path, base.as_ref())?;
        ui.result(Status::Ok, json!({ "layout": text }), text)?;
        return Ok(0);
    }
    let found = inspect_with(&a.path, &a.reading.options()?, base.as_ref())?;
    ui.result(Status::Ok, &found, Text { of: &found, verbose: ui.is_verbose() })?;
    Ok(0)
}

/// An inspection for people.
struct Text<'a> {
    of: &'a Inspection,
    verbose: bool,
}

impl Display for Text<'_> {
    fn fmt(&self, out: &mut Formatter) -> fmt::Result {
        let Text { of: i, verbose } = *self;
        let name = escape(&i.path.to_string_lossy());
        writeln!(
            out,
            "{name}: {} ({}), {}, {} parameters in {} tensors",
            i.kind,
            i.format,
            bytes(i.len_bytes),
            i.n_parameters,
            i.tensors.len()
        )?;
        if let Some(a) = i.adapter.as_ref().filter(|a| a.kind == Kind::Prefix) {
            writeln!(out, "\nVirtual tokens, {}", a.layout)?;
            let fields = a.fields.iter().filter(|(key, _)| *key != "adapted_layers");
            let fields = fields.map(|(key, value)| {
                format!("{key} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            });
            writeln!(out, "  {}, row order {}", fields.collect::<Vec<_>>().join(", "), a.row_order)?;
        } else if let Some(a) = &i.adapter {
            writeln!(out, "\nPrefix-Tuning+ adapter, {}", a.layout)?;
            let text = |key: &str| match a.fields.get(key).unwrap_or(&Value::Null) {
                Value::String(text) => text.clone(),
                Value::Array(list) => list.len().to_string(),
                x if x.is_f64() => x.as_f64().unwrap_or_default().to_string(),
                other => other.to_string(),
            };
            let conventions = FIELDS.iter().filter(|field| field.is_convention());
            let conventions: Vec<_> = conventions.map(|f| format!("{} {}", f.key, text(f.key))).collect();
            writeln!(out, "  {}", conventions.join(", "))?;
            writeln!(
                out,
                "  {} of {} layers, {} heads, {} kv heads, head_dim {}, value head_dim {}, {} features, row order {}",
                text("adapted_layers"),
                text("num_layers"),
                text("num_attention_heads"),
                text("num_key_value_heads"),
                text("head_dim"),
                text("value_head_dim"),
                text("num_features"),
                a.row_order
            )?;
        }
        if let Some(l) = &i.lora {
            writeln!(out, "\nLoRA: {} weights in {} layers", l.num_modules, l.adapted_layers.len())?;
            for t in &l.targets {
                writeln!(
                    out,
                    "  {} of {}: rank {}, alpha {}, scale {}",
                    t.n,
                    escape(&t.module),
                    t.rank,
                    t.alpha,
                    t.scale
                )?;
            }
            for (what, is_there) in
                [("DoRA: rows are brought to magnitudes", l.dora), ("lora_bias: B has a bias", l.lora_bias)]
            {
                if is_there {
                    writeln!(out, "  {what}")?;
                }
            }
            if !l.saved.is_empty() {
                writeln!(out, "  whole weights: {}", l.saved.join(", "))?;
            }
        }
        if let Some(b) = &i.base {
            writeln!(
                out,
                "\nBase model, family {} (GGUF architecture {}, row order {})",
                b.family, b.gguf_architecture, b.row_order
            )?;
            writeln!(
                out,
                "  {} layers, hidden size {}, {} heads, {} kv heads, head_dim {}, vocabulary {}{}",
                b.num_layers,
                b.hidden_size,
                b.num_attention_heads,
                b.num_key_value_heads,
                b.head_dim,
                b.vocab_size,
                if b.tied_embeddings { ", tied embeddings" } else { "" }
            )?;
        }
        if !i.metadata.is_empty() {
            writeln!(out, "\nMetadata")?;
            for (k, v) in &i.metadata {
                let mut value = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                const SHOWN_CHARS: usize = 120;
                if !verbose && value.chars().count() > SHOWN_CHARS {
                    value = value.chars().take(SHOWN_CHARS).chain("...".chars()).collect();
                }
                writeln!(out, "  {} = {}", escape(k), escape(&value))?;
            }
        }
        if !i.tensors.is_empty() {
            writeln!(out, "\nTensors")?;
            let with_role = i.tensors.iter().any(|t| t.role.is_some());
            let row = |t: &TensorLine| {
                let mut row = vec![escape(&t.name), t.dtype.into(), format!("{:?}", t.shape), bytes(t.len_bytes)];
                row.extend(t.role.as_deref().filter(|_| with_role).map(escape));
                row
            };
            let header = ["name", "type", "shape", "size", "what it is"];
            table::write_table(out, &header[..if with_role { 5 } else { 4 }], || i.tensors.iter().map(row))?;
        }
        for f in &i.findings {
            writeln!(out, "\nfinding: {}", f.line())?;
        }
        for n in &i.notes {
            // What is indented goes on with the note before it.
            let before = if n.starts_with("  ") { "" } else { "\nnote: " };
            writeln!(out, "{before}{}", escape(n))?;
        }
        Ok(())
    }
}
