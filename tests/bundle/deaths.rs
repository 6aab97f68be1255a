//! What is left when a command is killed, the disk is full, or the folder is read-only: the target is absent, old, or
//! complete and valid, and the next run leaves no temporary.
//!
//! PTPLUS_KILLS sets the number of kills (30 by default; 500 is what docs/BUNDLE.md reports).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ptplus::format::bundle::Container;
use ptplus::format::bundle::check::check;

use crate::commands::text;
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

#[test]
fn a_kill_leaves_the_old_the_new_or_nothing() {
    let n: usize = std::env::var("PTPLUS_KILLS").map_or(30, |v| v.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let jobs = jobs(folder);
    let mut whole = Vec::new();
    for job in &jobs {
        let start = Instant::now();
        assert!(command(job).status().unwrap().success(), "{:?}", job.args);
        whole.push((start.elapsed(), content(&folder.join(job.output)).unwrap()));
    }
    let mut state = 7u64;
    let (mut n_killed, mut n_absent, mut n_old, mut n_new) = (0, 0, 0, 0);
    for round in 0..n {
        let job = &jobs[round % jobs.len()];
        let (took, expected) = &whole[round % jobs.len()];
        let target = folder.join(job.output);
        // Half of the rounds begin without an output, half with one that is valid and another.
        let is_tar = job.output.ends_with(".tar");
        let old = if (round / jobs.len()).is_multiple_of(2) {
            let _ = std::fs::remove_dir_all(&target);
            let _ = std::fs::remove_file(&target);
            None
        } else {
            if !target.exists() {
                assert!(command(job).status().unwrap().success());
            }
            if target.is_file() && !is_tar {
                std::fs::write(&target, b"old").unwrap();
            }
            content(&target)
        };
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (state >> 40) as f64 / (1u64 << 24) as f64;
        let mut child = command(job).spawn().unwrap();
        // The clock chooses the moments, and every assertion below holds at any.
        std::thread::sleep(took.mul_f64(share * 1.1));
        n_killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let found = content(&target);
        match &found {
            None => n_absent += 1,
            Some(f) if f == expected => n_new += 1,
            f => {
                assert!(*f == old, "round {round}: {:?} is neither old nor new", job.args);
                n_old += 1;
            }
        }
        if job.output.starts_with("bundle") && found.is_some() {
            assert!(check(&Container::open(&target).unwrap(), None).pass(), "round {round}");
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
