//! Seals: digests that the bytes in the place of an evicted chunk must match.
//!
//! | what is kept of a chunk | of which chunks | it tells |
//! | --- | --- | --- |
//! | CRC32C of its bytes | all that are filled | what a crash, a torn write or the disk changed |
//! | [`Seal`] | those of confirmed layers | what a source sends in the place of an evicted one |
//!
//! No digest by kitfs could confirm bytes of an unconfirmed layer, so these bytes only get a checksum when they
//! arrive. The bytes of a confirmed layer are bound by its sha256, and so is each chunk. sha256 goes from block to
//! block with a chaining value (FIPS 180-4, 6.2.2). The values before and after a chunk are its seal; they come up
//! while the layer's digest is computed, and cost nothing. Other bytes that lead from the one value to the other
//! are a collision of sha256, so a seal binds its chunk as the digest binds the layer. Some chunks have no such
//! values. A chunk next to a big member of odd length begins or ends within a block. The digest of a compressed
//! layer is not that of its stream. The seal of these chunks is a BLAKE3 digest.

use sha2::block_api::compress256;

const BLOCK_BYTES: usize = 64;
/// The length of a message, in bits, at the end of its last block.
const LENGTH_BYTES: usize = 8;

/// The chaining value that a sha256 begins with (FIPS 180-4, 5.3.3).
const INITIAL: Words = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

type Words = [u32; 8];

/// A chaining value or digest, as sha256 writes it: its words big-endian.
pub(super) type Value = [u8; 32];

/// A digest of a whole chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seal {
    /// The chunk's own BLAKE3.
    Blake3(Value),
    /// The stream's sha256 goes from `before` to `after` over the chunk; `after` is the digest of
    /// the stream where the chunk ends it.
    Sha256 { before: Value, after: Value },
}

/// The place of a chunk in its stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// The bytes before it.
    pub(super) start: u64,
    /// Whether it ends the stream.
    pub(super) is_last: bool,
}

impl Seal {
    pub(super) fn blake3(bytes: &[u8]) -> Self {
        Self::Blake3(*blake3::hash(bytes).as_bytes())
    }

    /// Whether a chunk that lies there can have this seal: sha256 has no value within a block.
    pub(super) fn is_of(&self, part: Part) -> bool {
        match self {
            Self::Blake3(_) => true,
            Self::Sha256 { .. } => part.start.is_multiple_of(BLOCK_BYTES as u64),
        }
    }

    /// Whether `bytes`, all of the chunk that lies there, are the sealed ones.
    pub(super) fn matches(&self, bytes: &[u8], part: Part) -> bool {
        match self {
            Self::Blake3(_) => Self::blake3(bytes) == *self,
            Self::Sha256 { before, .. } => {
                RunningSha256::resume(before, part.start).seal(bytes, part) == *self
            }
        }
    }
}

/// A sha256 that is being computed, and tells its chaining values.
pub(super) struct RunningSha256 {
    value: Words,
    /// Bytes that were taken, `rest` included.
    bytes: u64,
    /// The first bytes of a block whose others have not come.
    rest: Vec<u8>,
}

impl RunningSha256 {
    pub(super) fn new() -> Self {
        Self { value: INITIAL, bytes: 0, rest: Vec::new() }
    }

    /// Goes on where `bytes` bytes, whole blocks, have come to `value`.
    fn resume(value: &Value, bytes: u64) -> Self {
        let word = |i: usize| u32::from_be_bytes([0, 1, 2, 3].map(|j| value[4 * i + j]));
        Self { value: std::array::from_fn(word), bytes, rest: Vec::new() }
    }

