//! Requests from the kernel, decoded.

use super::{Fields, REQUEST_HEADER_BYTES};
use crate::fs::{Ino, Owner};

/// A request. Names borrow from the buffer that it was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Request<'a> {
    /// The number that the reply has to carry.
    pub(in crate::fuse) unique: u64,
    /// The inode that is asked about; of operations with a name, its directory.
    pub(in crate::fuse) ino: Ino,
    /// The user and group of the calling process. The kernel's own requests have zeros.
    pub(in crate::fuse) caller: Owner,
    /// The calling thread, as its number in the PID namespace of the mount; 0 where it is none of it, and
    /// for the kernel's own requests.
    pub(in crate::fuse) thread: u32,
    /// The operation.
    pub(in crate::fuse) operation: Operation<'a>,
}

/// An operation that the kernel asks for. Operations with one fixed answer share a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) enum Operation<'a> {
    /// The entry of a directory by its name.
    Lookup { name: &'a [u8] },
    /// The kernel drops inodes from memory. It expects no reply.
    Forget { forgotten: Forgotten<'a> },
    /// `stat`.
    Attributes,
    /// The target of a symbolic link.
    LinkTarget,
    /// `open` of a file, with the flags of open(2).
    Open { flags: u32 },
    /// Bytes of a file.
    Read { offset: u64, bytes: u32 },
    /// The last close of an open file; maps of it are gone too.
    Release { handle: u64 },
    /// `opendir`.
    OpenDirectory,
    /// The last close of a directory.
    ReleaseDirectory,
    /// Entries of a directory.
    Entries { offset: u64, bytes: u32 },
    /// Entries of a directory with their attributes.
    EntriesWithAttributes { offset: u64, bytes: u32 },
    /// `statfs`.
    Totals,
    /// The value of an extended attribute; 0 `bytes` ask for its length.
    Xattr { name: &'a [u8], bytes: u32 },
    /// The names of all extended attributes; 0 `bytes` ask for their length.
    XattrNames { bytes: u32 },
    /// The beginning of data or of a hole (lseek(2)).
    Seek { offset: u64, whence: u32 },
    /// `access`, with the mask of access(2).
    Access { mask: u32 },
    /// A signal came to the thread that waits for the reply to the request `unique`.
    Interrupt { unique: u64 },
    /// The file system goes away.
    Destroy,
    /// Anything that would change a file or directory.
    Change,
    /// `ioctl`.
    Ioctl,
    /// INIT after the handshake, or an operation that the kernel does well without us.
    Other { opcode: u32 },
}

/// The bytes of `struct fuse_forget_one`: an inode, and the number of its lookups to forget.
const FORGET_ONE_BYTES: usize = 16;

/// Inodes that the kernel drops from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) enum Forgotten<'a> {
    One {
        node: u64,
        lookups: u64,
    },
    /// Many `struct fuse_forget_one`.
    Batch(&'a [u8]),
}

impl Forgotten<'_> {
    /// Each inode, and the number of lookups to forget.
    pub(in crate::fuse) fn iter(&self) -> impl Iterator<Item = (Ino, u64)> {
        let (one, batch) = match self {
            Self::One { node, lookups } => (Some((Ino(*node), *lookups)), &[][..]),
            Self::Batch(batch) => (None, *batch),
        };
        let batch = batch.chunks_exact(FORGET_ONE_BYTES).filter_map(|bytes| {
            let mut fields = Fields(bytes);
            Some((Ino(fields.u64()?), fields.u64()?))
        });
        one.into_iter().chain(batch)
    }
}

/// A request that does not follow the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::fuse) enum RequestError {
    /// Its header is cut off, or has another length than the bytes that were read.
    #[error("a request of {0} bytes has no valid header")]
    Header(usize),
    /// Its arguments are cut off.
    #[error("the arguments of a request with opcode {opcode} are cut off")]
    Arguments {
        /// Its number, so that it can be refused.
        unique: u64,
        /// Its operation.
        opcode: u32,
    },
}

/// Opcodes (`enum fuse_opcode`).
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const ACCESS: u32 = 34;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const IOCTL: u32 = 39;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
    pub(super) const COPY_FILE_RANGE: u32 = 47;
    pub(super) const TMPFILE: u32 = 51;
}

/// The header of a request (`struct fuse_in_header`).
pub(super) struct Header {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) caller: Owner,
    pub(super) thread: u32,
}

