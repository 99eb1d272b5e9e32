//! Media types of manifests and layers (modelkit-spec 1.1, 1.2 and 6).
//!
//! ```text
//! application/vnd.kitops.modelkit.{model|modelpart|code|dataset|docs|mcpb}.v1.{tar|raw}[+{gzip|zstd}]
//! application/vnd.{cncf|cnai}.model.{weight|weight.config|code|dataset|doc}.v1.{tar|raw}[+{gzip|zstd}]
//! ```
//!
//! The whole text must match: a type with a word more or less is another type. An unknown type is `None`; the
//! caller passes it over or refuses it.

/// The form of a layer's content before compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A tar archive of files and directories.
    Tar,
    /// The bytes of one regular file.
    Raw,
    /// The bytes of one regular file that is no blob: an object of an S3 store. In the place of its digest is the
    /// digest of its name, which says nothing about the bytes.
    Object,
}

/// The compression of a layer's content in the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Stored as it is: blob offsets are stream offsets.
    None,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
}

/// How a blob holds the bytes of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Encoding {
    /// The layout of the uncompressed stream.
    pub format: Format,
    /// The compression of the blob.
    pub compression: Compression,
}

impl Encoding {
    /// One file, stored as it is.
    pub const RAW: Self = Self { format: Format::Raw, compression: Compression::None };

    /// One file outside of any registry, stored as it is.
    pub const OBJECT: Self = Self { format: Format::Object, compression: Compression::None };

    /// Whether the digest of a layer tells if its bytes are right.
    pub fn is_verifiable(self) -> bool {
        self.format != Format::Object
    }

    /// Whether the stream differs from the blob, so that only a pass over the whole blob finds the files.
    pub fn is_compressed(self) -> bool {
        self.compression != Compression::None
    }

    /// Parses what follows the version in a layer's media type: `tar`, `raw+zstd`, …
    fn parse(text: &str) -> Option<Self> {
        let (format, compression) = match text.split_once('+') {
            None => (text, Compression::None),
            Some((format, "gzip")) => (format, Compression::Gzip),
            Some((format, "zstd")) => (format, Compression::Zstd),
            Some(_) => return None,
        };
        let format = match format {
            "tar" => Format::Tar,
            "raw" => Format::Raw,
            _ => return None,
        };
        Some(Self { format, compression })
    }
}

/// The content of a layer, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerContent {
    /// The model (`model`; `weight` in a ModelPack, which may have several).
    Model,
    /// A part of the model (`modelpart`; `weight.config`).
    ModelPart,
    /// Code, or a prompt: those have no type of their own.
    Code,
    /// A data set.
    Dataset,
    /// Documentation (`docs`; `doc`).
    Docs,
    /// An MCP bundle.
    McpBundle,
}

/// The meaning of a layer's media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerType {
    /// Its content.
    pub content: LayerContent,
    /// How the blob holds its files.
    pub encoding: Encoding,
}

impl LayerType {
    /// Parses a layer's media type; `None` when it is not one of a ModelKit or ModelPack.
    pub fn parse(media_type: &str) -> Option<Self> {
        let name = media_type.strip_prefix("application/vnd.")?;
        if let Some(name) = name.strip_prefix("kitops.modelkit.") {
            return Self::parse_modelkit(name);
        }
        let name = name.strip_prefix("cncf.model.").or_else(|| name.strip_prefix("cnai.model."))?;
        Self::parse_modelpack(name)
    }

    fn parse_modelkit(name: &str) -> Option<Self> {
        let (content, encoding) = name.split_once(".v1.")?;
        let content = match content {
            "model" => LayerContent::Model,
            "modelpart" => LayerContent::ModelPart,
            "code" => LayerContent::Code,
            "dataset" => LayerContent::Dataset,
            "docs" => LayerContent::Docs,
            "mcpb" => LayerContent::McpBundle,
            _ => return None,
        };
        Some(Self { content, encoding: Encoding::parse(encoding)? })
    }

    fn parse_modelpack(name: &str) -> Option<Self> {
        let (content, encoding) = name.split_once(".v1.")?;
        let content = match content {
            "weight" => LayerContent::Model,
            "weight.config" => LayerContent::ModelPart,
            "code" => LayerContent::Code,
            "dataset" => LayerContent::Dataset,
            "doc" => LayerContent::Docs,
            _ => return None,
        };
        // Early Docker tools named the file format of a weight where others say `raw`.
        let encoding = match encoding {
            "gguf" | "safetensors" if content == LayerContent::Model => Encoding::RAW,
            encoding => Encoding::parse(encoding)?,
        };
        Some(Self { content, encoding })
    }
}

/// The kind of an artifact, by the manifest's `artifactType` or the media type of its config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArtifactType {
    /// A KitOps ModelKit.
    ModelKit,
    /// An index of ModelKits with labels (kit 1.17).
    ModelKitIndex,
    /// A CNCF ModelPack (`cnai` in its first releases).
    ModelPack,
    /// The OCI placeholder for "no config" (image-spec, manifest.md, "Guidance for an Empty Descriptor").
    Empty,
    /// Docker Model Runner's own format, which is neither.
    DockerModel,
    /// A container image.
    ContainerImage,
}

