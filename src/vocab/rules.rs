//! What a tokenizer does to text besides splitting it, and GGUF has no keys for: a folder's tokenizer says it, and a file
//! that is made of the folder loses it.

#[cfg(feature = "generate")]
use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Algorithm, TokenKind, Vocabulary};
use crate::format::names::shorten;

/// What is done to text, beyond llama.cpp's own rules; nothing by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextRules {
    /// What becomes of text between tokens that are written in it.
    pub normalizer: Normalizer,
    /// Where SentencePiece's space is put.
    pub spaces: Spaces,
    /// Tokens that want something of the text around them, by number.
    pub added: BTreeMap<u32, AddedFlags>,
    /// llama.cpp's rule for files whose name says Phi-3: control and user-defined tokens take the white space behind them.
    pub phi3: bool,
}

/// Unicode's normal form of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalizer {
    /// As it is.
    #[default]
    None,
    /// Composed.
    Nfc,
}

/// Where the space before text goes, if the vocabulary wants one at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spaces {
    /// Before the first text and behind each token that is written in it, as llama.cpp does.
    #[default]
    EachText,
    /// There too, unless the text begins with one: `Metaspace` with the scheme `always`.
    EachTextWithout,
    /// Before what begins the input alone, unless it begins with one: `Metaspace` with the scheme `first`.
    FirstTextWithout,
}

/// How an added token is found in text. Source: `AddedToken` of the `tokenizers` library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddedFlags {
    /// Takes the white space before it.
    pub lstrip: bool,
    /// Takes the white space behind it.
    pub rstrip: bool,
    /// Only where neither a letter, digit nor `_` is beside it.
    pub single_word: bool,
}

/// What the three tokens that Phi-3 leaves alone are called. Source: `llama_vocab::impl::load`.
const PHI3_KEEPS: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

impl TextRules {
    /// Whether llama.cpp takes a model of this name for Phi-3.
    pub(super) fn is_phi3(name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        name.contains("phi-3") || name.contains("phi3")
    }

    /// What `token` wants of the text around it.
    pub fn flags(&self, id: u32, text: &str, kind: TokenKind) -> AddedFlags {
        let is_searched = matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
        match self.added.get(&id) {
            Some(flags) => *flags,
            None => {
                AddedFlags { rstrip: self.phi3 && is_searched && !PHI3_KEEPS.contains(&text), ..AddedFlags::default() }
            }
        }
    }

    /// Text between two tokens, as it is split.
    #[cfg(feature = "generate")]
    pub(super) fn normalized<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.normalizer {
            Normalizer::Nfc if !text.is_ascii() => {
                let mut out = tokenizers::NormalizedString::from(text);
                out.nfc();
                Cow::Owned(out.get().to_owned())
            }
            Normalizer::Nfc | Normalizer::None => Cow::Borrowed(text),
        }
    }

    /// Whether SentencePiece's space is put before `text`, which begins the input or follows a token.
    #[cfg(feature = "generate")]
    pub(super) fn wants_space(&self, text: &str, begins_input: bool) -> bool {
        let has_one = text.starts_with([' ', super::sentencepiece::SPACE]);
        match self.spaces {
            Spaces::EachText => true,
            Spaces::EachTextWithout => !has_one,
            Spaces::FirstTextWithout => begins_input && !has_one,
        }
    }
}

impl Vocabulary {
    /// What is lost where the vocabulary becomes GGUF keys of a model called `name`: llama.cpp makes other tokens then.
    pub fn lost_in_gguf(&self, name: &str) -> Vec<String> {
        let mut notes = Vec::new();
        let rules = &self.rules;
        if rules.normalizer == Normalizer::Nfc {
            notes.push("the folder's tokenizer brings text into Unicode form NFC first; llama.cpp does not".into());
        }
        let adds_space = matches!(&self.algorithm, Algorithm::SentencePiece { add_space_prefix: true, .. });
        let without = "the folder's tokenizer puts no space before text that begins with one";
        match rules.spaces {
            Spaces::EachTextWithout if adds_space => notes.push(format!("{without}; llama.cpp does")),
            Spaces::FirstTextWithout if adds_space => {
                notes.push(format!("{without}, nor behind control and other added tokens; llama.cpp does"));
            }
            _ => {}
        }
        notes.extend(self.lost_flags());
        if !self.more_ends.is_empty() {
            let texts: Vec<String> =
                self.more_ends.iter().filter_map(|id| self.tokens.get(*id as usize)).map(|t| shorten(t)).collect();
            notes.push(format!("answers end at {} too, for which GGUF has no key", texts.join(", ")));
        }
        if TextRules::is_phi3(name) {
            notes.push(format!(
                "llama.cpp takes a model called {:?} for Phi-3, whose control tokens take the white space behind them",
                shorten(name)
            ));
        }
        notes
    }

    fn lost_flags(&self) -> Option<String> {
        const SHOWN: usize = 3;
        let shown = |(id, flags): (&u32, &AddedFlags)| {
            let names = [(flags.lstrip, "lstrip"), (flags.rstrip, "rstrip"), (flags.single_word, "single_word")];
            let names: Vec<&str> = names.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
            let text = self.tokens.get(*id as usize).map_or("", String::as_str);
            format!("{} ({})", shorten(text), names.join(", "))
        };
        let listed: Vec<String> = self.rules.added.iter().take(SHOWN).map(shown).collect();
        let more = match self.rules.added.len().saturating_sub(SHOWN) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        (!listed.is_empty()).then(|| {
            format!(
                "added tokens that the folder's tokenizer finds by rules of their own, which llama.cpp does not know: {}{more}",
                listed.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_called_phi3_strips_behind_its_tokens_but_three() {
        let rules = TextRules { phi3: true, ..TextRules::default() };
        let strips = |text: &str, kind| rules.flags(7, text, kind).rstrip;
        assert!(strips("<|end|>", TokenKind::Control) && strips("<|x|>", TokenKind::UserDefined));
        assert!(!strips("<s>", TokenKind::Control) && !strips("word", TokenKind::Normal));
        assert!(TextRules::is_phi3("Phi-3-mini") && TextRules::is_phi3("my-phi3") && !TextRules::is_phi3("phi-2"));
    }
}
