//! One 512-byte header block: checksum, numbers and names.
//!
//! The layout of the fields is the `tar` crate's. The crate's decoding is not used: that code drops the high bits
//! of large base-256 numbers, and refuses the empty numbers of old archives.

/// Headers and the padding of content come in blocks of this size (POSIX.1-2024, pax, "ustar
/// Interchange Format").
pub(super) const BLOCK_BYTES: usize = 512;

/// The place of the checksum field, which counts as spaces in its own sum.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// The fields of a header that matter to a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The type flag.
    pub kind: u8,
    /// The name, with the ustar prefix before it.
    pub name: Vec<u8>,
    /// The target of a link.
    pub link_name: Vec<u8>,
    /// The size of the content in bytes, as this header says.
    pub size: u64,
    /// Permission bits, without setuid, setgid and sticky.
    pub mode: u32,
    /// Modification time in seconds since 1970.
    pub mtime_seconds: i64,
    /// The sparse fields of the header, if its type is that of a sparse file.
    pub sparse_fields: Option<SparseFields>,
}

/// The two layouts of a sparse file's fields in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SparseFields {
    /// GNU tar's.
    Gnu,
    /// star's.
    Star,
}

impl Header {
    /// Decodes a block that is not all zero. The error names the wrong field.
    pub(super) fn decode(block: &[u8; BLOCK_BYTES]) -> Result<Self, String> {
        check_sum(block)?;
        let header = tar::Header::from_byte_slice(block);
        let fields = header.as_old();
        let field = |bytes: &[u8], name: &str| {
            number(bytes).ok_or_else(|| format!("its {name} field is not a number"))
        };
        let size = field(&fields.size, "size")?;
        Ok(Self {
            kind: fields.linkflag[0],
            name: name(header),
            link_name: until_nul(&fields.linkname).to_vec(),
            size: u64::try_from(size).map_err(|_| format!("its size is negative: {size}"))?,
            mode: (field(&fields.mode, "mode")? & 0o777) as u32,
            mtime_seconds: field(&fields.mtime, "time")?,
            sparse_fields: match block {
                _ if header.as_gnu().is_some() => Some(SparseFields::Gnu),
                _ if is_star(header) => Some(SparseFields::Star),
                _ => None,
            },
        })
    }
}

/// star's own format has times and a magic number in place of the end of ustar's prefix.
fn is_star(header: &tar::Header) -> bool {
    header.as_bytes().ends_with(b"tar\0")
}

/// The bytes before the first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Compares the sum of all bytes, read as unsigned or (some old writers) as signed ones.
fn check_sum(block: &[u8; BLOCK_BYTES]) -> Result<(), String> {
    let expected = number(&block[CHECKSUM])
        .ok_or("it is not a tar header: the checksum field is not a number")?;
    let summed = |value: fn(u8) -> i64| {
        let rest = block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
        rest.map(|&byte| value(byte)).sum::<i64>() + CHECKSUM.len() as i64 * i64::from(b' ')
    };
    match expected == summed(i64::from) || expected == summed(|byte| i64::from(byte as i8)) {
        true => Ok(()),
        false => Err("it is not a tar header: the checksum is wrong".to_owned()),
    }
}

fn name(header: &tar::Header) -> Vec<u8> {
    let name = until_nul(&header.as_old().name);
    let Some(ustar) = header.as_ustar() else { return name.to_vec() };
    let prefix = until_nul(&ustar.prefix[..if is_star(header) { 131 } else { 155 }]);
    match prefix.is_empty() {
        true => name.to_vec(),
        false => [prefix, name].join(&b'/'),
    }
}

/// A numeric field: octal digits between spaces and NULs, or base-256 when the first bit is set; 0
/// when empty. `None` when the field is neither or needs more than 63 bits.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field.first()? & 0x80 != 0 {
        return base_256(field);
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = field[start..].split(is_blank).next().unwrap_or_default();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// GNU's binary numbers: big-endian two's complement behind a marker bit.
fn base_256(field: &[u8]) -> Option<i64> {
    let is_negative = field[0] & 0x40 != 0;
    let first = if is_negative { field[0] } else { field[0] & 0x7f };
    let start = if is_negative { -1 } else { 0 };
    std::iter::once(first).chain(field[1..].iter().copied()).try_fold(start, |value: i64, byte| {
        value.checked_mul(256).map(|value| value | i64::from(byte))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"777777777777"), Some((1 << 36) - 1));
        assert_eq!(number(b"12x"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(8 << 30));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
        assert_eq!(number(b"\x81\0\0\0\0\0\0\0\0\0\0\0"), None);
    }

    proptest! {
        #[test]
        fn binary_numbers_of_the_tar_crate_are_read(size in 8u64 << 30..i64::MAX as u64) {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            prop_assert_eq!(number(&header.as_old().size), Some(size as i64));
        }

        #[test]
        fn negative_binary_numbers_are_read(value in i64::MIN..0) {
            let mut field = [0xff; 12];
            field[4..].copy_from_slice(&value.to_be_bytes());
            prop_assert_eq!(number(&field), Some(value));
        }
    }

    #[test]
    fn a_signed_sum_is_accepted_and_a_wrong_one_is_not() {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..4].copy_from_slice(b"a\xff\xfe\0");
        header.set_cksum();
        let unsigned = number(&header.as_old().cksum).unwrap();
        for (sum, is_accepted) in [(unsigned, true), (unsigned - 512, true), (unsigned - 1, false)]
        {
            let digits = format!("{sum:06o}\0 ");
            header.as_old_mut().cksum.copy_from_slice(digits.as_bytes());
            assert_eq!(Header::decode(header.as_bytes()).is_ok(), is_accepted, "{sum}");
        }
    }
}
