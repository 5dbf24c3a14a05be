#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portwatch::testing::fuzz::registry(bytes));
