//! A registry and an S3 store in memory, which count the requests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};

use tokio::sync::watch;

use super::{
    BlobSource, BlobStream, ObjectHead, ObjectId, Objects, Repositories, Repository, SourceError,
    Urgency,
};
use crate::oci::{BlobId, BlobOffset, Digest, Origin, Selector};

/// A registry in memory.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) blobs: Mutex<HashMap<Digest, Bytes>>,
    pub(crate) tags: Mutex<BTreeMap<String, Digest>>,
    pub(crate) is_down: AtomicBool,
    /// The blobs whose bytes do not come while they are in the set.
    pub(crate) stalled: watch::Sender<HashSet<Digest>>,
    /// The origins that were opened.
    pub(crate) opened: Mutex<Vec<Origin>>,
    pub(crate) manifest_requests: AtomicU64,
    pub(crate) blob_requests: AtomicU64,
}

impl Registry {
    pub(crate) fn put(&self, bytes: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(bytes);
        self.blobs.lock().insert(digest, Bytes::copy_from_slice(bytes));
        (digest, bytes.len())
    }

    /// Pushes a ModelKit of raw layers: role, path and content of each.
    pub(crate) fn push(
        &self,
        reference: &str,
        parent: Option<&str>,
        layers: &[(&str, &str, &[u8])],
    ) {
        self.push_with(reference, parent, layers, |_| ());
    }

    pub(crate) fn push_with(
        &self,
        reference: &str,
        parent: Option<&str>,
        layers: &[(&str, &str, &[u8])],
        change: impl Fn(&mut Value),
    ) {
        let mut kitfile = json!({"manifestVersion": "1.0.0", "package": {"name": "test"}});
        let mut descriptors = Vec::new();
        if let Some(parent) = parent {
            kitfile["model"] = json!({"path": parent});
        }
        for (role, path, content) in layers {
            if *role == "remote" {
                // Remote data has no layer: its content here is the place.
                let place = std::str::from_utf8(content).unwrap();
                let (place, hash) = place.split_once('#').unwrap_or((place, ""));
                let entry = json!({"name": path.replace('/', "-"), "path": path,
                    "remotePath": place, "remoteHash": hash});
                push_to(&mut kitfile["datasets"], entry);
                continue;
            }
            let (digest, size) = self.put(content);
            let entry = json!({"path": path, "digest": digest, "diffId": digest});
            match *role {
                "model" => kitfile["model"] = entry,
                "modelpart" => push_to(&mut kitfile["model"]["parts"], entry),
                "dataset" => push_to(&mut kitfile["datasets"], entry),
                role => push_to(&mut kitfile[role], entry),
            }
            descriptors.push(json!({
                "mediaType": format!("application/vnd.kitops.modelkit.{role}.v1.raw"),
                "digest": digest, "size": size,
                "annotations": {"org.cncf.model.filepath": path},
            }));
        }
        let (config, config_bytes) = self.put(kitfile.to_string().as_bytes());
        let mut manifest = json!({
            "schemaVersion": 2, "layers": descriptors,
            "config": {
                "mediaType": "application/vnd.kitops.modelkit.config.v1+json",
                "digest": config, "size": config_bytes,
            },
        });
        change(&mut manifest);
        let (digest, _) = self.put(manifest.to_string().as_bytes());
        self.tags.lock().insert(reference.to_owned(), digest);
    }

    /// Pushes an index with these documents as entries; `change` may add to an entry.
    pub(crate) fn push_index(
        &self,
        reference: &str,
        artifact_type: Option<&str>,
        entries: &[Digest],
        change: impl Fn(usize, &mut Value),
    ) -> Digest {
        let entries = entries.iter().enumerate().map(|(at, digest)| {
            let mut entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest, "size": self.blobs.lock()[digest].len()});
            change(at, &mut entry);
            entry
        });
        let index = json!({"schemaVersion": 2, "artifactType": artifact_type,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries.collect::<Vec<_>>()});
        let (digest, _) = self.put(index.to_string().as_bytes());
        self.tags.lock().insert(reference.to_owned(), digest);
        digest
    }

    pub(crate) fn tagged(&self, reference: &str) -> Digest {
        self.tags.lock()[reference]
    }

    pub(crate) fn unavailable(&self) -> SourceError {
        let (place, detail) = ("registry.test".to_owned(), "no route to host".to_owned());
        SourceError::Unavailable { place, detail }
    }
}

pub(crate) fn push_to(list: &mut Value, entry: Value) {
    match list {
        Value::Array(entries) => entries.push(entry),
        other => *other = json!([entry]),
    }
}

/// An S3 store in memory: objects by location, with their ETags.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) objects: Mutex<HashMap<String, (String, Bytes)>>,
    pub(crate) is_down: AtomicBool,
    pub(crate) heads: AtomicU64,
}

