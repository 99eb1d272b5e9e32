//! References to kits, in kit's own grammar (modelkit-spec 5.1).

use super::Digest;

/// Which manifest of a repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// A tag, which a registry may move.
    Tag(String),
    /// A manifest's digest, which names the same bytes for ever.
    Digest(Digest),
}

/// A kit in a registry: host, repository and which manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    selector: Selector,
}

impl Reference {
    /// The registry's host, with `:port` where one was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's name.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which manifest of the repository is meant.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }
}
