//! `tokenizer.json` with byte pair encoding: over bytes (GPT-2, Llama 3, Qwen), or over characters as SentencePiece does
//! it (Llama 2, Mistral), then read as SentencePiece.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::special::{Settings, check_nul, left_out};
use super::{Draft, added, hole, invalid, merges, pre_tokenizer, steps, token_id, unsupported};
use crate::error::{Error, Result};
use crate::format::names::shorten;
use crate::vocab::{Algorithm, Normalizer, Spaces, SpecialTokens, TextRules, TokenKind};

pub(super) fn read(
    file: &Path,
    json: &mut Value,
    n_tokens: usize,
    settings: &mut Settings,
    pre: Option<&str>,
) -> Result<Draft> {
    let at = |field: &str, e: Error| e.file(file).field(field);
    let (vocab, merges) = take_lists(file, json)?;
    let merges = merges::read(merges).map_err(|e| at("model.merges", e))?;
    let json = &*json;
    let document = Fields::of(file, Some(json))?;
    let model = model_of(file, &document)?;
    let merges_hold = merges::check(&vocab, &merges).map_err(|e| at("model.merges", e));
    let (tokens, mut kinds) = tokens(vocab, n_tokens, settings).map_err(|e| at("model.vocab", e))?;
    merges_hold?;

    let mut rules = TextRules::default();
    let algorithm = if model.bool("byte_fallback")? == Some(true) {
        let add_space_prefix = space_prefix(json, &mut rules.spaces).map_err(|e| at("normalizer", e))?;
        for (token, kind) in tokens.iter().zip(&mut kinds) {
            if *kind == TokenKind::Normal && is_byte(token) {
                *kind = TokenKind::Byte;
            }
        }
        let scores = merges::scores(&tokens, &kinds, &merges).map_err(|e| at("model.merges", e))?;
        Algorithm::SentencePiece { scores, add_space_prefix: settings.add_prefix_space.unwrap_or(add_space_prefix) }
    } else {
        let ignore_merges = model.bool("ignore_merges")?.unwrap_or(false);
        let pre = match pre {
            Some(stated) => stated.to_owned(),
            None => {
                rules.normalizer = normalizer(&json["normalizer"]).map_err(|e| at("normalizer", e))?;
                let known = pre_tokenizer::name(&json["pre_tokenizer"], ignore_merges);
                known.map(str::to_owned).ok_or_else(|| {
                    let message = format!(
                        "expected a pre-tokenizer that is known to be one of llama.cpp's ({}), found another (or another ignore_merges); --tokenizer-pre NAME states it, --no-tokenizer leaves the tokenizer out",
                        pre_tokenizer::known_names()
                    );
                    at("pre_tokenizer", unsupported(message))
                })?
            }
        };
        Algorithm::Bpe { pre, merges: merges.into_iter().map(merges::Merge::into_text).collect() }
    };
    let unknown = unknown(&model, &tokens, settings)?;
    Ok(Draft { algorithm, tokens, kinds, special: SpecialTokens { unknown, ..SpecialTokens::default() }, rules })
}

fn model_of<'a>(file: &'a Path, document: &Fields<'a>) -> Result<Fields<'a>> {
    let model = document.value("model");
    let model = model.ok_or_else(|| invalid("expected an object, found none").file(file).field("model"))?;
    document.below("model", model)
}

/// Tokens and pairs, out of the document: they are nearly all of it, and read once.
fn take_lists(file: &Path, json: &mut Value) -> Result<(Map<String, Value>, Vec<Value>)> {
    let document = Fields::of(file, Some(json))?;
    let model = model_of(file, &document)?;
    check_model(&model)?;
    model.object("vocab")?.ok_or_else(|| model.at("vocab", invalid("expected an object of tokens")))?;
    model.list("merges")?.ok_or_else(|| model.at("merges", invalid("expected a list of pairs")))?;
    let mut take = |pointer: &str| json.pointer_mut(pointer).map(Value::take);
    match (take("/model/vocab"), take("/model/merges")) {
        (Some(Value::Object(vocab)), Some(Value::Array(merges))) => Ok((vocab, merges)),
        _ => unreachable!("both were just looked at"),
    }
}

/// What llama.cpp's tokenizers do not do.
fn check_model(model: &Fields<'_>) -> Result<()> {
    match model.str("type")? {
        Some("BPE") => {}
        found => {
            let found = found.map_or("none".to_owned(), |t| format!("{:?}", shorten(t)));
            let message = format!("expected BPE, found {found}; --no-tokenizer leaves the tokenizer out");
            return Err(model.at("type", unsupported(message)));
        }
    }
    if model.number("dropout")?.is_some_and(|p| p != 0.0) {
        return Err(model.at("dropout", unsupported("expected null: dropout makes tokens random")));
    }
    for field in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model.str(field)?.is_some_and(|s| !s.is_empty()) {
            return Err(model.at(field, unsupported("expected none, which llama.cpp does not know")));
        }
    }
    model.bool("fuse_unk").map(drop)
}

