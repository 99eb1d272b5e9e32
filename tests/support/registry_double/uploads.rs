//! The write side of the double: uploads, mounts and manifests, as distribution 2.8 behaves.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use kitfs::oci::{Digest, Document};

use super::{Access, At, Fault, Recorded, Shared, error};

/// The writes that the registry accepts, and how.
#[derive(Clone, Default)]
pub struct Writing {
    /// Nobody may push: 403, or tokens without the right.
    pub is_denied: bool,
    /// The status for a PATCH.
    pub refuses_chunks: Option<u16>,
    /// The status for a PUT with the bytes of a blob.
    pub refuses_whole: Option<u16>,
    /// The longest body of a request; a longer one gets 413.
    pub largest_body: Option<u64>,
    /// The longest request that a proxy lets through; it keeps a longer one back and then breaks it off.
    pub breaks_above: Option<u64>,
    /// The least length of a chunk, announced and kept.
    pub chunk_minimum: Option<u64>,
    /// No blob is mounted.
    pub refuses_mounts: bool,
    /// The Location of an upload is at the storage host.
    pub is_elsewhere: bool,
    /// The chunks are redirected (307) to the storage host.
    pub redirects: bool,
    /// Answers have no `Range` and no `Docker-Content-Digest`.
    pub is_terse: bool,
}

/// The uploads that were begun, by number.
pub(super) type Uploads = Mutex<BTreeMap<usize, Upload>>;

pub(super) struct Upload {
    repository: String,
    bytes: Vec<u8>,
}

pub(super) fn is_about_writing(method: &Method, uri: &Uri) -> bool {
    !matches!(*method, Method::GET | Method::HEAD) || uri.path().contains("/blobs/uploads/")
}

/// Answers a request, and records it.
pub(super) async fn answer(shared: Arc<Shared>, at: At, head: Parts, body: Body) -> Response {
    let arrived = Instant::now();
    let fault = {
        let mut rules = shared.rules.lock().unwrap();
        rules.iter_mut().find_map(|rule| rule.applies(at, &head.method, &head.uri))
    };
    if matches!(fault, Some(Fault::Hold)) {
        shared.held.fetch_add(1, Ordering::SeqCst);
        let _ = shared.is_released.subscribe().wait_for(|is_released| *is_released).await;
    }
    let response = match &fault {
        Some(Fault::Status(status)) => error(*status, "SCRIPTED", "scripted fault"),
        Some(Fault::RetryAfter(status, after)) => {
            let after = [(header::RETRY_AFTER, after.clone())];
            (after, error(*status, "TOOMANYREQUESTS", "slow down")).into_response()
        }
        Some(Fault::Redirect(target)) => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target.clone())]).into_response()
        }
        _ => match shared.refusal_of_write(at, &head) {
            Some(refusal) => refusal,
            None => shared.write(at, &head, body, fault.as_ref()).await,
        },
    };
    if let Some(Fault::Late(delay)) = fault {
        tokio::time::sleep(delay).await;
    }
    let (method, uri, headers) = (head.method, head.uri, head.headers);
    let (form, status) = (String::new(), response.status());
    let recorded = Recorded { at, method, uri, headers, form, status, arrived };
    shared.requests.lock().unwrap().push(recorded);
    if matches!(fault, Some(Fault::LoseAnswer)) {
        break_connection();
    }
    response
}

/// Ends the task of this connection, and so the connection. Prints nothing.
fn break_connection() -> ! {
    std::panic::resume_unwind(Box::new("a scripted break"))
}

impl Shared {
    fn refusal_of_write(&self, at: At, head: &Parts) -> Option<Response> {
        if at == At::Storage {
            let is_signed = head.uri.query().is_some_and(|query| query.contains("Signature="));
            let has_password = head.headers.contains_key(header::AUTHORIZATION);
            return (has_password || !is_signed)
                .then(|| (StatusCode::BAD_REQUEST, "only one auth mechanism").into_response());
        }
        let path = head.uri.path().trim_start_matches("/v2/");
        let name = ["/blobs/", "/manifests/"].iter().find_map(|kind| path.split_once(kind));
        let Some((name, _)) = name else {
            return Some(error(404, "UNSUPPORTED", "no such page"));
        };
        let scope = format!("repository:{name}:pull,push");
        let refusal = self.refusal(&scope, &head.headers);
        let is_denied = self.options.writing.is_denied;
        refusal.or_else(|| {
            is_denied.then(|| error(403, "DENIED", "requested access to the resource is denied"))
        })
    }

