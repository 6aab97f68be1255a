mod merged;
#[cfg(feature = "report")]
mod report;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use super::about::AboutFlags;
use super::base_check::{self, BaseCheck};
use super::command::Recorded;
use super::job::TokenizerArguments;
use super::password::PasswordArguments;
use super::progress::Unit;
use super::reading::Reading;
use super::scaled::path_and_scale;
use super::types::TypeArguments;
use super::ui::Ui;
use super::usage;
use crate::bundle::pack::{Form, Pack, Packed, pack, source_date};
use crate::error::{Result, escape};
use crate::export::types::OutType;
use crate::format::bundle::container::is_called_tar;
use crate::format::bundle::signature::Signer;
use crate::format::bundle::{MODEL_SIGNATURE_FILE, model_signing};
use crate::format::output::Overwrite;
use crate::import::Options;
use crate::pipeline::{Convert, Format, Measure, Proof, Tokenizer, TypeRules};
use crate::runner::DeviceChoice;
use crate::transform::cast::Overflow;
use crate::transform::loss::Bound;
use crate::verify::probe::Probe;
use crate::verify::tolerance::Tolerance;
use crate::verify::{self, Prompts};
use merged::pack_model;
#[cfg(feature = "report")]
use report::{Run, write_report};

#[derive(clap::Args)]
#[command(
    after_help = "A bundle is made only of an adapter that was verified: against PyTorch with --probe, else by running it beside its source. It is a folder, or with an output that ends in .tar one uncompressed archive: the adapter, a manifest with the SHA-256 of every file, reports and a model card. The same inputs give the same bytes.\n\nExamples:\n  ptplus pack adapter/ --base model/ --probe probe.safetensors -o bundle\n  ptplus pack adapter.gguf --base model.gguf -o bundle.tar \\\n      --sign publisher.key --password-file password\n  ptplus pack adapter/ --base model/ --outtype q8_0 -o bundle\n  ptplus pack adapter/ --base model/ -o bundle --name Pirate --license mit \\\n      --language en --chat-template-file template.jinja --temp 0\n  ptplus pack base/ --merge lora/ --probe merged-probe.safetensors -o bundle"
)]
pub struct Arguments {
    /// Adapter: canonical folder, GGUF, bundle, or a checkpoint of another training code; with --merge the base
    adapter: PathBuf,
    /// Base model: Hugging Face folder or GGUF
    #[arg(long, required_unless_present = "merge", conflicts_with = "merge")]
    base: Option<PathBuf>,
    /// Pack a model, the base given with this LoRA merged into it, with a factor on what it adds; may be given more than once
    #[arg(long, value_name = "ADAPTER[:SCALE]")]
    merge: Vec<String>,
    /// Bundle to write: a folder, or a file that ends in .tar
    #[arg(short, long, visible_alias = "outfile", value_name = "BUNDLE")]
    output: PathBuf,
    /// Verify against PyTorch's answer; without it the bundle's adapter is run beside its source
    #[arg(long)]
    probe: Option<PathBuf>,
    /// Form of the adapter in the bundle; both: GGUF, and safetensors in the source's types, which PEFT loads
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        default_value = "gguf",
        value_delimiter = ',',
        value_name = "FORM,..."
    )]
    to: Vec<To>,
    /// Element type of the memories and feature maps, by name or by ggml's number; keep: as the source has it.
    /// Several: one file for each, the first the one that is used where --form says no other
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', default_value = "keep", conflicts_with = "auto", value_parser = super::types::names())]
    outtype: Vec<String>,
    /// Sign the manifest with this secret key
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Sign all files with this secret key (P-256, PEM), as OpenSSF's model signing does: model.sig
    #[arg(long, value_name = "KEY")]
    sign_oms: Option<PathBuf>,
    #[command(flatten)]
    password: PasswordArguments,
    /// Device for the verification: cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Limits for the verification: a type (f32, bf16, q8_0, ...) or max_abs=X,mean_kl=Y
    #[arg(long)]
    tolerance: Option<String>,
    /// Replace values beyond F16 or BF16 by the type's largest value instead of refusing
    #[arg(long)]
    allow_overflow: bool,
    /// Replace an existing bundle: what its manifest lists, unless anything else lies there
    #[arg(short, long)]
    force: bool,
    /// Write the verification as one HTML page with plots, beside the bundle
    #[cfg(feature = "report")]
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    base_check: BaseCheck,
    #[command(flatten)]
    pub types: TypeArguments,
    #[command(flatten)]
    tokenizer: TokenizerArguments,
    #[command(flatten)]
    about: AboutFlags,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    Gguf,
    Safetensors,
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    if a.types.list_types {
        return super::types::list(ui);
    }
    if a.sign.is_none() && (a.password.file().is_some() || a.password.is_without()) {
        return Err(usage("--password-file", "expected it beside --sign"));
    }
    bundle_name(&a.output)?;
    let date = source_date(std::env::var("SOURCE_DATE_EPOCH").ok().as_deref())?;
    let all_types = a.outtype.iter().map(|t| a.types.rules("--outtype", t)).collect::<Result<Vec<_>>>()?;
    let is_gguf = a.to.contains(&To::Gguf);
    let kept = TypeRules::from(OutType::Keep);
    let more_forms = more_forms(a, &all_types, &kept)?;
    let merge: Vec<(PathBuf, f64)> = a
        .merge
        .iter()
        .map(|text| path_and_scale("--merge", text).map(|(path, scale)| (path, f64::from(scale))))
        .collect::<Result<_>>()?;
    if !merge.is_empty() {
        return pack_model(a, &all_types, &merge, date, ui);
    }
    if a.tokenizer.choice() != Tokenizer::Known {
        return Err(usage("--tokenizer-pre, --no-tokenizer", "expected no such flag: the input is an adapter"));
    }
    let base_path = a.base.as_deref().expect("clap wants --base or --merge");
    let types = all_types[0].clone();
    let tolerance = a.tolerance.as_deref().map(Tolerance::parse).transpose()?;
    let device = a.device.parse::<DeviceChoice>()?;
    let max_error = a.types.bounds()?;
    let auto_kl = a.types.auto_kl()?;
    let reading = a.reading.options()?;
    let about = a.about.read(&a.adapter)?;
    let signer = a.sign.as_deref().map(|key| Signer::open(key, a.password.for_key()?)).transpose()?;
    let model_signer = a.sign_oms.as_deref().map(model_signing::Signer::open).transpose()?;
    let device = device.open()?;
    let base = base_check::open(base_path, ui)?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    #[cfg(feature = "report")]
    let report_file = super::report::create(
        a.report.as_deref(),
        a.force,
        &super::report::Others {
            inputs: &[
                &[
                    Some(a.adapter.as_path()),
                    a.base.as_deref(),
                    a.probe.as_deref(),
                    reading.layout.as_deref(),
                    a.sign.as_deref(),
                    a.sign_oms.as_deref(),
                    a.password.file(),
                ][..],
                &a.about.inputs(),
            ]
            .concat(),
            bases: &[Some(&base)],
            output: Some(&a.output),
        },
    )?;
    let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Steps);
    let command = recorded(a, &merge, tolerance.as_ref(), &all_types, (&max_error, auto_kl), &reading).line();
    let options = verify::Options { device: &device, tolerance, progress: &steps };
    let prove =
        probe.as_ref().zip(a.probe.as_deref()).map(|(probe, path)| Proof { probe, path, options: options.clone() });
    let prompts = match &probe {
        Some(probe) => Prompts::Tokens(probe.input_ids.clone()),
        None => Prompts::DEFAULT,
    };
    let convert = Convert {
        adapter: &a.adapter,
        reading: &reading,
        base: Some(&base),
        architecture: None,
        output: &a.output,
        format: if is_gguf { Format::Gguf } else { Format::Safetensors },
        types: &types,
        max_error: &max_error,
        auto_kl,
        measure: Some(Measure { prompts: prompts.clone(), device: &device, progress: &steps }),
        overflow: if a.allow_overflow { Overflow::Saturate } else { Overflow::Error },
        overwrite: if a.force { Overwrite::Force } else { Overwrite::Never },
        base_mismatch: a.base_check.mismatch(),
        command: Some(&command),
        dry_run: false,
        prove,
        progress: &|done, total| ui.progress(done, total, Unit::Bytes),
    };
    let mut job = Pack::new(convert, options, prompts.clone(), &command);
    job.is_tar = is_called_tar(&a.output);
    job.signer = signer.as_ref();
    job.model_signer = model_signer.as_ref();
    job.more_forms = more_forms;
    job.about = about;
    job.date = date;
    let outcome = pack(job);
    #[cfg(feature = "report")]
    let run = Run { base: &base, probe: probe.as_ref(), prompts: &prompts, device: &device };
    #[cfg(feature = "report")]
    let reported = write_report(report_file, a, &reading, &outcome, &run, ui);
    let done = outcome?;
    show(a, &done, ui);
    base_check::note(ui, done.base_identity.as_ref());
    if a.probe.is_none() {
        ui.note(base_check::NOT_PROVED);
    }
    #[cfg(feature = "report")]
    reported?;
    Ok(0)
}

