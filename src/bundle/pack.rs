//! Makes a bundle: convert, verify, describe, hash, sign, and only then put it in place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::card::{self, Card};
use super::digest::{AdapterDigest, of_tensors};
use super::form::PackedForm;
use super::naming::download_name;
use super::provenance::{self, Materials};
use super::reports;
use super::seal::{self, Signers};
use super::staging::{Place, entries, entry};
use super::stated;
use super::written::make_adapter;
use crate::about::About;
use crate::base::BaseModel;
use crate::base::fingerprint::{Fingerprint, Identity};
use crate::error::{Code, Error, Result};
use crate::export::types::OutType;
use crate::format::bundle::manifest;
use crate::format::bundle::signature::Signer;
use crate::format::bundle::{
    ADAPTER_FILE, CARD_FILE, CHAT_TEMPLATE_FILE, GENERATION_FILE, PROVENANCE_FILE, VERIFICATION_REPORT, model_signing,
};
use crate::pipeline::{self, Convert, Converted, Format, TypeRules};
use crate::search::Settlement;
use crate::tensor::Bytes;
use crate::validate::Validated;
use crate::verify::{self, Prompts, Reference, Report};

pub use super::date::source_date;

pub(super) const CONVERSION_REPORT: &str = "reports/conversion.json";

/// What to pack and how; [`Pack::new`] has the defaults.
#[non_exhaustive]
pub struct Pack<'a> {
    /// The conversion; its output is the bundle, its base is needed.
    pub convert: Convert<'a>,
    /// Whether the bundle is an archive.
    pub is_tar: bool,
    /// How to verify where there is no probe: against the source.
    pub options: verify::Options<'a>,
    /// What both are asked then.
    pub prompts: Prompts,
    /// Who signs the manifest.
    pub signer: Option<&'a Signer>,
    /// Who signs all files, for model signing.
    pub model_signer: Option<&'a model_signing::Signer>,
    /// More forms of the adapter beside the conversion's, which is the one that is read where nothing says which.
    pub more_forms: Vec<Form<'a>>,
    /// What the adapter is to say, instead of what it says of the same matters.
    pub about: About,
    /// The command in its normal form.
    pub command: &'a str,
    /// The date of the bundle, where one is wanted: see [`source_date`].
    pub date: Option<String>,
}

impl<'a> Pack<'a> {
    /// A folder without signature or date, whose adapter says what it says.
    pub fn new(convert: Convert<'a>, options: verify::Options<'a>, prompts: Prompts, command: &'a str) -> Self {
        Pack {
            convert,
            is_tar: false,
            options,
            prompts,
            signer: None,
            model_signer: None,
            more_forms: Vec::new(),
            about: About::default(),
            command,
            date: None,
        }
    }
}

/// One more form of the adapter in a bundle.
#[derive(Clone)]
pub struct Form<'a> {
    /// What it is called: the name of a type, or `safetensors`.
    pub name: String,
    /// Which format.
    pub format: Format,
    /// Which element types.
    pub types: &'a TypeRules,
}

/// What was made.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Packed {
    /// The bundle.
    #[serde(serialize_with = "crate::lossy::path")]
    pub output: PathBuf,
    /// Each file with its size.
    pub files: BTreeMap<String, u64>,
    /// Name suggested for a download.
    pub download_name: String,
    /// Digests of the adapter; none of a model.
    pub digest: Option<AdapterDigest>,
    /// Whether the base is the one that the adapter was made for, where it said which.
    pub base_identity: Option<Identity>,
    /// Base64 of the key that signed.
    pub public_key: Option<String>,
    /// What it was verified against.
    pub reference: &'static str,
    /// The verification.
    pub verification: Report,
    /// Every form of the adapter, where there are several; the first is the one that is read where nothing says which.
    pub forms: Vec<PackedForm>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Fields of the card that a hub wants and nothing says.
    pub missing_for_a_hub: Vec<&'static str>,
}

