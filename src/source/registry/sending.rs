//! Sends one request: when its host has a slot for it, and for as long as its errand has patience.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{self, Either};
use http::StatusCode;
use jiff::Timestamp;
use reqwest::RequestBuilder;
use url::Url;

use super::RegistryClient;
use super::answer::{Answer, Patience};
use super::errand::Errand;
use super::message::{self, Cause, Kind};
use super::redirect;
use super::retry::{self, Failure};
use super::upstream::is_loopback;
use crate::process::running_time::Stopwatch;
use crate::source::SourceError;

/// The reason for no answer to a request.
enum Unanswered {
    Failed(reqwest::Error),
    /// Nothing came within this time.
    Silent(Duration),
}

/// The first answer to one of two requests. Where one fails, the other still counts.
async fn either(
    first: impl Future<Output = reqwest::Result<reqwest::Response>>,
    second: impl Future<Output = reqwest::Result<reqwest::Response>>,
    mut waited: Stopwatch,
    limit: Duration,
) -> Result<reqwest::Response, Unanswered> {
    let answer = async {
        match future::select(pin!(first), pin!(second)).await {
            Either::Left((Ok(answer), _)) | Either::Right((Ok(answer), _)) => Ok(answer),
            Either::Left((Err(_), other)) => other.await,
            Either::Right((Err(_), other)) => other.await,
        }
    };
    tokio::select! {
        biased;
        answer = answer => answer.map_err(Unanswered::Failed),
        () = waited.reach(limit) => Err(Unanswered::Silent(limit)),
    }
}

impl RegistryClient {
    /// Sends a request when its host has a slot for it, and tells the limit how the host answered.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        url: &Url,
        place: &str,
        errand: &Errand,
    ) -> Result<Answer, Failure> {
        let asked = Instant::now();
        let slot = self.admission.request(&message::authority(url), errand.urgency()).await;
        errand.has_queued(asked.elapsed());
        let answer = self.send_unlimited(request, url, place, errand).await?;
        let pause = retry::retry_after(answer.headers(), Timestamp::now());
        // A patient request obeys for longer; the host's other requests have readers.
        let pause = pause.map(|pause| pause.min(self.timing.retry_after_max));
        match answer.status() {
            status if status.is_success() || redirect::is_redirect(status) => slot.accepted(),
            StatusCode::TOO_MANY_REQUESTS => slot.refused(pause),
            StatusCode::SERVICE_UNAVAILABLE if pause.is_some() => slot.refused(pause),
            _ => {}
        }
        Ok(answer.holding(slot))
    }

    /// Sends a request without a slot.
    pub(super) async fn send_unlimited(
        &self,
        request: RequestBuilder,
        url: &Url,
        place: &str,
        errand: &Errand,
    ) -> Result<Answer, Failure> {
        let host = message::authority(url);
        let sent = self.first_answer(request, errand);
        let is_patient = errand.is_patient();
        let sent = if is_patient { self.silences.watch(&host, sent).await } else { sent.await };
        match sent {
            Ok(response) => {
                let silences = Arc::clone(&self.silences);
                let (limit, urgency) = (self.timing.open, errand.urgency().clone());
                let patience = Patience { limit, urgency, silences, host };
                let patience = is_patient.then_some(patience);
                Ok(Answer::new(response, place, patience))
            }
            Err(Unanswered::Failed(error)) => Err(self.unreachable(&Cause::of(&error), url, place)),
            Err(Unanswered::Silent(limit)) => {
                let mut detail = format!("no answer came within {} s", limit.as_secs_f32());
                if is_patient {
                    detail.push_str(", and --open-timeout allows no more");
                }
                let place = place.to_owned();
                Err(Failure::transient(SourceError::Unavailable { place, detail }))
            }
        }
    }

    /// Sends a request. Where a reader waits for long, sends a second one beside the first: the
    /// connection may be stuck, or the host about to answer, and the two look the same.
    ///
    /// ```text
    /// patient:                  sent ------------------------------------------> `open` is over
    /// a reader:                 sent --`connect` and `answer`--> sent again ---> `open` is over
    /// a reader, with mirrors:   sent --`connect` and `answer`--> the next endpoint is asked
    /// ```
    async fn first_answer(
        &self,
        request: RequestBuilder,
        errand: &Errand,
    ) -> Result<reqwest::Response, Unanswered> {
        let (short, long) = (self.timing.reader(), self.timing.open.max(self.timing.reader()));
        let again = request.try_clone();
        let mut waited = Stopwatch::start();
        let mut first = pin!(request.send());
        loop {
            let is_patient = errand.is_patient();
            let limit = if is_patient { self.timing.open } else { short };
            tokio::select! {
                biased;
                answer = &mut first => return answer.map_err(Unanswered::Failed),
                () = waited.reach(limit) => {
                    match again {
                        Some(again) if !is_patient && !errand.has_others() => {
                            let second = again.send();
                            return either(first, second, waited, long).await;
                        }
                        _ => return Err(Unanswered::Silent(limit)),
                    }
                }
                () = errand.urgency().until_impatient(), if is_patient => {}
            }
        }
    }

    /// The failure of a request that got no answer.
    pub(super) fn unreachable(&self, cause: &Cause, url: &Url, place: &str) -> Failure {
        let mut detail = cause.words.clone();
        if !is_loopback(url) {
            match self.connections.proxy_for(url) {
                Some(proxy) => detail.push_str(&format!(" (the proxy is {proxy})")),
                None if cause.is_connect => detail.push_str(
                    "; where the internet is reached through a proxy, name it with --proxy or \
                     HTTPS_PROXY",
                ),
                None => {}
            }
        }
        let place = place.to_owned();
        match cause.kind {
            Kind::Passing if cause.is_connect => {
                Failure::Unreachable(SourceError::Unavailable { place, detail })
            }
            Kind::Passing => Failure::transient(SourceError::Unavailable { place, detail }),
            Kind::Nameless => Failure::Final(SourceError::Unavailable { place, detail }),
            Kind::Untrusted => Failure::Final(SourceError::Untrusted { place, detail }),
            Kind::UnknownAuthority => {
                detail.push_str(match self.tls.ca_files.is_empty() {
                    true => {
                        ": pass the certificate of that authority, or the registry's own, with \
                         --ca-file, or --tls-verify=false to trust anyone"
                    }
                    false => {
                        ", nor is it in the files of --ca-file: pass the certificate of that \
                         authority, or --tls-verify=false to trust anyone"
                    }
                });
                Failure::Final(SourceError::Untrusted { place, detail })
            }
            Kind::WantsCertificate => Failure::Final(SourceError::Unauthorized {
                place,
                detail,
                hint: "pass a client certificate with --cert and --key".to_owned(),
            }),
        }
    }
}
