//! The names below a browse mount. Pure: the grammar decides which names may be kits, without a request.
//!
//! ```text
//! /                                 the hosts
//! /ghcr.io                          a host
//! /ghcr.io/org/model                a folder: a repository, or a part of the names of some
//! /ghcr.io/org/model/:v1            a tag in the folder of its repository, a link to ../model:v1
//! /ghcr.io/org/model/@sha256:HEX    a digest there, a link to ../model@sha256:HEX
//! /ghcr.io/org/model:v1             a kit
//! /ghcr.io/org/model@sha256:HEX     a kit
//! ```
//!
//! A repository may lie below another one (`org/model`, `org/model/large`). Links to tags and digests begin with
//! `:` or `@`, which no name of a repository has. So a folder never has two entries of one name.

use std::collections::BTreeSet;

use crate::oci::{Origin, Reference, Selector};

/// The host of kit's own storage. It is on this machine, so it is always allowed.
pub(super) const LOCAL: &str = "localhost";

/// The hosts that a browse mount reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(BTreeSet<String>);

/// A path below a browse mount that the grammar permits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The mount itself.
    Root,
    /// `HOST[/PART…]`.
    Folder(String),
    /// `HOST/REPOSITORY/:TAG` or `HOST/REPOSITORY/@DIGEST`.
    Link {
        /// The folder of the repository.
        folder: String,
        /// `:TAG` or `@DIGEST`.
        name: String,
        /// The kit that the link leads to.
        reference: Reference,
    },
    /// `HOST/REPOSITORY:TAG` or `HOST/REPOSITORY@DIGEST`.
    Kit {
        /// The path, as it was named.
        path: String,
        /// The kit.
        reference: Reference,
    },
}

impl Hosts {
    /// These hosts, and kit's storage. Leaves out texts that are no host of a registry.
    pub fn new(hosts: impl IntoIterator<Item = String>) -> Self {
        let hosts = hosts.into_iter().filter(|host| is_host(host));
        Self(hosts.chain([LOCAL.to_owned()]).collect())
    }

    /// Whether the mount reaches a host.
    pub fn has(&self, host: &str) -> bool {
        self.0.contains(host)
    }

    /// The hosts, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// Whether a text can be the host of a reference: `HOST[:PORT]` with a `.` or `:`, or `localhost`.
pub fn is_host(text: &str) -> bool {
    let reference = Reference::parse(&format!("{text}/a:b"));
    !text.contains('/') && reference.is_ok_and(|reference| reference.registry() == text)
}

impl Place {
    /// The entry `name` of a place; `None` where the grammar refuses the name, or its host is not allowed.
    pub fn child(&self, name: &[u8], hosts: &Hosts) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        if name.contains('/') {
            return None;
        }
        match self {
            Self::Root => hosts.has(name).then(|| Self::Folder(name.to_owned())),
            Self::Folder(folder) => Self::in_folder(folder, name),
            Self::Link { .. } | Self::Kit { .. } => None,
        }
    }

    fn in_folder(folder: &str, name: &str) -> Option<Self> {
        let path = format!("{folder}/{name}");
        let is_below_host = folder.contains('/');
        if name.starts_with([':', '@']) {
            let reference = named(&format!("{folder}{name}")).filter(|_| is_below_host)?;
            return Some(Self::Link {
                folder: folder.to_owned(),
                name: name.to_owned(),
                reference,
            });
        }
        if name.contains([':', '@']) {
            return Some(Self::Kit { reference: named(&path)?, path });
        }
        // With a tag, the path of a repository is a reference.
        named(&format!("{path}:a")).map(|_| Self::Folder(path))
    }

    /// The place with a path below the mount, as [`Self::path`] gives it.
    pub fn parse(path: &str, hosts: &Hosts) -> Option<Self> {
        let names = path.split('/').filter(|_| !path.is_empty());
        names.into_iter().try_fold(Self::Root, |place, name| place.child(name.as_bytes(), hosts))
    }

    /// The path below the mount; empty for the mount itself.
    pub fn path(&self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Folder(path) | Self::Kit { path, .. } => path.clone(),
            Self::Link { folder, name, .. } => format!("{folder}/{name}"),
        }
    }

    /// The place above; the mount itself is its own parent.
    pub fn parent(&self) -> Self {
        let folder = match self {
            Self::Root => return Self::Root,
            Self::Link { folder, .. } => folder,
            Self::Folder(path) | Self::Kit { path, .. } => match path.rsplit_once('/') {
                Some((folder, _)) => folder,
                None => return Self::Root,
            },
        };
        Self::Folder(folder.to_owned())
    }

    /// The repository that a folder may belong to, as the kit with the tag `latest`.
    pub fn repository(&self) -> Option<Origin> {
        match self {
            Self::Folder(path) => named(&format!("{path}:latest")).map(Origin::from),
            Self::Root | Self::Link { .. } | Self::Kit { .. } => None,
        }
    }
}

