//! `ptplus exec` and `ptplus adapters`, with shells and small C programs in llama.cpp's place: what the program gets, and who
//! is refused before it starts. That the graft computes the right numbers is tested with it.
#![cfg(target_os = "linux")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{RawAdapter, exit, model, stderr, stdout};
use serde_json::Value;

/// A folder for caches, a copy of an adapter as GGUF, and a base.
struct Place {
    folder: tempfile::TempDir,
    base: PathBuf,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap(), base: crate::common::base_gguf("llama-gqa") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ptplus"));
        command.args(arguments).env("XDG_CACHE_HOME", self.path("cache")).current_dir(self.folder.path());
        for name in ["LD_PRELOAD", "LLAMA_ARG_MODEL", "PTPLUS_ADAPTER_1"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// `exec` with the fixture's adapter and base before `more`.
    fn exec(&self, more: &[&str]) -> Output {
        let adapter = self.adapter();
        self.run(&[&["exec", "--adapter", &adapter, "--base", self.base.to_str().unwrap()], more].concat())
    }

    fn adapter(&self) -> String {
        model("llama-gqa").join("adapter").display().to_string()
    }

    /// The adapter as GGUF, under this name.
    fn gguf(&self, name: &str) -> PathBuf {
        let out = self.path(name);
        let base = self.base.to_str().unwrap();
        let made = self.run(&["convert", &self.adapter(), "-o", out.to_str().unwrap(), "--base", base]);
        assert_eq!(exit(&made), 0, "{}", stderr(&made));
        out
    }

    fn cc(&self, name: &str, text: &str, flags: &[&str]) -> PathBuf {
        let (source, out) = (self.path("source.c"), self.path(name));
        std::fs::write(&source, text).unwrap();
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
        let made = cc.arg(&source).arg("-o").arg(&out).args(flags).output().expect("a C compiler");
        assert!(made.status.success(), "{}", stderr(&made));
        out
    }

    fn environment(&self, more: &[&str]) -> serde_json::Map<String, Value> {
        let out = self.exec(&[&["--print-env", "--json"], more].concat());
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let document: Value = serde_json::from_slice(&out.stdout).unwrap();
        document["environment"].as_object().unwrap().clone()
    }
}

fn has_graft() -> bool {
    let has = ptplus::graft::library().is_some();
    if !has {
        eprintln!("SKIPPED: built without the graft");
    }
    has
}

#[test]
fn the_program_takes_the_place_of_ptplus() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let script = "echo $0 $$ \"$@\"; cat; echo to stderr >&2; env | grep -E '^(LD_PRELOAD|RAYON|PTPLUS_(ADAPTER|SCALE|CONTROL))' | sort; exit 42";
    let mut command = p.command(&[
        "exec",
        "--adapter",
        &format!("{}:0.5", p.adapter()),
        "--base",
        p.base.to_str().unwrap(),
        "-q",
        "--",
        "sh",
        "-c",
        script,
        "name",
        "a b",
        "--json",
    ]);
    use std::io::Write as _;
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    child.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(exit(&out), 42, "{}", stderr(&out));
    let (text, lines) = (stdout(&out), stdout(&out));
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[..2], [format!("name {pid} a b --json").as_str(), "from stdin"], "{text}");
    assert_eq!(stderr(&out), "to stderr\n");
    let cache = p.path("cache").display().to_string();
    assert!(
        lines[2].starts_with(&format!("LD_PRELOAD={cache}/ptplus/graft/")) && lines[2].ends_with("/libptplus_graft.so"),
        "{text}"
    );
    assert!(
        lines[3].starts_with(&format!("PTPLUS_ADAPTER_1={cache}/ptplus/adapters/"))
            && lines[3].ends_with("/adapter.gguf"),
        "{text}"
    );
    assert_eq!(lines[4..], ["PTPLUS_SCALE_1=0.5"], "{text}");
    // A signal ends the program as it would without ptplus.
    let out = p.exec(&["-q", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&out.status), Some(15));
}

#[test]
fn what_whoever_started_ptplus_ignores_stays_ignored() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let ptplus = env!("CARGO_BIN_EXE_ptplus");
    let line = format!(
        "trap '' HUP; exec {ptplus} exec -q --adapter {} --base {} -- sh -c 'grep SigIgn /proc/$$/status'",
        p.adapter(),
        p.base.display()
    );
    let out = Command::new("sh").arg("-c").arg(line).env("XDG_CACHE_HOME", p.path("cache")).output().unwrap();
    let text = stdout(&out);
    let mask = u64::from_str_radix(text.trim().strip_prefix("SigIgn:").unwrap().trim(), 16).unwrap();
    assert_eq!(mask & 1, 1, "SIGHUP: {text}");
}

