//! The origins of kits.

use std::path::PathBuf;

use super::reference::{ReferenceError, is_hosted};
use super::{Digest, Reference, Selector};

/// The prefix of an OCI image layout, as skopeo and podman write it too.
const LAYOUT_PREFIX: &str = "oci:";
/// Separates a layout's folder from its selector. Needed if the folder's own name looks like one with a selector.
const FOLDER_END: &str = "/:";

/// The origin of a kit: the text that a user types for `REF`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// `HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`: a registry.
    Registry(Reference),
    /// `oci:FOLDER[:TAG|@DIGEST|:HOST/REPOSITORY:TAG]`: an OCI image layout; without a selector
    /// its only manifest.
    OciLayout {
        /// The folder that holds `oci-layout` and `index.json`.
        folder: PathBuf,
        /// The repository that the folder's index must name beside the tag, where kits of several
        /// repositories lie in one folder (`ghcr.io/org/model`).
        repository: Option<String>,
        /// The tag or digest of the manifest; `None` for the folder's only one.
        selector: Option<Selector>,
    },
    /// `localhost/REPOSITORY[:TAG|@DIGEST]` or a name without a host: kit's own local storage.
    KitStorage(Reference),
}

impl Origin {
    /// Parses what a user types.
    ///
    /// After `oci:`, the selector is a whole reference with a host and a tag or digest, as in skopeo. Otherwise the
    /// text after the last `:` or `@` is the selector, if it is a valid tag or digest. If a folder's own name looks
    /// like a selector, write a `/` behind the folder: `oci:FOLDER/:TAG`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(ReferenceError::new(text, scheme_advice(scheme, rest)));
        }
        match text.strip_prefix(LAYOUT_PREFIX) {
            Some(layout) => {
                split_layout(layout).map_err(|reason| ReferenceError::new(text, reason))
            }
            None => Ok(Reference::parse(text)?.into()),
        }
    }

    /// The tag or digest of the manifest; `None` for the only one of a layout.
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            Self::Registry(reference) | Self::KitStorage(reference) => Some(reference.selector()),
            Self::OciLayout { selector, .. } => selector.as_ref(),
        }
    }

    /// The same repository or folder with another selector.
    pub fn with_selector(&self, selector: Selector) -> Self {
        match self {
            Self::Registry(reference) => Self::Registry(reference.with_selector(selector)),
            Self::KitStorage(reference) => Self::KitStorage(reference.with_selector(selector)),
            Self::OciLayout { folder, repository, .. } => Self::OciLayout {
                folder: folder.clone(),
                // A digest needs no repository.
                repository: repository.clone().filter(|_| matches!(selector, Selector::Tag(_))),
                selector: Some(selector),
            },
        }
    }
}

impl From<Reference> for Origin {
    /// The place where kit looks for a reference: a registry or its own storage, never a folder.
    fn from(reference: Reference) -> Self {
        match reference.is_local() {
            true => Self::KitStorage(reference),
            false => Self::Registry(reference),
        }
    }
}

fn scheme_advice(scheme: &str, rest: &str) -> String {
    match scheme {
        "docker" => format!("leave `docker://` away: `{rest}`"),
        "oci" => format!("write `{rest}` for a registry, or `oci:{rest}` for a folder"),
        "http" => format!("leave `http://` away: `{rest}`, with --plain-http"),
        "https" => format!("leave `https://` away: `{rest}`"),
        _ => "expected HOST/REPOSITORY:TAG, oci:FOLDER or localhost/REPOSITORY:TAG".to_owned(),
    }
}

/// Parses `FOLDER[:TAG|@DIGEST|:HOST/REPOSITORY:TAG]` or `FOLDER/:NAME`.
fn split_layout(layout: &str) -> Result<Origin, String> {
    if let Some((folder, name)) = layout.rsplit_once(FOLDER_END)
        && let Some(named) = named(folder, name)
    {
        return named;
    }
    let colons = layout.match_indices(':');
    let mut splits = colons.map(|(at, _)| (&layout[..at], &layout[at + 1..]));
    if let Some((folder, name)) = splits.find(|(_, name)| is_hosted(name))
        && let Some(named) = named(folder, name)
    {
        return named;
    }
    if let Some((folder, digest)) = layout.rsplit_once('@')
        && digest.starts_with("sha256:")
        && !digest.contains('/')
    {
        // A mistyped digest is an error, not a strange folder with a tag.
        let digest = Digest::parse(digest).map_err(|error| error.to_string())?;
        return layout_of(folder, None, Some(Selector::Digest(digest)));
    }
    if let Some((folder, tag)) = layout.rsplit_once(':')
        && let Ok(tag) = Selector::tag(tag)
    {
        return layout_of(folder, None, Some(tag));
    }
    layout_of(layout, None, None)
}