/// GPT-2's file says that there is none with an empty text.
fn unknown(model: &Fields<'_>, tokens: &[String], settings: &mut Settings) -> Result<Option<u32>> {
    let Some(text) = model.str("unk_token")?.filter(|t| !t.is_empty()) else { return Ok(None) };
    let id = tokens.iter().position(|t| t == text).map(|id| id as u32);
    if id.is_none() {
        settings.notes.push(left_out("model.unk_token", text));
    }
    Ok(id)
}

/// Tokens and kinds by number: those of the model, the added ones over them, holes between.
fn tokens(vocab: Map<String, Value>, n_tokens: usize, settings: &Settings) -> Result<(Vec<String>, Vec<TokenKind>)> {
    let mut by_id: Vec<Option<(String, TokenKind)>> = vec![None; n_tokens];
    for (token, id) in vocab {
        check_nul(&token)?;
        let slot = &mut by_id[token_id(&id, n_tokens)?];
        if let Some((other, _)) = slot {
            return Err(invalid(format!("expected one token of number {id}, found {other:?} and {token:?}")));
        }
        *slot = Some((token, TokenKind::Normal));
    }
    for (&id, t) in &settings.added_tokens {
        let slot = by_id.get_mut(id).ok_or_else(|| {
            invalid(format!(
                "expected numbers below {n_tokens}, the rows of the embedding, found {id} for {:?}",
                t.content
            ))
        })?;
        if let Some((other, _)) = slot.as_ref().filter(|(other, _)| *other != t.content) {
            return Err(invalid(format!("expected one token of number {id}, found {other:?} and {:?}", t.content)));
        }
        let (kind, text) = added(&t.content, t.is_special);
        *slot = Some((text, kind));
    }
    let filled = by_id.into_iter().enumerate();
    Ok(filled.map(|(id, slot)| slot.unwrap_or_else(|| (hole(id), TokenKind::Unused))).unzip())
}

/// `<0x00>` to `<0xFF>`
pub(super) fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.chars().all(|c| c.is_ascii_digit() || ('A'..='F').contains(&c)))
}

/// What is done to text before byte-level merges; llama.cpp does nothing.
fn normalizer(stated: &Value) -> Result<Normalizer> {
    let mut found = Normalizer::None;
    for step in steps(stated, "normalizers")? {
        match step["type"].as_str() {
            Some("NFC") => found = Normalizer::Nfc,
            other => {
                return Err(unsupported(format!(
                    "expected none or NFC, found {}; --tokenizer-pre NAME accepts it, --no-tokenizer leaves the tokenizer out",
                    other.unwrap_or("no type")
                )));
            }
        }
    }
    Ok(found)
}

/// Whether SentencePiece's space is put before the text: by the normalizer (`Prepend`), or by `Metaspace`, which has
/// rules of its own about where.
pub(super) fn space_prefix(json: &Value, spaces: &mut Spaces) -> Result<bool> {
    let (mut prefix, mut has_spaces) = (false, true);
    for step in steps(&json["normalizer"], "normalizers")? {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == "▁" => prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == "▁" => has_spaces = false,
            found => {
                let found = found.unwrap_or("no type");
                return Err(unsupported(format!("expected \"▁\" for spaces and before the text, found {found}")));
            }
        }
    }
    match steps(&json["pre_tokenizer"], "pretokenizers")?[..] {
        [] => Ok(prefix),
        // Gemma's: behind the normalizer there is nothing left to split at.
        [pre] if pre["type"] == "Split" && pre["pattern"]["String"] == " " && !has_spaces => Ok(prefix),
        [pre] if pre["type"] == "Metaspace" && pre["replacement"] == "▁" && pre["split"] == false => {
            // Behind `Prepend` all text begins with the space already.
            let (scheme, adds) = match pre["prepend_scheme"].as_str() {
                Some("first") => (Spaces::FirstTextWithout, true),
                Some("always") => (Spaces::EachTextWithout, true),
                Some("never") => (Spaces::EachText, false),
                _ => return Err(unsupported("expected prepend_scheme first, always or never in Metaspace")),
            };
            *spaces = if prefix { Spaces::EachText } else { scheme };
            Ok(prefix || adds)
        }
        ref found => {
            let found = found.iter().find_map(|step| step["type"].as_str()).unwrap_or("no type");
            Err(unsupported(format!(
                "expected no pre-tokenizer, or Metaspace that does not split, or a Split at spaces behind a Replace of them, found {found}"
            )))
        }
    }
}