#[test]
fn the_library_is_what_this_build_carries_and_is_mended_when_it_is_not() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let library = PathBuf::from(p.environment(&[])["LD_PRELOAD"].as_str().unwrap());
    let carried = ptplus::graft::library().unwrap();
    assert!(std::fs::read(&library).unwrap() == carried);
    assert_eq!(library.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(&library, b"not it").unwrap();
    p.environment(&[]);
    assert!(std::fs::read(&library).unwrap() == carried);
    // A file of somebody else in the folder stays.
    let other = p.path("cache/ptplus/graft/other");
    std::fs::write(&other, b"x").unwrap();
    p.environment(&[]);
    assert!(other.exists());
    assert!(
        std::fs::read_dir(p.path("cache/ptplus")).unwrap().all(|e| ["graft", "adapters"].iter().any(|n| e
            .as_ref()
            .unwrap()
            .file_name()
            == *n))
    );
}

#[test]
fn every_kind_of_adapter_becomes_a_file_that_the_graft_reads() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let base = p.base.to_str().unwrap().to_owned();
    let gguf = p.gguf("style:1.gguf");
    let bundle = p.path("bundle.tar");
    let probe = model("llama-gqa").join("probe.safetensors").display().to_string();
    let packed = p.run(&["pack", &p.adapter(), "-o", bundle.to_str().unwrap(), "--base", &base, "--probe", &probe]);
    assert_eq!(exit(&packed), 0, "{}", stderr(&packed));
    let given = |arguments: &[&str]| {
        let out = p.run(&[&["exec", "--print-env", "--json", "--base", &base], arguments].concat());
        assert_eq!(exit(&out), 0, "{arguments:?}: {}", stderr(&out));
        let document: Value = serde_json::from_slice(&out.stdout).unwrap();
        document
    };
    let file = |document: &Value, i: usize| {
        PathBuf::from(document["environment"][format!("PTPLUS_ADAPTER_{i}")].as_str().unwrap())
    };

    // A GGUF file is used as it is, by its whole path, colon and all.
    let three =
        given(&["--adapter", "style:1.gguf", "--adapter", "style:1.gguf:-0.25", "--adapter", bundle.to_str().unwrap()]);
    assert_eq!(file(&three, 1), gguf.canonicalize().unwrap());
    assert_eq!(
        (&three["environment"]["PTPLUS_SCALE_1"], &three["environment"]["PTPLUS_SCALE_2"]),
        (&"1".into(), &"-0.25".into())
    );
    assert_eq!(file(&three, 3).file_name().unwrap(), "bundle.gguf");
    let names: Vec<&str> = three["adapters"].as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["1", "2", "bundle"], "two of one name go by their numbers");

    let foreign = model("llama-mha").join("foreign");
    let one = |adapter: &Path, more: &[&str]| {
        let base = crate::common::base_gguf("llama-mha");
        let arguments =
            [&["exec", "--print-env", "--base", base.to_str().unwrap(), "--adapter", adapter.to_str().unwrap()], more]
                .concat();
        p.run(&arguments)
    };
    let probe = model("llama-mha").join("probe.safetensors").display().to_string();
    let checkpoint = foreign.join("training-checkpoint/checkpoint.pt");
    assert_eq!(exit(&one(&checkpoint, &[])), 7, "what nothing states is not guessed");
    let settled = one(&checkpoint, &["--probe", &probe]);
    assert_eq!(exit(&settled), 0, "{}", stderr(&settled));
    assert!(stdout(&settled).contains("/checkpoint.gguf\n"), "{}", stdout(&settled));
    // What is written is what `verify` finds right.
    let lines = stdout(&settled);
    let written = lines.lines().find_map(|l| l.strip_prefix("PTPLUS_ADAPTER_1=")).unwrap();
    let verified = p.run(&[
        "verify",
        written,
        "--base",
        crate::common::base_gguf("llama-mha").to_str().unwrap(),
        "--probe",
        &probe,
    ]);
    assert_eq!(exit(&verified), 0, "{}", stderr(&verified));

    let all: Vec<&str> = ["--adapter", "style:1.gguf"].repeat(17);
    let out = p.run(&[&["exec", "--print-env", "--base", &base][..], &all].concat());
    assert_eq!(exit(&out), 2);
}

