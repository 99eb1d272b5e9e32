//! Paths of members: relative, clean, and never outside the kit's root.

use std::cmp::Ordering;

/// The longest component (`NAME_MAX` of Linux).
const NAME_LIMIT_BYTES: usize = 255;
/// The longest path (`PATH_MAX` of Linux without its NUL).
const PATH_LIMIT_BYTES: usize = 4095;
/// The most bytes of a name that a message repeats.
const SHOWN_BYTES: usize = 200;

/// The path of a member below the kit's root, as bytes (PAX paths need not be UTF-8).
///
/// Never empty, never absolute; components are non-empty, hold no `/` or NUL, are not `.` or
/// `..` and have at most 255 bytes (`NAME_MAX`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(Box<[u8]>);

/// The error for a name that is no path below the kit's root.
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
    /// Parses a name of an archive or a Kitfile. `.` and empty components are dropped. `..` takes
    /// the component before it away, as long as the path stays inside the root.
    pub fn parse(name: &[u8]) -> Result<Self, MemberPathError> {
        if name.contains(&0) {
            return Err(MemberPathError::Nul);
        }
        if name.first() == Some(&b'/') {
            return Err(MemberPathError::Absolute);
        }
        let mut components: Vec<&[u8]> = Vec::new();
        for component in name.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    components.pop().ok_or(MemberPathError::Outside)?;
                }
                component => components.push(component),
            }
        }
        if components.iter().any(|component| component.len() > NAME_LIMIT_BYTES) {
            return Err(MemberPathError::TooLong);
        }
        let path = components.join(&b'/');
        match path.len() {
            0 => Err(MemberPathError::Root),
            1..=PATH_LIMIT_BYTES => Ok(Self(path.into())),
            _ => Err(MemberPathError::TooLong),
        }
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
    ///
    /// # Errors
    /// Fails if the joined path is longer than a path may be.
    pub fn below(&self, directory: &MemberPath) -> Result<Self, MemberPathError> {
        let path = [&*directory.0, &*self.0].join(&b'/');
        match path.len() {
            ..=PATH_LIMIT_BYTES => Ok(Self(path.into())),
            _ => Err(MemberPathError::TooLong),
        }
    }

    /// The path without its last component; `None` for a path of one component.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|&byte| byte == b'/')?;
        Some(Self(self.0[..slash].into()))
    }
}

impl std::fmt::Debug for MemberPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl std::fmt::Display for MemberPath {
    /// Writes the path for messages: cut where it is long, control characters escaped.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

/// Compares paths so that `/` is lower than any other byte. A directory comes first then, its
/// content follows without a gap, and siblings are in the order of their names.
pub(crate) fn tree_order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(rank).cmp(b.iter().map(rank))
}

/// A name for messages: control characters escaped, cut where it is long.
pub(crate) fn shown(name: &[u8]) -> String {
    let cut = &name[..name.len().min(SHOWN_BYTES)];
    let more = if cut.len() < name.len() { "…" } else { "" };
    let escaped =
        String::from_utf8_lossy(cut).chars().fold(String::new(), |mut text, character| {
            match character.is_control() {
                true => text.extend(character.escape_default()),
                false => text.push(character),
            }
            text
        });
    format!("{escaped}{more}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn parse(name: &[u8]) -> Result<Vec<u8>, MemberPathError> {
        MemberPath::parse(name).map(|path| path.as_bytes().to_vec())
    }

    #[rstest]
    #[case(b"a", b"a")]
    #[case(b"./a//b/.", b"a/b")]
    #[case(b"code/../x", b"x")]
    #[case(b"a..b/...", b"a..b/...")]
    #[case(b"dir/", b"dir")]
    #[case(b"\xff\xfe/x", b"\xff\xfe/x")]
    fn names_are_cleaned(#[case] name: &[u8], #[case] path: &[u8]) {
        assert_eq!(parse(name).unwrap(), path);
    }

    #[test]
    fn hostile_names_are_refused() {
        assert_eq!(parse(b"/etc/passwd"), Err(MemberPathError::Absolute));
        assert_eq!(parse(b"../x"), Err(MemberPathError::Outside));
        assert_eq!(parse(b"a/../../a"), Err(MemberPathError::Outside));
        assert_eq!(parse(b"a\0b"), Err(MemberPathError::Nul));
        assert_eq!(parse(b"./"), Err(MemberPathError::Root));
        assert_eq!(parse(b"a/.."), Err(MemberPathError::Root));
        assert_eq!(parse(b""), Err(MemberPathError::Root));
        assert_eq!(parse(&[b'a'; 256]), Err(MemberPathError::TooLong));
        assert_eq!(parse(&[b'a'; 255]), Ok(vec![b'a'; 255]));
        assert_eq!(parse(&b"a/".repeat(2048)), Ok(b"a/".repeat(2048)[..4095].to_vec()));
        assert_eq!(parse(&b"a/".repeat(2049)), Err(MemberPathError::TooLong));
    }

    #[test]
    fn parents_and_joins_agree() {
        let path = MemberPath::parse(b"a/b/c").unwrap();
        let parent = path.parent().unwrap();
        assert_eq!(parent.as_bytes(), b"a/b");
        assert_eq!(MemberPath::parse(b"c").unwrap().below(&parent), Ok(path.clone()));
        assert_eq!(parent.parent().unwrap().parent(), None);
        assert_eq!(path.components().collect::<Vec<_>>(), [b"a", b"b", b"c"]);
        let long = MemberPath::parse(&b"a/".repeat(2000)).unwrap();
        assert_eq!(long.below(&long), Err(MemberPathError::TooLong));
    }

    proptest! {
        #[test]
        fn a_parsed_path_is_clean_and_parses_to_itself(
            name in prop::collection::vec(prop::sample::select(b"ab./\0\xff".to_vec()), 0..24),
        ) {
            let Ok(path) = MemberPath::parse(&name) else { return Ok(()) };
            for component in path.components() {
                prop_assert!(!component.is_empty() && component != b"." && component != b"..");
                prop_assert!(!component.contains(&0));
            }
            prop_assert_eq!(MemberPath::parse(path.as_bytes()), Ok(path));
        }
    }
}