/// Splits a request into its header and its arguments.
pub(super) fn split(bytes: &[u8]) -> Result<(Header, &[u8]), RequestError> {
    let header = |bytes: &[u8]| {
        let mut fields = Fields(bytes);
        let length = fields.u32()? as usize;
        let opcode = fields.u32()?;
        let (unique, node) = (fields.u64()?, fields.u64()?);
        let caller = Owner { uid: fields.u32()?, gid: fields.u32()? };
        let thread = fields.u32()?;
        Some((length, Header { opcode, unique, node, caller, thread }))
    };
    match (header(bytes), bytes.get(REQUEST_HEADER_BYTES..)) {
        (Some((length, header)), Some(arguments)) if length == bytes.len() => {
            Ok((header, arguments))
        }
        _ => Err(RequestError::Header(bytes.len())),
    }
}

impl<'a> Request<'a> {
    /// Decodes a request as it was read from the device.
    ///
    /// # Errors
    /// [`RequestError::Arguments`] for a request that can still be refused by its number.
    pub(in crate::fuse) fn decode(bytes: &'a [u8]) -> Result<Self, RequestError> {
        let (header, arguments) = split(bytes)?;
        let Header { opcode, unique, node, caller, thread } = header;
        match operation(opcode, node, Fields(arguments)) {
            Some(operation) => Ok(Self { unique, ino: Ino(node), caller, thread, operation }),
            None => Err(RequestError::Arguments { unique, opcode }),
        }
    }
}

