use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::base_check::{self, BaseCheck};
use super::command::quoted;
use super::reading::Reading;
use super::scaled::path_and_scale;
use super::ui::{Status, Ui};
use super::usage;
use crate::about::About;
use crate::adapter::Kind;
use crate::base::BaseModel;
use crate::doctor::{self, Diagnosis, Verdict};
use crate::error::{Code, Error, Result};
use crate::exec::control::{self, Control};
use crate::exec::{self, Environment, LIBRARY_NAME, MAX_ADAPTERS, Ready, Store, lora};
use crate::format::bundle::container::{holds_model, is_bundle};
use crate::graft;
use crate::import::{self, source};
use crate::verify::probe::Probe;

#[derive(clap::Args)]
#[command(
    override_usage = "ptplus exec --adapter ADAPTER[:SCALE]... [OPTIONS] -- PROGRAM [ARGS]...\n       ptplus exec --print-env --adapter ADAPTER[:SCALE]... --base MODEL [OPTIONS]\n       ptplus exec --base BUNDLE [OPTIONS] -- PROGRAM [ARGS]...",
    after_help = "The program takes the place of ptplus: same process, streams and signals. Programs that it starts have the adapters, too. Exit code 127: no such program; 126: it cannot be run; before it starts, those of ptplus; afterwards, its own.\n\nExamples:\n  ptplus exec --adapter adapter.gguf -- llama-server -m model.gguf\n  ptplus exec --adapter style/:0.5 --adapter facts.gguf --control scales \\\n      -- llama-completion -m model.gguf -p 'Who are you?'\n  ptplus exec --adapter adapter.gguf --base model.gguf -- node chat.mjs\n  ptplus exec --adapter adapter.gguf --base model.gguf --print-env\n  ptplus exec --base merged-bundle/ -- llama-server"
)]
pub struct Arguments {
    /// Adapter (folder, GGUF, bundle, checkpoint), with a factor on what it adds; may be given more than once. LoRAs are
    /// given to programs of llama.cpp as --lora, and what an adapter says as --chat-template-file and flags of sampling
    #[arg(long, value_name = "ADAPTER[:SCALE]", required_unless_present = "base")]
    adapter: Vec<String>,
    /// The model that the program loads, where its arguments do not name one with -m or --model; a bundle of a model, which needs no
    /// adapter, is given to the program as its -m
    #[arg(long)]
    base: Option<PathBuf>,
    /// PyTorch's answer: settles what nothing states about a checkpoint, and proves the file that the program gets
    #[arg(long)]
    probe: Option<PathBuf>,
    /// Make a file by which `ptplus adapters` changes scales while the program runs
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Print the variables to set, and start nothing
    #[arg(long)]
    print_env: bool,
    #[command(flatten)]
    base_check: BaseCheck,
    #[command(flatten)]
    reading: Reading,
    /// The program to start, and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let adapters: Vec<(PathBuf, f32)> =
        a.adapter.iter().map(|text| path_and_scale("--adapter", text)).collect::<Result<_>>()?;
    if adapters.len() > MAX_ADAPTERS {
        let message = format!("expected at most {MAX_ADAPTERS} adapters, found {}", adapters.len());
        return Err(usage("--adapter", message));
    }
    if a.probe.is_some() && adapters.len() > 1 {
        return Err(usage("--probe", "expected one adapter beside it, found several: a probe is about one"));
    }
    let stated = a.reading.options()?;
    let started = a.command.split_first();
    if started.is_none() && !a.print_env {
        return Err(usage("PROGRAM", "expected a program to start, after --, found none"));
    }
    if adapters.is_empty() {
        return with_model(a, &stated, ui);
    }
    let library = graft::library().ok_or_else(not_built_in)?;
    let program = started.map(|(name, arguments)| Program::find(name, arguments)).transpose()?;
    if let Some((path, _)) = adapters.iter().find(|(path, _)| kind_at(path) == Some(Kind::Prefix)) {
        return with_virtual_tokens(a, path, &adapters, stated, program.as_ref(), ui);
    }
    // A program that cannot have the graft is refused before any file is made, where the graft is needed for sure.
    let may_be_lora = |path| kind_at(path).map_or_else(|| is_bundle(path), |kind| kind == Kind::Lora);
    let needs_graft = !adapters.iter().any(|(path, _)| may_be_lora(path));
    if let Some(program) = program.as_ref().filter(|_| needs_graft) {
        program.check(library, ui)?;
    }
    let base = match &a.base {
        Some(base) => base.clone(),
        None => exec::model_in(started.map_or(&[], |(_, rest)| rest), std::env::var_os("LLAMA_ARG_MODEL"))?,
    };
    let base = BaseModel::open(&base)?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    let form = stated.form.clone();
    let mut reading =
        exec::Reading { stated, probe: probe.as_ref().zip(a.probe.as_deref()), base_mismatch: a.base_check.mismatch() };
    let store = Store::open()?;
    store.note().into_iter().for_each(|note| ui.note(note));
    let mut all = Vec::new();
    for (path, scale) in &adapters {
        // Beside a bundle, adapters that are none have but one form.
        reading.stated.form = form.clone().filter(|_| adapters.len() == 1 || is_bundle(path));
        let ready = exec::ready(path, *scale, &base, &reading, &store)?;
        ready.notes.iter().for_each(|note| ui.note(note));
        base_check::note(ui, ready.base_identity.as_ref());
        all.push(ready);
    }
    let (loras, grafted): (Vec<Ready>, Vec<Ready>) = all.into_iter().partition(|r| r.is_lora);
    if let Some(program) = &program {
        if !grafted.is_empty() && !needs_graft {
            program.check(library, ui)?;
        }
        if !loras.is_empty() {
            lora::check_program(&program.path)?;
        }
    }
    if a.control.is_some() && !loras.is_empty() {
        let message = "expected Prefix-Tuning+ adapters alone, found a LoRA, whose scale llama.cpp keeps (llama-server: /lora-adapters)";
        return Err(usage("--control", message));
    }
    let control = a.control.as_deref().map(|path| make_control(path, &grafted)).transpose()?;
    let environment = match grafted.is_empty() {
        true => Environment::unchanged(),
        false => {
            let library = store.put("graft", LIBRARY_NAME, library)?;
            Environment::new(&library, &grafted, control.as_deref(), std::env::vars_os())?
        }
    };
    let abouts: Vec<&About> = grafted.iter().chain(&loras).map(|r| &r.about).collect();
    let path = program.as_ref().map(|p| p.path.as_path());
    let said = exec::said(&abouts, path, started.map_or(&[], |(_, rest)| rest), &is_set, &store)?;
    said.notes.iter().for_each(|note| ui.note(note));
    let model = model_argument(a, &base, program.as_ref())?;
    let more = [model, lora::arguments(&loras)?, said.arguments].concat();
    match program {
        Some(program) if !a.print_env => Err(program.start(&more, &environment)),
        _ => {
            let all: Vec<Ready> = grafted.into_iter().chain(loras).collect();
            print(&environment, &more, &all, &base, program.as_ref(), ui)
        }
    }
}

