//! The files of a Hugging Face tokenizer: three tokens, one merge.

const MODEL: &str = r#"{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}"#;
const BYTES: &str = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;

fn tokenizer() -> String {
    format!(r#"{{"added_tokens":[],"pre_tokenizer":{BYTES},"model":{MODEL}}}"#)
}

/// A folder with a right `tokenizer.json`.
pub fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer()).expect("a file");
    dir
}
