//! The two address spaces of a layer, as two types.
//!
//! The registry stores a blob; the stream is the blob's uncompressed content. Both have the same
//! offsets in uncompressed layers only. So code that knows a layer to be uncompressed converts one
//! offset into the other by name.

use std::ops::{Add, Range, Sub};

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
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
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

impl StreamOffset {
    /// The position in the blob, for a layer that is stored uncompressed.
    pub fn in_uncompressed_blob(self) -> BlobOffset {
        BlobOffset(self.0)
    }
}
