//! Makes a bundle of a model: adapters merged into their base, verified beside them, described, hashed, signed, and only then put in
//! place. Weights are written a few rows at a time and read from memory maps, so that a model needs no more memory than an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::digest::{AdapterDigest, of_model_tensors};
use super::form::{PackedForm, Part};
use super::model_card::ModelCard;
use super::naming::download_name;
use super::pack::{CONVERSION_REPORT, Packed};
use super::provenance::{self, Materials};
use super::seal::{self, Signers};
use super::staging::{Place, entries, entry};
use super::stated;
use super::{card, reports};
use crate::about::{About, Sampling, agreed};
use crate::adapter::Adapter;
use crate::base::BaseModel;
use crate::base::fingerprint::{Depth, Fingerprint, Identity, Touched};
use crate::error::{Code, Error, Result};
use crate::export::types::OutType;
use crate::format::bundle::manifest;
use crate::format::bundle::{
    CARD_FILE, CHAT_TEMPLATE_FILE, GENERATION_FILE, MODEL_FILE, PROVENANCE_FILE, VERIFICATION_REPORT,
};
use crate::pipeline::{self, ConvertBase, TypeRules};
use crate::tensor::Bytes;
use crate::validate::{BaseMismatch, Validated};
use crate::verify::{self, Prompts, verify_merged_beside_parts};

/// What to pack and how.
pub struct PackMerged<'a> {
    /// The merge; its output is the bundle, and its types are those of the first form.
    pub convert: ConvertBase<'a>,
    /// Types of more forms of the model.
    pub more_types: &'a [TypeRules],
    /// Whether the bundle is an archive.
    pub is_tar: bool,
    /// How to verify where there is no probe: beside the base with the adapters.
    pub options: verify::Options<'a>,
    /// What both are asked then.
    pub prompts: Prompts,
    /// Who signs.
    pub signers: Signers<'a>,
    /// The command in its normal form.
    pub command: &'a str,
    /// The date of the bundle, where one is wanted: see [`source_date`](super::pack::source_date).
    pub date: Option<String>,
}

