//! Runs commands as a reader would type them, and says which it cannot run and why.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common;
use crate::pages::ROOT;

/// A folder in which commands are run, with `ptplus` on the path.
pub struct Shell {
    temp: tempfile::TempDir,
    /// The folder that commands start in, below `temp`.
    folder: PathBuf,
}

/// What becomes of a command.
pub enum Rule {
    /// It is run, as this.
    Run(String),
    /// The same; the exit code is this one where the page says another.
    RunTo(String, i32),
    /// It is not run here: another test or another build runs it, or nothing that a test may do.
    Skip,
}

/// What of this machine the rules ask for.
#[derive(Clone, Copy)]
pub struct Machine {
    pub has_real_base: bool,
    pub has_llama_cpp: bool,
    pub has_shared_llama_cpp: bool,
    pub has_cuda: bool,
}

/// This build, with the real base or without: tests that use it say so in their names, and are ignored.
pub fn this_machine(has_real_base: bool) -> Machine {
    if has_real_base {
        common::smollm2();
    }
    Machine {
        has_real_base,
        has_llama_cpp: cfg!(feature = "llama-cpp"),
        has_shared_llama_cpp: cfg!(all(feature = "llama-cpp-dynamic", target_os = "linux")),
        has_cuda: cfg!(feature = "cuda"),
    }
}

/// The rules, all of them: a command that none of them knows is an error.
pub fn rule(command: &str, machine: Machine) -> Result<Rule, String> {
    let run = |c: &str| Ok(Rule::Run(c.to_owned()));
    if let Some(arguments) = command.strip_prefix("cargo run --release -- ") {
        return run(&format!("ptplus {arguments}")); // the same program, built already
    }
    if command == "cargo test" {
        // It runs this test.
        return Ok(Rule::Skip);
    }
    if command == "pip install ./python" {
        // It builds and installs the program and the Python package; .ci/run does.
        return Ok(Rule::Skip);
    }
    if command.starts_with("pip install model-signing") || command.starts_with("model_signing ") {
        // It is a program of PyPI; tests/bundle/model_signing.rs runs it.
        return Ok(Rule::Skip);
    }
    if command.starts_with("git ") {
        // It needs git-lfs; tests/it/bundle/publish.rs runs the like, and makes no repository in this one.
        return Ok(Rule::Skip);
    }
    if command.starts_with("cargo install --path .") {
        // It builds and installs the program.
        return Ok(Rule::Skip);
    }
    let first = command.split(' ').find(|w| !w.contains('=')).unwrap_or_default();
    if !["ptplus", "mkdir", "cc", "docker", "llama-cli", "fixtures/fetch-smollm2.sh"].contains(&first) {
        return Err(format!("no rule to run {command:?}"));
    }
    if (command.contains("fetch") || command.contains("pirate")) && !machine.has_real_base {
        // It needs the real base, which fixtures/fetch-smollm2.sh fetches.
        return Ok(Rule::Skip);
    }
    if first == "cc" || command.contains("llama-cli") {
        return if machine.has_shared_llama_cpp {
            run(command)
        } else {
            // It needs a shared llama.cpp: a build with --features llama-cpp-dynamic, on Linux.
            Ok(Rule::Skip)
        };
    }
    if first == "docker"
        || command.starts_with("ptplus exec") && command.contains(" -- ")
        || command.contains("command -v llama-server")
    {
        // It starts a program that is not here; tests/clients/run installs such programs.
        return Ok(Rule::Skip);
    }
    if command.starts_with("ptplus doctor ") && !command.contains("llama-cli") {
        // It asks about a program that is not here; tests/doctor.rs makes such programs.
        return Ok(Rule::Skip);
    }
    if command.starts_with("ptplus adapters") {
        // It changes what a program that is not here has made.
        return Ok(Rule::Skip);
    }
    if command.contains("--engine llama.cpp") && !machine.has_llama_cpp {
        // It needs a build with --features llama-cpp.
        return Ok(Rule::Skip);
    }
    if command.contains("cuda") && !machine.has_cuda {
        let on_cpu = command.replace("cuda", "cpu");
        // Both devices are then the CPU, and nothing is compared: exit 7.
        return Ok(if command.contains("--against-device") { Rule::RunTo(on_cpu, 7) } else { Rule::Run(on_cpu) });
    }
    run(command)
}

