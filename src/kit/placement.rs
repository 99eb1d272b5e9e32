//! Where a layer's files go, and what the annotations of a raw layer say of its file
//! (modelkit-spec 1.3, 3.3).

use serde::Deserialize;

use super::assign::Known;
use super::kitfile::{Entry, Field};
use super::{KitError, Placement, rfc3339, shown};
use crate::layer::{MemberPath, MemberPathError, Mtime};
use crate::oci::Descriptor;

/// The largest metadata annotation that is read, in bytes: it holds one file name and six numbers.
const MOST_METADATA_BYTES: usize = 64 * 1024;

/// Permission bits of a file whose producer says nothing.
const DEFAULT_MODE: u32 = 0o644;

/// The path that a layer's annotation names, as written. `cnai` is what modctl wrote in 2025.
pub(super) fn annotated_path(layer: &Descriptor) -> Option<&str> {
    let path = ["org.cncf.model.filepath", "org.cnai.model.filepath"]
        .iter()
        .find_map(|key| layer.annotations.get(*key))?;
    Some(path.as_str()).filter(|path| !path.is_empty())
}

/// Where the one file of a raw layer goes. The path is the annotation's, else the entry's.
///
/// # Errors
/// When neither names a path inside the kit, or the metadata contradicts the layer.
pub(super) fn raw(
    layer: &Known<'_>,
    entry: Option<&Entry>,
    warnings: &mut Vec<String>,
) -> Result<Placement, KitError> {
    let digest = layer.descriptor.digest;
    let of_entry = entry.map(|entry| entry.text(Field::Path)).filter(|path| !path.is_empty());
    let Some(name) = annotated_path(layer.descriptor).or(of_entry) else {
        return Err(KitError::Malformed(format!(
            "layer {digest} of type `{}` is one file, and neither the annotation \
             `org.cncf.model.filepath` nor the Kitfile says where it goes",
            shown(&layer.descriptor.media_type)
        )));
    };
    let path = MemberPath::parse(name.as_bytes()).map_err(|error| {
        let name = shown(name);
        KitError::Malformed(format!("the path `{name}` of layer {digest} cannot be used: {error}"))
    })?;
    let metadata = Metadata::of(layer.descriptor, warnings);
    if !matches!(metadata.typeflag, None | Some(0 | 48)) {
        return Err(KitError::Malformed(format!(
            "layer {digest} is stored as one file, and its metadata says that it is something else"
        )));
    }
    let size = metadata.size(layer.descriptor, warnings);
    let stored = layer.descriptor.size;
    if !layer.kind.encoding.is_compressed() && size.is_some_and(|size| size != stored) {
        return Err(KitError::Malformed(format!(
            "layer {digest} has {stored} bytes, and its metadata says {}",
            size.unwrap_or_default()
        )));
    }
    let mtime = metadata.mtime(layer.descriptor, warnings);
    Ok(Placement::Raw { path, mode: metadata.mode(), mtime, size })
}

impl Placement {
    /// The same place, seen from a directory above it.
    ///
    /// # Errors
    /// When the path becomes longer than a path may be.
    pub fn below(self, directory: &MemberPath) -> Result<Self, MemberPathError> {
        Ok(match self {
            Self::Tar { below: None } => Self::Tar { below: Some(directory.clone()) },
            Self::Tar { below: Some(path) } => Self::Tar { below: Some(path.below(directory)?) },
            Self::Raw { path, mode, mtime, size } => {
                Self::Raw { path: path.below(directory)?, mode, mtime, size }
            }
        })
    }
}

/// The annotation `org.cncf.model.file.metadata+json`; name, uid and gid do not matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    mode: Option<u32>,
    size: Option<i64>,
    mtime: Option<String>,
    /// 0 from modctl and docker, 48 (`'0'`, a regular file) from kit and ramalama.
    typeflag: Option<u8>,
}

impl Metadata {
    /// What the annotation says; nothing, with a warning, when it cannot be read: the file can
    /// be shown without.
    fn of(layer: &Descriptor, warnings: &mut Vec<String>) -> Self {
        let keys = ["org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json"];
        let Some(json) = keys.iter().find_map(|key| layer.annotations.get(*key)) else {
            return Self::default();
        };
        let reason = if json.len() > MOST_METADATA_BYTES {
            format!("it has more than {MOST_METADATA_BYTES} bytes")
        } else {
            match serde_json::from_str::<Option<Self>>(json) {
                Ok(metadata) => return metadata.unwrap_or_default(),
                Err(error) => error.to_string(),
            }
        };
        warnings.push(format!("layer {}: its file metadata is ignored: {reason}", layer.digest));
        Self::default()
    }

    /// Go writes 0 for "not known".
    fn mode(&self) -> u32 {
        match self.mode.map(|mode| mode & 0o777) {
            None | Some(0) => DEFAULT_MODE,
            Some(mode) => mode,
        }
    }

    fn size(&self, layer: &Descriptor, warnings: &mut Vec<String>) -> Option<u64> {
        let size = u64::try_from(self.size?);
        if size.is_err() {
            let digest = layer.digest;
            warnings
                .push(format!("layer {digest}: the negative size in its file metadata is ignored"));
        }
        size.ok()
    }

    /// The modification time, RFC 3339 with any zone and up to nanoseconds.
    fn mtime(&self, layer: &Descriptor, warnings: &mut Vec<String>) -> Option<Mtime> {
        let text = self.mtime.as_ref()?;
        rfc3339(text).unwrap_or_else(|| {
            let (digest, text) = (layer.digest.short(), shown(text));
            warnings.push(format!("layer {digest}: `{text}` is no RFC 3339 time, and ignored"));
            None
        })
    }
}
