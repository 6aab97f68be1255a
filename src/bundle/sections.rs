//! What cards of adapters and of models have in common: front matter, sections, and text that is no markup.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use indexmap::IndexMap;

use super::form::PackedForm;
use super::yaml::{list, text as yaml};
use crate::about::{About, OTHER, is_of_hub};
use crate::verify::Report;

/// The front matter. `relation` is what the hub calls the way from base to this; `tags` come before the packer's.
pub(super) fn front_matter(a: &About, relation: &str, library: &str, tags: Vec<&str>) -> String {
    let mut out = String::from("---\n");
    let mut put = |key: &str, value: &str| {
        let _ = writeln!(out, "{key}: {value}");
    };
    if let Some(license) = &a.license {
        match is_of_hub(license) {
            true => put("license", &yaml(&license.to_lowercase())),
            false => {
                put("license", OTHER);
                put("license_name", &yaml(license));
            }
        }
    }
    if let Some(link) = &a.license_link {
        put("license_link", &yaml(link));
    }
    // The hub links to what this names, so only a hub name will do; a path of the trainer's machine is none.
    if let Some(id) = &a.base_model {
        put("base_model", &yaml(id));
        put("base_model_relation", relation);
    }
    put("library_name", library);
    put("pipeline_tag", "text-generation");
    let more = a.tags.iter().map(String::as_str).filter(|tag| !tags.contains(tag));
    let more: BTreeSet<&str> = more.collect();
    out.push_str(&list("tags", tags.into_iter().chain(more)));
    out.push_str(&list("language", a.languages.iter().map(String::as_str)));
    out.push_str(&list("datasets", a.datasets.iter().map(String::as_str)));
    out.push_str("---\n\n");
    out
}

/// What it says of itself; `written` by the packer may be Markdown.
pub(super) fn describe(out: &mut String, a: &About, written: Option<&str>) {
    match (written, &a.description) {
        (Some(written), _) => {
            let _ = writeln!(out, "{}\n", written.trim());
        }
        (None, Some(text)) => {
            text.lines().for_each(|line| {
                let _ = writeln!(out, "{}", markdown(line));
            });
            out.push('\n');
        }
        (None, None) => {}
    }
    for (what, value) in [("Version", &a.version), ("Author", &a.author), ("Organization", &a.organization)] {
        if let Some(value) = value {
            let _ = writeln!(out, "{what}: {}  ", markdown(value));
        }
    }
    if a.version.is_some() || a.author.is_some() || a.organization.is_some() {
        out.push('\n');
    }
}

/// How tokens are chosen, and what the model is told, where that is said.
pub(super) fn defaults(out: &mut String, a: &About) {
    let said: Vec<String> =
        a.sampling.stated().map(|(flag, _, value)| format!("`{flag} {}`", value.to_json(None))).collect();
    if !said.is_empty() {
        let _ = write!(out, "Unless flags say otherwise, tokens are chosen with {}.\n\n", said.join(", "));
    }
    if let Some(system) = &a.system {
        let _ = write!(out, "Unless `--system` says otherwise, the model is told first: {}\n\n", markdown(system));
    }
}

/// What a card is about.
#[derive(Clone, Copy)]
pub(super) enum Of {
    Adapter,
    Model,
}

