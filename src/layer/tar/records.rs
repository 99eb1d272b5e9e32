//! Records before a header that overrule its fields: PAX extended headers (POSIX.1-2024, pax,
//! "pax Extended Header") and GNU's long names.
//!
//! The `tar` crate's `PaxExtensions` is not used: it splits at newlines, and a path may hold one.
//!
//! Attributes of other tools (`SCHILY.*`, `LIBARCHIVE.*`: access control lists, extended attributes,
//! file flags) are passed over, as kit does.

use super::sparse::{Runs, decimal};
use crate::layer::Mtime;

/// The longest value that is kept. Four times the longest path, for names that shrink when they are
/// cleaned; global values are copied for every entry, so they may not be as long as the records.
const VALUE_LIMIT_BYTES: usize = 16 * 1024;

/// The fields that records give the next entry (`x`, `L`, `K`) or all later ones (`g`).
///
/// Values are bytes as written. An empty value means "as in the header", and takes a global one
/// away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    path: Option<Vec<u8>>,
    /// The name of a sparse file. Its path is another one, for readers that know no holes.
    sparse_name: Option<Vec<u8>>,
    link_path: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    mtime: Option<Vec<u8>>,
    sparse: Option<SparseRecords>,
    /// Whether any PAX record was there, so that the archive is of that format.
    are_pax: bool,
    /// Whether the entry is the rest of a file that another volume began.
    is_continued: bool,
}

/// The PAX records of a file with holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    /// GNU.sparse.major and minor, which 0.0 and 0.1 do not have.
    major: u64,
    minor: u64,
    /// The size of the file, holes included.
    file_bytes: Option<u64>,
    /// The map, where the records hold it.
    runs: Runs,
    /// The offset of a run whose length is still to come.
    offset: Option<u64>,
}