impl Store {
    pub(crate) fn put(&self, location: &str, etag: &str, content: &'static [u8]) {
        let content = Bytes::from_static(content);
        self.objects.lock().insert(location.to_owned(), (etag.to_owned(), content));
    }

    pub(crate) fn get(&self, object: &ObjectId) -> Result<Bytes, SourceError> {
        let place = object.location.to_string();
        if self.is_down.load(Ordering::SeqCst) {
            return Err(SourceError::Unavailable { place, detail: "no route".to_owned() });
        }
        match self.objects.lock().get(&place) {
            Some((etag, content)) if *etag == object.etag => Ok(content.clone()),
            Some((etag, _)) => {
                let (expected, got) = (object.etag.clone(), Some(etag.clone()));
                Err(SourceError::Changed { place, expected, got })
            }
            None => {
                let (what, hint) = ("the object".to_owned(), "upload it".to_owned());
                Err(SourceError::NotFound { what, place, hint })
            }
        }
    }
}

pub(crate) struct InStore {
    pub(crate) store: Arc<Store>,
    pub(crate) object: ObjectId,
}

impl BlobSource for InStore {
    fn open(
        &self,
        _blob: BlobId,
        range: Range<BlobOffset>,
        _urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let result = self.store.get(&self.object).map(|content| {
            let bytes = content.slice(BlobOffset::indices(&range));
            BlobStream { range, bytes: stream::iter([Ok(bytes)]).boxed() }
        });
        Box::pin(async move { result })
    }
}

pub(crate) struct InMemory(pub(crate) Arc<Registry>, pub(crate) Stores);

#[derive(Clone, Default)]
pub(crate) struct Stores(pub(crate) Arc<Store>);

impl Objects for Stores {
    fn store(&self) -> BoxFuture<'_, Result<String, SourceError>> {
        Box::pin(async { Ok("s3.test".to_owned()) })
    }

    fn head<'a>(&'a self, object: &'a ObjectId) -> BoxFuture<'a, Result<ObjectHead, SourceError>> {
        self.0.heads.fetch_add(1, Ordering::SeqCst);
        let head = self.0.get(object).map(|content| ObjectHead {
            size: content.len() as u64,
            modified_seconds: Some(1_700_000_000),
        });
        Box::pin(async move { head })
    }

    fn source(&self, object: &ObjectId, _blob: BlobId) -> Arc<dyn BlobSource> {
        Arc::new(InStore { store: self.0.clone(), object: object.clone() })
    }
}

impl Repositories for InMemory {
    fn open(&self, origin: &Origin) -> Result<Arc<dyn Repository>, SourceError> {
        self.0.opened.lock().push(origin.clone());
        Ok(Arc::new(One { registry: self.0.clone(), reference: origin.to_string() }))
    }

    fn objects(&self) -> Option<&dyn Objects> {
        Some(&self.1)
    }
}

pub(crate) struct One {
    pub(crate) registry: Arc<Registry>,
    pub(crate) reference: String,
}

impl BlobSource for One {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        _urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let result = if self.registry.is_down.load(Ordering::SeqCst) {
            Err(self.registry.unavailable())
        } else {
            self.registry.blob_requests.fetch_add(1, Ordering::SeqCst);
            let bytes = self.registry.blobs.lock().get(&blob.digest).cloned();
            let mut stalled = self.registry.stalled.subscribe();
            let not_found = || SourceError::NotFound {
                what: blob.digest.to_string(),
                place: self.reference.clone(),
                hint: "push it".to_owned(),
            };
            bytes.ok_or_else(not_found).map(|bytes| {
                let bytes = bytes.slice(BlobOffset::indices(&range));
                let come = async move {
                    let _ = stalled.wait_for(|stalled| !stalled.contains(&blob.digest)).await;
                    Ok(bytes)
                };
                BlobStream { range, bytes: stream::once(come).boxed() }
            })
        };
        Box::pin(async move { result })
    }
}

impl Repository for One {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        let registry = &self.registry;
        registry.manifest_requests.fetch_add(1, Ordering::SeqCst);
        let digest = match selector {
            Some(Selector::Digest(digest)) => Some(*digest),
            _ => registry.tags.lock().get(&self.reference).copied(),
        };
        let result = match digest {
            _ if registry.is_down.load(Ordering::SeqCst) => Err(registry.unavailable()),
            Some(digest) => Ok((digest, registry.blobs.lock()[&digest].clone())),
            None => Err(SourceError::NotFound {
                what: "the tag".to_owned(),
                place: self.reference.clone(),
                hint: "push it".to_owned(),
            }),
        };
        Box::pin(async move { result })
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn name(&self) -> String {
        self.reference.clone()
    }
}