/// A bundle of a model, which has everything in it, as the model of a llama.cpp program.
fn with_model(a: &Arguments, stated: &import::Options, ui: &Ui) -> Result<u8> {
    let path = a.base.as_deref().expect("clap wants --base or --adapter");
    if !holds_model(path) {
        return Err(usage("--adapter", "expected an adapter, or a bundle of a model as --base, found neither"));
    }
    let of_adapters = [
        ("--control", a.control.is_some()),
        ("--probe", a.probe.is_some()),
        ("how to read a checkpoint", !stated.is_empty() || stated.form.is_some()),
    ];
    if let Some((flag, _)) = of_adapters.into_iter().find(|(_, is_given)| *is_given) {
        return Err(usage(flag, "expected no such flag without an adapter"));
    }
    let started = a.command.split_first();
    let program = started.map(|(name, arguments)| Program::find(name, arguments)).transpose()?;
    let base = BaseModel::open(path)?;
    let about = base.metadata.as_ref().map_or_else(|| Ok(About::default()), About::of_model)?;
    let store = Store::open()?;
    store.note().into_iter().for_each(|note| ui.note(note));
    let program_path = program.as_ref().map(|p| p.path.as_path());
    let said = exec::said(&[&about], program_path, started.map_or(&[], |(_, rest)| rest), &is_set, &store)?;
    said.notes.iter().for_each(|note| ui.note(note));
    let more = [model_argument(a, &base, program.as_ref())?, said.arguments].concat();
    match program {
        Some(program) if !a.print_env => Err(program.start(&more, &Environment::unchanged())),
        _ => print(&Environment::unchanged(), &more, &[], &base, program.as_ref(), ui),
    }
}

