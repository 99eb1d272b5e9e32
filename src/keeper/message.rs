//! The datagrams between keeper and worker: a kind, the number of a mount, and its FUSE connection.

use std::num::NonZeroU32;

/// The length of a datagram, in bytes: the kind, then both numbers in little-endian order.
pub(super) const BYTES: usize = 13;

/// The number of descriptors that come with [`Message::Hold`]: without an owner, and with one.
pub(super) const DESCRIPTORS: usize = 3;
pub(super) const MOST_DESCRIPTORS: usize = 4;

/// A datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// To the worker: a mount of its predecessor. To the keeper: a new mount. With the device, the
    /// record, the open files, and the owner if there is one.
    Hold {
        /// The mount.
        number: u64,
        /// The number of its FUSE connection, if the worker knows it.
        connection: Option<NonZeroU32>,
    },
    /// To the keeper: the mount has ended.
    Release(u64),
    /// To the worker: there are no more mounts of a predecessor.
    Complete,
    /// To the keeper: the worker answers commands.
    Serving,
    /// To the keeper: the worker is about to end its mounts and itself.
    Ending,
    /// To the keeper: the worker ends, and another is wanted. With a file that has the path of a program, the
    /// keeper becomes that program first.
    Replacing,
    /// To the keeper: the worker has ended all its mounts.
    Ended,
}

impl Message {
    pub(super) fn encode(self) -> [u8; BYTES] {
        let (kind, number, connection) = match self {
            Self::Hold { number, connection } => (1, number, connection),
            Self::Release(number) => (2, number, None),
            Self::Complete => (3, 0, None),
            Self::Serving => (4, 0, None),
            Self::Ending => (5, 0, None),
            Self::Replacing => (6, 0, None),
            Self::Ended => (7, 0, None),
        };
        let connection = connection.map_or(0, NonZeroU32::get);
        let mut bytes = [kind; BYTES];
        bytes[1..9].copy_from_slice(&u64::to_le_bytes(number));
        bytes[9..].copy_from_slice(&u32::to_le_bytes(connection));
        bytes
    }

    /// Decodes a datagram; `None` for one of another version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, numbers) = bytes.split_first()?;
        let (number, connection) = numbers.split_first_chunk()?;
        let number = u64::from_le_bytes(*number);
        let connection = u32::from_le_bytes(connection.try_into().ok()?);
        match (kind, number, NonZeroU32::new(connection)) {
            (1, number, connection) => Some(Self::Hold { number, connection }),
            (2, number, None) => Some(Self::Release(number)),
            (3, 0, None) => Some(Self::Complete),
            (4, 0, None) => Some(Self::Serving),
            (5, 0, None) => Some(Self::Ending),
            (6, 0, None) => Some(Self::Replacing),
            (7, 0, None) => Some(Self::Ended),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_datagram_has_one_meaning(bytes in proptest::collection::vec(any::<u8>(), 0..16), kind in 0u8..9) {
            let plain = [&[kind], &bytes[..], &[0; BYTES]].concat()[..BYTES].to_vec();
            for bytes in [bytes.clone(), [&[kind], &bytes[..]].concat(), plain] {
                if let Some(message) = Message::decode(&bytes) {
                    prop_assert_eq!(&message.encode()[..], &bytes[..]);
                }
            }
        }

        #[test]
        fn messages_come_back(number: u64, connection: u32) {
            use Message::*;
            let hold = Hold { number, connection: NonZeroU32::new(connection) };
            for message in [hold, Release(number), Complete, Serving, Ending, Replacing, Ended] {
                prop_assert_eq!(Message::decode(&message.encode()), Some(message));
            }
        }
    }
}
