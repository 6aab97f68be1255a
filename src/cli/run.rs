use std::fmt::Write as _;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::about::SamplingFlags;
use super::base_check::{self, BaseCheck};
use super::engine::EngineChoice;
use super::progress::Unit;
use super::scaled::path_and_scale;
use super::text::{read_template, read_text};
use super::ui::{Status, Ui};
use super::usage;
use crate::about::{self, About, agreed};
use crate::adapter::Prefix;
use crate::base::BaseModel;
use crate::base::fingerprint::Depth;
use crate::error::{Code, Error, Result, escape};
use crate::format::bundle::container::is_bundle;
use crate::generate::{Answer, BaseText, Candle, Engine, Limits, Prompt, Sampling, Stop, answer, effects};
use crate::import::Options;
use crate::pipeline::read_adapter_with;
use crate::runner::DeviceChoice;
use crate::validate::Validated;

#[derive(clap::Args)]
#[command(
    after_help = "Flags of sampling have llama.cpp's names. What no flag says, an adapter may (ptplus pack); else llama.cpp's defaults hold: --temp 0.8 --top-k 40 --top-p 0.95 --min-p 0.05 --repeat-penalty 1 --repeat-last-n 64. Every prompt is answered on its own, by the same loaded model.\n\nExamples:\n  ptplus run --base model.gguf --adapter adapter.gguf -p 'Who are you?' \\\n      --temp 0\n  ptplus run --base model.gguf --adapter style.gguf:0.5 --adapter facts.gguf \\\n      -p 'Hello' -p 'Goodbye' --also-plain\n  ptplus run --base model.gguf --no-conversation -p 'Once upon a time' -n 64"
)]
pub struct Arguments {
    /// Base model, whose tokenizer and chat template are used: a GGUF file or a Hugging Face folder
    #[arg(long, short = 'm', visible_alias = "model")]
    base: PathBuf,
    /// Adapter, with a factor on its term; may be given more than once: terms add up
    #[arg(long, value_name = "ADAPTER[:SCALE]")]
    adapter: Vec<String>,
    /// Of bundles that have their adapter in several forms: which one (q8_0, safetensors); by default the first
    #[arg(long, value_name = "NAME", requires = "adapter")]
    form: Option<String>,
    /// What to answer; may be given more than once
    #[arg(long, short, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A file with one more prompt
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What the model is told before each prompt
    #[arg(long, visible_alias = "system", value_name = "TEXT", conflicts_with = "no_conversation")]
    system_prompt: Option<String>,
    /// A file with the chat template to use instead of the adapter's or the base's
    #[arg(long, value_name = "FILE", conflicts_with = "no_conversation")]
    chat_template_file: Option<PathBuf>,
    /// Go on with the prompt as it is, without the chat template; also where the base has none
    #[arg(long, visible_aliases = ["no-cnv", "no-chat"])]
    no_conversation: bool,
    /// Also print what the base alone answers
    #[arg(long, requires = "adapter")]
    also_plain: bool,
    /// What computes: candle or llama.cpp
    #[arg(long, value_enum, default_value_t = EngineChoice::Candle)]
    engine: EngineChoice,
    /// Of candle: cpu, cpu-int8 (faster; as exact as llama.cpp), cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads; by default one for each core
    #[arg(long, short, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Tokens of prompt and answer; 0 for as many as the base was trained on
    #[arg(long, short, default_value_t = 0)]
    ctx_size: u32,
    /// Tokens of an answer; -1 for as many as fit
    #[arg(long, visible_alias = "predict", short, default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1..))]
    n_predict: i32,
    #[command(flatten)]
    base_check: BaseCheck,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Seed; -1 for another one every time
    #[arg(long, short, default_value_t = -1, allow_negative_numbers = true, help_heading = "Sampling")]
    seed: i64,
}

/// The largest prompt: a million tokens of English.
const PROMPT_BYTES: usize = 4 << 20;

/// What an answer without text mostly comes from.
const EMPTY_ANSWER: &str = "the model ended at once, with no text: an adapter that was trained with another chat template needs it here, too (--chat-template-file)";