    /// Takes the chunk that follows; its seal.
    pub(super) fn seal(&mut self, bytes: &[u8], part: Part) -> Seal {
        let before = self.chaining_value();
        self.update(bytes);
        let after = if part.is_last { Some(self.digest()) } else { self.chaining_value() };
        match (before, after) {
            (Some(before), Some(after)) => Seal::Sha256 { before, after },
            _ => Seal::blake3(bytes),
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if !self.rest.is_empty() {
            let room = BLOCK_BYTES - self.rest.len();
            let (first, others) = bytes.split_at(room.min(bytes.len()));
            self.rest.extend_from_slice(first);
            bytes = others;
            let (block, _) = self.rest.as_chunks::<BLOCK_BYTES>();
            if block.is_empty() {
                return;
            }
            compress256(&mut self.value, block);
            self.rest.clear();
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        compress256(&mut self.value, blocks);
        self.rest.extend_from_slice(rest);
    }

    /// `None` within a block.
    fn chaining_value(&self) -> Option<Value> {
        self.rest.is_empty().then(|| to_bytes(&self.value))
    }

    /// The digest of what was taken so far (FIPS 180-4, 5.1.1 and 6.2.2).
    pub(super) fn digest(&self) -> Value {
        let mut end = self.rest.clone();
        end.push(0x80);
        let whole = (end.len() + LENGTH_BYTES).next_multiple_of(BLOCK_BYTES);
        end.resize(whole - LENGTH_BYTES, 0);
        end.extend_from_slice(&self.bytes.wrapping_mul(8).to_be_bytes());
        let mut value = self.value;
        compress256(&mut value, end.as_chunks::<BLOCK_BYTES>().0);
        to_bytes(&value)
    }
}

fn to_bytes(value: &Words) -> Value {
    let mut bytes = [0; 32];
    for (to, word) in bytes.chunks_exact_mut(4).zip(value) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    const FIRST: Part = Part { start: 0, is_last: false };

    fn part(start: usize, is_last: bool) -> Part {
        Part { start: start as u64, is_last }
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_come_to_the_digest_that_the_library_computes(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
        ) {
            let mut running = RunningSha256::new();
            pieces.iter().for_each(|piece| running.update(piece));
            let expected: Value = Sha256::digest(pieces.concat()).into();
            prop_assert_eq!(running.digest(), expected);
        }

        /// One chunk is changed by a bit, or takes another one's place: its seal alone tells.
        #[test]
        fn each_seal_takes_its_own_bytes_and_no_others(
            blocks in prop::collection::vec(1..5usize, 1..6), end in 0..64usize,
            at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let mut chunks: Vec<Vec<u8>> = (0u8..)
                .zip(&blocks)
                .map(|(byte, blocks)| vec![byte; blocks * BLOCK_BYTES])
                .collect();
            chunks.last_mut().unwrap().extend(vec![0xee; end]);
            let stream = chunks.concat();
            let (mut running, mut start, mut seals) = (RunningSha256::new(), 0, Vec::new());
            for (index, chunk) in chunks.iter().enumerate() {
                let part = part(start, index + 1 == chunks.len());
                seals.push((running.seal(chunk, part), part));
                start += chunk.len();
            }
            let Some((Seal::Sha256 { after, .. }, _)) = seals.last() else { unreachable!() };
            prop_assert_eq!(*after, Value::from(Sha256::digest(&stream)));
            for (index, (seal, part)) in seals.iter().enumerate() {
                for (other, chunk) in chunks.iter().enumerate() {
                    prop_assert_eq!(seal.matches(chunk, *part), other == index);
                }
                let mut changed = chunks[index].clone();
                let at = at.index(changed.len());
                changed[at] ^= 1 << bit;
                prop_assert!(!seal.matches(&changed, *part));
            }
        }
    }

    #[test]
    fn the_digests_are_those_of_the_standard() {
        // FIPS 180-4's examples of one and of two blocks.
        for (message, digest) in [
            ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
        ] {
            let mut running = RunningSha256::new();
            running.update(message.as_bytes());
            let hex = running.digest().map(|byte| format!("{byte:02x}")).concat();
            assert_eq!(hex, digest);
        }
    }

    #[test]
    fn a_chunk_that_begins_or_ends_within_a_block_is_sealed_by_itself() {
        let mut running = RunningSha256::new();
        let mut is_of_stream =
            |length, part| matches!(running.seal(&vec![1; length], part), Seal::Sha256 { .. });
        assert!(!is_of_stream(65, FIRST));
        assert!(!is_of_stream(63, part(65, false)));
        assert!(is_of_stream(64, part(128, false)));
        assert!(is_of_stream(3, part(192, true)));
        let expected: Value = Sha256::digest([1; 195]).into();
        assert_eq!(running.digest(), expected);
    }

    #[test]
    fn a_blake3_seal_takes_its_own_bytes_wherever_they_lie() {
        let seal = Seal::blake3(b"abc");
        assert!(seal.matches(b"abc", FIRST) && seal.matches(b"abc", part(7, true)));
        assert!(!seal.matches(b"abd", FIRST) && !seal.matches(b"", FIRST));
    }
}
