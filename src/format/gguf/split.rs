//! Models split over several files, as `llama-gguf-split` and gguf-py make them: `NAME-00002-of-00003.gguf`, the first
//! with all metadata, each with the keys `split.no` (from 0), `split.count` and `split.tensors.count`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{Gguf, KEY_ALIGNMENT, open_one};
use crate::error::{Code, Error, Result};
use crate::format::{limits, links};

const KEY_NO: &str = "split.no";
const KEY_COUNT: &str = "split.count";
const KEY_TENSORS: &str = "split.tensors.count";
const PREFIX: &str = "split.";

/// What a part's file name says.
pub(super) struct PartName {
    /// Up to the part's number.
    stem: String,
    count: u32,
}

impl PartName {
    fn path(&self, folder: &Path, no: u32) -> PathBuf {
        folder.join(format!("{}-{:05}-of-{:05}.gguf", self.stem, no + 1, self.count))
    }
}

/// Takes `NAME-00002-of-00003.gguf` apart; `None` for any other name.
pub(super) fn part_name(path: &Path) -> Option<PartName> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, no) = rest.rsplit_once('-')?;
    let number = |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok()).flatten();
    let (no, count): (u32, u32) = (number(no)?, number(count)?);
    (1..=count).contains(&no).then(|| PartName { stem: stem.to_owned(), count })
}

/// Whether a file of this name is taken for one part of several. The only part of one may be a whole file.
pub fn is_name_of_part(path: &Path) -> bool {
    part_name(path).is_some_and(|name| name.count > 1)
}

/// Refuses one part of several under a name that does not tell where the others are, and keys of a whole that do not
/// fit it.
pub(super) fn refuse_lone_part(gguf: &Gguf) -> Result<()> {
    let wrong = |key: &str, message: String| Err(Error::new(Code::GgufSplit, message).file(&gguf.path).field(key));
    let (no, n_tensors) = (gguf.metadata.u32(KEY_NO)?, gguf.metadata.u64(KEY_TENSORS)?);
    match gguf.metadata.u32(KEY_COUNT)? {
        Some(count) if count > 1 => {
            let no = no.unwrap_or_default().saturating_add(1);
            let message = format!(
                "expected the file name of a part (NAME-00001-of-{count:05}.gguf), since {KEY_COUNT} is {count}"
            );
            let hint = format!(
                "this is part {no} of {count}, and readers find the others by its name: rename it to NAME-{no:05}-of-{count:05}.gguf, NAME as theirs is, or join the parts with `llama-gguf-split --merge`"
            );
            wrong(KEY_COUNT, message).map_err(|e| e.hints([hint]))
        }
        _ if no.is_some_and(|n| n > 0) => {
            wrong(KEY_NO, format!("expected 0 in a file that is no part of several, found {}", no.unwrap_or_default()))
        }
        _ => match n_tensors.filter(|n| *n != gguf.tensors.len() as u64) {
            Some(n) => {
                wrong(KEY_TENSORS, format!("expected {}, the tensors of this file, found {n}", gguf.tensors.len()))
            }
            None => Ok(()),
        },
    }
}

/// Opens all parts of the model that `path` is one of.
pub(super) fn open(path: &Path, name: &PartName) -> Result<Gguf> {
    let wrong = |file: &Path, message: String| Error::new(Code::GgufSplit, message).file(file);
    if name.count as usize > limits::SHARDS {
        return Err(wrong(path, format!("expected at most {} parts, found {}", limits::SHARDS, name.count)));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut whole: Option<Gguf> = None;
    let mut names = HashSet::new();
    let mut total = None;
    for no in 0..name.count {
        let file = name.path(folder, no);
        // The part that was asked for may lie anywhere; the others follow from a name.
        if file.file_name() != path.file_name()
            && let Some(target) = links::target_outside(folder, &file)
        {
            return Err(wrong(&file, format!("expected a file of this folder, found a link to {}", target.display())));
        }
        let part = open_one(&file).map_err(|e| match e.code() {
            Code::NotFound if !file.is_symlink() => {
                wrong(&file, format!("part {} of {} is missing", no + 1, name.count))
            }
            _ => e,
        })?;
        let (found_no, found_count) = (part.metadata.u32(KEY_NO)?, part.metadata.u32(KEY_COUNT)?);
        // A whole model may be named as the only part of one, without any of the keys.
        if name.count == 1 && found_count.is_none_or(|n| n <= 1) {
            refuse_lone_part(&part)?;
            return Ok(part);
        }
        if found_count != Some(name.count) {
            let found = found_count.map_or("none".into(), |n| n.to_string());
            return Err(wrong(&file, format!("expected {}, found {found}", name.count)).field(KEY_COUNT));
        }
        if found_no != Some(no) {
            let found = found_no.map_or("none".into(), |n| n.to_string());
            return Err(wrong(&file, format!("expected {no}, found {found}")).field(KEY_NO));
        }
        if let Some(n) = part.metadata.u64(KEY_TENSORS)?
            && *total.get_or_insert(n) != n
        {
            return Err(wrong(&file, "the parts disagree about the number of tensors".into()).field(KEY_TENSORS));
        }
        for t in &part.tensors {
            if !names.insert(t.name.clone()) {
                let message = "this tensor occurs in two parts";
                return Err(Error::new(Code::NameDuplicate, message).file(&file).field(&t.name).at(t.file_offset));
            }
        }
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => append(whole, part)?,
        }
    }
    let mut whole = whole.expect("a part's name counts from 1");
    match total {
        Some(total) if total != whole.tensors.len() as u64 => {
            let message = format!("expected {total} tensors in all parts, found {}", whole.tensors.len());
            return Err(wrong(&whole.path, message).field(KEY_TENSORS));
        }
        None => return Err(whole.metadata.missing(KEY_TENSORS)),
        Some(_) => {}
    }
    for key in [KEY_NO, KEY_COUNT, KEY_TENSORS] {
        whole.metadata.remove(key);
    }
    Ok(whole)
}

