//! The rule for paths inside a bundle, the same in a manifest, in a folder and in a tar archive.

use crate::error::{Code, Error, Result, is_hidden};
use crate::format::names::{check_name, shorten};

/// Refuses what [`check_name`] refuses, backslashes, empty, `.` and `..` parts, names that Windows cannot have, and
/// characters that no one sees.
///
/// # Errors
///
/// [`Code::BundlePath`].
pub fn check_path(path: &str) -> Result<()> {
    let fault = match check_name(path) {
        Err(e) => e.message().to_owned(),
        Ok(()) if path.contains('\\') => "the path holds a backslash".to_owned(),
        Ok(()) if path.split('/').any(|part| matches!(part, "" | "." | "..")) => {
            "the path has an empty part, \".\" or \"..\"".to_owned()
        }
        Ok(()) => match path.split('/').find_map(not_portable) {
            Some(fault) => fault.to_owned(),
            None => return Ok(()),
        },
    };
    Err(Error::new(Code::BundlePath, fault).field(shorten(path)))
}

/// Why a part of a path cannot exist on every system. Source: "Naming Files, Paths, and Namespaces" in Microsoft's
/// documentation of Win32.
fn not_portable(part: &str) -> Option<&'static str> {
    const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];
    let stem = part.split('.').next().unwrap_or(part).trim_end().to_lowercase();
    let is_port = matches!(stem.as_bytes(), [b'c', b'o', b'm', b'0'..=b'9'] | [b'l', b'p', b't', b'0'..=b'9']);
    if DEVICES.contains(&stem.as_str()) || is_port {
        Some("the path has the name of a device of Windows")
    } else if part.ends_with(['.', ' ']) {
        Some("a part of the path ends in a dot or a space, which Windows drops")
    } else if part.contains(['<', '>', ':', '"', '|', '?', '*']) {
        Some("the path holds a character that Windows forbids")
    } else if part.chars().any(is_hidden) {
        Some("the path holds an invisible character")
    } else {
        None
    }
}

/// The first pair of paths that cannot both exist everywhere: equal when case is ignored, or one a folder of the other.
pub fn first_clash<'a>(paths: impl Iterator<Item = &'a str>) -> Option<(&'a str, &'a str)> {
    let mut sorted: Vec<(String, &str)> = paths.map(|p| (p.to_lowercase(), p)).collect();
    sorted.sort();
    let folded: std::collections::BTreeMap<&str, &str> = sorted.iter().map(|(f, p)| (f.as_str(), *p)).collect();
    if let Some(pair) = sorted.windows(2).find(|w| w[0].0 == w[1].0) {
        return Some((pair[0].1, pair[1].1));
    }
    sorted.iter().find_map(|(f, path)| {
        let parents = f.match_indices('/').map(|(i, _)| &f[..i]);
        parents.filter_map(|parent| folded.get(parent)).next().map(|file| (*file, *path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_at_each_boundary() {
        for good in ["a", "reports/a.json", "a..b", "a b", ".hidden", "ä/ö", "console", "com", "com10"] {
            assert!(check_path(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "./a",
            "a/.",
            "../a",
            "a/../b",
            "a\\b",
            "a\nb",
            "C:/a",
            "CON",
            "nul.txt",
            "a/com1.json",
            "a.",
            "b /c",
            "a:b",
            "a*",
            "a\u{202e}b",
            "a\u{ad}b",
            "a\u{61c}b",
            "\u{3164}",
            "a\u{e0041}",
            "\u{feff}a",
            &"n".repeat(256),
        ] {
            assert_eq!(check_path(bad).unwrap_err().code(), Code::BundlePath, "{bad:?}");
        }
    }

    #[test]
    fn paths_that_cannot_exist_together_are_found() {
        let clash = |paths: &[&str]| first_clash(paths.iter().copied()).is_some();
        assert!(!clash(&["a", "b", "c/a", "c/b", "ca"]));
        assert!(clash(&["README.md", "readme.MD"]));
        assert!(clash(&["É", "é"]));
        assert!(clash(&["a", "b", "a/b"]));
        assert!(clash(&["A", "a/b/c"]));
    }
}
