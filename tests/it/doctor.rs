//! `ptplus doctor` on small programs that have "llama.cpp" in all the ways in which real ones have it: shared, static, in an
//! addon, behind a script. The C compiler that rustc links with makes them.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{exit, json, ptplus, stderr, stdout};
use serde_json::Value;

/// ggml: the function that is wrapped, and one of ggml's own that calls it.
const GGML: &str = "int ggml_mul_mat(int x) { return x * 2; }\nint ggml_opt(int x) { return ggml_mul_mat(x) + 1; }\n";
/// llama.cpp: builds the graph.
const LLAMA: &str = "int ggml_mul_mat(int);\nconst char * name = \"blk.%d.attn_output\";\nint llama_decode(int x) { return ggml_mul_mat(x) + name[0]; }\n";
/// A program of llama.cpp.
const MAIN: &str = "int llama_decode(int);\nint main(void) { return llama_decode(3) == 0; }\n";

struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    fn new() -> Made {
        Made { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Compiles `text` to `name`; libraries are found beside it.
    fn cc(&self, name: &str, text: &str, flags: &[&str]) -> PathBuf {
        let out = self.path(name);
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        let source = self.path("source.c");
        std::fs::write(&source, text).unwrap();
        let mut command = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
        command.arg("-O1").arg(&source).arg("-o").arg(&out).arg("-L").arg(self.folder.path());
        let compiled = command.args(flags).arg("-Wl,-rpath,$ORIGIN").output().expect("a C compiler");
        assert!(compiled.status.success(), "{name}: {}", stderr(&compiled));
        out
    }

    fn library(&self, name: &str, text: &str, flags: &[&str]) -> PathBuf {
        self.cc(name, text, &[&["-shared", "-fPIC"], flags].concat())
    }

    /// libggml-base and libllama, as llama.cpp builds them.
    fn shared_llama(&self) {
        self.library("libggml-base.so", GGML, &[]);
        self.library("libllama.so", LLAMA, &["-lggml-base"]);
    }
}

/// Exit code, verdict, file name of the object that decides, how it is reached.
fn asked(path: &Path) -> (i32, String, String, String) {
    let (code, found) = json(["doctor".as_ref(), path.as_os_str()]);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let object = text(&found["object"]["path"]);
    let name = Path::new(&object).file_name().unwrap_or_default().to_string_lossy().into_owned();
    assert_eq!(found["status"] == "ok", code == 0, "{found}");
    assert!(!text(&found["reason"]).is_empty(), "{found}");
    (code, text(&found["verdict"]), name, text(&found["object"]["reached"]))
}

fn expect(path: &Path, code: i32, verdict: &str, object: &str, reached: &str) {
    assert_eq!(asked(path), (code, verdict.into(), object.into(), reached.into()), "{}", path.display());
}

#[test]
fn llama_three_libraries_away_is_found() {
    let made = Made::new();
    made.shared_llama();
    made.library(
        "libllama-common.so",
        "int llama_decode(int);\nint common(int x) { return llama_decode(x); }\n",
        &["-lllama"],
    );
    made.library(
        "libllama-server-impl.so",
        "int common(int);\nint serve(int x) { return common(x); }\n",
        &["-lllama-common"],
    );
    let server = made.cc(
        "llama-server",
        "int serve(int);\nint main(void) { return serve(1) == 0; }\n",
        &["-lllama-server-impl", "-Wl,--unresolved-symbols=ignore-all"],
    );
    expect(&server, 0, "graftable", "libllama.so", "needed");
    let (_, found) = json(["doctor".as_ref(), server.as_os_str()]);
    assert_eq!(
        found["object"]["through"],
        serde_json::json!(["libllama-server-impl.so", "libllama-common.so", "libllama.so"])
    );
    assert_eq!(found["object"]["relocation"], "JUMP_SLOT");
    let text = stdout(&ptplus(["doctor".as_ref(), server.as_os_str()]));
    for part in
        ["can take adapters", "libllama.so", "JUMP_SLOT", "libllama-server-impl.so > libllama-common.so > libllama.so"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }

    expect(&made.path("libllama.so"), 0, "graftable", "libllama.so", "itself");
    expect(&made.path("libggml-base.so"), 7, "none", "", "");
    // A program that needs ggml alone.
    let plain = made.cc("plain", "int ggml_opt(int);\nint main(void) { return ggml_opt(1) == 0; }\n", &["-lggml-base"]);
    expect(&plain, 7, "none", "", "");

    // Once the library is gone, nothing is known of what was in it.
    std::fs::remove_file(made.path("libllama.so")).unwrap();
    let (code, found) = json(["doctor".as_ref(), server.as_os_str()]);
    assert_eq!((code, &found["not_found"]), (7, &serde_json::json!(["libllama.so"])));
    assert!(found["advice"].as_str().unwrap().contains("LD_LIBRARY_PATH"), "{found}");
}

#[test]
fn libraries_are_found_where_the_loader_looks() {
    let made = Made::new();
    let build = |tag: &str| {
        std::fs::create_dir_all(made.path("lib")).unwrap();
        made.shared_llama();
        let flags = ["-lllama", "-lggml-base", tag, "-Wl,-rpath,$ORIGIN/../lib"];
        let program = made.cc("bin/program", MAIN, &flags);
        for name in ["libllama.so", "libggml-base.so"] {
            std::fs::rename(made.path(name), made.path("lib").join(name)).unwrap();
        }
        program
    };
    for tag in ["-Wl,--enable-new-dtags", "-Wl,--disable-new-dtags"] {
        expect(&build(tag), 0, "graftable", "libllama.so", "needed");
    }
    // By a link from elsewhere: $ORIGIN is the folder of the file itself.
    let link = made.path("link");
    std::os::unix::fs::symlink(made.path("bin/program"), &link).unwrap();
    expect(&link, 0, "graftable", "libllama.so", "needed");

    std::fs::rename(made.path("lib"), made.path("moved")).unwrap();
    let program = made.path("bin/program");
    let run = |folder: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ptplus"));
        command.arg("doctor").arg(&program).env("LD_LIBRARY_PATH", folder).output().unwrap()
    };
    assert_eq!(exit(&run(&made.path("moved"))), 0);
    assert_eq!(exit(&run(&made.path("nowhere"))), 7);
}

