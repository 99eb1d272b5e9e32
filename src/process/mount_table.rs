//! Reads the kernel's mount table. Touches no file system: a `stat` of a mountpoint hangs when its daemon
//! hangs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of kitfs's mounts: `fuse` and the subtype.
pub const FILE_SYSTEM: &str = "fuse.kitfs";

/// A line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The id of the mount and of its parent mount; unique in a mount namespace.
    pub id: u64,
    pub parent: u64,
    /// The device number of the file system; unique while the file system is mounted.
    pub device: Device,
    pub mountpoint: PathBuf,
    pub file_system: String,
    /// The source of the mount; for kitfs, the reference.
    pub source: String,
    /// The file system's own options.
    pub options: String,
}

/// The number of a device, major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device(pub u32, pub u32);

impl Device {
    /// Parses `MAJOR:MINOR` in a base: 10 in mountinfo, 16 in maps.
    pub fn parse(text: &[u8], base: u32) -> Option<Self> {
        let (major, minor) = std::str::from_utf8(text).ok()?.split_once(':')?;
        Some(Self(u32::from_str_radix(major, base).ok()?, u32::from_str_radix(minor, base).ok()?))
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

/// The mounts that a process sees. A mount comes after the mounts that it covers.
pub struct MountTable(Vec<Entry>);

impl MountTable {
    /// The mounts that this process sees.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn read() -> std::io::Result<Self> {
        Self::of_process("self")
    }

    /// The mounts that the process `pid` sees.
    pub fn of_process(pid: &str) -> std::io::Result<Self> {
        Ok(Self(parse(&std::fs::read(format!("/proc/{pid}/mountinfo"))?).collect()))
    }

    /// The mounts at a canonical path, the topmost last.
    pub fn at(&self, mountpoint: &Path) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter(move |entry| entry.mountpoint == mountpoint)
    }

    pub fn entries(&self) -> &[Entry] {
        &self.0
    }
}

/// The topmost mount at a canonical path, if it is a mount of kitfs.
///
/// # Errors
/// Where /proc is not mounted.
pub fn kit_at(mountpoint: &Path) -> std::io::Result<Option<Entry>> {
    let table = MountTable::read()?;
    let topmost = table.at(mountpoint).last();
    Ok(topmost.filter(|entry| entry.file_system == FILE_SYSTEM).cloned())
}

fn parse(table: &[u8]) -> impl Iterator<Item = Entry> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line)
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = Device::parse(fields.next()?, 10)?;
    let mountpoint = fields.nth(1)?;
    // Any number of optional fields follows, then a dash.
    let mut fields = fields.skip_while(|&field| field != b"-");
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Entry {
        id,
        parent,
        device,
        mountpoint: PathBuf::from(OsString::from_vec(unescape(mountpoint))),
        file_system: text(fields.nth(1)?),
        source: text(fields.next()?),
        options: text(fields.next().unwrap_or_default()),
    })
}

/// Decodes `\ooo`, which the kernel writes for space, tab, newline and backslash.
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
        assert_eq!((entries[1].id, entries[1].parent), (98, 22));
        assert_eq!(entries[1].device, Device(0, 57));
        assert_eq!(entries[1].options, "ro");
        assert_eq!(entries[1].mountpoint, Path::new("/mnt/my kit"));
        assert_eq!(entries[1].file_system, FILE_SYSTEM);
        assert_eq!(entries[1].source, "ghcr.io/org/model:v1");
    }

    #[test]
    fn the_root_of_this_process_is_in_its_own_table() {
        assert!(MountTable::read().unwrap().at(Path::new("/")).next().is_some());
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