    async fn write(&self, at: At, head: &Parts, body: Body, fault: Option<&Fault>) -> Response {
        let path = head.uri.path().trim_start_matches("/v2/");
        if let Some((name, reference)) = path.split_once("/manifests/") {
            let bytes = axum::body::to_bytes(body, 4 << 20).await.unwrap_or_default();
            return self.put_manifest(name, reference, bytes, fault);
        }
        let Some((name, id)) = path.split_once("/blobs/uploads/") else {
            return error(404, "UNSUPPORTED", "no such page");
        };
        let query = |key: &str| {
            let pairs =
                url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
            pairs.into_iter().find(|(own, _)| own == key).map(|(_, value)| value.into_owned())
        };
        if head.method == Method::POST {
            return self.begin(name, &head.headers, query("mount"), query("from"));
        }
        let id: usize = id.parse().unwrap_or(usize::MAX);
        if matches!(fault, Some(Fault::Forget)) {
            self.uploads.lock().unwrap().remove(&id);
        }
        let at_now = self.uploads.lock().unwrap().get(&id).map(|upload| upload.bytes.len());
        let Some(has) = at_now.filter(|_| query("_state").is_some()) else {
            return error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
        };
        let writing = &self.options.writing;
        let length = head.headers.get(header::CONTENT_LENGTH);
        let length =
            length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
        if writing.largest_body.is_some_and(|largest| length > largest) {
            return error(413, "SIZE_INVALID", "request entity too large");
        }
        if writing.breaks_above.is_some_and(|longest| length > longest) {
            break_connection();
        }
        match head.method {
            Method::GET => self.state(name, id, has, StatusCode::NO_CONTENT, fault),
            Method::DELETE => {
                self.uploads.lock().unwrap().remove(&id);
                StatusCode::NO_CONTENT.into_response()
            }
            Method::PATCH => {
                if let Some(status) = writing.refuses_chunks {
                    return error(status, "UNSUPPORTED", "no chunks here");
                }
                if writing.redirects && at == At::Registry {
                    let target = self.elsewhere(name, id);
                    return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)])
                        .into_response();
                }
                let range = head.headers.get(header::CONTENT_RANGE);
                let range = range.and_then(|range| range.to_str().ok()?.split_once('-'));
                let start = range.and_then(|(start, _)| start.parse::<usize>().ok());
                let end = range.and_then(|(_, end)| end.parse::<u64>().ok());
                let is_right =
                    start == Some(has) && end.map(|end| end + 1 - has as u64) == Some(length);
                if !is_right {
                    return self.state(name, id, has, StatusCode::RANGE_NOT_SATISFIABLE, None);
                }
                self.take(id, body, fault).await;
                let has =
                    self.uploads.lock().unwrap().get(&id).map_or(0, |upload| upload.bytes.len());
                self.state(name, id, has, StatusCode::ACCEPTED, fault)
            }
            Method::PUT => {
                if length > 0 {
                    if let Some(status) = writing.refuses_whole {
                        return error(status, "UNSUPPORTED", "only chunks here");
                    }
                    self.take(id, body, fault).await;
                }
                self.end(name, id, query("digest"), fault)
            }
            _ => error(405, "UNSUPPORTED", "no such method"),
        }
    }

    fn begin(
        &self,
        name: &str,
        headers: &HeaderMap,
        mount: Option<String>,
        from: Option<String>,
    ) -> Response {
        let may_read = match (&from, &self.options.access) {
            (Some(from), Access::Bearer(_)) => {
                self.refusal(&format!("repository:{from}:pull"), headers).is_none()
            }
            _ => true,
        };
        let mount = mount.filter(|_| may_read);
        let mounted = mount.and_then(|digest| Digest::parse(&digest).ok()).filter(|digest| {
            let mut content = self.content.lock().unwrap();
            let other = from.and_then(|from| content.get(&from)?.blobs.get(digest).cloned());
            let bytes = other.filter(|_| !self.options.writing.refuses_mounts);
            bytes.is_some_and(|bytes| {
                content.entry(name.to_owned()).or_default().blobs.insert(*digest, bytes);
                true
            })
        });
        if let Some(digest) = mounted {
            let headers = [
                (header::LOCATION.as_str(), format!("/v2/{name}/blobs/{digest}")),
                ("docker-content-digest", digest.to_string()),
            ];
            return (StatusCode::CREATED, headers).into_response();
        }
        let id = self.secret();
        let upload = Upload { repository: name.to_owned(), bytes: Vec::new() };
        self.uploads.lock().unwrap().insert(id, upload);
        self.state(name, id, 0, StatusCode::ACCEPTED, None)
    }

    fn elsewhere(&self, name: &str, id: usize) -> String {
        let storage = self.host(At::Storage);
        format!("http://{storage}/v2/{name}/blobs/uploads/{id}?_state=s%3D&Signature=x")
    }

    /// The head that tells the state of an upload.
    fn state(
        &self,
        name: &str,
        id: usize,
        has: usize,
        status: StatusCode,
        fault: Option<&Fault>,
    ) -> Response {
        let writing = &self.options.writing;
        let location = match writing.is_elsewhere {
            true => self.elsewhere(name, id),
            false => format!("/v2/{name}/blobs/uploads/{id}?_state=s%3D{has}"),
        };
        let mut response = (status, [(header::LOCATION, location)]).into_response();
        let range = match fault {
            Some(Fault::SaysRange(range)) => Some(range.clone()),
            _ if writing.is_terse => None,
            _ => Some(format!("0-{}", has.saturating_sub(1))),
        };
        let headers = response.headers_mut();
        if let Some(range) = range {
            headers.insert(header::RANGE, range.parse().expect("a header value"));
        }
        if let Some(minimum) = writing.chunk_minimum {
            headers.insert("oci-chunk-min-length", minimum.into());
        }
        response
    }

    /// Keeps what arrives of a body.
    async fn take(&self, id: usize, body: Body, fault: Option<&Fault>) {
        let limit = match fault {
            Some(Fault::BreakRequest { after_bytes }) => *after_bytes,
            Some(Fault::TakePart { bytes }) => *bytes,
            _ => usize::MAX,
        };
        let (mut pieces, mut taken) = (body.into_data_stream(), 0);
        let mut is_corrupt = matches!(fault, Some(Fault::CorruptRequest));
        loop {
            if matches!(fault, Some(Fault::StallRequest { after_bytes }) if taken >= *after_bytes) {
                std::future::pending::<()>().await;
            }
            let Some(piece) = pieces.next().await else { break };
            // The client has gone: the bytes before stay.
            let Ok(piece) = piece else { break_connection() };
            if let Some(Fault::SlowRequest { bytes_per_second }) = fault {
                let seconds = piece.len() as f64 / f64::from(*bytes_per_second);
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            }
            let kept = piece.len().min(limit - taken);
            self.bytes_received.fetch_add(kept as u64, Ordering::SeqCst);
            taken += kept;
            if let Some(upload) = self.uploads.lock().unwrap().get_mut(&id) {
                upload.bytes.extend_from_slice(&piece[..kept]);
                if is_corrupt && let Some(byte) = upload.bytes.last_mut() {
                    *byte ^= 1;
                    is_corrupt = false;
                }
            }
            if taken == limit && matches!(fault, Some(Fault::BreakRequest { .. })) {
                break_connection();
            }
        }
    }

    fn end(
        &self,
        name: &str,
        id: usize,
        digest: Option<String>,
        fault: Option<&Fault>,
    ) -> Response {
        let Some(upload) = self.uploads.lock().unwrap().remove(&id) else {
            return error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
        };
        let got = Digest::of(&upload.bytes);
        if upload.repository != name || digest != Some(got.to_string()) {
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
        }
        let mut content = self.content.lock().unwrap();
        let blobs = &mut content.entry(name.to_owned()).or_default().blobs;
        blobs.insert(got, upload.bytes.into());
        self.created(got, fault)
    }

    fn created(&self, digest: Digest, fault: Option<&Fault>) -> Response {
        let said = match fault {
            Some(Fault::SaysDigest(said)) => said.clone(),
            _ if self.options.writing.is_terse => return StatusCode::CREATED.into_response(),
            _ => digest.to_string(),
        };
        (StatusCode::CREATED, [("docker-content-digest", said)]).into_response()
    }

    /// Stores a manifest whose blobs and manifests are there.
    fn put_manifest(
        &self,
        name: &str,
        reference: &str,
        json: Bytes,
        fault: Option<&Fault>,
    ) -> Response {
        let mut content = self.content.lock().unwrap();
        let repository = content.entry(name.to_owned()).or_default();
        let is_complete = match Document::decode(&json) {
            Ok(Document::Manifest(manifest)) => std::iter::once(&manifest.config)
                .chain(&manifest.layers)
                .all(|blob| repository.blobs.contains_key(&blob.digest)),
            Ok(Document::Index(index)) => index
                .entries
                .iter()
                .all(|it| repository.manifests.contains_key(&it.descriptor.digest)),
            Err(_) => return error(400, "MANIFEST_INVALID", "manifest invalid"),
        };
        if !is_complete {
            return error(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry");
        }
        let digest = Digest::of(&json);
        repository.manifests.insert(digest, json);
        if Digest::parse(reference).is_err() {
            repository.tags.insert(reference.to_owned(), digest);
        }
        self.created(digest, fault)
    }
}
