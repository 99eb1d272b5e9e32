//! Records before a header that overrule its fields: PAX extended headers (POSIX.1-2024, pax,
//! "pax Extended Header") and GNU's long names.
//!
//! Not the `tar` crate's `PaxExtensions`: that splits at newlines, which a path may hold.

/// The longest value that is kept. Four times the longest path, for names that shrink when they are
/// cleaned; global values are copied for every entry, so they may not be as long as the records.
const VALUE_LIMIT_BYTES: usize = 16 * 1024;

/// What records say about the next entry (`x`, `L`, `K`) or all that follow (`g`).
///
/// Values are bytes as written. An empty one means "as in the header" and takes a global away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    path: Option<Vec<u8>>,
    link_path: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    mtime: Option<Vec<u8>>,
}

impl Records {
    /// Takes in the content of an extended header: `LENGTH KEY=VALUE\n`, again and again. Later
    /// records win; keys that say nothing about a read-only tree are passed over.
    pub(super) fn decode_pax(&mut self, mut content: &[u8]) -> Result<(), String> {
        while !content.is_empty() {
            let (key, value, rest) = record(content)
                .ok_or("its PAX records are malformed: expected `LENGTH KEY=VALUE`")?;
            content = rest;
            let field = match key {
                b"path" => &mut self.path,
                b"linkpath" => &mut self.link_path,
                b"size" => &mut self.size,
                b"mtime" => &mut self.mtime,
                _ if key.starts_with(b"GNU.sparse.") => return Err(SPARSE.to_owned()),
                _ => continue,
            };
            if value.len() > VALUE_LIMIT_BYTES {
                return Err(format!("a PAX value has more than {VALUE_LIMIT_BYTES} bytes"));
            }
            *field = Some(value.to_vec());
        }
        Ok(())
    }

    /// Takes in the content of a GNU long name (`L`).
    pub(super) fn set_long_name(&mut self, content: &[u8]) {
        self.path = Some(super::header::until_nul(content).to_vec());
    }

    /// Takes in the content of a GNU long link name (`K`).
    pub(super) fn set_long_link_name(&mut self, content: &[u8]) {
        self.link_path = Some(super::header::until_nul(content).to_vec());
    }

    /// These records, with those of `global` where these say nothing.
    pub(super) fn over(self, global: &Records) -> Records {
        let either = |own: Option<Vec<u8>>, global: &Option<Vec<u8>>| {
            own.or_else(|| global.clone()).filter(|value| !value.is_empty())
        };
        Records {
            path: either(self.path, &global.path),
            link_path: either(self.link_path, &global.link_path),
            size: either(self.size, &global.size),
            mtime: either(self.mtime, &global.mtime),
        }
    }

    /// The name of the entry.
    pub(super) fn take_path(&mut self) -> Option<Vec<u8>> {
        self.path.take()
    }

    /// The target of a link.
    pub(super) fn take_link_path(&mut self) -> Option<Vec<u8>> {
        self.link_path.take()
    }

    /// The size of the content in bytes: what counts when the header's 33 bits are too few.
    pub(super) fn size(&self) -> Result<Option<u64>, String> {
        let Some(text) = &self.size else { return Ok(None) };
        decimal(text).map(Some).ok_or_else(|| {
            format!("its PAX size `{}` is not a number", String::from_utf8_lossy(text))
        })
    }

    /// The modification time in seconds since 1970, rounded down.
    pub(super) fn mtime_seconds(&self) -> Result<Option<i64>, String> {
        let Some(text) = &self.mtime else { return Ok(None) };
        seconds(text).map(Some).ok_or_else(|| {
            format!("its PAX mtime `{}` is not a time", String::from_utf8_lossy(text))
        })
    }
}

/// Why GNU sparse entries, in both of their forms, are refused.
pub(super) const SPARSE: &str = "it is a GNU sparse file, whose holes no kit writes and kitfs \
                                 cannot map: pack it again without `tar --sparse`";

/// The first record's key and value, and the rest.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&content[..space])?).ok()?;
    let (record, rest) = content.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    (equals > 0).then(|| (&pair[..equals], &pair[equals + 1..], rest))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `[-]SECONDS[.FRACTION]`, rounded down.
fn seconds(text: &[u8]) -> Option<i64> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
    let whole = i64::try_from(decimal(&text[..point])?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let is_exact = fraction.iter().all(|&digit| digit == b'0');
    match is_negative {
        true => Some(-whole - i64::from(!is_exact)),
        false => Some(whole),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record as a writer makes it.
    fn written(key: &str, value: &[u8]) -> Vec<u8> {
        let fixed = key.len() + value.len() + 3;
        let mut length = fixed + 1;
        while length != fixed + length.to_string().len() {
            length = fixed + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    fn decoded(content: &[u8]) -> Result<Records, String> {
        let mut records = Records::default();
        records.decode_pax(content).map(|()| records)
    }

    #[test]
    fn times_are_rounded_down() {
        assert_eq!(seconds(b"1350244992.023960108"), Some(1_350_244_992));
        assert_eq!(seconds(b"-1.5"), Some(-2));
        assert_eq!(seconds(b"-1.0"), Some(-1));
        assert_eq!(seconds(b"7"), Some(7));
        assert_eq!(seconds(b"7."), Some(7));
        for wrong in ["", "-", ".5", "1e3", "1.x", "99999999999999999999"] {
            assert_eq!(seconds(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn own_records_win_and_empty_ones_fall_back_to_the_header() {
        let global = decoded(&[written("path", b"g"), written("mtime", b"1")].concat()).unwrap();
        let own = decoded(&written("path", b"own")).unwrap();
        assert_eq!(own.over(&global).take_path(), Some(b"own".to_vec()));
        let emptied = decoded(&written("path", b"")).unwrap().over(&global);
        assert_eq!(emptied.clone().take_path(), None);
        assert_eq!(emptied.mtime_seconds(), Ok(Some(1)));
    }

    #[test]
    fn malformed_records_are_refused() {
        for content in
            ["x", "5 path", "11 path=a\n", "8 path=a\n", "0 path=a\n", "9 path=a\n\0", "5 =a\n"]
        {
            assert!(decoded(content.as_bytes()).is_err(), "{content:?}");
        }
        assert!(decoded(&written("GNU.sparse.major", b"1")).unwrap_err().contains("sparse"));
        assert!(decoded(&written("path", &[b'/'; VALUE_LIMIT_BYTES])).is_ok());
        assert!(decoded(&written("path", &[b'/'; VALUE_LIMIT_BYTES + 1])).is_err());
        assert!(decoded(&written("comment", &[b'/'; VALUE_LIMIT_BYTES + 1])).is_ok());
        assert!(decoded(&written("size", b"-1")).unwrap().size().is_err());
    }

    proptest! {
        #[test]
        fn any_value_comes_back(value in prop::collection::vec(any::<u8>(), 1..200)) {
            let content = [written("comment", b"x=\ny"), written("path", &value)].concat();
            prop_assert_eq!(decoded(&content).unwrap().take_path(), Some(value));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(content in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decoded(&content);
        }
    }
}
