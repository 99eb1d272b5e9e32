//! [`kitfs_fuzz::file_digests`] on bytes of the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kitfs_fuzz::file_digests(&String::from_utf8_lossy(input)));
