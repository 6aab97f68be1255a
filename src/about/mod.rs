//! What an adapter says beside its numbers: whose it is and under which licence, and what whoever runs it needs, its chat
//! template and how to sample. All of it is GGUF metadata under the keys of ggml and llama.cpp; an adapter in safetensors
//! carries the same in its configuration (`foreign.rs`).

mod licence;
mod metadata;
mod sampling;

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use crate::error::{Code, Error, Result, is_hidden};
use crate::format::hub::is_hub_id;
use crate::format::names::shorten;

pub use licence::is_of_hub;
pub use sampling::Sampling;

/// Bytes of a name, a link, a tag.
const LINE_BYTES: usize = 256;
/// Bytes of a description or a system message.
pub const TEXT_BYTES: usize = 64 << 10;
/// Languages, tags, data sets.
const LIST: usize = 64;

/// What the hub calls a licence that is none of its list.
pub const OTHER: &str = "other";

/// What an adapter says; all of it may be left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    /// What it is called.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// For whom.
    pub organization: Option<String>,
    /// Of the hub's list in lower case, or the name of another.
    pub license: Option<String>,
    /// Where the licence's text is.
    pub license_link: Option<String>,
    /// ISO 639 codes.
    pub languages: Vec<String>,
    /// Words by which it is found.
    pub tags: Vec<String>,
    /// Data sets of the hub that it was trained on.
    pub datasets: Vec<String>,
    /// The base on the hub, `organization/name`.
    pub base_model: Option<String>,
    /// Some paragraphs.
    pub description: Option<String>,
    /// The template of conversations that it was trained with.
    pub chat_template: Option<String>,
    /// What the model is told first.
    pub system: Option<String>,
    /// How tokens are to be chosen.
    pub sampling: Sampling,
}

impl About {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == About::default()
    }

    /// Refuses what a hub or a reader of GGUF could not take.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`], with the flag of `ptplus pack`.
    pub fn check(&self) -> Result<()> {
        for (flag, value) in [
            ("--name", &self.name),
            ("--version", &self.version),
            ("--author", &self.author),
            ("--organization", &self.organization),
            ("--license", &self.license),
            ("--license-link", &self.license_link),
        ] {
            value.iter().try_for_each(|text| check_line(flag, text))?;
        }
        for (flag, list) in [("--language", &self.languages), ("--tags", &self.tags), ("--dataset", &self.datasets)] {
            if list.len() > LIST {
                return Err(wrong(flag, &format!("at most {LIST}")));
            }
            list.iter().try_for_each(|text| check_line(flag, text))?;
        }
        if let Some(other) = self.languages.iter().find(|code| !is_language(code)) {
            return Err(found("--language", "an ISO 639 code such as en, code or multilingual", other));
        }
        let is_dataset = |id: &str| is_hub_id(id) || (!id.contains('/') && is_hub_id(&format!("a/{id}")));
        if let Some(other) = self.datasets.iter().find(|id| !is_dataset(id)) {
            return Err(found("--dataset", "an id of the hub, ORGANIZATION/NAME", other));
        }
        if let Some(other) = self.base_model.iter().find(|id| !is_hub_id(id)) {
            return Err(found("--base-model", "an id of the hub, ORGANIZATION/NAME", other));
        }
        for (flag, text) in [
            ("--description", &self.description),
            ("--system", &self.system),
            ("--chat-template-file", &self.chat_template),
        ] {
            if text.as_ref().is_some_and(|t| t.contains('\0') || t.trim().is_empty()) {
                return Err(wrong(flag, "a text, without NUL"));
            }
            // Templates have a limit of their own, where they are read.
            if flag != "--chat-template-file" && text.as_ref().is_some_and(|t| t.len() > TEXT_BYTES) {
                return Err(wrong(flag, &format!("at most {TEXT_BYTES} bytes")));
            }
        }
        self.sampling.check()
    }

    /// Fields of a card that a hub wants and nothing says, as its front matter calls them.
    pub fn missing_for_a_hub(&self) -> Vec<&'static str> {
        let mut out = Vec::new();
        for (field, is_there) in [
            ("license", self.license.is_some()),
            ("base_model", self.base_model.is_some()),
            ("language", !self.languages.is_empty()),
        ] {
            if !is_there {
                out.push(field);
            }
        }
        if self.license.as_deref().is_some_and(|id| !is_of_hub(id)) && self.license_link.is_none() {
            out.push("license_link");
        }
        out
    }

    /// For a manifest: each that is said.
    pub fn to_json(&self) -> Json {
        let texts: BTreeMap<&str, &Option<String>> = BTreeMap::from([
            ("author", &self.author),
            ("base_model", &self.base_model),
            ("chat_template", &self.chat_template),
            ("description", &self.description),
            ("license", &self.license),
            ("license_link", &self.license_link),
            ("name", &self.name),
            ("organization", &self.organization),
            ("system", &self.system),
            ("version", &self.version),
        ]);
        let mut out: Map<String, Json> =
            texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text.as_deref()?.into()))).collect();
        for (key, list) in [("datasets", &self.datasets), ("languages", &self.languages), ("tags", &self.tags)] {
            if !list.is_empty() {
                out.insert(key.into(), json!(list));
            }
        }
        let sampling: Map<String, Json> =
            self.sampling.stated().map(|(_, key, value)| (key.to_owned(), value.to_json(None))).collect();
        if !sampling.is_empty() {
            out.insert("sampling".into(), sampling.into());
        }
        Json::Object(out)
    }
}

