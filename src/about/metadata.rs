//! What an adapter says as metadata of GGUF: the keys, reading and writing.

use serde_json::{Map, Value as Json};

use super::{About, LIST, OTHER, Sampling, is_of_hub};
use crate::adapter::Adapter;
use crate::error::{Code, Error, Result};
use crate::format::gguf::{Array, Metadata, Value};
use crate::format::hub::is_hub_id;
use crate::import::foreign;

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
            sampling: sampling_of(meta)?,
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
}

fn sampling_of(meta: &Metadata) -> Result<Sampling> {
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

fn remove_below(meta: &mut Metadata, start: &str) {
    let keys: Vec<String> = meta.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with(start)).collect();
    for key in keys {
        meta.remove(&key);
    }
}

fn of_file(key: &str, expected: &str) -> Error {
    Error::new(Code::ConfigField, format!("expected {expected}, found another value")).field(key)
}
