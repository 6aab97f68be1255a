//! What an adapter says beside its numbers: whose it is and under which licence, and what whoever runs it needs, its chat
//! template and how to sample. All of it is GGUF metadata under the keys of ggml and llama.cpp; an adapter in safetensors
//! carries the same in its configuration (`foreign.rs`).

mod licence;

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use crate::adapter::Adapter;
use crate::error::{Code, Error, Result, is_hidden};
use crate::format::gguf::{Array, Metadata, Value};
use crate::format::hub::is_hub_id;
use crate::format::names::shorten;
use crate::import::foreign;

pub use licence::is_of_hub;

/// Bytes of a name, a link, a tag.
const LINE_BYTES: usize = 256;
/// Bytes of a description or a system message.
pub const TEXT_BYTES: usize = 64 << 10;
/// Languages, tags, data sets.
const LIST: usize = 64;

const NAME: &str = foreign::NAME;
const VERSION: &str = "general.version";
const AUTHOR: &str = "general.author";
const ORGANIZATION: &str = "general.organization";
const DESCRIPTION: &str = "general.description";
const LICENSE: &str = "general.license";
const LICENSE_NAME: &str = "general.license.name";
const LICENSE_LINK: &str = "general.license.link";
const LANGUAGES: &str = "general.languages";
const TAGS: &str = "general.tags";
const DATASET: &str = "general.dataset.";
const DATASET_COUNT: &str = "general.dataset.count";
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// llama.cpp has no key for it.
const SYSTEM: &str = "ptplus.system_prompt";
const SAMPLING: &str = "general.sampling.";
const BASE: &str = "base_model_name_or_path";

/// What addresses of the hub's models begin with.
const HUB: &str = "https://huggingface.co/";

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

/// How tokens are to be chosen, where the adapter says: llama.cpp's words and meanings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)] // the flags of llama.cpp
pub struct Sampling {
    pub temp: Option<f32>,
    pub top_k: Option<i32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last_n: Option<i32>,
}

impl Sampling {
    /// What is stated here, and else there.
    pub fn or(&self, other: &Sampling) -> Sampling {
        Sampling {
            temp: self.temp.or(other.temp),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repeat_penalty: self.repeat_penalty.or(other.repeat_penalty),
            repeat_last_n: self.repeat_last_n.or(other.repeat_last_n),
        }
    }

    /// What is stated here and not there.
    pub fn without(&self, other: &Sampling) -> Sampling {
        Sampling {
            temp: self.temp.filter(|_| other.temp.is_none()),
            top_k: self.top_k.filter(|_| other.top_k.is_none()),
            top_p: self.top_p.filter(|_| other.top_p.is_none()),
            min_p: self.min_p.filter(|_| other.min_p.is_none()),
            repeat_penalty: self.repeat_penalty.filter(|_| other.repeat_penalty.is_none()),
            repeat_last_n: self.repeat_last_n.filter(|_| other.repeat_last_n.is_none()),
        }
    }

    /// Flag, llama.cpp's key and value of each that is stated.
    pub fn stated(&self) -> impl Iterator<Item = (&'static str, &'static str, Value)> {
        let Sampling { temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n } = *self;
        let f = |x: Option<f32>| x.map(Value::F32);
        let i = |x: Option<i32>| x.map(Value::I32);
        [
            ("--temp", "temp", f(temp)),
            ("--top-k", "top_k", i(top_k)),
            ("--top-p", "top_p", f(top_p)),
            ("--min-p", "min_p", f(min_p)),
            ("--repeat-penalty", "penalty_repeat", f(repeat_penalty)),
            ("--repeat-last-n", "penalty_last_n", i(repeat_last_n)),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| Some((flag, key, value?)))
    }

    fn of(meta: &Metadata) -> Result<Sampling> {
        let float = |key: &str| match meta.get(&format!("{SAMPLING}{key}")) {
            None => Ok(None),
            Some(Value::F32(x)) if x.is_finite() => Ok(Some(*x)),
            Some(_) => Err(of_file(&format!("{SAMPLING}{key}"), "a finite F32")),
        };
        let int = |key: &str| match meta.get(&format!("{SAMPLING}{key}")) {
            None => Ok(None),
            Some(Value::I32(n)) => Ok(Some(*n)),
            Some(_) => Err(of_file(&format!("{SAMPLING}{key}"), "an I32")),
        };
        let sampling = Sampling {
            temp: float("temp")?,
            top_k: int("top_k")?,
            top_p: float("top_p")?,
            min_p: float("min_p")?,
            repeat_penalty: float("penalty_repeat")?,
            repeat_last_n: int("penalty_last_n")?,
        };
        sampling.check().map_err(|e| of_file(SAMPLING, e.message()))?;
        Ok(sampling)
    }

    /// Refuses what no sampler takes.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`], with the flag.
    pub fn check(&self) -> Result<()> {
        for (flag, x, least) in [
            ("--temp", self.temp, f32::MIN),
            ("--top-p", self.top_p, 0.0),
            ("--min-p", self.min_p, 0.0),
            ("--repeat-penalty", self.repeat_penalty, f32::MIN_POSITIVE),
        ] {
            if x.is_some_and(|x| !x.is_finite() || x < least) {
                return Err(wrong(flag, &format!("a finite number of at least {least}")));
            }
        }
        Ok(())
    }