impl Records {
    /// Takes in the content of an extended header: `LENGTH KEY=VALUE\n`, again and again. Later
    /// records win. Keys that do not matter in a read-only tree are passed over. A sparse map may
    /// have `most_runs` entries.
    pub(super) fn decode_pax(
        &mut self,
        mut content: &[u8],
        most_runs: usize,
    ) -> Result<(), String> {
        self.are_pax = true;
        while !content.is_empty() {
            let (key, value, rest) = record(content)
                .ok_or("its PAX records are malformed: expected `LENGTH KEY=VALUE`")?;
            content = rest;
            let field = match key {
                b"path" => &mut self.path,
                b"GNU.sparse.name" => &mut self.sparse_name,
                b"linkpath" => &mut self.link_path,
                b"size" => &mut self.size,
                b"mtime" => &mut self.mtime,
                b"GNU.volume.filename" => {
                    self.is_continued = true;
                    continue;
                }
                b"SUN.holesdata" => {
                    return Err(
                        "it is a sparse file of Solaris, whose holes kitfs does not know: \
                                pack it again with GNU tar or bsdtar"
                            .to_owned(),
                    );
                }
                _ => match key.strip_prefix(b"GNU.sparse.") {
                    Some(key) => {
                        self.sparse.get_or_insert_default().set(key, value, most_runs)?;
                        continue;
                    }
                    None => continue,
                },
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

    /// Fills fields that are missing here from `global`.
    pub(super) fn over(self, global: &Records) -> Records {
        let either = |own: Option<Vec<u8>>, global: &Option<Vec<u8>>| {
            own.or_else(|| global.clone()).filter(|value| !value.is_empty())
        };
        Records {
            path: either(self.path, &global.path),
            sparse_name: self.sparse_name.filter(|name| !name.is_empty()),
            link_path: either(self.link_path, &global.link_path),
            size: either(self.size, &global.size),
            mtime: either(self.mtime, &global.mtime),
            sparse: self.sparse,
            are_pax: self.are_pax || global.are_pax,
            is_continued: self.is_continued || global.is_continued,
        }
    }

    /// Clears the mark of a continued file, which is about one entry only.
    pub(super) fn end_continued(&mut self) {
        self.is_continued = false;
    }

    /// Whether the entry is the rest of a file that another volume began.
    pub(super) fn is_continued(&self) -> bool {
        self.is_continued
    }

    /// Whether the records include a PAX record.
    pub(super) fn are_pax(&self) -> bool {
        self.are_pax
    }

    /// The records about holes.
    pub(super) fn take_sparse(&mut self) -> Option<SparseRecords> {
        self.sparse.take()
    }

    /// The name of the entry.
    pub(super) fn take_path(&mut self) -> Option<Vec<u8>> {
        self.sparse_name.take().or_else(|| self.path.take())
    }

    /// The target of a link.
    pub(super) fn take_link_path(&mut self) -> Option<Vec<u8>> {
        self.link_path.take()
    }

    /// The size of the content in bytes, for sizes beyond the 33 bits of the header.
    pub(super) fn size(&self) -> Result<Option<u64>, String> {
        let Some(text) = &self.size else { return Ok(None) };
        decimal(text).map(Some).ok_or_else(|| {
            format!("its PAX size `{}` is not a number", String::from_utf8_lossy(text))
        })
    }

    /// The modification time; the inner `None` for one that is not from 1980 to 2106.
    pub(super) fn mtime(&self) -> Result<Option<Option<Mtime>>, String> {
        let Some(text) = &self.mtime else { return Ok(None) };
        mtime(text).map(Some).ok_or_else(|| {
            format!("its PAX mtime `{}` is not a time", String::from_utf8_lossy(text))
        })
    }
}

impl SparseRecords {
    fn set(&mut self, key: &[u8], value: &[u8], most_runs: usize) -> Result<(), String> {
        let number = || {
            decimal(value).ok_or_else(|| {
                let key = String::from_utf8_lossy(key);
                format!("its GNU.sparse.{key} is not a number")
            })
        };
        match key {
            b"major" => self.major = number()?,
            b"minor" => self.minor = number()?,
            b"size" | b"realsize" => self.file_bytes = Some(number()?),
            b"map" => self.runs = Runs::parse_list(value, most_runs)?,
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take();
                let offset = offset.ok_or("a run of its sparse map has no GNU.sparse.offset")?;
                self.runs.push(offset, number()?, most_runs)?;
            }
            // `numblocks` repeats the map's length.
            _ => {}
        }
        Ok(())
    }

    /// The size of the file and its map, or `None` for a map that lies before the data (1.0).
    pub(super) fn into_map(self) -> Result<(u64, Option<Runs>), String> {
        let file_bytes = self.file_bytes.ok_or("it is a sparse file without its size")?;
        match (self.major, self.minor) {
            (0, _) => Ok((file_bytes, Some(self.runs))),
            (1, 0) => Ok((file_bytes, None)),
            (major, minor) => Err(format!(
                "it is a sparse file of GNU's format {major}.{minor}, which kitfs does not know"
            )),
        }
    }
}

/// The first record's key and value, and the rest.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&content[..space])?).ok()?;
    let (record, rest) = content.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    (equals > 0).then(|| (&pair[..equals], &pair[equals + 1..], rest))
}

/// `[-]SECONDS[.FRACTION]`; the outer `None` for anything else. Digits beyond nanoseconds are left out.
fn mtime(text: &[u8]) -> Option<Option<Mtime>> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
    let (whole, fraction) = (&text[..point], text.get(point + 1..).unwrap_or_default());
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = decimal(whole).and_then(|seconds| i64::try_from(seconds).ok());
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(seconds.filter(|_| !is_negative).and_then(|seconds| Mtime::new(seconds, nanoseconds)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 1000;

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
        records.decode_pax(content, MOST).map(|()| records)
    }

    #[test]
    fn times_have_nanoseconds_and_a_range() {
        let time = |seconds, nanoseconds| Some(Mtime::new(seconds, nanoseconds));
        assert_eq!(mtime(b"1350244992.023960108"), time(1_350_244_992, 23_960_108));
        assert_eq!(mtime(b"1350244992.5"), time(1_350_244_992, 500_000_000));
        assert_eq!(mtime(b"1350244992.0000000019"), time(1_350_244_992, 1));
        assert_eq!(mtime(b"1350244992."), time(1_350_244_992, 0));
        for early_or_late in ["-1.5", "0", "7.25", "4294967296", "99999999999999999999"] {
            assert_eq!(mtime(early_or_late.as_bytes()), Some(None), "{early_or_late}");
        }
        for wrong in ["", "-", ".5", "1e3", "1.x", "+5"] {
            assert_eq!(mtime(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn own_records_win_and_empty_ones_fall_back_to_the_header() {
        let time = Mtime::new(1_350_244_992, 0);
        let global = [written("path", b"g"), written("mtime", b"1350244992")].concat();
        let global = decoded(&global).unwrap();
        let own = decoded(&written("path", b"own")).unwrap();
        assert_eq!(own.over(&global).take_path(), Some(b"own".to_vec()));
        let emptied = decoded(&written("path", b"")).unwrap().over(&global);
        assert_eq!(emptied.clone().take_path(), None);
        assert_eq!(emptied.mtime(), Ok(Some(time)));
    }

    #[test]
    fn malformed_records_are_refused() {
        for content in
            ["x", "5 path", "11 path=a\n", "8 path=a\n", "0 path=a\n", "9 path=a\n\0", "5 =a\n"]
        {
            assert!(decoded(content.as_bytes()).is_err(), "{content:?}");
        }
        assert!(decoded(&written("path", &[b'/'; VALUE_LIMIT_BYTES])).is_ok());
        assert!(decoded(&written("path", &[b'/'; VALUE_LIMIT_BYTES + 1])).is_err());
        assert!(decoded(&written("comment", &[b'/'; VALUE_LIMIT_BYTES + 1])).is_ok());
        assert!(decoded(&written("size", b"-1")).unwrap().size().is_err());
        assert!(decoded(&written("GNU.sparse.major", b"x")).is_err());
        assert!(decoded(&written("GNU.sparse.numbytes", b"1")).is_err());
        assert!(decoded(&written("SUN.holesdata", b" 0 1")).unwrap_err().contains("Solaris"));
    }

    #[test]
    fn the_three_sparse_formats_of_pax_are_told_apart() {
        let map = |records: &[(&str, &[u8])]| {
            let content: Vec<u8> =
                records.iter().flat_map(|(key, value)| written(key, value)).collect();
            decoded(&content)?.take_sparse().unwrap().into_map()
        };
        let mut runs = Runs::default();
        runs.push(1, 2, MOST).unwrap();
        runs.push(8, 1, MOST).unwrap();
        let by_records: &[(&str, &[u8])] = &[
            ("GNU.sparse.size", b"9"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"1"),
            ("GNU.sparse.numbytes", b"2"),
            ("GNU.sparse.offset", b"8"),
            ("GNU.sparse.numbytes", b"1"),
        ];
        assert_eq!(map(by_records), Ok((9, Some(runs.clone()))));
        let by_map: &[(&str, &[u8])] = &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"1,2,8,1")];
        assert_eq!(map(by_map), Ok((9, Some(runs))));
        let before: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"9"),
        ];
        assert_eq!(map(before), Ok((9, None)));
        assert!(map(&[("GNU.sparse.major", b"1")]).unwrap_err().contains("without its size"));
        let other: &[(&str, &[u8])] = &[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"9")];
        assert!(map(other).unwrap_err().contains("2.0"));
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