impl ArtifactType {
    /// Parses an `artifactType` or the media type of a config; `None` when it is unknown.
    pub fn parse(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.kitops.modelkit.manifest.v1+json"
            | "application/vnd.kitops.modelkit.config.v1+json" => Some(Self::ModelKit),
            "application/vnd.kitops.modelkit.index.v1+json" => Some(Self::ModelKitIndex),
            "application/vnd.cncf.model.manifest.v1+json"
            | "application/vnd.cncf.model.config.v1+json"
            | "application/vnd.cnai.model.manifest.v1+json"
            | "application/vnd.cnai.model.config.v1+json" => Some(Self::ModelPack),
            "application/vnd.oci.empty.v1+json" => Some(Self::Empty),
            "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json" => Some(Self::ContainerImage),
            other if other.starts_with("application/vnd.docker.ai.") => Some(Self::DockerModel),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENCODINGS: [(&str, Format, Compression); 6] = [
        ("tar", Format::Tar, Compression::None),
        ("tar+gzip", Format::Tar, Compression::Gzip),
        ("tar+zstd", Format::Tar, Compression::Zstd),
        ("raw", Format::Raw, Compression::None),
        ("raw+gzip", Format::Raw, Compression::Gzip),
        ("raw+zstd", Format::Raw, Compression::Zstd),
    ];

    #[test]
    fn every_layer_type_of_both_families_is_known() {
        let names = [
            ("kitops.modelkit.model", LayerContent::Model),
            ("kitops.modelkit.modelpart", LayerContent::ModelPart),
            ("kitops.modelkit.code", LayerContent::Code),
            ("kitops.modelkit.dataset", LayerContent::Dataset),
            ("kitops.modelkit.docs", LayerContent::Docs),
            ("kitops.modelkit.mcpb", LayerContent::McpBundle),
            ("cncf.model.weight", LayerContent::Model),
            ("cncf.model.weight.config", LayerContent::ModelPart),
            ("cncf.model.code", LayerContent::Code),
            ("cncf.model.dataset", LayerContent::Dataset),
            ("cncf.model.doc", LayerContent::Docs),
            ("cnai.model.weight", LayerContent::Model),
        ];
        for (name, content) in names {
            for (suffix, format, compression) in ENCODINGS {
                let encoding = Encoding { format, compression };
                assert_eq!(
                    LayerType::parse(&format!("application/vnd.{name}.v1.{suffix}")),
                    Some(LayerType { content, encoding }),
                    "{name} {suffix}"
                );
            }
        }
    }

    #[test]
    fn a_word_more_or_less_is_another_type() {
        for media_type in [
            "",
            "application/vnd.kitops.modelkit.model.v1.tar+gzip ",
            "application/vnd.kitops.modelkit.model.v1.tar+gzip-fastest",
            "application/vnd.kitops.modelkit.model.v1.tar+",
            "application/vnd.kitops.modelkit.model.v2.tar",
            "application/vnd.kitops.modelkit.datasets.v1.tar",
            "application/vnd.kitops.modelkit.config.v1+json",
            "application/vnd.cncf.model.docs.v1.raw",
            "application/vnd.cncf.model.code.v1.gguf",
            "xapplication/vnd.cncf.model.doc.v1.raw",
            "application/vnd.docker.ai.gguf.v3",
        ] {
            assert_eq!(LayerType::parse(media_type), None, "{media_type}");
        }
    }

    #[test]
    fn an_early_docker_weight_is_raw() {
        for format in ["gguf", "safetensors"] {
            let parsed =
                LayerType::parse(&format!("application/vnd.cncf.model.weight.v1.{format}"));
            let raw = LayerType { content: LayerContent::Model, encoding: Encoding::RAW };
            assert_eq!(parsed, Some(raw));
        }
    }

    #[test]
    fn artifact_types_are_told_apart() {
        for (text, expected) in [
            ("application/vnd.kitops.modelkit.config.v1+json", Some(ArtifactType::ModelKit)),
            ("application/vnd.cnai.model.config.v1+json", Some(ArtifactType::ModelPack)),
            ("application/vnd.oci.empty.v1+json", Some(ArtifactType::Empty)),
            ("application/vnd.docker.ai.model.config.v0.1+json", Some(ArtifactType::DockerModel)),
            ("application/vnd.oci.image.config.v1+json", Some(ArtifactType::ContainerImage)),
            ("application/vnd.cncf.helm.config.v1+json", None),
        ] {
            assert_eq!(ArtifactType::parse(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "(application/vnd\\.)?(kitops\\.modelkit|cncf\\.model)?.{0,40}") {
            let _ = LayerType::parse(&text);
            let _ = ArtifactType::parse(&text);
        }
    }
}