    /// `generation_config.json`, as transformers reads it; `None` where nothing is stated that it has a word for.
    pub fn generation_config(&self) -> Option<Json> {
        // The shortest decimal of the F32.
        let float = |x: f32| Json::from(x.to_string().parse::<f64>().unwrap_or(f64::from(x)));
        let mut out = Map::new();
        if let Some(temp) = self.temp {
            out.insert("do_sample".into(), (temp > 0.0).into());
            if temp > 0.0 {
                out.insert("temperature".into(), float(temp));
            }
        }
        // 0 is all tokens, in both.
        out.extend(self.top_k.map(|k| ("top_k".into(), k.max(0).into())));
        out.extend(self.top_p.map(|p| ("top_p".into(), float(p))));
        out.extend(self.min_p.map(|p| ("min_p".into(), float(p))));
        out.extend(self.repeat_penalty.map(|p| ("repetition_penalty".into(), float(p))));
        (!out.is_empty()).then(|| Json::Object(out))
    }
}

impl About {
    /// What an adapter says.
    ///
    /// # Errors
    ///
    /// [`Code::GgufKey`], [`Code::ConfigField`] where the template, the system message or how to sample has another type than
    /// llama.cpp gives it. Words for people of another type say nothing.
    pub fn of(adapter: &Adapter) -> Result<About> {
        let base = adapter.extra().get(BASE).and_then(Json::as_str).filter(|id| is_hub_id(id));
        let said = Self::of_metadata(&foreign::of_config(adapter.extra())?)?;
        Ok(About { base_model: base.map(str::to_owned), ..said })
    }

    /// [`of`](Self::of), of a GGUF file's metadata; without the base.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn of_metadata(meta: &Metadata) -> Result<About> {
        let needed = |key: &str| meta.str(key).map(|v| v.map(str::to_owned));
        let text = |key: &str| needed(key).ok().flatten();
        let list = |key: &str| -> Vec<String> {
            let items = meta.str_array(key).ok().flatten();
            items.map(|items| items.take(LIST).map(str::to_owned).collect()).unwrap_or_default()
        };
        let license = match text(LICENSE) {
            Some(id) if id == OTHER => text(LICENSE_NAME).or(Some(id)),
            license => license,
        };
        let dataset = |i: u32| {
            let part = |what: &str| text(&format!("{DATASET}{i}.{what}"));
            let name = part("name")?;
            Some(part("organization").map_or(name.clone(), |organization| format!("{organization}/{name}")))
        };
        let n_datasets = meta.u32(DATASET_COUNT).ok().flatten().unwrap_or_default().min(LIST as u32);
        Ok(About {
            name: text(NAME),
            version: text(VERSION),
            author: text(AUTHOR),
            organization: text(ORGANIZATION),
            license,
            license_link: text(LICENSE_LINK),
            languages: list(LANGUAGES),
            tags: list(TAGS),
            datasets: (0..n_datasets).filter_map(dataset).collect(),
            base_model: None,
            description: text(DESCRIPTION),
            chat_template: needed(CHAT_TEMPLATE)?,
            system: needed(SYSTEM)?,
            sampling: Sampling::of(meta)?,
        })
    }

    /// Has the adapter say this, instead of what it says of the same matters.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check); [`Code::ConfigField`] where the configuration carries what is no metadata.
    pub fn write_into(&self, adapter: &mut Adapter) -> Result<()> {
        self.check()?;
        let mut meta = foreign::of_config(adapter.extra())?;
        self.put(&mut meta);
        if let Some(id) = &self.base_model {
            // Made from the name, like all that follows from it.
            remove_below(&mut meta, foreign::BASE_MODEL);
            adapter.extra_mut().insert(BASE.into(), id.as_str().into());
        }
        if meta.is_empty() {
            return Ok(());
        }
        let carried: Map<String, Json> =
            meta.iter().map(|(key, value)| (key.to_owned(), value.to_typed_json())).collect();
        adapter.extra_mut().insert(foreign::KEY.into(), carried.into());
        Ok(())
    }

    /// [`of_metadata`](Self::of_metadata), of a model that was made from another, which its metadata name.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn of_model(meta: &Metadata) -> Result<About> {
        let url = meta.str(&format!("{}0.repo_url", foreign::BASE_MODEL)).ok().flatten();
        let id = url.and_then(|url| url.strip_prefix(HUB)).filter(|id| is_hub_id(id));
        Ok(About { base_model: id.map(str::to_owned), ..Self::of_metadata(meta)? })
    }

    /// Has a model say this, instead of what its metadata say of the same matters.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check).
    pub fn put_into_model(&self, meta: &mut Metadata) -> Result<()> {
        self.check()?;
        self.put(meta);
        // Those of what it was made from name that one's own base.
        remove_below(meta, foreign::BASE_MODEL);
        if let Some(id) = &self.base_model {
            let (organization, name) = id.split_once('/').unwrap_or(("", id));
            meta.insert(foreign::BASE_MODEL_COUNT, Value::U32(1));
            let key = |field: &str| format!("{}0.{field}", foreign::BASE_MODEL);
            meta.insert(key("name"), name);
            meta.insert(key("organization"), organization);
            meta.insert(key("repo_url"), format!("{HUB}{id}"));
        }
        Ok(())
    }

    fn put(&self, meta: &mut Metadata) {
        for (key, value) in [
            (NAME, &self.name),
            (VERSION, &self.version),
            (AUTHOR, &self.author),
            (ORGANIZATION, &self.organization),
            (DESCRIPTION, &self.description),
            (CHAT_TEMPLATE, &self.chat_template),
            (SYSTEM, &self.system),
            (LICENSE_LINK, &self.license_link),
        ] {
            if let Some(text) = value {
                meta.insert(key, text.as_str());
            }
        }
        if let Some(license) = &self.license {
            let id = license.to_lowercase();
            let is_listed = is_of_hub(&id);
            meta.insert(LICENSE, if is_listed { id.as_str() } else { OTHER });
            meta.remove(LICENSE_NAME);
            if !is_listed {
                meta.insert(LICENSE_NAME, license.as_str());
            }
        }
        for (key, list) in [(LANGUAGES, &self.languages), (TAGS, &self.tags)] {
            if !list.is_empty() {
                meta.insert(key, Value::Array(Array::from_strs(list)));
            }
        }
        if !self.datasets.is_empty() {
            remove_below(meta, DATASET);
            meta.insert(DATASET_COUNT, Value::U32(self.datasets.len() as u32));
            for (i, id) in self.datasets.iter().enumerate() {
                let (organization, name) = id.split_once('/').map_or((None, id.as_str()), |(o, n)| (Some(o), n));
                meta.insert(format!("{DATASET}{i}.name"), name);
                if let Some(organization) = organization {
                    meta.insert(format!("{DATASET}{i}.organization"), organization);
                }
                meta.insert(format!("{DATASET}{i}.repo_url"), format!("{HUB}datasets/{id}"));
            }
        }
        for (_, key, value) in self.sampling.stated() {
            meta.insert(format!("{SAMPLING}{key}"), value);
        }
    }

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

