//! The command as outputs record it: what decides their bytes, and nothing of the machine that ran it. It is made of the
//! parsed options, never of the words that were typed, so that any spelling of the same command gives the same bytes.

use std::fmt::Display;
use std::path::Path;

use serde_json::Value;

use crate::export::types::{OnUnfit, OutType, TypeRules};
use crate::import::{Options, flag_of};
use crate::transform::loss::Bound;

/// A command that grows option by option, in an order that the code decides.
pub struct Recorded(Vec<String>);

impl Recorded {
    /// `ptplus COMMAND INPUT`
    pub fn new(command: &str, input: &Path) -> Recorded {
        Recorded(vec!["ptplus".into(), command.into(), quoted(&last_part(input))])
    }

    /// An argument without a flag.
    pub fn argument(&mut self, value: impl Display) {
        self.0.push(quoted(&value.to_string()));
    }

    /// `:WEIGHT` behind the argument before it.
    pub fn weight(&mut self, weight: f64) {
        if let Some(last) = self.0.last_mut() {
            *last = format!("{last}:{weight}");
        }
    }

    /// `FLAG VALUE`, if there is one.
    pub fn value(&mut self, flag: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.0.extend([flag.to_owned(), quoted(&value.to_string())]);
        }
    }

    /// `FLAG FILE`, if there is one, of the path the last part alone.
    pub fn file(&mut self, flag: &str, path: Option<&Path>) {
        self.value(flag, path.map(last_part));
    }

    /// `FLAG FILE`, of the path the last part alone; `FLAG FILE:SCALE` for another scale than 1.
    pub fn scaled_file(&mut self, flag: &str, path: &Path, scale: f64) {
        self.file(flag, Some(path));
        if scale != 1.0 {
            self.weight(scale);
        }
    }

    /// `FLAG`, if it is given.
    pub fn flag(&mut self, flag: &str, is_given: bool) {
        if is_given {
            self.0.push(flag.to_owned());
        }
    }

    /// What decides element types. `default_flag` is that of the type for all; without one it is an argument.
    pub fn types(&mut self, default_flag: Option<&str>, rules: &TypeRules, bounds: &[Bound], auto_kl: Option<f64>) {
        match (rules.default, default_flag) {
            (OutType::Keep, Some(_)) => {}
            (_, None) if auto_kl.is_some() => {}
            (default, Some(flag)) => self.value(flag, Some(default)),
            (default, None) => self.argument(default),
        }
        // The first that matches decides, so their order says something, and that of bounds does not.
        rules.overrides.iter().for_each(|o| self.value("--tensor-type", Some(o)));
        match rules.on_unfit {
            OnUnfit::Fallback => {}
            OnUnfit::Error => self.value("--on-unfit", Some("error")),
            OnUnfit::Keep => self.value("--on-unfit", Some("keep")),
        }
        self.flag("--allow-requantize", rules.allow_requantize);
        let mut bounds: Vec<String> = bounds.iter().map(Bound::to_string).collect();
        bounds.sort();
        bounds.dedup();
        bounds.iter().for_each(|b| self.value("--max-error", Some(b)));
        self.value("--auto", auto_kl.map(|kl| format!("KL={kl:?}")));
    }

    /// What is stated about a checkpoint of another training code.
    pub fn reading(&mut self, options: &Options) {
        let Options { stated, transpose_memory, layout, form } = options;
        self.value("--form", form.as_ref());
        self.file("--layout", layout.as_deref());
        for (key, value) in stated {
            let text = match value {
                Value::Null => "all".to_owned(),
                Value::String(text) => text.clone(),
                Value::Array(list) => list.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
                other => other.to_string(),
            };
            self.value(flag_of(key).unwrap_or(key), Some(text));
        }
        if let Some(is_transposed) = transpose_memory {
            self.0.push(format!("--transpose-memory={is_transposed}"));
        }
    }

    /// The whole line.
    pub fn line(&self) -> String {
        self.0.join(" ")
    }
}

/// Of `.`, `..` and the like the name that they stand for.
fn last_part(path: &Path) -> String {
    let name = path.file_name().map(ToOwned::to_owned);
    let name = name.or_else(|| path.canonicalize().ok()?.file_name().map(ToOwned::to_owned));
    name.as_deref().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// As a shell needs it.
pub fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:=+@%/".contains(c);
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
    fn a_path_is_recorded_by_its_last_part_however_it_is_spelt() {
        for path in ["adapter", "adapter/", "./adapter", "/x/y/adapter/.", "../z/adapter//"] {
            assert_eq!(Recorded::new("convert", Path::new(path)).line(), "ptplus convert adapter");
        }
        let here = std::env::current_dir().unwrap();
        for path in [".", "src/..", "./"] {
            let name = here.file_name().unwrap().to_str().unwrap();
            assert_eq!(Recorded::new("convert", Path::new(path)).line(), format!("ptplus convert {}", quoted(name)));
        }
        assert_eq!(Recorded::new("convert", Path::new("a b")).line(), "ptplus convert 'a b'");
    }

    #[test]
    fn types_are_recorded_by_what_they_are() {
        let line = |rules: &TypeRules, bounds: &[&str], auto, flag| {
            let mut r = Recorded::new("x", Path::new("a"));
            let bounds: Vec<Bound> = bounds.iter().map(|b| Bound::parse(b).unwrap()).collect();
            r.types(flag, rules, &bounds, auto);
            r.line()
        };
        let rules = |default: &str| TypeRules::from(OutType::parse(default).unwrap());
        assert_eq!(line(&rules("keep"), &[], None, Some("--outtype")), "ptplus x a");
        for q8 in ["q8_0", "Q8_0", "8"] {
            assert_eq!(line(&rules(q8), &[], None, Some("--outtype")), "ptplus x a --outtype q8_0");
            assert_eq!(line(&rules(q8), &[], None, None), "ptplus x a q8_0");
        }
        assert_eq!(line(&rules("Q4_K_M"), &[], None, None), "ptplus x a q4_k_m");
        assert_eq!(line(&rules("keep"), &[], Some(1e-3), None), "ptplus x a --auto KL=0.001");
        let bounds = [["rmse=1e-1", "KL=.5"], ["kl=0.50", "RMSE=0.1"]];
        for order in bounds {
            let expected = "ptplus x a --max-error kl=0.5 --max-error rmse=0.1";
            assert_eq!(line(&rules("keep"), &order, None, Some("--outtype")), expected);
        }
        let mut two = rules("keep");
        for text in ["blk\\.0=Q8_0", "a=2"] {
            two.overrides.push(crate::export::types::Override::parse(text).unwrap());
        }
        two.on_unfit = OnUnfit::Keep;
        let expected = "ptplus x a --tensor-type 'blk\\.0=q8_0' --tensor-type a=q4_0 --on-unfit keep";
        assert_eq!(line(&two, &[], None, Some("--outtype")), expected);
    }
}
