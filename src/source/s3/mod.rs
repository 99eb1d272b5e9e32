//! S3 stores: objects by range, each answer compared with the ETag that a kit names.
//!
//! ```text
//! Objects::head --> HEAD, its ETag compared               Objects::source --> object (a BlobSource)
//!                                                             '--> GET, Range, If-Match: ETag
//! credentials --> keys, region, endpoint --> address (URL) --> signing --> registry::web --> answer
//! ```
//!
//! - `credentials`, `profile`, `keys`: the identity of requests. `address`, `signing`: pure.
//! - `asking`: one request, its answer, and what a refusal means.
//! - `object`: the bytes, resumed where a body breaks off.
//!
//! Requests go over the connections of the registry client, so proxies, authorities, limits and
//! time-outs are the same. No redirect is followed, and keys sign requests to the endpoint only.
//! Why no library: docs/design/001-dependencies.md.

mod address;
mod asking;
mod credentials;
mod keys;
mod object;
mod profile;
mod signing;

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::registry::RegistryClient;
use super::{BlobSource, ObjectHead, ObjectId, Objects, SourceError};
use crate::oci::BlobId;

pub use credentials::S3Config;
pub use keys::{Keys, Secret};

use credentials::Credentials;

/// The most buckets whose regions are remembered. A hostile kit must not make the table grow.
const MOST_REGIONS: usize = 1000;

/// An S3 store, or AWS.
#[derive(Clone)]
pub struct S3(Arc<Store>);

struct Store {
    client: Arc<RegistryClient>,
    credentials: Credentials,
    /// The regions of buckets, from answers of AWS in another region.
    regions: Mutex<HashMap<String, String>>,
}

impl S3 {
    /// A store that is reached over the connections of `client`.
    pub fn new(client: Arc<RegistryClient>, config: S3Config) -> Self {
        let credentials = Credentials::new(config, client.child_limits());
        Self(Arc::new(Store { client, credentials, regions: Mutex::default() }))
    }
}

impl Objects for S3 {
    fn store(&self) -> BoxFuture<'_, Result<String, SourceError>> {
        Box::pin(async {
            let access = self.0.credentials.access().await?;
            // The names of buckets are unique in all of AWS.
            let aws = || Ok("amazonaws.com".to_owned());
            access.endpoint.as_deref().map_or_else(aws, address::checked)
        })
    }

    fn head<'a>(&'a self, id: &'a ObjectId) -> BoxFuture<'a, Result<ObjectHead, SourceError>> {
        Box::pin(self.0.head(id))
    }

    fn source(&self, id: &ObjectId, blob: BlobId) -> Arc<dyn BlobSource> {
        Arc::new(object::Object::new(self.0.clone(), id.clone(), blob))
    }
}

impl Store {
    /// The region of a bucket, if AWS has named it.
    fn region_of(&self, bucket: &str) -> Option<String> {
        self.regions.lock().get(bucket).cloned()
    }

    fn lies_in(&self, bucket: &str, region: &str) {
        let mut regions = self.regions.lock();
        if regions.len() < MOST_REGIONS {
            regions.insert(bucket.to_owned(), region.to_owned());
        }
    }
}
