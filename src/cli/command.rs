//! The command line as provenance: what decides the output, and nothing of the machine that ran it.

use std::ffi::OsString;
use std::path::Path;

use clap::CommandFactory as _;

/// Options that do not change what an output holds, and whether a value follows them.
const LEFT_OUT: [(&str, bool); 19] = [
    ("--jobs", true),
    ("--report", true),
    ("-o", true),
    ("--output", true),
    ("--outfile", true),
    ("--threads", true),
    ("--sign", true),
    ("--password-file", true),
    ("--device", true),
    ("-f", false),
    ("--force", false),
    ("--dry-run", false),
    ("--tar", false),
    ("--json", false),
    ("-q", false),
    ("--quiet", false),
    ("-v", false),
    ("--verbose", false),
    ("--no-password", false),
];

/// The arguments without [`LEFT_OUT`], each path cut to its last part.
pub fn normal_form(arguments: impl Iterator<Item = OsString>) -> String {
    let mut out = vec!["ptplus".to_owned()];
    let mut is_value_left_out = false;
    for argument in arguments.skip(1) {
        let text = argument.to_string_lossy();
        if std::mem::take(&mut is_value_left_out) {
            continue;
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (&*text, None),
        };
        if let Some((_, has_value)) = LEFT_OUT.iter().find(|(option, _)| *option == name) {
            is_value_left_out = *has_value && value.is_none();
            continue;
        }
        // `-oFILE`; no other short option takes a value.
        if name.starts_with("-o") && !name.starts_with("--") {
            continue;
        }
        out.push(match value {
            Some(value) => format!("{name}={}", quoted(last_part(value))),
            None => quoted(last_part(name)),
        });
    }
    out.join(" ")
}

/// The normal form that a conversion of many adapters would have had on `adapter` alone: an output does not tell in what
/// company it was made. Without a subcommand's positional arguments, which are the adapters.
pub fn normal_form_alone(arguments: impl Iterator<Item = OsString>, adapter: &Path) -> String {
    let mut out = Vec::new();
    let mut is_value = false;
    let mut n_positional = 0;
    for argument in arguments.skip(1) {
        let text = argument.to_string_lossy().into_owned();
        let is_option = text.starts_with('-') && !is_value;
        if is_option && text == "--" {
            continue;
        }
        if is_option || is_value {
            is_value = is_option && takes_value(&text);
            out.push(argument);
            continue;
        }
        // The first one is the subcommand.
        n_positional += 1;
        if n_positional == 1 {
            out.extend([argument, adapter.as_os_str().to_owned()]);
        }
    }
    normal_form(std::iter::once("ptplus".into()).chain(out))
}

/// Whether the next argument is this option's value.
fn takes_value(option: &str) -> bool {
    let is_it = |a: &clap::Arg| {
        let longs = a.get_long_and_visible_aliases().into_iter().flatten().map(|l| format!("--{l}"));
        let shorts = a.get_short().map(|s| format!("-{s}"));
        longs.chain(shorts).any(|name| name == option)
    };
    let takes = |a: &clap::Arg| a.get_action().takes_values() && !a.is_require_equals_set();
    let cli = super::Cli::command();
    cli.find_subcommand("convert").into_iter().flat_map(clap::Command::get_arguments).any(|a| is_it(a) && takes(a))
}

fn last_part(text: &str) -> &str {
    let trimmed = text.trim_end_matches('/');
    if trimmed.is_empty() { text } else { trimmed.rsplit('/').next().unwrap_or(trimmed) }
}

/// As a shell needs it.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:=+@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_decides_the_output_stays() {
        let normal = |line: &str| normal_form(line.split(' ').map(OsString::from));
        let expected = "ptplus convert adapter --base model --outtype q8_0";
        for line in [
            "/usr/bin/ptplus convert /home/me/adapter/ --base ../model --outtype q8_0 -o /tmp/x.gguf",
            "ptplus convert adapter -o x.gguf --base=/data/model --outtype q8_0 --threads 2 --force -q",
            "ptplus convert adapter -ox.gguf --base model --outtype q8_0 --threads=16 --json",
        ] {
            assert_eq!(normal(line).replace("--base=model", "--base model"), expected, "{line}");
        }
        for line in [
            "ptplus convert --jobs 4 a/adapter /x/other -o out --base model --outtype q8_0",
            "ptplus --json convert a --base model -f folder/ --outtype q8_0 -oout --jobs=4 b",
        ] {
            let one = normal_form_alone(line.split(' ').map(OsString::from), Path::new("some/where/adapter"));
            assert_eq!(one, expected, "{line}");
        }
        assert_eq!(
            normal_form(["p", "quantize", "a b", "q8_0"].map(OsString::from).into_iter()),
            "ptplus quantize 'a b' q8_0"
        );
    }
}