/// The operation of an opcode; `None` where its arguments are cut off.
fn operation(opcode: u32, node: u64, mut arguments: Fields<'_>) -> Option<Operation<'_>> {
    use Operation as Op;
    Some(match opcode {
        opcode::LOOKUP => Op::Lookup { name: arguments.name()? },
        opcode::FORGET => {
            Op::Forget { forgotten: Forgotten::One { node, lookups: arguments.u64()? } }
        }
        opcode::BATCH_FORGET => {
            let count = arguments.u32()? as usize;
            let _padding = arguments.u32()?;
            let length = count.checked_mul(FORGET_ONE_BYTES)?;
            Op::Forget { forgotten: Forgotten::Batch(arguments.0.get(..length)?) }
        }
        opcode::GETATTR => Op::Attributes,
        opcode::READLINK => Op::LinkTarget,
        opcode::OPEN => Op::Open { flags: arguments.u32()? },
        opcode::READ => {
            let (offset, bytes) = position(&mut arguments)?;
            Op::Read { offset, bytes }
        }
        opcode::READDIR => {
            let (offset, bytes) = position(&mut arguments)?;
            Op::Entries { offset, bytes }
        }
        opcode::READDIRPLUS => {
            let (offset, bytes) = position(&mut arguments)?;
            Op::EntriesWithAttributes { offset, bytes }
        }
        opcode::RELEASE => Op::Release { handle: arguments.u64()? },
        opcode::OPENDIR => Op::OpenDirectory,
        opcode::RELEASEDIR => Op::ReleaseDirectory,
        opcode::STATFS => Op::Totals,
        opcode::GETXATTR => {
            let bytes = xattr_bytes(&mut arguments)?;
            Op::Xattr { bytes, name: arguments.name()? }
        }
        opcode::LISTXATTR => Op::XattrNames { bytes: xattr_bytes(&mut arguments)? },
        opcode::LSEEK => {
            let (offset, whence) = position(&mut arguments)?;
            Op::Seek { offset, whence }
        }
        opcode::ACCESS => Op::Access { mask: arguments.u32()? },
        opcode::INTERRUPT => Op::Interrupt { unique: arguments.u64()? },
        opcode::DESTROY => Op::Destroy,
        opcode::IOCTL => Op::Ioctl,
        opcode::SETATTR
        | opcode::SYMLINK
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::WRITE
        | opcode::SETXATTR
        | opcode::REMOVEXATTR
        | opcode::CREATE
        | opcode::FALLOCATE
        | opcode::COPY_FILE_RANGE
        | opcode::TMPFILE => Op::Change,
        opcode => Op::Other { opcode },
    })
}

/// Offset and size from `struct fuse_read_in`, or offset and `whence` from `struct fuse_lseek_in`; the
/// handle comes first in both.
fn position(arguments: &mut Fields<'_>) -> Option<(u64, u32)> {
    let _handle = arguments.u64()?;
    Some((arguments.u64()?, arguments.u32()?))
}

/// The size from `struct fuse_getxattr_in`, which has 8 bytes.
fn xattr_bytes(arguments: &mut Fields<'_>) -> Option<u32> {
    let bytes = arguments.u32()?;
    let _padding = arguments.u32()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request as the kernel writes it.
    fn encoded(opcode: u32, arguments: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let length = (REQUEST_HEADER_BYTES + arguments.len()) as u32;
        for number in [length, opcode] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        for number in [77u64, 5] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        for number in [1000u32, 100, 4711, 0] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        bytes.extend_from_slice(arguments);
        bytes
    }

    fn read_in(offset: u64, size: u32) -> Vec<u8> {
        let mut bytes = [9u64.to_ne_bytes(), offset.to_ne_bytes()].concat();
        bytes.extend_from_slice(&size.to_ne_bytes());
        // Read flags, lock owner, open flags, padding.
        bytes.extend_from_slice(&[0; 20]);
        bytes
    }

    fn xattr_in(size: u32, name: &[u8]) -> Vec<u8> {
        [&size.to_ne_bytes()[..], &[0; 4], name].concat()
    }

    #[test]
    fn requests_of_every_layout_are_decoded() {
        let five = 5u32.to_ne_bytes();
        let cases = [
            (1, b"name\0".to_vec(), Operation::Lookup { name: b"name" }),
            (
                2,
                3u64.to_ne_bytes().to_vec(),
                Operation::Forget { forgotten: Forgotten::One { node: 5, lookups: 3 } },
            ),
            (
                42,
                [&[2, 0, 0, 0, 0, 0, 0, 0][..], &[7; 32]].concat(),
                Operation::Forget { forgotten: Forgotten::Batch(&[7; 32]) },
            ),
            (3, vec![0; 16], Operation::Attributes),
            (5, vec![], Operation::LinkTarget),
            (14, [five, five].concat(), Operation::Open { flags: 5 }),
            (15, read_in(1 << 40, 4096), Operation::Read { offset: 1 << 40, bytes: 4096 }),
            (28, read_in(3, 4096), Operation::Entries { offset: 3, bytes: 4096 }),
            (44, read_in(3, 99), Operation::EntriesWithAttributes { offset: 3, bytes: 99 }),
            (18, [1u64.to_ne_bytes(); 3].concat(), Operation::Release { handle: 1 }),
            (22, xattr_in(9, b"user.a\0"), Operation::Xattr { name: b"user.a", bytes: 9 }),
            (23, xattr_in(9, b""), Operation::XattrNames { bytes: 9 }),
            (46, read_in(7, 4), Operation::Seek { offset: 7, whence: 4 }),
            (34, [five, five].concat(), Operation::Access { mask: 5 }),
            (36, 9u64.to_ne_bytes().to_vec(), Operation::Interrupt { unique: 9 }),
            (16, vec![], Operation::Change),
            (52, vec![0; 40], Operation::Other { opcode: 52 }),
        ];
        for (opcode, arguments, operation) in cases {
            let caller = Owner { uid: 1000, gid: 100 };
            let expected = Request { unique: 77, ino: Ino(5), caller, thread: 4711, operation };
            let bytes = encoded(opcode, &arguments);
            assert_eq!(Request::decode(&bytes), Ok(expected), "opcode {opcode}");
        }
    }

    #[test]
    fn a_request_that_is_cut_off_can_be_refused_by_its_number() {
        let refused = |opcode| Err(RequestError::Arguments { unique: 77, opcode });
        for (opcode, arguments) in [
            (1, &b"no end"[..]),
            (2, &[0; 7]),
            (42, &[1; 30]),
            (14, &[0; 3]),
            (15, &[0; 19]),
            (22, b"\0\0\0\0\0\0\0\0name"),
        ] {
            assert_eq!(Request::decode(&encoded(opcode, arguments)), refused(opcode));
        }
        let whole = encoded(3, &[0; 16]);
        for length in 0..whole.len() {
            assert_eq!(Request::decode(&whole[..length]), Err(RequestError::Header(length)));
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn forgotten_inodes_are_counted_one_by_one() {
        let one = Forgotten::One { node: 5, lookups: 3 };
        assert_eq!(one.iter().collect::<Vec<_>>(), [(Ino(5), 3)]);
        let batch: Vec<u8> = [1u64, 2, 3, 4].iter().flat_map(|it| it.to_ne_bytes()).collect();
        let batch = Forgotten::Batch(&batch);
        assert_eq!(batch.iter().collect::<Vec<_>>(), [(Ino(1), 2), (Ino(3), 4)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(
            opcode in 0..60u32, arguments in prop::collection::vec(any::<u8>(), 0..100),
            noise in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            if let Ok(request) = Request::decode(&encoded(opcode, &arguments)) {
                prop_assert_eq!((request.unique, request.ino), (77, Ino(5)));
            }
            let _ = Request::decode(&noise);
        }
    }
}
