//! The commands that a bundle's model card shows, run in the bundle.

use std::path::Path;

use crate::common::{self, exit, fixtures, model, stderr, stdout};
use crate::pages::Page;
use crate::shell::{Machine, Rule, Shell, rule, this_machine};

const PROMPT: &str = "'What is the capital of Italy?' --temp 0 -n 5";

/// Packs an adapter twice over: as its card says, and as the card's own commands say.
fn check(folder: &Path, base: &Path, template: Option<&Path>, to: &str, machine: Machine) {
    let shell = Shell::new(&[]);
    let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, shell.folder().join(name)).unwrap();
    let base_name = base.file_name().unwrap().to_str().unwrap();
    link(&folder.join("adapter"), "adapter");
    link(&folder.join("probe.safetensors"), "probe.safetensors");
    link(base, base_name);
    let must = |command: &str| {
        let out = shell.run(command);
        assert_eq!(exit(&out), 0, "{command}: {}", stderr(&out));
        stdout(&out)
    };
    must("ptplus keygen signer.key --no-password");
    let pack = format!(
        "ptplus pack adapter --base {base_name} --probe probe.safetensors --to {to} --sign signer.key --no-password -o"
    );
    must(&format!("{pack} bundle"));
    let text = std::fs::read_to_string(shell.folder().join("bundle/README.md")).unwrap();
    let card = Page::parse("the card", &text);
    assert!(
        card.blocks().all(|b| b.language == "sh" || b.language == "python"),
        "commands and Python, and all of them"
    );
    assert!(text.contains("--chat-template-file"), "{text}");
    let (_, origin) = text.split_once("## Origin").unwrap();
    let root = shell.folder().to_owned();
    let mut n_run = 0;
    let shell = shell.within("bundle");
    for command in card.blocks().filter(|b| b.language == "sh").flat_map(|b| b.commands()) {
        let place = format!("card, {to}: {command}");
        if origin.contains(&command) {
            // How it was made, with the last parts of paths and without -o: the same again gives the same bundle.
            let again = format!("cd .. && {command} -o again");
            let again =
                if again.contains("--sign ") { again } else { format!("{again} --sign signer.key --no-password") };
            let out = shell.run(&again);
            assert_eq!(exit(&out), 0, "{place}: {}", stderr(&out));
            let compared = shell.run("diff -r . ../again");
            assert_eq!(exit(&compared), 0, "{place}: {}", stdout(&compared));
            n_run += 1;
            continue;
        }
        let base = format!("../{base_name}");
        let (command, _) = command.split_once(" #").unwrap_or((&command, ""));
        let command = command.trim().replace("BASE.gguf", &base).replace("BASE", &base);
        let mut command = command.replace("KEY", "../signer.pub").replace("PROMPT", PROMPT);
        if command.contains("ptplus run") {
            // As the card says for an adapter that was trained with another template. The fixture's base has no tokenizer.
            let Some(template) = template else { continue };
            command += &format!(" --chat-template-file {}", template.display());
        }
        match rule(&command, machine).unwrap_or_else(|e| panic!("{place}: {e}")) {
            Rule::Run(_) => {}
            Rule::RunTo(..) => unreachable!("no GPU in a card"),
            Rule::Skip => continue,
        }
        let out = shell.run(&command);
        assert_eq!(exit(&out), 0, "{place}: {}", stderr(&out));
        if command.contains("ptplus run") {
            assert!(stdout(&out).starts_with("Arrr, matey"), "{place}: {}", stdout(&out));
        }
        n_run += 1;
    }
    assert!(n_run >= 3, "{text}");
    // What the card tells to make lies beside the bundle, which is still whole.
    let out = shell.run("ptplus check .");
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    let made = if to == "gguf" { "adapter-safetensors" } else { "adapter.gguf" };
    assert!(root.join(made).exists(), "{made}");
}

#[test]
fn the_commands_of_a_card_work() {
    let small = model("llama-gqa");
    for to in ["gguf", "safetensors"] {
        check(&small, &common::base_gguf("llama-gqa"), None, to, this_machine(false));
    }
}

#[test]
#[ignore = "needs the real base, which fixtures/fetch-smollm2.sh fetches"]
fn the_commands_of_a_card_work_on_the_real_base() {
    let pirate = fixtures().join("smollm2-pirate");
    for to in ["gguf", "safetensors"] {
        let template = pirate.join("chat_template.jinja");
        check(&pirate, &common::smollm2(), Some(&template), to, this_machine(true));
    }
}
