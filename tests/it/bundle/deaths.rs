//! What is left when a command is killed, the disk is full, or the folder is read-only: the target is absent, old, or
//! complete and valid, and the next run leaves no temporary.
//!
//! The moments are counted, in bytes of an output and in changes of its folder, so that they are the same on every
//! machine. PTPLUS_KILLS sets their number (60 by default; 500 is what docs/BUNDLE.md reports).

use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use ptplus::format::bundle::Bundle;
use ptplus::format::bundle::check::check;

use super::commands::text;
use crate::common::{exit, model, ptplus, stderr};

/// A command that writes one output.
struct Job {
    output: &'static str,
    args: Vec<String>,
}

fn jobs(folder: &Path) -> Vec<Job> {
    let m = model("qwen3");
    let (adapter, base) = (text(&m.join("adapter")), text(&m.join("base")));
    let job = |output: &'static str, args: &[&str]| {
        let mut all: Vec<String> = args.iter().map(|s| (*s).to_owned()).collect();
        all.extend(["-o".into(), text(&folder.join(output)), "--force".into(), "-q".into()]);
        Job { output, args: all }
    };
    vec![
        job("bundle", &["pack", &adapter, "--base", &base]),
        job("bundle.tar", &["pack", &adapter, "--base", &base, "--outtype", "f16"]),
        job("converted.gguf", &["convert", &adapter, "--base", &base]),
        job("converted", &["convert", &adapter, "--to", "safetensors"]),
        job("quantized.gguf", &["quantize", &adapter, "q8_0", "--base", &base]),
    ]
}

/// Every file's bytes.
fn content(path: &Path) -> Option<Vec<(String, Vec<u8>)>> {
    if path.is_file() {
        return Some(vec![(String::new(), std::fs::read(path).unwrap())]);
    }
    let mut out = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).ok()? {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                open.push(entry);
            } else {
                out.push((text(entry.strip_prefix(path).unwrap()), std::fs::read(&entry).unwrap()));
            }
        }
    }
    out.sort();
    Some(out)
}

fn command(job: &Job) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_ptplus"));
    c.args(&job.args).stdout(Stdio::null()).stderr(Stdio::null());
    c
}

fn temporaries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| p.to_string_lossy().contains("ptplus-tmp")).collect()
}

/// What the system kills with for a file that is longer than it may be.
const SIGXFSZ: i32 = 25;

