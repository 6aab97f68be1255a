//! What the files beside the tokenizer say: added and special tokens, what is put at the ends, the chat template.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value;

use super::fields::Fields;
use super::{Draft, MAX_SETTINGS_BYTES, invalid, steps, unsupported};
use crate::error::{Error, Result};
use crate::format::limits::CONFIG_BYTES;
use crate::format::links::is_present;
use crate::format::names::shorten;
use crate::format::{json, recognize};
use crate::vocab::{AddedFlags, Algorithm, Spaces, SpecialTokens, ends, with_plain_newlines};

/// A token that is found in text before anything else.
pub(super) struct AddedToken {
    pub content: String,
    pub is_special: bool,
    flags: AddedFlags,
    /// Looked for behind the normalizer.
    is_normalized: bool,
}

/// Everything but the tokenizer's own model.
pub(super) struct Settings {
    tokenizer_config: Document,
    /// Where older versions of transformers wrote the special tokens.
    special_tokens_map: Document,
    config: Document,
    generation_config: Document,
    tokenizer_json: PathBuf,
    /// `post_processor` of tokenizer.json.
    post_processor: Option<Value>,
    /// By number.
    pub added_tokens: IndexMap<usize, AddedToken>,
    pub add_prefix_space: Option<bool>,
    /// Whether a SentencePiece model is read as transformers read it before 4.31.
    pub legacy: Option<bool>,
    /// Whether the token that fills rows of a batch is beyond the embedding.
    lacks_padding: bool,
    pub chat_template: Option<String>,
    pub files: Vec<PathBuf>,
    pub notes: Vec<String>,
}

/// A file that need not be there.
struct Document {
    file: PathBuf,
    value: Option<Value>,
}

impl Document {
    fn read(folder: &Path, name: &str, max_bytes: u64) -> Result<Document> {
        let file = folder.join(name);
        let value = is_present(&file).then(|| json::read_file(&file, max_bytes)).transpose()?;
        Ok(Document { file, value })
    }

    fn fields(&self) -> Result<Fields<'_>> {
        Fields::of(&self.file, self.value.as_ref())
    }
}

impl Settings {
    pub fn read(folder: &Path, model_folder: &Path) -> Result<Settings> {
        let tokenizer_config = Document::read(folder, "tokenizer_config.json", MAX_SETTINGS_BYTES)?;
        let special_tokens_map = Document::read(folder, "special_tokens_map.json", MAX_SETTINGS_BYTES)?;
        let config = Document::read(model_folder, "config.json", CONFIG_BYTES)?;
        let generation_config = Document::read(model_folder, "generation_config.json", CONFIG_BYTES)?;
        let added = Document::read(folder, "added_tokens.json", MAX_SETTINGS_BYTES)?;
        let template = Document::read(folder, "chat_template.json", MAX_SETTINGS_BYTES)?;
        let read = [&tokenizer_config, &special_tokens_map, &config, &generation_config, &added, &template];
        let files = read.into_iter().filter(|d| d.value.is_some()).map(|d| d.file.clone()).collect();
        let mut settings = Settings {
            post_processor: None,
            added_tokens: IndexMap::new(),
            add_prefix_space: tokenizer_config.fields()?.bool("add_prefix_space")?,
            legacy: tokenizer_config.fields()?.bool("legacy")?,
            lacks_padding: false,
            chat_template: None,
            files,
            notes: Vec::new(),
            tokenizer_json: folder.join("tokenizer.json"),
            tokenizer_config,
            special_tokens_map,
            config,
            generation_config,
        };
        settings.add_plain_tokens(&added)?;
        settings.add_decoder()?;
        settings.chat_template = settings.read_chat_template(folder, &template)?;
        Ok(settings)
    }

    /// added_tokens.json: text to number.
    fn add_plain_tokens(&mut self, added: &Document) -> Result<()> {
        let fields = added.fields()?;
        for (content, id) in added.value.as_ref().and_then(Value::as_object).into_iter().flatten() {
            let flags = AddedFlags::default();
            let token = AddedToken { content: content.clone(), is_special: false, flags, is_normalized: false };
            number(id).and_then(|id| self.add(id, token)).map_err(|e| fields.at(content, e))?;
        }
        Ok(())
    }

