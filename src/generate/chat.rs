//! What a base says about text: its tokenizer, its chat template, how long a context it was trained on.

use std::path::{Path, PathBuf};

use super::template::{Message, Role, Template, Tokens};
use crate::base::{BaseModel, Dialect};
use crate::error::{Code, Error, Result};
use crate::format::gguf::{self, Metadata};
use crate::vocab::tokenizer::{Specials, Tokenizer};
use crate::vocab::{self, Vocabulary, hf};

/// The text side of a base model.
pub struct BaseText {
    /// Splits prompts, joins answers.
    pub tokenizer: Tokenizer,
    /// How a conversation is written, if the base says.
    pub template: Option<Template>,
    /// Positions that the model was trained on, if the base says.
    pub n_context_trained: Option<usize>,
    /// What a reader should know about the tokens.
    pub notes: Vec<String>,
    /// Where the template is from.
    template_file: PathBuf,
    base: PathBuf,
    /// Bytes of the longest token.
    longest_token: usize,
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
    /// Reads the keys of a GGUF base, or the tokenizer's files beside a folder's weights; `template`, a file and its text,
    /// takes the place of the one that is stated there.
    ///
    /// # Errors
    ///
    /// Those of [`Vocabulary::from_gguf`], [`hf::read`], [`Tokenizer::new`] and
    /// [`Template::new`]; [`Code::TokenizerInvalid`] for more tokens than the model has logits.
    pub fn of(base: &BaseModel, template: Option<(&Path, &str)>) -> Result<Self> {
        Self::read(base, template).map_err(|e| e.file(&base.path))
    }

    fn read(base: &BaseModel, template: Option<(&Path, &str)>) -> Result<Self> {
        let (vocabulary, notes) = read_vocabulary(base)?;
        let template_file = template.map_or(&*base.path, |(file, _)| file).to_owned();
        let source = template.map(|(_, text)| text).or(vocabulary.chat_template.as_deref());
        let template = source.map(Template::new).transpose().map_err(|e| e.file(&template_file))?;
        let longest_token = vocabulary.tokens.iter().map(String::len).max().unwrap_or_default().max(1);
        Ok(BaseText {
            tokenizer: Tokenizer::new(vocabulary)?,
            template,
            n_context_trained: base.config.context_length,
            notes,
            template_file,
            base: base.path.clone(),
            longest_token,
        })
    }

    /// The tokens of a whole prompt, which has to leave room in a context of `n_context`.
    ///
    /// # Errors
    ///
    /// With the file: [`Code::ChatTemplate`] for a conversation without a template, or one that it refuses;
    /// [`Code::ContextFull`] for text that is longer than so many tokens can be.
    pub fn tokens(&self, prompt: Prompt<'_>, n_context: usize) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Raw(text) => {
                self.check_length(text, n_context)?;
                self.tokenizer.sequence(text, Specials::Parsed)
            }
            Prompt::Chat { system, user } => {
                let text = self.conversation(system, user)?;
                self.check_length(&text, n_context)?;
                self.tokenizer.encode(&text, Specials::Parsed).map(|tokens| self.begun(tokens))
            }
        };
        tokens.map_err(|e| e.file(&self.base))
    }

    /// With the first token, which many templates write themselves.
    fn begun(&self, tokens: Vec<u32>) -> Vec<u32> {
        let bos = self.tokenizer.vocabulary().special.bos.filter(|_| self.tokenizer.adds_bos());
        match bos.filter(|bos| tokens.first() != Some(bos)) {
            Some(bos) => [vec![bos], tokens].concat(),
            None => tokens,
        }
    }

    fn conversation(&self, system: Option<&str>, user: &str) -> Result<String> {
        let Some(template) = &self.template else {
            let message = "expected a chat template, found none; --no-conversation completes text without one";
            return Err(Error::new(Code::ChatTemplate, message).file(&self.base).field("tokenizer.chat_template"));
        };
        let system = system.map(|text| Message { role: Role::System, content: text.to_owned() });
        let user = Message { role: Role::User, content: user.to_owned() };
        let messages: Vec<Message> = system.into_iter().chain([user]).collect();
        let (bos, eos) = (self.special(|s| s.bos), self.special(|s| s.eos));
        template.render(&messages, Tokens { bos, eos }).map_err(|e| e.file(&self.template_file))
    }

    /// Splitting costs a hundred times the text's memory: what cannot fit is refused before.
    fn check_length(&self, text: &str, n_context: usize) -> Result<()> {
        let spelled = text.len() - self.tokenizer.n_lost_bytes(text);
        let least = spelled.div_ceil(self.longest_token);
        if least < n_context {
            return Ok(());
        }
        let message = format!(
            "expected a prompt of fewer than {n_context} tokens, found {} bytes, which are at least {least}; --ctx-size makes room",
            text.len()
        );
        Err(Error::new(Code::ContextFull, message).file(&self.base))
    }

    fn special(&self, which: impl Fn(&crate::vocab::SpecialTokens) -> Option<u32>) -> &str {
        let vocabulary = self.tokenizer.vocabulary();
        which(&vocabulary.special).map_or("", |id| &vocabulary.tokens[id as usize])
    }
}

/// The vocabulary, and what a reader should know about it.
fn read_vocabulary(base: &BaseModel) -> Result<(Vocabulary, Vec<String>)> {
    if base.dialect == Dialect::Gguf {
        let metadata = gguf::open(&base.path)?.metadata;
        check_rows(&metadata, base.config.vocab_size)?;
        return Ok((Vocabulary::from_gguf(&metadata)?, vocab::gguf::notes(&metadata)?));
    }
    match hf::read(&base.path, base.config.vocab_size, None)? {
        Some(found) => Ok((found.vocabulary, found.notes)),
        None => {
            let message = "expected tokenizer.json or tokenizer.model in the folder, found neither";
            Err(Error::new(Code::TokenizerUnsupported, message))
        }
    }
}

/// Before the tokens are copied.
fn check_rows(metadata: &Metadata, n_rows: usize) -> Result<()> {
    let key = "tokenizer.ggml.tokens";
    match metadata.array(key)?.map(|tokens| tokens.len()) {
        Some(n) if n > n_rows => {
            let message = format!("expected at most {n_rows} tokens, as the model has logits, found {n}");
            Err(Error::new(Code::TokenizerInvalid, message).field(key))
        }
        _ => Ok(()),
    }
}
