//! `convert --jobs N DIR... -o OUTDIR`: many adapters, one base.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::hints::Given;
use super::job::{self, Mode, Prepared};
use super::progress::Unit;
use super::ui::{self, Status, Ui};
use super::usage;
use crate::error::{Error, ErrorKind, Result, escape};
use crate::format::bundle::place;
use crate::format::hub;
use crate::format::names::is_hidden;
use crate::pipeline::{Converted, Format, NOTHING_CHECKED};

/// Files that may be an adapter, or make their folder one.
const EXTENSIONS: [&str; 5] = ["safetensors", "gguf", "bin", "pt", "pth"];

/// One adapter and where it goes.
struct Task {
    adapter: PathBuf,
    output: PathBuf,
}

/// Converts every adapter that `paths` name or hold. The exit code is that of the worst failure, in the order of
/// [`ErrorKind::precedence`].
pub fn run(paths: &[&Path], folder: &Path, jobs: usize, prepared: &Prepared<'_>, ui: &Ui) -> Result<u8> {
    let (adapters, skipped) = adapters(paths)?;
    let tasks = tasks(adapters, folder, prepared.format)?;
    // No task may begin: the folder for their outputs would already be one too many.
    place::refuse_inside_bundle(&folder.join("any"))?;
    let is_new = !prepared.is_dry_run() && !folder.exists();
    if !prepared.is_dry_run() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create", e))?;
    }
    let n_done = AtomicUsize::new(0);
    let convert = |task: &Task| {
        let outcome = prepared.convert(&task.adapter, &task.output, ui, Mode::Batch);
        ui.progress(n_done.fetch_add(1, Ordering::Relaxed) as u64 + 1, tasks.len() as u64, Unit::Adapters);
        // A line as soon as there is one, whole: several threads print.
        ui.batch_line(document(task, &outcome, ui), &line(task, &outcome));
        outcome.err().map(|e| e.kind())
    };
    let failed: Vec<ErrorKind> = at_a_time(jobs, &tasks, convert).into_iter().flatten().collect();
    let exit = failed.iter().min_by_key(|k| k.precedence()).map_or(0, |k| k.exit_code());
    let (n, n_failed) = (tasks.len(), failed.len());
    let mut by_code: BTreeMap<u8, usize> = BTreeMap::new();
    failed.iter().for_each(|k| *by_code.entry(k.exit_code()).or_default() += 1);
    if is_new && n_failed == n {
        // Nothing was written: nothing is left, not even the folder.
        let _ = std::fs::remove_dir(folder);
    }
    if prepared.is_unchecked() {
        ui.note(NOTHING_CHECKED);
    }
    let text = format!(
        "{} {} of {n} adapters to {}{}{}\n",
        if prepared.is_dry_run() { "would convert" } else { "converted" },
        n - n_failed,
        escape(&folder.to_string_lossy()),
        if n_failed > 0 { format!(", {n_failed} failed") } else { String::new() },
        skipped_text(&skipped),
    );
    let status = if exit == 0 { Status::Ok } else { Status::Failed };
    let by_code: Map<String, Value> = by_code.into_iter().map(|(code, n)| (code.to_string(), n.into())).collect();
    let summary = json!({ "summary": {
        "output": folder.to_string_lossy(), "adapters": n, "converted": n - n_failed, "failed": n_failed,
        "skipped": skipped.len(),
        "skipped_paths": skipped.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>(), "failed_by_exit_code": by_code, "exit_code": exit,
    }});
    ui.batch_end(status, summary, &text);
    Ok(exit)
}

/// Does `work` on every task, `n` of them at a time; the results are in the order of the tasks. The threads that do so only
/// wait: what computes is the program's pool, whose size is that of `--threads`, whatever `n` is.
fn at_a_time<T: Sync, R: Send>(n: usize, tasks: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::default();
    let worker = || {
        while let (i, Some(task)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            (i, tasks.get(i))
        } {
            let result = work(task);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..n.min(tasks.len()) {
            // Where the system has no more threads, those that there are do the work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, worker);
        }
        worker();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Some of the names, so that nobody wonders what was left out.
fn skipped_text(skipped: &[PathBuf]) -> String {
    const SHOWN: usize = 3;
    if skipped.is_empty() {
        return String::new();
    }
    let name = |p: &PathBuf| escape(&p.file_name().unwrap_or(p.as_os_str()).to_string_lossy());
    let names: Vec<String> = skipped.iter().take(SHOWN).map(name).collect();
    let more = if skipped.len() > SHOWN { ", ..." } else { "" };
    format!("; {} that are no adapter were skipped: {}{more}", skipped.len(), names.join(", "))
}

/// What `paths` name: each an adapter, or a folder of adapters. Second, the entries of such folders that are none.
fn adapters(paths: &[&Path]) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let mut found = Vec::new();
    let mut skipped = Vec::new();
    for path in paths {
        // A path that does not exist is one that fails, with the others going on.
        if !path.is_dir() || is_adapter_folder(path) {
            found.push(path.to_path_buf());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, "cannot list the folder", e))?;
        let mut inside = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(path, "cannot list the folder", e))?.path();
            if is_hidden(&entry) {
                continue;
            }
            let is_adapter = if entry.is_dir() { has_weights(&entry) } else { has_known_extension(&entry) };
            if is_adapter { inside.push(entry) } else { skipped.push(entry) }
        }
        if inside.is_empty() {
            return Err(usage(
                "ADAPTER",
                format!("expected an adapter or a folder of adapters, found none in {path:?}"),
            ));
        }
        inside.sort();
        found.extend(inside);
    }
    skipped.sort();
    Ok((found, skipped))
}