    /// `added_tokens_decoder` of tokenizer_config.json: number, as text, to token.
    fn add_decoder(&mut self) -> Result<()> {
        const FIELD: &str = "added_tokens_decoder";
        let fields = self.tokenizer_config.fields()?;
        let mut tokens = Vec::new();
        for (key, token) in fields.object(FIELD)?.into_iter().flatten() {
            let field = format!("{FIELD}.{key}");
            // `01` and `1` would be one number.
            let id = key.parse::<usize>().ok().filter(|id| id.to_string() == *key);
            let id = id.ok_or_else(|| fields.at(&field, invalid("expected a number as the key")))?;
            tokens.push((id, added_token(&fields.below(&field, token)?)?, field));
        }
        for (id, token, field) in tokens {
            self.add(id, token).map_err(|e| e.file(&self.tokenizer_config.file).field(field))?;
        }
        Ok(())
    }

    /// The tokens and the post-processor that tokenizer.json states.
    pub fn add_tokenizer_json(&mut self, file: &Path, json: &Value) -> Result<()> {
        let fields = Fields::of(file, Some(json))?;
        for (i, token) in fields.list("added_tokens")?.into_iter().flatten().enumerate() {
            let field = format!("added_tokens[{i}]");
            let entry = fields.below(&field, token)?;
            let token = added_token(&entry)?;
            let id = entry.value("id").ok_or_else(|| invalid("expected a token's number")).and_then(number);
            id.and_then(|id| self.add(id, token)).map_err(|e| fields.at(&field, e))?;
        }
        self.post_processor = fields.value("post_processor").cloned();
        Ok(())
    }

    /// The last one to speak about a number says whether it is special; they have to agree on the text.
    fn add(&mut self, id: usize, token: AddedToken) -> Result<()> {
        check_nul(&token.content)?;
        match self.added_tokens.insert(id, token) {
            Some(other) if other.content != self.added_tokens[&id].content => Err(invalid(format!(
                "expected one token of number {id}, found {:?} and {:?}",
                shorten(&other.content),
                shorten(&self.added_tokens[&id].content)
            ))),
            _ => Ok(()),
        }
    }

    /// Leaves out added tokens beyond the embedding that no text has: those that only fill rows of a batch, which training code
    /// adds and does not always give a row, and those that stand for images or sound, which a model of text alone has no
    /// rows for (Gemma 3).
    pub fn leave_out_what_is_no_text(&mut self, n_tokens: usize) -> Result<()> {
        const MEDIA: [&str; 3] = ["image_token", "audio_token", "video_token"];
        let stated = self.tokenizer_config.fields()?.token("pad_token")?;
        let stated = stated.or(self.special_tokens_map.fields()?.token("pad_token")?).map(str::to_owned);
        let ids = self.config.fields()?.token_ids("pad_token_id")?.to_vec();
        let own = self.tokenizer_config.fields()?;
        let mut media: Vec<String> = Vec::new();
        for name in MEDIA {
            media.extend(own.token(name)?.map(str::to_owned));
            // transformers 5 has them in an object of their own.
            let more = own.value("extra_special_tokens").and_then(|extra| extra[name].as_str());
            media.extend(more.map(str::to_owned));
        }
        let is_padding = |id: usize, token: &AddedToken| {
            stated.as_ref() == Some(&token.content)
                || ids.iter().any(|stated| stated.as_u64() == Some(id as u64))
                || token.content.to_ascii_lowercase().contains("pad")
        };
        let (mut left_out, mut lacks_padding) = (Vec::new(), false);
        self.added_tokens.retain(|&id, token| {
            let is_padding = is_padding(id, token);
            let stays = id < n_tokens || !(is_padding || media.contains(&token.content));
            if !stays {
                lacks_padding |= is_padding;
                let text = shorten(&token.content);
                left_out
                    .push(format!("{text:?} is left out: it is number {id}, and the embedding has {n_tokens} rows"));
            }
            stays
        });
        self.lacks_padding = lacks_padding;
        self.notes.append(&mut left_out);
        Ok(())
    }

