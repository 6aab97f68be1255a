//! Which build this is: version, commit, features, and the versions of the formats that it writes.

/// The crate's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Version of GGUF that is written.
pub const GGUF: u32 = 3;

/// ggml's version of the block formats, `general.quantization_version`.
pub const GGML_QUANTIZATION: u32 = 2;

/// The commit that a release build was made from, 12 hexadecimal digits; debug builds do not record it, so that a commit
/// does not rebuild them.
pub fn commit() -> Option<&'static str> {
    option_env!("PTPLUS_COMMIT").filter(|c| !c.is_empty())
}

/// The cargo features that this build has, in alphabetical order.
pub fn features() -> Vec<&'static str> {
    let all = [
        ("cli", cfg!(feature = "cli")),
        ("cuda", cfg!(feature = "cuda")),
        ("generate", cfg!(feature = "generate")),
        ("llama-cpp", cfg!(feature = "llama-cpp")),
        ("llama-cpp-dynamic", cfg!(feature = "llama-cpp-dynamic")),
        ("report", cfg!(feature = "report")),
        ("runner", cfg!(feature = "runner")),
    ];
    all.into_iter().filter(|f| f.1).map(|f| f.0).collect()
}

/// All of it in one line.
pub fn long() -> String {
    format!(
        "{VERSION} (commit {}; features {}; GGUF {GGUF}, ggml quantization {GGML_QUANTIZATION})",
        commit().unwrap_or("not recorded"),
        features().join(", ")
    )
}
