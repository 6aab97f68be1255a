//! The drop-in in C programs, compiled as a user would, and the preload library in one that knows nothing of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ptplus::verify::probe::Probe;

use crate::common::{MODELS, model};
use crate::contexts::converted;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const WARNINGS: [&str; 3] = ["-Wall", "-Wextra", "-Werror"];

fn compiler() -> Command {
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.current_dir(ROOT).args(["-std=gnu11", "-O2"]).args(WARNINGS);
    cc.args(["-Iinclude", "-I", env!("PTPLUS_LLAMA_INCLUDE")]);
    cc
}

fn compile(sources: &[&str], more: &[&str], output: &Path) {
    let libraries = ["-lllama", "-lggml", "-lggml-cpu", "-lggml-base"];
    let mut cc = compiler();
    cc.args(sources).args(more).arg("-o").arg(output);
    if !more.contains(&"-shared") {
        cc.arg("-L").arg(env!("PTPLUS_LLAMA_LIB"));
        // Static libraries need each other in no fixed order.
        cc.arg("-Wl,--start-group").args(libraries).arg("-Wl,--end-group");
        cc.args(["-lstdc++", "-ldl"]);
    }
    cc.args(["-lm", "-lpthread"]);
    let out = cc.output().expect("a C compiler");
    assert!(out.status.success(), "{cc:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn run(program: &Path, args: &[&std::ffi::OsStr], env: &[(&str, &std::ffi::OsStr)]) -> Output {
    let mut command = Command::new(program);
    command.args(args).env("LD_LIBRARY_PATH", env!("PTPLUS_LLAMA_LIB")).env_remove("PTPLUS_ADAPTER");
    command.envs(env.iter().copied()).output().unwrap()
}

fn said(out: &Output) -> String {
    format!("{:?} {}{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Rows of logits `[T, V]` that a program wrote.
fn read(path: &Path) -> Vec<f32> {
    std::fs::read(path).unwrap().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn the_drop_in_holds_from_the_inside() {
    let temp = tempfile::tempdir().unwrap();
    let program = temp.path().join("callback");
    compile(&["tests/llama_c/callback.c"], &[], &program);
    let out = run(&program, &[], &[]);
    assert!(out.status.success(), "{}", said(&out));
}

#[test]
fn the_drop_in_compiles_as_c_plus_plus_users_include_it() {
    let temp = tempfile::tempdir().unwrap();
    let source = temp.path().join("include.cpp");
    std::fs::write(&source, "#include \"ptplus_llama.h\"\nint main() { return ptplus_llama_supports(\"none\"); }\n")
        .unwrap();
    let mut cxx = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    cxx.current_dir(ROOT).args(["-std=c++17", "-c"]).args(WARNINGS).args([
        "-Iinclude",
        "-I",
        env!("PTPLUS_LLAMA_INCLUDE"),
    ]);
    let out = cxx.arg(&source).arg("-o").arg(temp.path().join("o")).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
}

struct Programs {
    temp: tempfile::TempDir,
    attached: PathBuf,
    plain: PathBuf,
}

fn programs() -> Programs {
    let temp = tempfile::tempdir().unwrap();
    let (attached, plain) = (temp.path().join("attached"), temp.path().join("plain"));
    compile(&["tests/llama_c/attached_host.c", "csrc/ptplus_llama.c"], &[], &attached);
    compile(&["tests/llama_c/plain_host.c"], &[], &plain);
    Programs { temp, attached, plain }
}

#[test]
fn a_c_program_with_the_drop_in_agrees_with_pytorch() {
    let p = programs();
    for name in MODELS {
        let base = model(name).join("base.gguf");
        let adapter = converted(&model(name).join("adapter"), &base, p.temp.path());
        let probe = Probe::open(&model(name).join("probe.safetensors")).unwrap();
        let (found, stock) = (p.temp.path().join("found"), p.temp.path().join("stock"));
        for (row, ids) in probe.input_ids.iter().enumerate() {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            let ids: Vec<&std::ffi::OsStr> = ids.iter().map(AsRef::as_ref).collect();
            let args = [&[base.as_os_str(), adapter.as_os_str(), found.as_os_str()], &ids[..]].concat();
            let out = run(&p.attached, &args, &[]);
            assert!(out.status.success(), "{name}: {}", said(&out));
            let out = run(&p.plain, &[&[base.as_os_str(), stock.as_os_str()], &ids[..]].concat(), &[]);
            assert!(out.status.success(), "{name}: {}", said(&out));
            let (found, stock) = (read(&found), read(&stock));
            let [on, off, again] = [0, 1, 2].map(|i| &found[i * stock.len()..][..stock.len()]);
            assert!(off == stock && on == again, "{name}: switching off gives stock, and on the same again");
            // llama.cpp ignores the window of mistral-swa.
            let compared = probe.positions.iter().enumerate().filter(|(_, p)| name != "mistral-swa" || **p < 8);
            let mut n = 0;
            for (p, position) in compared {
                let found = &on[position * probe.vocab_size..][..probe.vocab_size];
                let expected = probe.logits(row, p);
                let worst = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 5e-4, "{name}, row {row}, position {position}: {worst}");
                n += 1;
            }
            assert!(n > 0, "{name}");
        }
    }
}

#[test]
fn a_c_program_is_told_why_an_adapter_does_not_fit() {
    let p = programs();
    let adapter = converted(&model("qwen2").join("adapter"), &model("qwen2").join("base.gguf"), p.temp.path());
    let base = model("qwen3").join("base.gguf");
    let out = run(&p.attached, &[base.as_os_str(), adapter.as_os_str(), "/dev/null".as_ref(), "1".as_ref()], &[]);
    assert_eq!(out.status.code(), Some(4), "{}", said(&out));
    assert!(said(&out).contains("general.architecture: expected qwen3"), "{}", said(&out));
}

/// Only a shared llama.cpp can be wrapped.
#[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
#[test]
fn the_preload_library_adapts_a_program_that_knows_nothing_of_it() {
    let p = programs();
    let library = p.temp.path().join("libptplus_llama_preload.so");
    let sources = ["csrc/ptplus_llama_preload.c", "csrc/ptplus_llama.c"];
    compile(&sources, &["-shared", "-fPIC", "-fvisibility=hidden"], &library);
    let base = model("llama-gqa").join("base.gguf");
    let adapter = converted(&model("llama-gqa").join("adapter"), &base, p.temp.path());
    let out_file = p.temp.path().join("logits");
    let logits = |host: &Path, env: &[(&str, &std::ffi::OsStr)]| {
        let args = [base.as_os_str(), out_file.as_os_str(), "5".as_ref(), "17".as_ref(), "3".as_ref(), "90".as_ref()];
        let out = run(host, &args, env);
        assert!(out.status.success(), "{}", said(&out));
        read(&out_file)
    };
    let preload = ("LD_PRELOAD", library.as_os_str());
    let stock = logits(&p.plain, &[]);
    assert!(logits(&p.plain, &[preload]) == stock, "without an adapter it is stock, bit for bit");
    assert!(logits(&p.plain, &[preload, ("PTPLUS_ADAPTER", "".as_ref())]) == stock);

    let args = [
        base.as_os_str(),
        adapter.as_os_str(),
        out_file.as_os_str(),
        "5".as_ref(),
        "17".as_ref(),
        "3".as_ref(),
        "90".as_ref(),
    ];
    assert!(run(&p.attached, &args, &[]).status.success());
    let attached = read(&out_file)[..stock.len()].to_vec();
    assert!(attached != stock);
    assert!(logits(&p.plain, &[preload, ("PTPLUS_ADAPTER", adapter.as_os_str())]) == attached);
    let with_scale = |text: &str| {
        let list = format!("{}{text}", adapter.display());
        logits(&p.plain, &[preload, ("PTPLUS_ADAPTER", list.as_ref())])
    };
    assert!(with_scale(":1") == attached);
    assert!(with_scale(":0") == stock);
    assert!(with_scale(":0.5") != stock && with_scale(":0.5") != attached);
    let halves = with_scale(&format!(":0.5,{}:0.5", adapter.display()));
    let worst = attached.iter().zip(&halves).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "two halves make a whole: {worst}");

    for wrong in ["/nowhere.gguf".to_owned(), ",".to_owned(), format!("{},/nowhere.gguf", adapter.display())] {
        let args = [base.as_os_str(), out_file.as_os_str(), "5".as_ref()];
        let out = run(&p.plain, &args, &[preload, ("PTPLUS_ADAPTER", wrong.as_ref())]);
        assert_eq!(out.status.code(), Some(1), "{wrong}: {}", said(&out));
        assert!(said(&out).contains("ptplus: "), "{wrong}: {}", said(&out));
    }
}