#[test]
fn the_model_is_the_programs_own_and_must_fit() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let adapter = p.adapter();
    let run = |arguments: &[&str], variable: Option<&Path>| {
        let mut command = p.command(&[&["exec", "-q", "--adapter", &adapter], arguments].concat());
        if let Some(value) = variable {
            command.env("LLAMA_ARG_MODEL", value);
        }
        command.output().unwrap()
    };
    let (base, other) = (p.base.to_str().unwrap(), crate::common::base_gguf("qwen2"));
    let joined = format!("--model={base}");
    for arguments in [
        &["--", "sh", "-c", "true", "-m", base][..],
        &["--", "sh", "-c", "true", &joined],
        &["--base", base, "--", "sh", "-c", "true", "-m", other.to_str().unwrap()],
    ] {
        let out = run(arguments, None);
        assert_eq!(exit(&out), 0, "{arguments:?}: {}", stderr(&out));
    }
    assert_eq!(exit(&run(&["--", "true-program", "-m", base], None)), 127);
    assert_eq!(exit(&run(&["--", "sh", "-c", "true"], Some(&p.base))), 0);
    assert_eq!(exit(&run(&["--", "sh", "-c", "true"], Some(&other))), 4, "the wrong base");
    assert_eq!(exit(&run(&["--", "sh", "-c", "true", "-m", other.to_str().unwrap()], Some(&p.base))), 4);
    let none = run(&["--", "sh", "-c", "true"], None);
    assert_eq!(exit(&none), 2);
    assert!(stderr(&none).contains("hint: ") && stderr(&none).contains("--base"), "{}", stderr(&none));
    assert_eq!(exit(&run(&["--", "sh", "-c", "true", "-m", "nowhere.gguf"], None)), 1);
    assert_eq!(exit(&run(&["--print-env"], None)), 2);
    assert_eq!(exit(&run(&["--base", base], None)), 2, "nothing to start");
}

#[test]
fn programs_that_would_start_without_adapters_are_refused() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let text = "int main(void) { return 0; }\n";
    let refused = |program: &Path, code: i32, why: &str| {
        let out = p.exec(&["--", program.to_str().unwrap()]);
        assert_eq!(exit(&out), code, "{}: {}", program.display(), stderr(&out));
        assert!(stderr(&out).contains(why) && stdout(&out).is_empty(), "{why}: {}", stderr(&out));
    };
    refused(&p.cc("static", text, &["-static"]), 7, "static executable");
    refused(&p.cc("none", text, &[]), 7, "ggml_mul_mat");
    let llama = "int ggml_mul_mat(int x) { return x; }\nconst char * n = \"blk.%d.attn_output\";\nint main(void) { return ggml_mul_mat(0); }\n";
    refused(&p.cc("inside", llama, &[]), 7, "--wrap=ggml_mul_mat");
    let library = p.cc("libx.so", llama, &["-shared", "-fPIC", "-fno-inline"]);
    refused(&library, 7, "found a library");

    // Graftable, but the loader would not take the library.
    let opens = "#include <dlfcn.h>\nint main(int n, char ** a) { return n > 1 && !dlopen(a[1], 1); }\n";
    let program = p.cc("opens", opens, &["-ldl"]);
    assert_eq!(exit(&p.exec(&["--", program.to_str().unwrap()])), 0);
    let bytes = std::fs::read(&program).unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = p.path(name);
        let mut bytes = bytes.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let other_machine = if cfg!(target_arch = "x86_64") { 183_u16 } else { 62 };
    refused(
        &changed("foreign", &|b| b[18..20].copy_from_slice(&other_machine.to_le_bytes())),
        7,
        "expected a program for",
    );
    let musl = changed("musl", &|b| {
        let at = b.windows(8).position(|w| w == b"ld-linux").unwrap();
        b[at..at + 8].copy_from_slice(b"ld-musl-");
    });
    refused(&musl, 7, "musl");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    refused(&program, 7, "set-user-ID");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&program, 126, "may run");
    refused(Path::new("/nowhere/at/all"), 127, "no such program");
    refused(Path::new("no-such-program"), 127, "no such program");
    refused(p.folder.path(), 126, "may run");
    let script = p.path("script");
    std::fs::write(&script, "#!/nowhere/python\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    refused(&script, 127, "/nowhere/python");
    std::fs::write(&script, "#!/bin/sh\nexit 7$1\n").unwrap();
    assert_eq!(exit(&p.exec(&["--", "./script", "1"])), 71);
    // Found on PATH, as a shell finds it.
    let mut on_path =
        p.command(&["exec", "-q", "--adapter", &p.adapter(), "--base", p.base.to_str().unwrap(), "--", "script", "2"]);
    let out = on_path.env("PATH", format!("/nowhere:{}:/usr/bin:/bin", p.folder.path().display())).output().unwrap();
    assert_eq!(exit(&out), 72, "{}", stderr(&out));
    // With --json an error is a document.
    let out = p.run(&[
        "exec",
        "--json",
        "--adapter",
        &p.adapter(),
        "--base",
        p.base.to_str().unwrap(),
        "--",
        "no-such-program",
    ]);
    let document: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (&document["error"]["code"], &document["error"]["exit_code"]),
        (&"program-not-found".into(), &127.into())
    );
}

