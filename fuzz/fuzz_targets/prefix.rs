#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ptplus_fuzz::entry::prefix(data);
});
