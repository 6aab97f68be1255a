//! The control file: by it a program's adapters change their scales while it runs. A line `NAME SCALE` for each; the
//! graft reads it again when it was replaced. Whoever can write it decides what the model computes, so it must be its
//! owner's alone.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result, escape};
use crate::format::output::{OutputFile, Overwrite};

/// What the graft reads of it.
const MAX_BYTES: usize = 4096;

/// Adapters and their scales, in the order in which they were given.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Control {
    /// Names and scales.
    pub adapters: Vec<(String, f32)>,
}

/// How adapters are called in a control file: by their file's name without the ending; by their number where that is no
/// single word, or not one adapter's alone.
pub fn names(files: &[PathBuf]) -> Vec<String> {
    let stems: Vec<String> =
        files.iter().map(|f| f.file_stem().unwrap_or_default().to_string_lossy().into_owned()).collect();
    let is_alone = |stem: &String| stems.iter().filter(|s| *s == stem).count() == 1;
    let named = stems.iter().enumerate().map(|(i, stem)| match is_name(stem) && is_alone(stem) && !is_number(stem) {
        true => stem.clone(),
        false => (i + 1).to_string(),
    });
    named.collect()
}

/// Bytes of a name: sixteen of them and their scales fit into the file.
const MAX_NAME_BYTES: usize = 128;

