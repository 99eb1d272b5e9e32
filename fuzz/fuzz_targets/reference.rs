//! [`kitfs_fuzz::reference`] on texts of the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| kitfs_fuzz::reference(text));