/// Packs a base with adapters merged into it.
///
/// # Errors
///
/// [`Code::Usage`] without an adapter, and where adapters say different things that nothing decides; those of
/// [`pipeline::convert_base`]; [`Code::NumbersDiffer`] and [`Code::NoEffect`] where the verification of any form fails. Nothing is left
/// behind then.
pub fn pack_merged(job: PackMerged<'_>) -> Result<Packed> {
    let PackMerged { convert, more_types, is_tar, options, prompts, signers, command, date } = job;
    if convert.merge.is_empty() {
        let message = "expected an adapter to merge, found none: a base alone is nobody's to prove";
        return Err(Error::new(Code::Usage, message).field("--merge"));
    }
    let base = BaseModel::open(convert.base)?;
    let adapters = pipeline::read_adapters(convert.merge, &base, convert.base_mismatch)?;
    let parts: Vec<Part> =
        convert.merge.iter().zip(&adapters).map(|((path, _), a)| part(path, a)).collect::<Result<_>>()?;
    let base_name = card::base_name(adapters[0].0.adapter(), &base);
    let mut about = said(convert.about.cloned().unwrap_or_default(), &adapters)?;
    // The base's name is another model's.
    about.name.get_or_insert_with(|| name_of(&base_name, &parts));
    let base_files = base.files();
    let of_adapters: Vec<&Path> = adapters.iter().flat_map(|(a, _)| &a.origin.files).map(PathBuf::as_path).collect();
    let probe = convert.prove.as_ref().map(|p| p.path);
    let inputs: Vec<&Path> =
        base_files.iter().map(PathBuf::as_path).chain(of_adapters.iter().copied()).chain(probe).collect();
    let place = Place::open(convert.output, is_tar, convert.overwrite, &inputs)?;

    let (mut forms, mut texts, mut notes) = (Vec::new(), BTreeMap::<String, Vec<u8>>::new(), Vec::<String>::new());
    let text = |v: Value| manifest::canonical_text(&v).into_bytes();
    let lanes: Vec<(&Adapter, f64)> = adapters.iter().map(|(a, scale)| (a.adapter(), *scale)).collect();
    let reference = match convert.prove {
        Some(_) => "what PyTorch computed",
        None => "its base with the adapters beside it",
    };
    let all_types = || [convert.types].into_iter().chain(more_types);
    // What cannot be written is told before anything is.
    for types in all_types() {
        let planned = ConvertBase { about: Some(&about), types, dry_run: true, prove: None, ..convert.clone() };
        pipeline::convert_base_into(&planned)?;
    }
    for (i, types) in all_types().enumerate() {
        let name = types.default.to_string();
        let file = if i == 0 { MODEL_FILE.to_owned() } else { format!("model-{name}.gguf") };
        let path = place.work().join(&file);
        let job = ConvertBase { output: &path, about: Some(&about), types, ..convert.clone() };
        let written = pipeline::convert_base_into(&job);
        let mut converted = written.map_err(|e| e.moved(place.work(), convert.output))?;
        let model = BaseModel::from_gguf(&path)?;
        let report = match converted.verification.take() {
            Some(report) => report,
            None => verify_merged_beside_parts(&model, &base, &lanes, &prompts, &options)?
                .passed("no bundle was made", convert.base)?,
        };
        notes.extend(converted.notes.iter().filter(|note| !notes.contains(note)).cloned().collect::<Vec<_>>());
        let dtype = stated::main_type_of_model(&model);
        let name = if matches!(types.default, OutType::Keep) { dtype.name().to_lowercase() } else { name };
        let named = |report: &str| match i {
            0 => report.to_owned(),
            _ => report.replace(".json", &format!("-{name}.json")),
        };
        texts.insert(named(VERIFICATION_REPORT), text(reports::verification(&report, reference)));
        texts.insert(named(CONVERSION_REPORT), text(reports::conversion(&converted)));
        let (dtype, report_file) = (dtype.name(), named(VERIFICATION_REPORT));
        forms.push(PackedForm { name, file, dtype, digest: None, report: report_file, verification: report });
    }
    let model = BaseModel::from_gguf(&place.work().join(MODEL_FILE))?;
    let said = model.metadata.as_ref().map_or_else(|| Ok(About::default()), About::of_model)?;
    let described = stated::of_model(&model);
    let n_parameters = described["num_parameters"].as_u64().unwrap_or_default();
    let encoding = stated::main_type_of_model(&model);
    let download_name = download_name(None, Some(&base_name), n_parameters, said.version.as_deref(), encoding);
    let public_key = signers.manifest.map(crate::format::bundle::signature::Signer::public_base64);
    let verification = forms[0].verification.clone();
    let card = ModelCard {
        model: &model,
        about: &said,
        description: about.description.as_deref(),
        base_name: &base_name,
        parts: &parts,
        forms: &forms,
        download_name: &download_name,
        report: &verification,
        reference,
        notes: &notes,
        command,
        public_key: public_key.as_deref(),
    };
    texts.insert(CARD_FILE.into(), card.text().into_bytes());
    texts.extend(said.chat_template.iter().map(|t| (CHAT_TEMPLATE_FILE.to_owned(), t.clone().into_bytes())));
    texts.extend(said.sampling.generation_config().map(|c| (GENERATION_FILE.to_owned(), text(c))));

    let files: Vec<String> = forms.iter().map(|form| form.file.clone()).collect();
    let mut entries = entries(place.work(), &files, &texts)?;
    let of_base = describe_base(&adapters, &base, &base_name)?;
    let materials = Materials {
        files: of_adapters.into_iter().chain(probe).collect(),
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
    let mut described = described;
    described.insert("download_name".into(), download_name.clone().into());
    more.insert("model".into(), described.into());
    more.insert("merged".into(), json!(parts));
    more.insert("about".into(), said.to_json());
    more.insert("base".into(), of_base);
    more.insert("command".into(), command.into());
    more.insert("notes".into(), json!(notes));
    more.insert("reports".into(), texts.keys().filter(|k| k.starts_with("reports/")).map(String::as_str).collect());
    more.insert("tensors".into(), json!(of_model_tensors(&model)?));
    let forms = if forms.len() > 1 { forms } else { Vec::new() };
    if !forms.is_empty() {
        more.insert("forms".into(), forms.iter().map(stated::of_form).collect());
    }
    if let Some(date) = date {
        more.insert("date".into(), date.into());
    }
    texts.extend(seal::own_files(&entries, more, signers, seal::subject(&download_name))?);
    drop(model);
    let output = place.put(&files, &texts)?;
    let mut files: BTreeMap<String, u64> = entries.into_iter().map(|(path, e)| (path, e.size)).collect();
    files.extend(texts.iter().map(|(path, text)| (path.clone(), text.len() as u64)));
    Ok(Packed {
        output,
        files,
        download_name,
        digest: None,
        base_identity: None,
        public_key,
        reference,
        verification,
        forms,
        notes,
        missing_for_a_hub: said.missing_for_a_hub(),
    })
}

/// What the model is to say: what the packer states, and of the matters of whoever runs it what the adapters say. Their names and
/// licences are theirs.
fn said(stated: About, adapters: &[(Validated, f64)]) -> Result<About> {
    let all = adapters.iter().map(|(a, _)| About::of(a.adapter())).collect::<Result<Vec<_>>>()?;
    let one = |flag: &str, stated: &Option<String>, of: fn(&About) -> Option<&str>| match stated {
        Some(text) => Ok(Some(text.clone())),
        None => agreed(flag, all.iter().map(of)).map(|text| text.map(str::to_owned)),
    };
    let samplings: Vec<Sampling> = all.iter().map(|a| a.sampling).collect();
    Ok(About {
        chat_template: one("--chat-template-file", &stated.chat_template, |a| a.chat_template.as_deref())?,
        system: one("--system", &stated.system, |a| a.system.as_deref())?,
        base_model: one("--base-model", &stated.base_model, |a| a.base_model.as_deref())?,
        sampling: Sampling::agreed(stated.sampling, &samplings)?,
        ..stated
    })
}

/// `SmolLM2-135M-Instruct with pirate`
fn name_of(base_name: &str, parts: &[Part]) -> String {
    let base = base_name.rsplit('/').next().unwrap_or(base_name);
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let name = format!("{base} with {}", names.join(" and "));
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

fn part(path: &Path, (adapter, scale): &(Validated, f64)) -> Result<Part> {
    let last = || path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(Part {
        name: About::of(adapter.adapter())?.name.unwrap_or_else(last),
        kind: adapter.adapter().kind().name(),
        scale: *scale,
        digest: AdapterDigest::of(adapter.adapter()),
    })
}

fn describe_base(adapters: &[(Validated, f64)], base: &BaseModel, name: &str) -> Result<Value> {
    let mut touched = BTreeSet::new();
    let mut is_ignored = false;
    for (adapter, _) in adapters {
        if let Touched::Weights(weights) = adapter.adapter().touched() {
            touched.extend(weights);
        }
        let identity = adapter.confirm_base(base, Depth::Weights, BaseMismatch::Ignore)?;
        is_ignored |= matches!(identity, Some(Identity::Different(_)));
    }
    Ok(json!({
        "name": name,
        "architecture": base.gguf_architecture(),
        "model_type": base.config.model_type,
        "fingerprint": Fingerprint::of(base, &Touched::Weights(touched))?.to_string(),
        "mismatch_ignored": is_ignored,
    }))
}
