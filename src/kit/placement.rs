//! The places of a layer's files, and the annotations about the file of a raw layer (modelkit-spec
//! 1.3, 3.3).

use serde::Deserialize;

use super::assign::Known;
use super::kitfile::{Entry, Field};
use super::{KitError, Placement, rfc3339, shown};
use crate::layer::{MemberPath, MemberPathError, Mtime};
use crate::oci::Descriptor;

/// The largest metadata annotation that is read, in bytes. A real one holds a file name and six
/// numbers.
const MOST_METADATA_BYTES: usize = 64 * 1024;

/// The permission bits of a file without metadata.
const DEFAULT_MODE: u32 = 0o644;

/// The path in a layer's annotation, as written. modctl wrote `cnai` in 2025.
pub(super) fn annotated_path(layer: &Descriptor) -> Option<&str> {
    let path = ["org.cncf.model.filepath", "org.cnai.model.filepath"]
        .iter()
        .find_map(|key| layer.annotations.get(*key))?;
    Some(path.as_str()).filter(|path| !path.is_empty())
}

/// The place of a raw layer's one file. The path is the annotation's, else the entry's.
///
/// # Errors
/// Fails if neither names a path inside the kit, or the metadata contradicts the layer.
pub(super) fn raw(
    layer: &Known<'_>,
    entry: Option<&Entry>,
    warnings: &mut Vec<String>,
) -> Result<Placement, KitError> {
    let title = layer.title(entry);
    let malformed = |why: String| KitError::Malformed(format!("the {title} {why}"));
    let of_entry = entry.map(|entry| entry.text(Field::Path)).filter(|path| !path.is_empty());
    let Some(name) = annotated_path(layer.descriptor).or(of_entry) else {
        return Err(malformed(format!(
            "of type `{}` is one file, and neither the annotation `org.cncf.model.filepath` nor the \
             Kitfile says where it goes",
            shown(&layer.descriptor.media_type)
        )));
    };
    let path = MemberPath::parse(name.as_bytes()).map_err(|error| {
        malformed(format!("has the path `{}`, which cannot be used: {error}", shown(name)))
    })?;
    let metadata = Metadata::of(layer.descriptor, &title, warnings);
    if !matches!(metadata.typeflag, None | Some(0 | 48)) {
        return Err(malformed(
            "is stored as one file, and its metadata says that it is something else".to_owned(),
        ));
    }
    let size = metadata.size(&title, warnings);
    let stored = layer.descriptor.size;
    if !layer.kind.encoding.is_compressed()
        && let Some(size) = size.filter(|size| *size != stored)
    {
        return Err(malformed(format!("has {stored} bytes, and its metadata says {size}")));
    }
    let mtime = metadata.mtime(&title, warnings);
    Ok(Placement::Raw { path, mode: metadata.mode(), mtime, size })
}

impl Placement {
    /// The same place, seen from a directory above it.
    ///
    /// # Errors
    /// Fails if the path becomes longer than a path may be.
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

/// The annotation `org.cncf.model.file.metadata+json`, without the name, uid and gid that do not
/// matter here.
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
    /// Reads the annotation. A malformed annotation is a warning only: the file can be shown without it.
    fn of(layer: &Descriptor, title: &str, warnings: &mut Vec<String>) -> Self {
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
        warnings.push(format!("{title}: its file metadata is ignored: {reason}"));
        Self::default()
    }

    /// Go writes 0 for "not known".
    fn mode(&self) -> u32 {
        match self.mode.map(|mode| mode & 0o777) {
            None | Some(0) => DEFAULT_MODE,
            Some(mode) => mode,
        }
    }

    fn size(&self, title: &str, warnings: &mut Vec<String>) -> Option<u64> {
        let size = u64::try_from(self.size?);
        if size.is_err() {
            warnings.push(format!("{title}: the negative size in its file metadata is ignored"));
        }
        size.ok()
    }

    /// The modification time, RFC 3339 with any zone and up to nanoseconds.
    fn mtime(&self, title: &str, warnings: &mut Vec<String>) -> Option<Mtime> {
        let text = self.mtime.as_ref()?;
        rfc3339(text).unwrap_or_else(|| {
            let text = shown(text);
            warnings
                .push(format!("{title}: `{text}` in its metadata is no RFC 3339 time: ignored"));
            None
        })
    }
}