    /// `bos_token` and the like in tokenizer_config.json, or in special_tokens_map.json where they are not there, then
    /// `bos_token_id` in config.json, then the tokenizer itself.
    /// What a model does without, for padding and for unknown text, may be missing.
    pub fn special_tokens(&mut self, draft: &Draft) -> Result<SpecialTokens> {
        let mut notes = Vec::new();
        let (own, map, config) =
            (self.tokenizer_config.fields()?, self.special_tokens_map.fields()?, self.config.fields()?);
        let mut find = |name: &str, default: Option<u32>| -> Result<Option<u32>> {
            let field = format!("{name}_token");
            let id_field = format!("{name}_token_id");
            let is_needed = matches!(name, "bos" | "eos");
            let ids = config.token_ids(&id_field)?;
            let stated = if own.token(&field)?.is_some() { &own } else { &map };
            if let Some(text) = stated.token(&field)? {
                let id = self.id_of(text, draft);
                let missing = || invalid(format!("expected a token of the vocabulary, found {:?}", shorten(text)));
                match id {
                    None if is_needed => return Err(stated.at(&field, missing())),
                    None if name == "pad" && self.lacks_padding => {}
                    None => notes.push(left_out(&field, text)),
                    Some(_) => return Ok(id),
                }
                return Ok(default);
            }
            let n = draft.tokens.len();
            let in_range = |id: &Value| id.as_u64().filter(|id| *id < n as u64).map(|id| id as u32);
            let is_absent = |id: &Value| !is_needed || id.as_i64().is_some_and(|id| id < 0);
            let mut found = Vec::new();
            for id in ids {
                match in_range(id) {
                    Some(id) => found.push(id),
                    None if name == "pad" && self.lacks_padding => {}
                    None if is_absent(id) => {
                        notes.push(format!("{id_field} is left out: {id} is none of the {n} tokens"));
                    }
                    None => {
                        let message = format!("expected a number below {n}, found {id}");
                        return Err(config.at(&id_field, invalid(message)));
                    }
                }
            }
            match (&found[..], config.value(&id_field)) {
                (&[id], Some(Value::Number(_))) => Ok(Some(id)),
                _ => Ok(default),
            }
        };
        let special = SpecialTokens {
            bos: find("bos", draft.special.bos)?,
            // Of several the first, unless a text says which: see `ends`.
            eos: find("eos", None)?,
            unknown: find("unk", draft.special.unknown)?,
            padding: find("pad", draft.special.padding)?,
            ..SpecialTokens::default()
        };
        self.notes.append(&mut notes);
        Ok(special)
    }

    /// The ends of an answer: besides `eos_token` the `eos_token_id` of config.json and of generation_config.json, one or
    /// several, each as transformers has it. The others that GGUF has no place for come second.
    pub fn ends(&mut self, draft: &Draft, mut special: SpecialTokens) -> Result<(SpecialTokens, Vec<u32>)> {
        const FIELD: &str = "eos_token_id";
        let n = draft.tokens.len();
        let (config, generation) = (self.config.fields()?, self.generation_config.fields()?);
        let mut stated = Vec::new();
        let mut notes = Vec::new();
        for id in config.token_ids(FIELD)?.iter().chain(generation.token_ids(FIELD)?) {
            match id.as_u64().filter(|id| *id < n as u64) {
                Some(id) => stated.push(id as u32),
                None => notes.push(format!("no answer ends at {FIELD} {id}: it is none of the {n} tokens")),
            }
        }
        if special.eos.is_none() {
            // Of several the tokenizer's own, if it has one.
            special.eos = draft.special.eos.filter(|eos| stated.is_empty() || stated.contains(eos));
        }
        let more = ends::placed(&draft.tokens, &stated, &mut special);
        self.notes.append(&mut notes);
        Ok((special, more))
    }

    /// Which added tokens want something of the text around them.
    pub fn flags(&self) -> BTreeMap<u32, AddedFlags> {
        let flagged = self.added_tokens.iter().filter(|(_, t)| t.flags != AddedFlags::default());
        flagged.map(|(id, t)| (*id as u32, t.flags)).collect()
    }

    /// Behind a normalizer that puts `▁` before all text, such tokens have it too, and are not found inside of words.
    pub fn note_normalized_tokens(&mut self, draft: &Draft) {
        const SHOWN: usize = 3;
        let is_prefixed = matches!(draft.algorithm, Algorithm::SentencePiece { add_space_prefix: true, .. })
            && draft.rules.spaces == Spaces::EachText;
        let mut tokens = self.added_tokens.values().filter(|t| is_prefixed && t.is_normalized);
        let shown: Vec<String> = tokens.by_ref().take(SHOWN).map(|t| shorten(&t.content)).collect();
        if !shown.is_empty() {
            let more = match tokens.count() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            self.notes.push(format!(
                "the folder's tokenizer looks for {}{more} in text with spaces put in (normalized); here and in llama.cpp these tokens are found wherever they are written",
                shown.join(", ")
            ));
        }
    }

    fn id_of(&self, text: &str, draft: &Draft) -> Option<u32> {
        let added = self.added_tokens.iter().find(|(_, t)| t.content == text).map(|(id, _)| *id);
        added.or_else(|| draft.tokens.iter().position(|t| t == text)).map(|id| id as u32)
    }

