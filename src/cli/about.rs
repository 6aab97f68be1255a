//! Flags about what an adapter says beside its numbers.

use std::path::{Path, PathBuf};

use super::command::Recorded;
use super::text::{read_template, read_text};
use crate::about::{About, Sampling, TEXT_BYTES};
use crate::error::Result;
use crate::format::bundle::CHAT_TEMPLATE_FILE;
use crate::format::bundle::container::is_bundle;

/// What a packed adapter says.
#[derive(clap::Args)]
#[command(next_help_heading = "What the adapter says: in its file, the manifest and the card")]
pub struct AboutFlags {
    /// What it is called
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Its version
    #[arg(long, value_name = "TEXT")]
    version: Option<String>,
    /// Who made it
    #[arg(long, value_name = "TEXT")]
    author: Option<String>,
    /// For whom
    #[arg(long, value_name = "TEXT")]
    organization: Option<String>,
    /// Licence: an identifier of the hub (apache-2.0, mit, ...), or the name of another
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// Where the licence's text is: an address, or a file beside the card
    #[arg(long, value_name = "LINK")]
    license_link: Option<String>,
    /// Languages, as ISO 639 codes
    #[arg(long, value_name = "CODE,...", value_delimiter = ',')]
    language: Vec<String>,
    /// Words by which it is found
    #[arg(long, visible_alias = "tag", value_name = "TAG,...", value_delimiter = ',')]
    tags: Vec<String>,
    /// Data sets of the hub that it was trained on
    #[arg(long, visible_alias = "datasets", value_name = "ID,...", value_delimiter = ',')]
    dataset: Vec<String>,
    /// The base's name on the hub, ORGANIZATION/NAME
    #[arg(long, value_name = "ID")]
    base_model: Option<String>,
    /// A file with some paragraphs for the card, in Markdown
    #[arg(long, value_name = "FILE")]
    description: Option<PathBuf>,
    /// A file with the chat template that it was trained with; by default the chat_template.jinja in the adapter's folder
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
    /// What the model is to be told before each prompt
    #[arg(long, visible_alias = "system-prompt", value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingFlags,
}

impl AboutFlags {
    /// As the library wants it; files are read. Trainers leave the chat template beside the weights: without a flag, the one
    /// in the adapter's folder counts.
    pub fn read(&self, adapter: &Path) -> Result<About> {
        let beside = adapter.join(CHAT_TEMPLATE_FILE);
        let is_there = adapter.is_dir() && !is_bundle(adapter) && beside.is_file();
        let template_file = self.chat_template_file.clone().or(is_there.then_some(beside));
        let description = self.description.as_deref().map(|path| read_text(path, "the description", TEXT_BYTES));
        let about = About {
            name: self.name.clone(),
            version: self.version.clone(),
            author: self.author.clone(),
            organization: self.organization.clone(),
            license: self.license.clone(),
            license_link: self.license_link.clone(),
            languages: self.language.clone(),
            tags: self.tags.clone(),
            datasets: self.dataset.clone(),
            base_model: self.base_model.clone(),
            description: description.transpose()?,
            chat_template: template_file.as_deref().map(read_template).transpose()?,
            system: self.system.clone(),
            sampling: self.sampling.stated()?,
        };
        about.check()?;
        #[cfg(feature = "generate")]
        if let (Some(text), Some(path)) = (&about.chat_template, &template_file) {
            crate::generate::Template::new(text).map_err(|e| e.file(path))?;
        }
        Ok(about)
    }

    pub fn inputs(&self) -> [Option<&Path>; 2] {
        [self.description.as_deref(), self.chat_template_file.as_deref()]
    }

    pub fn record(&self, command: &mut Recorded) {
        let AboutFlags {
            name,
            version,
            author,
            organization,
            license,
            license_link,
            language,
            tags,
            dataset,
            base_model,
            description,
            chat_template_file,
            system,
            sampling,
        } = self;
        for (flag, value) in [
            ("--name", name),
            ("--version", version),
            ("--author", author),
            ("--organization", organization),
            ("--license", license),
            ("--license-link", license_link),
        ] {
            command.value(flag, value.as_ref());
        }
        for (flag, list) in [("--language", language), ("--tags", tags), ("--dataset", dataset)] {
            command.value(flag, Some(list.join(",")).filter(|text| !text.is_empty()));
        }
        command.value("--base-model", base_model.as_ref());
        command.file("--description", description.as_deref());
        command.file("--chat-template-file", chat_template_file.as_deref());
        command.value("--system", system.as_ref());
        sampling.record(command);
    }
}

/// How tokens are chosen: llama.cpp's names and meanings.
#[derive(clap::Args, Clone, Copy)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingFlags {
    /// Temperature; 0 takes the most likely token always
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temp: Option<f32>,
    /// Only the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<i32>,
    /// Only the most likely tokens whose probabilities add up to P; 1 for all
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Only tokens at least P times as probable as the most likely one; 0 for all
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Makes tokens that occurred less likely; 1 for no change
    #[arg(long, value_name = "X")]
    repeat_penalty: Option<f32>,
    /// How many of the last tokens count for that; -1 for all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    repeat_last_n: Option<i32>,
}

impl SamplingFlags {
    /// What the flags say.
    pub fn stated(&self) -> Result<Sampling> {
        let SamplingFlags { temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n } = *self;
        let sampling = Sampling { temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n };
        sampling.check()?;
        Ok(sampling)
    }

    fn record(&self, command: &mut Recorded) {
        let SamplingFlags { temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n } = *self;
        command.value("--temp", temp);
        command.value("--top-k", top_k);
        command.value("--top-p", top_p);
        command.value("--min-p", min_p);
        command.value("--repeat-penalty", repeat_penalty);
        command.value("--repeat-last-n", repeat_last_n);
    }
}