impl Sampling {
    /// What several adapters say; see [`agreed`].
    ///
    /// # Errors
    ///
    /// As there, for what `flags` leave open.
    pub fn agreed(flags: Sampling, said: &[Sampling]) -> Result<Sampling> {
        fn one<T: PartialEq>(
            flag: &str,
            of: fn(&Sampling) -> Option<T>,
            flags: &Sampling,
            said: &[Sampling],
        ) -> Result<Option<T>> {
            match of(flags) {
                None => agreed(flag, said.iter().map(of)),
                given => Ok(given),
            }
        }
        Ok(Sampling {
            temp: one("--temp", |s| s.temp, &flags, said)?,
            top_k: one("--top-k", |s| s.top_k, &flags, said)?,
            top_p: one("--top-p", |s| s.top_p, &flags, said)?,
            min_p: one("--min-p", |s| s.min_p, &flags, said)?,
            repeat_penalty: one("--repeat-penalty", |s| s.repeat_penalty, &flags, said)?,
            repeat_last_n: one("--repeat-last-n", |s| s.repeat_last_n, &flags, said)?,
        })
    }
}

fn remove_below(meta: &mut Metadata, start: &str) {
    let keys: Vec<String> = meta.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with(start)).collect();
    for key in keys {
        meta.remove(&key);
    }
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

fn of_file(key: &str, expected: &str) -> Error {
    Error::new(Code::ConfigField, format!("expected {expected}, found another value")).field(key)
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

    #[test]
    fn flags_come_first_and_adapters_must_agree() {
        let said = |temp, top_k| Sampling { temp, top_k, ..Sampling::default() };
        let found = Sampling::agreed(
            said(None, Some(1)),
            &[said(Some(0.5), None), said(None, Some(9)), said(Some(0.5), Some(8))],
        )
        .unwrap();
        assert_eq!(found, said(Some(0.5), Some(1)));
        let e = Sampling::agreed(said(None, None), &[said(Some(0.5), None), said(Some(0.6), None)]).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (Code::Usage, Some("--temp")));
    }

    #[test]
    fn transformers_gets_its_own_words() {
        let sampling = |temp, top_k| Sampling {
            temp: Some(temp),
            top_k: Some(top_k),
            repeat_penalty: Some(1.1),
            ..Sampling::default()
        };
        assert_eq!(
            sampling(0.0, 40).generation_config().unwrap(),
            json!({ "do_sample": false, "top_k": 40, "repetition_penalty": 1.1 })
        );
        assert_eq!(
            sampling(0.7, -1).generation_config().unwrap(),
            json!({ "do_sample": true, "temperature": 0.7, "top_k": 0, "repetition_penalty": 1.1 })
        );
        assert_eq!(Sampling { repeat_last_n: Some(3), ..Sampling::default() }.generation_config(), None);
    }
}