/// The target of a link: the path from the folder of its repository.
pub fn link_target(folder: &str, name: &str) -> String {
    let component = folder.rsplit_once('/').map_or(folder, |(_, component)| component);
    format!("../{component}{name}")
}

/// The path of the folder of a reference's repository.
pub fn repository_path(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// Parses a reference with a host and a selector; `None` for any other text.
fn named(text: &str) -> Option<Reference> {
    let (host, rest) = text.split_once('/')?;
    let reference = Reference::parse(text).ok()?;
    // The parser cuts off a comma or a second selector.
    let is_whole = reference.registry() == host && rest.starts_with(reference.repository());
    is_whole.then_some(reference)
}

/// Whether a kit is named by its digest, so that the name never means another kit.
pub fn is_pinned(reference: &Reference) -> bool {
    matches!(reference.selector(), Selector::Digest(_))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn hosts() -> Hosts {
        Hosts::new(
            ["ghcr.io", "registry:5000", "[::1]:5000", "no host", "a/b.c", ""].map(str::to_owned),
        )
    }

    #[test]
    fn only_hosts_are_hosts() {
        let hosts = hosts();
        let names: Vec<_> = hosts.iter().collect();
        assert_eq!(names, ["[::1]:5000", "ghcr.io", "localhost", "registry:5000"]);
    }

    #[test]
    fn paths_are_places_by_their_grammar() {
        let pinned = format!("ghcr.io/org/model@sha256:{HEX}");
        for path in [
            "",
            "ghcr.io",
            "ghcr.io/org",
            "ghcr.io/org/model",
            "ghcr.io/org/model:v1",
            "registry:5000/a:b",
            "[::1]:5000/a:b",
            "localhost/article:1.0",
            "ghcr.io/org/model/:v1",
            &pinned,
        ] {
            let place = Place::parse(path, &hosts()).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(place.path(), path);
        }
        let digest = format!("@sha256:{HEX}");
        let link = Place::parse(&format!("ghcr.io/org/model/{digest}"), &hosts()).unwrap();
        let Place::Link { folder, name, reference } = link else { panic!("a link") };
        assert_eq!(link_target(&folder, &name), format!("../model{digest}"));
        assert_eq!(reference.to_string(), pinned);
    }

    #[test]
    fn names_that_cannot_be_references_are_nothing() {
        for path in [
            ".Trash",
            ".git",
            "autorun.inf",
            "docker.io",
            "GHCR.IO",
            "ghcr.io/.git",
            "ghcr.io/.hidden",
            "ghcr.io/.Trash-1000",
            "ghcr.io/Model",
            "ghcr.io/:v1",
            "ghcr.io/@sha256:00",
            "ghcr.io/a b",
            "ghcr.io/org/model:",
            "ghcr.io/org/model:a b",
            "ghcr.io/org/model@",
            "ghcr.io/org/model@sha256:12",
            "ghcr.io/org/model:v1,v2",
            "ghcr.io/org/model:v1/README.md",
            "ghcr.io/org/model/:v1/README.md",
            "ghcr.io//org",
            "ghcr.io/..",
            "ghcr.io/org/model:..",
            "ghcr.io/model:-a",
            "ghcr.io/org/desktop.INI",
        ] {
            assert_eq!(Place::parse(path, &hosts()), None, "{path}");
        }
        let long = "a".repeat(250);
        assert_eq!(Place::parse(&format!("ghcr.io/{long}"), &hosts()), None);
        assert_eq!(Place::Root.child(b"\xff.io", &hosts()), None);
    }

    proptest! {
        /// A name is a kit if and only if the whole path is a reference with an allowed host.
        #[test]
        fn every_name_is_nothing_or_leads_back_to_its_path(
            folder in "(ghcr\\.io|localhost|evil\\.org)(/[a-z0-9.]{1,5}){0,2}", name in "\\PC{0,12}|[a-z]{1,4}[:@][a-zA-Z0-9.:_-]{0,9}",
        ) {
            let Some(parent) = Place::parse(&folder, &hosts()) else { return Ok(()) };
            prop_assert!(!folder.starts_with("evil"));
            let path = format!("{folder}/{name}");
            let place = parent.child(name.as_bytes(), &hosts());
            if let Some(place) = &place {
                prop_assert_eq!(&place.path(), &path);
                prop_assert_eq!(place.parent(), parent);
                prop_assert_eq!(Place::parse(&path, &hosts()), Some(place.clone()));
            }
            if let Some(Place::Kit { reference, .. }) = &place {
                prop_assert_eq!(Some(reference.clone()), Reference::parse(&path).ok());
                prop_assert!(hosts().has(reference.registry()));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_a_place(name: Vec<u8>) {
            let folder = Place::Folder("ghcr.io/org".to_owned());
            for parent in [Place::Root, folder] {
                if let Some(place) = parent.child(&name, &hosts()) {
                    prop_assert!(place.path().as_bytes().ends_with(&name));
                }
            }
        }
    }
}
