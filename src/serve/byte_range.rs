//! The `Range` header of a request for a blob (RFC 9110, section 14). Pure.

use std::ops::Range;

/// The requested part of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The whole blob: no header, or a header that a server may ignore (another unit, several ranges,
    /// malformed).
    Whole,
    /// A range inside the blob, not empty.
    Part(Range<u64>),
    /// A range beyond the end of the blob.
    Unsatisfiable,
}

impl Asked {
    /// Parses the header for a blob of `size` bytes.
    pub fn parse(header: Option<&str>, size: u64) -> Self {
        let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
            return Self::Whole;
        };
        let Some((first, last)) = spec.split_once('-') else { return Self::Whole };
        match (number(first), number(last)) {
            (Some(first), _) if last.trim().is_empty() => Self::within(first..size, size),
            (Some(first), Some(last)) if first <= last => {
                Self::within(first..last.saturating_add(1).min(size), size)
            }
            (None, Some(length)) if first.trim().is_empty() => match length {
                0 => Self::Unsatisfiable,
                length => Self::within(size.saturating_sub(length)..size, size),
            },
            _ => Self::Whole,
        }
    }

    fn within(range: Range<u64>, size: u64) -> Self {
        match range.start < size {
            true => Self::Part(range),
            false => Self::Unsatisfiable,
        }
    }
}

/// Parses digits. A number above 64 bits becomes `u64::MAX`, which is beyond the end of any blob.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("bytes=0-0", Asked::Part(0..1))]
    #[case("bytes=5-", Asked::Part(5..10))]
    #[case("bytes=5-99999999999999999999999", Asked::Part(5..10))]
    #[case("bytes=-3", Asked::Part(7..10))]
    #[case("bytes=-30", Asked::Part(0..10))]
    #[case("bytes=-0", Asked::Unsatisfiable)]
    #[case("bytes=10-", Asked::Unsatisfiable)]
    #[case("bytes=10-11", Asked::Unsatisfiable)]
    #[case("bytes=4-3", Asked::Whole)]
    #[case("bytes=0-1,3-4", Asked::Whole)]
    #[case("bytes=-", Asked::Whole)]
    #[case("items=0-1", Asked::Whole)]
    fn ranges_of_ten_bytes(#[case] header: &str, #[case] expected: Asked) {
        assert_eq!(Asked::parse(Some(header), 10), expected);
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_and_never_beyond_the_end(
            header in "bytes=[0-9]{0,3}-[0-9]{0,3}", size in 0u64..500
        ) {
            if let Asked::Part(range) = Asked::parse(Some(&header), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }

        #[test]
        fn a_client_gets_the_range_that_it_asks_for(start in 0u64..100, length in 1u64..100) {
            let header = format!("bytes={start}-{}", start + length - 1);
            let asked = Asked::parse(Some(&header), 200);
            prop_assert_eq!(asked, Asked::Part(start..start + length));
        }
    }
}
