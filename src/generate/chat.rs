//! What a base says about text: its tokenizer, its chat template, how long a context it was trained on.

use super::template::{Message, Role, Template, Tokens};
use crate::base::{BaseModel, Dialect};
use crate::error::{Code, Error, Result};
use crate::format::gguf;
use crate::vocab::tokenizer::{Specials, Tokenizer};
use crate::vocab::{Vocabulary, hf};

/// The text side of a base model.
pub struct BaseText {
    /// Splits prompts, joins answers.
    pub tokenizer: Tokenizer,
    /// How a conversation is written, if the base says.
    pub template: Option<Template>,
    /// Positions that the model was trained on, if the base says.
    pub n_context_trained: Option<usize>,
}

/// What a model is asked.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// Text to go on with.
    Raw(&'a str),
    /// Something to answer, written with the chat template.
    Chat {
        /// What the model is told first.
        system: Option<&'a str>,
        /// What the person says.
        user: &'a str,
    },
}

impl BaseText {
    /// Reads the keys of a GGUF base, or the tokenizer's files beside a folder's weights; `template` takes the place of
    /// the one that is stated there.
    ///
    /// Errors: those of [`Vocabulary::from_gguf`], [`hf::read`], [`Tokenizer::new`] and
    /// [`Template::new`]; [`Code::TokenizerInvalid`] for more tokens than the model has logits.
    pub fn of(base: &BaseModel, template: Option<&str>) -> Result<Self> {
        Self::read(base, template).map_err(|e| e.file(&base.path))
    }

    fn read(base: &BaseModel, template: Option<&str>) -> Result<Self> {
        let vocabulary = read_vocabulary(base)?;
        let (n, rows) = (vocabulary.tokens.len(), base.config.vocab_size);
        if n > rows {
            let message = format!("expected at most {rows} tokens, as the model has logits, found {n}");
            return Err(Error::new(Code::TokenizerInvalid, message).field("tokenizer.ggml.tokens"));
        }
        let template = template.or(vocabulary.chat_template.as_deref()).map(Template::new).transpose()?;
        let n_context_trained = base.config.context_length;
        Ok(BaseText { tokenizer: Tokenizer::new(vocabulary)?, template, n_context_trained })
    }

    /// The tokens of a whole prompt.
    ///
    /// Errors: [`Code::ChatTemplate`] for a conversation without a template, or one that it refuses.
    pub fn tokens(&self, prompt: Prompt<'_>) -> Result<Vec<u32>> {
        let (system, user) = match prompt {
            Prompt::Raw(text) => return self.tokenizer.sequence(text, Specials::Parsed),
            Prompt::Chat { system, user } => (system, user),
        };
        let Some(template) = &self.template else {
            let message = "expected a chat template, found none; --no-conversation completes text without one";
            return Err(Error::new(Code::ChatTemplate, message).field("tokenizer.chat_template"));
        };
        let system = system.map(|text| Message { role: Role::System, content: text.to_owned() });
        let user = Message { role: Role::User, content: user.to_owned() };
        let messages: Vec<Message> = system.into_iter().chain([user]).collect();
        let text = template.render(&messages, Tokens { bos: self.special(|s| s.bos), eos: self.special(|s| s.eos) })?;
        // Templates that write the first token themselves would double it.
        let bos = self.special(|s| s.bos);
        let text =
            if self.tokenizer.adds_bos() && !bos.is_empty() { text.strip_prefix(bos).unwrap_or(&text) } else { &text };
        self.tokenizer.sequence(text, Specials::Parsed)
    }

    fn special(&self, which: impl Fn(&crate::vocab::SpecialTokens) -> Option<u32>) -> &str {
        let vocabulary = self.tokenizer.vocabulary();
        which(&vocabulary.special).map_or("", |id| &vocabulary.tokens[id as usize])
    }
}

fn read_vocabulary(base: &BaseModel) -> Result<Vocabulary> {
    if base.dialect == Dialect::Gguf {
        return Vocabulary::from_gguf(&gguf::open(&base.path)?.metadata);
    }
    match hf::read(&base.path, base.config.vocab_size, None)? {
        Some(found) => Ok(found.vocabulary),
        None => {
            let message = "expected tokenizer.json or tokenizer.model in the folder, found neither";
            Err(Error::new(Code::TokenizerUnsupported, message))
        }
    }
}
