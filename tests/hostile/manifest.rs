//! The manifest of a bundle.

use std::collections::BTreeMap;
use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::format::bundle::manifest::{FileEntry, Manifest, write};
use ptplus::format::limits::{BUNDLE_FILES, JSON_OBJECT_VALUES, MANIFEST_BYTES, MANIFEST_VALUES, NAME_BYTES};
use serde_json::{Value, json};

use crate::case::{Case, accepted, large, refused};
use crate::damage::entry;

pub fn read(text: Vec<u8>) -> Result<()> {
    let manifest = Manifest::parse(&text).map_err(|e| e.file(Path::new("manifest.json")))?;
    entry::check_manifest(&text, &manifest);
    Ok(())
}

/// As another program may write one: no digest of itself.
fn foreign(files: &str) -> String {
    format!("{{\"schema\":\"ptplus-bundle/1\",\"hash\":\"sha256\",\"files\":[{files}]}}")
}

fn file(path: &str) -> String {
    format!("{{\"path\":\"{path}\",\"size\":1,\"sha256\":\"{}\"}}", "0".repeat(64))
}

fn files<'a>(paths: impl IntoIterator<Item = &'a str>) -> String {
    foreign(&paths.into_iter().map(file).collect::<Vec<_>>().join(","))
}

fn numbered(n: usize) -> String {
    let paths: Vec<String> = (0..n).map(|i| format!("{i:05}")).collect();
    files(paths.iter().map(String::as_str))
}

fn entry_with(fields: &str) -> String {
    foreign(&format!("{{{fields}}}"))
}

/// As `ptplus pack` writes it.
fn ours() -> Vec<u8> {
    let entry = |size| FileEntry { size, sha256: "0".repeat(64) };
    let files = BTreeMap::from([("README.md".to_owned(), entry(3)), ("adapter.gguf".to_owned(), entry(5))]);
    let more = json!({ "base": { "name": "база", "z": [1, -2.5e-3, null] } });
    write(&files, more.as_object().expect("an object").clone())
}

fn ours_changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut document = serde_json::from_slice(&ours()).expect("JSON");
    change(&mut document);
    (serde_json::to_string_pretty(&document).expect("JSON") + "\n").into_bytes()
}

fn replaced(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(ours()).expect("text");
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1).into_bytes()
}

/// A manifest of exactly so many bytes.
fn of_bytes(n: usize) -> Vec<u8> {
    let mut text = foreign("").into_bytes();
    text.resize(n, b' ');
    text
}

/// A manifest of so many values, most in one list.
fn of_values(n: usize) -> Vec<u8> {
    let list = format!("{}1", "1,".repeat(n - OWN_VALUES - 1));
    foreign("").replacen('{', &format!("{{\"x\":[{list}],"), 1).into_bytes()
}

/// The document, which is an object, schema, hash, files and the list itself.
const OWN_VALUES: usize = 5 + JSON_OBJECT_VALUES;

/// Manifests that are right, each in another way.
pub fn right_files() -> Vec<Vec<u8>> {
    let written = |paths: &[&str], more: Value| {
        let entry = |(i, p): (usize, &&str)| ((*p).to_owned(), FileEntry { size: i as u64, sha256: "a".repeat(64) });
        write(&paths.iter().enumerate().map(entry).collect(), more.as_object().expect("an object").clone())
    };
    let mut all: Vec<Vec<u8>> = [
        foreign(""),
        files(["a"]),
        files(["a", "b"]),
        files(["a/b/c", "a/d"]),
        files(["ä", "日本"]),
        format!("\u{feff}{}", files(["a"])),
        foreign(&file("x")).replace('{', "{ \n"),
    ]
    .map(String::into_bytes)
    .to_vec();
    all.extend([
        ours(),
        written(&[], json!({})),
        written(&["a"], json!({ "notes": "\"\\\u{1}" })),
        written(&["a/b", "c"], json!({ "n": 18446744073709551615_u64 })),
    ]);
    all
}

