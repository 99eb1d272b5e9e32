//! Parses `REF:DIR`, a kit and its mountpoint.
//!
//! References have colons, and directories may have some. The directory begins after
//! - the last colon before `/`, `./` or `../`, as in `ghcr.io/org/model:v1:/models`;
//! - else the last colon, as in `ghcr.io/org/model:v1:models`. In `ghcr.io/org/model:v1` that is a tag, so a
//!   directory is missing.
//!
//! The colon of `oci:` never counts. A directory with such a colon (`/a:/b`) cannot be given.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::error::CliError;

/// How a reference to an OCI layout folder begins.
const OCI: &[u8] = b"oci:";

/// A reference, not yet parsed, and a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KitAt {
    pub reference: String,
    pub directory: PathBuf,
}

/// Parses `REF:DIR`.
pub(super) fn parse(text: &OsStr) -> Result<KitAt, CliError> {
    let unusable = |why: &str| {
        CliError::usage(format!(
            "`{}` is not a kit with a directory: {why}; write REF:DIR, such as \
             ghcr.io/org/model:v1:/models",
            text.display()
        ))
    };
    let Some((reference, directory)) = split(text.as_bytes()) else {
        return Err(unusable("it has no directory"));
    };
    // `ghcr.io/org/model:v1` lacks the directory, and `v1` is none.
    let name = text.as_bytes().strip_suffix(directory).unwrap_or_default();
    let name = &name[name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1)..];
    let is_tag = !text.as_bytes().starts_with(OCI)
        && !is_path(directory)
        && !directory.contains(&b'/')
        && name.iter().filter(|&&byte| byte == b':').count() < 2
        && !name.contains(&b'@');
    if is_tag {
        return Err(unusable(&format!(
            "`{}` may be the tag or the directory; write ./{0} if it is the directory",
            String::from_utf8_lossy(directory)
        )));
    }
    let Ok(reference) = std::str::from_utf8(reference) else {
        return Err(unusable("the reference is not UTF-8"));
    };
    if reference.is_empty() {
        return Err(unusable("the reference is empty"));
    }
    if directory.is_empty() {
        return Err(unusable("the directory is empty"));
    }
    let directory = OsString::from(OsStr::from_bytes(directory)).into();
    Ok(KitAt { reference: reference.to_owned(), directory })
}

/// The texts before and after the colon that separates them.
fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = if text.starts_with(OCI) { OCI.len() } else { 0 };
    let colons = || (start..text.len()).rev().filter(|&at| text[at] == b':');
    let begins_path = |at: &usize| is_path(&text[at + 1..]);
    let colon = colons().find(begins_path).or_else(|| colons().next())?;
    Some((&text[..colon], &text[colon + 1..]))
}

/// Whether a text can only be a path.
fn is_path(text: &[u8]) -> bool {
    [&b"/"[..], b"./", b"../"].iter().any(|path| text.starts_with(path))
        || text == b"."
        || text == b".."
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Option<(String, String)> {
        let KitAt { reference, directory } = parse(OsStr::new(text)).ok()?;
        Some((reference, directory.into_os_string().into_string().unwrap()))
    }

    #[test]
    fn the_directory_begins_after_the_colon_before_a_path_or_the_last_one() {
        for (reference, directory) in [
            ("ghcr.io/org/model:v1", "/models"),
            ("ghcr.io/org/model:v1", "models"),
            ("ghcr.io/org/model:v1", "models/a"),
            ("ghcr.io/org/model", "./models"),
            ("localhost:5000/model:v1", "../a:b"),
            ("localhost:5000/model", "."),
            ("ghcr.io/org/model@sha256:00", "/models"),
            ("oci:/kits/a:v1", "/models"),
            ("oci:/kits/a", "models"),
            ("oci:../kits/a:ghcr.io/org/model:v1", "./models"),
        ] {
            let text = format!("{reference}:{directory}");
            let expected = Some((reference.to_owned(), directory.to_owned()));
            assert_eq!(parsed(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_kit_without_a_directory_is_an_error() {
        for text in [
            "",
            "model",
            "model:",
            ":/models",
            ":",
            "oci:",
            "oci:/kits/a",
            "localhost:5000/a:v1",
            "a:v1",
        ] {
            assert!(parse(OsStr::new(text)).is_err(), "{text}");
        }
        assert!(parse(OsStr::from_bytes(b"\xff:/models")).is_err());
        let directory = OsStr::from_bytes(b"model:/\xff");
        assert_eq!(parse(directory).unwrap().directory.as_os_str().as_bytes(), b"/\xff");
    }

    fn references() -> impl Strategy<Value = String> {
        prop_oneof![
            "([a-z0-9.]{1,9}(:[0-9]{1,5})?/)?[a-z0-9/_-]{1,12}(:[A-Za-z0-9_.-]{1,8})?(@sha256:[0-9a-f]{4})?",
            "oci:/?[a-z0-9./_-]{1,12}(:[A-Za-z0-9_-][A-Za-z0-9_.-]{0,8})?",
        ]
        // A tag never begins with a dot, and a path is no tag.
        .prop_filter("a reference", |text| {
            let rest = text.strip_prefix("oci:").unwrap_or(text);
            ![":/", ":./", ":../"].iter().any(|path| rest.contains(path))
        })
    }

    proptest! {
        #[test]
        fn a_directory_that_is_a_path_is_found_behind_every_reference(
            reference in references(),
            directory in "(/|\\./|\\.\\./)[^\0]{0,20}",
        ) {
            prop_assume!(![":/", ":./", ":../"].iter().any(|path| directory.contains(path)));
            prop_assume!(!directory.ends_with(":.") && !directory.ends_with(":.."));
            let text = format!("{reference}:{directory}");
            prop_assert_eq!(parsed(&text), Some((reference, directory)));
        }

        #[test]
        fn a_name_is_found_behind_every_reference(
            reference in references(),
            directory in "[^:/\0][^:\0]{0,20}",
        ) {
            // Behind a reference without a tag, a word may be the tag.
            let name = reference.rsplit('/').next().unwrap();
            prop_assume!(reference.starts_with("oci:") || name.contains([':', '@']));
            let text = format!("{reference}:{directory}");
            prop_assert_eq!(parsed(&text), Some((reference, directory)));
        }

        #[test]
        fn nothing_is_lost(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some((reference, directory)) = split(&text) {
                prop_assert_eq!([reference, b":", directory].concat(), text);
            } else {
                let rest = text.strip_prefix(OCI).unwrap_or(&text);
                prop_assert!(!rest.contains(&b':'));
            }
        }
    }
}