/// What those who say something say, where all of them say the same; `flag` decides where they do not.
///
/// # Errors
///
/// [`Code::Usage`] where two differ.
pub fn agreed<T: PartialEq>(flag: &str, said: impl IntoIterator<Item = Option<T>>) -> Result<Option<T>> {
    let mut said = said.into_iter().flatten();
    let first = said.next();
    if said.any(|other| Some(&other) != first.as_ref()) {
        return Err(
            Error::new(Code::Usage, "expected it, since the adapters say different things, found none").field(flag)
        );
    }
    Ok(first)
}

fn check_line(flag: &str, text: &str) -> Result<()> {
    let is_line =
        !text.trim().is_empty() && text.len() <= LINE_BYTES && !text.chars().any(|c| c.is_control() || is_hidden(c));
    if is_line {
        Ok(())
    } else {
        Err(found(flag, &format!("one line of 1 to {LINE_BYTES} bytes, without invisible characters"), text))
    }
}

/// `en`, `deu`, `zh-Hant`; the hub also knows `code` and `multilingual`.
fn is_language(text: &str) -> bool {
    let (code, rest) = text.split_once('-').unwrap_or((text, "x"));
    let is_code = (2..=3).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_lowercase());
    matches!(text, "code" | "multilingual")
        || (is_code && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
}

fn wrong(flag: &str, expected: &str) -> Error {
    Error::new(Code::Usage, format!("expected {expected}, found another")).field(flag)
}

fn found(flag: &str, expected: &str, found: &str) -> Error {
    Error::new(Code::Usage, format!("expected {expected}, found {:?}", shorten(found))).field(flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Adapter;
    use crate::import::{Options, read};

    fn adapter() -> Adapter {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/llama-mha/adapter");
        read(folder.as_ref(), &Options::default(), None).unwrap().adapter
    }

    #[test]
    fn what_is_said_is_read_back_and_said_anew() {
        let text = |s: &str| Some(s.to_owned());
        let all = About {
            name: text("Pirate"),
            version: text("1.2"),
            author: text("A: \"B\" #c"),
            organization: text("O"),
            license: text("My Licence"),
            license_link: text("LICENSE"),
            languages: vec!["en".into(), "no".into()],
            tags: vec!["pirate".into()],
            datasets: vec!["a/b".into(), "squad".into()],
            base_model: text("org/base"),
            description: text("Two\nlines"),
            chat_template: text("{{ messages }}"),
            system: text("Be brief."),
            sampling: Sampling { temp: Some(0.1), top_k: Some(-1), repeat_last_n: Some(8), ..Sampling::default() },
        };
        let mut a = adapter();
        assert!(About::of(&a).unwrap().chat_template.is_none());
        all.write_into(&mut a).unwrap();
        assert_eq!(About::of(&a).unwrap(), all);
        // Anew, of some matters only.
        let some = About { datasets: vec!["c".into()], license: text("MIT"), ..About::default() };
        some.write_into(&mut a).unwrap();
        let now = About::of(&a).unwrap();
        assert_eq!(
            (now.datasets, now.license.as_deref(), now.name),
            (vec!["c".to_owned()], Some("mit"), all.name.clone())
        );
        assert_eq!(all.to_json()["sampling"], json!({ "temp": 0.1, "top_k": -1, "penalty_last_n": 8 }));
    }

    #[test]
    fn what_no_hub_takes_is_refused_by_its_flag() {
        let none = About::default;
        let text = |s: &str| Some(s.to_owned());
        for (about, flag) in [
            (About { name: text("a\nb"), ..none() }, "--name"),
            (About { author: text(""), ..none() }, "--author"),
            (About { version: text("a\u{202e}b"), ..none() }, "--version"),
            (About { license: text(&"x".repeat(300)), ..none() }, "--license"),
            (About { languages: vec!["English".into()], ..none() }, "--language"),
            (About { languages: vec!["en-".into()], ..none() }, "--language"),
            (About { datasets: vec!["a/b/c".into()], ..none() }, "--dataset"),
            (About { base_model: text("../base"), ..none() }, "--base-model"),
            (About { system: text("a\0b"), ..none() }, "--system"),
            (About { description: Some("x".repeat(TEXT_BYTES + 1)), ..none() }, "--description"),
            (About { sampling: Sampling { temp: Some(f32::NAN), ..Sampling::default() }, ..none() }, "--temp"),
            (About { sampling: Sampling { min_p: Some(-1.0), ..Sampling::default() }, ..none() }, "--min-p"),
        ] {
            let e = about.check().unwrap_err();
            assert_eq!((e.code(), e.field_name()), (Code::Usage, Some(flag)), "{e}");
        }
        for code in ["en", "deu", "zh-Hant", "code", "multilingual"] {
            About { languages: vec![code.into()], ..none() }.check().unwrap();
        }
    }
}
