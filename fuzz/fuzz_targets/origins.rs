//! [`kitfs_fuzz::origins`] on bytes of the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kitfs_fuzz::origins(input));
