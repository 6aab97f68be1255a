//! Chat templates: Jinja as Hugging Face sets it up, from a file that nobody has to trust.

mod bounds;
mod cost;
mod values;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::PanicHookInfo;
use std::thread;

use minijinja::machinery::{self, CodeGenerator, Instructions};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::format::limits::TEMPLATE_BYTES;
use crate::format::names::cut;
use crate::vocab::with_plain_newlines;
use values::RAISED;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What the model is told about its task.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// What.
    pub content: String,
}

/// What a template gets besides the messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokens<'a> {
    /// Text of the token that begins a sequence.
    pub bos: &'a str,
    /// Text of the token that ends one.
    pub eos: &'a str,
}

/// A chat template that compiles.
pub struct Template {
    source: String,
    environment: Environment<'static>,
}

const NAME: &str = "chat_template";

/// The thread that compiles and renders.
const THREAD: &str = "chat template";

/// Steps that one rendering may spend whatever the conversation; minijinja counts instructions, and 64 bytes of data as
/// one, so that this is 8 MiB. Known templates need some thousands.
const STEPS: u64 = 1 << 17;

/// Steps for each byte of the conversation: it may be copied or looked through so many times 64.
const STEPS_PER_BYTE: u64 = 1;

/// Text that a template may add, and how often it may repeat the conversation. Known templates add some 10 kB.
const ADDED_BYTES: usize = 256 << 10;
const REPETITIONS: usize = 2;

/// Nesting of loops; a macro counts as five. Known templates need some ten.
const DEPTH: usize = 64;

/// Room for the deepest values that the other limits leave possible: each level costs some frames to print or drop.
const STACK_BYTES: usize = 128 << 20;

impl Template {
    /// # Errors
    ///
    /// [`Code::ChatTemplate`] for a syntax error, more than [`TEMPLATE_BYTES`], or a tag that is too long.
    pub fn new(source: &str) -> Result<Self> {
        Self::compiled(source).map_err(|e| e.field(FIELD))
    }

    fn compiled(source: &str) -> Result<Self> {
        if source.len() > TEMPLATE_BYTES {
            let message = format!("expected a chat template of at most {TEMPLATE_BYTES} bytes, found {}", source.len());
            return Err(Error::new(Code::ChatTemplate, message));
        }
        let source = without_generation_tags(&with_plain_newlines(source));
        bounds::check_tags(&source, &syntax())?;
        let mut environment = Environment::new();
        environment.set_recursion_limit(DEPTH);
        values::set_up(&mut environment);
        on_a_large_stack(|| code(&source).map(drop))?.map_err(|e| failed(&e))?;
        Ok(Template { source, environment })
    }

    /// The conversation as the model's training wrote it, up to where the model has to answer.
    ///
    /// There is no clock: `strftime_now` is not defined, which templates that use it ask for.
    ///
    /// # Errors
    ///
    /// [`Code::ChatTemplate`] where the template refuses the conversation, does something impossible or spends
    /// or writes too much.
    pub fn render(&self, messages: &[Message], tokens: Tokens<'_>) -> Result<String> {
        self.rendered(messages, tokens).map_err(|e| e.field(FIELD))
    }

    fn rendered(&self, messages: &[Message], tokens: Tokens<'_>) -> Result<String> {
        let context = context! {
            messages => Value::from(minijinja::value::Serde(messages)),
            bos_token => tokens.bos,
            eos_token => tokens.eos,
            add_generation_prompt => true,
            tools => (),
            documents => (),
        };
        let n_bytes: usize = messages.iter().map(|m| m.content.len()).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(STEPS + n_bytes as u64 * STEPS_PER_BYTE));
        let rendering = || {
            let code = code(&self.source)?;
            let mut text = String::new();
            let mut out = machinery::make_string_output(&mut text);
            machinery::eval(&environment, &code.0, context, &code.1, &mut out, AutoEscape::None)?;
            Ok(text)
        };
        let text = on_a_large_stack(rendering)?.map_err(|e| failed(&e))?;
        let most = ADDED_BYTES + REPETITIONS * n_bytes;
        if text.len() > most {
            let message =
                format!("expected a chat template that writes at most {most} bytes here, found {}", text.len());
            return Err(Error::new(Code::ChatTemplate, message));
        }
        Ok(text)
    }
}