fn is_name(text: &str) -> bool {
    let is_part = |c: char| !c.is_whitespace() && !c.is_control() && c != char::REPLACEMENT_CHARACTER;
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.chars().all(is_part) && !text.starts_with('#')
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

impl Control {
    /// For these adapters.
    pub fn new(adapters: Vec<(String, f32)>) -> Control {
        Control { adapters }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`], [`Code::Io`]; [`Code::ControlUnsafe`] for a file that is not this user's alone, a link, or no
    /// plain file; [`Code::ControlFile`] for one that is no list.
    pub fn read(path: &Path) -> Result<Control> {
        Self::read_from(&mut open(path)?, path)
    }

    fn read_from(file: &mut File, path: &Path) -> Result<Control> {
        let mut bytes = Vec::new();
        let read = file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|e| Error::io(path, "cannot read", e))?;
        Self::parse(&bytes).map_err(|e| e.file(path))
    }

    fn parse(bytes: &[u8]) -> Result<Control> {
        let wrong = |message: String| Error::new(Code::ControlFile, message);
        if bytes.len() > MAX_BYTES {
            return Err(wrong(format!("expected at most {MAX_BYTES} bytes, found more")));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|e| wrong("expected UTF-8, found an invalid byte".into()).at(e.valid_up_to() as u64))?;
        let mut out = Control { adapters: Vec::new() };
        for (i, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [name, scale] = words[..] else {
                let message = format!("expected a name and a scale in line {}, found {:?}", i + 1, escape(line));
                return Err(wrong(message));
            };
            let scale = scale_of(scale)
                .ok_or_else(|| wrong(format!("expected a finite scale in line {}, found {scale:?}", i + 1)))?;
            if !is_name(name) || out.position(name).is_some() {
                return Err(wrong(format!("expected a name of its own in line {}, found {:?}", i + 1, escape(name))));
            }
            out.adapters.push((name.to_owned(), scale));
        }
        Ok(out)
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.adapters.iter().position(|(n, _)| n == name)
    }

    /// As it stands in the file.
    pub fn text(&self) -> String {
        self.adapters.iter().map(|(name, scale)| format!("{name} {scale}\n")).collect()
    }

    /// Makes the file, or replaces one that an earlier start has made.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read) for what is there; [`Code::Io`].
    pub fn create(&self, path: &Path) -> Result<()> {
        match std::fs::symlink_metadata(path) {
            Ok(_) => drop(Control::read(path)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(path, "cannot open", e)),
        }
        self.replace(path)
    }

    /// A reader finds the old text or the new one, whole.
    fn replace(&self, path: &Path) -> Result<()> {
        let text = self.text();
        if text.len() > MAX_BYTES {
            return Err(
                Error::new(Code::ControlFile, format!("expected at most {MAX_BYTES} bytes, found more")).file(path)
            );
        }
        let out = OutputFile::create_private(path, Overwrite::Force, &[])?;
        out.write_all_at(0, text.as_bytes())?;
        out.commit()
    }

    /// Changes scales in the file at `path`, all or none. `changes` name an adapter as the file does, or by its number.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read); [`Code::Usage`] for a name that is not in it, or twice among the changes.
    pub fn change(path: &Path, changes: &[(String, f32)]) -> Result<Control> {
        let (_lock, mut control) = loop {
            let mut file = open(path)?;
            file.lock().map_err(|e| Error::io(path, "cannot lock", e))?;
            // Another change may have put a new file in its place meanwhile.
            let is_current =
                std::fs::symlink_metadata(path).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() == m.ino()));
            if is_current {
                let control = Self::read_from(&mut file, path)?;
                break (file, control);
            }
        };
        let mut changed = Vec::new();
        for (name, scale) in changes {
            let by_number =
                name.parse::<usize>().ok().filter(|n| (1..=control.adapters.len()).contains(n)).map(|n| n - 1);
            let Some(i) = control.position(name).or(by_number) else {
                let known: Vec<&str> = control.adapters.iter().map(|(n, _)| n.as_str()).collect();
                let message = format!("expected one of {}, found {name:?}", known.join(", "));
                return Err(Error::new(Code::Usage, message).field("--set"));
            };
            if changed.contains(&i) {
                return Err(Error::new(Code::Usage, format!("expected {name:?} once, found it twice")).field("--set"));
            }
            changed.push(i);
            control.adapters[i].1 = *scale;
        }
        control.replace(path)?;
        Ok(control)
    }
}

/// A finite number that F32 has: `1e-50` is 0 there, which would switch an adapter off without a word.
pub fn scale_of(text: &str) -> Option<f32> {
    let scale: f32 = text.parse().ok()?;
    let says_zero = !text.split(['e', 'E']).next()?.bytes().any(|b| matches!(b, b'1'..=b'9'));
    (scale.is_finite() && (scale == 0.0) == says_zero).then_some(scale)
}

/// Opens a control file that only its owner, this user, can write.
fn open(path: &Path) -> Result<File> {
    use rustix::fs::OFlags;
    let wrong = |message: &str| Error::new(Code::ControlUnsafe, message).file(path);
    let found = std::fs::symlink_metadata(path).map_err(|e| Error::io(path, "cannot open", e))?;
    if !found.is_file() {
        return Err(wrong("expected a plain file, found a link, folder, pipe or device"));
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|e| Error::io(path, "cannot open", e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, "cannot read its owner", e))?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(wrong("expected a file of this user, found another's"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(wrong("expected a file that its owner alone can write, found one that others can write, too"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn names_are_single_words_of_one_adapter() {
        let names = |files: &[&str]| names(&files.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["/a/pirate.gguf", "/b/v1.2.gguf"]), ["pirate", "v1.2"]);
        assert_eq!(names(&["/a/x.gguf", "/b/x.gguf", "/c/y.gguf"]), ["1", "2", "y"]);
        assert_eq!(names(&["/a/my pirate.gguf", "/b/2.gguf", "/b/1.gguf"]), ["1", "2", "3"]);
        assert_eq!(names(&[&format!("/{}.gguf", "n".repeat(200)), "/#x.gguf"]), ["1", "2"]);
    }

    #[test]
    fn scales_change_and_everything_else_stays() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("control");
        let made = Control::new(vec![("pirate".into(), 1.0), ("facts".into(), 0.1), ("3".into(), -2.5)]);
        made.create(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "pirate 1\nfacts 0.1\n3 -2.5\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Control::read(&path).unwrap(), made);
        let change = |changes: &[(&str, f32)]| {
            Control::change(&path, &changes.iter().map(|(n, s)| ((*n).into(), *s)).collect::<Vec<_>>())
        };
        let changed = change(&[("facts", 0.0), ("1", 0.5)]).unwrap();
        assert_eq!(changed.text(), "pirate 0.5\nfacts 0\n3 -2.5\n");
        assert_eq!(Control::read(&path).unwrap(), changed);
        for wrong in [
            &[("pirat", 1.0)][..],
            &[("4", 1.0)],
            &[("0", 1.0)],
            &[("pirate", 1.0), ("1", 2.0)],
            &[("pirate", 0.0), ("x", 1.0)],
        ] {
            assert_eq!(change(wrong).unwrap_err().code(), Code::Usage, "{wrong:?}");
            assert_eq!(Control::read(&path).unwrap(), changed, "all or none");
        }
        made.create(&path).unwrap();
        assert_eq!(Control::read(&path).unwrap(), made, "a restart begins with the scales of its command line");
    }

    #[test]
    fn files_that_others_may_write_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("control");
        let code = |path: &Path| Control::read(path).unwrap_err().code();
        std::fs::write(&path, "a 1\n").unwrap();
        for (mode, is_safe) in [(0o600, true), (0o644, true), (0o620, false), (0o602, false), (0o666, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Control::read(&path).is_ok(), is_safe, "{mode:o}");
            let made = Control::new(vec![("b".into(), 1.0)]).create(&path);
            assert_eq!(made.map_err(|e| e.code()), if is_safe { Ok(()) } else { Err(Code::ControlUnsafe) });
        }
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(code(&link), Code::ControlUnsafe);
        assert_eq!(code(temp.path()), Code::ControlUnsafe);
        assert_eq!(code(Path::new("/dev/null")), Code::ControlUnsafe);
        assert_eq!(code(&temp.path().join("none")), Code::NotFound);
        if rustix::process::geteuid().is_root() {
            let other = temp.path().join("other");
            std::fs::write(&other, "a 1\n").unwrap();
            std::os::unix::fs::chown(&other, Some(65534), None).unwrap();
            assert_eq!(code(&other), Code::ControlUnsafe);
        }
    }

    #[test]
    fn what_is_no_list_is_refused_and_never_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("control");
        let long = "n 1\n".repeat(2000);
        for text in [
            "a\n",
            "a 1 2\n",
            "a x\n",
            "a nan\n",
            "a inf\n",
            "a 1e-60\n",
            "a 1\na 2\n",
            "\n",
            "\u{feff}a b\n",
            "#a 1\n",
            &long,
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Control::read(&path).unwrap_err().code(), Code::ControlFile, "{text:?}");
            assert_eq!(Control::new(Vec::new()).create(&path).unwrap_err().code(), Code::ControlFile);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), *text);
        }
        std::fs::write(&path, b"a\xff 1\n").unwrap();
        assert_eq!(Control::read(&path).unwrap_err().code(), Code::ControlFile);
    }

    #[test]
    fn scales_are_finite_and_zero_only_where_they_say_so() {
        for (text, expected) in [
            ("1", Some(1.0)),
            ("-0.5", Some(-0.5)),
            ("0", Some(0.0)),
            ("0e5", Some(0.0)),
            ("1e-50", None),
            ("nan", None),
            ("1e99", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(scale_of(text), expected, "{text:?}");
        }
    }
}
