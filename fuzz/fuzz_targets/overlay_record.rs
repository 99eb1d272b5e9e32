//! [`kitfs_fuzz::overlay_record`] on bytes of the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kitfs_fuzz::overlay_record(input));
