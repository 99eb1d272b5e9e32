//! Headers good and hostile, and readers of tensors.

#![allow(clippy::single_range_in_vec_init, reason = "a list of one tensor is meant")]

use std::ops::Range;

use proptest::prelude::*;
use serde_json::json;

use super::reading::{Grant, Reading, Wanted};
use super::*;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

fn safetensors(json: &str) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

fn parse(format: Format, header: &[u8], file_bytes: u64) -> Result<Vec<Range<u64>>, HeaderError> {
    let map = format.parse(header, header.len() as u64, file_bytes)?;
    Ok(map.iter().collect())
}

/// A GGUF header with the given pairs, encoded, and names and offsets of tensors.
fn gguf(version: u32, pairs: &[Vec<u8>], tensors: &[(&str, u64)]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((pairs.len() as u64).to_le_bytes());
    bytes.extend(pairs.concat());
    for (name, offset) in tensors {
        bytes.extend(string(name));
        bytes.extend(2u32.to_le_bytes());
        bytes.extend([4096u64.to_le_bytes(), 4096u64.to_le_bytes()].concat());
        bytes.extend(12u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [string(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), &count.to_le_bytes()[..], elements].concat()
}

#[test]
fn a_format_is_known_by_the_name_of_its_file() {
    assert_eq!(Format::of(b"model-00001-of-00002.safetensors"), Some(Format::Safetensors));
    assert_eq!(Format::of(b"llama.Q4_K_M.gguf"), Some(Format::Gguf));
    assert_eq!(Format::of(b"model.safetensors.index.json"), None);
    assert_eq!(Format::of(b"\xff"), None);
}

#[test]
fn a_safetensors_header_says_where_its_tensors_lie() {
    let json = json!({
        "__metadata__": {"format": "pt", "data_offsets": "of no tensor"},
        "b": {"dtype": "F16", "shape": [1024, 1024], "data_offsets": [MIB, 3 * MIB]},
        "a": {"data_offsets": [0, MIB], "shape": [1024, 512], "dtype": "F16"},
        "small": {"dtype": "F16", "shape": [2], "data_offsets": [3 * MIB, 3 * MIB + 4]},
    });
    // Writers pad the header with spaces.
    let header = safetensors(&format!("{json}   "));
    let base = header.len() as u64;
    let tensors = parse(Format::Safetensors, &header, 4 * MIB).unwrap();
    assert_eq!(tensors, [base..base + MIB, base + MIB..base + 3 * MIB]);
}

#[test]
fn an_incomplete_header_tells_the_bytes_it_needs() {
    let header = safetensors(&json!({"a": {"data_offsets": [0, MIB]}}).to_string());
    for there in 0..header.len() {
        let needed = if there < 8 { 8 } else { header.len() as u64 };
        let got = parse(Format::Safetensors, &header[..there], 2 * MIB);
        assert_eq!(got, Err(HeaderError::Ended { needed }));
    }
    let header = gguf(3, &[pair("a", 8, &string("text"))], &[("t", 0)]);
    for there in 0..header.len() {
        match parse(Format::Gguf, &header[..there], 2 * MIB) {
            Err(HeaderError::Ended { needed }) => {
                assert!(needed > there as u64 && needed <= header.len() as u64);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_gguf_header_says_where_its_tensors_lie() {
    let words = ["hello", "", "world"].map(string).concat();
    let nested = [array(4, 2, &[0; 8]), array(8, 1, &string("x"))].concat();
    let pairs = [
        pair("general.architecture", 8, &string("llama")),
        pair("general.alignment", 4, &4096u32.to_le_bytes()),
        pair("tokenizer.ggml.tokens", 9, &array(8, 3, &words)),
        pair("tokenizer.ggml.scores", 9, &array(6, 3, &[0; 12])),
        pair("nested", 9, &array(9, 2, &nested)),
        pair("flag", 7, &[1]),
        pair("big", 10, &[9; 8]),
    ];
    for version in [2, 3] {
        let header = gguf(version, &pairs, &[("second", MIB), ("first", 0), ("small", 3 * MIB)]);
        let base = (header.len() as u64).next_multiple_of(4096);
        let tensors = parse(Format::Gguf, &header, base + 3 * MIB + 10).unwrap();
        assert_eq!(tensors, [base..base + MIB, base + MIB..base + 3 * MIB]);
    }
    // The usual alignment, and the last tensor ends with the file.
    let header = gguf(3, &[], &[("only", 0)]);
    let base = (header.len() as u64).next_multiple_of(32);
    assert_eq!(parse(Format::Gguf, &header, 9 * MIB).unwrap()[0], base..9 * MIB);
}

#[test]
fn hostile_headers_are_refused() {
    let malformed = |format, header: &[u8]| match parse(format, header, GIB) {
        Err(HeaderError::Malformed(_)) => {}
        other => panic!("{other:?}"),
    };
    malformed(Format::Safetensors, &u64::MAX.to_le_bytes());
    malformed(Format::Safetensors, &200_000_000u64.to_le_bytes());
    malformed(Format::Safetensors, &safetensors("[]"));
    malformed(Format::Safetensors, &safetensors(r#"{"a": {"data_offsets": [0]}}"#));
    malformed(Format::Safetensors, &safetensors(r#"{"a": {"data_offsets": [-1, 5]}}"#));
    let deep = "[".repeat(100_000);
    malformed(Format::Safetensors, &safetensors(&format!(r#"{{"__metadata__": {deep}"#)));
    malformed(Format::Gguf, b"GGML\x03\0\0\0");
    malformed(Format::Gguf, b"GGUF\0\0\0\x03");
    malformed(Format::Gguf, &gguf(3, &[pair("a", 13, &[])], &[]));
    for alignment in [0u32, 3, u32::MAX, 1 << 31] {
        let pairs = [pair("general.alignment", 4, &alignment.to_le_bytes())];
        malformed(Format::Gguf, &gguf(3, &pairs, &[]));
    }
    let mut nested = Vec::new();
    (0..1000).for_each(|_| nested.extend(array(9, 1, &[])));
    malformed(Format::Gguf, &gguf(3, &[pair("a", 9, &nested)], &[]));
    // A count that is too large ends the parse at the end of the file, and takes no memory.
    for pairs in [pair("a", 9, &array(8, u64::MAX, &[])), pair("a", 9, &array(10, u64::MAX, &[]))] {
        let got = parse(Format::Gguf, &gguf(3, &[pairs], &[]), GIB);
        assert!(matches!(got, Err(HeaderError::Ended { .. })), "{got:?}");
    }
}

#[test]
fn tensors_outside_the_file_or_inside_one_another_are_left_out() {
    let json = json!({
        "beyond": {"data_offsets": [5 * MIB, u64::MAX]},
        "overflow": {"data_offsets": [u64::MAX - 10 * MIB, u64::MAX]},
        "backwards": {"data_offsets": [3 * MIB, MIB]},
        "good": {"data_offsets": [0, 2 * MIB]},
        "inside": {"data_offsets": [MIB, 3 * MIB]},
    });
    let header = safetensors(&json.to_string());
    let base = header.len() as u64;
    assert_eq!(parse(Format::Safetensors, &header, 8 * MIB).unwrap(), [base..base + 2 * MIB]);
    let header = gguf(3, &[], &[("a", 0), ("b", u64::MAX - 5), ("c", 50 * MIB)]);
    assert_eq!(parse(Format::Gguf, &header, 8 * MIB).unwrap(), []);
}

#[test]
fn an_index_names_the_shards_in_order() {
    let index = json!({
        "metadata": {"total_size": 1},
        "weight_map": {"x": "m-2.safetensors", "y": "m-1.safetensors", "z": "m-2.safetensors"},
    });
    let shards = shards::parse(index.to_string().as_bytes()).unwrap();
    assert_eq!(shards::after(&shards, "m-1.safetensors"), Some("m-2.safetensors"));
    assert_eq!(shards::after(&shards, "m-2.safetensors"), None);
    assert_eq!(shards::after(&shards, "m-0.safetensors"), None, "it is no shard of this model");
}

#[test]
fn hostile_indexes_are_refused() {
    for index in ["", "[]", "{}", r#"{"weight_map": {"a": "../b"}}"#, r#"{"weight_map": {"a": 1}}"#]
    {
        assert!(shards::parse(index.as_bytes()).is_err(), "{index}");
    }
    let many: serde_json::Map<_, _> =
        (0..5000).map(|number| (number.to_string(), json!(number.to_string()))).collect();
    let index = json!({ "weight_map": many }).to_string();
    assert!(shards::parse(index.as_bytes()).is_err());
}

/// A ledger that allows everything.
const ALL: Grant = &|wanted, _| wanted;

/// A file of 1 GiB whose tensors are known.
fn reading(tensors: &[Range<u64>]) -> Reading {
    let mut reading = Reading::default();
    assert!(reading.learn(TensorMap::new(tensors.iter().cloned(), GIB), ALL).is_empty());
    reading
}

#[test]
fn a_tensor_is_wanted_when_its_first_byte_is_read() {
    let mut file = reading(&[MIB..5 * MIB, 5 * MIB..9 * MIB]);
    let wanted = file.observe(&(5 * MIB..5 * MIB + KIB), GIB, ALL);
    assert_eq!(wanted, Wanted { tensor: Some(5 * MIB + KIB..9 * MIB), ..Wanted::default() });
    // A range is wanted once, not with each read.
    assert_eq!(file.observe(&(5 * MIB..6 * MIB), GIB, ALL), Wanted::default());
    // A page fault shortly before a tensor's start reads the pages around it.
    let mut file = reading(&[5 * MIB + 100..9 * MIB]);
    let around = 5 * MIB - 64 * KIB..5 * MIB + 64 * KIB;
    assert_eq!(file.observe(&around, GIB, ALL).tensor, Some(5 * MIB + 64 * KIB..9 * MIB));
}

#[test]
fn a_large_tensor_is_asked_for_in_few_steps_and_not_too_far_ahead() {
    let tensor = 100 * MIB..900 * MIB;
    let mut file = reading(std::slice::from_ref(&tensor));
    let first = file.observe(&(100 * MIB..100 * MIB + 4 * KIB), GIB, ALL).tensor.unwrap();
    let (mut asked, mut asks) = (first.end, 1);
    for read in (100 * MIB + 128 * KIB..=900 * MIB).step_by(128 * 1024) {
        if let Some(range) = file.observe(&(100 * MIB..read), GIB, ALL).tensor {
            assert!(range.start == asked && range.end <= 900 * MIB, "{range:?} after {asked}");
            assert!(range.end - read <= 64 * MIB);
            asked = range.end;
            asks += 1;
        }
    }
    assert_eq!(asked, 900 * MIB);
    assert!(asks < 60, "{asks}");
}

#[test]
fn a_stream_asks_for_no_more_of_a_tensor_than_the_ledger_grants() {
    let mut file = reading(&[0..900 * MIB]);
    let some = |wanted: u64, ahead: u64| (8 * MIB).saturating_sub(ahead).min(wanted);
    let mut asked = 2 * MIB;
    for read in 2..800 {
        let wanted = file.observe(&(0..read * MIB), GIB, &some).tensor;
        asked = wanted.map_or(asked, |range| range.end);
        assert!(asked <= (read + 8) * MIB && asked >= (read + 7) * MIB, "{asked} at {read}");
    }
}

#[test]
fn a_long_header_is_parsed_once_a_reader_has_read_it() {
    let mut file = Reading::default();
    assert!(file.wait_for_header(5 * MIB));
    assert!(!file.observe(&(100 * MIB..110 * MIB), GIB, ALL).has_header);
    assert!(!file.observe(&(0..5 * MIB - 1), GIB, ALL).has_header);
    assert!(file.observe(&(0..5 * MIB), GIB, ALL).has_header);
    assert!(!file.observe(&(0..6 * MIB), GIB, ALL).has_header);
    // There is nothing to wait for where the reader was faster than the parser.
    assert!(!file.wait_for_header(6 * MIB));
    assert!(!file.observe(&(0..7 * MIB), GIB, ALL).has_header);
    assert!(file.wait_for_header(7 * MIB + 1));
}

#[test]
fn reads_and_streams_that_begin_inside_a_tensor_want_nothing() {
    let mut file = reading(&[0..MIB, 100 * MIB..900 * MIB]);
    for start in [100 * MIB + 4 * KIB, 101 * MIB, 500 * MIB, 899 * MIB] {
        assert_eq!(file.observe(&(start..start + 4 * KIB), GIB, ALL).tensor, None);
    }
    assert_eq!(file.observe(&(500 * MIB..600 * MIB), GIB, ALL).tensor, None);
    // A stream that began in the tensor's first pages wants the tensor, with its next read.
    let wanted = file.observe(&(100 * MIB + 4 * KIB..100 * MIB + 300 * KIB), GIB, ALL);
    assert_eq!(wanted.tensor.unwrap().start, 100 * MIB + 300 * KIB);
}

#[test]
fn the_next_tensor_is_wanted_by_a_stream_that_is_deeper_in_it_than_the_kernel_reads_ahead() {
    let mut file = reading(&[100 * MIB..120 * MIB, 120 * MIB..130 * MIB]);
    file.observe(&(100 * MIB..110 * MIB), GIB, ALL);
    file.observe(&(100 * MIB..120 * MIB), GIB, ALL);
    assert_eq!(file.observe(&(100 * MIB..120 * MIB + 512 * KIB), GIB, ALL).tensor, None);
    let wanted = file.observe(&(100 * MIB..121 * MIB), GIB, ALL);
    assert_eq!(wanted.tensor, Some(121 * MIB..130 * MIB));
}

#[test]
fn a_reader_of_the_header_wants_no_tensor() {
    let first = 100 * KIB..50 * MIB;
    let mut file = reading(std::slice::from_ref(&first));
    assert_eq!(file.observe(&(0..128 * KIB), GIB, ALL).tensor, None);
    assert_eq!(file.observe(&(0..MIB), GIB, ALL).tensor, None);
    assert!(file.observe(&(0..2 * MIB), GIB, ALL).tensor.is_some());
}

#[test]
fn a_tensor_that_a_stream_is_in_is_wanted_when_the_header_becomes_known() {
    let mut file = Reading::default();
    file.observe(&(4 * MIB..4 * MIB + KIB), GIB, ALL);
    file.observe(&(500 * MIB..500 * MIB + KIB), GIB, ALL);
    let wanted = file.learn(TensorMap::new([MIB..4 * MIB, 4 * MIB..9 * MIB], GIB), ALL);
    assert_eq!(wanted, [4 * MIB + KIB..9 * MIB]);
}

#[test]
fn the_next_shard_is_wanted_once_when_most_of_this_one_was_read() {
    let mut file = Reading::default();
    assert_eq!(file.learn_next(7), None);
    let size = 400 * MIB;
    let named = (1..=400).filter_map(|at| {
        let next = file.observe(&(0..at * MIB), size, ALL).next_file?;
        Some((at, next))
    });
    assert_eq!(named.collect::<Vec<_>>(), [(300, 7)]);
    // The same when the next shard becomes known only after that.
    let mut file = Reading::default();
    file.observe(&(0..size), size, ALL);
    assert_eq!(file.learn_next(7), Some(7));
    assert_eq!(file.observe(&(0..size), size, ALL).next_file, None);
    // The same for tensors in any order.
    let mut file = Reading::default();
    assert_eq!(file.learn_next(7), None);
    let order = [3, 1, 2, 0].map(|part| part * 100 * MIB);
    let named: Vec<_> = order
        .iter()
        .map(|&start| file.observe(&(start..start + 100 * MIB), size, ALL).next_file)
        .collect();
    assert_eq!(named, [None, None, Some(7), None]);
}

#[test]
fn a_look_at_the_end_of_a_shard_does_not_begin_the_next_one() {
    let mut file = Reading::default();
    assert_eq!(file.learn_next(7), None);
    assert_eq!(file.observe(&(340 * MIB..360 * MIB), 400 * MIB, ALL).next_file, None);
    assert_eq!(file.observe(&(0..180 * MIB), 400 * MIB, ALL).next_file, None);
    // Half of the file and a read near its end begin the next one.
    assert_eq!(file.observe(&(390 * MIB..391 * MIB), 400 * MIB, ALL).next_file, Some(7));
}

proptest! {
    #[test]
    fn a_wanted_range_lies_ahead_in_the_tensor_that_is_read(
        tensors in prop::collection::vec((0..GIB, 0..128 * MIB), 0..20),
        runs in prop::collection::vec((0..64 * MIB, 1..32 * MIB), 1..100),
    ) {
        let ranges = tensors.into_iter().map(|(start, bytes)| start..start + bytes);
        let tensors = TensorMap::new(ranges, GIB);
        let mut file = Reading::default();
        file.learn(tensors.clone(), ALL);
        for (start, bytes) in runs {
            let run = start * 15..start * 15 + bytes;
            if let Some(range) = file.observe(&run, GIB, ALL).tensor {
                let tensor = tensors.at(run.end - 1).unwrap();
                prop_assert!(range.start >= run.end && range.start < range.end);
                prop_assert!(range.end <= tensor.end && range.end - run.end <= 64 * MIB);
            }
        }
    }

    #[test]
    fn every_map_is_in_order_and_in_the_file(
        ranges in prop::collection::vec((any::<u64>(), any::<u64>()), 0..50), size in any::<u64>(),
    ) {
        let map = TensorMap::new(ranges.into_iter().map(|(start, end)| start..end), size);
        let tensors: Vec<_> = map.iter().collect();
        prop_assert!(tensors.windows(2).all(|pair| pair[0].end <= pair[1].start));
        for tensor in tensors {
            prop_assert!(tensor.end <= size);
            prop_assert_eq!(map.at(tensor.start), Some(tensor.clone()));
            prop_assert_eq!(map.at(tensor.end - 1), Some(tensor));
        }
    }
}
