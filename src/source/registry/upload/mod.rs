//! A repository of a registry as a destination (distribution-spec v1.1, "Push").
//!
//! ```text
//! has_blob      HEAD blobs/DIGEST
//! put_blob      POST blobs/uploads/ ... (blob.rs)
//! put_manifest  PUT manifests/TAG
//! ```
//!
//! Everything goes to one address: the registry itself, or the first host of its hosts.toml that takes pushes.
//! After a failure, no other address is tried, because the kit would then lie in two places.

mod blob;
mod session;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use url::Url;

use super::RegistryClient;
use super::answer::Answer;
use super::errand::Errand;
use super::exchange::{Payload, Request, Verb};
use super::repository::MANIFEST_TYPES;
use super::retry::{Failure, is_transient};
use super::scopes::Rights;
use super::upstream::{Endpoint, Upstream};
use crate::oci::{BlobId, Digest, Reference};
use crate::source::sending::{Content, Destination, Put, Replaces, SendError, SentManifest};
use crate::source::{MANIFEST_LIMIT_BYTES, SourceError};

/// The sizes of uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadSizes {
    /// The largest blob in one request. 16 MiB: a break costs so many bytes at most, and smaller requests would
    /// cost more time.
    pub whole_bytes: u64,
    /// The size of a chunk of a larger blob. 64 MiB: below the 100 MB that proxies in front of registries often
    /// allow, and large beside the cost of a request.
    pub chunk_bytes: u64,
}

impl Default for UploadSizes {
    fn default() -> Self {
        Self { whole_bytes: 16 * 1024 * 1024, chunk_bytes: 64 * 1024 * 1024 }
    }
}

/// One repository of a registry, to write to.
pub(super) struct RegistryDestination {
    client: Arc<RegistryClient>,
    registry: String,
    repository: String,
    endpoint: Endpoint,
}

impl RegistryDestination {
    pub(super) fn new(
        client: Arc<RegistryClient>,
        reference: &Reference,
        endpoints: Vec<Endpoint>,
    ) -> Result<Self, SourceError> {
        let registry = reference.registry().to_owned();
        let mut endpoints = endpoints;
        let pushed = endpoints.iter().position(|endpoint| endpoint.can_push);
        // The last address is the registry itself.
        let pushed = pushed.unwrap_or(endpoints.len().saturating_sub(1));
        if endpoints.is_empty() {
            return Err(SourceError::Configuration {
                what: format!("the registry {registry}"),
                detail: "hosts.toml names no address for it".to_owned(),
            });
        }
        let endpoint = endpoints.swap_remove(pushed);
        Ok(Self { client, registry, repository: reference.repository().to_owned(), endpoint })
    }

    /// Sends one request, and retries it as often as the patience of an opener permits.
    async fn ask<T, Asked>(
        &self,
        ask: impl Fn(Arc<Upstream>, Arc<Errand>) -> Asked,
    ) -> Result<T, SourceError>
    where
        Asked: Future<Output = Result<T, Failure>>,
    {
        let upstream = self.client.reach(&self.endpoint).await?;
        let errand = Arc::new(Errand::opening(self.client.user));
        let timing = self.client.timing.of_a_command();
        let attempt = || ask(Arc::clone(&upstream), Arc::clone(&errand));
        self.client.repeat(timing, &errand, &self.registry, attempt).await
    }

    /// Sends one request, and follows redirects.
    async fn send(
        &self,
        upstream: &Upstream,
        errand: &Errand,
        verb: Verb,
        url: &Url,
        headers: &HeaderMap,
        payload: Payload<'_>,
    ) -> Result<Answer, Failure> {
        let request = self.request(upstream, errand, verb, url, headers);
        self.client.ask(&Request { payload, ..request }, |_| ()).await
    }

