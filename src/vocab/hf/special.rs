//! What the files beside the tokenizer say: added and special tokens, what is put at the ends, the chat template.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value;

use super::{Draft, MAX_SETTINGS_BYTES, invalid, unsupported};
use crate::error::{Error, Result};
use crate::format::json;
use crate::vocab::{Algorithm, SpecialTokens};

/// A token that is found in text before anything else.
pub(super) struct AddedToken {
    pub content: String,
    pub is_special: bool,
}

/// Everything but the tokenizer's own model.
pub(super) struct Settings {
    folder: PathBuf,
    tokenizer_config: Value,
    config: Value,
    /// `post_processor` of tokenizer.json.
    post_processor: Option<Value>,
    /// By number.
    pub added_tokens: IndexMap<usize, AddedToken>,
    pub add_prefix_space: Option<bool>,
    pub chat_template: Option<String>,
    pub files: Vec<PathBuf>,
    pub notes: Vec<String>,
}

impl Settings {
    pub fn read(folder: &Path) -> Result<Settings> {
        let mut files = Vec::new();
        let mut optional = |name: &str| -> Result<Value> {
            let file = folder.join(name);
            if !file.is_file() {
                return Ok(Value::Null);
            }
            let value = json::read_file(&file, MAX_SETTINGS_BYTES)?;
            files.push(file);
            Ok(value)
        };
        let tokenizer_config = optional("tokenizer_config.json")?;
        let config = optional("config.json")?;
        let added_tokens_json = optional("added_tokens.json")?;
        let template_json = optional("chat_template.json")?;
        let mut settings = Settings {
            folder: folder.to_owned(),
            post_processor: None,
            added_tokens: IndexMap::new(),
            add_prefix_space: tokenizer_config["add_prefix_space"].as_bool(),
            chat_template: None,
            files,
            notes: Vec::new(),
            tokenizer_config,
            config,
        };
        for (content, id) in added_tokens_json.as_object().into_iter().flatten() {
            let id = settings.number(id).map_err(|e| e.file(&folder.join("added_tokens.json")).field(content))?;
            settings.added_tokens.insert(id, AddedToken { content: content.clone(), is_special: false });
        }
        let decoder = settings.tokenizer_config["added_tokens_decoder"].clone();
        for (id, token) in decoder.as_object().into_iter().flatten() {
            let at =
                |e: Error| e.file(&folder.join("tokenizer_config.json")).field(format!("added_tokens_decoder.{id}"));
            let number = id.parse().map_err(|_| at(invalid("expected a number as the key")))?;
            settings.added_tokens.insert(number, added_token(token).map_err(at)?);
        }
        settings.chat_template = settings.read_chat_template(&template_json)?;
        Ok(settings)
    }

    /// The tokens and the post-processor that tokenizer.json states.
    pub fn add_tokenizer_json(&mut self, file: &Path, json: &Value) -> Result<()> {
        for (i, token) in json["added_tokens"].as_array().into_iter().flatten().enumerate() {
            let at = |e: Error| e.file(file).field(format!("added_tokens[{i}]"));
            let id = self.number(&token["id"]).map_err(at)?;
            // The last one to speak about a number counts.
            self.added_tokens.insert(id, added_token(token).map_err(at)?);
        }
        self.post_processor = Some(json["post_processor"].clone()).filter(|p| !p.is_null());
        Ok(())
    }

    fn number(&self, id: &Value) -> Result<usize> {
        let id = id.as_u64().and_then(|n| usize::try_from(n).ok());
        id.ok_or_else(|| invalid("expected a token's number"))
    }

    /// `bos_token` and the like in tokenizer_config.json, then `bos_token_id` in config.json, then the tokenizer itself.
    pub fn special_tokens(&self, draft: &Draft) -> Result<SpecialTokens> {
        let find = |name: &str, default: Option<u32>| -> Result<Option<u32>> {
            if let Some(text) = self.token_text(name) {
                let added = self.added_tokens.iter().find(|(_, t)| t.content == text).map(|(id, _)| *id);
                let id = added.or_else(|| draft.tokens.iter().position(|t| t == text));
                let file = self.folder.join("tokenizer_config.json");
                let missing = || invalid(format!("expected a token of the vocabulary, found {text:?}"));
                return id
                    .map(|id| Some(id as u32))
                    .ok_or_else(|| missing().file(&file).field(format!("{name}_token")));
            }
            let field = format!("{name}_token_id");
            match &self.config[field.as_str()] {
                Value::Number(n) => {
                    let id = n.as_u64().filter(|id| *id < draft.tokens.len() as u64).map(|id| id as u32);
                    let wrong = || invalid(format!("expected a number below {}, found {n}", draft.tokens.len()));
                    id.map(Some).ok_or_else(|| wrong().file(&self.folder.join("config.json")).field(field.clone()))
                }
                // Several ends: which of them is the end of a turn, only the first place can tell.
                _ => Ok(default),
            }
        };
        Ok(SpecialTokens {
            bos: find("bos", draft.special.bos)?,
            eos: find("eos", draft.special.eos)?,
            unknown: find("unk", draft.special.unknown)?,
            padding: find("pad", draft.special.padding)?,
            end_of_turn: None,
        })
    }

