#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vecmill_fuzz::pickles(data));