    /// A request without a payload.
    fn request<'a>(
        &'a self,
        upstream: &'a Upstream,
        errand: &'a Errand,
        verb: Verb,
        url: &'a Url,
        headers: &'a HeaderMap,
    ) -> Request<'a> {
        let (repository, payload) = (&*self.repository, Payload::None);
        let rights = Rights::Push { from: None };
        Request { upstream, repository, url, headers, errand, verb, rights, payload }
    }

    async fn has(
        &self,
        url: impl Fn(&Upstream) -> Url,
        accept: Option<&'static str>,
    ) -> Result<Option<HeaderMap>, SourceError> {
        let headers = accepting(accept);
        self.ask(|upstream, errand| {
            let (url, headers) = (url(&upstream), &headers);
            async move {
                let mut is_elsewhere = false;
                let request = self.request(&upstream, &errand, Verb::Head, &url, headers);
                let answer = self.client.ask(&request, |_| is_elsewhere = true).await?;
                match answer.status() {
                    StatusCode::OK => Ok(Some(answer.headers().clone())),
                    StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
                    // The URL of a storage host may be signed for GET alone. Then the blob is sent, which is right
                    // in any case.
                    status if is_elsewhere && !is_transient(status) => Ok(None),
                    _ => Err(answer
                        .refusal("the request for a blob", "", self.client.timing.stall)
                        .await),
                }
            }
        })
        .await
    }

    async fn tag(&self, tag: &str) -> Result<Option<Digest>, SourceError> {
        let headers = &accepting(Some(MANIFEST_TYPES));
        let stall = self.client.timing.stall;
        self.ask(|upstream, errand| async move {
            let url = upstream.manifest(&self.repository, tag);
            let mut answer =
                self.send(&upstream, &errand, Verb::Get, &url, headers, Payload::None).await?;
            match answer.status() {
                StatusCode::OK => {
                    let bytes =
                        answer.document("the manifest", MANIFEST_LIMIT_BYTES, stall).await?;
                    Ok(Some(Digest::of(&bytes)))
                }
                StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
                _ => Err(answer.refusal(&format!("the tag `{tag}`"), "", stall).await),
            }
        })
        .await
    }

    async fn put(&self, manifest: &SentManifest, tag: Option<&str>) -> Result<(), SourceError> {
        let selector = tag.map_or_else(|| manifest.digest.to_string(), str::to_owned);
        let kind = HeaderValue::from_str(&manifest.media_type)
            .expect("a media type has visible characters only");
        let headers = &HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        let (selector, bytes): (&str, &Bytes) = (&selector, &manifest.bytes);
        self.ask(|upstream, errand| async move {
            let url = upstream.manifest(&self.repository, selector);
            let payload = Payload::Bytes(bytes);
            let answer = self.send(&upstream, &errand, Verb::Put, &url, headers, payload).await?;
            let what = format!("the manifest {}", manifest.digest.short());
            if !answer.status().is_success() {
                let hint = "the registry does not know the repository: create it there first";
                return Err(answer.refusal(&what, hint, self.client.timing.stall).await);
            }
            session::check_digest(answer.headers(), manifest.digest, &what, answer.place())?;
            Ok(())
        })
        .await
    }
}

impl Destination for RegistryDestination {
    fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<Digest>, SendError>> {
        async move { Ok(self.tag(tag).await?) }.boxed()
    }

    fn has_manifest(&self, digest: Digest) -> BoxFuture<'_, Result<bool, SendError>> {
        async move {
            let url =
                |upstream: &Upstream| upstream.manifest(&self.repository, &digest.to_string());
            Ok(self.has(url, Some(MANIFEST_TYPES)).await?.is_some())
        }
        .boxed()
    }

    fn has_blob(&self, blob: BlobId) -> BoxFuture<'_, Result<bool, SendError>> {
        async move {
            let url = |upstream: &Upstream| upstream.blob(&self.repository, blob.digest);
            let there = self.has(url, None).await?;
            let size = |headers: HeaderMap| {
                headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse::<u64>().ok()
            };
            // A blob of another size is damaged. Sending the blob again may mend it.
            Ok(there.is_some_and(|headers| size(headers).is_none_or(|size| size == blob.size)))
        }
        .boxed()
    }

    fn put_blob<'a>(
        &'a self,
        content: &'a Arc<Content>,
        others: &'a [Reference],
    ) -> BoxFuture<'a, Result<Put, SendError>> {
        blob::put(self, content, others).boxed()
    }

    fn put_manifest<'a>(
        &'a self,
        manifest: &'a SentManifest,
        tag: Option<&'a str>,
        _replaces: Replaces,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        async move { Ok(self.put(manifest, tag).await?) }.boxed()
    }
}

fn accepting(accept: Option<&'static str>) -> HeaderMap {
    accept.map(|accept| (header::ACCEPT, HeaderValue::from_static(accept))).into_iter().collect()
}
