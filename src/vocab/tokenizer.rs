//! Text to tokens and back, as llama.cpp does it.

mod added;

use std::collections::{BTreeSet, HashMap};

use super::bpe::{Bpe, Pre};
use super::byte_level::character_of;
use super::ends::END_TEXTS;
use super::sentencepiece::{self, SPACE};
use super::{AddedFlags, Algorithm, TokenKind, Vocabulary};
use crate::error::{Code, Error, Result};
use crate::format::limits::{VOCABULARY_BYTES, VOCABULARY_SEARCHED};
use crate::format::names::shorten;
use added::{Fragment, cut_out};

/// What becomes of text that spells a control token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// It is that token: for prompts and chat templates.
    Parsed,
    /// It is text like any other.
    Text,
}

/// Splits text by one vocabulary.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    ids: HashMap<String, u32>,
    kinds: Vec<TokenKind>,
    splitter: Splitter,
    /// Tokens that are looked for before the text is split, longest first, with what they want of the text around them.
    searched: Vec<(u32, AddedFlags)>,
    ends: BTreeSet<u32>,
    add_bos: bool,
    /// By the byte-level character.
    byte_of: HashMap<char, u8>,
}

enum Splitter {
    Bpe(Box<Bpe>),
    SentencePiece { byte_tokens: Box<[u32; 256]> },
}

/// Control tokens by their text, whatever their file says of them; besides [`END_TEXTS`]. Same source.
const CONTROL_TEXTS: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
];

impl Tokenizer {
    /// # Errors
    ///
    /// [`Code::TokenizerUnsupported`] for a `pre` that is not on the list; [`Code::TokenizerInvalid`] for
    /// repeated tokens, merges of what is no token, a byte without a token in SentencePiece, and a `bos` that
    /// begins every sequence and is not stated.
    pub fn new(vocabulary: Vocabulary) -> Result<Self> {
        check_lengths(&vocabulary)?;
        let mut ids = HashMap::with_capacity(vocabulary.tokens.len());
        for (i, text) in vocabulary.tokens.iter().enumerate() {
            let text = if text.is_empty() { format!("[EMPTY_{i}]") } else { text.clone() };
            let id = u32::try_from(i).map_err(|_| invalid("tokens", "expected fewer than 2^32 tokens".into()))?;
            if let Some(first) = ids.insert(text, id) {
                let text = shorten(&vocabulary.tokens[i]);
                return Err(invalid("tokens", format!("expected different tokens, found {text:?} as {first} and {i}")));
            }
        }
        let (splitter, bos_by_default) = match &vocabulary.algorithm {
            Algorithm::Bpe { pre, merges } => {
                let pre = Pre::named(pre)?;
                (Splitter::Bpe(Box::new(Bpe::new(&ids, pre, merges)?)), pre.add_bos)
            }
            Algorithm::SentencePiece { .. } => {
                let byte_tokens = byte_tokens(&ids, vocabulary.special.unknown)?;
                (Splitter::SentencePiece { byte_tokens: Box::new(byte_tokens) }, true)
            }
        };
        let add_bos = vocabulary.add_bos.unwrap_or(bos_by_default);
        if add_bos && vocabulary.special.bos.is_none() {
            return Err(invalid("bos_token_id", "expected the token that begins every sequence, found none".into()));
        }
        let mut kinds = vocabulary.kinds.clone();
        let of_texts = |texts: &[&str]| texts.iter().filter_map(|t| ids.get(*t).copied()).collect::<Vec<u32>>();
        let mut ends: BTreeSet<u32> = of_texts(END_TEXTS).into_iter().collect();
        ends.iter().copied().chain(of_texts(CONTROL_TEXTS)).for_each(|id| kinds[id as usize] = TokenKind::Control);
        let special = &vocabulary.special;
        ends.extend([special.eos, special.end_of_turn, special.end_of_message].into_iter().flatten());
        ends.extend(&vocabulary.more_ends);
        let mut searched: Vec<(u32, AddedFlags)> = (0..)
            .zip(kinds.iter().zip(&vocabulary.tokens))
            .filter(|(_, (k, _))| matches!(k, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown))
            .filter(|(_, (_, text))| !text.is_empty())
            .map(|(id, (kind, text))| (id, vocabulary.rules.flags(id, text, *kind)))
            .collect();
        if searched.len() > VOCABULARY_SEARCHED {
            let expected = format!("expected at most {VOCABULARY_SEARCHED} control and user-defined tokens");
            return Err(invalid("token types", format!("{expected}, found {}", searched.len())));
        }
        searched.sort_by_key(|(id, _)| std::cmp::Reverse(vocabulary.tokens[*id as usize].len()));
        let byte_of = (0..=u8::MAX).map(|b| (character_of(b), b)).collect();
        Ok(Tokenizer { vocabulary, ids, kinds, splitter, searched, ends, add_bos, byte_of })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.vocabulary.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.vocabulary.tokens.is_empty()
    }

