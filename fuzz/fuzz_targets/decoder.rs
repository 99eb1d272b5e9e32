//! [`kitfs_fuzz::decoder`] on blobs of the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u8, u8, Vec<u8>)| {
    let (compression, piece_bytes, blob) = input;
    kitfs_fuzz::decoder(compression, piece_bytes, &blob);
});