/// Positions where a base does not say how many it was trained on.
const DEFAULT_CONTEXT: usize = 4096;

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let prompts = prompts(a)?;
    a.sampling.stated()?;
    let adapters: Vec<(PathBuf, f32)> =
        a.adapter.iter().map(|text| path_and_scale("--adapter", text)).collect::<Result<_>>()?;
    let device = a.device.parse::<DeviceChoice>()?;
    let base = base_check::open(&a.base, ui)?;
    let template = a.chat_template_file.as_deref().map(read_template).transpose()?;
    let read = |(path, _): &(PathBuf, f32)| {
        // Beside a bundle, adapters that are none have but one form.
        let form = a.form.clone().filter(|_| adapters.len() == 1 || is_bundle(path));
        read_adapter_with(path, &Options { form, ..Options::default() }, Some(&base))
    };
    let loaded = adapters.iter().map(read).collect::<Result<Vec<_>>>()?;
    loaded.iter().flat_map(|v| &v.notes).for_each(|n| ui.note(n));
    let said = loaded.iter().zip(&adapters).map(|(v, (path, _))| About::of(v.adapter()).map_err(|e| e.file(path)));
    let said: Vec<About> = said.collect::<Result<_>>()?;
    let of_base = base.metadata.as_ref().map_or_else(|| Ok(About::default()), About::of_model);
    let of_base = of_base.map_err(|e| e.file(&a.base))?;
    let sampling = sampling(a, &said, &of_base)?;
    let of_adapters = match template.is_some() || a.no_conversation {
        true => None,
        false => agreed("--chat-template-file", said.iter().map(|s| s.chat_template.as_deref()))?,
    };
    let says_so = || Some(adapters[said.iter().position(|s| s.chat_template.is_some())?].0.as_path());
    let chosen = a.chat_template_file.as_deref().zip(template.as_deref());
    let text = BaseText::of(&base, chosen.or_else(|| says_so().zip(of_adapters)))?;
    text.notes.iter().for_each(|n| ui.note(n));
    adapters.iter().zip(&said).for_each(|((path, _), said)| note_what_is_said(a, path, said, ui));
    note_what_is_said(a, &a.base, &left_to_base(&of_base, &said), ui);
    let mut identities = Vec::new();
    for adapter in &loaded {
        let identity = adapter.confirm_base(&base, Depth::Weights, a.base_check.mismatch())?;
        base_check::note(ui, identity.as_ref());
        identities.push(identity);
    }

    let conversation = !a.no_conversation && text.template.is_some();
    if !conversation && a.system_prompt.is_some() {
        return Err(usage("--system-prompt", "expected a base with a chat template, found one without"));
    }
    let system = match &a.system_prompt {
        None if conversation => {
            agreed("--system-prompt", said.iter().map(|s| s.system.as_deref()))?.or(of_base.system.as_deref())
        }
        given => given.as_deref(),
    };
    // Virtual tokens take places of the context; what is left is for prompt and answer.
    let n_virtual = loaded.iter().filter_map(|a| a.adapter().as_prefix()).map(Prefix::n_tokens).max().unwrap_or(0);
    let n_context = context_length(a, &text).saturating_sub(n_virtual);
    let tokens = prompts
        .iter()
        .map(|p| {
            let lost = text.tokenizer.n_lost_bytes(p);
            if lost > 0 {
                ui.note(&format!("{lost} bytes of the prompt are left out: no token of this base spells them"));
            }
            text.tokens(if conversation { Prompt::Chat { system, user: p } } else { Prompt::Raw(p) }, n_context)
        })
        .collect::<Result<Vec<_>>>()?;
    let limits = limits(a, n_context, &tokens);
    let on: Vec<(usize, f32)> = adapters.iter().map(|(_, scale)| *scale).enumerate().collect();
    let mut engine = open_engine(a, &base, loaded, device, limits.n_context + n_virtual, ui)?;
    check_effects(engine.as_mut(), &tokens[0], &adapters, &on, ui)?;

    let mut documents = Vec::new();
    let plain: &[(usize, f32)] = &[];
    for (prompt, tokens) in prompts.iter().zip(&tokens) {
        for on in [Some(plain).filter(|_| a.also_plain), Some(&on)].into_iter().flatten() {
            if prompts.len() > 1 || a.also_plain {
                ui.heading(&heading(prompt, on, &adapters, documents.is_empty()))?;
            }
            engine.switch_adapters(on)?;
            let show = &mut |text: &str| ui.stream(&shown(text));
            let progress = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Tokens);
            let answer = answer(engine.as_mut(), &text.tokenizer, tokens, sampling, limits, show, &progress)
                .map_err(|e| e.file(&a.base))?;
            ui.heading("\n")?;
            ui.note(&speeds(&answer));
            if answer.text.is_empty() {
                ui.note(EMPTY_ANSWER);
            }
            documents.push(document(prompt, on, &adapters, &answer));
            if answer.stop == Stop::Unread {
                return Ok(0);
            }
        }
    }
    let document = json!({
        "engine": a.engine.name(),
        "threads": rayon::current_num_threads(),
        "base": a.base.to_string_lossy(),
        "base_identities": identities,
        "conversation": conversation,
        "seed": sampling.seed,
        "answers": documents,
    });
    ui.result(Status::Ok, document, "")?;
    Ok(0)
}