/// Whether the folder itself is an adapter, as trainers name its files, or a trained model's: one with other names in it is
/// a folder of adapters.
fn is_adapter_folder(folder: &Path) -> bool {
    let is_named = |p: PathBuf| {
        let stem = p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        stem == "adapter_config" || (stem.starts_with("adapter_model") && has_known_extension(&p))
    };
    files(folder).any(is_named) || crate::import::source::is_adapter_folder(folder)
}

/// Whether a folder inside a folder of adapters is one, under whatever names.
fn has_weights(folder: &Path) -> bool {
    is_adapter_folder(folder) || files(folder).any(|p| has_known_extension(&p))
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| !is_hidden(p) && p.is_file())
}

fn has_known_extension(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e))
}

/// `OUTDIR/NAME.gguf` or `OUTDIR/NAME/`.
///
/// # Errors
///
/// [`Code::Usage`](crate::error::Code::Usage) where two adapters would get the same name; that is decided before anything is written.
fn tasks(adapters: Vec<PathBuf>, folder: &Path, format: Format) -> Result<Vec<Task>> {
    let mut taken: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut out = Vec::new();
    for adapter in adapters {
        let name = if adapter.is_dir() {
            adapter.canonicalize().ok().and_then(|p| {
                let of_model = hub::name_of_snapshot(&p).map(OsString::from);
                of_model.or_else(|| p.file_name().map(|n| n.to_owned()))
            })
        } else {
            adapter.file_stem().map(|n| n.to_owned())
        };
        let name = name.ok_or_else(|| usage("ADAPTER", format!("expected a path with a name, found {adapter:?}")))?;
        let mut name = name.to_string_lossy().into_owned();
        if format == Format::Gguf {
            name.push_str(".gguf");
        }
        // `...gguf` without its ending is the folder above.
        if !matches!(Path::new(&name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
            return Err(usage("ADAPTER", format!("expected a path with a name, found {adapter:?}")));
        }
        // Also on file systems that ignore case.
        if let Some(other) = taken.insert(name.to_lowercase(), adapter.clone()) {
            return Err(usage(
                "--output",
                format!(
                    "expected adapters with different names, found {other:?} and {adapter:?}, which would both become {name:?}"
                ),
            ));
        }
        out.push(Task { adapter, output: folder.join(name) });
    }
    Ok(out)
}

fn document(task: &Task, outcome: &Result<Converted>, ui: &Ui) -> (Status, Value) {
    let (status, mut document) = match outcome {
        Ok(done) => (Status::Ok, job::document(done, ui)),
        Err(e) => (Status::Failed, ui::error_fields(e, &Given::default())),
    };
    document["adapter"] = task.adapter.to_string_lossy().into();
    (status, document)
}

fn line(task: &Task, outcome: &Result<Converted>) -> String {
    let name = escape(&task.adapter.to_string_lossy());
    match outcome {
        Ok(done) => format!("ok      {name} -> {}: {} bytes\n", escape(&done.output.to_string_lossy()), done.len_bytes),
        Err(e) => {
            // The error mostly begins with the same path.
            let what = e.to_string();
            let what = what.strip_prefix(&*name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&what);
            let details: String = e.detail_lines().iter().map(|d| format!("          {}\n", escape(d))).collect();
            let hints: String = e.hint_lines().iter().map(|h| format!("        hint: {}\n", escape(h))).collect();
            format!("failed  {name}: {what}\n{details}{hints}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_beside_each_other_and_leave_the_threads_alone() {
        let threads = rayon::current_num_threads();
        // Each waits for the other: one at a time would never end.
        let both = std::sync::Barrier::new(2);
        let found = at_a_time(2, &[1, 2], |n| {
            both.wait();
            (n * 10, rayon::current_num_threads())
        });
        assert_eq!(found, [(10, threads), (20, threads)]);
        for jobs in [1, 3, 100] {
            let found = at_a_time(jobs, &(0..20).collect::<Vec<_>>(), |n| (*n, rayon::current_num_threads()));
            assert_eq!(found, (0..20).map(|n| (n, threads)).collect::<Vec<_>>());
        }
        assert!(at_a_time(3, &[0; 0], |n| *n).is_empty());
    }

    #[test]
    fn two_adapters_never_share_an_output() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let out = Path::new("out");
        assert!(tasks(paths(&["a/x.gguf", "b/X.gguf"]), out, Format::Safetensors).is_err());
        assert!(tasks(paths(&["a/x.gguf", "b/y.gguf"]), out, Format::Safetensors).is_ok());
        assert!(tasks(paths(&[".."]), out, Format::Gguf).is_ok(), "a folder is named by where it is");
    }
}