    /// Whether `bos` and `eos` are put at the ends: tokenizer_config.json counts, then the template of tokenizer.json;
    /// where neither speaks, byte-level encoding adds nothing, and SentencePiece does as llama.cpp has it by default.
    pub fn added_at_the_ends(&self, draft: &Draft, special: &SpecialTokens) -> Result<(Option<bool>, Option<bool>)> {
        let by_template = self.template_ends(draft, special)?;
        let is_bpe = matches!(draft.algorithm, Algorithm::Bpe { .. });
        let fields = self.tokenizer_config.fields()?;
        let decide = |field: &str, by_template: Option<bool>| -> Result<Option<bool>> {
            Ok(fields.bool(field)?.or(by_template).or(is_bpe.then_some(false)))
        };
        Ok((decide("add_bos_token", by_template.map(|t| t.0))?, decide("add_eos_token", by_template.map(|t| t.1))?))
    }

    /// What the post-processor puts first and last; `None` without a template.
    fn template_ends(&self, draft: &Draft, special: &SpecialTokens) -> Result<Option<(bool, bool)>> {
        let Some(processor) = &self.post_processor else { return Ok(None) };
        let at = |e: Error| e.file(&self.tokenizer_json).field("post_processor");
        let mut ends = None;
        for step in steps(processor, "processors").map_err(at)? {
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
    fn read_chat_template(&mut self, folder: &Path, template_json: &Document) -> Result<Option<String>> {
        let (text, n_others) = self.stated_template(template_json)?;
        let file = folder.join("chat_template.jinja");
        if !is_present(&file) {
            if n_others > 0 {
                self.notes.push("of several chat templates only the one named default is used".into());
            }
            return Ok(text.as_deref().map(with_plain_newlines));
        }
        let bytes = crate::format::mmap::map_file(&file)?;
        recognize::refuse_stand_in(&bytes).map_err(|e| e.file(&file))?;
        let text = std::str::from_utf8(&bytes).ok().filter(|t| t.len() as u64 <= MAX_SETTINGS_BYTES);
        let text = text.ok_or_else(|| invalid("expected UTF-8 of at most 8 MiB").file(&file))?.to_owned();
        check_nul(&text).map_err(|e| e.file(&file))?;
        self.files.push(file);
        Ok(Some(with_plain_newlines(&text)))
    }

    /// The template that a JSON file states, and how many others beside it.
    fn stated_template(&self, template_json: &Document) -> Result<(Option<String>, usize)> {
        const FIELD: &str = "chat_template";
        let files = [self.tokenizer_config.fields()?, template_json.fields()?];
        let Some(fields) = files.into_iter().find(|f| f.value(FIELD).is_some()) else { return Ok((None, 0)) };
        let (text, n_others) = match fields.value(FIELD) {
            Some(Value::Array(named)) => default_template(&fields, FIELD, named)?,
            _ => (fields.str(FIELD)?, 0),
        };
        text.map_or(Ok(()), check_nul).map_err(|e| fields.at(FIELD, e))?;
        Ok((text.map(str::to_owned), n_others))
    }
}

/// The template named `default` in a list of them, and how many have other names.
fn default_template<'a>(fields: &Fields<'a>, field: &str, named: &'a [Value]) -> Result<(Option<&'a str>, usize)> {
    let mut default = None;
    for (i, entry) in named.iter().enumerate() {
        let at = format!("{field}[{i}]");
        let entry = fields.below(&at, entry)?;
        let missing = |key: &str| entry.at(key, invalid("expected text, found none"));
        let name = entry.str("name")?.ok_or_else(|| missing("name"))?;
        let template = entry.str("template")?.ok_or_else(|| missing("template"))?;
        if name == "default" && default.replace(template).is_some() {
            return Err(fields.at(&at, invalid("expected one template named default, found another")));
        }
    }
    Ok((default, named.len() - usize::from(default.is_some())))
}

/// GGUF files are read by programs in C.
pub(super) fn check_nul(text: &str) -> Result<()> {
    match text.find('\0') {
        Some(at) => Err(invalid(format!("expected text without NUL, found one at byte {at}"))),
        None => Ok(()),
    }
}

fn number(id: &Value) -> Result<usize> {
    let id = id.as_u64().and_then(|n| usize::try_from(n).ok());
    id.ok_or_else(|| invalid("expected a token's number"))
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

fn added_token(token: &Fields<'_>) -> Result<AddedToken> {
    let content = token.str("content")?;
    let content = content.ok_or_else(|| token.at("content", invalid("expected the token's text, found none")))?;
    let flag = |name: &str| Ok(token.bool(name)?.unwrap_or(false));
    Ok(AddedToken {
        content: content.to_owned(),
        is_special: flag("special")?,
        flags: AddedFlags { lstrip: flag("lstrip")?, rstrip: flag("rstrip")?, single_word: flag("single_word")? },
        is_normalized: flag("normalized")?,
    })
}

/// A note about a token of that text, which is in no vocabulary.
pub(super) fn left_out(field: &str, text: &str) -> String {
    format!("{field} is left out: no token is {:?}", shorten(text))
}
