//! The C code of the page about llama.cpp, in a program.

use std::process::Command;

use crate::common::{base_gguf, exit, model, ptplus, stderr};
use crate::pages::Page;
use crate::shell::compile;

#[test]
fn the_c_code_of_the_page_runs() {
    let page = Page::read("docs/LLAMA_CPP.md");
    let code: Vec<String> = page.blocks().filter(|b| b.language == "c").map(|b| b.text()).collect();
    let [code] = &code[..] else { panic!("one block of C") };
    let source = format!(
        "#include <stdio.h>\n#include \"llama.h\"\n#include \"ptplus.h\"\n\
         int main(int argc, char ** argv) {{\n\
         llama_backend_init();\n\
         const char * model_path = argv[argc - 1];\n\
         struct llama_model * model = llama_model_load_from_file(model_path, llama_model_default_params());\n\
         if (!model) return 2;\n\
         llama_token tokens[4] = {{1, 2, 3, 4}};\n\
         struct llama_batch batch = llama_batch_get_one(tokens, 4);\n\
         {code}\
         llama_model_free(model);\nllama_backend_free();\nputs(\"done\");\nreturn 0;\n}}\n"
    );
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("work")).unwrap();
    let (program, adapter) = (temp.path().join("program"), temp.path().join("work/adapter.gguf"));
    let libraries = ["-lllama", "-lggml", "-lggml-cpu", "-lggml-base", "-lm", "-lpthread", "-ldl"];
    compile(&source, &["-DPTPLUS_LINKED", "csrc/ptplus_graft.c"], &libraries, &program);
    let run = |base: &str| {
        let mut command = Command::new(&program);
        command.arg(base_gguf(base)).env("LD_LIBRARY_PATH", env!("PTPLUS_LLAMA_LIB"));
        command.current_dir(temp.path()).output().unwrap()
    };
    let m = model("llama-gqa");
    let (from, base) = (m.join("adapter"), m.join("base"));
    let out = ptplus([
        "convert".as_ref(),
        from.as_os_str(),
        "-o".as_ref(),
        adapter.as_os_str(),
        "--base".as_ref(),
        base.as_os_str(),
    ]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    assert_eq!(exit(&run("llama-gqa")), 0, "{}", stderr(&run("llama-gqa")));
    // The code refuses an adapter of another model, and says why.
    let out = run("qwen2");
    assert!(exit(&out) == 1 && stderr(&out).contains("general.architecture"), "{}", stderr(&out));
}
