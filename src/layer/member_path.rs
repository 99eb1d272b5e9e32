//! Paths of members: relative, clean, and never outside the kit's root.
#![allow(unused_variables, dead_code)]

/// The path of a member below the kit's root, as bytes (PAX paths need not be UTF-8).
///
/// Never empty, never absolute; components are non-empty, hold no `/` or NUL, are not `.` or
/// `..` and have at most 255 bytes (`NAME_MAX`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(Box<[u8]>);

/// Why a name cannot be a path below the kit's root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberPathError {
    /// Starts with `/`.
    #[error("it is absolute")]
    Absolute,
    /// Leaves the root through `..`.
    #[error("it leaves the kit's root")]
    Outside,
    /// Holds a NUL byte.
    #[error("it holds a NUL byte")]
    Nul,
    /// A component of more than 255 bytes, or a path of more than 4,095 (`PATH_MAX`).
    #[error("it is too long")]
    TooLong,
    /// Names the root itself, where a member is needed.
    #[error("it names the kit's root")]
    Root,
}

impl MemberPath {
    /// Parses a name as archives and Kitfiles have it: `.` and empty components are dropped, and
    /// `..` takes the component before it away, as long as that stays inside the root.
    pub fn parse(name: &[u8]) -> Result<Self, MemberPathError> {
        todo!()
    }

    /// The path as bytes, components joined by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/')
    }

    /// This path below `directory`.
    pub fn below(&self, directory: &MemberPath) -> Result<Self, MemberPathError> {
        todo!()
    }

    /// The path without its last component; `None` for a path of one component.
    pub fn parent(&self) -> Option<Self> {
        todo!()
    }
}

impl std::fmt::Debug for MemberPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}
