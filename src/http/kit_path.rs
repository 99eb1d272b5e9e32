//! `REF/PATH` in a URL, taken apart. Pure.
//!
//! ```text
//! ghcr.io/org/model:v1/src/a%20b      the path begins behind the tag or digest
//! oci:/srv/kits/article:v1/src        so in a folder
//! ghcr.io%2Forg%2Fmodel:v1/src        a first part with %2F is all of REF
//! ghcr.io/org/model/src               no tag: the mounted kit of that repository
//! ```
//!
//! Only a `:` or `@` that is not percent-encoded ends REF, so a file may have `%3A` in its name.

use super::problem::Problem;
use crate::fs::percent_decoded;
use crate::oci::{Origin, Reference};

/// The prefix of a layout folder.
const LAYOUT_PREFIX: &str = "oci:";

/// A kit and a path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KitPath {
    /// The reference, as a user types it.
    pub(super) reference: String,
    /// The path from the kit's root.
    pub(super) path: Vec<u8>,
}

/// The text after parsing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Split {
    /// The reference has a tag or digest, or is a whole part.
    Clear(KitPath),
    /// The text does not show where the reference ends.
    Open(Open),
}

/// `REF/PATH` without a tag. The reference is a number of its first parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    parts: Vec<Vec<u8>>,
}

impl Split {
    /// Takes the path of a URL apart.
    ///
    /// # Errors
    /// `usage` for malformed percent-encoding, and for a malformed reference.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let raw: Vec<&str> = text.split('/').collect();
        let parts = raw.iter().map(|part| {
            let malformed = || Problem::usage(format!("malformed percent-encoding in `{part}`"));
            percent_decoded(part).ok_or_else(malformed)
        });
        let parts: Vec<Vec<u8>> = parts.collect::<Result<_, _>>()?;
        match last_part(&raw, &parts) {
            Some(last) => Ok(Self::Clear(kit_path(&parts, last)?)),
            None => Ok(Self::Open(Open { parts })),
        }
    }
}

impl Open {
    /// Finds the kit among the mounted references. The longest repository with which the text begins counts.
    ///
    /// # Errors
    /// `usage` where no mounted kit fits, or several do.
    pub(super) fn resolve(&self, mounted: &[String]) -> Result<KitPath, Problem> {
        let mut found: Option<(usize, &String)> = None;
        let mut others = Vec::new();
        for reference in mounted {
            let Some(length) = self.repository_parts(reference) else { continue };
            match found {
                Some((longest, _)) if longest > length => {}
                Some((longest, first)) if longest == length && first != reference => {
                    others.push(reference)
                }
                Some((longest, _)) if longest == length => {}
                _ => {
                    others.clear();
                    found = Some((length, reference));
                }
            }
        }
        match (found, &others[..]) {
            (Some((length, reference)), []) => {
                Ok(KitPath { reference: reference.clone(), path: self.parts[length..].join(&b'/') })
            }
            (Some((_, first)), others) => {
                let all: Vec<_> = std::iter::once(first)
                    .chain(others.iter().copied())
                    .map(String::as_str)
                    .collect();
                let message = format!(
                    "several versions are mounted ({}): name one with its tag",
                    all.join(", ")
                );
                Err(Problem::usage(message))
            }
            (None, _) => {
                let text = String::from_utf8_lossy(&self.parts.join(&b'/')).into_owned();
                let message = format!(
                    "`{text}` has no tag or digest, and no kit of such a repository is mounted: write REPOSITORY:TAG/PATH"
                );
                Err(Problem::usage(message))
            }
        }
    }

    /// The number of parts that name the repository of `reference`, if the text begins with it.
    fn repository_parts(&self, reference: &str) -> Option<usize> {
        let repository = match Origin::parse(reference).ok()? {
            Origin::Registry(reference) | Origin::KitStorage(reference) => {
                format!("{}/{}", reference.registry(), reference.repository())
            }
            Origin::OciLayout { .. } => return None,
        };
        let names: Vec<&[u8]> = repository.split('/').map(str::as_bytes).collect();
        let begins = self.parts.len() >= names.len()
            && self.parts.iter().zip(&names).all(|(part, name)| part == name);
        begins.then_some(names.len())
    }
}

/// Parses a text that is a reference and nothing else.
///
/// # Errors
/// As [`Split::parse`].
pub(super) fn reference(text: &str) -> Result<String, Problem> {
    let decoded = percent_decoded(text).and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded =
        decoded.ok_or_else(|| Problem::usage(format!("malformed percent-encoding in `{text}`")))?;
    checked(decoded.trim_end_matches('/'))
}

/// The number of the last part of the reference.
fn last_part(raw: &[&str], parts: &[Vec<u8>]) -> Option<usize> {
    let ends = |part: &&str| part.contains([':', '@']);
    // A slash inside of a part was encoded.
    if parts[0].contains(&b'/') {
        return Some(0);
    }
    let first = raw[0];
    let is_all = match first.strip_prefix(LAYOUT_PREFIX) {
        Some(folder) => ends(&folder),
        None => ends(&first) && !is_host_and_port(first),
    };
    if is_all {
        return Some(0);
    }
    raw.iter().skip(1).position(ends).map(|at| at + 1)
}

