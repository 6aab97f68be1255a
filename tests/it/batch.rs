//! Many adapters against one base.

use std::path::Path;

use crate::common::{RawAdapter, exit, model, ptplus, stderr, stdout};
use serde_json::Value;

fn args(folder: &Path, out: &Path) -> Vec<String> {
    let base = text(&model("llama-mha").join("base"));
    let args = ["convert", "--jobs", "4", &text(folder), "-o", &text(out), "--to", "gguf", "--base", &base];
    args.map(str::to_owned).to_vec()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// `n` adapters that differ, in `folder/0007` and so on.
fn many(folder: &Path, n: usize) {
    let original = RawAdapter::fixture("llama-mha");
    for i in 0..n {
        let mut adapter = original.clone();
        adapter.config["memory_scale"] = (1.0 + i as f64 / 64.0).into();
        adapter.write(&folder.join(format!("{i:04}")));
    }
}

#[test]
fn fifty_adapters_become_what_each_becomes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("adapters"), dir.path().join("out"));
    many(&from, 50);
    let out = ptplus(args(&from, &to));
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let shown = stdout(&out);
    assert_eq!(shown.lines().filter(|l| l.starts_with("ok ")).count(), 50);
    assert!(shown.lines().last().unwrap().starts_with("converted 50 of 50 adapters to "), "{shown}");
    for i in [0, 7, 49] {
        let alone = dir.path().join(format!("alone-{i}.gguf"));
        let name = format!("{i:04}");
        let base = text(&model("llama-mha").join("base"));
        let out = ptplus(["convert", &text(&from.join(&name)), "-o", &text(&alone), "--to", "gguf", "--base", &base]);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let together = to.join(format!("{name}.gguf"));
        assert!(std::fs::read(&alone).unwrap() == std::fs::read(together).unwrap(), "{i}");
    }
}

#[test]
fn an_architecture_in_place_of_a_base_is_noted_once() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("adapters"), dir.path().join("out"));
    many(&from, 2);
    let out = ptplus(["convert", "--jobs", "1", &text(&from), "-o", &text(&to), "--to", "gguf", "--arch", "llama"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert_eq!(stderr(&out).matches("nothing was checked").count(), 1, "{}", stderr(&out));
}

#[test]
fn the_others_go_on_when_one_fails_and_the_worst_decides() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("adapters"), dir.path().join("out"));
    many(&from, 3);
    let original = RawAdapter::fixture("llama-mha");
    let broken = |name: &str, change: &dyn Fn(&mut RawAdapter)| {
        let mut adapter = original.clone();
        change(&mut adapter);
        adapter.write(&from.join(name));
    };
    // Exit codes 4 (does not fit), 7 (open convention), 3 (NaN).
    broken("misfit", &|a| a.config["num_layers"] = 99.into());
    let run = |to: &Path| {
        let mut args = args(&from, to);
        args.push("--json".into());
        let out = ptplus(args);
        (exit(&out), lines(&stdout(&out)))
    };
    let (code, documents) = run(&to);
    assert_eq!(code, 4);
    assert_eq!(documents.len(), 5);
    let summary = &documents[4]["summary"];
    assert_eq!((summary["converted"].as_u64(), summary["failed"].as_u64()), (Some(3), Some(1)));
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 3);

    broken("open", &|a| {
        a.config.as_object_mut().unwrap().remove("query_tap");
    });
    assert_eq!(run(&dir.path().join("out2")).0, 7, "7 before 4");
    broken("nan", &|a| a.tensors.values_mut().next().unwrap().values[5] = f32::NAN);
    std::fs::write(from.join("notes.txt"), "no adapter").unwrap();
    let (code, documents) = run(&dir.path().join("out3"));
    assert_eq!(code, 3, "3 before 7");
    let summary = &documents.last().unwrap()["summary"];
    assert_eq!(summary["failed_by_exit_code"], serde_json::json!({"3": 1, "4": 1, "7": 1}));
    assert_eq!(summary["skipped"], 1);
    let failed: Vec<_> = documents.iter().filter_map(|d| d["error"]["code"].as_str()).collect();
    assert_eq!(failed.len(), 3);
    // The outputs of the first run are there already: a usage error comes first of all.
    assert_eq!(run(&to).0, 2);
}

#[test]
fn what_cannot_be_told_apart_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    many(dir.path(), 1);
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    // Without its ending a name for the folder above.
    let above = text(&dir.path().join("...safetensors"));
    std::fs::copy(dir.path().join("0000/adapter_model.safetensors"), &above).unwrap();
    let base = text(&model("llama-mha").join("base"));
    let (one, to) = (text(&dir.path().join("0000")), text(&dir.path().join("out")));
    let owned = |args: &[&str]| args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
    for args in [
        owned(&["convert", &one, &one, "-o", &to, "--to", "gguf", "--base", &base]),
        owned(&["convert", "--jobs", "2", &one, "-o", &to, "--base", &base]),
        owned(&["convert", "--jobs", "0", &one, "-o", &to, "--to", "gguf", "--base", &base]),
        args(&dir.path().join("empty"), Path::new(&to)),
        owned(&["convert", "--jobs", "1", &above, "-o", &to, "--to", "safetensors", "--base", &base]),
    ] {
        let out = ptplus(&args);
        assert_eq!(exit(&out), 2, "{args:?}: {}", stderr(&out));
        assert!(!Path::new(&to).exists(), "{args:?}");
    }
}