impl Shell {
    /// A folder with `names` of the repository in it.
    pub fn new(names: &[&str]) -> Shell {
        let temp = tempfile::tempdir().unwrap();
        let (folder, programs) = (temp.path().join("here"), temp.path().join("programs"));
        for new in [&folder, &programs, &temp.path().join("home")] {
            std::fs::create_dir(new).unwrap();
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ptplus"), programs.join("ptplus")).unwrap();
        for name in names {
            std::os::unix::fs::symlink(Path::new(ROOT).join(name), folder.join(name)).unwrap();
        }
        let shell = Shell { temp, folder };
        shell.install_llama_cpp();
        shell
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn home(&self) -> PathBuf {
        self.temp.path().join("home")
    }

    /// The same shell in another folder below this one.
    pub fn within(self, folder: &str) -> Shell {
        let folder = self.folder.join(folder);
        Shell { folder, ..self }
    }

    pub fn run(&self, command: &str) -> Output {
        let mut shell = Command::new("bash");
        shell.args(["-euc", command]).current_dir(&self.folder).env("HOME", self.home());
        let old = std::env::var_os("PATH").unwrap_or_default();
        let folders = [self.temp.path().join("programs")].into_iter().chain(std::env::split_paths(&old));
        shell.env("PATH", std::env::join_paths(folders).unwrap());
        for variable in ["SOURCE_DATE_EPOCH", "PTPLUS_ADAPTER_1", "COLUMNS"] {
            shell.env_remove(variable);
        }
        #[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
        {
            shell.env("LLAMA", Path::new(env!("PTPLUS_LLAMA_INCLUDE")).parent().unwrap());
            shell.env("SITE", self.temp.path().join("site")).env("LD_LIBRARY_PATH", env!("PTPLUS_LLAMA_LIB"));
        }
        shell.output().unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// `$SITE` with the libraries where llama-cpp-python has them, and a program in llama-cli's place: it takes the same
    /// arguments, loads the model and decodes four tokens.
    #[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
    fn install_llama_cpp(&self) {
        let site = self.temp.path().join("site/llama_cpp");
        std::fs::create_dir_all(&site).unwrap();
        std::os::unix::fs::symlink(env!("PTPLUS_LLAMA_LIB"), site.join("lib")).unwrap();
        let main = "#define main host_main\n#include \"host.c\"\n#undef main\n\
            int main(int argc, char ** argv) {\n\
            \x20   char * args[] = {argv[0], argc > 2 ? argv[2] : \"\", \"/dev/null\", \"1\", \"2\", \"3\", \"4\", NULL};\n\
            \x20   return host_main(7, args);\n}\n";
        let program = self.temp.path().join("programs/llama-cli");
        let libraries = ["-lllama", "-lggml", "-lggml-cpu", "-lggml-base", "-lm", "-lpthread"];
        compile(main, &["-Itests/llama_c"], &libraries, &program);
    }

    #[cfg(not(all(feature = "llama-cpp-dynamic", target_os = "linux")))]
    fn install_llama_cpp(&self) {}
}

/// Compiles a C program with the llama.cpp of this build.
#[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
pub fn compile(source: &str, sources: &[&str], libraries: &[&str], program: &Path) {
    let file = program.with_extension("c");
    std::fs::write(&file, source).unwrap();
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.current_dir(ROOT).args(["-std=gnu11", "-O2", "-Wall", "-Werror", "-Iinclude", "-I"]);
    cc.arg(env!("PTPLUS_LLAMA_INCLUDE")).arg(&file).args(sources).arg("-o").arg(program);
    cc.arg("-L").arg(env!("PTPLUS_LLAMA_LIB")).args(libraries);
    let out = cc.output().expect("a C compiler");
    assert!(out.status.success(), "{cc:?}: {}", common::stderr(&out));
}
