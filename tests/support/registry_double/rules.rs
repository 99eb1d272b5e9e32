//! Faults of answers, and the requests that they hit.

use std::time::Duration;

use axum::http::{Method, Uri};

use super::At;

/// A fault of an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with an error body as registries send it.
    Status(u16),
    /// This status and a `Retry-After`.
    RetryAfter(u16, String),
    /// The connection breaks after so many bytes of the body.
    Reset { after_bytes: usize },
    /// Nothing more comes after so many bytes of the body.
    Stall { after_bytes: usize },
    /// The body ends, as if complete, after so many bytes.
    Short { after_bytes: usize },
    /// The body goes on after its promised end, as far as HTTP lets it (no `Content-Length`).
    Long { extra_bytes: usize },
    /// This `Content-Range` for any request.
    ContentRange(String),
    /// 200 and the whole blob for any range.
    IgnoreRange,
    /// One bit of the body is wrong.
    Corrupt,
    /// A redirect to this URL.
    Redirect(String),
    /// The answer comes after this time.
    Late(Duration),
    /// The answer comes when so many requests for blobs are open at once, or after 10 seconds.
    Gather(usize),
    /// The answer comes when [`RegistryDouble::release`] is called, or was.
    Hold,
    /// The connection breaks after so many bytes of the request. The registry keeps them.
    BreakRequest { after_bytes: usize },
    /// Nothing is taken of the request after so many bytes, and no answer comes.
    StallRequest { after_bytes: usize },
    /// The request is taken with this rate.
    SlowRequest { bytes_per_second: u32 },
    /// The request is carried out, and the connection breaks instead of an answer.
    LoseAnswer,
    /// So many bytes of the request are kept, and the answer says so.
    TakePart { bytes: usize },
    /// An answer to an upload has this `Range`.
    SaysRange(String),
    /// An answer names this digest as the stored one.
    SaysDigest(String),
    /// The registry has forgotten the upload.
    Forget,
    /// One bit of what arrives is stored wrongly.
    CorruptRequest,
}

/// The requests that a fault hits, and the fault.
pub struct Rule {
    at: Option<At>,
    method: Option<Method>,
    part: String,
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// Requests whose path and query contain `part`.
    pub fn on(part: &str) -> Self {
        let fault = Fault::Status(500);
        Self { at: None, method: None, part: part.to_owned(), skip: 0, times: usize::MAX, fault }
    }

    /// Only at this host.
    pub fn at(self, at: At) -> Self {
        Self { at: Some(at), ..self }
    }

    /// Only with this method.
    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method), ..self }
    }

    /// Spares the first `skip` matching requests.
    pub fn after(self, skip: usize) -> Self {
        Self { skip, ..self }
    }

    /// Hits only so many matching requests.
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// The fault.
    pub fn then(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }

    pub(in crate::support) fn applies(
        &mut self,
        at: At,
        method: &Method,
        uri: &Uri,
    ) -> Option<Fault> {
        let matches = self.at.is_none_or(|own| own == at)
            && self.method.as_ref().is_none_or(|own| own == method)
            && uri.to_string().contains(&self.part);
        if !matches || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.fault.clone())
    }
}
