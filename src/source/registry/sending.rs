//! Sends one request, when its host has a slot for it. Waits for the answer as long as its errand has patience.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
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

type Sent = BoxFuture<'static, reqwest::Result<reqwest::Response>>;

async fn answer_of(sent: &mut Option<Sent>) -> reqwest::Result<reqwest::Response> {
    match sent {
        Some(sent) => sent.await,
        None => std::future::pending().await,
    }
}

impl RegistryClient {
    /// Sends a request when its host has a slot for it, and reports the answer to the limit of the host.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        url: &Url,
        place: &str,
        errand: &Errand,
    ) -> Result<Answer, Failure> {
        let (asked, host) = (Instant::now(), message::authority(url));
        if let Some(rate) = self.rules.rate(&host) {
            self.admission.limit_rate(&host, rate);
        }
        let slot = self.admission.request(&host, errand.urgency()).await;
        errand.has_queued(asked.elapsed());
        errand.urgency().note_slot(asked.elapsed());
        errand.urgency().note_host(&host);
        let answer = self.send_unlimited(request, url, place, errand).await?;
        let pause = retry::retry_after(answer.headers(), Timestamp::now());
        // The pause of the host is cut, because other requests have readers. A patient request itself obeys for
        // longer.
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

    /// Sends a request. If a reader waits for long, it sends another one beside the first. The connection may be
    /// stuck, or the host may be about to answer; both look the same. The first request stays, because a
    /// pull-through cache may begin its download anew for a new one. At most two requests run.
    ///
    /// ```text
    /// patient:                  sent ------------------------------------------> `open` is over
    /// a reader:                 sent --`hedge`--> again --twice that--> again..> `open` is over
    /// a reader, with mirrors:   sent --`connect` and `answer`--> the next endpoint is asked
    /// ```
    async fn first_answer(
        &self,
        request: RequestBuilder,
        errand: &Errand,
    ) -> Result<reqwest::Response, Unanswered> {
        let long = self.timing.open.max(self.timing.reader());
        let again = request.try_clone();
        let mut waited = Stopwatch::start();
        let mut first: Option<Sent> = Some(request.send().boxed());
        let mut beside: Option<Sent> = None;
        let (mut gap, mut next) = (self.timing.hedge, self.timing.hedge);
        let mut pulse = errand.pulse();
        loop {
            let is_patient = errand.is_patient();
            let end = match (is_patient, errand.has_others()) {
                (true, _) => self.timing.open,
                (false, true) => self.timing.reader(),
                (false, false) => long,
            };
            let can_hedge = !is_patient && !errand.has_others() && again.is_some();
            let limit = if can_hedge { next.min(end) } else { end };
            let failed = tokio::select! {
                biased;
                answer = answer_of(&mut first), if first.is_some() => match answer {
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        first = None;
                        error
                    }
                },
                answer = answer_of(&mut beside), if beside.is_some() => match answer {
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        beside = None;
                        error
                    }
                },
                () = waited.reach(limit) => {
                    let beat = errand.pulse();
                    if limit == end && (beat.is_none() || beat != pulse) {
                        // A large body takes its time.
                        (pulse, waited) = (beat, Stopwatch::start());
                        continue;
                    }
                    if limit == end {
                        return Err(Unanswered::Silent(end));
                    }
                    beside = again.as_ref().and_then(RequestBuilder::try_clone)
                        .map(|again| again.send().boxed());
                    gap *= 2;
                    next = waited.look() + gap;
                    continue;
                }
                () = errand.urgency().until_impatient(), if is_patient => continue,
            };
            // If one request fails, the other still counts.
            if first.is_none() && beside.is_none() {
                return Err(Unanswered::Failed(failed));
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
                let has_authorities = self.connections.has_authorities();
                detail.push_str(match self.tls.ca_files.is_empty() {
                    true if !has_authorities => {
                        ": this machine or container has no authorities at all. Install ca-certificates, name a file \
                         of authorities with --ca-file or SSL_CERT_FILE, or pass --tls-verify=false to trust anyone"
                    }
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