fn is_host_and_port(part: &str) -> bool {
    let port = part.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn kit_path(parts: &[Vec<u8>], last: usize) -> Result<KitPath, Problem> {
    let reference = String::from_utf8(parts[..=last].join(&b'/'));
    let reference =
        reference.map_err(|_| Problem::usage("the reference of the kit is not UTF-8"))?;
    Ok(KitPath { reference: checked(&reference)?, path: parts[last + 1..].join(&b'/') })
}

/// A decoded reference, if it is one that the daemon can open.
///
/// # Errors
/// `usage` for text that is no reference, and for the folder of a layout that is relative.
pub(super) fn checked(text: &str) -> Result<String, Problem> {
    match Origin::parse(text).map_err(|error| Problem::usage(error.to_string()))? {
        Origin::OciLayout { folder, .. } if !folder.is_absolute() => Err(Problem::usage(format!(
            "`{text}`: write the folder as an absolute path, oci:/FOLDER"
        ))),
        _ => Ok(text.to_owned()),
    }
}

/// The reference in its canonical form, with the parts that a user may leave out.
pub(super) fn canonical(reference: &str) -> String {
    match reference.starts_with(LAYOUT_PREFIX) {
        true => reference.to_owned(),
        false => {
            Reference::parse(reference).map_or_else(|_| reference.to_owned(), |it| it.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn clear(text: &str) -> (String, String) {
        match Split::parse(text).unwrap() {
            Split::Clear(KitPath { reference, path }) => {
                (reference, String::from_utf8(path).unwrap())
            }
            open @ Split::Open(_) => panic!("{text}: {open:?}"),
        }
    }

    #[rstest]
    #[case("ghcr.io/org/model:v1/src/a%20b", "ghcr.io/org/model:v1", "src/a b")]
    #[case("ghcr.io/org/model:v1", "ghcr.io/org/model:v1", "")]
    #[case("ghcr.io/org/model:v1/", "ghcr.io/org/model:v1", "")]
    #[case("127.0.0.1:5000/model:v1/a/b:c", "127.0.0.1:5000/model:v1", "a/b:c")]
    #[case("localhost:5000/model:v1/a", "localhost:5000/model:v1", "a")]
    #[case("model:v1/a", "model:v1", "a")]
    #[case("oci:/srv/kits/article:v1/src", "oci:/srv/kits/article:v1", "src")]
    #[case("127.0.0.1:5000%2Forg%2Fmodel:v1/src/x", "127.0.0.1:5000/org/model:v1", "src/x")]
    #[case("127.0.0.1%3A5000%2Forg%2Fmodel%3Av1/src/x", "127.0.0.1:5000/org/model:v1", "src/x")]
    #[case("ghcr.io/org/model:v1/a%3Ab/..%2F..%2Fc", "ghcr.io/org/model:v1", "a:b/../../c")]
    fn the_path_begins_behind_the_reference(
        #[case] text: &str,
        #[case] reference: &str,
        #[case] path: &str,
    ) {
        assert_eq!(clear(text), (reference.to_owned(), path.to_owned()));
    }

    #[test]
    fn a_digest_ends_the_reference() {
        let text = format!("ghcr.io/model@{DIGEST}/x");
        assert_eq!(clear(&text), (format!("ghcr.io/model@{DIGEST}"), "x".to_owned()));
    }

    #[test]
    fn without_a_tag_the_mounted_kit_is_meant() {
        let mounted =
            |references: &[&str]| references.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let open = |text: &str| match Split::parse(text).unwrap() {
            Split::Open(open) => open,
            clear @ Split::Clear(_) => panic!("{clear:?}"),
        };
        let both = mounted(&["h.io/org/model:v1", "h.io/org:v2", "oci:/srv/x:v1"]);
        let found = open("h.io/org/model/a/b").resolve(&both).unwrap();
        assert_eq!((found.reference.as_str(), &found.path[..]), ("h.io/org/model:v1", &b"a/b"[..]));
        let found = open("h.io/org/modell/a").resolve(&both).unwrap();
        assert_eq!((found.reference.as_str(), &found.path[..]), ("h.io/org:v2", &b"modell/a"[..]));
        assert_eq!(open("h.io/org").resolve(&both).unwrap().path, b"");
        let twice = mounted(&["h.io/a:v1", "h.io/a:v2", "h.io/a:v1"]);
        let problem = open("h.io/a/x").resolve(&twice).unwrap_err();
        assert!(problem.message.contains("h.io/a:v1, h.io/a:v2)"), "{problem:?}");
        assert!(open("h.io/b/x").resolve(&twice).unwrap_err().message.contains("no tag or digest"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "%zz/a:v1",
            "ghcr.io/UPPER:v1/x",
            "oci:x:v1/a",
            "oci:/a%00:v1/x",
            "ghcr.io/a%FF:v1/x",
            "h/x@sha256:12/a",
        ] {
            assert!(Split::parse(text).is_err(), "{text}");
        }
        assert!(reference("oci:kits:v1").unwrap_err().message.contains("absolute"));
        assert_eq!(reference("ghcr.io%2Fa%3Av1").unwrap(), "ghcr.io/a:v1");
    }

    proptest! {
        #[test]
        fn any_encoded_path_comes_back(
            reference in prop::sample::select(vec!["ghcr.io/org/model:v1", "127.0.0.1:5000/x:a", "oci:/srv/kits:v1"]),
            path in prop::collection::vec(any::<u8>(), 0..40),
            is_one_part in any::<bool>(),
        ) {
            let encode = |bytes: &[u8]| bytes.iter().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let start = if is_one_part { encode(reference.as_bytes()) } else { reference.to_owned() };
            let split = Split::parse(&format!("{start}/{}", encode(&path))).unwrap();
            prop_assert_eq!(split, Split::Clear(KitPath { reference: reference.to_owned(), path }));
        }

        #[test]
        fn any_text_is_taken_apart_or_refused(text in "[a-z:@/%0-9.]{1,40}") {
            if let Ok(Split::Open(open)) = Split::parse(&text) {
                let _ = open.resolve(&["h.io/a:v1".to_owned()]);
            }
        }
    }
}
