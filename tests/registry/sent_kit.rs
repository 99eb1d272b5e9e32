//! Kits in memory to send, and clients that send them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{self, StreamExt};
use kitfs::oci::{BlobId, BlobOffset, Digest, Reference, Selector};
use kitfs::source::registry::{RegistryClient, UploadSizes};
use kitfs::source::sending::{Destination, Replaces, SendError, Sender, Sent};
use kitfs::source::{BlobSource, BlobStream, Repository, SourceError, Urgency};
use serde_json::{Value, json};

use crate::setup::{NAME, client_with};
use crate::support::registry_double::RegistryDouble;

/// A source in memory.
#[derive(Clone, Default)]
pub struct Memory {
    pub blobs: BTreeMap<Digest, Bytes>,
    pub manifests: BTreeMap<Digest, Bytes>,
}

impl Memory {
    /// A kit with layers of these bytes; returns its manifest.
    pub fn kit(&mut self, layers: &[Vec<u8>]) -> Bytes {
        let config = br#"{"manifestVersion":"1.0.0"}"#.to_vec();
        let descriptor = |media_type: &str, bytes: &Vec<u8>| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
        let layers_json: Vec<Value> =
            layers.iter().map(|layer| descriptor("a/layer", layer)).collect();
        let json = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.kitops.modelkit.config.v1+json", &config),
            "layers": layers_json,
        });
        for blob in layers.iter().chain([&config]) {
            self.blobs.insert(Digest::of(blob), blob.clone().into());
        }
        self.manifest(json.to_string())
    }

    /// Stores a manifest.
    pub fn manifest(&mut self, json: String) -> Bytes {
        let json = Bytes::from(json);
        self.manifests.insert(Digest::of(&json), json.clone());
        json
    }
}

impl BlobSource for Memory {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        _urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let missing = || SourceError::NotFound {
            what: format!("blob {}", blob.digest),
            place: "memory".to_owned(),
            hint: "it was never there".to_owned(),
        };
        let bytes = self.blobs.get(&blob.digest).ok_or_else(missing).map(|bytes| {
            let bytes = bytes.slice(BlobOffset::indices(&range));
            // Pieces of odd sizes, which meet no border of a chunk.
            let pieces: Vec<_> = bytes.chunks(997).map(Bytes::copy_from_slice).map(Ok).collect();
            BlobStream { range, bytes: stream::iter(pieces).boxed() }
        });
        ready(bytes).boxed()
    }
}

impl Repository for Memory {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        let Some(Selector::Digest(digest)) = selector else { panic!("only digests are known") };
        let found = self.manifests.get(digest).cloned().map(|bytes| (*digest, bytes));
        let missing = SourceError::NotFound {
            what: format!("manifest {digest}"),
            place: "memory".to_owned(),
            hint: "it was never there".to_owned(),
        };
        ready(found.ok_or(missing)).boxed()
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}

/// Chunks of 10,000 bytes, and whole blobs below that.
pub const SIZES: UploadSizes = UploadSizes { whole_bytes: 9_999, chunk_bytes: 10_000 };

/// A client with small chunks.
pub fn client() -> Arc<RegistryClient> {
    client_with(|config| config.uploads = SIZES)
}

/// The double's repository as a destination.
pub fn destination(
    client: &Arc<RegistryClient>,
    registry: &RegistryDouble,
) -> Arc<dyn Destination> {
    let reference = Reference::parse(&registry.reference(NAME, "v1")).expect("a reference");
    client.destination(&reference).expect("the host can be asked")
}

/// Sends a kit as `v1`.
pub async fn send(
    source: &Memory,
    root: &Bytes,
    destination: Arc<dyn Destination>,
) -> Result<Sent, SendError> {
    let sender = Sender::new(Arc::new(source.clone()), root.clone(), destination).await?;
    sender.send(Some("v1"), Replaces::Nothing).await
}

/// Whether the repository has the kit as `v1`, with the right bytes.
#[track_caller]
pub fn assert_there(registry: &RegistryDouble, source: &Memory, root: &Bytes) {
    let (digest, bytes) = registry.tagged(NAME, "v1").expect("the tag is there");
    assert_eq!((digest, &bytes), (Digest::of(root), root));
    for (digest, bytes) in &source.blobs {
        assert!(registry.blob(NAME, *digest).as_ref() == Some(bytes), "{digest} is wrong");
    }
}
