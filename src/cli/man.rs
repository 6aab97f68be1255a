use std::path::PathBuf;

use clap::CommandFactory as _;
use serde_json::json;

use super::Cli;
use super::ui::Ui;
use crate::error::{Error, ErrorKind, Result, escape};
use crate::format::bundle::place;
use crate::format::output::{OutputFile, Overwrite};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  ptplus man ~/.local/share/man/man1")]
pub struct Arguments {
    /// Folder for the pages, made if it is not there: ptplus.1 and one for each command
    folder: PathBuf,
    /// Replace existing pages
    #[arg(short, long)]
    force: bool,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    let mut root = Cli::command();
    root.build();
    let mut pages = vec![("ptplus.1".to_owned(), page(&root, "ptplus")?)];
    for command in root.get_subcommands().filter(|c| c.get_name() != "help") {
        let name = format!("ptplus-{}", command.get_name());
        pages.push((format!("{name}.1"), page(command, &name)?));
    }
    place::refuse_inside_bundle(&a.folder.join("any"))?;
    std::fs::create_dir_all(&a.folder).map_err(|e| Error::io(&a.folder, "cannot create", e))?;
    let overwrite = if a.force { Overwrite::Force } else { Overwrite::Never };
    let mut staged = Vec::new();
    for (name, text) in &pages {
        let out = OutputFile::create(&a.folder.join(name), overwrite, &[])?;
        out.write_all_at(0, text)?;
        staged.push(out);
    }
    staged.into_iter().try_for_each(OutputFile::commit)?;
    let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
    let text = format!("wrote {} pages to {}\n", names.len(), escape(&a.folder.to_string_lossy()));
    ui.made(json!({ "folder": a.folder.to_string_lossy(), "pages": names }), text);
    Ok(0)
}

/// One page in roff. The crate would put what stands below the options under the heading EXTRA.
fn page(command: &clap::Command, name: &str) -> Result<Vec<u8>> {
    let below = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let man = clap_mangen::Man::new(command.clone().after_help(""))
        .source(format!("ptplus {}", crate::version::VERSION))
        .manual("ptplus");
    let mut out = Vec::new();
    let written = (|| {
        man.render_title(&mut out)?;
        man.render_name_section(&mut out)?;
        man.render_synopsis_section(&mut out)?;
        man.render_description_section(&mut out)?;
        man.render_options_section(&mut out)?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut out)?;
        }
        let (notes, examples) = match below.find("Example") {
            Some(at) => (&below[..at], Some(&below[at..])),
            None => (&*below, None),
        };
        if !notes.trim().is_empty() {
            section(&mut out, "NOTES", notes.trim());
        }
        if let Some((_, lines)) = examples.and_then(|e| e.split_once('\n')) {
            section(&mut out, "EXAMPLES", lines);
        }
        section(&mut out, "EXIT STATUS", &exit_status());
        std::io::Result::Ok(())
    })();
    written.map_err(|e| Error::io(std::path::Path::new(name), "cannot write", e))?;
    Ok(out)
}

fn exit_status() -> String {
    let kinds = ErrorKind::ALL.iter().map(|k| (i32::from(k.exit_code()), k.meaning()));
    let ends = [(0, "Ok.")].into_iter().chain(kinds).chain([(130, "Interrupted; no unfinished output was kept.")]);
    ends.map(|(code, meaning)| format!("{code:<4} {meaning}\n")).collect()
}

/// Paragraphs: one of a single line is filled, the lines of others stay as they are.
fn section(out: &mut Vec<u8>, title: &str, text: &str) {
    let mut roff = format!(".SH {title}\n");
    for paragraph in text.split("\n\n") {
        let (start, end) = if paragraph.trim().contains('\n') { (".PP\n.nf\n", ".fi\n") } else { (".PP\n", "") };
        roff += start;
        for line in paragraph.lines() {
            let line = line.replace('\\', "\\e").replace('-', "\\-");
            // At the start of a line a dot or a quote would be a command of roff's.
            let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
            roff += &format!("{guard}{line}\n");
        }
        roff += end;
    }
    out.extend_from_slice(roff.as_bytes());
}
