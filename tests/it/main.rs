//! What the program and the library do, in one binary: `cargo test --test it import_search::` runs one file of it.

#[path = "../common/mod.rs"]
mod common;
#[path = "../quant_inputs/mod.rs"]
mod quant_inputs;

mod base_dialects;
mod base_files;
mod base_tokenizers;
mod batch;
mod bundle;
mod combine;
mod contradictions;
mod conversion;
mod doctor;
mod exec;
mod fixtures_agree_with_pytorch;
mod folder_tokens;
mod foreign_metadata;
mod formats;
mod import;
mod import_beside;
mod import_scales;
mod import_search;
mod import_trainer;
mod lora;
mod lora_proof;
mod merge;
mod mutations_fail;
mod open_conventions;
mod output_places;
mod outputs;
mod prefix;
mod prefix_state;
mod provenance;
mod quant_goldens;
mod quantize;
mod report;
mod rope;
mod run;
mod runner;
mod stand_ins;
mod streams;
mod terminal;
mod tokenizer;
mod validation;
