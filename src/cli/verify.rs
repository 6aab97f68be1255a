use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::base_check::{self, BaseCheck};
use super::engine::EngineChoice;
use super::progress::Unit;
use super::reading::Reading;
use super::table;
use super::ui::{self, Status, Ui};
use super::usage;
use crate::base::BaseModel;
use crate::base::fingerprint::Depth;
use crate::error::{Code, Error, ErrorKind, Result, escape};
use crate::inspect::{Content, content_of};
use crate::pipeline::{Proof, read_adapter, read_adapter_settling, read_adapter_with};
use crate::runner::{Device, DeviceChoice};
use crate::validate::Validated;
use crate::verify::probe::Probe;
use crate::verify::tensors::{self, TensorReport};
use crate::verify::tolerance::Tolerance;
use crate::verify::{Options, Prompts, Reference, Report, verify, verify_merged};

#[derive(clap::Args)]
#[command(
    after_help = "With --probe the reference is what PyTorch computed; with --against it is another form of the adapter; with --against-device it is the same adapter on another device. Without --base only tensors are compared. What flags state about conventions holds for the adapter, and for the other one where it does not say so itself.\n\nExamples:\n  ptplus verify adapter.gguf --base model.gguf --probe probe.safetensors\n  ptplus verify merged.gguf --probe merged-probe.safetensors\n  ptplus verify adapter.gguf --base model.gguf --against adapter/ \\\n      --against-base model/\n  ptplus verify adapter.gguf --against adapter/\n  ptplus verify adapter.gguf --base model.gguf --device cuda \\\n      --against-device cpu"
)]
pub struct Arguments {
    /// Adapter: canonical folder, GGUF, or a checkpoint of another training code; or, with --probe, a model that adapters were merged into
    adapter: PathBuf,
    /// Base model: Hugging Face folder or GGUF
    #[arg(long)]
    base: Option<PathBuf>,
    /// PyTorch's answer
    #[arg(long, conflicts_with = "against")]
    probe: Option<PathBuf>,
    /// The adapter to compare with
    #[arg(long, value_name = "ADAPTER")]
    against: Option<PathBuf>,
    /// The base under the other adapter, if it is another file
    #[arg(long, value_name = "BASE", requires = "against", requires = "base")]
    against_base: Option<PathBuf>,
    /// Compare with the same adapter on this device: cpu, cpu-int8, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["against", "probe"], requires = "base")]
    against_device: Option<String>,
    /// Token ids to run with --against or --against-device, separated by commas; once for each row
    #[arg(long, value_name = "IDS", conflicts_with = "probe")]
    tokens: Vec<String>,
    /// Seed of the random prompts for --against
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Rows of random prompts
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    rows: u16,
    /// Tokens in a random prompt
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    length: u16,
    /// Limits: a type (f32, bf16, q8_0, ...) or max_abs=X,mean_kl=Y; by default those of the coarsest type involved
    #[arg(long)]
    tolerance: Option<String>,
    /// cpu, cpu-int8, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// What computes: candle, or the real llama.cpp (F32, on the CPU), which candle then runs beside
    #[arg(long, value_enum, default_value_t = EngineChoice::Candle)]
    engine: EngineChoice,
    #[command(flatten)]
    base_check: BaseCheck,
    /// Write what was found as one HTML page with plots
    #[cfg(feature = "report")]
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Replace an existing report
    #[cfg(feature = "report")]
    #[arg(short, long, requires = "report")]
    force: bool,
    #[command(flatten)]
    reading: Reading,
}

/// The adapter of `--against`: as it says itself, and where that leaves something open, as it is stated of the first.
fn read_other(path: &Path, reading: &crate::import::Options, base: Option<&BaseModel>) -> Result<Validated> {
    match read_adapter(path, base) {
        Err(e) if e.code() == Code::ConventionOpen => read_adapter_with(path, reading, base),
        read => read,
    }
}

