//! What lies in the place of a file or folder that a reader refused, called what it is, with what helps.
//!
//! Asked after a reader has refused something, so that nothing readable is refused here. Text is another matter: a web page
//! is a valid chat template, so there [`stand_in`] is asked first.

use std::path::{Path, PathBuf};

use super::magic::{is_gguf, is_safetensors};
use super::names::shorten;
use super::{hub, links};
use crate::error::{Code, Error, Result};

/// Bytes at the start of a file that are looked at.
const START_BYTES: usize = 4096;
/// Longest answer of a server that is taken for one: "Entry not found", or a sentence or two about access.
const ANSWER_BYTES: usize = 1024;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1_000;
/// Folders in it that are looked into.
const MAX_FOLDERS: usize = 32;

/// Something that people have where a file of this trade is wanted, and what to do about it.
struct Other {
    what: &'static str,
    help: &'static str,
}

const WEB_PAGE_HELP: &str = "a download saved what the server answered instead: log in (`hf auth login`), accept the model's terms on its page if it has any, and download the file again";

const fn other(what: &'static str, help: &'static str) -> Other {
    Other { what, help }
}

const NUMPY_ARCHIVE: Other = other(
    "a NumPy archive (.npz)",
    "save it as safetensors: `safetensors.numpy.save_file(dict(numpy.load(\"IN.npz\")), \"OUT.safetensors\")`",
);
const NUMPY_ARRAY: Other = other(
    "one NumPy array (.npy), which has no name",
    "save it under its name: `safetensors.numpy.save_file({\"layers.0.memory\": numpy.load(\"IN.npy\"), ...}, \"OUT.safetensors\")`",
);
const DISTRIBUTED: Other = other(
    "a part of a torch.distributed checkpoint (.distcp)",
    "make one file of the folder: `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER OUT.pt`",
);
const DEEPSPEED: Other = other(
    "a DeepSpeed checkpoint",
    "make one file of it: `python zero_to_fp32.py . OUT` in that folder, where DeepSpeed put the script",
);
const HDF5: Other = other(
    "HDF5 (.h5, as Keras and TensorFlow write it)",
    "read it with h5py and save the arrays as safetensors: `safetensors.numpy.save_file({name: array, ...}, \"OUT.safetensors\")`",
);
const KERAS: Other = other("a Keras model (.keras)", HDF5.help);
const MESSAGE_PACK: Other = other(
    "MessagePack (.msgpack, as Flax writes it)",
    "read it with flax.serialization.msgpack_restore and save the flattened arrays with safetensors.numpy.save_file",
);
const ONNX: Other = other(
    "ONNX, a graph for inference",
    "take the checkpoint that it was exported from: state dict, safetensors or GGUF",
);
const TFLITE: Other = other("a TensorFlow Lite model", ONNX.help);
const TENSORFLOW: Other = other(
    "a TensorFlow checkpoint",
    "read it with tf.train.load_checkpoint and save the arrays with safetensors.numpy.save_file",
);
const OLD_GGML: Other = other(
    "a GGML file from before GGUF",
    "convert the original model again: llama.cpp dropped this format in August 2023",
);
const LLAMA_STATE: Other = other(
    "the state of a sequence in llama.cpp",
    "give the adapter that it was made of: a state is for llama_state_seq_load_file, and for /slots of llama-server",
);
const ZIP: Other =
    other("a zip archive that torch.save did not write", "unpack it, and give the folder or file that was packed");
const COMPRESSED: Other = other("a compressed file", "unpack it, and give the file or folder that was packed");
const TAR: Other = other("a tar archive", COMPRESSED.help);

/// `e`, or what the file is instead, where `bytes` or the name tell.
pub(crate) fn named(path: &Path, bytes: &[u8], e: Error) -> Error {
    if let Some(found) = unfinished(bytes) {
        return Error::new(
            e.code(),
            format!("expected the file itself, found {found}: a download that was not finished?"),
        );
    }
    match stand_in(bytes).or_else(|| answer(bytes)) {
        Some((what, help)) => not_the_file(what, help),
        None => foreign(path, bytes).unwrap_or(e),
    }
}

/// Refuses what stands in the place of a text, which it could be read as.
///
/// # Errors
///
/// [`Code::UnknownFormat`].
pub(crate) fn refuse_stand_in(bytes: &[u8]) -> Result<()> {
    stand_in(bytes).map_or(Ok(()), |(what, help)| Err(not_the_file(what, help)))
}

/// What a download leaves that made the file first.
fn unfinished(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(START_BYTES)];
    match start {
        [] => Some("an empty file"),
        _ if start.len() == START_BYTES && start.iter().all(|b| *b == 0) => Some("zeros alone where it begins"),
        _ => None,
    }
}

