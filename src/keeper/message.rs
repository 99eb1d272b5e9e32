//! The datagrams between keeper and worker: a kind, and the number of a mount.

/// The length of a datagram, in bytes: the kind, and the number in little-endian order.
pub(super) const BYTES: usize = 9;

/// The number of descriptors that come with [`Message::Hold`].
pub(super) const DESCRIPTORS: usize = 3;

/// A datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// To the worker: a mount of its predecessor. To the keeper: a new mount. With the device, the
    /// record and the open files.
    Hold(u64),
    /// To the keeper: the mount has ended.
    Release(u64),
    /// To the worker: there are no more mounts of a predecessor.
    Complete,
    /// To the keeper: the worker answers commands.
    Serving,
    /// To the keeper: the worker ends for good, and no other is wanted.
    Ending,
    /// To the keeper: the worker ends, and another is wanted.
    Replacing,
}

impl Message {
    pub(super) fn encode(self) -> [u8; BYTES] {
        let (kind, number) = match self {
            Self::Hold(number) => (1, number),
            Self::Release(number) => (2, number),
            Self::Complete => (3, 0),
            Self::Serving => (4, 0),
            Self::Ending => (5, 0),
            Self::Replacing => (6, 0),
        };
        let mut bytes = [kind; BYTES];
        bytes[1..].copy_from_slice(&u64::to_le_bytes(number));
        bytes
    }

    /// Decodes a datagram; `None` for one of another version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, number) = bytes.split_first()?;
        let number = u64::from_le_bytes(number.try_into().ok()?);
        match (kind, number) {
            (1, number) => Some(Self::Hold(number)),
            (2, number) => Some(Self::Release(number)),
            (3, 0) => Some(Self::Complete),
            (4, 0) => Some(Self::Serving),
            (5, 0) => Some(Self::Ending),
            (6, 0) => Some(Self::Replacing),
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
        fn a_datagram_has_one_meaning(bytes in proptest::collection::vec(any::<u8>(), 0..12), kind in 0u8..8) {
            for bytes in [bytes.clone(), [&[kind], &bytes[..]].concat()] {
                if let Some(message) = Message::decode(&bytes) {
                    prop_assert_eq!(&message.encode()[..], &bytes[..]);
                }
            }
        }

        #[test]
        fn messages_come_back(number: u64) {
            use Message::*;
            for message in [Hold(number), Release(number), Complete, Serving, Ending, Replacing] {
                prop_assert_eq!(Message::decode(&message.encode()), Some(message));
            }
        }
    }
}
