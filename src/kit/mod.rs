//! A kit: its Kitfile, family, filters, parents, and its layers merged into one tree. Pure.
//!
//! ```text
//! manifest --family--> modelkit | modelpack --entries matched to layers--> Kit
//!                          '-- no digests in the config: legacy            |
//!                                       tables of contents --merge--> Tree <'
//! ```
//!
//! - [`kitfile`]: the config blob, and its YAML byte for byte.
//! - `modelkit`, `modelpack`, `legacy`, `assign`: match layers and entries.
//! - `placement`: the places of a layer's files; annotations of raw layers.
//! - `remote`: data sets that lie in another kit or in an S3 store.
//! - [`compare`]: two versions side by side.
//! - [`file_digests`]: the digests of files that `kitfs pack` writes on a layer.
//! - [`filter`], [`parents`]: choose layers, and other kits to read.
//! - [`tree`]: the merged tree.
//!
//! No I/O, no clock. Every input is hostile until it is decoded.

mod assign;
pub mod compare;
pub mod file_digests;
pub mod filter;
pub mod ignore;
pub mod kitfile;
mod legacy;
mod modelkit;
mod modelpack;
pub mod packing;
pub mod parents;
mod placement;
mod remote;
pub mod tree;

use bytes::Bytes;

use crate::layer::{MemberPath, Mtime};
use crate::oci::{ArtifactType, BlobId, Digest, Encoding, Manifest};

pub use file_digests::{FILE_DIGESTS, FileDigest, FileDigests, FileDigestsError};
pub use filter::{Filter, FilterError, Filters};
pub use kitfile::authored::{AuthoredKitfile, LayerDigests};
pub use kitfile::{GoYaml, Kitfile, KitfileError};
pub use parents::{Parents, ParentsError};
pub use remote::{RemoteData, RemoteTarget};
pub use tree::{Additions, Content, Missing, NodeId, NodeKind, Tree, TreeError};

/// The kind of an artifact (modelkit-spec 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A ModelKit.
    ModelKit,
    /// A ModelKit from before v0.5.0: no digests in the config, entries relative to their parent.
    LegacyModelKit,
    /// A CNCF ModelPack.
    ModelPack,
}

/// The role of a layer, in kit's words.
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
    /// Its kind.
    pub family: Family,
    /// The Kitfile. For a ModelPack that carries none, the one that `kit info` would show.
    pub kitfile: Kitfile,
    /// The bytes of the file `Kitfile` at the root, where `kit unpack` writes one.
    pub kitfile_yaml: Option<Bytes>,
    /// The layers that can be mounted, in manifest order.
    pub layers: Vec<KitLayer>,
    /// The reference in `model.path`, where it is one.
    pub parent: Option<String>,
    /// Data sets whose content lies elsewhere, in the Kitfile's order.
    pub remote: Vec<RemoteData>,
    /// The manifest's `org.opencontainers.image.created`; `None` without one from 1980 to 2106.
    pub created: Option<Mtime>,
    /// Warnings about things that were passed over: unknown layer types, data sets whose place is
    /// malformed.
    pub warnings: Vec<String>,
}

/// One layer of a kit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KitLayer {
    /// The blob.
    pub blob: BlobId,
    /// Whether it is a tar archive or one file, and its compression.
    pub encoding: Encoding,
    /// The media type as written.
    pub media_type: String,
    /// Its role.
    pub role: Role,
    /// The `name` of its Kitfile entry.
    pub entry_name: Option<String>,
    /// The `path` of its Kitfile entry, as written.
    pub entry_path: Option<String>,
    /// The places of its members in the tree.
    pub placement: Placement,
}

/// The places of a layer's members in the tree.
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
        /// The modification time; `None` where the manifest has none from 1980 to 2106.
        mtime: Option<Mtime>,
        /// The uncompressed size that the manifest claims, to be checked.
        size: Option<u64>,
    },
}

/// The error for an artifact that cannot be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KitError {
    /// Neither a ModelKit nor a ModelPack.
    #[error("not a ModelKit or ModelPack: {0}")]
    NotAKit(String),
    /// The config (the Kitfile as JSON) cannot be understood.
    #[error("the kit's config is malformed: {0}")]
    Kitfile(#[from] KitfileError),
    /// Config and layers disagree, or a needed annotation is missing or malformed.
    #[error("the kit is malformed: {0}")]
    Malformed(String),
}