fn not_the_file(what: String, help: String) -> Error {
    Error::new(Code::UnknownFormat, format!("expected the file itself, found {what}")).hints([help])
}

/// A Git LFS pointer or a web page, which stands where a file should be: what it is, and what helps.
pub(crate) fn stand_in(bytes: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(START_BYTES)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if is_lfs_pointer(text) {
        let size = text.lines().find_map(|l| l.strip_prefix("size ")?.trim().parse::<u64>().ok());
        let size = size.map_or(String::new(), |n| format!(" to {n} bytes"));
        let help = "`git lfs pull` in its repository fetches what pointers stand for (`git lfs install` first, once), or download the file again";
        return Some((format!("a Git LFS pointer{size}"), help.to_owned()));
    }
    is_page(text).then(|| {
        let title = title(text).map_or(String::new(), |t| format!(", {:?}", shorten(&t)));
        let xml = ["<?xml", "<error"].iter().any(|tag| text.to_ascii_lowercase().starts_with(tag));
        (format!("a web page ({}){title}", if xml { "XML" } else { "HTML" }), WEB_PAGE_HELP.to_owned())
    })
}

fn is_lfs_pointer(text: &str) -> bool {
    ["version https://git-lfs.github.com/spec/", "version https://hawser.github.com/spec/"]
        .iter()
        .any(|start| text.starts_with(start))
}

fn is_page(text: &str) -> bool {
    // A page may begin with a comment, and an answer of an object store with a declaration.
    let mut rest = text;
    while let Some((_, after)) = rest.strip_prefix("<!--").and_then(|r| r.split_once("-->")) {
        rest = after.trim_start();
    }
    let start: String = rest.chars().take(16).collect::<String>().to_ascii_lowercase();
    ["<!doctype", "<html", "<head", "<body", "<?xml", "<error"].iter().any(|tag| start.starts_with(tag))
}

fn title(page: &str) -> Option<String> {
    // Lower case changes no length here.
    let lower = page.to_ascii_lowercase();
    let start = lower.find("<title")?;
    let start = start + lower[start..].find('>')? + 1;
    let end = start + lower[start..].find("</title")?;
    let words: Vec<&str> = page[start..end].split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// A line of text, as servers answer: `Entry not found`.
fn answer(bytes: &[u8]) -> Option<(String, String)> {
    let line = std::str::from_utf8(bytes).ok().filter(|t| t.len() <= ANSWER_BYTES)?.trim();
    let is_line = !line.chars().any(char::is_control);
    // An error as JSON stands only where no JSON was wanted, or the reader would have taken it.
    let is_error = line.starts_with('{') && line.contains("\"error\"");
    // `model_type: llama` is somebody's configuration in another language.
    let first_word = line.split([' ', ':', '=']).next().unwrap_or_default();
    let is_field = line[first_word.len()..].trim_start().starts_with([':', '=']) && !first_word.starts_with('4');
    let n_words = line.split_whitespace().filter(|w| w.chars().any(char::is_alphabetic)).count();
    let is_sentence = line.starts_with(char::is_alphanumeric) && !is_field && n_words > 1;
    (is_line && (is_error || is_sentence))
        .then(|| (format!("a line of text, {:?}", shorten(line)), format!("if {WEB_PAGE_HELP}")))
}

/// A file of another program.
fn foreign(path: &Path, bytes: &[u8]) -> Option<Error> {
    // The length of a header can have any of the starts below.
    if is_safetensors(bytes) || is_gguf(bytes) {
        return None;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let kind = by_start(&name, bytes).or_else(|| by_name(&name))?;
    let message = format!("expected a format that ptplus reads, found {}", kind.what);
    Some(Error::new(Code::UnknownFormat, message).hints([kind.help.to_owned()]))
}

fn by_start(name: &str, bytes: &[u8]) -> Option<&'static Other> {
    const STARTS: [(&[u8], &Other); 14] = [
        (b"\x93NUMPY", &NUMPY_ARRAY),
        (b"\x89HDF\r\n\x1a\n", &HDF5),
        (b"\x1f\x8b\x08", &COMPRESSED),
        (b"\x28\xb5\x2f\xfd", &COMPRESSED),
        (b"\xfd7zXZ\0", &COMPRESSED),
        (b"BZh", &COMPRESSED),
        (b"7z\xbc\xaf\x27\x1c", &COMPRESSED),
        (b"Rar!\x1a", &COMPRESSED),
        // Magic numbers as they lie in the file: ggml, ggmf, ggjt, ggla.
        (b"lmgg", &OLD_GGML),
        (b"fmgg", &OLD_GGML),
        (b"tjgg", &OLD_GGML),
        (b"algg", &OLD_GGML),
        (b"qsgg", &LLAMA_STATE),
        (b"PK\x03\x04", &ZIP),
    ];
    let kind = STARTS.into_iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, kind)| kind);
    match kind {
        // torch.save writes zip archives too, and what is wrong with one of its own the reader has said.
        Some(kind) if std::ptr::eq(kind, &ZIP) => zip_kind(name, bytes),
        None if bytes.get(257..262) == Some(b"ustar") => Some(&TAR),
        None if bytes.get(4..8) == Some(b"TFL3") => Some(&TFLITE),
        kind => kind,
    }
}

