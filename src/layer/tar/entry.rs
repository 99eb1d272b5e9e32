//! An entry: the meaning of one header and the records before it.

use super::header::{Header, SparseFields};
use super::records::{Records, SparseRecords};
use crate::layer::member_path::shown;
use crate::layer::{MemberPath, MemberPathError, Mtime};

/// The longest target of a symbolic link (`PATH_MAX` of Linux without its NUL).
const TARGET_LIMIT_BYTES: usize = 4095;

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its kind.
    pub kind: EntryKind,
    /// Bytes of content behind the header.
    pub content_bytes: u64,
    /// Whether [`Self::content_bytes`] may be wrong: old writers give entries of this kind a size,
    /// and no content.
    pub has_doubtful_content: bool,
    /// Permission bits.
    pub mode: u32,
    /// The modification time; `None` where it has none from 1980 to 2106.
    pub mtime: Option<Mtime>,
    /// Whether a `/` was taken off its name, or off the name that a hard link gives.
    pub had_slash: bool,
}

/// The kind of an entry, and its path in the kit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// A regular file.
    File(MemberPath),
    /// A file of an undefined type. POSIX wants it extracted as a regular file.
    FileOfUnknownType(MemberPath, char),
    /// A file with holes, and where its map lies.
    SparseFile(MemberPath, MapPlace),
    /// A directory; `None` for the root itself, which every tree has.
    Directory(Option<MemberPath>),
    /// A symbolic link and its target.
    Symlink(MemberPath, Box<[u8]>),
    /// Another name for the bytes of an earlier entry.
    HardLink { path: MemberPath, target: MemberPath },
    /// An entry that a kit's tree cannot show, with a name for its kind.
    PassedOver(&'static str),
    /// An entry that no user misses, such as a tape's label. No warning is given.
    Silent,
}

/// The place of a sparse file's map, or of its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MapPlace {
    /// In the header.
    Header(SparseFields),
    /// In PAX records, or announced by them and stored before the data.
    Records(SparseRecords),
}

/// The meaning of a type flag (POSIX.1-2024, pax, "ustar Interchange Format"; GNU tar manual).
enum Type {
    File,
    UnknownFile,
    HardLink,
    Symlink,
    Directory,
    Sparse,
    PassedOver(&'static str),
    Silent,
}

impl Type {
    /// Old archives mark a directory by its name alone.
    fn of(header: &Header, name: &[u8]) -> Self {
        match header.kind {
            0 | b'0' | b'7' if name.ends_with(b"/") => Self::Directory,
            0 | b'0' | b'7' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::PassedOver("a character device"),
            b'4' => Self::PassedOver("a block device"),
            // 'D' has a list of names for content (GNU tar --incremental).
            b'5' | b'D' => Self::Directory,
            b'6' => Self::PassedOver("a FIFO"),
            b'S' if header.sparse_fields.is_some() => Self::Sparse,
            b'M' => Self::PassedOver("continued from another volume"),
            b'N' => Self::PassedOver("a list of names of an old GNU tar"),
            // A volume's label; a Solaris access control list.
            b'V' | b'A' => Self::Silent,
            _ => Self::UnknownFile,
        }
    }
}

impl Entry {
    /// Puts a header and its records together. The error names the fault of the entry.
    pub(super) fn new(header: &Header, name: &[u8], mut records: Records) -> Result<Self, String> {
        let kind = Type::of(header, name);
        let size = records.size()?.unwrap_or(header.size);
        let is_named_directory =
            matches!(kind, Type::Directory) && !matches!(header.kind, b'5' | b'D');
        // Directories, links and devices have no content, whatever their size says. Go's
        // archive/tar, which kit uses, reads them so. PAX lets hard links have content.
        let content_bytes = match header.kind {
            b'1' => size,
            b'2'..=b'6' => 0,
            _ => size,
        };
        let has_doubtful_content =
            (header.kind == b'1' && !records.are_pax()) || is_named_directory;
        let mtime = records.mtime()?.unwrap_or_else(|| Mtime::new(header.mtime_seconds, 0));
        let sparse = records.take_sparse();
        let mut names = Names::default();
        let mut link_name = || records.take_link_path().unwrap_or_else(|| header.link_name.clone());
        let kind = match kind {
            Type::PassedOver(what) => EntryKind::PassedOver(what),
            Type::Silent => EntryKind::Silent,
            Type::Directory => EntryKind::Directory(names.member(name)?),
            kind => match names.member(name)? {
                // Only a hostile archive has such a name.
                None if name.split(|&byte| byte == b'/').any(|it| it == b"..") => {
                    let error = MemberPathError::Root;
                    return Err(format!("its name cannot be used: {error}"));
                }
                None => EntryKind::PassedOver("no directory, and has the name of the kit's root"),
                Some(path) => match kind {
                    Type::HardLink => names.hard_link(path, &link_name())?,
                    Type::Symlink => EntryKind::Symlink(path, symlink_target(link_name())?),
                    Type::Sparse => {
                        let fields = header.sparse_fields.expect("the type looks at them");
                        EntryKind::SparseFile(path, MapPlace::Header(fields))
                    }
                    _ if records.is_continued() => {
                        EntryKind::PassedOver("continued from another volume")
                    }
                    Type::File | Type::UnknownFile if sparse.is_some() => {
                        let records = sparse.unwrap_or_default();
                        EntryKind::SparseFile(path, MapPlace::Records(records))
                    }
                    Type::UnknownFile => EntryKind::FileOfUnknownType(path, header.kind.into()),
                    _ => EntryKind::File(path),
                },
            },
        };
        let (mode, had_slash) = (header.mode, names.had_slash);
        Ok(Self { kind, content_bytes, has_doubtful_content, mode, mtime, had_slash })
    }
}

/// Names become paths below the kit's root.
#[derive(Default)]
struct Names {
    had_slash: bool,
}

impl Names {
    /// `None` for the root.
    fn member(&mut self, name: &[u8]) -> Result<Option<MemberPath>, String> {
        self.path(name).map_err(|error| format!("its name cannot be used: {error}"))
    }

    fn hard_link(&mut self, path: MemberPath, target: &[u8]) -> Result<EntryKind, String> {
        let parsed = self
            .path(target)
            .map_err(|error| format!("it is a hard link to `{}`, and {error}", shown(target)))?;
        Ok(match parsed {
            Some(target) => EntryKind::HardLink { path, target },
            None => EntryKind::PassedOver("a hard link to the kit's root"),
        })
    }

    /// Takes a leading `/` off, as GNU tar and bsdtar do.
    fn path(&mut self, name: &[u8]) -> Result<Option<MemberPath>, MemberPathError> {
        let slashes = name.iter().take_while(|&&byte| byte == b'/').count();
        self.had_slash |= slashes > 0;
        match MemberPath::parse(&name[slashes..]) {
            Err(MemberPathError::Root) => Ok(None),
            parsed => parsed.map(Some),
        }
    }
}

/// The target stays as stored: the kernel resolves it, below the mount or not.
fn symlink_target(target: Vec<u8>) -> Result<Box<[u8]>, String> {
    match target.len() {
        0 => Err("it is a symbolic link without a target".to_owned()),
        _ if target.contains(&0) => Err("the target of its link holds a NUL byte".to_owned()),
        1..=TARGET_LIMIT_BYTES => Ok(target.into()),
        _ => Err("the target of its link is too long".to_owned()),
    }
}
