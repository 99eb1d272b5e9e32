//! The two address spaces of a layer, as two types.
//!
//! The registry stores a blob; the stream is the blob's uncompressed content. Both have the same
//! offsets in uncompressed layers only. So code that knows a layer to be uncompressed converts one
//! offset into the other by name. Plain numbers become offsets at the borders: an HTTP header, a file of
//! the cache, a descriptor.

use std::fmt;
use std::ops::{Add, AddAssign, Range, Sub};

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The offset as a number of bytes from the start.
            pub fn get(self) -> u64 {
                self.0
            }

            /// The half-open range of `bytes` bytes that starts here, cut at `u64::MAX`.
            pub fn range(self, bytes: u64) -> Range<Self> {
                self..Self(self.0.saturating_add(bytes))
            }

            /// The range between two plain numbers.
            pub fn of(range: Range<u64>) -> Range<Self> {
                Self(range.start)..Self(range.end)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl AddAssign<u64> for $name {
            fn add_assign(&mut self, bytes: u64) {
                self.0 += bytes;
            }
        }

        impl Sub for $name {
            type Output = u64;
            fn sub(self, earlier: Self) -> u64 {
                self.0 - earlier.0
            }
        }
    };
}

offset!(
    /// A byte position in a blob as the registry stores it.
    BlobOffset
);
offset!(
    /// A byte position in a layer's uncompressed content.
    StreamOffset
);

impl BlobOffset {
    /// The indices of a range's bytes in a blob that is in memory.
    pub fn indices(range: &Range<Self>) -> Range<usize> {
        range.start.0 as usize..range.end.0 as usize
    }

    /// The bytes from `earlier` up to here; 0 where `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The position in the uncompressed content of a layer that is stored uncompressed.
    pub fn in_uncompressed_stream(self) -> StreamOffset {
        StreamOffset(self.0)
    }
}

impl StreamOffset {
    /// The position in the blob, for a layer that is stored uncompressed.
    pub fn in_uncompressed_blob(self) -> BlobOffset {
        BlobOffset(self.0)
    }
}
