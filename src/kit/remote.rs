//! Data sets whose content is not in the kit: `datasets[].remotePath` (modelkit-spec 2, 9.2).
//!
//! A `remotePath` names another ModelKit or an object of an S3 store. The ModelKit's data sets
//! belong below the entry's `path`; the object is the file `path`. Kitfiles come from the network:
//! an unusable entry is left out with a warning, and the rest of the kit is shown.

use super::kitfile::{Entry, Field, Kitfile, Section};
use super::{Filters, Role, shown};
use crate::layer::{MemberPath, MemberPathError};
use crate::oci::{ObjectLocation, Reference};

/// A data set outside the kit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteData {
    /// The `name` of its Kitfile entry.
    pub entry_name: Option<String>,
    /// The `path` of its Kitfile entry, as written.
    pub entry_path: String,
    /// Its place in the kit's tree; `None` for the root.
    pub path: Option<MemberPath>,
    /// Its source.
    pub target: RemoteTarget,
}

/// The source of a remote data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteTarget {
    /// In another ModelKit.
    Kit(Reference),
    /// In an S3 store.
    Object {
        /// The object.
        location: ObjectLocation,
        /// Its ETag when the kit was packed, without quotes.
        etag: String,
    },
}

impl RemoteData {
    /// Whether the filters take the data set. A filter must name its section. If the filter has names, one must be
    /// the data set's `name` or `path`.
    pub fn is_taken_by(&self, filters: &Filters) -> bool {
        filters.takes_entry(Role::Dataset, self.entry_name.as_deref(), Some(&self.entry_path))
    }
}

impl std::fmt::Display for RemoteTarget {
    /// Writes the reference or the object's location.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kit(reference) => reference.fmt(f),
            Self::Object { location, .. } => location.fmt(f),
        }
    }
}

/// The data sets of a Kitfile that lie outside the kit, and a warning for each unusable one.
pub(super) fn of(kitfile: &Kitfile, warnings: &mut Vec<String>) -> Vec<RemoteData> {
    let mut found = Vec::new();
    for entry in kitfile.entries().filter(|entry| is_remote(entry)) {
        match decode(entry) {
            Ok(remote) => found.push(remote),
            Err(reason) => {
                let title = shown(&entry.title());
                warnings.push(format!("{title} is left out: {reason}"));
            }
        }
    }
    found
}

/// Whether the content of an entry lies outside the kit. An entry with a layer has its content
/// there.
pub(super) fn is_remote(entry: &Entry) -> bool {
    entry.section() == Section::Datasets
        && entry.digest().is_none()
        && !entry.text(Field::RemotePath).is_empty()
}

fn decode(entry: &Entry) -> Result<RemoteData, String> {
    let remote_path = entry.text(Field::RemotePath);
    let target = match ObjectLocation::parse(remote_path) {
        Some(location) => object(location.map_err(|error| error.to_string())?, entry)?,
        None => RemoteTarget::Kit(kit(remote_path)?),
    };
    let entry_path = entry.text(Field::Path);
    let path = match MemberPath::parse(entry_path.as_bytes()) {
        Ok(path) => Some(path),
        Err(MemberPathError::Root) if matches!(target, RemoteTarget::Kit(_)) => None,
        Err(error) => return Err(format!("its path cannot be used: {error}")),
    };
    let name = Some(entry.text(Field::Name)).filter(|name| !name.is_empty());
    Ok(RemoteData {
        entry_name: name.map(str::to_owned),
        entry_path: entry_path.to_owned(),
        path,
        target,
    })
}

fn object(location: ObjectLocation, entry: &Entry) -> Result<RemoteTarget, String> {
    // kit compares the ETag without its quotes.
    let etag = entry.text(Field::RemoteHash).trim_matches('"');
    match is_etag(etag) {
        true => Ok(RemoteTarget::Object { location, etag: etag.to_owned() }),
        false if etag.is_empty() => {
            Err(format!("`{location}` has no remoteHash to tell it from another object"))
        }
        false => Err(format!("its remoteHash `{}` is not an ETag", shown(etag))),
    }
}

/// Whether a text can be sent in a header as an ETag (RFC 9110, section 8.8.3).
fn is_etag(text: &str) -> bool {
    /// Real ones have about 40.
    const LIMIT_BYTES: usize = 256;
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
    !text.is_empty() && text.len() <= LIMIT_BYTES && text.bytes().all(is_plain)
}

fn kit(remote_path: &str) -> Result<Reference, String> {
    let unknown = || {
        let remote_path = shown(remote_path);
        format!(
            "its remotePath `{remote_path}` is neither s3://BUCKET/KEY nor a ModelKit's reference"
        )
    };
    if !remote_path.contains([':', '@']) || remote_path.contains("://") {
        return Err(unknown());
    }
    Reference::parse(remote_path).map_err(|_| unknown())
}
