//! Outputs of processes that are killed or interrupted.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ptplus::error::Code;
use ptplus::format::output::discard_all;
use ptplus::format::{OutputFile, OutputFolder, Overwrite, Replace};

const FOLDER: &str = "PTPLUS_TEST_FOLDER";
const INTERRUPT: &str = "PTPLUS_TEST_INTERRUPT";

/// Runs [`child`] in a process of its own and waits until it has said that its outputs are open.
fn start_child(folder: &Path, interrupt: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "outputs::child", "--ignored", "--nocapture"]).env(FOLDER, folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    if interrupt {
        command.env(INTERRUPT, "1");
    }
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("outputs are open") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child failed");
    }
    child.stdout = Some(output.into_inner()); // stays open, since the child prints more
    child
}

#[test]
#[ignore = "run by the other tests in a process of its own"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let file = OutputFile::create(&folder.join("out.gguf"), Overwrite::Never, &[]).unwrap();
    file.write_all_at(0, b"half").unwrap();
    let output_folder = OutputFolder::create(&folder.join("bundle"), Replace::Nothing, &[]).unwrap();
    output_folder.file("reports/a.json").unwrap().write_all_at(0, b"{}").unwrap();
    println!("outputs are open");
    if std::env::var_os(INTERRUPT).is_some() {
        discard_all();
        let late = OutputFile::create(&folder.join("late"), Overwrite::Never, &[]);
        assert_eq!(late.unwrap_err().code(), Code::Interrupted);
        assert_eq!(file.commit().unwrap_err().code(), Code::Interrupted);
        assert_eq!(output_folder.commit().unwrap_err().code(), Code::Interrupted);
    } else {
        // Until it is killed, or the test that should do so has gone.
        let _ = std::io::stdin().read_line(&mut String::new());
    }
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn after_a_kill_the_next_run_tidies_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start_child(dir.path(), false);
    let file = dir.path().join("out.gguf");
    let folder = dir.path().join("bundle");

    // A second run beside the first leaves the first one's temporaries alone.
    drop(OutputFile::create(&file, Overwrite::Never, &[]).unwrap());
    drop(OutputFolder::create(&folder, Replace::Nothing, &[]).unwrap());
    assert_eq!(names(dir.path()).len(), 2, "{:?}", names(dir.path()));

    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(dir.path()).len(), 2, "a killed process removes nothing");

    let out = OutputFile::create(&file, Overwrite::Never, &[]).unwrap();
    out.write_all_at(0, b"whole").unwrap();
    out.commit().unwrap();
    OutputFolder::create(&folder, Replace::Nothing, &[]).unwrap().commit().unwrap();
    let mut left = names(dir.path());
    left.sort();
    assert_eq!(left, ["bundle", "out.gguf"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"whole");
}

#[test]
fn an_interrupted_process_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start_child(dir.path(), true);
    assert!(child.wait().unwrap().success());
    assert_eq!(names(dir.path()), [""; 0]);
}