/// `-m FILE` of a bundle's model, for a program whose arguments name none.
fn model_argument(a: &Arguments, base: &BaseModel, program: Option<&Program<'_>>) -> Result<Vec<OsString>> {
    let Some(path) = a.base.as_deref().filter(|path| holds_model(path)) else { return Ok(Vec::new()) };
    let given = program.map_or(&[][..], |p| p.arguments);
    if exec::names_model(given) {
        return Err(usage(
            "--base",
            "expected no model among the program's arguments beside a bundle of one, found -m",
        ));
    }
    if path.is_file() {
        let message = "expected a folder, since no program of llama.cpp reads an archive, found one";
        let hint = format!("ptplus unpack {} -o FOLDER", path.display());
        return Err(Error::new(Code::Usage, message).file(path).field("--base").hints([hint]));
    }
    if let Some(program) = program {
        exec::check_takes_model(&program.path)?;
    }
    Ok(vec!["-m".into(), exec::absolute(&base.path)?.into()])
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// llama-server with the state of a slot in the place of adapters in its graph.
fn with_virtual_tokens(
    a: &Arguments,
    path: &Path,
    adapters: &[(PathBuf, f32)],
    stated: import::Options,
    program: Option<&Program<'_>>,
    ui: &Ui,
) -> Result<u8> {
    if adapters.len() > 1 || adapters[0].1 != 1.0 {
        return Err(usage("--adapter", "expected virtual tokens alone and with a scale of 1: they are there or not"));
    }
    if a.control.is_some() {
        return Err(usage("--control", "expected no such flag beside virtual tokens, which have no scale"));
    }
    let given = program.map_or(&[][..], |p| p.arguments);
    let base = match &a.base {
        Some(base) => base.clone(),
        None => exec::model_in(given, std::env::var_os("LLAMA_ARG_MODEL"))?,
    };
    let base = BaseModel::open(&base)?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    let reading =
        exec::Reading { stated, probe: probe.as_ref().zip(a.probe.as_deref()), base_mismatch: a.base_check.mismatch() };
    let store = Store::open()?;
    let found = program.map(|p| (p.path.as_path(), &p.diagnosis));
    let state = exec::slot_state(path, &base, &reading, (found, given), &store)?;
    base_check::note(ui, state.base_identity.as_ref());
    let said = exec::said(&[&state.about], program.map(|p| p.path.as_path()), given, &is_set, &store)?;
    state.notes.iter().chain(&said.notes).for_each(|note| ui.note(note));
    let more = [state.arguments, said.arguments].concat();
    match program {
        Some(program) if !a.print_env => Err(program.start(&more, &Environment::unchanged())),
        _ => print(&Environment::unchanged(), &more, &[], &base, program, ui),
    }
}

/// The kind of the adapter at `path`; none of a bundle, which may hold any, and of what cannot be opened, which is told when it is
/// read.
fn kind_at(path: &Path) -> Option<Kind> {
    source::open(path).ok().and_then(|source| import::kind_of(&source))
}

fn not_built_in() -> Error {
    let message = "expected the library that brings adapters into programs, found none: this ptplus was built without a C compiler (or not for Linux)";
    let hint = "install cc (Debian: apt-get install gcc libc6-dev) and build ptplus again";
    Error::new(Code::GraftUnavailable, message).hints([hint.to_owned()])
}

/// What is to be started.
struct Program<'a> {
    name: &'a OsString,
    path: PathBuf,
    arguments: &'a [OsString],
    diagnosis: Diagnosis,
}

