//! Opens a blob's bytes: at the target that a redirect named, or at the registry.
//!
//! ```text
//! open --> target known? --yes--> storage host --refused--> forget the target
//!             '--no--> registry --redirect--> storage host      '--> registry
//!
//! answer --> `range` decides --unclear--> the same once more, without Range
//! ```

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use tokio::sync::OwnedMutexGuard;
use url::Url;

use super::answer::Answer;
use super::errand::Errand;
use super::range::{Asked, Served};
use super::redirect;
use super::repository::Remote;
use super::retry::Failure;
use super::upstream::Upstream;
use crate::oci::{BlobId, BlobOffset};
use crate::source::{SourceError, Urgency};

/// A body that has begun.
pub(super) struct Opened {
    /// The bytes of the blob that its head promises.
    pub(super) range: Range<BlobOffset>,
    /// The bytes of this and further bodies: the requested range, or the whole blob from a server without ranges.
    pub(super) yields: Range<BlobOffset>,
    pub(super) answer: Answer,
}

impl Remote {
    /// Opens a body with the first bytes of `range` of `blob`, or with the first bytes of the whole blob.
    pub(super) async fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> Result<Opened, SourceError> {
        debug_assert!(range.start < range.end && range.end <= blob.end(), "asked for {range:?}");
        let asked = &Asked { range, size: blob.size };
        let errand = &Errand::new(urgency);
        let ask = |upstream: Arc<Upstream>| async move {
            self.open_once(&upstream, blob, asked, errand).await
        };
        self.first_of(self.timing(), errand, |endpoint| endpoint.can_pull, ask).await
    }

    /// Opens a body at one upstream.
    async fn open_once(
        &self,
        upstream: &Upstream,
        blob: BlobId,
        asked: &Asked,
        errand: &Errand,
    ) -> Result<Opened, Failure> {
        let url = upstream.blob(self.repository(), blob.digest);
        let answer = self.ask_anywhere(upstream, &url, asked, errand).await?;
        if let Some(opened) = self.accept(blob, asked, answer).await? {
            return Ok(opened);
        }
        let whole = Asked::whole(blob.size);
        let answer = self.ask_anywhere(upstream, &url, &whole, errand).await?;
        let opened = self.accept(blob, &whole, answer).await?;
        Ok(opened.expect("without a Range no answer is unclear"))
    }

    /// Requests bytes of a blob: from its last known target, or else from the registry.
    async fn ask_anywhere(
        &self,
        upstream: &Upstream,
        blob: &Url,
        asked: &Asked,
        errand: &Errand,
    ) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(range) = asked.header() {
            let range = HeaderValue::from_str(&range).expect("digits and `bytes=-`");
            headers.insert(header::RANGE, range);
        }
        let targets = self.targets();
        if let Some(answer) = self.open_target(upstream, blob, &headers, errand).await? {
            return Ok(answer);
        }
        let mut turn = targets.turn(blob).await;
        if turn.is_some() && targets.find(blob, Timestamp::now()).is_some() {
            // The request before this one has found the target, so the next request need not wait for the turn.
            turn = None;
            if let Some(answer) = self.open_target(upstream, blob, &headers, errand).await? {
                return Ok(answer);
            }
        }
        self.ask_registry_for(upstream, blob, &headers, errand, turn).await
    }

    /// Requests a blob from the registry, and remembers the target of a redirect. The turn ends then.
    async fn ask_registry_for(
        &self,
        upstream: &Upstream,
        blob: &Url,
        headers: &HeaderMap,
        errand: &Errand,
        mut turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<Answer, Failure> {
        let targets = self.targets();
        let mut target = None;
        let request = self.request(upstream, blob, headers, errand);
        let asked = self.client().ask(&request, |url| {
            target = Some(targets.led_to(blob, url, Timestamp::now()));
            turn = None;
        });
        let answer = asked.await;
        let is_success = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
        match target {
            Some(target) if !is_success => targets.forget(blob, &target),
            None if is_success => targets.is_here(blob),
            Some(_) | None => {}
        }
        answer
    }

    /// Requests a blob from its last known target. `None` where the target is unknown or expired.
    async fn open_target(
        &self,
        upstream: &Upstream,
        blob: &Url,
        headers: &HeaderMap,
        errand: &Errand,
    ) -> Result<Option<Answer>, Failure> {
        let targets = self.targets();
        let Some(target) = targets.find(blob, Timestamp::now()) else { return Ok(None) };
        let request = self.request(upstream, &target.url, headers, errand);
        match self.client().follow(&request).await {
            Ok(answer) if answer.status().is_success() => Ok(Some(answer)),
            Ok(answer)
                if redirect::is_refusal(answer.status())
                    || redirect::is_redirect(answer.status()) =>
            {
                targets.forget(blob, &target);
                Ok(None)
            }
            Ok(answer) => Ok(Some(answer)),
            Err(failure) => {
                // The registry may redirect to a better host by now.
                targets.forget(blob, &target);
                match failure {
                    Failure::Final(SourceError::Unauthorized { .. }) => Ok(None),
                    failure => Err(failure),
                }
            }
        }
    }

    /// Accepts or refuses an answer by its head; `None` where the head has two meanings.
    async fn accept(
        &self,
        blob: BlobId,
        asked: &Asked,
        answer: Answer,
    ) -> Result<Option<Opened>, Failure> {
        let status = answer.status();
        if !status.is_success() && status != StatusCode::RANGE_NOT_SATISFIABLE {
            let what = format!("the blob {}", blob.digest.short());
            let hint = "the registry has the manifest but not its content: push the kit again";
            return Err(answer.refusal(&what, hint, self.timing().stall).await);
        }
        match asked.served(status, answer.headers()) {
            Ok(Served::Bytes(range)) => {
                let is_whole = range == blob.whole();
                let yields = if is_whole { range.clone() } else { asked.range.clone() };
                Ok(Some(Opened { range, yields, answer }))
            }
            Ok(Served::Unclear) => Ok(None),
            Err(detail) => {
                let place = answer.place().to_owned();
                Err(SourceError::Protocol { place, detail }.into())
            }
        }
    }
}
