use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser as _;
use serde_json::{Value, json};

use super::ui::{Status, Ui};
use super::{Cli, Global, dispatch};
use crate::error::{Code, Error, Result};
use crate::format::bundle::place;

#[derive(clap::Args)]
#[command(
    after_help = "The model and the adapter are small ones made for the project's tests, and are built into the program.\n\nExamples:\n  ptplus demo\n  ptplus demo kept/"
)]
pub struct Arguments {
    /// Keep the files in this new folder
    folder: Option<PathBuf>,
}

/// A fixture of the tests: base, adapter and what PyTorch computed.
const FILES: [(&str, &[u8]); 5] = [
    ("base/config.json", include_bytes!("../../fixtures/models/smollm3/base/config.json")),
    ("base/model.safetensors", include_bytes!("../../fixtures/models/smollm3/base/model.safetensors")),
    ("adapter/adapter_config.json", include_bytes!("../../fixtures/models/smollm3/adapter/adapter_config.json")),
    (
        "adapter/adapter_model.safetensors",
        include_bytes!("../../fixtures/models/smollm3/adapter/adapter_model.safetensors"),
    ),
    ("probe.safetensors", include_bytes!("../../fixtures/models/smollm3/probe.safetensors")),
];

/// The main job, step by step: each is a command that works the same from a shell in that folder.
const STEPS: [(&str, &str); 4] = [
    ("Look at the adapter", "ptplus inspect adapter"),
    (
        "Convert it to GGUF; the output appears only after it agrees with PyTorch",
        "ptplus convert adapter -o adapter.gguf --base base --probe probe.safetensors",
    ),
    ("Verify the GGUF by itself", "ptplus verify adapter.gguf --base base --probe probe.safetensors"),
    ("Convert it back and compare tensor by tensor", "ptplus convert adapter.gguf -o back"),
];

pub fn run(a: &Arguments, global: Global, ui: &Ui) -> Result<u8> {
    let temporary =
        tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "cannot make a temporary folder", e))?;
    let folder = match &a.folder {
        Some(folder) => {
            place::refuse_inside_bundle(folder)?;
            std::fs::create_dir(folder).map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    Error::new(Code::OutputExists, "expected a new folder, found an existing one").file(folder)
                }
                _ => Error::io(folder, "cannot create", e),
            })?;
            folder.as_path()
        }
        None => temporary.path(),
    };
    for (name, bytes) in FILES {
        write(&folder.join(name), bytes)?;
    }
    std::env::set_current_dir(folder).map_err(|e| Error::io(folder, "cannot enter", e))?;
    let last = ("", "ptplus verify back --against adapter");
    let steps = STEPS.into_iter().chain([last]);
    if global.json {
        return document(steps, a.folder.as_deref(), global.quiet, ui);
    }
    for (what, command) in steps {
        if !what.is_empty() {
            ui.heading(&format!("\n# {what}\n"))?;
        }
        ui.heading(&format!("$ {command}\n"))?;
        let cli = Cli::try_parse_from(command.split(' ')).map_err(|e| Error::new(Code::Usage, e.to_string()))?;
        let step = Ui::new(cli.command.name(), false, global.quiet, global.verbose);
        let code = dispatch(cli, &step)?;
        if code != 0 {
            return Ok(code);
        }
    }
    ui.heading(
        "\n# With your own adapter\n\
         $ ptplus validate ADAPTER --base MODEL\n\
         $ ptplus convert ADAPTER -o adapter.gguf --base MODEL --probe PROBE\n\
         ADAPTER  a folder with adapter_config.json and adapter_model.safetensors, or a GGUF adapter\n\
         MODEL    the base: a Hugging Face folder or a GGUF file\n\
         PROBE    what PyTorch computed, one safetensors file (docs/FORMAT.md); optional, but without it nothing is proved\n",
    )?;
    if let Some(folder) = &a.folder {
        ui.note(&format!("the files are in {}", folder.display()));
    }
    Ok(0)
}

/// The steps as processes of their own, since each prints a document, and the demo prints one.
fn document(
    steps: impl Iterator<Item = (&'static str, &'static str)>,
    folder: Option<&Path>,
    quiet: bool,
    ui: &Ui,
) -> Result<u8> {
    let cannot_start = |e| Error::io(Path::new("ptplus"), "cannot start itself", e);
    let program = std::env::current_exe().map_err(cannot_start)?;
    let mut done = Vec::new();
    let mut title = "";
    let mut exit = 0;
    for (what, command) in steps {
        // A command without a title belongs to the one before it.
        title = if what.is_empty() { title } else { what };
        let out = Command::new(&program)
            .args(command.split(' ').skip(1))
            .arg("--json")
            .args(quiet.then_some("--quiet"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(cannot_start)?;
        exit = out.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        done.push(json!({
            "title": title,
            "command": command,
            "status": if exit == 0 { "ok" } else { "failed" },
            "exit_code": exit,
            "result": serde_json::from_slice::<Value>(&out.stdout).unwrap_or(Value::Null),
        }));
        if exit != 0 {
            break;
        }
    }
    let folder = folder.map(|f| f.to_string_lossy());
    ui.result(if exit == 0 { Status::Ok } else { Status::Failed }, json!({ "folder": folder, "steps": done }), "")?;
    Ok(exit)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "cannot create", e))?;
    std::fs::write(path, bytes).map_err(|e| Error::io(path, "cannot write", e))
}
