//! The errors of sources.

use std::sync::Arc;
use std::time::Duration;

use crate::oci::Digest;

/// The failure of a source. Variants are decisions for the caller; messages name the host or folder,
/// the repository and what to do next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// No such repository, manifest, tag or blob.
    #[error("{what} was not found in {place}: {hint}")]
    NotFound {
        /// The manifest, tag or blob.
        what: String,
        /// The repository.
        place: String,
        /// The advice.
        hint: String,
    },
    /// Credentials are missing, wrong or not sufficient.
    #[error("{place} refuses access ({detail}): {hint}")]
    Unauthorized {
        /// Host and repository.
        place: String,
        /// The status and the registry's words.
        detail: String,
        /// The advice.
        hint: String,
    },
    /// The host asks for fewer requests.
    #[error("{place} gets too many requests (429){}", pause(*.retry_after))]
    Throttled {
        /// The host.
        place: String,
        /// The wait that the host asks for.
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
    /// The host does not prove its identity in TLS. This is not [`SourceError::Unavailable`], after which a kit is
    /// opened as it was last resolved. An attacker between the two would then look like a network that is down.
    #[error("{place} cannot be trusted: {detail}")]
    Untrusted {
        /// The host.
        place: String,
        /// The fault of its certificate, and the advice.
        detail: String,
    },
    /// The answer breaks the protocol: a wrong Content-Range, a short or endless body, or a blob file with another
    /// size than in its descriptor.
    #[error("bad content from {place}: {detail}")]
    Protocol {
        /// The host or folder.
        place: String,
        /// The fault of the answer.
        detail: String,
    },
    /// The content has another digest.
    #[error("{what} from {place} {}", mismatch(*.expected, *.got))]
    DigestMismatch {
        /// The manifest or blob.
        what: String,
        /// The repository or host.
        place: String,
        /// The requested digest.
        expected: Digest,
        /// The digest of the received bytes.
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
        /// The ETag of the present object, where the store sends it.
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
        /// The fault, and the advice.
        detail: String,
    },
}

impl SourceError {
    /// The word for it in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::Untrusted { .. } => "untrusted",
            Self::Protocol { .. } => "protocol",
            Self::DigestMismatch { .. } => "digest_mismatch",
            Self::Changed { .. } => "changed",
            Self::Io { .. } => "io",
            Self::Configuration { .. } => "configuration",
        }
    }
}

fn but(etag: &Option<String>) -> String {
    etag.as_ref().map(|etag| format!(", but `{etag}`")).unwrap_or_default()
}

/// The message for content with another digest.
fn mismatch(expected: Digest, got: Digest) -> String {
    format!(
        "has digest {} instead of {}: it was changed where it is kept or on the way",
        got.short(),
        expected.short()
    )
}

/// The message with the time for another try.
fn pause(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(pause) => format!(" and wants none for {} s: try again then", pause.as_secs()),
        None => ": try again later".to_owned(),
    }
}

impl SourceError {
    /// The message behind `REFERENCE: `. It leaves out a repository or host that the reference names.
    pub fn told_of(&self, reference: &str) -> String {
        let is_named = |place: &String| {
            let rest = reference.strip_prefix(place.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@', ' ']))
        };
        match self {
            Self::NotFound { what, place, hint } if is_named(place) => {
                format!("{what} was not found: {hint}")
            }
            Self::Unauthorized { place, detail, hint } if is_named(place) => {
                format!("access is refused ({detail}): {hint}")
            }
            Self::Throttled { place, retry_after } if is_named(place) => {
                format!("the registry gets too many requests (429){}", pause(*retry_after))
            }
            Self::Unavailable { place, detail } if is_named(place) => {
                format!("the registry is unavailable: {detail}")
            }
            Self::Untrusted { place, detail } if is_named(place) => {
                format!("the registry cannot be trusted: {detail}")
            }
            Self::Protocol { place, detail } if is_named(place) => {
                format!("bad content: {detail}")
            }
            Self::DigestMismatch { what, place, expected, got } if is_named(place) => {
                format!("{what} {}", mismatch(*expected, *got))
            }
            other => other.to_string(),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_the_reference_names_is_named_once() {
        let at = |place: &str| SourceError::Unavailable { place: place.into(), detail: "d".into() };
        let reference = "r.example:5000/org/model:v1 (a parent of r.example/x:v1)";
        for place in ["r.example:5000/org/model", "r.example:5000", "r.example:5000/org/model:v1"] {
            assert_eq!(at(place).told_of(reference), "the registry is unavailable: d", "{place}");
        }
        for place in ["r.example:5000/org/mode", "r.example:5000/org/model (at http://m)", "s3://b"]
        {
            assert_eq!(at(place).told_of(reference), format!("{place} is unavailable: d"));
        }
    }
}
