//! What a kit is: Kitfile, families, filters, parents, and layers merged into one tree. Pure.
#![allow(unused_variables, dead_code)]

pub mod filter;
pub mod kitfile;
pub mod parents;
pub mod tree;

use bytes::Bytes;

use crate::layer::MemberPath;
use crate::oci::{BlobId, Encoding, Manifest};

pub use filter::{Filter, FilterError, Filters};
pub use kitfile::{Kitfile, KitfileError};
pub use parents::{Parents, ParentsError};
pub use tree::{Content, NodeId, NodeKind, Tree, TreeError};

/// Which kind of artifact a kit is (modelkit-spec 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A ModelKit.
    ModelKit,
    /// A ModelKit from before v0.5.0: no digests in the config, entries relative to their parent.
    LegacyModelKit,
    /// A CNCF ModelPack.
    ModelPack,
}

/// What a layer is for, in kit's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The model itself.
    Model,
    /// A part of the model.
    ModelPart,
    /// Code.
    Code,
    /// A data set.
    Dataset,
    /// Documentation.
    Docs,
    /// A prompt (a code layer with the subtype annotation, or a Kitfile prompt entry).
    Prompt,
    /// An MCP bundle.
    McpServer,
}

/// A kit's manifest and config, understood.
#[derive(Clone, Debug)]
pub struct Kit {
    /// Which kind of artifact.
    pub family: Family,
    /// The Kitfile, where there is one (a ModelPack may have none).
    pub kitfile: Option<Kitfile>,
    /// The bytes of the file `Kitfile` at the root, where `kit unpack` writes one.
    pub kitfile_yaml: Option<Bytes>,
    /// The layers that can be mounted, in manifest order.
    pub layers: Vec<KitLayer>,
    /// The reference in `model.path`, where it is one.
    pub parent: Option<String>,
    /// What was passed over: unknown layer types, `remotePath` data sets.
    pub warnings: Vec<String>,
}

/// One layer of a kit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KitLayer {
    /// The blob.
    pub blob: BlobId,
    /// How its bytes become files.
    pub encoding: Encoding,
    /// The media type as written.
    pub media_type: String,
    /// What it is for.
    pub role: Role,
    /// The `name` of its Kitfile entry.
    pub entry_name: Option<String>,
    /// The `path` of its Kitfile entry, as written.
    pub entry_path: Option<String>,
    /// Where its members go.
    pub placement: Placement,
}

/// Where the members of a layer go in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Members carry their paths, below this directory (legacy kits) or the root.
    Tar {
        /// The directory, `None` for the root.
        below: Option<MemberPath>,
    },
    /// The layer is one file.
    Raw {
        /// Its path.
        path: MemberPath,
        /// Permission bits, `& 0o777`.
        mode: u32,
        /// Seconds since 1970; 0 where the manifest has none.
        mtime_seconds: i64,
        /// The uncompressed size that the manifest claims, to be checked.
        size: Option<u64>,
    },
}

/// Why an artifact cannot be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KitError {
    /// Neither a ModelKit nor a ModelPack.
    #[error("not a ModelKit or ModelPack: {0}")]
    NotAKit(String),
    /// The config (the Kitfile as JSON) cannot be understood.
    #[error("the kit's config is malformed: {0}")]
    Kitfile(#[from] KitfileError),
    /// Config and layers disagree, or an annotation that is needed is missing or malformed.
    #[error("the kit is malformed: {0}")]
    Malformed(String),
}

impl Kit {
    /// Understands a manifest and its config blob.
    pub fn decode(manifest: &Manifest, config: &[u8]) -> Result<Self, KitError> {
        todo!()
    }
}