#[test]
fn what_was_bound_when_it_was_linked_is_not_bound_again() {
    let made = Made::new();
    let all = format!("{GGML}{}", LLAMA.replace("int ggml_mul_mat(int);\n", ""));
    // An extension with llama.cpp inside that exports its symbols calls itself through the loader.
    let exported = made.library("exported.cpython-311-x86_64-linux-gnu.so", &all, &["-fno-inline"]);
    expect(&exported, 0, "graftable", "exported.cpython-311-x86_64-linux-gnu.so", "itself");
    let by_address = made.library("by-address.so", &all, &["-fno-inline", "-fno-plt"]);
    let (_, found) = json(["doctor".as_ref(), by_address.as_os_str()]);
    assert_eq!((&found["verdict"], &found["object"]["relocation"]), (&"graftable".into(), &"GLOB_DAT".into()));
    for (name, flag) in [("hidden.so", "-fvisibility=hidden"), ("symbolic.so", "-Wl,-Bsymbolic")] {
        let bound = made.library(name, &all, &[flag, "-fno-inline"]);
        expect(&bound, 7, "bound", name, "itself");
    }
    let program = format!("{all}{MAIN}");
    for (name, flags) in [("inside", &["-fno-inline"][..]), ("exporting", &["-fno-inline", "-rdynamic"])] {
        let inside = made.cc(name, &program, flags);
        expect(&inside, 7, "bound", name, "itself");
        let text = stdout(&ptplus(["doctor".as_ref(), inside.as_os_str()]));
        assert!(text.contains("-Wl,--wrap=ggml_mul_mat") && text.contains("BUILD_SHARED_LIBS=ON"), "{text}");
    }
    let stripped = made.cc("stripped", &program, &["-fno-inline", "-s"]);
    expect(&stripped, 7, "bound", "stripped", "itself");
    let fixed = made.cc("static", &program, &["-static"]);
    expect(&fixed, 7, "static", "", "");
    let pie = made.cc("static-pie", &program, &["-static-pie", "-fPIE"]);
    expect(&pie, 7, "static", "", "");
    let none = made.cc("none", "int main(void) { return 0; }\n", &[]);
    expect(&none, 7, "none", "", "");
    // A program that links a bound library has llama.cpp there.
    std::fs::copy(made.path("hidden.so"), made.path("libhidden.so")).unwrap();
    let thin = made.cc("thin", MAIN, &["-Wl,--no-as-needed,--unresolved-symbols=ignore-all", "-lhidden"]);
    expect(&thin, 7, "bound", "libhidden.so", "needed");
}

/// A program that opens libraries, as interpreters do.
const OPENS: &str = "#include <dlfcn.h>\nint main(int n, char ** a) { return dlopen(a[1], 1) == 0; }\n";