fn zip_kind(name: &str, bytes: &[u8]) -> Option<&'static Other> {
    let n = usize::from(u16::from_le_bytes(bytes.get(26..28)?.try_into().ok()?));
    let first = String::from_utf8_lossy(bytes.get(30..30 + n)?);
    match &*first {
        entry if entry.ends_with(".npy") => Some(&NUMPY_ARCHIVE),
        _ if name.ends_with(".distcp") => Some(&DISTRIBUTED),
        _ if name.ends_with(".keras") => Some(&KERAS),
        entry if name.ends_with(".zip") && !entry.ends_with("/data.pkl") => Some(&ZIP),
        _ => None,
    }
}

fn by_name(name: &str) -> Option<&'static Other> {
    const ENDINGS: [(&str, &Other); 14] = [
        (".npz", &NUMPY_ARCHIVE),
        (".npy", &NUMPY_ARRAY),
        (".distcp", &DISTRIBUTED),
        (".h5", &HDF5),
        (".hdf5", &HDF5),
        (".keras", &KERAS),
        (".msgpack", &MESSAGE_PACK),
        (".onnx", &ONNX),
        (".onnx_data", &ONNX),
        (".tflite", &TFLITE),
        (".ckpt.index", &TENSORFLOW),
        (".ckpt.meta", &TENSORFLOW),
        ("saved_model.pb", &TENSORFLOW),
        ("variables.index", &TENSORFLOW),
    ];
    let ending = ENDINGS.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, kind)| kind);
    // `model.ckpt-1000.index`, `variables.data-00000-of-00001`
    ending.or_else(|| (name.contains(".ckpt-") || name.contains(".data-0")).then_some(&TENSORFLOW))
}

/// What helps with a folder in which a reader found nothing, where its files or its name tell what it is.
pub(crate) fn folder(path: &Path) -> Option<String> {
    if let Some(help) = hub::about_folder(path) {
        return Some(help);
    }
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().take(MAX_ENTRIES).flatten();
    let mut inside: Vec<PathBuf> = entries(path).map(|e| e.path()).collect();
    inside.sort();
    // Checkpoints in parts have a folder of their own, beside what belongs to all parts.
    let folders: Vec<PathBuf> = inside.iter().filter(|p| p.is_dir()).take(MAX_FOLDERS).cloned().collect();
    inside.extend(folders.iter().flat_map(|f| entries(f).map(|e| e.path())));
    let names = inside.iter().filter_map(|p| Some(p.file_name()?.to_string_lossy().to_lowercase()));
    let names: Vec<String> = names.collect();
    // DeepSpeed's script lies beside everything else.
    let is_deepspeed = names.iter().any(|name| name == "zero_to_fp32.py");
    let kind = if is_deepspeed { &DEEPSPEED } else { names.iter().find_map(|name| by_name(name))? };
    Some(format!("{} has {}: {}", path.display(), kind.what, kind.help))
}

