//! The variables by which a program and the graft in it learn what to do. All names are here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use super::{LIBRARY_NAME, Ready};
use crate::error::{Code, Error, Result};

/// Adapters that the graft takes.
pub const MAX_ADAPTERS: usize = 16;

const PRELOAD: &str = "LD_PRELOAD";
const PREFIX: &str = "PTPLUS_";
const CONTROL: &str = "PTPLUS_CONTROL";

/// What to set, and what an earlier `exec` has set that must go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Environment {
    /// Names and values.
    pub set: Vec<(String, OsString)>,
    /// Names.
    pub unset: Vec<OsString>,
}

impl Environment {
    /// For a program that needs nothing of it.
    pub fn unchanged() -> Environment {
        Environment { set: Vec::new(), unset: Vec::new() }
    }

    /// For a program that starts in `inherited`.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`] for more adapters than the graft takes.
    pub fn new(
        library: &Path,
        adapters: &[Ready],
        control: Option<&Path>,
        inherited: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Environment> {
        if adapters.len() > MAX_ADAPTERS {
            let message = format!("expected at most {MAX_ADAPTERS} adapters, found {}", adapters.len());
            return Err(Error::new(Code::Usage, message).field("--adapter"));
        }
        let (mut preload, mut unset) = (None, Vec::new());
        for (name, value) in inherited {
            if name == PRELOAD {
                preload = Some(value);
            } else if is_ours(&name) {
                unset.push(name);
            }
        }
        let mut set = vec![(PRELOAD.to_owned(), prepended(library, preload.as_deref()))];
        for (i, adapter) in adapters.iter().enumerate() {
            set.push((format!("PTPLUS_ADAPTER_{}", i + 1), adapter.file.clone().into()));
            set.push((format!("PTPLUS_SCALE_{}", i + 1), adapter.scale.to_string().into()));
        }
        set.extend(control.map(|path| (CONTROL.to_owned(), path.into())));
        unset.retain(|name| !set.iter().any(|(n, _)| name == n.as_str()));
        unset.sort();
        Ok(Environment { set, unset })
    }
}

/// What another `exec` around this one has set. Other variables of ptplus are the user's.
fn is_ours(name: &OsStr) -> bool {
    let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else { return false };
    let numbered =
        |of: &str| rest.strip_prefix(of).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    rest == "CONTROL" || numbered("ADAPTER_") || numbered("SCALE_")
}

/// The library before those that are there. An older copy of it goes: two would add every adapter twice.
fn prepended(library: &Path, others: Option<&OsStr>) -> OsString {
    // The loader takes both as separators.
    let others = others.unwrap_or_default().as_bytes().split(|b| matches!(b, b':' | b' '));
    let kept =
        others.filter(|o| !o.is_empty() && Path::new(OsStr::from_bytes(o)).file_name() != Some(LIBRARY_NAME.as_ref()));
    let mut out = library.as_os_str().as_bytes().to_vec();
    for other in kept {
        out.push(b':');
        out.extend(other);
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(file: &str, scale: f32) -> Ready {
        let about = Default::default();
        let (source, file) = (file.into(), file.into());
        Ready { source, file, scale, is_lora: false, about, base_identity: None, notes: Vec::new() }
    }

    fn environment(adapters: &[Ready], inherited: &[(&str, &str)]) -> Environment {
        let inherited = inherited.iter().map(|(n, v)| ((*n).into(), (*v).into()));
        Environment::new(Path::new("/c/libptplus_graft.so"), adapters, Some(Path::new("/ctl")), inherited).unwrap()
    }

    #[test]
    fn each_adapter_has_a_number_and_a_scale() {
        let found = environment(&[ready("/a.gguf", 1.0), ready("/b.gguf", -0.25)], &[("HOME", "/h")]);
        let set: Vec<(&str, &str)> = found.set.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        let expected = [
            ("LD_PRELOAD", "/c/libptplus_graft.so"),
            ("PTPLUS_ADAPTER_1", "/a.gguf"),
            ("PTPLUS_SCALE_1", "1"),
            ("PTPLUS_ADAPTER_2", "/b.gguf"),
            ("PTPLUS_SCALE_2", "-0.25"),
            ("PTPLUS_CONTROL", "/ctl"),
        ];
        assert_eq!(set, expected);
        assert!(found.unset.is_empty());
        let many = vec![ready("/a.gguf", 1.0); MAX_ADAPTERS + 1];
        let too_many = Environment::new(Path::new("/l.so"), &many, None, std::iter::empty()).unwrap_err();
        assert_eq!(too_many.code(), Code::Usage);
    }

    #[test]
    fn an_exec_within_an_exec_leaves_nothing_of_the_outer_one() {
        let outer = [
            ("LD_PRELOAD", "/old/libptplus_graft.so:/x/liba.so /y/libb.so"),
            ("PTPLUS_ADAPTER_1", "/outer.gguf"),
            ("PTPLUS_ADAPTER_2", "/outer2.gguf"),
            ("PTPLUS_SCALE_2", "0.5"),
            ("PTPLUS_COMMIT", "mine"),
        ];
        let found = environment(&[ready("/a.gguf", 1.0)], &outer);
        assert_eq!(found.set[0].1, "/c/libptplus_graft.so:/x/liba.so:/y/libb.so");
        assert_eq!(found.unset, ["PTPLUS_ADAPTER_2", "PTPLUS_SCALE_2"]);
    }
}
