//! Byte-level byte pair encoding: a pattern splits the text, then pairs merge inside each piece, in the order of the
//! merge list. The merging is the `tokenizers` crate's; which pattern belongs to which name is llama.cpp's.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

use super::byte_level::character_of;
use crate::error::{Code, Error, Result};
use crate::format::names::shorten;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is split before pairs merge.
pub(super) struct Pre {
    names: &'static [&'static str],
    /// Each splits what the ones before it left whole.
    patterns: &'static [&'static str],
    /// A piece that is a token as a whole stays whole.
    ignore_merges: bool,
    /// Whether a sequence begins with `bos` where the file does not say.
    pub add_bos: bool,
}

impl Pre {
    const fn new(names: &'static [&'static str], patterns: &'static [&'static str]) -> Self {
        Pre { names, patterns, ignore_merges: false, add_bos: false }
    }
}

/// The names that models of the families read here have. Source: `llm_tokenizer_bpe` and `llama_vocab::impl::load` in
/// llama.cpp's `llama-vocab.cpp`, patterns included (for tekken and gpt-4o, approximations of the originals).
const PRE: &[Pre] = &[
    Pre {
        ignore_merges: true,
        add_bos: true,
        ..Pre::new(&["llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0"], &[LLAMA3])
    },
    Pre::new(&["smaug-bpe", "dbrx"], &[LLAMA3]),
    Pre { ignore_merges: true, add_bos: true, ..Pre::new(&["tekken"], &[TEKKEN]) },
    Pre::new(&["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"], &[QWEN2]),
    Pre::new(&["gpt-4o", "llama4", "kanana2", "talkie"], &[GPT4O]),
    Pre::new(&["seed-coder"], &[SEED_CODER]),
    Pre::new(&["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "command-r"], &[r"\p{N}", GPT2]),
    Pre::new(
        &["gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "mpt", "olmo", "jais", "trillion", "exaone4"],
        &[GPT2],
    ),
    Pre::new(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
];

impl Pre {
    /// # Errors
    ///
    /// [`Code::TokenizerUnsupported`], naming the ones that are known.
    pub fn named(name: &str) -> Result<&'static Pre> {
        PRE.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
            let known: Vec<_> = PRE.iter().flat_map(|p| p.names).copied().collect();
            let message = format!("expected one of {}, found {:?}", known.join(", "), shorten(name));
            Error::new(Code::TokenizerUnsupported, message).field("tokenizer.ggml.pre")
        })
    }
}

/// A tokenizer of text without special tokens.
pub(super) struct Bpe {
    splits: Vec<Split>,
    bytes: ByteLevel,
    model: BPE,
    /// Characters that stand for a byte which no token spells.
    lost: Vec<char>,
}

impl Bpe {
    /// # Errors
    ///
    /// [`Code::TokenizerInvalid`] for a merge that is no pair of tokens, or whose result is none.
    pub fn new(ids: &HashMap<String, u32>, pre: &Pre, merges: &[String]) -> Result<Self> {
        let mut seen = HashSet::with_capacity(merges.len());
        let mut pairs = Vec::with_capacity(merges.len());
        for (i, merge) in merges.iter().enumerate() {
            let wrong = |what: &str| {
                let message = format!("merge {i}: expected {what}, found {:?}", shorten(merge));
                Error::new(Code::TokenizerInvalid, message).field("tokenizer.ggml.merges")
            };
            // A token may itself begin with a space.
            let start = merge.chars().next().map_or(0, char::len_utf8);
            let space = merge[start..].find(' ').ok_or_else(|| wrong("two tokens with a space between"))? + start;
            let (a, b) = (&merge[..space], &merge[space + 1..]);
            if !ids.contains_key(a) || !ids.contains_key(b) || !ids.contains_key(&format!("{a}{b}")) {
                return Err(wrong("two tokens that are a third one together"));
            }
            // Of two equal ones the first counts.
            if seen.insert((a, b)) {
                pairs.push((a.to_owned(), b.to_owned()));
            }
        }
        let vocabulary = ids.iter().map(|(text, id)| (text.clone(), *id)).collect::<Vec<_>>();
        let model = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), pairs)
            .ignore_merges(pre.ignore_merges)
            .build()
            .map_err(|e| Error::new(Code::TokenizerInvalid, e.to_string()).field("tokenizer.ggml.merges"))?;
        let split = |pattern: &&str| {
            Split::new(SplitPattern::Regex((*pattern).to_owned()), SplitDelimiterBehavior::Isolated, false)
                .expect("the patterns of the table are valid")
        };
        let is_lost = |c: &char| !ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str);
        Ok(Bpe {
            splits: pre.patterns.iter().map(split).collect(),
            bytes: ByteLevel::new(false, true, false),
            model,
            lost: (0..=u8::MAX).map(character_of).filter(is_lost).collect(),
        })
    }

    /// Appends the tokens of `text` to `out`. Bytes that no token spells are left out, and nothing merges across them.
    ///
    /// # Errors
    ///
    /// [`Code::TokenizerUnsupported`] where the tokenizer gives up.
    pub fn split(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let failed = |e: tokenizers::Error| {
            Error::new(Code::TokenizerUnsupported, format!("expected text to be split into tokens, found: {e}"))
        };
        let mut pieces = PreTokenizedString::from(text);
        for split in &self.splits {
            split.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        self.bytes.pre_tokenize(&mut pieces).map_err(failed)?;
        for (piece, ..) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            // The crate leaves such bytes out before it merges, llama.cpp after.
            for part in piece.split(self.lost.as_slice()).filter(|part| !part.is_empty()) {
                out.extend(self.model.tokenize(part).map_err(failed)?.into_iter().map(|t| t.id));
            }
        }
        Ok(())
    }

    /// How many bytes of `text` no token spells.
    pub fn n_lost_bytes(&self, text: &str) -> usize {
        let lost: Vec<bool> = (0..=u8::MAX).map(|b| self.lost.contains(&character_of(b))).collect();
        text.bytes().filter(|b| lost[usize::from(*b)]).count()
    }
}
