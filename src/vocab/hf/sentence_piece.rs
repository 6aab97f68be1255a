//! `tokenizer.model`: SentencePiece's protobuf. Source: `sentencepiece_model.proto`; fields that are not used here are
//! left out.

use std::path::Path;

use prost::Message;

use super::special::Settings;
use super::{Draft, added, hole, invalid, unsupported};
use crate::error::{Error, Result};
use crate::format::links::is_present;
use crate::format::{mmap, recognize};
use crate::vocab::{Algorithm, Spaces, SpecialTokens, TextRules, TokenKind};

/// Largest file read; the largest vocabularies (262,144 pieces) need 5 MB. A piece of two bytes costs 40 in memory.
const MAX_BYTES: usize = 8 << 20;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    /// 1 unigram, 2 BPE, 3 word, 4 char.
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pad_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// The bytes of the file, if it is there and may be SentencePiece's: Llama 3 calls a list of tokens by the same name.
pub(super) fn bytes(file: &Path) -> Result<Option<crate::tensor::Bytes>> {
    /// The tag of the first piece.
    const FIRST: u8 = 0x0a;
    if !is_present(file) {
        return Ok(None);
    }
    let bytes = mmap::map_file(file)?;
    if bytes.len() > MAX_BYTES {
        return Err(invalid(format!("expected at most {MAX_BYTES} bytes, found {}", bytes.len())).file(file));
    }
    recognize::refuse_stand_in(&bytes).map_err(|e| e.file(file))?;
    Ok((bytes.first() == Some(&FIRST)).then_some(bytes))
}

pub(super) fn read(
    file: &Path,
    bytes: &[u8],
    n_tokens: usize,
    settings: &Settings,
    stated: Option<&str>,
) -> Result<Draft> {
    let at = |e: Error| e.file(file);
    let model =
        ModelProto::decode(bytes).map_err(|e| at(invalid(format!("expected a SentencePiece model, found {e}"))))?;
    let (trainer, normalizer) = (model.trainer.unwrap_or_default(), model.normalizer.unwrap_or_default());
    if stated.is_none() {
        check_settings(&trainer, &normalizer).map_err(at)?;
    }
    if model.pieces.len() > n_tokens {
        let message =
            format!("expected at most {n_tokens} pieces, the rows of the embedding, found {}", model.pieces.len());
        return Err(at(invalid(message)));
    }
    let mut tokens: Vec<String> = (0..n_tokens).map(hole).collect();
    let mut kinds = vec![TokenKind::Unused; n_tokens];
    // Scores of holes and of added tokens are those of llama.cpp's converter.
    let mut scores = vec![-10_000f32; n_tokens];
    for (i, piece) in model.pieces.into_iter().enumerate() {
        kinds[i] =
            kind(piece.kind).ok_or_else(|| at(invalid(format!("piece {i} has no kind that SentencePiece knows"))))?;
        tokens[i] = piece.piece.unwrap_or_default();
        scores[i] = piece.score.unwrap_or_default();
        if tokens[i].contains('\0') || !scores[i].is_finite() {
            return Err(at(invalid(format!(
                "expected text without NUL and a finite score, found piece {i} otherwise"
            ))));
        }
    }
    for (&id, t) in &settings.added_tokens {
        let slot = tokens.get_mut(id).ok_or_else(|| {
            at(invalid(format!(
                "expected numbers below {n_tokens}, the rows of the embedding, found {id} for {:?}",
                t.content
            )))
        })?;
        (kinds[id], *slot) = added(&t.content, t.is_special);
        scores[id] = -1_000.0;
    }
    let id =
        |id: Option<i32>, default: i32| u32::try_from(id.unwrap_or(default)).ok().filter(|n| (*n as usize) < n_tokens);
    let special = SpecialTokens {
        unknown: id(trainer.unk_id, 0),
        bos: id(trainer.bos_id, 1),
        eos: id(trainer.eos_id, 2),
        padding: id(trainer.pad_id, -1),
        ..SpecialTokens::default()
    };
    // As transformers converts such a model: `legacy` is true where nothing says otherwise.
    let spaces = if settings.legacy == Some(false) { Spaces::FirstTextWithout } else { Spaces::EachText };

    let add_space_prefix = settings.add_prefix_space.unwrap_or(normalizer.add_dummy_prefix.unwrap_or(true));
    let rules = TextRules { spaces, ..TextRules::default() };
    Ok(Draft { algorithm: Algorithm::SentencePiece { scores, add_space_prefix }, tokens, kinds, special, rules })
}

/// What llama.cpp does with every model of this kind, whatever the file says.
fn check_settings(trainer: &TrainerSpec, normalizer: &NormalizerSpec) -> Result<()> {
    let refuse = |field: &str, message: &str| {
        let message = format!(
            "expected {message}, as llama.cpp does it; --tokenizer-pre default accepts it, --no-tokenizer leaves the tokenizer out"
        );
        Err(unsupported(message).field(field))
    };
    if trainer.model_type != Some(2) {
        return refuse("trainer_spec.model_type", "BPE, found another kind");
    }
    if trainer.byte_fallback != Some(true) {
        return refuse("trainer_spec.byte_fallback", "bytes for unknown characters, found none");
    }
    if trainer.treat_whitespace_as_suffix == Some(true) {
        return refuse("trainer_spec.treat_whitespace_as_suffix", "spaces before words, found them behind");
    }
    if normalizer.precompiled_charsmap.as_ref().is_some_and(|map| !map.is_empty()) {
        return refuse("normalizer_spec", "text as it is (identity), found normalization");
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        return refuse("normalizer_spec.remove_extra_whitespaces", "all spaces kept, found some removed");
    }
    if normalizer.escape_whitespaces == Some(false) {
        return refuse("normalizer_spec.escape_whitespaces", "\"▁\" for spaces, found spaces");
    }
    Ok(())
}

/// The kind of a piece; SentencePiece numbers them as ggml does.
fn kind(n: Option<i32>) -> Option<TokenKind> {
    use TokenKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
    match n {
        None => Some(Normal),
        Some(n) => [Normal, Unknown, Control, UserDefined, Unused, Byte].into_iter().find(|k| *k as i32 == n),
    }
}
