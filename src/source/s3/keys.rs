//! Access keys, which no message and no log prints.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// An access key of an S3 store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// The access key's identifier, which is no secret.
    pub id: String,
    /// The secret key, which signs.
    pub secret: Secret,
    /// The session token of temporary keys.
    pub token: Option<Secret>,
}

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for sending and signing only.
    pub(in crate::source) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Keys {
    /// An access key, and the token of its session where it is a temporary one.
    pub fn new(id: &str, secret: &str, token: Option<&str>) -> Self {
        Self { id: id.to_owned(), secret: Secret::new(secret), token: token.map(Secret::new) }
    }
}