/// Packs an adapter.
///
/// # Errors
///
/// Those of [`pipeline::convert`]; [`Code::Usage`] without a base; [`Code::NumbersDiffer`] and [`Code::NoEffect`]
/// where the verification fails. Nothing is left behind then.
pub fn pack(job: Pack<'_>) -> Result<Packed> {
    let missing = || Error::new(Code::Usage, "expected --base: a bundle says which base it is for").field("--base");
    let base = job.convert.base.ok_or_else(missing)?;
    let base_files = base.files();
    let inputs: Vec<&Path> = (base_files.iter().map(PathBuf::as_path))
        .chain([job.convert.adapter])
        .chain(job.convert.prove.as_ref().map(|p| p.path))
        .collect();
    let place = Place::open(job.convert.output, job.is_tar, job.convert.overwrite, &inputs)?;
    let probe = job.convert.prove.as_ref().map(|p| p.path);
    let Pack { convert, options, prompts, signer, model_signer, more_forms, about, command, date, .. } = job;

    let (mut source, conventions) =
        pipeline::read_adapter_settling(convert.adapter, convert.reading, Some(base), convert.prove.as_ref())?;
    let identity = source.confirm_base(base, crate::base::fingerprint::Depth::Weights, convert.base_mismatch)?;
    source.say(&about)?;
    // A file that does not name this base, or does not say what is asked for, is written anew, so that the bundle's own copy does.
    let target = convert.output;
    let names_base = matches!(identity, Some(Identity::Same | Identity::CannotTell(_)));
    let keeps_file = names_base && about.is_empty();
    let make = |convert: Convert<'_>, conventions: Option<Settlement>, file: &str| -> Result<Made> {
        let made = make_adapter(convert, &source, conventions, place.work(), file, keeps_file)
            .map_err(|e| e.moved(place.work(), target))?;
        let adapter = pipeline::read_adapter(&place.work().join(&made.files[0]), Some(base))?;
        let report = match made.proof {
            Some(report) => report,
            None => against_source(&adapter, &source, base, &prompts, &options)?,
        };
        Ok(Made { files: made.files, converted: made.converted, adapter, report })
    };
    let reference = if convert.prove.is_some() { "what PyTorch computed" } else { "its source" };
    let name_of_first = match (convert.format, convert.types.default) {
        (Format::Safetensors, _) => Some("safetensors".to_owned()),
        (Format::Gguf, OutType::Keep) => None,
        (Format::Gguf, default) => Some(default.to_string()),
    };
    let first = make(convert.clone(), conventions, ADAPTER_FILE)?;
    let more = more_forms.into_iter().map(|form| {
        let convert = Convert { format: form.format, types: form.types, auto_kl: None, ..convert.clone() };
        let made = make(convert, None, &format!("adapter-{}.gguf", form.name))?;
        Ok((form.name, made))
    });
    let more: Vec<(String, Made)> = more.collect::<Result<_>>()?;
    let Made { adapter, report, .. } = &first;

    let mut notes = first.converted.as_ref().map_or_else(|| source.notes.clone(), |c| c.notes.clone());
    for note in more.iter().filter_map(|(_, made)| made.converted.as_ref()).flat_map(|c| &c.notes) {
        if !notes.contains(note) {
            notes.push(note.clone());
        }
    }
    // Whoever runs the bundle in llama.cpp should know.
    notes.extend(pipeline::window_note(base).filter(|note| !notes.contains(note)));
    let said = About::of(adapter.adapter())?;
    let digest = AdapterDigest::of(adapter.adapter());
    let encoding = stated::main_type(adapter);
    let base_name = card::base_name(adapter.adapter(), base);
    let n_parameters = base.tensors().map(|t| t.shape.iter().map(|d| *d as u64).product::<u64>()).sum();
    let name = download_name(
        Some(adapter.adapter().kind()),
        Some(&base_name),
        n_parameters,
        said.version.as_deref(),
        encoding,
    );
    let public_key = signer.map(Signer::public_base64);
    let mut texts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let text = |v: Value| manifest::canonical_text(&v).into_bytes();
    let name_of_first = name_of_first.unwrap_or_else(|| encoding.name().to_lowercase());
    let forms = [(name_of_first, &first)].into_iter().chain(more.iter().map(|(name, made)| (name.clone(), made)));
    let mut packed_forms = Vec::new();
    for (i, (form, made)) in forms.enumerate() {
        let named = |report: &str| match i {
            0 => report.to_owned(),
            _ => report.replace(".json", &format!("-{form}.json")),
        };
        texts.insert(named(VERIFICATION_REPORT), text(reports::verification(&made.report, reference)));
        if let Some(converted) = &made.converted {
            texts.insert(named(CONVERSION_REPORT), text(reports::conversion(converted)));
        }
        packed_forms.push(PackedForm {
            name: form.clone(),
            file: made.files[0].clone(),
            dtype: stated::main_type(&made.adapter).name(),
            digest: Some(AdapterDigest::of(made.adapter.adapter())),
            report: named(VERIFICATION_REPORT),
            verification: made.report.clone(),
        });
    }
    let files: Vec<String> =
        [&first].into_iter().chain(more.iter().map(|(_, made)| made)).flat_map(|m| m.files.clone()).collect();
    let card = Card {
        adapter,
        about: &said,
        description: about.description.as_deref(),
        base,
        weights_file: &first.files[0],
        forms: &packed_forms,
        download_name: &name,
        report,
        reference,
        converted: first.converted.as_ref(),
        notes: &notes,
        digest: &digest.canonical,
        command,
        public_key: public_key.as_deref(),
    };
    texts.insert(CARD_FILE.into(), card.text().into_bytes());
    texts.extend(said.chat_template.iter().map(|t| (CHAT_TEMPLATE_FILE.to_owned(), t.clone().into_bytes())));
    texts.extend(said.sampling.generation_config().map(|c| (GENERATION_FILE.to_owned(), text(c))));

    let of_base = describe_base(adapter, base, &base_name)?;
    let mut entries = entries(place.work(), &files, &texts)?;
    let materials = Materials {
        files: (source.origin.files.iter().map(PathBuf::as_path)).chain(probe).collect(),
        base_name: &base_name,
        base_id: said.base_model.as_deref(),
        base_fingerprint: of_base["fingerprint"].as_str().unwrap_or_default(),
        command,
    };
    let subjects = files.iter().filter_map(|file| Some((file.as_str(), entries.get(file)?))).collect();
    let statement = text(provenance::statement(&subjects, &materials)?);
    entries.insert(PROVENANCE_FILE.into(), entry(&Bytes::from(statement.clone())));
    texts.insert(PROVENANCE_FILE.into(), statement);
    let mut more = Map::new();
    let mut described = stated::of_adapter(adapter, &digest);
    described.insert("download_name".into(), name.clone().into());
    more.insert("adapter".into(), described.into());
    more.insert("about".into(), said.to_json());
    more.insert("base".into(), of_base);
    more.insert("command".into(), command.into());
    more.insert("notes".into(), json!(notes));
    more.insert("reports".into(), texts.keys().filter(|k| k.starts_with("reports/")).map(String::as_str).collect());
    more.insert("source".into(), describe_source(&source, first.converted.as_ref()));
    more.insert("tensors".into(), json!(of_tensors(adapter)));
    let forms = if packed_forms.len() > 1 { packed_forms } else { Vec::new() };
    if !forms.is_empty() {
        more.insert("forms".into(), forms.iter().map(stated::of_form).collect());
    }
    if let Some(date) = date {
        more.insert("date".into(), date.into());
    }
    texts.extend(seal::own_files(
        &entries,
        more,
        Signers { manifest: signer, model: model_signer },
        seal::subject(&name),
    )?);

    let output = place.put(&files, &texts)?;
    let mut files: BTreeMap<String, u64> = entries.into_iter().map(|(path, e)| (path, e.size)).collect();
    files.extend(texts.iter().map(|(path, text)| (path.clone(), text.len() as u64)));
    Ok(Packed {
        output,
        files,
        download_name: name,
        digest: Some(digest),
        base_identity: identity,
        public_key,
        reference,
        verification: first.report,
        forms,
        notes,
        missing_for_a_hub: said.missing_for_a_hub(),
    })
}