pub fn run(a: &Arguments, ui: &Ui) -> Result<u8> {
    if a.probe.is_none() && a.against.is_none() && a.against_device.is_none() {
        return Err(usage(
            "verify",
            "expected --probe (PyTorch's answer), --against (another form of the adapter) or --against-device, found none",
        ));
    }
    if a.engine == EngineChoice::LlamaCpp && a.base.is_none() {
        return Err(usage("--engine", "expected --base beside it, found none: without a base no model runs"));
    }
    let is_merged = a.probe.is_some() && content_of(&a.adapter) == Some(Content::Base);
    if a.probe.is_some() && a.base.is_none() && !is_merged {
        return Err(usage("--probe", "expected --base beside it, found none: the probe is of the adapter on its base"));
    }
    let other_choice = a.against_device.as_deref().map(str::parse::<DeviceChoice>).transpose()?;
    let other_device = other_choice.map(DeviceChoice::open).transpose()?;
    let tolerance = a.tolerance.as_deref().map(Tolerance::parse).transpose()?;
    let prompts = prompts(a)?;
    let choice = a.device.parse::<DeviceChoice>()?;
    let device = choice.open()?;
    if [Some(&device), other_device.as_ref()].into_iter().flatten().any(|d| d.name() == "cpu-int8") {
        ui.note("cpu-int8 rounds activations to 8 bits, which no limit allows for: this tells how far off that is, and proves no file");
    }
    // llama.cpp beside the runner is a comparison, wherever both compute.
    if let (Some(other_choice), Some(other)) = (other_choice, &other_device)
        && a.engine == EngineChoice::Candle
        && settled(other_choice, other) == settled(choice, &device)
    {
        let message = format!("expected two devices, found {} twice: it agrees with itself", settled(choice, &device));
        return Err(Error::new(Code::NothingCompared, message).field("--against-device"));
    }
    let base = a.base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    let against_base = a.against_base.as_deref().map(|p| base_check::open(p, ui)).transpose()?;
    let probe = a.probe.as_deref().map(Probe::open).transpose()?;
    if let Some(probe) = probe.as_ref().filter(|_| is_merged) {
        return verify_model(a, base.as_ref(), probe, Options { device: &device, tolerance, progress: &|_, _| {} }, ui);
    }
    let reading = a.reading.options()?;
    #[cfg(feature = "report")]
    let report_file = super::report::create(
        a.report.as_deref(),
        a.force,
        &super::report::Others {
            inputs: &[
                Some(a.adapter.as_path()),
                a.base.as_deref(),
                a.probe.as_deref(),
                a.against.as_deref(),
                a.against_base.as_deref(),
                reading.layout.as_deref(),
            ],
            bases: &[base.as_ref(), against_base.as_ref()],
            output: None,
        },
    )?;
    let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Steps);
    let options = Options { device: &device, tolerance, progress: &steps };
    let proof =
        probe.as_ref().zip(a.probe.as_deref()).map(|(probe, path)| Proof { probe, path, options: options.clone() });
    let (adapter, conventions) = read_adapter_settling(&a.adapter, &reading, base.as_ref(), proof.as_ref())?;
    conventions.iter().for_each(|s| ui.note(&s.line()));
    let other = a.against.as_deref().map(|p| read_other(p, &reading, against_base.as_ref().or(base.as_ref())));
    let other = other.transpose()?;
    adapter.notes.iter().for_each(|n| ui.note(n));
    let Some(base) = &base else {
        let other = other.expect("clap wants --base with --probe and --against-device");
        let report = tensors::compare(&adapter, &other)?;
        let status = if report.pass { Status::Ok } else { Status::Failed };
        #[cfg(feature = "report")]
        let reported =
            report_file.map(|file| file.write(&crate::report::comparison(&adapter, &other, &report), ui)).transpose();
        ui.result(status, json!(report), tensor_text(&report))?;
        #[cfg(feature = "report")]
        reported?;
        return Ok(if report.pass { 0 } else { ErrorKind::Differs.exit_code() });
    };
    let reference = match (&probe, &other, &other_device) {
        (Some(probe), ..) => Reference::Probe(probe),
        (_, Some(other), _) => Reference::Adapter { adapter: other, base: against_base.as_ref(), prompts: &prompts },
        (.., Some(device)) => Reference::Device { device, prompts: &prompts },
        (None, None, None) => unreachable!("checked at the start"),
    };
    let identity = adapter.confirm_base(base, Depth::Weights, a.base_check.mismatch())?;
    if let (Some(other), Some(other_base)) = (&other, &against_base) {
        other.confirm_base(other_base, Depth::Weights, a.base_check.mismatch())?;
    }
    base_check::note(ui, identity.as_ref());
    let (report, engines) = compute(a.engine, &adapter, base, reference, &options, ui)?;
    let mut document = json!(report);
    document["conventions"] = json!(conventions);
    document["base_identity"] = json!(identity);
    document["engines"] = engines;
    #[cfg(feature = "report")]
    let write_report = || -> Result<()> {
        let Some(file) = report_file else { return Ok(()) };
        let losses = other.as_ref().map(|o| tensors::losses(&adapter, o)).transpose()?.unwrap_or_default();
        let (input_ids, reference) = match (&probe, &a.against) {
            (Some(probe), _) => {
                (probe.input_ids.clone(), format!("PyTorch's answer, {}", super::report::name(&probe.path)))
            }
            (None, Some(against)) => (
                prompts.ids(base.config.vocab_size)?,
                format!("another form of the adapter, {}", super::report::name(against)),
            ),
            (None, None) => (
                prompts.ids(base.config.vocab_size)?,
                format!("the same on device {}", a.against_device.as_deref().unwrap_or_default()),
            ),
        };
        let page = crate::report::verification(&crate::report::Verification {
            adapter: &adapter,
            base,
            reference,
            against: other.as_ref(),
            probe: probe.as_ref(),
            input_ids: &input_ids,
            report: &report,
            losses: &losses,
            conventions: conventions.as_ref(),
            device: match a.engine {
                EngineChoice::Candle => device.name(),
                EngineChoice::LlamaCpp => "llama.cpp on the CPU, candle beside it",
            },
        });
        file.write(&page, ui)
    };
    #[cfg(feature = "report")]
    let reported = write_report();
    let code = show(&report, document, a, ui)?;
    #[cfg(feature = "report")]
    reported?;
    Ok(code)
}

