//! `ADAPTER[:SCALE]`.

use std::path::{Path, PathBuf};

use super::usage;
use crate::error::Result;
use crate::exec::control::scale_of;

/// `FILE:0.5` is a file and a factor; a colon that no number follows is part of the name, and so is one in the name of
/// a file that exists.
pub fn path_and_scale(flag: &str, text: &str) -> Result<(PathBuf, f32)> {
    let whole = || Ok((PathBuf::from(text), 1.0));
    if Path::new(text).exists() {
        return whole();
    }
    match text.rsplit_once(':') {
        Some((path, scale)) if !path.is_empty() && scale.parse::<f32>().is_ok() => match scale_of(scale) {
            Some(scale) => Ok((PathBuf::from(path), scale)),
            None => Err(usage(flag, format!("expected a scale within the range of F32, found {scale:?}"))),
        },
        _ => whole(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_a_number_begins_a_scale_unless_the_file_is_called_so() {
        let temp = tempfile::tempdir().unwrap();
        let named = |name: &str| temp.path().join(name).display().to_string();
        std::fs::write(named("v1:2"), b"").unwrap();
        let split =
            |text: &str| path_and_scale("--adapter", text).map(|(path, scale)| (path.display().to_string(), scale));
        for (text, path, scale) in [
            ("a.gguf", "a.gguf", 1.0),
            ("a.gguf:0.5", "a.gguf", 0.5),
            ("a.gguf:-2", "a.gguf", -2.0),
            ("C:/x:y/a.gguf", "C:/x:y/a.gguf", 1.0),
            ("C:/x:y/a.gguf:0", "C:/x:y/a.gguf", 0.0),
            (":0.5", ":0.5", 1.0),
        ] {
            assert_eq!(split(text).unwrap(), (path.to_owned(), scale), "{text}");
        }
        assert_eq!(split(&named("v1:2")).unwrap(), (named("v1:2"), 1.0));
        assert_eq!(split(&named("v1:2:3")).unwrap(), (named("v1:2"), 3.0));
        for text in ["a:nan", "a:inf", "a:1e99", "a:1e-50"] {
            assert_eq!(split(text).unwrap_err().code(), crate::error::Code::Usage, "{text}");
        }
    }
}