#[test]
fn extensions_and_addons_are_found_where_interpreters_look() {
    let made = Made::new();
    made.shared_llama();
    let root = made.folder.path().to_owned();
    let python = made.cc("venv/bin/python3", OPENS, &["-ldl"]);
    std::fs::write(made.path("venv/pyvenv.cfg"), "home = /usr/bin\n").unwrap();
    let packages = made.path("venv/lib/python3.11/site-packages/some/deep/package");
    std::fs::create_dir_all(&packages).unwrap();
    expect(&python, 7, "undecided", "", "");
    std::os::unix::fs::symlink("python3", made.path("venv/bin/python")).unwrap();
    let script = made.path("venv/bin/tool");
    std::fs::write(&script, format!("#!{}\nimport x\n", made.path("venv/bin/python").display())).unwrap();

    for name in ["libggml-base.so", "libllama.so"] {
        std::fs::copy(root.join(name), packages.join(name)).unwrap();
    }
    // What is broken, or goes round, is passed by.
    std::fs::write(packages.join("broken.so"), b"\x7fELF\x02\x01\x01").unwrap();
    std::os::unix::fs::symlink(&root, packages.join("round")).unwrap();
    for path in [&python, &script, &made.path("venv"), &made.path("venv/lib")] {
        expect(path, 0, "graftable", "libllama.so", "opened");
    }
    let (_, found) = json(["doctor".as_ref(), script.as_os_str()]);
    assert!(found["interpreters"][0].as_str().unwrap().ends_with("venv/bin/python"), "{found}");

    let modules = made.path("app/node_modules/@scope/bins");
    std::fs::create_dir_all(&modules).unwrap();
    for name in ["libggml-base.so", "libllama.so"] {
        std::fs::rename(root.join(name), modules.join(name)).unwrap();
    }
    let addon = made.cc(
        "app/node_modules/@scope/bins/llama-addon.node",
        "int llama_decode(int);\nint napi(int x) { return llama_decode(x); }\n",
        &["-shared", "-fPIC", "-L", modules.to_str().unwrap(), "-lllama"],
    );
    expect(&addon, 0, "graftable", "libllama.so", "needed");
    expect(&made.path("app/node_modules"), 0, "graftable", "libllama.so", "opened");
    let node = made.cc("tools/bin/node", OPENS, &["-ldl"]);
    let here = |folder: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ptplus"));
        exit(&command.arg("doctor").arg(&node).current_dir(folder).output().unwrap())
    };
    assert_eq!((here(&made.path("app")), here(&modules), here(&made.path("tools"))), (0, 0, 7));

    // A program that opens its library from the folder beside its own.
    std::fs::create_dir_all(made.path("own/lib")).unwrap();
    let own = made.cc("own/bin/app", OPENS, &["-ldl"]);
    expect(&own, 7, "undecided", "", "");
    for name in ["libggml-base.so", "libllama.so"] {
        std::fs::copy(modules.join(name), made.path("own/lib").join(name)).unwrap();
    }
    expect(&own, 0, "graftable", "libllama.so", "opened");

    // Of several builds the one for this machine decides.
    let foreign = made.path("several/a/libllama.so");
    std::fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    let mut bytes = std::fs::read(modules.join("libllama.so")).unwrap();
    bytes[18..20].copy_from_slice(&if cfg!(target_arch = "x86_64") { 183_u16 } else { 62 }.to_le_bytes());
    std::fs::write(&foreign, bytes).unwrap();
    std::fs::create_dir_all(made.path("several/b")).unwrap();
    std::fs::copy(modules.join("libllama.so"), made.path("several/b/libllama.so")).unwrap();
    let (code, found) = json(["doctor".as_ref(), made.path("several").as_os_str()]);
    assert_eq!(code, 0);
    assert!(found["object"]["path"].as_str().unwrap().ends_with("b/libllama.so"), "{found}");
}

#[test]
fn broken_programs_are_refused() {
    let made = Made::new();
    let program = made.cc("program", "int main(void) { return 0; }\n", &[]);
    let bytes = std::fs::read(&program).unwrap();
    std::fs::write(&program, &bytes[..900.min(bytes.len())]).unwrap();
    assert_eq!(exit(&ptplus(["doctor".as_ref(), program.as_os_str()])), 3);
    std::fs::write(&program, b"MZ\x90\x00").unwrap();
    expect(&program, 7, "foreign", "", "");
    assert_eq!(exit(&ptplus(["doctor", "/nowhere"])), 1);
}
