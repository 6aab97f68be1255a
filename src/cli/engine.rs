//! `--engine`.

#[cfg(not(feature = "llama-cpp"))]
use crate::error::{Code, Error};

/// What computes.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// The runner of this crate
    Candle,
    /// llama.cpp, where it is built in
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

#[cfg(feature = "generate")]
impl EngineChoice {
    pub fn name(self) -> &'static str {
        match self {
            EngineChoice::Candle => "candle",
            EngineChoice::LlamaCpp => "llama.cpp",
        }
    }
}

/// llama.cpp was asked for in a build without it.
#[cfg(not(feature = "llama-cpp"))]
pub fn not_built_in() -> Error {
    let message = "expected an engine that is built in, found llama.cpp: build with `cargo install --path . --features llama-cpp`";
    Error::new(Code::EngineUnavailable, message).field("--engine")
}