/// What was made, and what a reader should know.
fn show(a: &Arguments, done: &Packed, ui: &Ui) {
    let mut document = json!(done);
    document["verification"].as_object_mut().map(|v| v.shift_remove("positions"));
    for form in document["forms"].as_array_mut().into_iter().flatten() {
        form["verification"].as_object_mut().map(|v| v.shift_remove("positions"));
    }
    ui.made(document, text(a, done));
    done.notes.iter().for_each(|n| ui.note(n));
    if !done.missing_for_a_hub.is_empty() {
        let fields = done.missing_for_a_hub.join(", ");
        ui.note(&format!("a hub would want what the card does not say: {fields} (ptplus pack has flags for it, and README.md may be edited)"));
    }
}

/// What the bundle records; see [`convert`](super::convert).
fn recorded(
    a: &Arguments,
    merge: &[(PathBuf, f64)],
    tolerance: Option<&Tolerance>,
    rules: &[TypeRules],
    (max_error, auto_kl): (&[Bound], Option<f64>),
    options: &Options,
) -> Recorded {
    let Arguments {
        adapter,
        base,
        merge: _,
        output: _,
        probe,
        to,
        outtype: _,
        sign: _,
        sign_oms: _,
        password: _,
        device: _,
        tolerance: _,
        allow_overflow,
        force: _,
        #[cfg(feature = "report")]
            report: _,
        base_check,
        types: _,
        tokenizer,
        about,
        reading: _,
    } = a;
    let mut command = Recorded::new("pack", adapter);
    command.file("--base", base.as_deref());
    merge.iter().for_each(|(path, scale)| command.scaled_file("--merge", path, *scale));
    tokenizer.record(&mut command);
    command.file("--probe", probe.as_deref());
    match (to.contains(&To::Gguf), to.contains(&To::Safetensors)) {
        (_, false) => {}
        (false, true) => command.value("--to", Some("safetensors")),
        (true, true) => command.value("--to", Some("gguf,safetensors")),
    }
    command.value("--tolerance", tolerance);
    command.flag("--allow-overflow", *allow_overflow);
    base_check.record(&mut command);
    match rules {
        [one] => command.types(Some("--outtype"), one, max_error, auto_kl),
        several => {
            let names: Vec<String> = several.iter().map(|r| r.default.to_string()).collect();
            command.value("--outtype", Some(names.join(",")));
            let rest = TypeRules { default: OutType::Keep, ..several[0].clone() };
            command.types(Some("--outtype"), &rest, max_error, auto_kl);
        }
    }
    about.record(&mut command);
    command.reading(options);
    command
}