/// What was found before the bundle was made.
pub(super) fn verification(
    out: &mut String,
    of: Of,
    report: &Report,
    reference: &str,
    notes: &[String],
    forms: &[PackedForm],
) {
    let m = &report.metrics;
    let x = super::reports::two_digits;
    let limit = report.limits.max_abs.map_or(String::new(), |l| format!(" (limit {:.1e})", x(l)));
    let (ran, name, effect, choice) = match of {
        Of::Adapter => (
            "the file in it was run on its base and compared",
            "adapter",
            "effect of the adapter on the logits",
            "`--form NAME` chooses, and the first is used where nothing does",
        ),
        Of::Model => (
            "the model in it was run and compared",
            "model",
            "effect of what was merged on the logits",
            "the first is used where no file is named",
        ),
    };
    let _ = write!(
        out,
        "## Verification\n\nBefore this bundle was made, {ran} with {reference}:\n\n\
         | figure | value |\n|---|---|\n\
         | largest difference of a logit | {:.1e}{limit} |\n\
         | {effect} | {:.1e} |\n\
         | mean KL divergence, nats | {:.1e} |\n\
         | same top token | {} % of {} positions |\n\n",
        x(m.max_abs),
        x(report.found_effect),
        x(m.mean_kl),
        x(m.top1_agreement * 100.0),
        m.n_positions
    );
    for note in notes {
        let _ = writeln!(out, "- {}", markdown(note));
    }
    if !notes.is_empty() {
        out.push('\n');
    }
    if forms.len() < 2 {
        return;
    }
    let _ = write!(
        out,
        "Each form of the {name} was held against the same; {choice}:\n\n\
         | form | file | type | largest difference of a logit | mean KL divergence, nats |\n|---|---|---|---|---|\n"
    );
    for form in forms {
        let m = &form.verification.metrics;
        let (max, kl) = (x(m.max_abs), x(m.mean_kl));
        let _ = writeln!(out, "| `{}` | `{}` | {} | {max:.1e} | {kl:.1e} |", form.name, form.file, form.dtype);
    }
    out.push('\n');
}

/// One row for tensors that differ in their layer alone: name, type and shape of each.
pub(super) fn tensor_table(out: &mut String, tensors: impl Iterator<Item = (String, String, Vec<usize>)>) {
    let mut rows: IndexMap<(String, String, String), usize> = IndexMap::new();
    for (name, dtype, shape) in tensors {
        *rows.entry((any_layer(&name), dtype, format!("{shape:?}"))).or_default() += 1;
    }
    out.push_str("| tensors | how many | type | shape |\n|---|---|---|---|\n");
    for ((name, dtype, shape), n) in rows {
        let _ = writeln!(out, "| `{name}` | {n} | {dtype} | `{shape}` |");
    }
    out.push('\n');
}

/// The command that made the bundle.
pub(super) fn made_with(out: &mut String, command: &str) {
    let _ = write!(
        out,
        "## Origin\n\nMade by ptplus {} with\n\n{fence}sh\n{}\n{fence}\n\n",
        env!("CARGO_PKG_VERSION"),
        crate::error::escape(command),
        fence = fence(command)
    );
}

/// What may be edited.
pub(super) const FOR_PEOPLE: &str = "\nThis card, licences and images are text for people, and may be edited; every other file is under `manifest.json`.\n";

/// A tensor's name with `*` for each part that is a number.
fn any_layer(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

/// Text from a file, without what Markdown or HTML would act on.
pub(super) fn markdown(text: &str) -> String {
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
    use crate::format::hub::is_hub_id;

    #[test]
    fn text_from_a_file_is_no_markup() {
        assert_eq!(markdown("<b>[x](y)\n"), r"\<b\>\[x\](y)\\n");
        assert_eq!(fence("a ``` b"), "````");
        assert_eq!(fence("a"), "```");
        assert!(is_hub_id("HuggingFaceTB/SmolLM2-135M-Instruct"));
        for other in ["a", "/a/b", "a/b/c", "../b", "a/", "a b/c", "./a"] {
            assert!(!is_hub_id(other), "{other}");
        }
    }

    #[test]
    fn layers_fold_into_one_name() {
        assert_eq!(any_layer("blk.12.attn_prefix_memory.weight"), "blk.*.attn_prefix_memory.weight");
        assert_eq!(any_layer("layers.0.experts.3.w1"), "layers.*.experts.*.w1");
        assert_eq!(any_layer("q8_0..x"), "q8_0..x");
    }
}