/// A link in `folder` under one of these names that leads nowhere, as the error of opening it.
pub(crate) fn broken_link(folder: &Path, mut is_wanted: impl FnMut(&str) -> bool) -> Option<Error> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(MAX_ENTRIES).flatten();
    let mut broken: Vec<_> = entries
        .filter(|e| e.file_name().to_str().is_some_and(&mut is_wanted))
        .map(|e| e.path())
        .filter(|path| path.is_symlink() && !path.exists())
        .collect();
    broken.sort();
    let path = broken.first()?;
    let e = std::fs::metadata(path).err()?;
    Some(links::not_opened(path, "cannot open", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n";

    /// What is said of a file of this name and content, that a reader refused as damaged.
    fn said(name: &str, bytes: &[u8]) -> String {
        let e = named(Path::new(name), bytes, Error::new(Code::JsonSyntax, "as before"));
        assert_eq!(e.code() == Code::UnknownFormat, !e.hint_lines().is_empty(), "{name}: {e}");
        e.message().to_owned()
    }

    #[test]
    fn what_stands_in_the_place_of_a_file_is_called_what_it_is() {
        for pointer in [POINTER.to_owned(), POINTER.replace('\n', "\r\n"), format!("\u{feff}{POINTER}")] {
            assert!(
                said("a.json", pointer.as_bytes()).contains("a Git LFS pointer to 4976698672 bytes"),
                "{pointer:?}"
            );
        }
        for page in [
            "<!DOCTYPE html><html><head><TITLE lang=en>\n Sign\tin </TITLE>",
            "\u{feff}\n\n<html>\n<title>Sign in</title>",
            "<!-- a --> <!-- b -->\n<!doctype HTML><title>Sign in</title>",
        ] {
            assert!(said("a.gguf", page.as_bytes()).ends_with("found a web page (HTML), \"Sign in\""), "{page}");
        }
        for (page, kind) in [
            ("<html", "HTML"),
            ("<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", "XML"),
            ("<head><title></title>", "HTML"),
        ] {
            assert!(said("a.gguf", page.as_bytes()).ends_with(&format!("found a web page ({kind})")), "{page}");
        }
        for answer in [
            "Entry not found",
            "404: Not Found\n",
            "Access to model org/name is restricted. You must be authenticated to access it.",
            "{\"error\":\"Repository not found\"}",
        ] {
            assert!(said("a.bin", answer.as_bytes()).contains("a line of text, "), "{answer}");
        }
        for plain in ["{\"a\": 1", "model_type: llama", "x = y z", "[1, 2", "nothing", "two\nlines of", "<3 this"] {
            assert_eq!(said("config.json", plain.as_bytes()), "as before", "{plain}");
        }
        assert!(said("a", b"").contains("an empty file") && said("a", &[0; 5000]).contains("zeros"));
    }

    #[test]
    fn files_of_other_programs_are_known_by_content_or_name() {
        let zip = |entry: &str| [b"PK\x03\x04", &[0; 22][..], &[entry.len() as u8, 0, 0, 0], entry.as_bytes()].concat();
        for (name, bytes, what) in [
            ("a.npz", zip("layers.0.memory.npy"), ".npz"),
            ("renamed.bin", zip("layers.0.memory.npy"), ".npz"),
            ("__0_0.distcp", zip("archive/data.pkl"), "torch.distributed"),
            ("a.zip", zip("adapter/adapter_config.json"), "a zip archive that torch.save did not write"),
            ("m.keras", zip("config.json"), "Keras"),
            ("a.safetensors", b"\x93NUMPY\x01\0".to_vec(), ".npy"),
            ("weights", b"\x89HDF\r\n\x1a\n".to_vec(), "HDF5"),
            ("tf_model.h5", b"?".to_vec(), "HDF5"),
            ("flax_model.msgpack", b"\x81".to_vec(), "MessagePack"),
            ("model.onnx", b"\x08\x07".to_vec(), "ONNX"),
            ("model.ckpt.index", b"?".to_vec(), "TensorFlow"),
            ("model.ckpt-100.data-00000-of-00001", b"?".to_vec(), "TensorFlow"),
            ("a.gguf", b"tjgg\x03\0\0\0".to_vec(), "before GGUF"),
            ("a.bin", b"qsgg\x04\0\0\0".to_vec(), "state of a sequence"),
            ("a.tar.gz", b"\x1f\x8b\x08\0".to_vec(), "compressed"),
        ] {
            assert!(said(name, &bytes).contains(what), "{name}: {}", said(name, &bytes));
        }
        // Damaged files of the formats that are read stay what they are.
        let header = [&0x08_8b_1f_u64.to_le_bytes()[..], b"{}"].concat();
        for (name, bytes) in
            [("a.safetensors", header), ("a.gguf", b"GGUF".to_vec()), ("a.pt", zip("archive/data.pkl"))]
        {
            assert_eq!(said(name, &bytes), "as before", "{name}");
        }
    }

    #[test]
    fn folders_of_other_programs_are_known_by_their_files() {
        for (file, what) in [
            ("__0_0.distcp", "torch.distributed"),
            ("pytorch_model_fsdp_0/__0_0.distcp", "torch.distributed"),
            ("zero_to_fp32.py", "DeepSpeed"),
            ("variables/variables.index", "TensorFlow"),
            ("memories.npz", "NumPy"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(folder(dir.path()), None);
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"?").unwrap();
            let help = folder(dir.path()).unwrap_or_default();
            assert!(help.contains(what), "{file}: {help}");
        }
    }
}
