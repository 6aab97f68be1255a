//! The forms of what a bundle has: types in GGUF, and safetensors.

use serde_json::Value;

use super::manifest::Manifest;
use super::{ADAPTER_FILE, Bundle, MANIFEST_FILE, MODEL_FILE};
use crate::error::{Code, Error, Result};
use crate::format::names::shorten;

/// The weights of an adapter in safetensors, and its configuration.
pub const PEFT_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_config.json"];

/// The forms that a bundle's manifest names, each with the file of its weights; none where there is but one.
pub fn forms(bundle: &Bundle) -> Vec<(String, String)> {
    let manifest = bundle.files.get(MANIFEST_FILE).and_then(|text| Manifest::parse(text).ok());
    let list = manifest.as_ref().and_then(|m| m.document.get("forms")).and_then(Value::as_array);
    let text = |form: &Value, key: &str| form.get(key).and_then(Value::as_str).map(str::to_owned);
    list.into_iter().flatten().filter_map(|form| Some((text(form, "name")?, text(form, "file")?))).collect()
}

/// The file of the weights of the form that is asked for, by its name or its file's; else of the first.
///
/// # Errors
///
/// [`Code::Usage`] for a form that is not there; [`Code::BundleExtra`] for two adapters, or an adapter and a model, of which the
/// manifest says nothing.
pub fn file_of_form(bundle: &Bundle, form: Option<&str>) -> Result<String> {
    let path = bundle.path.as_path();
    let has = |name: &str| bundle.files.contains_key(name);
    let mut listed = forms(bundle);
    if listed.is_empty() {
        let found: Vec<&str> =
            [MODEL_FILE, ADAPTER_FILE].into_iter().chain(PEFT_FILES).filter(|name| has(name)).collect();
        let first = found.first().copied().unwrap_or(PEFT_FILES[0]);
        if let Some(second) = found.get(1).filter(|_| !PEFT_FILES.contains(&first)) {
            let message = format!("expected one adapter in the bundle, found {first} and {second}");
            return Err(Error::new(Code::BundleExtra, message).file(path));
        }
        let file = if PEFT_FILES.contains(&first) { PEFT_FILES[0] } else { first };
        listed.push((file.to_owned(), file.to_owned()));
    }
    let Some(asked) = form else { return Ok(listed.swap_remove(0).1) };
    let names: Vec<String> = listed.iter().map(|(name, _)| name.clone()).collect();
    let found = listed.into_iter().find(|(name, file)| name.eq_ignore_ascii_case(asked) || file == asked);
    found.map(|(_, file)| file).ok_or_else(|| {
        let message = format!("expected one of {}, which the bundle has, found {:?}", names.join(", "), shorten(asked));
        Error::new(Code::Usage, message).file(path).field("--form")
    })
}