pub fn cases() -> Vec<Case> {
    use Code::*;
    let sha = format!("\"sha256\":\"{}\"", "0".repeat(64));
    let with = |size: &str| entry_with(&format!("\"path\":\"a\",\"size\":{size},{sha}"));
    let with_sha = |hex: &str| entry_with(&format!("\"path\":\"a\",\"size\":1,\"sha256\":{hex}"));
    let hex64 = |c: &str| format!("\"{}\"", c.repeat(64));
    let top = |text: &str| foreign("").replacen("\"hash\":\"sha256\"", text, 1);
    let deep = |n: usize| foreign("").replacen('{', &format!("{{\"x\":{}{},", "[".repeat(n), "]".repeat(n)), 1);
    let mut cases: Vec<Case> =
        right_files().into_iter().enumerate().map(|(i, f)| accepted(format!("right file {i}"), f)).collect();
    cases.extend([
        accepted("unknown keys", foreign("").replacen('{', "{\"x\":[{}],\"auto_map\":{\"a\":\"b\"},", 1)),
        accepted("most files", numbered(BUNDLE_FILES)),
        accepted("size 0", with("0")),
        accepted("largest size", with(&u64::MAX.to_string())),
        accepted("path of 255 bytes", files([&*"n".repeat(NAME_BYTES)])),
        accepted("127 levels", deep(126)),
        refused("no byte", "", BundleManifest),
        refused("not JSON", "MZ", BundleManifest),
        refused("not UTF-8", b"{\"\xff\":1}", BundleManifest),
        refused("a list", "[]", BundleManifest),
        refused("null", "null", BundleManifest),
        refused("empty object", "{}", BundleManifest),
        refused("bytes after it", foreign("") + "x", BundleManifest),
        refused("a second document", foreign("") + "{}", BundleManifest),
        refused("129 levels", deep(128), BundleManifest),
        refused("100,000 levels", deep(100_000), BundleManifest),
        refused("schema absent", foreign("").replacen("schema", "Schema", 1), BundleManifest),
        refused("schema of the future", foreign("").replacen("bundle/1", "bundle/2", 1), BundleManifest),
        refused("schema with more behind", foreign("").replacen("bundle/1", "bundle/10", 1), BundleManifest),
        refused("schema a number", foreign("").replacen("\"ptplus-bundle/1\"", "1", 1), BundleManifest),
        refused("schema twice", top(r#""hash":"sha256","schema":"ptplus-bundle/1""#), BundleManifest),
        refused(
            "schema twice, with an escape",
            top(r#""hash":"sha256","sch\u0065ma":"ptplus-bundle/1""#),
            BundleManifest,
        ),
        refused("hash absent", top(r#""x":1"#), BundleManifest),
        refused("hash md5", top(r#""hash":"md5""#), BundleManifest),
        refused("hash in capitals", top(r#""hash":"SHA256""#), BundleManifest),
        refused("hash null", top(r#""hash":null"#), BundleManifest),
        refused("a number beyond F64", top(r#""hash":"sha256","x":1e400"#), BundleManifest),
        refused("files absent", foreign("").replacen("files", "file", 1), BundleManifest),
        refused("files an object", foreign("").replacen("[]", "{}", 1), BundleManifest),
        refused("files null", foreign("").replacen("[]", "null", 1), BundleManifest),
        refused("too many files", numbered(BUNDLE_FILES + 1), BundleManifest),
        refused("a file a text", foreign("\"a\""), BundleManifest),
        refused("a file null", foreign("null"), BundleManifest),
        refused("a file of nothing", entry_with(""), BundleManifest),
        refused("no path", entry_with(&format!("\"size\":1,{sha}")), BundleManifest),
        refused("no size", entry_with(&format!("\"path\":\"a\",{sha}")), BundleManifest),
        refused("no digest", entry_with("\"path\":\"a\",\"size\":1"), BundleManifest),
        refused("another field", entry_with(&format!("\"path\":\"a\",\"size\":1,{sha},\"mode\":1")), BundleManifest),
        refused("path a number", entry_with(&format!("\"path\":1,\"size\":1,{sha}")), BundleManifest),
        refused(
            "path twice in a file",
            entry_with(&format!("\"path\":\"a\",\"path\":\"b\",\"size\":1,{sha}")),
            BundleManifest,
        ),
        refused("size negative", with("-1"), BundleManifest),
        refused("size with a point", with("1.0"), BundleManifest),
        refused("size with an exponent", with("1e3"), BundleManifest),
        refused("size a text", with("\"1\""), BundleManifest),
        refused("size null", with("null"), BundleManifest),
        refused("size beyond u64", with("18446744073709551616"), BundleManifest),
        refused("digest in capitals", with_sha(&hex64("A")), BundleManifest),
        refused("digest of 63 digits", with_sha(&format!("\"{}\"", "0".repeat(63))), BundleManifest),
        refused("digest of 65 digits", with_sha(&format!("\"{}\"", "0".repeat(65))), BundleManifest),
        refused("digest with a letter g", with_sha(&hex64("g")), BundleManifest),
        refused("digest in full-width digits", with_sha(&hex64("０")), BundleManifest),
        refused("digest with its name", with_sha(&format!("\"sha256:{}\"", "0".repeat(64))), BundleManifest),
        refused("digest a number", with_sha("0"), BundleManifest),
        refused("paths in the wrong order", files(["b", "a"]), BundleManifest),
        refused("a path twice", files(["a", "a"]), BundleManifest),
        refused("paths that differ in case", files(["A", "a"]), BundleManifest),
        refused("paths that differ in case, not ASCII", files(["É", "é"]), BundleManifest),
        refused("a file that is also a folder", files(["a", "a/b"]), BundleManifest),
        refused("a file that is also a folder, in another case", files(["A", "a/b"]), BundleManifest),
        refused("the manifest itself", files(["manifest.json"]), BundleManifest),
        refused("the manifest in capitals", files(["MANIFEST.JSON"]), BundleManifest),
        refused("a folder named as the manifest", files(["manifest.json/a"]), BundleManifest),
        refused("the signature", files(["manifest.json.minisig"]), BundleManifest),
        refused("empty path", files([""]), BundlePath),
        refused("parent folder", files(["../a"]), BundlePath),
        refused("parent folder inside", files(["a/../b"]), BundlePath),
        refused("parent folder at the end", files(["a/.."]), BundlePath),
        refused("parent folder, escaped", files([r"\u002e\u002e/a"]), BundlePath),
        refused("absolute", files(["/a"]), BundlePath),
        refused("with a drive", files(["C:/a"]), BundlePath),
        refused("backslash", files([r"a\\b"]), BundlePath),
        refused("network share", files([r"\\\\server\\a"]), BundlePath),
        refused("this folder", files(["./a"]), BundlePath),
        refused("empty part", files(["a//b"]), BundlePath),
        refused("slash at the end", files(["a/"]), BundlePath),
        refused("NUL", files([r"a\u0000"]), BundlePath),
        refused("line break", files([r"a\nb"]), BundlePath),
        refused("escape sequence", files([r"a\u001b[31m"]), BundlePath),
        refused("path of 256 bytes", files([&*"n".repeat(NAME_BYTES + 1)]), BundlePath),
        refused("ours without its digest", replaced("self_sha256", "self_sha255"), BundleManifest),
        refused("ours with another digest", ours_changed(|d| d["self_sha256"] = "0".repeat(64).into()), BundleManifest),
        refused("ours with a digest that is null", ours_changed(|d| d["self_sha256"] = Value::Null), BundleManifest),
        refused("ours with another size", replaced("\"size\": 3", "\"size\": 4"), BundleManifest),
        refused("ours with another base", replaced("база", "басе"), BundleManifest),
        refused("ours with a space more", replaced("\"size\": 3", "\"size\":  3"), BundleManifest),
        refused("ours without the last line break", ours()[..ours().len() - 1].to_vec(), BundleManifest),
        refused("ours after a byte order mark", [b"\xef\xbb\xbf", &ours()[..]].concat(), BundleManifest),
        refused("ours with a letter escaped", replaced("README", r"\u0052EADME"), BundleManifest),
        large("most bytes", || of_bytes(MANIFEST_BYTES), None),
        large("a byte too many", || of_bytes(MANIFEST_BYTES + 1), Some(BundleManifest)),
        large("most values", || of_values(MANIFEST_VALUES), None),
        large("a value too many", || of_values(MANIFEST_VALUES + 1), Some(BundleManifest)),
        large(
            "a long key",
            || foreign("").replacen('{', &format!("{{\"{}\":1,", "k".repeat(MANIFEST_BYTES / 2)), 1).into_bytes(),
            None,
        ),
        large(
            "a long schema",
            || foreign("").replacen("ptplus-bundle/1", &"s\\n".repeat(MANIFEST_BYTES / 4), 1).into_bytes(),
            Some(BundleManifest),
        ),
        large("a long path", || files([&*"p".repeat(MANIFEST_BYTES / 2)]).into_bytes(), Some(BundlePath)),
    ]);
    cases
}
