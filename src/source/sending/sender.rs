//! Sends one kit or index: finds the missing blobs, sends them, and puts the manifests last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::manifest::Documents;
use super::{Content, Destination, Progress, Put, Replaces, SendError, SentManifest};
use crate::oci::{Descriptor, Digest, Reference};
use crate::source::inline::InlineBlob;
use crate::source::{BlobSource, Repository, Urgency};

/// Blobs that are sent at the same time. 4: one connection seldom fills a fast network. Each costs the memory of a
/// few pieces, and a slot of the host.
const BLOBS_AT_ONCE: usize = 4;

/// Layers that a registry does not keep: the image-spec calls them nondistributable, Docker foreign.
const FOREIGN: [&str; 2] = [
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
];

/// The outcome of sending a kit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Blobs whose bytes were sent.
    pub sent_blobs: u64,
    /// The bytes of these blobs.
    pub sent_bytes: u64,
    /// Bytes that the registry took from its other repositories.
    pub mounted_bytes: u64,
    /// Bytes that the destination had.
    pub present_bytes: u64,
    /// Manifests that were put.
    pub manifests: u64,
}

/// The repositories that may have a blob.
type Others = dyn Fn(Digest) -> Vec<Reference> + Send + Sync;

/// One kit to send.
pub struct Sender {
    source: Arc<dyn Repository>,
    destination: Arc<dyn Destination>,
    others: Box<Others>,
    urgency: Urgency,
    progress: Arc<Progress>,
    documents: Documents,
    root: Digest,
}

impl Sender {
    /// Reads the manifests that belong to `root`, the bytes of a manifest or index of `source`.
    ///
    /// # Errors
    /// Fails where a manifest is missing or malformed.
    pub async fn new(
        source: Arc<dyn Repository>,
        root: Bytes,
        destination: Arc<dyn Destination>,
    ) -> Result<Self, SendError> {
        let digest = Digest::of(&root);
        let documents = Documents::read(&*source, root).await?;
        let others: Box<Others> = Box::new(|_| Vec::new());
        let progress = Arc::default();
        let urgency = Urgency::opening();
        Ok(Self { source, destination, others, urgency, progress, documents, root: digest })
    }

    /// The same. `others` returns the repositories that may have a blob.
    pub fn with_others(
        self,
        others: impl Fn(Digest) -> Vec<Reference> + Send + Sync + 'static,
    ) -> Self {
        Self { others: Box::new(others), ..self }
    }

    /// The same, with requests to the source on behalf of a user.
    pub fn with_urgency(self, urgency: Urgency) -> Self {
        Self { urgency, ..self }
    }

    /// The bytes of all blobs.
    pub fn total_bytes(&self) -> u64 {
        self.documents.blobs.iter().map(|blob| blob.size).fold(0, u64::saturating_add)
    }

    /// The bytes that are done, while [`Sender::send`] runs.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Sends all missing blobs and manifests, and points `tag` at the kit.
    ///
    /// Dropping the future is safe: the destination then has some of the blobs, and the next `send` finds them.
    ///
    /// # Errors
    /// [`SendError::TagExists`], before anything is sent, where the tag names another manifest that
    /// `replaces` does not allow.
    pub async fn send(&self, tag: Option<&str>, replaces: Replaces) -> Result<Sent, SendError> {
        let tagged = match tag {
            Some(tag) => compare_tag(&*self.destination, tag, self.root, replaces).await?,
            None => None,
        };
        let counts = Counts::default();
        let blobs = self.documents.blobs.iter();
        let each = stream::iter(blobs.map(|blob| self.blob(blob, &counts)));
        each.buffer_unordered(BLOBS_AT_ONCE).try_collect::<()>().await?;
        let manifests = self.manifests(tag, tagged, replaces).await?;
        Ok(Sent { manifests, ..counts.sent() })
    }

    async fn blob(&self, descriptor: &Descriptor, counts: &Counts) -> Result<(), SendError> {
        let blob = descriptor.blob();
        let source: Arc<dyn BlobSource> = match descriptor.content() {
            // The manifest carries this blob, so the source need not have it.
            Some(bytes) => Arc::new(InlineBlob::new(bytes)),
            None => Arc::new(Arc::clone(&self.source)),
        };
        let (place, urgency) = (self.source.name(), self.urgency.clone());
        let content = Content::new(blob, source, place, urgency, Arc::clone(&self.progress));
        content.check_if_empty()?;
        let is_foreign = FOREIGN.iter().any(|kind| descriptor.media_type.starts_with(kind));
        if is_foreign || self.destination.has_blob(blob).await? {
            content.is_there();
            counts.present_bytes.fetch_add(blob.size, Ordering::Relaxed);
            return Ok(());
        }
        let others = (self.others)(blob.digest);
        match self.destination.put_blob(&content, &others).await? {
            Put::Sent => {
                counts.sent_blobs.fetch_add(1, Ordering::Relaxed);
                counts.sent_bytes.fetch_add(blob.size, Ordering::Relaxed);
            }
            Put::Mounted => {
                content.is_there();
                counts.mounted_bytes.fetch_add(blob.size, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Puts the manifests that are missing, each behind those that it names; returns how many.
    async fn manifests(
        &self,
        tag: Option<&str>,
        tagged: Option<Digest>,
        replaces: Replaces,
    ) -> Result<u64, SendError> {
        let mut put = 0;
        for manifest in &self.documents.manifests {
            let is_root = manifest.digest == self.root;
            let is_there = match tag.filter(|_| is_root) {
                Some(_) => tagged == Some(self.root),
                None => self.destination.has_manifest(manifest.digest).await?,
            };
            if is_there {
                continue;
            }
            let tag = tag.filter(|_| is_root);
            self.destination.put_manifest(manifest, tag, replaces).await?;
            put += 1;
        }
        Ok(put)
    }
}

/// Points `tag` at a manifest that the destination has, with all that it names. Returns whether the tag has
/// moved.
///
/// # Errors
/// As for [`Sender::send`].
pub async fn tag(
    destination: &dyn Destination,
    manifest: Bytes,
    tag: &str,
    replaces: Replaces,
) -> Result<bool, SendError> {
    let (manifest, _) = SentManifest::new(manifest, &destination.name())?;
    if compare_tag(destination, tag, manifest.digest, replaces).await? == Some(manifest.digest) {
        return Ok(false);
    }
    destination.put_manifest(&manifest, Some(tag), replaces).await?;
    Ok(true)
}

/// The digest of a tag.
///
/// # Errors
/// [`SendError::TagExists`] where `replaces` does not allow it.
async fn compare_tag(
    destination: &dyn Destination,
    tag: &str,
    sent: Digest,
    replaces: Replaces,
) -> Result<Option<Digest>, SendError> {
    let there = destination.tagged(tag).await?;
    replaces.check(&destination.name(), tag, there, sent)?;
    Ok(there)
}

#[derive(Default)]
struct Counts {
    sent_blobs: AtomicU64,
    sent_bytes: AtomicU64,
    mounted_bytes: AtomicU64,
    present_bytes: AtomicU64,
}

impl Counts {
    fn sent(&self) -> Sent {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Sent {
            sent_blobs: count(&self.sent_blobs),
            sent_bytes: count(&self.sent_bytes),
            mounted_bytes: count(&self.mounted_bytes),
            present_bytes: count(&self.present_bytes),
            manifests: 0,
        }
    }
}
