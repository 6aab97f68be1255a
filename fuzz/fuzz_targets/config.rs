#![no_main]

#[path = "../../tests/hostile/pickle/assembler.rs"]
#[allow(dead_code)]
mod assembler;
#[path = "../entry.rs"]
#[allow(dead_code)]
mod entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    entry::config(data);
});
