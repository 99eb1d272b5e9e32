//! The errors of sources.

use std::sync::Arc;
use std::time::Duration;

use crate::oci::Digest;

/// Why a source has no bytes. Variants are decisions for the caller; messages name the host or folder,
/// the repository and what to do next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// No such repository, manifest, tag or blob.
    #[error("{what} not found in {place}: {hint}")]
    NotFound {
        /// The manifest, tag or blob.
        what: String,
        /// The repository.
        place: String,
        /// What to do next.
        hint: String,
    },
    /// Credentials are missing, wrong or not sufficient.
    #[error("{place} refuses access ({detail}): {hint}")]
    Unauthorized {
        /// Host and repository.
        place: String,
        /// The status and the registry's words.
        detail: String,
        /// What to do next.
        hint: String,
    },
    /// The host asks for fewer requests.
    #[error("{place} gets too many requests (429){}", pause(*.retry_after))]
    Throttled {
        /// The host.
        place: String,
        /// How long the host asks to wait.
        retry_after: Option<Duration>,
    },
    /// Not reachable, or failing: no such host, no connection, time-out, 5xx, a stream that broke off.
    #[error("{place} is unavailable: {detail}")]
    Unavailable {
        /// The host or folder.
        place: String,
        /// The reason.
        detail: String,
    },
    /// The host does not prove its identity in TLS. This is not [`SourceError::Unavailable`]: then a kit
    /// is taken from the cache as it was last resolved, and an attacker on the way would pass for a
    /// network that is down.
    #[error("{place} cannot be trusted: {detail}")]
    Untrusted {
        /// The host.
        place: String,
        /// What is wrong with its certificate and what to do.
        detail: String,
    },
    /// The answer breaks the protocol: a wrong Content-Range, a short or endless body, a blob file
    /// of another size than its descriptor says.
    #[error("bad content from {place}: {detail}")]
    Protocol {
        /// The host or folder.
        place: String,
        /// What is wrong with the answer.
        detail: String,
    },
    /// The content has another digest.
    #[error(
        "{what} from {place} has digest {got} instead of {expected}: it was changed where it is kept or on the way"
    )]
    DigestMismatch {
        /// The manifest or blob.
        what: String,
        /// From where.
        place: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of the bytes that came.
        got: Digest,
    },
    /// An object of an S3 store was replaced by another one since the kit was packed.
    #[error(
        "{place} was replaced since the kit was packed: its ETag is no longer `{expected}`{}",
        but(got)
    )]
    Changed {
        /// The object.
        place: String,
        /// The ETag that the kit names.
        expected: String,
        /// The ETag of the object that is there, where the store says it.
        got: Option<String>,
    },
    /// A local file could not be read.
    #[error("cannot read {path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        error: Arc<std::io::Error>,
    },
    /// Settings that cannot work: a certificate that does not parse, a malformed hosts.toml.
    #[error("{what}: {detail}")]
    Configuration {
        /// The file or option.
        what: String,
        /// What is wrong and what to do.
        detail: String,
    },
}

fn but(etag: &Option<String>) -> String {
    etag.as_ref().map(|etag| format!(", but `{etag}`")).unwrap_or_default()
}

/// When to try again, in words.
fn pause(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(pause) => format!(" and wants none for {} s: try again then", pause.as_secs()),
        None => ": try again later".to_owned(),
    }
}

impl SourceError {
    /// Whether the same request may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled { .. } | Self::Unavailable { .. } => true,
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Untrusted { .. }
            | Self::Protocol { .. }
            | Self::DigestMismatch { .. }
            | Self::Changed { .. }
            | Self::Io { .. }
            | Self::Configuration { .. } => false,
        }
    }
}
