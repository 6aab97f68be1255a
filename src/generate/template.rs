//! Chat templates: Jinja as Hugging Face sets it up, from a file that nobody has to trust.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat;
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::error::{Code, Error, Result};
use crate::format::names::cut;

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

/// A chat template that compiled.
pub struct Template {
    environment: Arc<Environment<'static>>,
}

const NAME: &str = "chat_template";

/// What one rendering may spend: minijinja counts instructions, and 64 bytes of data as one. Known templates need some
/// thousands; this is 64 MiB.
const FUEL: u64 = 1 << 20;

/// What minijinja does not count (lists that are sums of lists) ends here. Known templates need milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Nesting of macros and loops. Known templates need 3.
const DEPTH: usize = 100;

impl Template {
    /// Errors: [`Code::ChatTemplate`] for a syntax error.
    pub fn new(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        // As `_compile_jinja_template` in transformers' utils/chat_template_utils.py.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment.set_unknown_method_callback(python_method);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
        });
        environment.add_filter("tojson", to_json);
        // minijinja's says yes to none.
        environment.add_test("iterable", |v: Value| !v.is_none() && v.try_iter().is_ok());
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|e| failed(&e))?;
        Ok(Template { environment: Arc::new(environment) })
    }

    /// The conversation as the model's training wrote it, up to where the model has to answer.
    ///
    /// There is no clock: `strftime_now` is not defined, which templates that use it ask for.
    ///
    /// Errors: [`Code::ChatTemplate`] where the template refuses the conversation, does something impossible or spends
    /// too much.
    pub fn render(&self, messages: &[Message], tokens: Tokens<'_>) -> Result<String> {
        let context = context! {
            messages => Value::from(minijinja::value::Serde(messages)),
            bos_token => tokens.bos,
            eos_token => tokens.eos,
            add_generation_prompt => true,
            tools => (),
            documents => (),
        };
        let environment = self.environment.clone();
        let (sender, receiver) = mpsc::channel();
        let rendering = move || {
            // Nobody listens any more after the deadline.
            let _ = sender.send(environment.get_template(NAME).and_then(|t| t.render(context)));
        };
        thread::Builder::new()
            .spawn(rendering)
            .map_err(|e| Error::new(Code::Io, format!("cannot start a thread: {e}")).caused_by(e))?;
        match receiver.recv_timeout(DEADLINE) {
            Ok(rendered) => rendered.map_err(|e| failed(&e)),
            Err(_) => {
                let message = format!(
                    "expected a chat template that ends within {} s, found one that does not",
                    DEADLINE.as_secs()
                );
                Err(Error::new(Code::ChatTemplate, message).field("tokenizer.chat_template"))
            }
        }
    }
}

/// transformers' own tags around what the model says, for training, become a condition that holds.
fn without_generation_tags(source: &str) -> String {
    let tag = |name: &str| {
        regex::Regex::new(&format!(r"\{{%([-+]?)\s*{name}\s*([-+]?)%\}}")).expect("a valid pattern of a fixed name")
    };
    let opened = tag("generation").replace_all(source, "{%$1 if true $2%}");
    tag("endgeneration").replace_all(&opened, "{%$1 endif $2%}").into_owned()
}

/// Python's string methods, those that can make much of little charged in advance.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    /// Bytes that cost as much as one instruction.
    const BYTES: usize = 64;
    /// Bytes of one value in a list.
    const VALUE_BYTES: usize = 32;
    let len = |v: &Value| v.as_str().map_or(0, str::len);
    if let Some(text) = value.as_str() {
        let bytes = match (method, args) {
            ("replace", [old, new, ..]) => (text.len() / len(old).max(1) + 1).saturating_mul(len(new)),
            ("split" | "rsplit" | "splitlines", _) => text.len().saturating_mul(VALUE_BYTES),
            ("join", [items, ..]) => items.len().unwrap_or(0).saturating_mul(text.len()),
            _ => text.len(),
        };
        state.consume_fuel((bytes / BYTES) as u64)?;
        // minijinja's begins words at spaces only.
        if method == "title" && args.is_empty() {
            return Ok(Value::from(title(text)));
        }
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// Python's `str.title`: letters after what is no letter become capitals, the others small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = c.is_alphabetic();
    }
    out
}

/// Tells what a template raises from what goes wrong in it.
const RAISED: &str = "the template refuses: ";

fn failed(e: &minijinja::Error) -> Error {
    const SHOWN: usize = 300;
    let detail = e.detail().unwrap_or_default();
    let message = match detail.strip_prefix(RAISED) {
        Some(raised) => format!("expected a conversation that the chat template takes; it refuses with: {raised}"),
        None if e.kind() == ErrorKind::OutOfFuel => {
            "expected a chat template of at most 64 MiB and a million steps, found more".to_owned()
        }
        None => {
            let line = e.line().map_or(String::new(), |l| format!(" in line {l}"));
            format!("expected a chat template that renders, found{line}: {}: {detail}", e.kind())
        }
    };
    Error::new(Code::ChatTemplate, cut(&message, SHOWN)).field("tokenizer.chat_template")
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which is what templates mean by `tojson`.
fn to_json(value: Value, options: minijinja::value::Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)),
    };
    written.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

/// A space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
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

    #[test]
    fn a_refusal_is_told_in_the_templates_own_words() {
        let e =
            Template::new("{{ raise_exception('only\nuser') }}").unwrap().render(&[], Tokens::default()).unwrap_err();
        assert!(e.to_string().contains("it refuses with: only\\nuser"), "{e}");
    }
}
