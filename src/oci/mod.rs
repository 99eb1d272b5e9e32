//! OCI values, valid by construction: what is parsed here needs no second look elsewhere.
//!
//! Wire structs are private to their module; one `TryFrom`/`decode` is the border between bytes
//! from the network and these types. This room does no I/O and imports no other room.

pub mod descriptor;
pub mod digest;
pub mod document;
pub mod index;
pub mod labels;
pub mod manifest;
pub mod media_type;
pub mod object;
pub mod offset;
pub mod origin;
pub mod reference;
mod text;

pub use descriptor::{BlobId, Descriptor};
pub use digest::{DiffId, Digest};
pub use document::Document;
pub use index::{ChoiceError, Index, IndexEntry};
pub use labels::{LabelError, LabelSelector, Labels};
pub use manifest::{Manifest, ManifestError};
pub use media_type::{ArtifactType, Compression, Encoding, Format, LayerContent, LayerType};
pub use object::{ObjectLocation, ObjectLocationError};
pub use offset::{BlobOffset, StreamOffset};
pub use origin::Origin;
pub use reference::{Reference, ReferenceError, Selector};