/// Later parts may repeat metadata of the first, but not contradict it; alignment is each file's own.
fn append(whole: &mut Gguf, part: Gguf) -> Result<()> {
    for (key, value) in part.metadata.iter().filter(|(k, _)| !k.starts_with(PREFIX) && *k != KEY_ALIGNMENT) {
        if whole.metadata.get(key).is_some_and(|first| first != value) {
            let message = "this value differs from the one in the first part";
            return Err(Error::new(Code::GgufSplit, message).file(&part.path).field(key));
        }
    }
    whole.tensors.extend(part.tensors);
    whole.files.extend(part.files);
    if whole.tensors.len() as u64 > limits::TENSORS {
        let message = format!("expected at most {} tensors in all parts", limits::TENSORS);
        return Err(Error::new(Code::GgufLimit, message).file(&part.path));
    }
    whole.len_bytes = whole.len_bytes.saturating_add(part.len_bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::TensorSpec;
    use crate::format::gguf::{Metadata, Value, open as open_gguf, plan};
    use crate::tensor::DType;

    /// The metadata and the tensor of part `no` (from 0) of three.
    fn part(no: u16) -> (Metadata, Vec<TensorSpec>) {
        let mut m = Metadata::new();
        if no == 0 {
            m.insert("general.architecture", "llama");
        }
        m.insert(KEY_NO, Value::U16(no));
        m.insert(KEY_COUNT, Value::U16(3));
        m.insert(KEY_TENSORS, Value::I32(3));
        (m, vec![TensorSpec { name: format!("t{no}"), dtype: DType::I8, shape: vec![3] }])
    }

    fn path(dir: &Path, no: u16) -> PathBuf {
        dir.join(format!("m-{:05}-of-00003.gguf", no + 1))
    }

    /// Writes the three parts, after `change` had its way with each.
    fn write(dir: &Path, change: impl Fn(u16, &mut Metadata, &mut Vec<TensorSpec>)) {
        for no in 0..3 {
            let (mut m, mut t) = part(no);
            change(no, &mut m, &mut t);
            let plan = plan(&m, &t).unwrap();
            let mut bytes = plan.header;
            bytes.resize(plan.len_bytes as usize, no as u8);
            std::fs::write(path(dir, no), bytes).unwrap();
        }
    }

    #[test]
    fn any_part_opens_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), |_, _, _| ());
        for no in 0..3 {
            let g = open_gguf(&path(dir.path(), no)).unwrap();
            assert_eq!(g.path, path(dir.path(), 0));
            assert_eq!(g.tensors.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["t0", "t1", "t2"]);
            assert_eq!(&*g.tensors[2].bytes, [2, 2, 2]);
            assert_eq!(&*g.tensors[2].file, path(dir.path(), 2));
            assert_eq!(g.metadata.iter().map(|e| e.0).collect::<Vec<_>>(), ["general.architecture"]);
            assert_eq!(g.files.len(), 3);
        }
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        type Change = fn(u16, &mut Metadata, &mut Vec<TensorSpec>);
        let cases: [(&str, Change, Code); 10] = [
            ("number of another part", |_, m, _| m.insert(KEY_NO, Value::U16(0)), Code::GgufSplit),
            ("no number", |_, m, _| drop(m.remove(KEY_NO)), Code::GgufSplit),
            ("other count", |no, m, _| m.insert(KEY_COUNT, Value::U16(3 + no)), Code::GgufSplit),
            ("no count", |_, m, _| drop(m.remove(KEY_COUNT)), Code::GgufSplit),
            ("count as text", |_, m, _| m.insert(KEY_COUNT, "3"), Code::GgufKey),
            ("wrong total", |_, m, _| m.insert(KEY_TENSORS, Value::I32(4)), Code::GgufSplit),
            ("totals differ", |no, m, _| m.insert(KEY_TENSORS, Value::I32(3 - i32::from(no))), Code::GgufSplit),
            ("no total", |_, m, _| drop(m.remove(KEY_TENSORS)), Code::GgufKey),
            ("same tensor in two parts", |_, _, t| t[0].name = "t".into(), Code::NameDuplicate),
            ("another architecture", |no, m, _| m.insert("general.architecture", no.to_string()), Code::GgufSplit),
        ];
        for (name, change, code) in cases {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), change);
            let e = open_gguf(&path(dir.path(), 1)).unwrap_err();
            assert_eq!(e.code(), code, "{name}: {e}");
            assert!(e.path().is_some());
        }
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), |_, _, _| ());
        std::fs::remove_file(path(dir.path(), 2)).unwrap();
        let e = open_gguf(&path(dir.path(), 0)).unwrap_err();
        assert_eq!((e.code(), e.path()), (Code::GgufSplit, Some(&*path(dir.path(), 2))));
    }

    #[test]
    fn a_part_under_another_name_is_refused_and_a_whole_under_a_parts_name_accepted() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), |_, _, _| ());
        let renamed = dir.path().join("model.gguf");
        std::fs::rename(path(dir.path(), 0), &renamed).unwrap();
        assert_eq!(open_gguf(&renamed).unwrap_err().code(), Code::GgufSplit);

        let whole = dir.path().join("m-00001-of-00001.gguf");
        std::fs::write(&whole, plan(&Metadata::new(), &[]).unwrap().header).unwrap();
        assert!(open_gguf(&whole).is_ok());
    }

    #[test]
    fn names_of_parts() {
        let count = |name: &str| part_name(Path::new(name)).map(|n| (n.stem, n.count));
        assert_eq!(count("d/a-b-00002-of-00003.gguf"), Some(("a-b".into(), 3)));
        for other in [
            "a.gguf",
            "a-00000-of-00003.gguf",
            "a-00004-of-00003.gguf",
            "a-1-of-3.gguf",
            "a-00001-of-00003.bin",
            "a-+0001-of-00003.gguf",
        ] {
            assert_eq!(count(other), None, "{other}");
        }
    }

    #[test]
    fn a_renamed_part_is_told_which_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("renamed.gguf");
        let mut m = Metadata::new();
        [(KEY_NO, 1), (KEY_COUNT, 3)].iter().for_each(|(key, n)| m.insert(*key, Value::U32(*n)));
        std::fs::write(&file, plan(&m, &[]).unwrap().header).unwrap();
        let e = open_gguf(&file).unwrap_err();
        let hint = e.hint_lines().join(" ");
        assert!(e.code() == Code::GgufSplit && hint.contains("NAME-00002-of-00003.gguf"), "{e} {hint}");
    }

    #[test]
    fn keys_of_a_whole_fit_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["m.gguf", "m-00001-of-00001.gguf"] {
            let file = dir.path().join(name);
            let open = |keys: &[(&str, u32)]| {
                let mut m = Metadata::new();
                keys.iter().for_each(|(key, n)| m.insert(*key, Value::U32(*n)));
                std::fs::write(&file, plan(&m, &[]).unwrap().header).unwrap();
                open_gguf(&file)
            };
            open(&[(KEY_NO, 0), (KEY_COUNT, 1), (KEY_TENSORS, 0)]).unwrap();
            open(&[(KEY_COUNT, 0)]).unwrap();
            for keys in [[(KEY_NO, 5), (KEY_COUNT, 1)], [(KEY_TENSORS, 9), (KEY_COUNT, 1)]] {
                let e = open(&keys).unwrap_err();
                assert_eq!((e.code(), e.field_name()), (Code::GgufSplit, Some(keys[0].0)), "{e}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_part_may_not_be_a_link_out_of_the_folder() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(dir.path(), |_, _, _| ());
        let target = elsewhere.path().join("other.gguf");
        std::fs::rename(path(dir.path(), 1), &target).unwrap();
        std::os::unix::fs::symlink(&target, path(dir.path(), 1)).unwrap();
        let e = open_gguf(&path(dir.path(), 0)).unwrap_err();
        assert_eq!((e.code(), e.path()), (Code::GgufSplit, Some(&*path(dir.path(), 1))), "{e}");
        // Who names the link itself knows where it leads.
        open_gguf(&path(dir.path(), 1)).unwrap();
    }
}