#[test]
fn printed_variables_are_lines_that_a_shell_reads() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let gguf = p.gguf("it's a $tyle.gguf");
    let base = p.base.to_str().unwrap();
    let mut command =
        p.command(&["exec", "--print-env", "--base", base, "--adapter", gguf.to_str().unwrap(), "--control", "scales"]);
    let out = command.env("LD_PRELOAD", "/nowhere/liba.so").output().unwrap();
    let printed = stdout(&out);
    let shell = Command::new("sh")
        .arg("-c")
        .arg(format!("{printed}echo \"$PTPLUS_ADAPTER_1\"; echo \"$PTPLUS_CONTROL\"; echo \"$LD_PRELOAD\""))
        .output()
        .unwrap();
    let text = stdout(&shell);
    let lines: Vec<&str> = text.lines().collect();
    let folder = p.folder.path().canonicalize().unwrap();
    assert_eq!(lines[0], folder.join("it's a $tyle.gguf").to_str().unwrap());
    assert_eq!(lines[1], folder.join("scales").to_str().unwrap());
    assert!(lines[2].ends_with("/libptplus_graft.so:/nowhere/liba.so"), "{text}");
    assert_eq!(std::fs::read_to_string(p.path("scales")).unwrap(), "1 1\n", "a name with spaces goes by its number");
}

#[test]
fn scales_change_while_the_program_runs() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let (a, b) = (p.gguf("pirate.gguf"), p.gguf("facts.gguf"));
    let base = p.base.to_str().unwrap();
    let adapters = |more: &[&str]| p.run(&[&["adapters", "scales"], more].concat());
    // The program itself changes its scales, and sees the new file where the old one was.
    let change =
        format!("{} adapters \"$PTPLUS_CONTROL\" --set facts=0; cat \"$PTPLUS_CONTROL\"", env!("CARGO_BIN_EXE_ptplus"));
    let out = p.run(&[
        "exec",
        "-q",
        "--adapter",
        a.to_str().unwrap(),
        "--adapter",
        &format!("{}:0.5", b.display()),
        "--control",
        "scales",
        "--base",
        base,
        "--",
        "sh",
        "-c",
        &change,
    ]);
    assert_eq!((exit(&out), stdout(&out).as_str()), (0, "pirate 1\nfacts 0\npirate 1\nfacts 0\n"), "{}", stderr(&out));
    assert_eq!(stdout(&adapters(&[])), "pirate 1\nfacts 0\n");
    assert_eq!(stdout(&adapters(&["--set", "pirate=-0.5", "--set", "2=1.25"])), "pirate -0.5\nfacts 1.25\n");
    for (wrong, code) in
        [("pirat=1", 2), ("pirate", 2), ("pirate=x", 2), ("pirate=nan", 2), ("=1", 2), ("pirate=1e-60", 2)]
    {
        assert_eq!(exit(&adapters(&["--set", wrong])), code, "{wrong}");
    }
    assert_eq!(stdout(&adapters(&[])), "pirate -0.5\nfacts 1.25\n");
    let document: Value = serde_json::from_slice(&adapters(&["--json"]).stdout).unwrap();
    assert_eq!(document["adapters"][1], serde_json::json!({ "name": "facts", "scale": 1.25 }));

    // A new start has the scales of its own command line; what is no control file stays what it is.
    let start = |control: &str| {
        p.run(&[
            "exec",
            "-q",
            "--adapter",
            a.to_str().unwrap(),
            "--control",
            control,
            "--base",
            base,
            "--",
            "sh",
            "-c",
            "true",
        ])
    };
    assert_eq!(exit(&start("scales")), 0);
    assert_eq!(stdout(&adapters(&[])), "pirate 1\n");
    std::fs::write(p.path("notes"), "dear diary\n").unwrap();
    assert_eq!(exit(&start("notes")), 3);
    assert_eq!(std::fs::read_to_string(p.path("notes")).unwrap(), "dear diary\n");
    std::fs::set_permissions(p.path("scales"), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!((exit(&start("scales")), exit(&adapters(&[])), exit(&adapters(&["--set", "1=0"]))), (6, 6, 6));
    assert_eq!(exit(&start("nowhere/scales")), 1);
    assert_eq!(exit(&p.run(&["adapters", "nowhere"])), 1);
}