/// The one place where engines are made.
fn open_engine(
    a: &Arguments,
    base: &BaseModel,
    adapters: Vec<Validated>,
    device: DeviceChoice,
    n_context: usize,
    ui: &Ui,
) -> Result<Box<dyn Engine>> {
    match a.engine {
        EngineChoice::Candle => Ok(Box::new(Candle::new(base, adapters, &device.open()?, n_context)?)),
        #[cfg(feature = "llama-cpp")]
        EngineChoice::LlamaCpp => {
            crate::llama_cpp::show_log(ui.is_verbose());
            let n_threads = rayon::current_num_threads();
            let adapters: Vec<&Validated> = adapters.iter().collect();
            Ok(Box::new(crate::llama_cpp::engine::LlamaCpp::open(base, &adapters, n_context, n_threads)?))
        }
        #[cfg(not(feature = "llama-cpp"))]
        EngineChoice::LlamaCpp => {
            let _ = ui;
            Err(super::engine::not_built_in())
        }
    }
}

fn prompts(a: &Arguments) -> Result<Vec<String>> {
    let mut prompts = a.prompt.clone();
    if let Some(path) = &a.file {
        let mut text = read_text(path, "the prompt", PROMPT_BYTES)?;
        // The end of the last line, as editors write it.
        let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        if let Some(len) = line.map(str::len) {
            text.truncate(len);
        }
        prompts.push(text);
    }
    if prompts.is_empty() {
        return Err(usage("--prompt", "expected a prompt, -p TEXT or -f FILE, found none"));
    }
    Ok(prompts)
}

/// What the flags say, else what the adapters say, else what the base's file does, else llama.cpp's defaults.
fn sampling(a: &Arguments, said: &[About], of_base: &About) -> Result<Sampling> {
    let said: Vec<about::Sampling> = said.iter().map(|s| s.sampling).collect();
    let found = about::Sampling::agreed(a.sampling.stated()?, &said)?.or(&of_base.sampling);
    let default = Sampling::default();
    Ok(Sampling {
        temp: found.temp.unwrap_or(default.temp),
        top_k: found.top_k.map_or(default.top_k, |k| usize::try_from(k).unwrap_or(0)),
        top_p: found.top_p.unwrap_or(default.top_p),
        min_p: found.min_p.unwrap_or(default.min_p),
        repeat_penalty: found.repeat_penalty.unwrap_or(default.repeat_penalty),
        repeat_last_n: found.repeat_last_n.map_or(default.repeat_last_n, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        seed: u64::try_from(a.seed).unwrap_or_else(|_| random_seed()),
    })
}

/// What the base's file says, as a merged model's may, and no adapter does. Its chat template is its tokenizer's.
fn left_to_base(of_base: &About, said: &[About]) -> About {
    let of_adapters = said.iter().fold(about::Sampling::default(), |all, s| all.or(&s.sampling));
    About {
        system: of_base.system.clone().filter(|_| said.iter().all(|s| s.system.is_none())),
        sampling: of_base.sampling.without(&of_adapters),
        ..About::default()
    }
}

/// Tells what an adapter or the base decides that no flag does.
fn note_what_is_said(a: &Arguments, path: &Path, said: &About, ui: &Ui) {
    let given: Vec<&str> =
        a.sampling.stated().iter().flat_map(|s| s.stated().map(|(flag, ..)| flag).collect::<Vec<_>>()).collect();
    let is_chat = !a.no_conversation;
    let mut parts: Vec<String> = Vec::new();
    if is_chat && a.chat_template_file.is_none() && said.chat_template.is_some() {
        parts.push("its chat template (--chat-template-file)".into());
    }
    if is_chat && a.system_prompt.is_none() && said.system.is_some() {
        parts.push("its system message (--system-prompt)".into());
    }
    let stated = said.sampling.stated().filter(|(flag, ..)| !given.contains(flag));
    parts.extend(stated.map(|(flag, _, value)| format!("{flag} {}", value.to_json(None))));
    if !parts.is_empty() {
        ui.note(&format!("as {} says: {}; flags override", path.display(), parts.join(", ")));
    }
}

/// From the randomness that the standard library takes from the operating system for its hash maps; below 2^53, so that
/// every reader of the JSON document keeps it exactly.
fn random_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish() >> 11
}