/// A model that adapters were merged into, against PyTorch's answer.
fn verify_model(a: &Arguments, base: Option<&BaseModel>, probe: &Probe, options: Options<'_>, ui: &Ui) -> Result<u8> {
    let unfit = [
        ("--engine", a.engine != EngineChoice::Candle),
        #[cfg(feature = "report")]
        ("--report", a.report.is_some()),
        ("ADAPTER", !a.reading.options()?.is_empty()),
    ];
    if let Some((flag, _)) = unfit.into_iter().find(|(_, is_given)| *is_given) {
        let message = format!(
            "expected an adapter, found the model {}: beside --probe it takes no more than --base",
            a.adapter.display()
        );
        return Err(usage(flag, message));
    }
    let model = base_check::open(&a.adapter, ui)?;
    let steps = |done: usize, total: usize| ui.progress(done as u64, total as u64, Unit::Steps);
    let report = verify_merged(&model, base, probe, &Options { progress: &steps, ..options })?;
    show(&report, json!(report), a, ui)
}

/// Prints a report with what else is known in `document`.
fn show(report: &Report, mut document: Value, a: &Arguments, ui: &Ui) -> Result<u8> {
    let status = if report.pass { Status::Ok } else { Status::Failed };
    if !ui.is_verbose() {
        document.as_object_mut().map(|d| d.remove("positions"));
    }
    let text = text(report, &document["engines"], a, ui.is_verbose());
    ui.result(status, document, text)?;
    Ok(if report.pass { 0 } else { ErrorKind::Differs.exit_code() })
}

/// Verifies on the engine asked for; beside the report, the figures of each engine, null where there is one only.
fn compute(
    engine: EngineChoice,
    adapter: &Validated,
    base: &BaseModel,
    reference: Reference<'_>,
    options: &Options<'_>,
    ui: &Ui,
) -> Result<(Report, Value)> {
    match engine {
        EngineChoice::Candle => Ok((verify(adapter, base, reference, options)?, Value::Null)),
        #[cfg(feature = "llama-cpp")]
        EngineChoice::LlamaCpp => {
            crate::llama_cpp::show_log(ui.is_verbose());
            let (report, engines) = crate::verify::engines::verify_in_llama_cpp(adapter, base, reference, options)?;
            engines.notes.iter().for_each(|n| ui.note(n));
            Ok((report, json!(engines)))
        }
        #[cfg(not(feature = "llama-cpp"))]
        EngineChoice::LlamaCpp => {
            let _ = ui;
            Err(super::engine::not_built_in())
        }
    }
}

/// What `choice` came to: `auto` is the first GPU or the CPU.
fn settled(choice: DeviceChoice, opened: &Device) -> DeviceChoice {
    match choice {
        DeviceChoice::Auto if opened.name() == "cuda" => DeviceChoice::Cuda(0),
        DeviceChoice::Auto => DeviceChoice::Cpu,
        choice => choice,
    }
}