const FIELD: &str = "tokenizer.chat_template";

/// As `_compile_jinja_template` in transformers' utils/chat_template_utils.py.
fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("the default delimiters are valid")
}

/// What `source` compiles to, with [`bounds`].
fn code(source: &str) -> std::result::Result<(Instructions<'_>, BTreeMap<&str, Instructions<'_>>), minijinja::Error> {
    let tree = machinery::parse(source, NAME, syntax())?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&bounds::bounded(&tree));
    Ok(generator.finish())
}

/// `work`, done by a thread with room for deep values.
fn on_a_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(THREAD.to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work);
        let thread = thread.map_err(|e| Error::new(Code::Io, format!("cannot start a thread: {e}")).caused_by(e))?;
        thread.join().map_err(|payload| panicked(payload.as_ref()))
    })
}

/// The error that a panic is where the template engine stops at a template. For panic hooks of programs that abort at
/// panics; where they unwind, [`Template`]'s functions return the same.
pub fn template_panic(panic: &PanicHookInfo<'_>) -> Option<Error> {
    (thread::current().name() == Some(THREAD)).then(|| panicked(panic.payload()).field(FIELD))
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason");
    let message = format!("expected a chat template that renders, found one that the template engine stops at: {text}");
    Error::new(Code::ChatTemplate, cut(&message, SHOWN))
}

/// transformers' own tags around what the model says, for training, become a condition that holds.
fn without_generation_tags(source: &str) -> String {
    let tag = |name: &str| {
        regex::Regex::new(&format!(r"\{{%([-+]?)\s*{name}\s*([-+]?)%\}}")).expect("a valid pattern of a fixed name")
    };
    let opened = tag("generation").replace_all(source, "{%$1 if true $2%}");
    tag("endgeneration").replace_all(&opened, "{%$1 endif $2%}").into_owned()
}

/// Characters of a message that quotes the template.
const SHOWN: usize = 300;

