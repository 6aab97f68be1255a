//! Bounds put into a template's source before it is compiled: minijinja counts steps and bytes, but not how deep or how
//! often values lie in one another, and it prints, compares and drops them by recursion.
//!
//! Every list, dict and tuple that is written in the template, and every value that is set, passes a filter
//! ([`PLAIN`](super::values::PLAIN), [`STORED`](super::values::STORED)) that copies it, counts its levels and pays for
//! all that it holds. minijinja's own lexer says where these are, so that there is no second opinion about it.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::values::{PLAIN, STORED};
use crate::error::{Code, Error, Result};

/// Words and signs in one tag: chains of operators nest what they make. The longest tags of known templates have some
/// hundred.
const TAG_TOKENS: usize = 1024;

/// `source` with the filters.
///
/// # Errors
///
/// [`Code::ChatTemplate`] for a tag of more than [`TAG_TOKENS`]. What is no template stays as it is from there
/// on: compiling it says what is wrong.
pub(super) fn bounded(source: &str, syntax: &SyntaxConfig) -> Result<String> {
    let mut edits: Vec<(usize, String)> = Vec::new();
    let mut tag = Tag::default();
    for token in tokenize(source, false, syntax.clone()) {
        let Ok((token, span)) = token else { break };
        match token {
            Token::TemplateData(_) => {}
            Token::BlockStart | Token::VariableStart => {
                tag = Tag { name: matches!(token, Token::VariableStart).then_some(""), ..Tag::default() }
            }
            Token::BlockEnd | Token::VariableEnd => tag.close(&mut edits),
            token => {
                tag.push(&token, span.start_offset as usize, span.end_offset as usize, &mut edits);
                if tag.n_tokens > TAG_TOKENS {
                    let message = format!(
                        "expected at most {TAG_TOKENS} words and signs in a tag, found more in line {}",
                        span.start_line
                    );
                    return Err(Error::new(Code::ChatTemplate, message));
                }
            }
        }
    }
    let mut out = String::with_capacity(source.len() + 32 * edits.len());
    let mut from = 0;
    for (at, text) in edits {
        out.push_str(&source[from..at]);
        out.push_str(&text);
        from = at;
    }
    out.push_str(&source[from..]);
    Ok(out)
}

/// A tag up to the current token.
#[derive(Default)]
struct Tag<'a> {
    /// The first word of a statement; empty in `{{ }}`.
    name: Option<&'a str>,
    n_tokens: usize,
    /// Open brackets; whether each begins a value.
    open: Vec<bool>,
    /// Where the last token ends.
    end: usize,
    last: Last,
    /// Whether `set` sets an attribute.
    is_dotted: bool,
    /// Past the `in` of `for`, the `=` of `set`.
    past_target: bool,
    /// Past the `=` of `set`.
    is_setting: bool,
}

/// What a bracket may follow.
#[derive(Clone, Copy, PartialEq, Default)]
enum Last {
    /// A value: the bracket is a call or an index.
    Value,
    /// `with` or the comma after one of its values: names follow.
    Names,
    Dot,
    /// Anything else: the bracket begins a value.
    #[default]
    Other,
}

impl<'a> Tag<'a> {
    fn push(&mut self, token: &Token<'a>, start: usize, end: usize, edits: &mut Vec<(usize, String)>) {
        self.n_tokens += 1;
        self.end = end;
        let is_outside = self.open.is_empty();
        self.last = match token {
            Token::BracketOpen | Token::BraceOpen | Token::ParenOpen => {
                let is_name_list = match self.name {
                    Some("for" | "set") => !self.past_target,
                    Some("with") => is_outside && self.last == Last::Names,
                    _ => false,
                };
                let is_value = self.last != Last::Value && !is_name_list;
                if is_value {
                    edits.push((start, "(".to_owned()));
                }
                self.open.push(is_value);
                Last::Other
            }
            Token::BracketClose | Token::BraceClose | Token::ParenClose => {
                if self.open.pop() == Some(true) {
                    edits.push((end, format!("|{PLAIN})")));
                }
                Last::Value
            }
            Token::Ident(name) if self.name.is_none() => {
                self.name = Some(name);
                match *name {
                    "call" => Last::Value,
                    "with" => Last::Names,
                    _ => Last::Other,
                }
            }
            Token::Ident("in") if is_outside && !self.past_target && self.name == Some("for") => {
                self.past_target = true;
                Last::Other
            }
            Token::Ident("in" | "and" | "or" | "not" | "if" | "else" | "is") if self.last != Last::Dot => Last::Other,
            Token::Assign if is_outside && !self.past_target && self.name == Some("set") => {
                self.past_target = true;
                self.is_setting = true;
                edits.push((end, "((".to_owned()));
                Last::Other
            }
            Token::Dot => {
                self.is_dotted |= !self.past_target;
                Last::Dot
            }
            Token::Comma if is_outside && self.name == Some("with") => Last::Names,
            Token::Ident(_) | Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => {
                Last::Value
            }
            _ => Last::Other,
        };
    }

    fn close(&mut self, edits: &mut Vec<(usize, String)>) {
        if std::mem::take(&mut self.is_setting) {
            let filter = if self.is_dotted { STORED } else { PLAIN };
            edits.push((self.end, format!(")|{filter})")));
        }
    }
}