fn prompts(a: &Arguments) -> Result<Prompts> {
    if a.tokens.is_empty() {
        return Ok(Prompts::Seeded { seed: a.seed, rows: a.rows.into(), length: a.length.into() });
    }
    let row = |text: &String| {
        text.split(',')
            .map(|id| {
                id.trim()
                    .parse::<u32>()
                    .map_err(|_| usage("--tokens", format!("expected token ids separated by commas, found {id:?}")))
            })
            .collect::<Result<Vec<u32>>>()
    };
    a.tokens.iter().map(row).collect::<Result<_>>().map(Prompts::Tokens)
}

fn text(r: &Report, engines: &Value, a: &Arguments, verbose: bool) -> String {
    let mut out = String::new();
    let m = &r.metrics;
    let limit = |l: Option<f64>| l.map_or(String::new(), |l| format!("{l:.3e}"));
    let mut rows = vec![
        vec!["max |dlogit|".into(), format!("{:.3e}", m.max_abs), limit(r.limits.max_abs)],
        vec!["mean |dlogit|".into(), format!("{:.3e}", m.mean_abs), limit(r.limits.mean_abs)],
        vec!["mean KL".into(), format!("{:.3e}", m.mean_kl), limit(r.limits.mean_kl)],
        vec!["max KL".into(), format!("{:.3e}", m.max_kl), limit(r.limits.max_kl)],
        vec![
            "top-1 agreement".into(),
            format!("{:.2} %", m.top1_agreement * 100.0),
            r.limits.top1_agreement.map_or(String::new(), |l| format!("{:.2} %", l * 100.0)),
        ],
    ];
    if let Some(b) = &r.base_metrics {
        rows.push(vec!["base alone, max |dlogit|".into(), format!("{:.3e}", b.max_abs), String::new()]);
    }
    let _ = writeln!(
        out,
        "{} positions compared, limits of {}, effect of the adapter {:.3e} (reference {:.3e})",
        m.n_positions, r.tolerance, r.found_effect, r.effect
    );
    out.push_str(&table::table(&["figure", "found", "limit"], &rows));
    for (name, m) in engines["metrics"].as_object().into_iter().flatten() {
        let figure = |key: &str| m[key].as_f64().unwrap_or(f64::NAN);
        let _ = writeln!(
            out,
            "{}: max |dlogit| {:.3e}, mean KL {:.3e}, top-1 {:.2} %",
            name.replace('_', " "),
            figure("max_abs"),
            figure("mean_kl"),
            figure("top1_agreement") * 100.0
        );
    }
    if let Some(w) = r.worst {
        let _ = writeln!(
            out,
            "worst: row {}, position {}, token {}: expected {}, found {}",
            w.batch, w.position, w.token, w.reference, w.found
        );
    }
    if !r.layers.is_empty() {
        let shown = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2e}"));
        let worst =
            r.layers.iter().max_by(|x, y| x.term_max_abs.unwrap_or(0.0).total_cmp(&y.term_max_abs.unwrap_or(0.0)));
        if verbose {
            let rows: Vec<Vec<String>> = r
                .layers
                .iter()
                .map(|l| vec![l.layer.to_string(), shown(l.q_max_abs), shown(l.term_max_abs), shown(l.term_size)])
                .collect();
            out.push_str(&table::table(&["layer", "max |dq|", "max |dterm|", "max |term|"], &rows));
        } else if let Some(l) = worst {
            let _ = writeln!(
                out,
                "layers: {} compared; largest difference of a term in layer {}: {} of {}",
                r.layers.len(),
                l.layer,
                shown(l.term_max_abs),
                shown(l.term_size)
            );
        }
    }
    for f in &r.failures {
        let _ = writeln!(out, "failed: {} [{}]", f.message, f.code);
    }
    let _ = writeln!(out, "{} {}", ui::verdict(r.pass), escape(&a.adapter.to_string_lossy()));
    out
}

fn tensor_text(r: &TensorReport) -> String {
    let mut out = String::new();
    for f in &r.config {
        let _ = writeln!(out, "failed: {}", f.line());
    }
    for t in r.tensors.iter().filter(|t| t.failure.is_some()) {
        let _ = writeln!(out, "failed: {}: {}", escape(&t.name), t.failure.as_deref().unwrap_or_default());
    }
    let _ = writeln!(
        out,
        "{} {} tensors compared, no model run: the two files {}",
        ui::verdict(r.pass),
        r.tensors.len(),
        match r.pass {
            true => "hold the same adapter; whether it is right, only --base and --probe can show",
            false => "hold different adapters",
        }
    );
    out
}