#[test]
fn an_exec_within_an_exec_has_only_its_own_adapters() {
    if !has_graft() {
        return;
    }
    let p = Place::new();
    let (a, b) = (p.gguf("a.gguf"), p.gguf("b.gguf"));
    let base = p.base.to_str().unwrap();
    let inner = format!(
        "{} exec -q --adapter {} --base {base} -- sh -c 'env | grep -E \"^(LD_PRELOAD|PTPLUS_(ADAPTER|SCALE|CONTROL))\" | sort'",
        env!("CARGO_BIN_EXE_ptplus"),
        b.display()
    );
    let out = p.run(&[
        "exec",
        "-q",
        "--adapter",
        a.to_str().unwrap(),
        "--adapter",
        a.to_str().unwrap(),
        "--control",
        "c",
        "--base",
        base,
        "--",
        "sh",
        "-c",
        &inner,
    ]);
    let text = stdout(&out);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text} {}", stderr(&out));
    assert_eq!(lines[0].matches("libptplus_graft.so").count(), 1, "{text}");
    assert_eq!(lines[1..], [format!("PTPLUS_ADAPTER_1={}", b.display()).as_str(), "PTPLUS_SCALE_1=1"], "{text}");
}

/// A program that has llama.cpp's flag in it and prints its arguments.
const PRINTS_ARGUMENTS: &str = "#include <stdio.h>\nconst char *flag = \"--lora-scaled\";\n\
    int main(int n, char **a) { for (int i = 1; i < n; i++) puts(a[i]); return flag[0] != '-'; }";

