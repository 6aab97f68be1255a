//! A base model's vocabulary as plain values, between the files that state it and the tokenizers that use it.

#[cfg(feature = "generate")]
mod bpe;
pub mod byte_level;
mod ends;
pub mod gguf;
pub mod hf;
mod rules;
#[cfg(feature = "generate")]
mod sentencepiece;
pub mod to_gguf;
#[cfg(feature = "generate")]
pub mod tokenizer;

pub use rules::{AddedFlags, Normalizer, Spaces, TextRules};

/// What a token is. Discriminants are ggml's `llama_token_type`, as `tokenizer.ggml.token_type` stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenKind {
    /// Text.
    Normal = 1,
    /// What stands for text that no other token spells.
    Unknown = 2,
    /// Steers the model and is never text: begin and end of a sequence, of a turn.
    Control = 3,
    /// Added by the user, matched before any other.
    UserDefined = 4,
    /// A hole in the numbering.
    Unused = 5,
    /// One byte, of text that no other token spells.
    Byte = 6,
}

/// How text is split into tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Algorithm {
    /// Byte-level byte pair encoding (`tokenizer.ggml.model` = `gpt2`).
    Bpe {
        /// llama.cpp's name of the pattern that splits text first, `tokenizer.ggml.pre`.
        pre: String,
        /// Pairs in the order in which they are merged, each two tokens with a space between.
        merges: Vec<String>,
    },
    /// SentencePiece (`tokenizer.ggml.model` = `llama`).
    SentencePiece {
        /// Each token's score; of two possible merges, the one with the higher score happens first.
        scores: Vec<f32>,
        /// Whether a space is put before the text.
        add_space_prefix: bool,
    },
}

/// Tokens with a meaning of their own, by number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends a sequence.
    pub eos: Option<u32>,
    /// Stands for what no token spells.
    pub unknown: Option<u32>,
    /// Fills rows of a batch.
    pub padding: Option<u32>,
    /// Ends a turn of a conversation, where that is another token than `eos`.
    pub end_of_turn: Option<u32>,
    /// Ends a message within a turn.
    pub end_of_message: Option<u32>,
}

/// The vocabulary of a base model.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// How text is split.
    pub algorithm: Algorithm,
    /// Each token's text as its file spells it: byte-level characters for BPE, `▁` for spaces in SentencePiece.
    pub tokens: Vec<String>,
    /// What each token is; as long as `tokens`.
    pub kinds: Vec<TokenKind>,
    /// Tokens with a meaning of their own.
    pub special: SpecialTokens,
    /// Tokens that end an answer besides those.
    pub more_ends: Vec<u32>,
    /// What else is done to text.
    pub rules: TextRules,
    /// Whether encoding puts `bos` first; absent, the algorithm's default.
    pub add_bos: Option<bool>,
    /// Whether encoding puts `eos` last; absent, the algorithm's default.
    pub add_eos: Option<bool>,
    /// Jinja template of a conversation.
    pub chat_template: Option<String>,
}

/// A chat template with `\n` for every end of a line, as Jinja2 reads it (`newline_sequence`), wherever it comes from.
pub fn with_plain_newlines(template: &str) -> String {
    template.replace("\r\n", "\n").replace('\r', "\n")
}