/// A layout whose manifest is named by a tag or a whole reference; `None` where `name` is neither.
fn named(folder: &str, name: &str) -> Option<Result<Origin, String>> {
    if let Ok(tag) = Selector::tag(name) {
        return Some(layout_of(folder, None, Some(tag)));
    }
    let reference = Reference::parse(name).ok().filter(|_| name.contains([':', '@']))?;
    Some(match reference.selector() {
        Selector::Digest(_) => layout_of(folder, None, Some(reference.selector().clone())),
        Selector::Tag(_) => {
            let repository = match reference.is_local() && !name.starts_with("localhost/") {
                true => reference.repository().to_owned(),
                false => format!("{}/{}", reference.registry(), reference.repository()),
            };
            layout_of(folder, Some(repository), Some(reference.selector().clone()))
        }
    })
}

fn layout_of(
    folder: &str,
    repository: Option<String>,
    selector: Option<Selector>,
) -> Result<Origin, String> {
    match folder {
        "" => Err("the folder is missing: expected oci:FOLDER or oci:FOLDER:TAG".to_owned()),
        _ if folder.contains('\0') => Err("a folder's name cannot hold a NUL byte".to_owned()),
        folder => Ok(Origin::OciLayout { folder: PathBuf::from(folder), repository, selector }),
    }
}

