//! The manifests that belong to a kit or an index, in the order in which they may be put.

use std::collections::HashSet;

use bytes::Bytes;
use serde::Deserialize;

use super::SendError;
use crate::oci::{Descriptor, Digest, Document, Selector};
use crate::source::Repository;

/// The most manifests that are sent together. 1,000: a ModelKit index has a few, and a list of platforms some
/// tens. Each costs two requests.
const MANIFESTS_LIMIT: usize = 1000;

/// The most indexes inside one another: as many as kitfs follows when it opens a kit.
const DEPTH_LIMIT: usize = 4;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A manifest or an index, as its bytes go to the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentManifest {
    /// The digest of the bytes.
    pub digest: Digest,
    /// The bytes, unchanged.
    pub bytes: Bytes,
    /// The media type in the document, or the usual one of its kind.
    pub media_type: String,
}

/// All manifests of a kit or an index.
pub(super) struct Documents {
    /// The manifests, each behind those that it names. The last one is the requested manifest.
    pub(super) manifests: Vec<SentManifest>,
    /// The blobs of all manifests, each once, in the order of the manifests.
    pub(super) blobs: Vec<Descriptor>,
}

impl SentManifest {
    /// A manifest with these bytes, which `what` names in messages.
    ///
    /// # Errors
    /// [`SendError::Manifest`] where the bytes are no manifest that kitfs reads.
    pub fn new(bytes: Bytes, what: &str) -> Result<(Self, Document), SendError> {
        let document = Document::decode(&bytes)
            .map_err(|error| SendError::Manifest { what: what.to_owned(), error })?;
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Named {
            media_type: Option<String>,
        }
        let named = serde_json::from_slice(&bytes).ok().and_then(|it: Named| it.media_type);
        let usual = match &document {
            Document::Manifest(_) => OCI_MANIFEST,
            Document::Index(_) => OCI_INDEX,
        };
        let named = named.filter(|name| is_media_type(name));
        let media_type = named.unwrap_or_else(|| usual.to_owned());
        Ok((Self { digest: Digest::of(&bytes), bytes, media_type }, document))
    }
}

/// Whether a text can be sent as a media type. It comes from a kit, and goes into a header.
fn is_media_type(text: &str) -> bool {
    text.contains('/') && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Documents {
    /// Reads every manifest that `root` names, from the same repository.
    ///
    /// # Errors
    /// Fails where a manifest is missing, because the index would then name a kit that the destination lacks.
    pub(super) async fn read(source: &dyn Repository, root: Bytes) -> Result<Self, SendError> {
        let mut documents = Self { manifests: Vec::new(), blobs: Vec::new() };
        let mut seen = HashSet::new();
        let root_digest = Digest::of(&root);
        // The search is depth first. An index is met twice: before its entries and behind them.
        let mut open = vec![Step::Read { digest: root_digest, bytes: Some(root), depth: 0 }];
        while let Some(step) = open.pop() {
            let (digest, bytes, depth) = match step {
                Step::Put(manifest) => {
                    documents.manifests.push(manifest);
                    continue;
                }
                Step::Read { digest, bytes, depth } => (digest, bytes, depth),
            };
            if !seen.insert(digest) {
                continue;
            }
            let what = format!("{} in {}", digest.short(), source.name());
            if seen.len() > MANIFESTS_LIMIT || depth > DEPTH_LIMIT {
                return Err(SendError::TooLarge { what, limit: MANIFESTS_LIMIT });
            }
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => source.manifest(Some(&Selector::Digest(digest))).await?.1,
            };
            let (manifest, document) = SentManifest::new(bytes, &what)?;
            open.push(Step::Put(manifest));
            match document {
                Document::Manifest(manifest) => {
                    let config = std::iter::once(manifest.config);
                    documents.blobs.extend(config.chain(manifest.layers));
                }
                Document::Index(index) => {
                    let entries = index.entries.into_iter().rev().map(|entry| Step::Read {
                        digest: entry.descriptor.digest,
                        bytes: None,
                        depth: depth + 1,
                    });
                    open.extend(entries);
                }
            }
        }
        let mut seen = HashSet::new();
        documents.blobs.retain(|blob| seen.insert(blob.digest));
        Ok(documents)
    }
}

enum Step {
    Read { digest: Digest, bytes: Option<Bytes>, depth: usize },
    Put(SentManifest),
}
