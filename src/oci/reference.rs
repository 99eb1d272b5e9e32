//! References to kits, in kit's own grammar (modelkit-spec 5.1).
#![allow(unused_variables, dead_code)]

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

/// Why a text is not a reference; says what is wrong with which part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a reference to a kit: {reason}")]
pub struct ReferenceError {
    /// The text.
    pub text: String,
    /// What is wrong with it and what is expected.
    pub reason: String,
}

impl Reference {
    /// Parses a reference: `[HOST[:PORT]/]REPOSITORY[:TAG|@DIGEST]`. Without a host it is
    /// `localhost`, kit's local storage; without a selector the tag `latest`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        todo!()
    }

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

    /// Whether it names kit's local storage (`localhost/…`) rather than a registry.
    pub fn is_local(&self) -> bool {
        self.registry == "localhost"
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}
