//! What is mounted where, asked without touching any file system: a `stat` of a mountpoint whose
//! daemon is stuck would be stuck too.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of our mounts: `fuse` and the subtype.
pub(super) const FILE_SYSTEM: &str = "fuse.kitfs";

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The mounted file system's device number, `MAJOR:MINOR`: nobody else's while it is mounted.
    pub(super) device: String,
    pub(super) mountpoint: PathBuf,
    pub(super) file_system: String,
    /// What the mount calls its source: of ours, the reference.
    pub(super) source: String,
}

/// What is mounted at `mountpoint` (canonical), the topmost last.
pub(super) fn at(mountpoint: &Path) -> std::io::Result<Vec<Entry>> {
    let mut entries = all()?;
    entries.retain(|entry| entry.mountpoint == mountpoint);
    Ok(entries)
}

/// Everything that is mounted, as this process sees it; what covers another mount comes later.
pub(super) fn all() -> std::io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?).collect())
}

fn parse(table: &[u8]) -> impl Iterator<Item = Entry> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line)
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = fields.nth(2)?;
    let mountpoint = fields.nth(1)?;
    // Optional fields follow, as many as there are, then a lonely dash.
    let mut fields = fields.skip_while(|&field| field != b"-");
    let file_system = fields.nth(1)?;
    let source = unescape(fields.next()?);
    Some(Entry {
        device: String::from_utf8_lossy(device).into_owned(),
        mountpoint: PathBuf::from(OsString::from_vec(unescape(mountpoint))),
        file_system: String::from_utf8_lossy(file_system).into_owned(),
        source: String::from_utf8_lossy(&source).into_owned(),
    })
}

/// Undoes `\ooo`, which the kernel writes for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let octal = |digit: &u8| (b'0'..=b'7').contains(digit).then(|| u32::from(digit - b'0'));
        if let (b'\\', [a, b, c, after @ ..]) = (first, tail)
            && let (Some(a), Some(b), Some(c)) = (octal(a), octal(b), octal(c))
            && let Ok(byte) = u8::try_from(a << 6 | b << 3 | c)
        {
            bytes.push(byte);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields_are_read() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            98 22 0:57 / /mnt/my\\040kit ro,nosuid,nodev - fuse.kitfs ghcr.io/org/model:v1 ro\n";
        let entries: Vec<_> = parse(table).collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].file_system, "ext4");
        assert_eq!(entries[1].device, "0:57");
        assert_eq!(entries[1].mountpoint, Path::new("/mnt/my kit"));
        assert_eq!(entries[1].file_system, FILE_SYSTEM);
        assert_eq!(entries[1].source, "ghcr.io/org/model:v1");
    }

    #[test]
    fn the_root_of_this_process_is_in_its_own_table() {
        assert!(!at(Path::new("/")).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn escaped_paths_come_back(path in prop::collection::vec(1u8.., 0..64)) {
            let mut escaped = Vec::new();
            for &byte in &path {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => {
                        escaped.extend_from_slice(format!("\\{byte:03o}").as_bytes());
                    }
                    _ => escaped.push(byte),
                }
            }
            prop_assert_eq!(unescape(&escaped), path);
        }

        #[test]
        fn any_bytes_are_taken(table in prop::collection::vec(any::<u8>(), 0..256)) {
            parse(&table).count();
        }
    }
}
