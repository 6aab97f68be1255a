//! The index of a sharded model, beside two right shards.

use std::os::unix::fs::symlink;

use ptplus::error::{Code, Result};
use ptplus::format::limits;
use ptplus::format::safetensors::open_index;

use crate::case::{Case, accepted, refused};
use crate::safetensors;

/// `m/1.safetensors` has "a", `m/2.safetensors` has "b", `m/both.safetensors` has "x" and "y"; links and folders lie about.
pub fn read(index: Vec<u8>) -> Result<()> {
    let outer = tempfile::tempdir().expect("a folder");
    let dir = outer.path().join("m");
    std::fs::create_dir_all(dir.join("folder")).expect("a folder");
    let shard = |names: &[&str]| {
        let one = |(i, n): (usize, &&str)| {
            format!("\"{n}\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[{i},{}]}}", i + 1)
        };
        safetensors::file(
            &format!("{{{}}}", names.iter().enumerate().map(one).collect::<Vec<_>>().join(",")),
            names.len(),
        )
    };
    for (file, names) in [("1", &["a"][..]), ("2", &["b"]), ("both", &["x", "y"]), ("../secret", &["a"])] {
        std::fs::write(dir.join(format!("{file}.safetensors")), shard(names)).expect("a file");
    }
    std::fs::write(dir.join("broken.safetensors"), b"\0\0\0\0\0\0\0\0").expect("a file");
    for (target, link) in [
        ("../secret.safetensors", "out"),
        ("1.safetensors", "in"),
        ("nowhere", "dangling"),
        ("loop.safetensors", "loop"),
    ] {
        symlink(target, dir.join(format!("{link}.safetensors"))).expect("a link");
    }
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("pipe.safetensors"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("a pipe");
    let path = dir.join("model.safetensors.index.json");
    std::fs::write(&path, index).expect("a file");
    open_index(&path).map(drop)
}

pub fn cases() -> Vec<Case> {
    use Code::*;
    let map = |entries: &str| format!("{{\"weight_map\":{{{entries}}}}}");
    let file = |name: &str| map(&format!("\"a\":\"{name}\""));
    let shards = |n: usize| map(&(0..n).map(|i| format!("\"{i}\":\"{i}.safetensors\"")).collect::<Vec<_>>().join(","));
    let long = "n".repeat(limits::NAME_BYTES + 1);
    vec![
        accepted("one shard", file("1.safetensors")),
        accepted("two shards", map(r#""b":"2.safetensors","a":"1.safetensors""#)),
        accepted("two tensors of a shard", map(r#""y":"both.safetensors","x":"both.safetensors""#)),
        accepted("a byte order mark", format!("\u{feff}{}", file("1.safetensors"))),
        accepted("unknown keys", r#"{"metadata":{"total_size":1e30},"x":[],"weight_map":{"a":"1.safetensors"}}"#),
        accepted("a link inside the folder", file("in.safetensors")),
        refused("no byte", "", JsonSyntax),
        refused("cut short", "{", JsonSyntax),
        refused("no map", "{}", SafetensorsIndex),
        refused("a list", "[]", SafetensorsIndex),
        refused("null", "null", SafetensorsIndex),
        accepted("metadata null", r#"{"metadata":null,"weight_map":{"a":"1.safetensors"}}"#),
        accepted("a size that is not so", r#"{"metadata":{"total_size":0.5},"weight_map":{"a":"1.safetensors"}}"#),
        refused("metadata a number", r#"{"metadata":5,"weight_map":{"a":"1.safetensors"}}"#, SafetensorsIndex),
        refused(
            "a size below 0",
            r#"{"metadata":{"total_size":-1},"weight_map":{"a":"1.safetensors"}}"#,
            SafetensorsIndex,
        ),
        refused(
            "a size as text",
            r#"{"metadata":{"total_size":"1"},"weight_map":{"a":"1.safetensors"}}"#,
            SafetensorsIndex,
        ),
        refused(
            "a size null",
            r#"{"metadata":{"total_size":null},"weight_map":{"a":"1.safetensors"}}"#,
            SafetensorsIndex,
        ),
        refused("map a list", r#"{"weight_map":[]}"#, SafetensorsIndex),
        refused("map null", r#"{"weight_map":null}"#, SafetensorsIndex),
        refused("map a string", r#"{"weight_map":"1.safetensors"}"#, SafetensorsIndex),
        refused("map twice", r#"{"weight_map":{},"weight_map":{"a":"1.safetensors"}}"#, JsonDuplicateKey),
        refused("empty map", map(""), SafetensorsIndex),
        refused("file a number", map(r#""a":1"#), SafetensorsIndex),
        refused("file null", map(r#""a":null"#), SafetensorsIndex),
        refused("file a list", map(r#""a":["1.safetensors"]"#), SafetensorsIndex),
        refused("tensor twice", map(r#""a":"1.safetensors","a":"2.safetensors""#), JsonDuplicateKey),
        refused("shard absent", file("3.safetensors"), SafetensorsIndex),
        refused("tensor in the other shard", map(r#""a":"2.safetensors","b":"1.safetensors""#), SafetensorsIndex),
        refused("tensor not in its shard", map(r#""a":"1.safetensors","c":"1.safetensors""#), SafetensorsIndex),
        refused("tensor of the shard not listed", map(r#""x":"both.safetensors""#), SafetensorsIndex),
        refused("a broken shard", file("broken.safetensors"), SafetensorsHeader),
        refused("the index itself", file("model.safetensors.index.json"), SafetensorsHeader),
        refused("parent folder", file("../secret.safetensors"), NameInvalid),
        refused("parent folder, backslashes", file(r"..\\secret.safetensors"), NameInvalid),
        refused("subfolder", file("folder/1.safetensors"), SafetensorsIndex),
        refused("this folder", file("./1.safetensors"), SafetensorsIndex),
        refused("backslash", file(r"folder\\1.safetensors"), SafetensorsIndex),
        refused("absolute", file("/etc/passwd"), NameInvalid),
        refused("with a drive", file("C:/1.safetensors"), NameInvalid),
        refused("a URL", file("https://example.com/1.safetensors"), SafetensorsIndex),
        refused("the folder itself", file("."), SafetensorsIndex),
        refused("empty file name", file(""), NameInvalid),
        refused("file name with NUL", file("1.safetensors\\u0000"), NameInvalid),
        refused("file name of 256 bytes", file(&long), NameInvalid),
        refused("a link out of the folder", file("out.safetensors"), SafetensorsIndex),
        refused("a dangling link", file("dangling.safetensors"), NotFound),
        refused("a link to itself", file("loop.safetensors"), Io),
        refused("a folder", file("folder"), NotAFile),
        refused("a pipe", file("pipe.safetensors"), NotAFile),
        refused("bad tensor name", map(r#""a/../b":"1.safetensors""#), NameInvalid),
        refused("tensor name with a line break", map(r#""a\n":"1.safetensors""#), NameInvalid),
        refused("tensor name of 256 bytes", map(&format!("\"{long}\":\"1.safetensors\"")), NameInvalid),
        refused("most shards, absent", shards(limits::SHARDS), SafetensorsIndex),
        refused("too many shards", shards(limits::SHARDS + 1), SafetensorsIndex),
        refused("nested 10,000 deep", format!("{{\"weight_map\":{}", "{\"a\":".repeat(10_000)), JsonTooLarge),
    ]
}