fn failed(e: &minijinja::Error) -> Error {
    let detail = e.detail().unwrap_or_default();
    let message = match detail.strip_prefix(RAISED) {
        Some(raised) => format!("expected a conversation that the chat template takes; it refuses with: {raised}"),
        None if e.kind() == ErrorKind::OutOfFuel => {
            format!("expected a chat template that needs at most {STEPS} steps and 8 MiB, found more")
        }
        None => {
            let line = e.line().map_or(String::new(), |l| format!(" in line {l}"));
            format!("expected a chat template that renders, found{line}: {}: {detail}", e.kind())
        }
    };
    Error::new(Code::ChatTemplate, cut(&message, SHOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What transformers makes of the same templates and conversations: `fixtures/vocab/templates.py`.
    #[test]
    fn templates_render_as_in_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/vocab/templates.json");
        let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut wrong = String::new();
        for row in rows.as_array().unwrap() {
            let messages: Vec<Message> = row["messages"].as_array().unwrap().iter().map(message).collect();
            let tokens = Tokens { bos: "<s>", eos: "</s>" };
            let found = Template::new(row["template"].as_str().unwrap()).and_then(|t| t.render(&messages, tokens));
            let expected = row["rendered"].as_str().unwrap();
            match found {
                Ok(text) if text == expected => {}
                found => wrong += &format!("{} expected {expected:?}, found {found:?}\n", row["name"]),
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }

    fn message(m: &serde_json::Value) -> Message {
        let role = match m["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        };
        Message { role, content: m["content"].as_str().unwrap().to_owned() }
    }

    #[test]
    fn long_conversations_are_within_the_bounds() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/vocab/templates.json");
        let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let turn = |i: usize, content: &str| Message {
            role: if i.is_multiple_of(2) { Role::User } else { Role::Assistant },
            content: content.to_owned(),
        };
        let many: Vec<Message> = (0..201).map(|i| turn(i, "What is it that I asked before?")).collect();
        let long: Vec<Message> = (0..3).map(|i| turn(i, &"A long story. ".repeat(20_000))).collect();
        let tokens = Tokens { bos: "<s>", eos: "</s>" };
        let mut wrong = String::new();
        for row in rows.as_array().unwrap() {
            let template = Template::new(row["template"].as_str().unwrap()).unwrap();
            for messages in [&many, &long] {
                if let Err(e) = template.render(messages, tokens) {
                    wrong += &format!("{}, {} messages: {e}\n", row["name"], messages.len());
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }

    #[test]
    fn hostile_templates_end_with_an_error() {
        let bombs = [
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
            "{{ 'x' * 9999999999 }}",
            "{{ ('x' * 1000000).replace('x', 'y' * 1000) }}",
            "{{ ('x' * 9999999).split('x') | length }}",
            "{{ 'x'.join(range(99999) | map('string')) * 1000 }}",
            "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            "{{ messages[0].content.nonsense() }}",
            "{{ raise_exception('no') }}",
            "{{ strftime_now('%Y') }}",
            "{{ 1 / 0 }}",
            "{% include 'x' %}",
        ];
        let user = Message { role: Role::User, content: "hi".into() };
        for bomb in bombs {
            let found = Template::new(bomb).and_then(|t| t.render(std::slice::from_ref(&user), Tokens::default()));
            assert_eq!(found.map(|t| t.len()).expect_err(bomb).code(), Code::ChatTemplate, "{bomb}");
        }
        let deep = format!("{}x{}", "{% if true %}".repeat(50_000), "{% endif %}".repeat(50_000));
        let nested = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
        for source in ["{% for %}", "{{", "{% endfor %}", deep.as_str(), nested.as_str()] {
            assert_eq!(Template::new(source).err().map(|e| e.code()), Some(Code::ChatTemplate));
        }
    }

    /// As Jinja2, whose lexer makes one kind of them before anything else (`newline_re` in its lexer.py).
    #[test]
    fn every_end_of_a_line_is_one_character() {
        let user = Message { role: Role::User, content: "a\r\nb".into() };
        let source =
            "{% for m in messages %}\n  {%- if true %}\n{{ m.content }}\n{% endif %}\n{% endfor %}\n{{ 'x\ny' }}\n\n";
        let rendered = |source: &str| {
            Template::new(source).unwrap().render(std::slice::from_ref(&user), Tokens::default()).unwrap()
        };
        let plain = rendered(source);
        assert_eq!(plain, "a\r\nb\nx\ny\n");
        for newline in ["\r\n", "\r"] {
            assert_eq!(rendered(&source.replace('\n', newline)), plain, "{newline:?}");
        }
        assert_eq!(rendered("a\r\r\n\n\rb\r"), "a\n\n\n\nb");
    }

    #[test]
    fn a_panic_is_an_error_with_words_of_its_own() {
        let mut template = Template::new("{{ stop() }}").unwrap();
        template.environment.add_function("stop", || -> String { panic!("an overflow") });
        let e = template.render(&[], Tokens::default()).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (Code::ChatTemplate, Some(FIELD)));
        assert!(e.message().ends_with("that the template engine stops at: an overflow"), "{e}");
    }

    #[test]
    fn a_refusal_is_told_in_the_templates_own_words() {
        let e =
            Template::new("{{ raise_exception('only\nuser') }}").unwrap().render(&[], Tokens::default()).unwrap_err();
        assert!(e.to_string().contains("it refuses with: only\\nuser"), "{e}");
    }
}
