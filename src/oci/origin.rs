//! Where a kit is read from.

use std::path::PathBuf;

use super::reference::ReferenceError;
use super::{Digest, Reference, Selector};

/// What marks an OCI image layout, as skopeo and podman write it too.
const LAYOUT_PREFIX: &str = "oci:";

/// Where a kit is read from: what a user types where the commands say `REF`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// `HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`: a registry.
    Registry(Reference),
    /// `oci:FOLDER[:TAG|@DIGEST]`: an OCI image layout; without a selector its only manifest.
    OciLayout {
        /// The folder that holds `oci-layout` and `index.json`.
        folder: PathBuf,
        /// Which manifest, where the folder has several.
        selector: Option<Selector>,
    },
    /// `localhost/REPOSITORY[:TAG|@DIGEST]` or a name without a host: kit's own local storage.
    KitStorage(Reference),
}

impl Origin {
    /// Parses what a user types.
    ///
    /// Behind `oci:`, the selector is what follows the last `:` or `@`, if that is a valid tag or
    /// digest; a folder whose own name ends like one is written with a `/` behind it.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(ReferenceError::new(text, scheme_advice(scheme, rest)));
        }
        if let Some(layout) = text.strip_prefix(LAYOUT_PREFIX) {
            let (folder, selector) =
                split_layout(layout).map_err(|reason| ReferenceError::new(text, reason))?;
            return Ok(Self::OciLayout { folder: PathBuf::from(folder), selector });
        }
        Ok(Reference::parse(text)?.into())
    }

    /// Which manifest is meant; `None` for the only one of a layout.
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            Self::Registry(reference) | Self::KitStorage(reference) => Some(reference.selector()),
            Self::OciLayout { selector, .. } => selector.as_ref(),
        }
    }
}

impl From<Reference> for Origin {
    /// Where kit looks for a reference: a registry or its own storage, never a folder.
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

/// Splits `FOLDER[:TAG|@DIGEST]`.
fn split_layout(layout: &str) -> Result<(&str, Option<Selector>), String> {
    let (folder, selector) = if let Some((folder, digest)) = layout.rsplit_once('@')
        && digest.starts_with("sha256:")
        && !digest.contains('/')
    {
        // A mistyped digest is an error, not a strange folder with a tag.
        let digest = Digest::parse(digest).map_err(|error| error.to_string())?;
        (folder, Some(Selector::Digest(digest)))
    } else if let Some((folder, tag)) = layout.rsplit_once(':')
        && let Ok(tag) = Selector::tag(tag)
    {
        (folder, Some(tag))
    } else {
        (layout, None)
    };
    match folder {
        "" => Err("the folder is missing: expected oci:FOLDER or oci:FOLDER:TAG".to_owned()),
        _ if folder.contains('\0') => Err("a folder's name cannot hold a NUL byte".to_owned()),
        folder => Ok((folder, selector)),
    }
}

impl std::fmt::Display for Origin {
    /// Writes text that parses back to the same origin (where the folder's name is UTF-8).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) | Self::KitStorage(reference) => reference.fmt(f),
            Self::OciLayout { folder, selector: Some(selector) } => {
                write!(f, "{LAYOUT_PREFIX}{}{selector}", folder.display())
            }
            Self::OciLayout { folder, selector: None } => {
                let folder = folder.display().to_string();
                let looks_selected = !matches!(split_layout(&folder), Ok((_, None)));
                let close = if looks_selected { "/" } else { "" };
                write!(f, "{LAYOUT_PREFIX}{folder}{close}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn layout(text: &str) -> (String, Option<String>) {
        match Origin::parse(text).unwrap() {
            Origin::OciLayout { folder, selector } => {
                (folder.to_str().unwrap().to_owned(), selector.map(|selector| selector.to_string()))
            }
            other => panic!("{other:?}"),
        }
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
            text in "(oci:)?[a-z0-9./:@-]{1,14}(:[a-z.]{1,3}|/)?", with_digest in any::<bool>(),
        ) {
            let text = if with_digest { format!("{text}@{DIGEST}") } else { text };
            if let Ok(origin) = Origin::parse(&text) {
                prop_assert_eq!(Origin::parse(&origin.to_string()), Ok(origin));
            }
        }
    }
}