#[test]
fn loras_are_given_as_arguments_and_need_no_graft() {
    let place = Place::new();
    let case = crate::common::fixtures().join("lora/llama-rslora-patterns");
    let (base, lora) = (case.join("base").display().to_string(), case.join("adapter").display().to_string());
    // Nothing in it calls ggml, so that nothing could be put into it, and nothing has to be.
    let program = place.cc("llama-like", PRINTS_ARGUMENTS, &[]).display().to_string();
    let half = format!("{lora}:0.5");
    let out = place.run(&["exec", "--adapter", &lora, "--adapter", &half, "--base", &base, "--", &program, "-p", "x"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let text = stdout(&out);
    let lines: Vec<&str> = text.lines().collect();
    let &["-p", "x", "--lora", one, "--lora-scaled", two] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(two, format!("{one}:0.5"));
    let file = Path::new(one);
    assert!(file.is_absolute() && file.starts_with(place.path("cache").canonicalize().unwrap()), "{one}");
    let verified = place.run(&["verify", one, "--base", &base, "--against", &lora]);
    assert_eq!(exit(&verified), 0, "{}", stderr(&verified));
    // A GGUF file is given as it is.
    let gguf = place.path("lora.gguf").display().to_string();
    assert_eq!(exit(&place.run(&["convert", &lora, "-o", &gguf, "--base", &base])), 0);
    let out = place.run(&["exec", "--adapter", &gguf, "--base", &base, "--", &program]);
    assert_eq!(stdout(&out), format!("--lora\n{}\n", place.path("lora.gguf").canonicalize().unwrap().display()));
}

/// A program that has llama.cpp's flags in it, calls a shared ggml, and prints its arguments.
#[test]
fn what_a_bundle_says_is_given_as_arguments_and_flags_override() {
    let place = Place::new();
    let case = crate::common::fixtures().join("lora/llama-rslora-patterns");
    let (base, lora) = (case.join("base").display().to_string(), case.join("adapter").display().to_string());
    std::fs::write(place.path("template"), "{{ messages }}").unwrap();
    let template = place.path("template").display().to_string();
    let bundle = place.path("b").display().to_string();
    let pack = [
        "pack",
        &lora,
        "--base",
        &base,
        "-o",
        &bundle,
        "--chat-template-file",
        &template,
        "--temp",
        "0",
        "--top-k",
        "7",
    ];
    let out = place.run(&[&pack[..], &["--system", "Be brief."]].concat());
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let program = |name: &str, flags: &str| {
        let text = PRINTS_ARGUMENTS.replace("--lora-scaled", &format!("--lora-scaled {flags}"));
        place.cc(name, &text, &[]).display().to_string()
    };
    let server = program("server", "--jinja --chat-template-file --temp --top-k");
    let lines = |program: &str, more: &[&str], variable: Option<&str>| {
        let arguments = [&["exec", "--adapter", &bundle, "--base", &base, "--", program], more].concat();
        let mut command = place.command(&arguments);
        for name in ["LLAMA_ARG_CHAT_TEMPLATE", "LLAMA_ARG_CHAT_TEMPLATE_FILE"] {
            command.env_remove(name);
        }
        let out = command.envs(variable.map(|name| (name, "x"))).output().unwrap();
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let text = stdout(&out);
        (text.lines().filter(|l| !l.contains("/adapters/")).map(str::to_owned).collect::<Vec<_>>(), stderr(&out))
    };
    let (found, told) = lines(&server, &["-c", "64"], None);
    let [c, n, lora_flag, jinja, flag, file, rest @ ..] = &found[..] else { panic!("{found:?}") };
    assert_eq!([c, n, lora_flag, jinja, flag], ["-c", "64", "--lora", "--jinja", "--chat-template-file"]);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "{{ messages }}");
    assert_eq!(rest, ["--temp", "0", "--top-k", "7"]);
    assert!(told.contains("chat template") && told.contains("--temp 0") && told.contains("Be brief."), "{told}");
    // What the program's own arguments or llama.cpp's variables say stays.
    assert_eq!(lines(&server, &["--chat-template", "chatml", "--temp=1"], None).0[3..], ["--lora", "--top-k", "7"]);
    assert_eq!(
        lines(&server, &["--chat-template-file=x", "--temperature", "1", "--top-k", "1"], None).0.last().unwrap(),
        "--lora"
    );
    assert_eq!(lines(&server, &["--no-jinja"], None).0[1..3], ["--lora", "--chat-template-file"]);
    assert_eq!(lines(&server, &[], Some("LLAMA_ARG_CHAT_TEMPLATE")).0, ["--lora", "--temp", "0", "--top-k", "7"]);
    // A program that knows no such flag gets none, and whoever starts it is told.
    let (found, told) = lines(&program("other", ""), &[], None);
    assert_eq!(found, ["--lora"]);
    assert!(told.contains("has to use the chat template"), "{told}");
    let out = place.run(&["exec", "--adapter", &bundle, "--base", &base, "--print-env", "--json"]);
    let document: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(document["arguments"][3], "--chat-template-file", "{document}");
}

#[test]
fn loras_are_given_to_no_program_that_would_ignore_them() {
    let place = Place::new();
    let case = crate::common::fixtures().join("lora/llama-rslora-patterns");
    let (base, lora) = (case.join("base").display().to_string(), case.join("adapter").display().to_string());
    let out = place.run(&["exec", "--adapter", &lora, "--base", &base, "--", "sh", "-c", "echo started"]);
    assert_eq!((exit(&out), stdout(&out)), (7, String::new()), "{}", stderr(&out));
    assert!(stderr(&out).contains("--lora-scaled"), "{}", stderr(&out));
    // Nor where the flag would split the file's name.
    let program = place.cc("llama-like", PRINTS_ARGUMENTS, &[]).display().to_string();
    let odd = place.path("a,b.gguf").display().to_string();
    assert_eq!(exit(&place.run(&["convert", &lora, "-o", &odd, "--base", &base])), 0);
    let out = place.run(&["exec", "--adapter", &odd, "--base", &base, "--", &program]);
    assert_eq!(exit(&out), 2, "{}", stderr(&out));
    // DoRA has to be merged, and scales of LoRAs are the program's own.
    let dora = crate::common::fixtures().join("lora/llama-dora");
    let (dora_base, dora) = (dora.join("base").display().to_string(), dora.join("adapter").display().to_string());
    let out = place.run(&["exec", "--adapter", &dora, "--base", &dora_base, "--", &program]);
    assert_eq!(exit(&out), 7, "{}", stderr(&out));
    let out = place.run(&["exec", "--adapter", &lora, "--base", &base, "--control", "scales", "--", &program]);
    assert_eq!(exit(&out), 2, "{}", stderr(&out));
}

#[test]
fn virtual_tokens_are_given_to_llama_server_as_the_state_of_a_slot() {
    let place = Place::new();
    let base = crate::common::fixtures().join("lora/llama-dora/base").display().to_string();
    let prefix = crate::common::fixtures().join("prefix/llama-prefix/adapter").display().to_string();
    let server = PRINTS_ARGUMENTS.replace("--lora-scaled", "--slot-save-path");
    let server = place.cc("server-like", &server, &[]).display().to_string();
    let state = |more: &[&str]| {
        let arguments = [&["exec", "--adapter", &prefix, "--base", &base, "--", &server], more].concat();
        let out = place.run(&arguments);
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        let text = stdout(&out);
        let lines: Vec<&str> = text.lines().collect();
        let [own @ .., flag, folder] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((own, *flag), (more, "--slot-save-path"));
        let told = stderr(&out);
        assert!(told.contains("virtual-tokens.bin") && told.contains("5 times token 0"), "{told}");
        std::fs::read(Path::new(folder).join("virtual-tokens.bin")).unwrap()
    };
    // As `convert` makes it for the caches that these arguments have the server make.
    for (more, flags) in [
        (&[][..], &[][..]),
        (&["-fa", "off", "-ctk", "f32"], &["--flash-attn", "off", "--cache-type-k", "f32"]),
        (&["--parallel", "2"], &["--n-seq", "2"]),
    ] {
        let file = place.path("state.bin").display().to_string();
        let convert = ["convert", &prefix, "--base", &base, "-o", &file, "--to", "llama-state", "--force"];
        let out = place.run(&[&convert, flags].concat());
        assert_eq!(exit(&out), 0, "{}", stderr(&out));
        assert_eq!(state(more), std::fs::read(&file).unwrap(), "{more:?}");
    }
    // Windows are heeded by a server that keeps all positions.
    let gemma = crate::common::fixtures().join("models/gemma3/base").display().to_string();
    let windowed = crate::common::fixtures().join("prefix/gemma3-prefix/adapter").display().to_string();
    for (given, added) in [(&[][..], 3), (&["--swa-full"], 2)] {
        let out = place.run(&[&["exec", "--adapter", &windowed, "--base", &gemma, "--", &server], given].concat());
        let text = stdout(&out);
        assert_eq!(text.lines().count(), given.len() + added, "{text}");
        assert_eq!(text.lines().filter(|line| *line == "--swa-full").count(), 1, "{text}");
    }
    // Of the version that its llama.cpp reads, as its words show.
    for (words, version) in
        [("incompatible V transposition", 3), ("incompatible V transposition incompatible key rotation", 4)]
    {
        let text = PRINTS_ARGUMENTS.replace("--lora-scaled", &format!("--slot-save-path {words}"));
        let server = place.cc(&format!("of-version-{version}"), &text, &[]).display().to_string();
        let out = place.run(&["exec", "--adapter", &prefix, "--base", &base, "--", &server]);
        let text = stdout(&out);
        let folder = text.lines().last().unwrap();
        assert_eq!(std::fs::read(Path::new(folder).join("virtual-tokens.bin")).unwrap()[4], version, "{words}");
        assert_eq!(stderr(&out).contains("is of version 3"), version == 3, "{}", stderr(&out));
    }
    let other = place.cc("llama-like", PRINTS_ARGUMENTS, &[]).display().to_string();
    let half = format!("{prefix}:0.5");
    for (adapters, program, more, code) in [
        (&[&prefix][..], &other, &[][..], 7),
        (&[&prefix], &server, &["--slot-save-path", "x"], 2),
        (&[&prefix], &server, &["-fa", "off", "-ctv", "q8_0"], 2),
        (&[&half], &server, &[], 2),
        (&[&prefix, &prefix], &server, &[], 2),
    ] {
        let adapters = adapters.iter().flat_map(|a| ["--adapter", a.as_str()]);
        let start = ["--base", &base, "--", program];
        let arguments: Vec<&str> =
            ["exec"].into_iter().chain(adapters).chain(start).chain(more.iter().copied()).collect();
        let out = place.run(&arguments);
        assert_eq!((exit(&out), stdout(&out)), (code, String::new()), "{more:?}: {}", stderr(&out));
    }
}

/// A program that prints its arguments, and has in it the flags that a program of llama.cpp takes its model and its template by.
const TAKES_A_MODEL: &str = "#include <stdio.h>\nconst char *flags[] = {\"--model\", \"--ctx-size\", \"--temp\"};\n\
    int main(int n, char **a) { for (int i = 1; i < n; i++) puts(a[i]); return flags[0] == 0; }";

#[test]
fn a_merged_model_needs_no_adapter_and_no_graft() {
    let place = Place::new();
    let case = crate::common::fixtures().join("lora/llama-dora");
    let (base, adapter) = (case.join("base").display().to_string(), case.join("adapter").display().to_string());
    for bundle in ["b", "b.tar"] {
        let packed = place.run(&["pack", &base, "--merge", &adapter, "-o", bundle, "--temp", "0.5"]);
        assert_eq!(exit(&packed), 0, "{}", stderr(&packed));
    }
    let program = place.cc("takes-a-model", TAKES_A_MODEL, &[]).display().to_string();
    let out = place.run(&["exec", "--base", "b", "--", &program, "-p", "x"]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let file = place.path("b/model.gguf").canonicalize().unwrap().display().to_string();
    let lines = stdout(&out);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines, ["-p", "x", "-m", &file, "--temp", "0.5"]);
    let own = place.run(&["exec", "--base", "b", "--", &program, "--temp", "0"]);
    assert_eq!(stdout(&own).lines().filter(|l| *l == "--temp").count(), 1, "{}", stdout(&own));
    for (arguments, code) in [
        (&["--base", "b", "--", &program, "-m", &file][..], 2),
        (&["--base", "b.tar", "--", &program], 2),
        (&["--base", &file, "--", &program], 2),
        (&["--base", "b", "--control", "c", "--", &program], 2),
        (&["--base", "b", "--", "sh", "-c", "true"], 7),
    ] {
        let out = place.run(&[&["exec"], arguments].concat());
        assert_eq!(exit(&out), code, "{arguments:?}: {}{}", stdout(&out), stderr(&out));
    }
    let shown = place.run(&["exec", "--base", "b", "--print-env", "--json"]);
    assert!(exit(&shown) == 0 && stdout(&shown).contains(&file), "{}", stderr(&shown));
}

#[test]
fn a_bundle_of_virtual_tokens_says_what_others_say_and_a_probe_is_heeded() {
    let place = Place::new();
    let case = crate::common::fixtures().join("prefix/llama-prefix");
    let base = crate::common::fixtures().join("lora/llama-dora/base").display().to_string();
    let prefix = case.join("adapter").display().to_string();
    std::fs::write(place.path("template"), "{{ messages }}").unwrap();
    let (template, bundle) = (place.path("template").display().to_string(), place.path("b.tar").display().to_string());
    let pack = ["pack", &prefix, "--base", &base, "-o", &bundle, "--chat-template-file", &template];
    let out = place.run(&[&pack[..], &["--temp", "0", "--system", "Be brief.", "--outtype", "f16,q8_0"]].concat());
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let server =
        PRINTS_ARGUMENTS.replace("--lora-scaled", "--slot-save-path --jinja --chat-template-file --temp --top-k");
    let server = place.cc("server-like", &server, &[]).display().to_string();
    let started = |adapter: &str, own: &[&str], given: &[&str]| {
        let start = [&["exec", "--adapter", adapter, "--base", &base], own, &["--", &server], given].concat();
        let out = place.run(&start);
        (exit(&out), stdout(&out).lines().map(str::to_owned).collect::<Vec<_>>(), stderr(&out))
    };
    let (code, found, told) = started(&bundle, &[], &["-c", "64"]);
    let [c, n, flag, folder, jinja, template, file, temp, zero] = &found[..] else { panic!("{code} {found:?} {told}") };
    assert_eq!([c, n, flag, jinja, template], ["-c", "64", "--slot-save-path", "--jinja", "--chat-template-file"]);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "{{ messages }}");
    assert_eq!([temp, zero], ["--temp", "0"]);
    assert!(told.contains("5 times token 0") && told.contains("Be brief."), "{told}");
    let own_flags = started(&bundle, &[], &["--chat-template", "chatml", "--temp", "1"]);
    assert_eq!(own_flags.1[4..], ["--slot-save-path", folder.as_str()]);
    // The form that is asked for.
    let state = |folder: &str| std::fs::read(Path::new(folder).join("virtual-tokens.bin")).unwrap();
    let first = state(folder);
    let (code, found, told) = started(&bundle, &["--form", "q8_0"], &[]);
    assert_eq!(code, 0, "{told}");
    assert!(state(&found[1]) != first);
    // A probe is held against it before anything starts.
    let probe = case.join("probe.safetensors").display().to_string();
    let (code, _, told) = started(&prefix, &["--probe", &probe], &[]);
    assert_eq!(code, 0, "{told}");
    let mut raw = RawAdapter::read(&case.join("adapter"));
    raw.tensors.get_mut("prompt_embeddings").unwrap().values[7] += 1.0;
    raw.write(&place.path("wrong"));
    let (code, found, told) = started(&place.path("wrong").display().to_string(), &["--probe", &probe], &[]);
    assert_eq!((code, found.len()), (5, 0), "{told}");
    assert!(told.contains("nothing was started"), "{told}");
    // Nothing there is to be read in another way, or to be scaled.
    assert_eq!(started(&prefix, &["--query-tap", "post_rope"], &[]).0, 2);
    assert_eq!(started(&prefix, &["--control", "scales"], &[]).0, 2);
}
