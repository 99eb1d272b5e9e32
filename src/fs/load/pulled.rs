//! Kits that kit itself has pulled from a registry, and the rule for believing a tag in kit's storage.
//!
//! `kit pull CHILD:TAG` files every parent of the child under the child's repository, with the
//! parent's own tag (modelkit-spec 4.2). So a tag of that repository may name the parent of another
//! kit in it, and kit itself does not notice. A digest is never wrong; a tag is taken only if no other
//! kit of the repository has a parent elsewhere with this tag.

use super::documents::ByDigest;
use super::resolve::Kin;
use crate::kit::Kit;
use crate::oci::{BlobId, Digest, Document, Origin, Reference, Selector};
use crate::source::kit_storage::KitStorage;
use crate::source::{Pulled, SourceError};

/// The reason for not taking a tag from kit's storage.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// The tag does not exist, or cannot be read.
    Absent,
    /// The tag may name another kit; the words follow the reference in a message.
    Doubtful(String),
}

/// Why a tag of a registry's repository in kit's storage may be wrong; `None` for a tag that can be believed or
/// does not exist.
pub async fn doubt_about(storage: &KitStorage, reference: &Reference) -> Option<String> {
    match find(storage, reference).await {
        Err(NotTaken::Doubtful(words)) => Some(words),
        Ok(_) | Err(NotTaken::Absent) => None,
    }
}

/// The digest that the origin has in kit's storage.
pub(super) async fn resolve(pulled: &Pulled, kin: &Kin<'_>) -> Result<Digest, NotTaken> {
    let Origin::Registry(reference) = kin.origin else { return Err(NotTaken::Absent) };
    find(&pulled.storage, reference).await
}

async fn find(storage: &KitStorage, reference: &Reference) -> Result<Digest, NotTaken> {
    let tag = match reference.selector() {
        Selector::Digest(digest) => return Ok(*digest),
        Selector::Tag(tag) => tag,
    };
    let digest = storage.tagged(tag).await.map_err(|error| unreadable(&error))?;
    let digest = digest.ok_or(NotTaken::Absent)?;
    for other in storage.manifests().await.map_err(|error| unreadable(&error))? {
        if other == digest {
            continue;
        }
        let parent = parent_of(storage, other).await.map_err(|error| {
            let reason = format!("of the kit {other} there, which cannot be read: {error}");
            NotTaken::Doubtful(doubt(reference, tag, &reason, digest))
        })?;
        let parent = parent.and_then(|parent| Reference::parse(&parent).ok());
        if let Some(parent) = parent.filter(|parent| is_filed_as(parent, reference, tag)) {
            let reason = format!("{parent}, of the kit {other} there");
            return Err(NotTaken::Doubtful(doubt(reference, tag, &reason, digest)));
        }
    }
    Ok(digest)
}

fn unreadable(error: &SourceError) -> NotTaken {
    tracing::warn!(%error, "kit's storage cannot be read");
    NotTaken::Absent
}

/// Whether `kit pull` would file a parent under the repository of `reference` as `tag`.
fn is_filed_as(parent: &Reference, reference: &Reference, tag: &str) -> bool {
    let place = |reference: &Reference| {
        (reference.registry().to_owned(), reference.repository().to_owned())
    };
    let has_tag = matches!(parent.selector(), Selector::Tag(parents) if parents == tag);
    has_tag && place(parent) != place(reference)
}

fn doubt(reference: &Reference, tag: &str, parent: &str, digest: Digest) -> String {
    let named = reference.with_selector(Selector::Digest(digest));
    format!(
        "the tag `{tag}` in kit's storage may name a parent ({parent}), since `kit pull` files parents \
         under the child's name; if it is the kit you mean, name it by its digest: {named}"
    )
}

/// The parent that a stored kit names; `None` also for a manifest that is not one of a kit.
async fn parent_of(storage: &KitStorage, digest: Digest) -> Result<Option<String>, SourceError> {
    let bytes = ByDigest::Document(digest).answer(storage).await?;
    let Ok(Document::Manifest(manifest)) = Document::decode(&bytes) else { return Ok(None) };
    let config = match manifest.config.content() {
        Some(config) => config,
        None => ByDigest::Config(manifest.config.blob()).answer(storage).await?,
    };
    Ok(Kit::decode(&manifest, &config).ok().and_then(|kit| kit.parent))
}

/// Which blobs kit's storage has.
pub(super) async fn held(pulled: &Pulled, kit: &Kit) -> Vec<BlobId> {
    pulled.storage.held(kit.layers.iter().map(|layer| layer.blob).collect()).await
}
