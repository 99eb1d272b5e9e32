//! Credentials for registries: kit's own file first, then Docker's config with its helpers
//! (modelkit-spec 5.3).
#![allow(unused_variables, dead_code)]

use std::path::PathBuf;

use super::SourceError;

/// What a registry host is told.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing is known of this host.
    Anonymous,
    /// A user and a password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// An identity token (OAuth2 refresh token), exchanged at the token endpoint.
    IdentityToken(String),
    /// A bearer token to send as it is (`registrytoken`).
    RegistryToken(String),
}

/// Files in Docker's config format; the first that knows a host wins.
#[derive(Clone, Debug, Default)]
pub struct CredentialStore {
    files: Vec<PathBuf>,
}

impl CredentialStore {
    /// A store over these files; missing ones are passed over.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files }
    }

    /// What is known of `registry` (`HOST[:PORT]`). Read anew each time, so that a later login
    /// counts; a credential helper gets a time limit. Blocking work happens off the runtime.
    pub async fn find(&self, registry: &str) -> Result<Credential, SourceError> {
        todo!()
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic { .. }",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
        })
    }
}
