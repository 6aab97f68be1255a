//! Records the commit that a release is built from, and compiles the graft: as a shared object that the crate carries, and
//! for feature `llama-cpp` into the crate.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    record_commit();
    graft();
    #[cfg(feature = "llama-cpp")]
    linked_graft();
}

/// Compiles `csrc/ptplus_graft.c` to a shared object, and sets `cfg(ptplus_graft)` where that worked. A build without a C
/// compiler goes on without.
fn graft() {
    println!("cargo::rustc-check-cfg=cfg(ptplus_graft)");
    let variable = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        std::env::var(name).ok().filter(|v| !v.is_empty())
    };
    let source = "csrc/ptplus_graft.c";
    for file in [source, "include/ptplus.h"] {
        println!("cargo::rerun-if-changed={file}");
    }
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let (target, host) = (std::env::var("TARGET").unwrap_or_default(), std::env::var("HOST").unwrap_or_default());
    let mut compilers = vec![variable(&format!("CC_{}", target.replace('-', "_"))), variable("CC")];
    // What rustc links with is a C compiler, unless someone named a bare linker.
    compilers.push(std::env::var("RUSTC_LINKER").ok());
    if target == host {
        compilers.extend(["cc", "gcc", "clang"].map(|c| Some(c.to_owned())));
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("libptplus_graft.so");
    let compiled = compilers.iter().flatten().any(|compiler| {
        // `CC` may carry flags.
        let mut words = compiler.split_whitespace();
        let Some(program) = words.next() else { return false };
        let mut command = std::process::Command::new(program);
        command.args(words).args(["-std=gnu11", "-O2", "-g0", "-shared", "-fPIC", "-fvisibility=hidden", "-Iinclude"]);
        command.args(["-Wl,--build-id=none", "-o"]).arg(&out).args([source, "-ldl"]);
        command.output().is_ok_and(|output| output.status.success())
    });
    if compiled {
        println!("cargo::rustc-cfg=ptplus_graft");
    } else {
        println!("cargo::warning=no C compiler found: built without the graft for llama.cpp");
    }
}

/// Sets `PTPLUS_COMMIT`: what the packager says, else what git's files or `cargo package` recorded, else nothing. Debug
/// builds record none: every commit would rebuild them.
fn record_commit() {
    println!("cargo::rerun-if-env-changed=PTPLUS_COMMIT");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let commit = match std::env::var("PTPLUS_COMMIT") {
        Ok(stated) => Some(stated),
        Err(_) if std::env::var("PROFILE").is_ok_and(|p| p == "release") => of_git(&root).or_else(|| of_package(&root)),
        Err(_) => None,
    };
    let commit = commit.filter(|c| c.len() >= 12 && c.bytes().all(|b| b.is_ascii_hexdigit()));
    println!("cargo::rustc-env=PTPLUS_COMMIT={}", commit.map_or(String::new(), |c| c[..12].to_owned()));
}

/// Reads `.git` without git: a fresh machine may have none.
fn of_git(root: &Path) -> Option<String> {
    let dot_git = root.join(".git");
    let folder = match std::fs::read_to_string(&dot_git) {
        // A worktree: a file that names its folder.
        Ok(text) => root.join(text.strip_prefix("gitdir:")?.trim()),
        Err(_) => dot_git,
    };
    let watch = |path: &Path| println!("cargo::rerun-if-changed={}", path.display());
    let head_file = folder.join("HEAD");
    let head = std::fs::read_to_string(&head_file).ok()?;
    watch(&head_file);
    let Some(name) = head.trim().strip_prefix("ref:") else { return Some(head.trim().to_owned()) };
    let name = name.trim();
    let common = std::fs::read_to_string(folder.join("commondir")).map_or(folder.clone(), |c| folder.join(c.trim()));
    let loose = common.join(name);
    if let Ok(commit) = std::fs::read_to_string(&loose) {
        watch(&loose);
        return Some(commit.trim().to_owned());
    }
    let packed_file = common.join("packed-refs");
    let packed = std::fs::read_to_string(&packed_file).ok()?;
    watch(&packed_file);
    packed.lines().find_map(|l| l.strip_suffix(name)?.strip_suffix(' ').map(str::to_owned))
}

/// What `cargo package` writes into the archive.
fn of_package(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join(".cargo_vcs_info.json")).ok()?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    rest.split('"').nth(1).map(str::to_owned)
}

/// The same file for this program itself, beside the llama.cpp that the crate builds.
#[cfg(feature = "llama-cpp")]
fn linked_graft() {
    let variable = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    // `PREFIX/lib/cmake`, or lib64: where llama.cpp was installed to.
    let cmake = PathBuf::from(variable("DEP_LLAMA_GGML_CMAKE_DIR"));
    let lib = cmake.parent().expect("a folder in the library folder");
    let include = lib.parent().expect("a folder in the prefix").join("include");
    let mut build = cc::Build::new();
    // The tests compute: without optimisation they take minutes.
    build.file("csrc/ptplus_graft.c").include("include").std("gnu11").opt_level(3).warnings(true).extra_warnings(true);
    if cfg!(feature = "llama-cpp-dynamic") {
        build.define("PTPLUS_LINKED", None);
    } else {
        build.define("PTPLUS_STATIC", None);
        println!("cargo::rustc-link-arg=-Wl,--wrap=ggml_mul_mat");
    }
    build.compile("ptplus_graft");
    // For tests that compile C programs as a user would.
    println!("cargo:rustc-env=PTPLUS_LLAMA_INCLUDE={}", include.display());
    println!("cargo:rustc-env=PTPLUS_LLAMA_LIB={}", lib.display());
    #[cfg(feature = "llama-cpp-dynamic")]
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // Found by the program and, with the old tag, by the libraries that those libraries need.
        println!("cargo:rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,{}", lib.display());
    }
}