impl Role {
    /// The role's name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::ModelPart => "model part",
            Self::Code => "code",
            Self::Dataset => "dataset",
            Self::Docs => "docs",
            Self::Prompt => "prompt",
            Self::McpServer => "MCP server",
        }
    }
}

impl KitLayer {
    /// The layer's name in messages: ``model `weights/model.bin` (sha256:0123456789ab)``.
    pub fn title(&self) -> String {
        let entry = self.entry_path.as_ref().or(self.entry_name.as_ref());
        layer_title(self.role.as_str(), entry.map(String::as_str), self.blob.digest)
    }
}

/// A layer's name in messages: its role, its Kitfile entry or path, and the first digits of its
/// digest.
fn layer_title(role: &str, entry: Option<&str>, digest: Digest) -> String {
    match entry {
        Some(entry) => format!("{role} `{}` ({})", shown(entry), digest.short()),
        None => format!("{role} layer {}", digest.short()),
    }
}

impl Kit {
    /// Understands a manifest and its config blob.
    ///
    /// # Errors
    /// Fails if the artifact is no kit, or its config and layers contradict each other. Layers of an
    /// unknown type and malformed remote data sets become warnings instead.
    pub fn decode(manifest: &Manifest, config: &[u8]) -> Result<Self, KitError> {
        let artifact = manifest.artifact_type.as_deref().and_then(ArtifactType::parse);
        let configured = ArtifactType::parse(&manifest.config.media_type);
        let types = [artifact, configured];
        if types.contains(&Some(ArtifactType::ModelKit)) {
            modelkit::decode(manifest, config)
        } else if types.contains(&Some(ArtifactType::ModelPack)) {
            modelpack::decode(manifest, config)
        } else {
            Err(KitError::NotAKit(kind_of_artifact(manifest, types)))
        }
    }
}

/// The manifest's time of creation. A text that is no time is as good as none: only dates depend on
/// it.
fn created(manifest: &Manifest) -> Option<Mtime> {
    /// OCI image-spec, annotations.md.
    const CREATED: &str = "org.opencontainers.image.created";
    manifest.annotations.get(CREATED).and_then(|text| rfc3339(text)).flatten()
}

/// The YAML encoder of the kit release that packed a kit.
fn go_yaml(manifest: &Manifest) -> GoYaml {
    let version = manifest.annotations.get("ml.kitops.modelkit.cli-version");
    GoYaml::of_kit(version.map(String::as_str))
}

/// The time in an RFC 3339 text with any zone. The inner `None` stands for one outside 1980 to
/// 2106, the outer one for any other text.
fn rfc3339(text: &str) -> Option<Option<Mtime>> {
    let time: jiff::Timestamp = text.parse().ok()?;
    // Before 1970 the nanoseconds are negative.
    let nanoseconds = u32::try_from(time.subsec_nanosecond()).ok();
    Some(nanoseconds.and_then(|nanoseconds| Mtime::new(time.as_second(), nanoseconds)))
}

fn kind_of_artifact(manifest: &Manifest, types: [Option<ArtifactType>; 2]) -> String {
    let named = manifest.artifact_type.as_ref().into_iter().chain([&manifest.config.media_type]);
    let named = named.map(|name| format!("`{}`", shown(name))).collect::<Vec<_>>().join(", ");
    let is = |wanted| types.contains(&Some(wanted));
    if is(ArtifactType::DockerModel)
        || manifest
            .layers
            .iter()
            .any(|layer| layer.media_type.starts_with("application/vnd.docker.ai."))
    {
        format!(
            "it is a model in Docker's own format ({named}); \
             `docker model package --format cncf` makes a ModelPack of it"
        )
    } else if is(ArtifactType::ContainerImage) {
        format!("it is a container image ({named})")
    } else {
        format!("it is an artifact of another type ({named})")
    }
}

/// A text from the network for messages: short, without control characters.
fn shown(text: &str) -> String {
    /// Media types and paths that a person can tell apart are shorter.
    const MOST_CHARACTERS: usize = 200;
    text.chars()
        .take(MOST_CHARACTERS)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
