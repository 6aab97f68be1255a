//! Command lines as llama.cpp's programs take them (`common/arg.cpp`, `tools/quantize`, `convert_hf_to_gguf.py`): what means
//! the same here is put into our words before the command line is read, and what has no counterpart is refused with a hint,
//! before it is taken for something else: `-ngl 99` would be `-n` with the value `gl`.

use std::ffi::OsString;

use clap::Command;

use super::usage;
use crate::error::Result;
use crate::export::types::OutType;

/// What a flag of llama.cpp's is here.
enum Habit {
    /// This one.
    Flag(&'static str),
    /// What is done anyway; it has no value.
    Default,
    /// The same as far as the value is 0; otherwise as below.
    DefaultIfZero(&'static str),
    /// Nothing; the hint says what there is instead.
    Hint(&'static str),
}
use Habit::{Default, DefaultIfZero, Flag, Hint};

type Table = &'static [(&'static [&'static str], Habit)];

const DEVICES: &str = "layers are not shared out: --device cuda (or auto) computes all of them on a GPU";
const COMPUTING: &str = "how it is computed is chosen by --engine, --device and --threads alone";
const SAMPLERS: &str = "the samplers are --temp, --top-k, --top-p, --min-p and --repeat-penalty";
const ADAPTERS: &str =
    "--adapter FILE[:SCALE] takes Prefix-Tuning+ adapters; LoRA is another method, which llama.cpp applies itself";
const FETCHING: &str = "nothing is fetched: --base takes a file or a folder that is there";
const ONE_BY_ONE: &str = "nothing is read from the terminal: -p, once for each prompt, or -f FILE";

const RUN: Table = &[
    (&["-cnv", "--conversation", "-st", "--single-turn", "--jinja"], Default),
    (&["--no-display-prompt", "--no-warmup", "--simple-io", "--log-disable", "--mmap"], Default),
    (&["-no-cnv", "-nocnv"], Flag("--no-conversation")),
    (&["-sys"], Flag("--system-prompt")),
    (&["--temperature"], Flag("--temp")),
    (&["-ngl", "--gpu-layers", "--n-gpu-layers"], DefaultIfZero(DEVICES)),
    (&["-dev", "-mg", "--main-gpu", "-sm", "--split-mode", "-ts", "--tensor-split"], Hint(DEVICES)),
    (&["--lora", "--lora-scaled", "--lora-base", "--control-vector"], Hint(ADAPTERS)),
    (
        &["-fa", "--flash-attn", "-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "-nkvo", "--no-kv-offload"],
        Hint(COMPUTING),
    ),
    (
        &["-b", "--batch-size", "-ub", "--ubatch-size", "-tb", "--threads-batch", "--mlock", "--no-mmap", "--numa"],
        Hint(COMPUTING),
    ),
    (&["-sysf", "--system-prompt-file"], Hint("--system-prompt \"$(cat FILE)\" takes it from a file")),
    (&["--chat-template", "--no-jinja"], Hint("--chat-template-file FILE takes a template in Jinja; none is built in")),
    (
        &["-e", "--escape", "--no-escape"],
        Hint("prompts are taken as they are: $'...' of the shell makes \\n a new line"),
    ),
    (&["-i", "--interactive", "-if", "--interactive-first", "-mli", "--multiline-input"], Hint(ONE_BY_ONE)),
    (
        &["-r", "--reverse-prompt", "--ignore-eos"],
        Hint("an answer ends where the base's files say, or after -n tokens"),
    ),
    (&["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo"], Hint(FETCHING)),
    (
        &["--override-kv"],
        Hint("keys are what the file states; `convert --tokenizer-pre` names a pattern that is missing"),
    ),
    (
        &[
            "--samplers",
            "--sampling-seq",
            "--typical",
            "--mirostat",
            "--grammar",
            "--grammar-file",
            "-j",
            "--json-schema",
        ],
        Hint(SAMPLERS),
    ),
    (
        &["--presence-penalty", "--frequency-penalty", "--dry-multiplier", "--xtc-probability", "--dynatemp-range"],
        Hint(SAMPLERS),
    ),
];

const QUANTIZE: Table = &[
    (&["--pure"], Hint("--tensor-type '.*=TYPE' gives every matrix this type")),
    (&["--output-tensor-type"], Hint("--tensor-type 'output\\.weight=TYPE' is this")),
    (&["--token-embedding-type"], Hint("--tensor-type 'token_embd\\.weight=TYPE' is this")),
    (&["--leave-output-tensor"], Hint("--tensor-type 'output\\.weight=f16' (or what it has) is this")),
    (
        &["--imatrix", "--include-weights", "--exclude-weights"],
        Hint("importance matrices are not read; --auto KL=X looks at the logits themselves"),
    ),
    (&["--keep-split", "--split-max-size"], Hint("the output is one file; llama-gguf-split cuts it")),
];

const CONVERT: Table = &[
    (&["--no-lazy", "--use-temp-file"], Default),
    (&["--split-max-size", "--split-max-tensors"], Hint("the output is one file; llama-gguf-split cuts it")),
    (
        &["--vocab-only", "--bigendian", "--mmproj", "--remote"],
        Hint("whole models on this machine are converted, little-endian"),
    ),
    (&["--model-name", "--metadata"], Hint("general.name is the folder's own name")),
];

const VERIFY: Table = &[
    (&["-ngl", "--gpu-layers", "--n-gpu-layers"], DefaultIfZero(DEVICES)),
    (&["-fa", "--flash-attn", "-ctk", "--cache-type-k", "-ctv", "--cache-type-v"], Hint(COMPUTING)),
    (&["--lora", "--lora-scaled"], Hint("ADAPTER is the adapter, a Prefix-Tuning+ one")),
];

/// `args`, the program's name first, in our words.
///
/// # Errors
///
/// [`Code::Usage`](crate::error::Code::Usage) with a hint for what has no counterpart.
pub fn translated(command: &Command, args: Vec<OsString>) -> Result<Vec<OsString>> {
    let is_name = |arg: &OsString| !arg.as_encoded_bytes().starts_with(b"-");
    let Some(at) = args.iter().skip(1).position(is_name).map(|i| i + 1) else { return Ok(args) };
    let (table, name): (Table, &str) = match args[at].to_str() {
        Some("run") => (RUN, "run"),
        Some("quantize") => (QUANTIZE, "quantize"),
        Some("convert") => (CONVERT, "convert"),
        Some("verify") => (VERIFY, "verify"),
        _ => return Ok(args),
    };
    let mut out: Vec<OsString> = args[..=at].to_vec();
    let mut rest = args[at + 1..].iter().peekable();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            out.push(arg.clone());
            out.extend(rest.cloned());
            break;
        }
        let text = arg.to_str().unwrap_or_default();
        let (flag, value) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
        let refuse = |hint: &str| {
            let message = format!("expected a flag of `ptplus {name}`, found one of llama.cpp's alone");
            usage(flag, message).hints([hint.to_owned()])
        };
        match table.iter().find(|(spellings, _)| spellings.contains(&flag)).map(|(_, habit)| habit) {
            None => out.push(arg.clone()),
            Some(Default) => {}
            Some(Flag(ours)) => out.push(value.map_or((*ours).into(), |value| format!("{ours}={value}").into())),
            Some(DefaultIfZero(hint)) => {
                let value = value.map_or_else(|| rest.next().and_then(|v| v.to_str()), Some);
                if value != Some("0") {
                    return Err(refuse(hint));
                }
            }
            Some(Hint(hint)) => return Err(refuse(hint)),
        }
    }
    match command.find_subcommand(name) {
        Some(quantize) if name == "quantize" => Ok(as_we_order_it(quantize, out, at + 1)),
        _ => Ok(out),
    }
}

/// `quantize IN OUT.gguf TYPE [THREADS]`, llama-quantize's order, with the flags that we have for the last ones.
fn as_we_order_it(command: &Command, mut args: Vec<OsString>, first: usize) -> Vec<OsString> {
    let Some(places) = positionals(command, &args, first) else { return args };
    let text = |at: usize| args[at].to_str().unwrap_or_default();
    let (output, dtype, n_threads) = match places[..] {
        [_, output, dtype] => (output, dtype, None),
        [_, output, dtype, n] if text(n).parse::<u16>().is_ok() => (output, dtype, Some(n)),
        _ => return args,
    };
    if OutType::parse(text(dtype)).is_err() || OutType::parse(text(output)).is_ok() {
        return args;
    }
    let threads = n_threads.map(|n| [OsString::from("--threads"), args.remove(n)]);
    let output = args.remove(output);
    args.splice(first..first, ["--output".into(), output].into_iter().chain(threads.into_iter().flatten()));
    args
}

/// Where the arguments stand that no flag takes for its value; `None` where the output is given by its flag, or something is
/// not known.
fn positionals(command: &Command, args: &[OsString], first: usize) -> Option<Vec<usize>> {
    let mut places = Vec::new();
    let mut at = first;
    while let Some(arg) = args.get(at) {
        let text = arg.to_str().unwrap_or_default();
        match text.strip_prefix('-') {
            None | Some("") => places.push(at),
            Some("-") => return None,
            Some(name) => match name.strip_prefix('-') {
                Some(long) => {
                    let (long, is_attached) = long.split_once('=').map_or((long, false), |(long, _)| (long, true));
                    let is_this = |a: &&clap::Arg| {
                        a.get_long().into_iter().chain(a.get_all_aliases().into_iter().flatten()).any(|l| l == long)
                    };
                    // Those of the whole program have no value.
                    let takes_value =
                        command.get_arguments().find(is_this).is_some_and(|a| a.get_action().takes_values());
                    if matches!(long, "output" | "outfile") {
                        return None;
                    }
                    at += usize::from(takes_value && !is_attached);
                }
                // Letters without a value, then perhaps one whose value is the rest or the next word.
                None => {
                    let takes_value = |letter: char| {
                        let is_this = |a: &&clap::Arg| a.get_short() == Some(letter);
                        command.get_arguments().find(is_this).is_some_and(|a| a.get_action().takes_values())
                    };
                    if let Some((place, letter)) = name.char_indices().find(|(_, letter)| takes_value(*letter)) {
                        if letter == 'o' {
                            return None;
                        }
                        at += usize::from(place + letter.len_utf8() == name.len());
                    }
                }
            },
        }
        at += 1;
    }
    Some(places)
}

/// For tests: the same of words in one text.
#[cfg(test)]
fn of_text(text: &str) -> Result<String> {
    use clap::CommandFactory as _;
    let args = text.split(' ').map(OsString::from).collect();
    let out = translated(&super::Cli::command(), args)?;
    Ok(out.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_is_put_into_our_words() {
        for (theirs, ours) in [
            (
                "ptplus run -m b.gguf -cnv -sys Hi -st --jinja -p x -ngl 0",
                "ptplus run -m b.gguf --system-prompt Hi -p x",
            ),
            (
                "ptplus --json run -no-cnv -sys=Hi --temperature 0",
                "ptplus --json run --no-conversation --system-prompt=Hi --temp 0",
            ),
            ("ptplus run -n 8 -c 99 -t 2 -s 1 -f file", "ptplus run -n 8 -c 99 -t 2 -s 1 -f file"),
            ("ptplus run -- -ngl 99", "ptplus run -- -ngl 99"),
            ("ptplus inspect -ngl 99", "ptplus inspect -ngl 99"),
            ("ptplus convert --no-lazy model --outfile x.gguf", "ptplus convert model --outfile x.gguf"),
            ("ptplus quantize in.gguf out.gguf q4_k_m", "ptplus quantize --output out.gguf in.gguf q4_k_m"),
            ("ptplus quantize in.gguf out.gguf Q8_0 4", "ptplus quantize --output out.gguf --threads 4 in.gguf Q8_0"),
            (
                "ptplus quantize in --base b.gguf -f out.gguf 7 -q",
                "ptplus quantize --output out.gguf in --base b.gguf -f 7 -q",
            ),
            ("ptplus quantize in --base=b.gguf out q8_0", "ptplus quantize --output out in --base=b.gguf q8_0"),
            ("ptplus quantize in q8_0 -o out.gguf", "ptplus quantize in q8_0 -o out.gguf"),
            ("ptplus quantize in q8_0 -oout.gguf extra", "ptplus quantize in q8_0 -oout.gguf extra"),
            ("ptplus quantize -fo out.gguf in q8_0", "ptplus quantize -fo out.gguf in q8_0"),
            ("ptplus quantize -qf in out.gguf q8_0", "ptplus quantize --output out.gguf -qf in q8_0"),
            ("ptplus quantize in out.gguf", "ptplus quantize in out.gguf"),
            ("ptplus quantize in out.gguf nonsense", "ptplus quantize in out.gguf nonsense"),
            ("ptplus", "ptplus"),
            ("ptplus --version", "ptplus --version"),
        ] {
            assert_eq!(of_text(theirs).unwrap(), ours);
        }
    }

    #[test]
    fn what_has_no_counterpart_is_refused_with_a_hint() {
        for (line, flag, hint) in [
            ("ptplus run -m b -ngl 99 -p x", "-ngl", "--device cuda"),
            ("ptplus run --n-gpu-layers=all", "--n-gpu-layers", "--device cuda"),
            ("ptplus run --lora a.gguf", "--lora", "--adapter FILE[:SCALE]"),
            ("ptplus run --lora-scaled a.gguf:0.5", "--lora-scaled", "--adapter FILE[:SCALE]"),
            ("ptplus run -fa on", "-fa", "--engine"),
            ("ptplus run -hf a/b", "-hf", "nothing is fetched"),
            ("ptplus quantize --imatrix i.dat a b q8_0", "--imatrix", "--auto"),
            ("ptplus convert --vocab-only x", "--vocab-only", "whole models"),
        ] {
            let e = of_text(line).unwrap_err();
            assert_eq!((e.code(), e.field_name()), (crate::error::Code::Usage, Some(flag)), "{line}");
            assert!(e.hint_lines()[0].contains(hint), "{line}: {:?}", e.hint_lines());
        }
    }

    /// A flag of ours that llama.cpp has too keeps its meaning.
    #[test]
    fn no_flag_of_ours_is_in_the_tables() {
        use clap::CommandFactory as _;
        let mut root = super::super::Cli::command();
        root.build();
        for (name, table) in [("run", RUN), ("quantize", QUANTIZE), ("convert", CONVERT), ("verify", VERIFY)] {
            let Some(command) = root.find_subcommand(name) else { continue };
            for spelling in table.iter().flat_map(|(spellings, _)| *spellings) {
                let ours = |a: &clap::Arg| {
                    let longs = a.get_long().into_iter().chain(a.get_all_aliases().into_iter().flatten());
                    longs.into_iter().any(|l| format!("--{l}") == *spelling)
                        || a.get_short().is_some_and(|s| format!("-{s}") == *spelling)
                };
                assert!(!command.get_arguments().any(ours), "{name} {spelling}");
            }
        }
    }
}