fn context_length(a: &Arguments, text: &BaseText) -> usize {
    match a.ctx_size {
        0 => text.n_context_trained.unwrap_or(DEFAULT_CONTEXT),
        n => n as usize,
    }
}

fn limits(a: &Arguments, n_context: usize, tokens: &[Vec<u32>]) -> Limits {
    let n_predict = usize::try_from(a.n_predict).ok();
    // Engines that reserve their context need no more than what can be used.
    let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
    let usable = n_predict.map_or(n_context, |n| n_context.min(longest.saturating_add(n).saturating_add(1)));
    Limits { n_predict, n_context: usable }
}

/// An adapter that changes nothing is an error, unless its scale says so.
fn check_effects(
    engine: &mut dyn Engine,
    tokens: &[u32],
    adapters: &[(PathBuf, f32)],
    on: &[(usize, f32)],
    ui: &Ui,
) -> Result<()> {
    if adapters.is_empty() {
        return Ok(());
    }
    for ((path, scale), changed) in adapters.iter().zip(effects(engine, tokens, on)?) {
        match (changed, *scale == 0.0) {
            (true, _) => {}
            (false, true) => ui.note(&format!("{} has the scale 0 and changes nothing", path.display())),
            (false, false) => {
                let message = "expected the adapter to change the base's logits, found them equal";
                return Err(Error::new(Code::NoEffect, message).file(path));
            }
        }
    }
    Ok(())
}

fn heading(prompt: &str, on: &[(usize, f32)], adapters: &[(PathBuf, f32)], first: bool) -> String {
    let mut out = String::new();
    let names: Vec<String> = on
        .iter()
        .map(|(i, scale)| {
            let name = escape(&adapters[*i].0.to_string_lossy());
            if *scale == 1.0 { name } else { format!("{name}:{scale}") }
        })
        .collect();
    let with = if names.is_empty() { "base alone".to_owned() } else { names.join(" + ") };
    let _ = writeln!(out, "{}> {} [{with}]", if first { "" } else { "\n" }, escape(prompt));
    out
}

/// What a model writes may hold what moves a terminal's cursor; files and pipes get it as it is.
fn shown(text: &str) -> String {
    if !std::io::stdout().is_terminal() {
        return text.to_owned();
    }
    let lines: Vec<String> =
        text.split('\n').map(|l| l.split('\t').map(escape).collect::<Vec<_>>().join("\t")).collect();
    lines.join("\n")
}

fn speeds(a: &Answer) -> String {
    let per_second = |n: usize, t: std::time::Duration| n as f64 / t.as_secs_f64().max(1e-9);
    let prompt = format!("prompt {} tokens, {:.1} tokens/s", a.n_prompt, per_second(a.n_prompt, a.prompt_time));
    // The first token comes with the prompt; one alone has no rate.
    match a.tokens.len() {
        n @ (0 | 1) => format!("{prompt}; answer {n} tokens"),
        n => format!("{prompt}; answer {n} tokens, {:.1} tokens/s", per_second(n - 1, a.decode_time)),
    }
}

fn document(prompt: &str, on: &[(usize, f32)], adapters: &[(PathBuf, f32)], a: &Answer) -> Value {
    let adapters: Vec<Value> =
        on.iter().map(|(i, scale)| json!({ "path": adapters[*i].0.to_string_lossy(), "scale": scale })).collect();
    json!({
        "prompt": prompt,
        "adapters": adapters,
        "text": a.text,
        "tokens": a.tokens,
        "stop": a.stop,
        "prompt_tokens": a.n_prompt,
        "prompt_seconds": a.prompt_time.as_secs_f64(),
        "answer_seconds": a.decode_time.as_secs_f64(),
    })
}