/// One form of the adapter: its files in the working folder, the weights first, and what it was found to compute.
struct Made {
    files: Vec<String>,
    converted: Option<Converted>,
    adapter: Validated,
    report: Report,
}

fn against_source(
    adapter: &Validated,
    source: &Validated,
    base: &BaseModel,
    prompts: &Prompts,
    options: &verify::Options<'_>,
) -> Result<Report> {
    let reference = Reference::Adapter { adapter: source, base: None, prompts };
    verify::verify(adapter, base, reference, options)?.passed("no bundle was made", &source.origin.path)
}

fn describe_base(adapter: &Validated, base: &BaseModel, name: &str) -> Result<Value> {
    let fingerprint = match adapter.base_fingerprint() {
        Some(text) => text.to_owned(),
        None => Fingerprint::of(base, &adapter.adapter().touched())?.to_string(),
    };
    let ignored = adapter.adapter().extra().get(crate::import::stated::BASE_MISMATCH_IGNORED);
    Ok(json!({
        "name": name,
        "architecture": base.gguf_architecture(),
        "model_type": base.config.model_type,
        "fingerprint": fingerprint,
        "mismatch_ignored": ignored == Some(&Value::Bool(true)),
    }))
}

fn describe_source(source: &Validated, converted: Option<&Converted>) -> Value {
    json!({
        "layout": source.origin.layout,
        "sha256": converted.and_then(|c| c.source_sha256.clone()).or_else(|| source.origin.recorded_source_sha256.clone()),
    })
}