/// What else is asked for beside the first type, or beside GGUF.
fn more_forms<'a>(a: &Arguments, types: &'a [TypeRules], kept: &'a TypeRules) -> Result<Vec<Form<'a>>> {
    let is_gguf = a.to.contains(&To::Gguf);
    let names: Vec<String> = types.iter().map(|rules| rules.default.to_string()).collect();
    if (1..names.len()).any(|i| names[..i].contains(&names[i])) {
        return Err(usage("--outtype", "expected each type once, found one twice"));
    }
    if !is_gguf && names.len() > 1 {
        return Err(usage("--outtype", "expected one type for safetensors, which a bundle has once, found several"));
    }
    let gguf = types.iter().zip(&names).skip(1);
    let mut forms: Vec<Form<'_>> =
        gguf.map(|(types, name)| Form { name: name.clone(), format: Format::Gguf, types }).collect();
    if is_gguf && a.to.contains(&To::Safetensors) {
        forms.push(Form { name: "safetensors".into(), format: Format::Safetensors, types: kept });
    }
    Ok(forms)
}

/// A name that ends as other archives and adapters do would silently become a folder.
fn bundle_name(output: &Path) -> Result<()> {
    const OF_FILES: [&str; 9] = ["7z", "bz2", "gguf", "gz", "safetensors", "tgz", "xz", "zip", "zst"];
    let ending = output.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
    match ending.filter(|e| OF_FILES.contains(&e.as_str())) {
        None => Ok(()),
        Some(_) => {
            let message = format!("expected a name that ends in .tar, or that of a folder, found {output:?}");
            Err(usage("--output", message))
        }
    }
}

fn text(a: &Arguments, p: &Packed) -> String {
    let mut out = String::new();
    // A GGUF file that was packed as it is: without PyTorch's answer there was only itself to hold it against.
    let is_itself = a.probe.is_none() && !p.files.contains_key("reports/conversion.json");
    let what = match is_itself {
        true => "has an effect; compared with its source, the same file".to_owned(),
        false if a.probe.is_none() => format!("agrees with {}", p.reference),
        false => format!("verified against {}", p.reference),
    };
    let _ = writeln!(out, "{what}: {}", base_check::proof_text(&p.verification));
    for form in p.forms.iter().skip(1) {
        let _ = writeln!(out, "{}: {}", form.file, base_check::proof_text(&form.verification));
    }
    let mut signed = p.public_key.as_ref().map_or("not signed".into(), |key| format!("signed by {key}"));
    if p.files.contains_key(MODEL_SIGNATURE_FILE) {
        signed = if p.public_key.is_some() {
            format!("{signed} and in {MODEL_SIGNATURE_FILE}")
        } else {
            format!("signed in {MODEL_SIGNATURE_FILE}")
        };
    }
    let _ = writeln!(
        out,
        "packed {} -> {}: {} files, {signed}",
        escape(&a.adapter.to_string_lossy()),
        escape(&a.output.to_string_lossy()),
        p.files.len()
    );
    out
}