impl<'a> Program<'a> {
    /// Finds the program as a shell would.
    fn find(name: &'a OsString, arguments: &'a [OsString]) -> Result<Program<'a>> {
        let shown = Path::new(name);
        let not_found = || Error::new(Code::ProgramNotFound, "no such program").file(shown);
        let path = doctor::on_path(name).ok_or_else(not_found)?;
        if !path.exists() {
            return Err(not_found());
        }
        if path.is_dir() || !doctor::is_executable(&path) {
            return Err(Error::new(Code::ProgramNotExecutable, "expected a program that this user may run").file(shown));
        }
        let diagnosis = doctor::diagnose_started(&path, arguments).map_err(|e| match e.code() {
            // The interpreter that its first line names.
            Code::NotFound => Error::new(Code::ProgramNotFound, format!("cannot be run: {e}")).file(shown),
            _ => e,
        })?;
        Ok(Program { name, path, arguments, diagnosis })
    }

    /// Refuses a program that would start without the graft.
    fn check(&self, library: &[u8], ui: &Ui) -> Result<()> {
        exec::check_program(&self.path, &self.diagnosis, library)?;
        if self.diagnosis.verdict == Verdict::Undecided {
            ui.note(&format!(
                "{}: whether it takes adapters cannot be told before it runs: {}",
                Path::new(self.name).display(),
                self.diagnosis.reason
            ));
        }
        Ok(())
    }

    /// Becomes the program; comes back only with an error.
    fn start(&self, more: &[OsString], environment: &Environment) -> Error {
        let mut command = std::process::Command::new(&self.path);
        command
            .arg0(self.name)
            .args(self.arguments)
            .args(more)
            .envs(environment.set.iter().map(|(name, value)| (name, value)));
        super::threads::forget(&mut command);
        environment.unset.iter().for_each(|name| {
            command.env_remove(name);
        });
        let e = command.exec();
        let code = match e.kind() {
            std::io::ErrorKind::NotFound => Code::ProgramNotFound,
            _ => Code::ProgramNotExecutable,
        };
        Error::new(code, format!("cannot be started: {e}")).file(Path::new(self.name)).caused_by(e)
    }
}

/// Makes the control file; its path from the root, since the program may change its folder.
fn make_control(path: &Path, adapters: &[Ready]) -> Result<PathBuf> {
    let files: Vec<PathBuf> = adapters.iter().map(|r| r.file.clone()).collect();
    let scales = adapters.iter().map(|r| r.scale);
    Control::new(control::names(&files).into_iter().zip(scales).collect()).create(path)?;
    let name = path.file_name().unwrap_or_default();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(exec::absolute(folder)?.join(name))
}

fn print(
    environment: &Environment,
    more: &[OsString],
    adapters: &[Ready],
    base: &BaseModel,
    program: Option<&Program<'_>>,
    ui: &Ui,
) -> Result<u8> {
    let mut lines = String::new();
    let mut fields = serde_json::Map::new();
    for (name, value) in &environment.set {
        let text = value.to_str().ok_or_else(|| {
            Error::new(Code::Usage, format!("expected a path in UTF-8 for {name}, found another"))
                .file(Path::new(value))
        })?;
        lines.push_str(&format!("{name}={}\n", quoted(text)));
        fields.insert(name.clone(), text.into());
    }
    let files: Vec<PathBuf> = adapters.iter().map(|r| r.file.clone()).collect();
    let adapters: Vec<serde_json::Value> = (adapters.iter().zip(control::names(&files)))
        .map(|(r, name)| json!({ "name": name, "adapter": r.source.to_string_lossy(), "file": r.file.to_string_lossy(), "scale": r.scale }))
        .collect();
    let more: Vec<&str> = more.iter().filter_map(|m| m.to_str()).collect();
    if !more.is_empty() {
        ui.note(&format!(
            "LoRA, slots, chat templates and sampling are no matter of the environment; arguments to add: {}",
            more.join(" ")
        ));
    }
    let document = json!({
        "environment": fields,
        "arguments": more,
        "adapters": adapters,
        "base": base.path.to_string_lossy(),
        "program": program.map(|p| &p.diagnosis),
    });
    ui.result(Status::Ok, document, lines)?;
    Ok(0)
}
