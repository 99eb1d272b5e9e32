//! Paths of members: relative, clean, and never outside the kit's root.

/// The path of a member below the kit's root, as bytes (PAX paths need not be UTF-8).
///
/// Never empty, never absolute; components are non-empty, hold no `/` or NUL, are not `.` or
/// `..` and have at most 255 bytes (`NAME_MAX`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(Box<[u8]>);

impl MemberPath {
    /// The path as bytes, components joined by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for MemberPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}
