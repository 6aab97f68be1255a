//! What a manifest says about the adapter, and whether it is true of the adapter in the bundle. The hashes of the files
//! hold either way: whoever exchanges the adapter and reseals the manifest leaves the claims behind.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::digest::{AdapterDigest, of_model_tensors, of_tensors};
use super::provenance;
use super::stated::{main_type, main_type_of_model, of_adapter, of_model};
use crate::about::About;
use crate::base::fingerprint::{self, Depth, Identity, identify};
use crate::base::{BaseModel, gguf_architecture_of};
use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::format::bundle::manifest::{Manifest, canonical_text, is_sha256};
use crate::format::bundle::path::check_path;
use crate::format::bundle::{
    ADAPTER_FILE, Bundle, CHAT_TEMPLATE_FILE, GENERATION_FILE, MANIFEST_FILE, MODEL_FILE, PROVENANCE_FILE,
    VERIFICATION_REPORT,
};
use crate::format::json;
use crate::format::limits::{MANIFEST_BYTES, MANIFEST_VALUES};
use crate::format::names::shorten;
use crate::import::read_bundle;
use crate::import::stated::BASE_MISMATCH_IGNORED;
use crate::tensor::DType;
use crate::validate::{self, Validated};

/// Whether `base` is the one that the manifest names, by what the adapter itself does not say of it: fingerprint,
/// architecture and model type.
///
/// # Errors
///
/// [`Code::BaseDiffers`] where it is not; those of reading the base's weights.
pub fn confirm_base(manifest: &Manifest, adapter: &Validated, base: &BaseModel) -> Result<()> {
    let stated = Claims { manifest, findings: Vec::new() };
    let text = |key| stated.stated(&["base", key]).and_then(Value::as_str);
    let differ = |found: String| {
        let message = format!("expected the base that the bundle's manifest names, found another: {found}");
        Err(Error::new(Code::BaseDiffers, format!("{message} (--ignore-base-mismatch)")).file(&base.path))
    };
    for (key, actual) in
        [("architecture", Some(base.gguf_architecture())), ("model_type", base.config.model_type.as_deref())]
    {
        if let (Some(stated), Some(actual)) = (text(key), actual)
            && stated != actual
        {
            return differ(format!("{key} {actual:?}, not {:?}", shorten(stated)));
        }
    }
    match text("fingerprint").filter(|_| adapter.base_fingerprint().is_none()) {
        Some(stated) => match identify(stated, base, &adapter.adapter().touched(), Depth::Weights)? {
            Identity::Different(reason) => differ(reason),
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

/// [`compare`] or [`compare_model`], by what the bundle has, in its first form.
///
/// # Errors
///
/// Those of reading it.
pub fn compare_contents(manifest: &Manifest, bundle: &Bundle) -> Result<Vec<Finding>> {
    if bundle.files.contains_key(MODEL_FILE) {
        return Ok(compare_model(manifest, bundle, &BaseModel::from_bundle(bundle)?));
    }
    let adapter = validate::check(read_bundle(bundle, None)?, None).map_err(|r| r.into_error().file(&bundle.path))?;
    Ok(compare(manifest, bundle, &adapter))
}

/// Compares everything that the manifest states of the adapter, each key where it is stated: the tensors' digests,
/// `adapter`, what `base` says, the source's digest and the reports. Reads every tensor twice.
pub fn compare(manifest: &Manifest, bundle: &Bundle, adapter: &Validated) -> Vec<Finding> {
    let mut check = Claims { manifest, findings: Vec::new() };
    check.equal(&["tensors"], &json!(of_tensors(adapter)));
    if check.is_object("adapter") {
        for (key, actual) in of_adapter(adapter, &AdapterDigest::of(adapter.adapter())) {
            check.equal(&["adapter", &key], &actual);
        }
        check.fits(&["adapter", "download_name"], "the name of a file", |name| {
            !name.contains('/') && check_path(name).is_ok()
        });
    }
    if check.is_object("base") {
        check.base(adapter);
    }
    if check.is_object("source") {
        check.fits(&["source", "layout"], "a text", |_| true);
        check.fits(&["source", "sha256"], "64 lower-case hex digits", is_sha256);
        if let Some(recorded) = &adapter.origin.recorded_source_sha256 {
            check.equal(&["source", "sha256"], &recorded.as_str().into());
        }
    }
    check.about(bundle, ADAPTER_FILE, About::of(adapter.adapter()));
    check.forms(|file| {
        let found =
            validate::check(read_bundle(bundle, Some(file))?, None).map_err(|rejected| rejected.into_error())?;
        Ok((main_type(&found), Some(json!(AdapterDigest::of(found.adapter())))))
    });
    check.rest(bundle);
    check.findings
}

/// [`compare`], of a bundle of a model. Reads every tensor.
pub fn compare_model(manifest: &Manifest, bundle: &Bundle, model: &BaseModel) -> Vec<Finding> {
    let mut check = Claims { manifest, findings: Vec::new() };
    match of_model_tensors(model) {
        Ok(tensors) => check.equal(&["tensors"], &json!(tensors)),
        Err(e) => check.findings.push(Finding::new(e.code(), MODEL_FILE, "tensors that can be read", e.message())),
    }
    if check.is_object("model") {
        for (key, actual) in of_model(model) {
            check.equal(&["model", &key], &actual);
        }
        check.fits(&["model", "download_name"], "the name of a file", |name| {
            !name.contains('/') && check_path(name).is_ok()
        });
    }
    if check.is_object("base") {
        check.fits(&["base", "name"], "a text", |_| true);
        check.fits(&["base", "fingerprint"], "the fingerprint of a base", fingerprint::is_well_formed);
        check.equal(&["base", "architecture"], &model.gguf_architecture().into());
        check.fits(&["base", "model_type"], "a text", |_| true);
        if check.stated(&["base", "mismatch_ignored"]).is_some_and(|v| !v.is_boolean()) {
            check.differ(&["base", "mismatch_ignored"], "true or false".into(), "another value".into());
        }
    }
    check.merged();
    check.about(bundle, MODEL_FILE, model.metadata.as_ref().map_or_else(|| Ok(About::default()), About::of_model));
    let place = |file: &str| if bundle.is_tar { bundle.path.clone() } else { bundle.path.join(file) };
    check.forms(|file| {
        let missing = || Error::new(Code::BundleMissing, "none");
        let bytes = bundle.files.get(file).ok_or_else(missing)?;
        Ok((main_type_of_model(&BaseModel::from_gguf_bytes(&place(file), bytes)?), None))
    });
    check.rest(bundle);
    check.findings
}

struct Claims<'a> {
    manifest: &'a Manifest,
    findings: Vec<Finding>,
}

impl Claims<'_> {
    /// Null is not stated.
    fn stated(&self, path: &[&str]) -> Option<&Value> {
        let first = self.manifest.document.get(path[0])?;
        let value = path[1..].iter().try_fold(first, |v, key| v.get(key))?;
        (!value.is_null()).then_some(value)
    }

    fn differ(&mut self, path: &[&str], expected: String, found: String) {
        let place = format!("{MANIFEST_FILE}: {}", path.join("."));
        self.findings.push(Finding::new(Code::BundleChanged, place, expected, found));
    }

    fn equal(&mut self, path: &[&str], actual: &Value) {
        let Some(stated) = self.stated(path).filter(|stated| !same(stated, actual)) else { return };
        let found = short(stated);
        self.differ(path, short(actual), found);
    }

    /// Whether there is something to compare below `key`; another value than an object is a finding.
    fn is_object(&mut self, key: &str) -> bool {
        match self.stated(&[key]) {
            None => false,
            Some(Value::Object(_)) => true,
            Some(other) => {
                let found = short(other);
                self.differ(&[key], "an object".into(), found);
                false
            }
        }
    }

    /// What is stated here must be a text of this kind.
    fn fits(&mut self, path: &[&str], expected: &str, holds: fn(&str) -> bool) {
        let Some(stated) = self.stated(path).filter(|v| !v.as_str().is_some_and(holds)) else { return };
        let found = short(stated);
        self.differ(path, expected.into(), found);
    }

    /// The list of texts at `key`; none where another value is stated, which is a finding.
    fn texts(&mut self, key: &str) -> Vec<String> {
        let Some(stated) = self.stated(&[key]) else { return Vec::new() };
        let texts = || stated.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        match texts() {
            Some(texts) => texts,
            None => {
                let found = short(stated);
                self.differ(&[key], "a list of texts".into(), found);
                Vec::new()
            }
        }
    }

    fn base(&mut self, adapter: &Validated) {
        let base_model_type = adapter.adapter().base_model_type();
        self.fits(&["base", "name"], "a text", |_| true);
        let by_model_type = base_model_type.and_then(gguf_architecture_of);
        let architecture = adapter.origin.gguf_architecture.as_deref().or(by_model_type);
        // What the adapter says of its base, and of the rest its kind.
        let is_text: fn(&str) -> bool = |_| true;
        for (key, known, kind, is_of_kind) in [
            ("fingerprint", adapter.base_fingerprint(), "the fingerprint of a base", fingerprint::is_well_formed as _),
            ("architecture", architecture, "a text", is_text),
            ("model_type", base_model_type, "a text", is_text),
        ] {
            match known {
                Some(known) => self.equal(&["base", key], &known.into()),
                None => self.fits(&["base", key], kind, is_of_kind),
            }
        }
        let ignored = adapter.adapter().extra().get(BASE_MISMATCH_IGNORED) == Some(&Value::Bool(true));
        self.equal(&["base", "mismatch_ignored"], &ignored.into());
    }

    /// What the adapter says, the manifest and the files beside it say, too.
    fn about(&mut self, bundle: &Bundle, weights_file: &str, said: Result<About>) {
        let about = match said {
            Ok(about) => about,
            Err(e) => {
                return self.findings.push(Finding::new(
                    e.code(),
                    weights_file,
                    "metadata of ggml's types",
                    e.message(),
                ));
            }
        };
        if let Some(stated) = self.stated(&["about"]).cloned() {
            let known = about.to_json();
            let keys = |v: &Value| v.as_object().into_iter().flat_map(|o| o.keys().cloned()).collect::<BTreeSet<_>>();
            if !stated.is_object() {
                self.differ(&["about"], "an object".into(), short(&stated));
            }
            for key in &keys(&stated) | &keys(&known) {
                let (stated, known) =
                    (stated.get(&key).unwrap_or(&Value::Null), known.get(&key).unwrap_or(&Value::Null));
                if stated != known {
                    self.differ(&["about", &key], short(known), short(stated));
                }
            }
        }
        let config = about.sampling.generation_config().map(|c| canonical_text(&c));
        for (file, said) in [(CHAT_TEMPLATE_FILE, &about.chat_template), (GENERATION_FILE, &config)] {
            if bundle.files.get(file).is_some_and(|bytes| said.as_ref().is_none_or(|text| text.as_bytes() != &**bytes))
            {
                let expected = "what the adapter itself says (ptplus pack has flags for it)";
                self.findings.push(Finding::new(Code::BundleChanged, file, expected, "another text"));
            }
        }
    }

    /// What was merged is a list of adapters, each with what it was and its factor.
    fn merged(&mut self) {
        let Some(stated) = self.stated(&["merged"]).cloned() else { return };
        let is_one = |part: &Value| {
            ["name", "type"].iter().all(|key| part.get(key).is_some_and(Value::is_string))
                && part.get("scale").is_some_and(Value::is_number)
                && part.get("digest").is_some_and(Value::is_object)
        };
        if !stated.as_array().is_some_and(|parts| !parts.is_empty() && parts.iter().all(is_one)) {
            self.differ(
                &["merged"],
                "a list of adapters, each with name, type, scale and digest".into(),
                short(&stated),
            );
        }
    }

    /// What is alike in all bundles.
    fn rest(&mut self, bundle: &Bundle) {
        self.provenance(bundle);
        self.fits(&["command"], "a text", |_| true);
        self.texts("notes");
        self.is_object("tool");
        self.reports(bundle);
    }

    /// Each form can be read and has the type and the digest that are stated, and a report that says that it passed.
    fn forms(&mut self, read: impl Fn(&str) -> Result<(DType, Option<Value>)>) {
        let Some(stated) = self.stated(&["forms"]).cloned() else { return };
        let list = stated.as_array().map(Vec::as_slice).unwrap_or_default();
        if list.is_empty() {
            self.differ(&["forms"], "a list of forms".into(), short(&stated));
        }
        for (i, form) in list.iter().enumerate() {
            let place = format!("forms.{i}");
            let text = |key: &str| form.get(key).and_then(Value::as_str).unwrap_or_default();
            let is_listed = |name: &str| self.manifest.files.contains_key(name);
            if text("name").is_empty() || !is_listed(text("file")) || !is_listed(text("report")) {
                self.differ(&[&place], "name, and file and report of the bundle".into(), short(form));
                continue;
            }
            match read(text("file")) {
                Ok((dtype, digest)) => {
                    if form.get("digest") != digest.as_ref() || text("type") != dtype.name() {
                        let digest = digest.map_or(String::new(), |digest| format!(" {digest}"));
                        self.differ(&[&place], format!("{}{digest}", dtype.name()), short(form));
                    }
                }
                Err(e) => {
                    self.findings.push(Finding::new(e.code(), text("file"), "what it is said to be", e.message()))
                }
            }
        }
    }

    fn provenance(&mut self, bundle: &Bundle) {
        let Some(text) = bundle.files.get(PROVENANCE_FILE) else { return };
        let found = match read_small(text) {
            Ok(statement) => provenance::untrue(&statement, &self.manifest.files),
            Err(e) => Some(e.message().to_owned()),
        };
        let finding =
            |found| Finding::new(Code::BundleChanged, PROVENANCE_FILE, "provenance of the files as they are", found);
        self.findings.extend(found.map(finding));
    }

    /// Reports are files of the bundle, and that of a verification says that it passed: `pack` makes no bundle otherwise.
    fn reports(&mut self, bundle: &Bundle) {
        let names = self.texts("reports");
        if let Some(absent) = names.iter().find(|name| !self.manifest.files.contains_key(*name)) {
            self.differ(&["reports"], "files of the bundle".into(), format!("{absent:?}"));
        }
        let stem = VERIFICATION_REPORT.trim_end_matches(".json");
        for name in names.iter().filter(|name| name.starts_with(stem)) {
            let Some(report) = bundle.files.get(name) else { continue };
            let found = match read_small(report) {
                Ok(report) => match report.get("pass") {
                    Some(Value::Bool(true)) => continue,
                    other => format!("pass: {}", short(other.unwrap_or(&Value::Null))),
                },
                Err(e) => e.message().to_owned(),
            };
            let expected = "the report of a verification that passed";
            self.findings.push(Finding::new(Code::BundleChanged, name, expected, found));
        }
    }
}

/// A document no larger than a manifest.
fn read_small(text: &[u8]) -> Result<Value> {
    match text.len() {
        0..=MANIFEST_BYTES => json::parse_of(text, MANIFEST_VALUES),
        len => Err(Error::new(Code::JsonTooLarge, format!("{len} bytes"))),
    }
}

/// Equal, or equal as numbers: 1 and 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

/// Lists of digests are long.
fn short(value: &Value) -> String {
    match value {
        Value::Array(list) if list.len() > 8 => format!("a list of {}", list.len()),
        other => other.to_string().chars().take(200).collect(),
    }
}