impl std::fmt::Display for Origin {
    /// Writes text that parses back to the same origin (where the folder's name is UTF-8).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (folder, repository, selector) = match self {
            Self::Registry(reference) | Self::KitStorage(reference) => return reference.fmt(f),
            Self::OciLayout { folder, repository, selector } => (folder, repository, selector),
        };
        let repository = repository.as_ref().map(|name| format!(":{name}")).unwrap_or_default();
        let selector = selector.as_ref().map(ToString::to_string).unwrap_or_default();
        let folder = folder.display().to_string();
        let short = format!("{folder}{repository}{selector}");
        match split_layout(&short).as_ref() == Ok(self) {
            true => write!(f, "{LAYOUT_PREFIX}{short}"),
            false => write!(f, "{LAYOUT_PREFIX}{folder}/{repository}{selector}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Folder, repository and selector.
    type Layout = (String, Option<String>, Option<String>);

    fn whole_layout(text: &str) -> Layout {
        match Origin::parse(text).unwrap() {
            Origin::OciLayout { folder, repository, selector } => {
                let folder = folder.to_str().unwrap().to_owned();
                (folder, repository, selector.map(|selector| selector.to_string()))
            }
            other => panic!("{other:?}"),
        }
    }

    fn layout(text: &str) -> (String, Option<String>) {
        let (folder, repository, selector) = whole_layout(text);
        assert_eq!(repository, None, "{text}");
        (folder, selector)
    }

    #[test]
    fn layouts_have_a_folder_and_perhaps_a_selector() {
        let digest = format!("oci:/srv/a:b@{DIGEST}");
        assert_eq!(layout("oci:/srv/kits/a"), ("/srv/kits/a".into(), None));
        assert_eq!(layout("oci:/srv/kits/a:v1"), ("/srv/kits/a".into(), Some(":v1".into())));
        assert_eq!(layout("oci:a:b:c"), ("a:b".into(), Some(":c".into())));
        assert_eq!(layout("oci:/srv/a:b/c"), ("/srv/a:b/c".into(), None));
        assert_eq!(layout("oci:/srv/a@home"), ("/srv/a@home".into(), None));
        assert_eq!(layout(&digest), ("/srv/a:b".into(), Some(format!("@{DIGEST}"))));
    }

    #[test]
    fn a_whole_reference_names_a_manifest_of_a_layout() {
        let of = |folder: &str, repository: &str, tag: &str| -> Layout {
            (folder.to_owned(), Some(repository.to_owned()), Some(format!(":{tag}")))
        };
        assert_eq!(
            whole_layout("oci:/srv/a:ghcr.io/org/x:v1"),
            of("/srv/a", "ghcr.io/org/x", "v1")
        );
        assert_eq!(whole_layout("oci:a:b:ghcr.io/x:v1"), of("a:b", "ghcr.io/x", "v1"));
        assert_eq!(whole_layout("oci:a:1.2.3.4:5000/x:v1"), of("a", "1.2.3.4:5000/x", "v1"));
        assert_eq!(whole_layout("oci:a:localhost/x:v1"), of("a", "localhost/x", "v1"));
        assert_eq!(whole_layout("oci:a/:org/x:v1"), of("a", "org/x", "v1"));
        assert_eq!(
            whole_layout("oci:/srv/a:org/x:v1"),
            ("/srv/a:org/x".into(), None, Some(":v1".into()))
        );
        assert_eq!(layout("oci:/srv/a:b.c/:v1"), ("/srv/a:b.c".into(), Some(":v1".into())));
        let digest = format!("oci:/srv/a:ghcr.io/x@{DIGEST}");
        assert_eq!(layout(&digest), ("/srv/a".into(), Some(format!("@{DIGEST}"))));
    }

    #[test]
    fn another_selector_keeps_the_place() {
        let digest = Selector::Digest(Digest::parse(DIGEST).unwrap());
        let tag = Selector::tag("v2").unwrap();
        for (text, by_tag, by_digest) in [
            ("ghcr.io/a/b:v1", "ghcr.io/a/b:v2", format!("ghcr.io/a/b@{DIGEST}")),
            ("a/b", "localhost/a/b:v2", format!("localhost/a/b@{DIGEST}")),
            ("oci:/s/a", "oci:/s/a:v2", format!("oci:/s/a@{DIGEST}")),
            ("oci:/s/a:b.c/d:v1", "oci:/s/a:b.c/d:v2", format!("oci:/s/a@{DIGEST}")),
        ] {
            let origin = Origin::parse(text).unwrap();
            assert_eq!(origin.with_selector(tag.clone()).to_string(), by_tag);
            assert_eq!(origin.with_selector(digest.clone()).to_string(), by_digest);
        }
    }

    #[test]
    fn registries_and_kits_storage_are_told_apart() {
        assert!(matches!(Origin::parse("ghcr.io/a/b:c"), Ok(Origin::Registry(_))));
        assert!(matches!(Origin::parse("localhost:5000/b"), Ok(Origin::Registry(_))));
        assert!(matches!(Origin::parse("localhost/b:c"), Ok(Origin::KitStorage(_))));
        assert!(matches!(Origin::parse("a/b"), Ok(Origin::KitStorage(_))));
    }

    #[rstest]
    #[case("docker://ghcr.io/a", "leave `docker://` away: `ghcr.io/a`")]
    #[case("https://ghcr.io/a", "leave `https://` away")]
    #[case("http://host/a", "--plain-http")]
    #[case("oci://ghcr.io/a", "`oci:ghcr.io/a` for a folder")]
    #[case("s3://bucket/key", "expected HOST/REPOSITORY:TAG")]
    #[case("oci:", "folder is missing")]
    #[case("oci::v1", "folder is missing")]
    #[case("oci:/srv/a@sha256:123", "64 lower-case")]
    fn habits_and_faults_get_advice(#[case] text: &str, #[case] words: &str) {
        let error = Origin::parse(text).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }

    proptest! {
        #[test]
        fn display_parses_back(
            text in "(oci:)?[a-z0-9./:@-]{1,14}(:[a-z.]{1,3}|/:?|:[a-z]\\.[a-z]/[a-z]{1,2})?(:[a-z]{1,2})?",
            with_digest in any::<bool>(),
        ) {
            let text = if with_digest { format!("{text}@{DIGEST}") } else { text };
            if let Ok(origin) = Origin::parse(&text) {
                prop_assert_eq!(Origin::parse(&origin.to_string()), Ok(origin));
            }
        }
    }
}
