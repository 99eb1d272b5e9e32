//! [`kitfs_fuzz::tensor_header`] on headers of the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (bool, Vec<u8>)| {
    let (is_gguf, header) = input;
    kitfs_fuzz::tensor_header(is_gguf, &header);
});