/// Runs the job with files of at most `n` kB, or half of that: shells count in blocks of different sizes.
fn with_short_files(job: &Job, n: usize) -> ExitStatus {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -c 0; ulimit -f \"$1\"; shift; exec \"$@\"", "sh", &n.to_string()]);
    shell
        .arg(env!("CARGO_BIN_EXE_ptplus"))
        .args(&job.args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

/// Runs the job, and kills it once its folder, or one in it, has changed `most` times. The result is how often it had.
fn up_to_change(folder: &Path, job: &Job, most: usize) -> (ExitStatus, usize) {
    use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
    let kinds =
        WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::MOVE | WatchFlags::DELETE | WatchFlags::CLOSE_WRITE;
    let watch = init(CreateFlags::CLOEXEC).unwrap();
    add_watch(&watch, folder, kinds).unwrap();
    let mut child = command(job).stdout(Stdio::piped()).spawn().unwrap();
    let ended = folder.join("ended");
    let mut its_output = child.stdout.take().unwrap();
    let mut n = 0;
    std::thread::scope(|scope| {
        // Its end, too, is a change.
        scope.spawn(|| {
            std::io::copy(&mut its_output, &mut std::io::sink()).unwrap();
            std::fs::write(&ended, "").unwrap();
        });
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut changes = Reader::new(&watch, &mut buffer);
        while n < most {
            let change = changes.next().unwrap();
            let name = change.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name == "ended" {
                break;
            }
            n += 1;
            if change.events().contains(ReadFlags::CREATE | ReadFlags::ISDIR) {
                // Gone again if the folder already has its other name.
                let _ = add_watch(&watch, folder.join(name), kinds);
            }
        }
        child.kill().unwrap();
    });
    std::fs::remove_file(ended).unwrap();
    (child.wait().unwrap(), n)
}

fn size_of_largest(files: &[(String, Vec<u8>)]) -> usize {
    files.iter().map(|(_, bytes)| bytes.len()).max().unwrap()
}

#[test]
fn a_kill_leaves_the_old_the_new_or_nothing() {
    let n: usize = std::env::var("PTPLUS_KILLS").map_or(60, |v| v.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let jobs = jobs(folder);
    let mut whole = Vec::new();
    for job in &jobs {
        let (ended, n_changes) = up_to_change(folder, job, usize::MAX);
        let target = folder.join(job.output);
        whole.push((n_changes, content(&target).unwrap_or_else(|| panic!("{ended}: {:?}", job.args))));
        assert!(n_changes > 4, "{n_changes} changes: {:?}", job.args);
    }
    let (mut n_killed, mut n_absent, mut n_old, mut n_new) = (0, 0, 0, 0);
    for round in 0..n {
        // Rounds for each job: without an output or with one that is valid and another, by bytes or by changes; and of
        // these so many moments, spread evenly.
        let (job, kind) = (&jobs[round % jobs.len()], round / jobs.len());
        let (begins_without, by_bytes) = (kind.is_multiple_of(2), (kind / 2).is_multiple_of(2));
        let (step, n_steps) = (kind / 4, n.div_ceil(4 * jobs.len()));
        let (n_changes, expected) = &whole[round % jobs.len()];
        let target = folder.join(job.output);
        let old = if begins_without {
            let _ = std::fs::remove_dir_all(&target);
            let _ = std::fs::remove_file(&target);
            None
        } else {
            if !target.exists() {
                assert!(command(job).status().unwrap().success());
            }
            if target.is_file() && !job.output.ends_with(".tar") {
                std::fs::write(&target, b"old").unwrap();
            }
            content(&target)
        };
        let found = if by_bytes {
            let ended = with_short_files(job, size_of_largest(expected) / 1024 * step / n_steps);
            assert_eq!(ended.signal(), Some(SIGXFSZ), "round {round}: {:?}: {ended}", job.args);
            n_killed += 1;
            let found = content(&target);
            assert!(found == old, "round {round}: {:?} was killed, and its output is new", job.args);
            found
        } else {
            let (ended, _) = up_to_change(folder, job, 1 + n_changes * step / n_steps);
            n_killed += usize::from(ended.signal().is_some());
            content(&target)
        };
        match &found {
            None => n_absent += 1,
            Some(f) if f == expected => n_new += 1,
            f => {
                assert!(*f == old, "round {round}: {:?} is neither old nor new", job.args);
                n_old += 1;
            }
        }
        if job.output.starts_with("bundle") && found.is_some() {
            assert!(check(&Bundle::open(&target).unwrap(), None).pass(), "round {round}");
        }
    }
    for job in &jobs {
        assert!(command(job).status().unwrap().success());
    }
    assert_eq!(temporaries(folder), Vec::<PathBuf>::new());
    println!(
        "{n} rounds, {n_killed} killed while running: target absent {n_absent}, old {n_old}, complete {n_new}; no temporary stayed"
    );
}

/// A small disk.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> SmallDisk {
        std::fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).status();
        assert!(done.is_ok_and(|s| s.success()), "a small disk");
        SmallDisk(at.to_owned())
    }

    fn make_read_only(&self) {
        let done = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "mounts small disks, which takes root"]
fn a_full_disk_and_a_read_only_one_leave_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let disk_path = dir.path().join("disk");
    // Outputs take 200 to 400 kB; some sizes end within the adapter, some within what follows it.
    for size in ["48k", "160k", "304k", "416k", "424k"] {
        let disk = SmallDisk::mount(&disk_path, size);
        for job in jobs(&disk_path) {
            let out = ptplus(&job.args);
            let target = disk_path.join(job.output);
            if exit(&out) == 0 {
                assert!(target.exists());
            } else {
                assert_eq!(exit(&out), 1, "{size}: {:?}: {}", job.args, stderr(&out));
                assert!(!target.exists(), "{size}: {:?}", job.args);
            }
            assert_eq!(temporaries(&disk_path), Vec::<PathBuf>::new(), "{size}: {:?}", job.args);
            // An old output stays where a new one does not fit.
            let _ = std::fs::remove_dir_all(&target);
            let _ = std::fs::remove_file(&target);
            if target.extension().is_some() {
                std::fs::write(&target, b"old").unwrap();
                let out = ptplus(&job.args);
                assert!(exit(&out) == 0 || std::fs::read(&target).unwrap() == b"old", "{size}: {:?}", job.args);
                std::fs::remove_file(&target).unwrap();
            }
        }
        disk.make_read_only();
        for job in jobs(&disk_path) {
            let out = ptplus(&job.args);
            assert_eq!(exit(&out), 1, "{:?}: {}", job.args, stderr(&out));
            assert!(!disk_path.join(job.output).exists());
        }
    }
}