    fn token_text(&self, name: &str) -> Option<&str> {
        let entry = &self.tokenizer_config[format!("{name}_token").as_str()];
        entry.as_str().or_else(|| entry["content"].as_str())
    }

    /// Whether `bos` and `eos` are put at the ends: tokenizer_config.json counts, then the template of tokenizer.json;
    /// where neither speaks, byte-level encoding adds nothing, and SentencePiece does as llama.cpp has it by default.
    pub fn added_at_the_ends(&self, draft: &Draft, special: &SpecialTokens) -> Result<(Option<bool>, Option<bool>)> {
        let by_template = self.template_ends(draft, special)?;
        let is_bpe = matches!(draft.algorithm, Algorithm::Bpe { .. });
        let decide = |name: &str, by_template: Option<bool>| {
            let stated = self.tokenizer_config[format!("add_{name}_token").as_str()].as_bool();
            stated.or(by_template).or(is_bpe.then_some(false))
        };
        Ok((decide("bos", by_template.map(|t| t.0)), decide("eos", by_template.map(|t| t.1))))
    }

    /// What the post-processor puts first and last; `None` without a template.
    fn template_ends(&self, draft: &Draft, special: &SpecialTokens) -> Result<Option<(bool, bool)>> {
        let Some(processor) = &self.post_processor else { return Ok(None) };
        let file = self.folder.join("tokenizer.json");
        let at = |e: Error| e.file(&file).field("post_processor");
        let steps: Vec<&Value> = match processor["processors"].as_array() {
            Some(steps) => steps.iter().collect(),
            None => vec![processor],
        };
        let mut ends = None;
        for step in steps {
            match step["type"].as_str() {
                Some("ByteLevel") => {}
                Some("TemplateProcessing") if ends.is_none() => {
                    ends = Some(ends_of(&step["single"], draft, special).map_err(at)?)
                }
                found => {
                    let found = found.unwrap_or("no type");
                    return Err(at(unsupported(format!(
                        "expected one TemplateProcessing and ByteLevel, found {found}"
                    ))));
                }
            }
        }
        Ok(ends)
    }

    /// `chat_template.jinja` as transformers prefers it, then tokenizer_config.json, then chat_template.json.
    fn read_chat_template(&mut self, template_json: &Value) -> Result<Option<String>> {
        let file = self.folder.join("chat_template.jinja");
        if file.is_file() {
            let bytes = crate::format::mmap::map_file(&file)?;
            let text = std::str::from_utf8(&bytes).ok().filter(|t| t.len() as u64 <= MAX_SETTINGS_BYTES);
            let text = text.ok_or_else(|| invalid("expected UTF-8 of at most 8 MiB").file(&file))?.to_owned();
            self.files.push(file);
            return Ok(Some(text));
        }
        match [&self.tokenizer_config["chat_template"], &template_json["chat_template"]]
            .into_iter()
            .find(|t| !t.is_null())
        {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Array(named)) => {
                let default = named.iter().find(|t| t["name"] == "default");
                if named.len() > usize::from(default.is_some()) {
                    self.notes.push("of several chat templates only the one named default is written".into());
                }
                Ok(default.and_then(|t| t["template"].as_str()).map(str::to_owned))
            }
            Some(_) => {
                let file = self.folder.join("tokenizer_config.json");
                Err(invalid("expected a string or a list of named ones").file(&file).field("chat_template"))
            }
            None => Ok(None),
        }
    }
}

/// `[bos] A [eos]`, each end optional; anything else is no question of two switches.
fn ends_of(template: &Value, draft: &Draft, special: &SpecialTokens) -> Result<(bool, bool)> {
    let pieces: Vec<Option<&str>> =
        template.as_array().into_iter().flatten().map(|p| p["SpecialToken"]["id"].as_str()).collect();
    let is = |text: &str, id: Option<u32>| id.is_some_and(|id| draft.tokens[id as usize] == text);
    match pieces[..] {
        [None] => Ok((false, false)),
        [Some(first), None] if is(first, special.bos) => Ok((true, false)),
        [None, Some(last)] if is(last, special.eos) => Ok((false, true)),
        [Some(first), None, Some(last)] if is(first, special.bos) && is(last, special.eos) => Ok((true, true)),
        _ => Err(unsupported("expected the text with at most the begin token before it and the end token behind it")),
    }
}

fn added_token(token: &Value) -> Result<AddedToken> {
    let content = token["content"].as_str().ok_or_else(|| invalid("expected the token's text as content"))?;
    Ok(AddedToken { content: content.to_owned(), is_special: token["special"].as_bool().unwrap_or(false) })
}