    /// The vocabulary that it splits by.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Whether [`sequence`](Self::sequence) puts `bos` first.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether `token` ends an answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// The tokens of a text that begins a sequence, with `bos` where the vocabulary wants it. An `eos` that it wants after
    /// a whole text is not added: prompts go on.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn sequence(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut tokens: Vec<u32> = self.vocabulary.special.bos.into_iter().filter(|_| self.add_bos).collect();
        tokens.extend(self.encode(text, specials)?);
        Ok(tokens)
    }

    /// The tokens of a text.
    ///
    /// # Errors
    ///
    /// [`Code::TokenizerUnsupported`] where the pattern's search gives up.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        let mut after_special = true;
        for fragment in self.fragments(text, specials) {
            let range = match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    after_special = true;
                    continue;
                }
                Fragment::Text(range) => range,
            };
            let rules = &self.vocabulary.rules;
            let begins_input = range.start == 0;
            let text = rules.normalized(&text[range]);
            match (&self.splitter, &self.vocabulary.algorithm) {
                (Splitter::SentencePiece { byte_tokens }, Algorithm::SentencePiece { scores, add_space_prefix }) => {
                    let wants_space = *add_space_prefix && after_special && rules.wants_space(&text, begins_input);
                    let prefix = if wants_space { " " } else { "" };
                    let escaped = format!("{prefix}{text}").replace(' ', SPACE.encode_utf8(&mut [0; 4]));
                    sentencepiece::split(&escaped, &self.ids, scores, byte_tokens, &mut out);
                }
                (Splitter::Bpe(bpe), _) => bpe.split(&text, &mut out)?,
                (Splitter::SentencePiece { .. }, Algorithm::Bpe { .. }) => {
                    unreachable!("the splitter is made from the algorithm")
                }
            }
            after_special = false;
        }
        Ok(out)
    }

    /// How many bytes of `text` no token spells, so that [`encode`](Self::encode) leaves them out.
    pub fn n_lost_bytes(&self, text: &str) -> usize {
        match &self.splitter {
            Splitter::Bpe(bpe) => bpe.n_lost_bytes(text),
            Splitter::SentencePiece { .. } => 0,
        }
    }

    /// What `token` adds to a text; control tokens add nothing. Not necessarily whole characters: see [`TextStream`].
    pub fn bytes(&self, token: u32) -> Vec<u8> {
        let (Some(text), Some(kind)) = (self.vocabulary.tokens.get(token as usize), self.kinds.get(token as usize))
        else {
            return Vec::new();
        };
        match (kind, &self.splitter) {
            (TokenKind::Control | TokenKind::Unknown | TokenKind::Unused, _) => Vec::new(),
            (TokenKind::UserDefined, _) => text.clone().into_bytes(),
            (TokenKind::Byte, _) => byte_of_hex(text).into_iter().collect(),
            (TokenKind::Normal, Splitter::SentencePiece { .. }) => text.replace(SPACE, " ").into_bytes(),
            (TokenKind::Normal, Splitter::Bpe(_)) => {
                let mut bytes = Vec::with_capacity(text.len());
                for c in text.chars() {
                    match self.byte_of.get(&c) {
                        Some(b) => bytes.push(*b),
                        None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
                bytes
            }
        }
    }

    /// The text of `tokens`; what is no UTF-8 becomes U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| self.bytes(*t)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Cuts out the tokens that are written in the text, the longest first wherever they are.
    fn fragments(&self, text: &str, specials: Specials) -> Vec<Fragment> {
        let is_wanted = |id: u32| specials != Specials::Text || self.kinds[id as usize] == TokenKind::UserDefined;
        let wanted = self.searched.iter().filter(|(id, _)| is_wanted(*id));
        cut_out(text, wanted.map(|&(id, flags)| (id, self.vocabulary.tokens[id as usize].as_str(), flags)))
    }
}

/// Every token has a kind and, where tokens have scores, a score; every special token is a token.
fn check_lengths(vocabulary: &Vocabulary) -> Result<()> {
    let n = vocabulary.tokens.len();
    let n_scores = match &vocabulary.algorithm {
        Algorithm::SentencePiece { scores, .. } => scores.len(),
        Algorithm::Bpe { .. } => n,
    };
    let len = |texts: &[String]| texts.iter().map(String::len).sum::<usize>();
    let n_bytes = match &vocabulary.algorithm {
        Algorithm::Bpe { merges, .. } => len(&vocabulary.tokens).max(len(merges)),
        Algorithm::SentencePiece { .. } => len(&vocabulary.tokens),
    };
    if n_bytes > VOCABULARY_BYTES {
        return Err(invalid("tokens", format!("expected at most {VOCABULARY_BYTES} bytes of text, found {n_bytes}")));
    }
    for (key, found) in [("token_type", vocabulary.kinds.len()), ("scores", n_scores)] {
        if found != n {
            return Err(invalid(key, format!("expected one for each of {n} tokens, found {found}")));
        }
    }
    let s = &vocabulary.special;
    let special = [s.bos, s.eos, s.unknown, s.padding, s.end_of_turn, s.end_of_message].into_iter().flatten();
    match special.chain(vocabulary.more_ends.iter().copied()).find(|id| *id as usize >= n) {
        Some(id) => Err(invalid("tokens", format!("expected special tokens below {n}, found {id}"))),
        None => Ok(()),
    }
}

fn byte_tokens(ids: &HashMap<String, u32>, unknown: Option<u32>) -> Result<[u32; 256]> {
    let mut tokens = [0; 256];
    for (byte, token) in (0..=u8::MAX).zip(&mut tokens) {
        let plain = byte.is_ascii().then(|| char::from(byte).to_string());
        let found = ids.get(&format!("<0x{byte:02X}>")).or_else(|| ids.get(plain.as_ref()?)).copied().or(unknown);
        *token = found.ok_or_else(|| {
            let message = format!(
                "expected <0x{byte:02X}>, for text that no other token spells, found neither it nor an unknown token"
            );
            invalid("tokens", message)
        })?;
    }
    Ok(tokens)
}

fn byte_of_hex(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

fn invalid(key: &str, message: String) -> Error {
    Error::new(Code::TokenizerInvalid, message).field(format!("tokenizer.ggml.{key}"))
}

/// Turns tokens' bytes into text as they come: characters are given out when they are whole.
#[derive(Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// What can be shown now that `bytes` came.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending.clear();
                    return out;
                }
                Err(e) => {
                    let valid = self.pending.drain(..e.valid_up_to()).collect();
                    out.push_str(&String::from_utf8(valid).unwrap_or_default());
                    let Some(wrong) = e.error_len() else { return out };
                    self.pending.drain(..wrong);
                    out.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
    }

    /// What is left at the end: U+FFFD for a character that never became whole.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
