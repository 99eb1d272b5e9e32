//! Descriptions of kits and repositories, without reading a layer: `kitfs info`, `kitfs list`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{KitRequest, NetworkOptions};
use crate::control::{NoEvent, Operation};
use crate::oci::Origin;

/// Describes a kit or an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InfoRequest {
    /// The kit. Only its reference, labels and network count.
    pub kit: KitRequest,
    /// Give the Kitfile as a list of facts too.
    #[serde(default)]
    pub facts: bool,
}

impl Operation for InfoRequest {
    const NAME: &'static str = "info";
    type Event = NoEvent;
    type Answer = Info;

    fn has_paths(&self) -> bool {
        self.kit.has_paths()
    }
}

impl Operation for TagsRequest {
    const NAME: &'static str = "tags";
    type Event = NoEvent;
    type Answer = Vec<TagInfo>;

    fn has_paths(&self) -> bool {
        let Some(reference) = &self.reference else { return true };
        !matches!(Origin::parse(reference), Ok(Origin::Registry(_)))
    }
}

impl Operation for CatalogueRequest {
    const NAME: &'static str = "catalogue";
    type Event = NoEvent;
    type Answer = Vec<String>;
}

/// The answer of `kitfs info`: a kit, or an index to choose one from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Info {
    /// A kit.
    Kit(KitInfo),
    /// An index of several, or a ModelKit index that nothing chooses from.
    Index(IndexInfo),
}

/// The answer of `kitfs info` about an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IndexInfo {
    /// The reference as the user typed it.
    pub reference: String,
    /// The digest of the index.
    pub digest: String,
    /// `ModelKit index` or `image index`.
    pub family: String,
    /// The kits to choose from, in the order of the index.
    pub entries: Vec<IndexEntryInfo>,
    /// Warnings about parts that were passed over.
    pub warnings: Vec<String>,
}

/// A kit to choose from an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IndexEntryInfo {
    /// The digest of the manifest, which can be used as a reference's `@DIGEST`.
    pub digest: String,
    /// The tag by which kit added it.
    pub original_tag: Option<String>,
    /// `OS/ARCHITECTURE`, where the index says it.
    pub platform: Option<String>,
    /// Its labels, as `--label KEY=VALUE` takes them.
    pub labels: BTreeMap<String, String>,
}

/// The answer of `kitfs info` about a kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KitInfo {
    /// The reference as the user typed it.
    pub reference: String,
    /// The digest of the manifest.
    pub digest: String,
    /// `ModelKit`, `ModelKit (legacy)` or `ModelPack`.
    pub family: String,
    /// The Kitfile as `kit info` prints it, where the kit has one.
    pub kitfile: Option<String>,
    /// The Kitfile as facts, if the request asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Fact>,
    /// The layers in manifest order.
    pub layers: Vec<LayerInfo>,
    /// The data sets that lie elsewhere.
    pub remote: Vec<RemoteInfo>,
    /// Warnings about parts that were passed over.
    pub warnings: Vec<String>,
}

/// A value of a Kitfile, and the place where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fact {
    /// The place: `package.version`, `model.parameters.epochs`, `datasets[train].digest`.
    pub key: String,
    /// The value: a text, a number, a boolean or `null`.
    pub value: serde_json::Value,
}

/// A data set that lies elsewhere, as `kitfs info` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RemoteInfo {
    /// The name of its Kitfile entry.
    pub name: Option<String>,
    /// The path of its Kitfile entry.
    pub path: String,
    /// Its place: a reference or `s3://BUCKET/KEY`.
    pub place: String,
    /// The object's ETag, without quotes.
    pub etag: Option<String>,
}

/// A layer, as `kitfs info` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LayerInfo {
    /// `model`, `modelpart`, `dataset`, … or the media type where it is unknown.
    pub role: String,
    /// The media type.
    pub media_type: String,
    /// The digest of the blob.
    pub digest: String,
    /// The size of the blob in bytes.
    pub blob_bytes: u64,
    /// The path of the Kitfile entry, where there is one.
    pub path: Option<String>,
}

/// A tag, or a kit without one, as `kitfs list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TagInfo {
    /// The repository, where kits of several may lie: in kit's storage and in folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The tag; `None` for a kit without one.
    pub tag: Option<String>,
    /// The digest of its manifest.
    pub digest: String,
    /// The sum of its layers' blobs in bytes.
    pub blob_bytes: u64,
    /// The kit's name from its Kitfile, where it has one.
    pub name: Option<String>,
    /// The author, where the Kitfile names one.
    pub author: Option<String>,
    /// When the kit was made, in seconds since 1970, where its manifest says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_seconds: Option<i64>,
    /// The layers in manifest order, if the request asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerInfo>,
    /// Of an index: how many kits can be chosen from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_entries: Option<u64>,
    /// Why the tag is not a kit, where it is not.
    pub problem: Option<String>,
}

/// Lists the tags of a repository, or of all repositories of kit's storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagsRequest {
    /// The repository (`HOST/REPO`), or `oci:FOLDER`; `None` for all of kit's storage.
    pub reference: Option<String>,
    /// List only the tag or digest that the reference names.
    #[serde(default)]
    pub is_one: bool,
    /// Look at so many tags at most: the last ones, where numbers in tags count as numbers. `None` for all.
    /// With a bound, the answer is in that order.
    #[serde(default)]
    pub most: Option<u32>,
    /// With the layers of each kit.
    #[serde(default)]
    pub layers: bool,
    /// How to reach registries.
    #[serde(default)]
    pub network: NetworkOptions,
}

/// Lists the repositories of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueRequest {
    /// The registry: `HOST[:PORT]`.
    pub host: String,
    /// How to reach registries.
    #[serde(default)]
    pub network: NetworkOptions,
}
