//! A registry in memory, with faults on request.
//!
//! Three listeners on 127.0.0.1 stand for the hosts of a real registry: the registry itself, the
//! storage host for redirected blobs, and the token server. The storage host refuses an
//! `Authorization` header, as S3 does, and expired signatures. All requests are recorded.
//!
//! ```no_run
//! let registry = RegistryDouble::start(Options::default()).await;
//! let blob = registry.push_blob("org/model", b"content".to_vec());
//! registry.push_manifest("org/model", "v1", manifest_json);
//! registry.script(Rule::on("/blobs/").times(2).then(Fault::Reset { after_bytes: 10 }));
//! mount(registry.reference("org/model", "v1"));
//! assert_eq!(registry.bytes_served(), 7);
//! ```
//!
//! Rules are tried in the order given; the first that matches and is not used up decides. Without
//! rules the double behaves as distribution does.

mod rules;
mod tls_listener;
mod uploads;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::{StreamExt, stream};
use kitfs::oci::{BlobId, Digest};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use rules::{Fault, Rule};
use tls_listener::{GO_ANSWER, TlsListener};
pub use uploads::Writing;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The size of a body's pieces.
const PIECE_BYTES: usize = 16 * 1024;

/// The behaviour of a double without faults.
#[derive(Clone, Default)]
pub struct Options {
    /// The access to repositories.
    pub access: Access,
    /// Send blob requests to the storage host, with URLs that are signed for this long.
    pub redirect_for: Option<Duration>,
    /// Tags on one page of a list.
    pub tags_per_page: Option<usize>,
    /// Speak TLS on the registry's own listener.
    pub tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    /// The answer of the TLS listener to plain http; without one, the words of Go's server.
    pub plain_answer: Option<&'static str>,
    /// The writes that the registry accepts.
    pub writing: Writing,
}

/// The access to repositories.
#[derive(Clone, Default)]
pub enum Access {
    /// Open to all.
    #[default]
    Open,
    /// With a password.
    Basic { username: String, password: String },
    /// With a token.
    Bearer(Tokens),
}

/// The conditions of a token.
#[derive(Clone)]
pub struct Tokens {
    /// The password; `None` for anonymous tokens.
    pub password: Option<(String, String)>,
    /// The identity token to exchange.
    pub identity: Option<String>,
    /// The `expires_in` of tokens, which is also their real lifetime.
    pub lifetime: Duration,
    /// Leave `expires_in` out of answers, and `token` in favour of `access_token`.
    pub terse: bool,
}

impl Default for Tokens {
    fn default() -> Self {
        let lifetime = Duration::from_secs(300);
        Self { password: None, identity: None, lifetime, terse: false }
    }
}

/// A host of the double.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Registry,
    Storage,
    TokenServer,
}

/// A request, and the status of its answer.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub at: At,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// The body, where it is a form.
    pub form: String,
    pub status: StatusCode,
    /// The time of its arrival.
    pub arrived: Instant,
}

impl Recorded {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A running registry. Dropping the value stops it.
pub struct RegistryDouble {
    shared: Arc<Shared>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

struct Shared {
    options: Options,
    addresses: Vec<SocketAddr>,
    content: Mutex<BTreeMap<String, Repository>>,
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<Recorded>>,
    /// The end of each token, and the scopes that were asked for.
    tokens: Mutex<BTreeMap<String, (Instant, String)>>,
    uploads: uploads::Uploads,
    /// Signatures with a number below this have ended.
    first_signature: AtomicUsize,
    next_secret: AtomicUsize,
    bytes_served: AtomicU64,
    bytes_received: AtomicU64,
    busy: AtomicUsize,
    peak: AtomicUsize,
    held: AtomicUsize,
    /// Connections that were accepted, by host.
    connections: [AtomicUsize; 3],
    is_released: watch::Sender<bool>,
}

#[derive(Default)]
struct Repository {
    blobs: BTreeMap<Digest, Bytes>,
    manifests: BTreeMap<Digest, Bytes>,
    tags: BTreeMap<String, Digest>,
}

impl RegistryDouble {
    /// Starts to listen.
    pub async fn start(options: Options) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners
                .push(TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports"));
        }
        let addresses =
            listeners.iter().map(|one| one.local_addr().expect("it is bound")).collect();
        let tls = options.tls.clone();
        let plain_answer = options.plain_answer.unwrap_or(GO_ANSWER);
        let shared = Arc::new(Shared {
            options,
            addresses,
            content: Mutex::default(),
            rules: Mutex::default(),
            requests: Mutex::default(),
            tokens: Mutex::default(),
            uploads: Default::default(),
            first_signature: AtomicUsize::new(0),
            next_secret: AtomicUsize::new(0),
            bytes_served: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            connections: Default::default(),
            is_released: watch::Sender::new(false),
        });
        let mut servers = Vec::new();
        for (at, listener) in
            [At::Registry, At::Storage, At::TokenServer].into_iter().zip(listeners)
        {
            let router = Router::new().fallback(answer).with_state((Arc::clone(&shared), at));
            let counting = Arc::clone(&shared);
            let count = move || {
                counting.connections[at as usize].fetch_add(1, Ordering::SeqCst);
            };
            servers.push(match tls.clone().filter(|_| at == At::Registry) {
                Some(tls) => tokio::spawn(async move {
                    let listener =
                        TlsListener::new(listener, tls, plain_answer).tap_io(move |_| count());
                    axum::serve(listener, router).await.expect("it never ends");
                }),
                None => tokio::spawn(async move {
                    let listener = listener.tap_io(move |_| count());
                    axum::serve(listener, router).await.expect("it never ends");
                }),
            });
        }
        Self { shared, servers }
    }

    /// `127.0.0.1:PORT` of the registry.
    pub fn host(&self) -> String {
        self.shared.host(At::Registry)
    }

    /// `127.0.0.1:PORT` of the storage host.
    pub fn storage_host(&self) -> String {
        self.shared.host(At::Storage)
    }

    /// A reference to a tag.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.host())
    }

    /// Stores a blob.
    pub fn push_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> BlobId {
        let bytes = bytes.into();
        let blob = BlobId { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        self.change(repository, |content| content.blobs.insert(blob.digest, bytes));
        blob
    }

    /// Stores a manifest and points a tag at it.
    pub fn push_manifest(&self, repository: &str, tag: &str, json: impl Into<Bytes>) -> Digest {
        let json = json.into();
        let digest = Digest::of(&json);
        self.change(repository, |content| {
            content.manifests.insert(digest, json);
            content.tags.insert(tag.to_owned(), digest);
        });
        digest
    }

    /// Stores all of an OCI layout folder, each manifest under its tag. Panics without a layout.
    pub fn push_layout(&self, repository: &str, folder: &Path) {
        let read = |path: &Path| {
            std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let blobs = folder.join("blobs/sha256");
        for entry in blobs.read_dir().expect("a layout has blobs") {
            self.push_blob(repository, read(&entry.expect("the folder can be read").path()));
        }
        let index: Value = serde_json::from_slice(&read(&folder.join("index.json"))).expect("JSON");
        for manifest in index["manifests"].as_array().expect("a list") {
            let digest =
                manifest["digest"].as_str().expect("a digest").trim_start_matches("sha256:");
            let tag = &manifest["annotations"]["org.opencontainers.image.ref.name"];
            self.push_manifest(
                repository,
                tag.as_str().unwrap_or("latest"),
                read(&blobs.join(digest)),
            );
        }
    }

    /// The bytes of a blob, if the repository has it.
    pub fn blob(&self, repository: &str, digest: Digest) -> Option<Bytes> {
        let content = self.shared.content.lock().unwrap();
        content.get(repository)?.blobs.get(&digest).cloned()
    }

    /// The manifest that a tag names, and its bytes.
    pub fn tagged(&self, repository: &str, tag: &str) -> Option<(Digest, Bytes)> {
        let content = self.shared.content.lock().unwrap();
        let repository = content.get(repository)?;
        let digest = repository.tags.get(tag)?;
        Some((*digest, repository.manifests[digest].clone()))
    }

    /// The manifests of a repository.
    pub fn manifests(&self, repository: &str) -> Vec<Bytes> {
        let content = self.shared.content.lock().unwrap();
        content.get(repository).map_or(Vec::new(), |it| it.manifests.values().cloned().collect())
    }

    /// The uploads that were begun and not ended.
    pub fn open_uploads(&self) -> usize {
        self.shared.uploads.lock().unwrap().len()
    }

    /// Bytes of blobs that arrived, of broken uploads too.
    pub fn bytes_received(&self) -> u64 {
        self.shared.bytes_received.load(Ordering::SeqCst)
    }

    /// Removes a blob.
    pub fn lose_blob(&self, repository: &str, digest: Digest) {
        self.change(repository, |content| content.blobs.remove(&digest));
    }

    /// Adds a rule after the existing ones.
    pub fn script(&self, rule: Rule) {
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Every token that was issued is refused from now on.
    pub fn revoke_tokens(&self) {
        self.shared.tokens.lock().unwrap().clear();
    }

    /// Every URL that was signed is refused from now on.
    pub fn end_signatures(&self) {
        let next = self.shared.next_secret.load(Ordering::SeqCst);
        self.shared.first_signature.store(next, Ordering::SeqCst);
    }

    /// All requests in order, without those that find the scheme of a loopback host (`/v2/`).
    pub fn requests(&self) -> Vec<Recorded> {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|one| one.uri.path() != "/v2/").cloned().collect()
    }

    /// The requests to one host with `part` in path or query.
    pub fn requests_to(&self, at: At, part: &str) -> Vec<Recorded> {
        let mut requests = self.requests();
        requests.retain(|one| one.at == at && one.uri.to_string().contains(part));
        requests
    }

    /// Requests for tokens.
    pub fn token_requests(&self) -> usize {
        self.requests_to(At::TokenServer, "").len()
    }

    /// Bytes of blobs sent.
    pub fn bytes_served(&self) -> u64 {
        self.shared.bytes_served.load(Ordering::SeqCst)
    }

    /// The most requests for blobs that were open at once, each from its arrival to the end of the
    /// body.
    pub fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::SeqCst)
    }

    /// The connections that one host has accepted.
    pub fn connections(&self, at: At) -> usize {
        self.shared.connections[at as usize].load(Ordering::SeqCst)
    }

    /// The requests that [`Fault::Hold`] has held so far.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Answers the requests that [`Fault::Hold`] holds, and holds none any more.
    pub fn release(&self) {
        self.shared.is_released.send_replace(true);
    }

    fn change<T>(&self, repository: &str, change: impl FnOnce(&mut Repository) -> T) {
        change(self.shared.content.lock().unwrap().entry(repository.to_owned()).or_default());
    }
}

impl Drop for RegistryDouble {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

type Served = (Arc<Shared>, At);

/// Answers a request of any host, and records it.
async fn answer(State((shared, at)): State<Served>, request: Request) -> Response {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    if at != At::TokenServer && uploads::is_about_writing(&head.method, &head.uri) {
        return uploads::answer(shared, at, head, body).await;
    }
    let form = axum::body::to_bytes(body, 64 * 1024).await.unwrap_or_default();
    let form = String::from_utf8_lossy(&form).into_owned();
    let fault = {
        let mut rules = shared.rules.lock().unwrap();
        rules.iter_mut().find_map(|rule| rule.applies(at, &head.method, &head.uri))
    };
    let is_for_blob = at == At::Storage || head.uri.path().contains("/blobs/");
    let busy = is_for_blob.then(|| Busy::new(Arc::clone(&shared)));
    match fault {
        Some(Fault::Late(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Gather(requests)) => shared.gather(requests).await,
        Some(Fault::Hold) => {
            shared.held.fetch_add(1, Ordering::SeqCst);
            let _ = shared.is_released.subscribe().wait_for(|is_released| *is_released).await;
        }
        _ => {}
    }
    let response = match (&fault, at) {
        (Some(Fault::Status(status)), _) => error(*status, "SCRIPTED", "scripted fault"),
        (Some(Fault::RetryAfter(status, after)), _) => {
            let after = [(header::RETRY_AFTER, after.clone())];
            (after, error(*status, "TOOMANYREQUESTS", "slow down")).into_response()
        }
        (Some(Fault::Redirect(target)), _) => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target.clone())]).into_response()
        }
        (_, At::Registry) => shared.registry(&head.uri, &head.headers, fault.as_ref(), busy),
        (_, At::Storage) => shared.storage(&head.uri, &head.headers, fault.as_ref(), busy),
        (_, At::TokenServer) => shared.token(&head.method, &head.uri, &head.headers, &form),
    };
    let (method, uri, headers) = (head.method, head.uri, head.headers);
    let status = response.status();
    let recorded = Recorded { at, method, uri, headers, form, status, arrived };
    shared.requests.lock().unwrap().push(recorded);
    response
}

/// An error as distribution-spec wants it.
fn error(status: u16, code: &str, message: &str) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    let body = json!({ "errors": [{ "code": code, "message": message }] });
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

impl Shared {
    /// Waits until so many requests for blobs are or were open at once.
    async fn gather(&self, requests: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.peak.load(Ordering::SeqCst) < requests && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn host(&self, at: At) -> String {
        self.addresses[at as usize].to_string()
    }

    fn secret(&self) -> usize {
        self.next_secret.fetch_add(1, Ordering::SeqCst)
    }

    fn registry(
        self: &Arc<Self>,
        uri: &Uri,
        headers: &HeaderMap,
        fault: Option<&Fault>,
        busy: Option<Busy>,
    ) -> Response {
        let Some(path) = uri.path().strip_prefix("/v2/").filter(|path| !path.is_empty()) else {
            return StatusCode::OK.into_response();
        };
        if path == "_catalog" {
            return match self.refusal("registry:catalog:*", headers) {
                Some(refusal) => refusal,
                None => {
                    let content = self.content.lock().unwrap();
                    self.page("_catalog", "repositories", content.keys(), uri)
                }
            };
        }
        let kinds = ["/manifests/", "/blobs/", "/tags/"];
        let Some((name, kind, rest)) = kinds
            .iter()
            .find_map(|kind| path.split_once(kind).map(|(name, rest)| (name, *kind, rest)))
        else {
            return error(404, "UNSUPPORTED", "no such page");
        };
        if let Some(refusal) = self.refusal(&format!("repository:{name}:pull"), headers) {
            return refusal;
        }
        let content = self.content.lock().unwrap();
        let Some(repository) = content.get(name) else {
            return error(404, "NAME_UNKNOWN", "repository name not known to registry");
        };
        match kind {
            "/manifests/" => manifest(repository, rest, headers, fault),
            "/tags/" => {
                self.page(&format!("{name}/tags/list"), "tags", repository.tags.keys(), uri)
            }
            _ => {
                let digest = Digest::parse(rest).ok();
                match digest.and_then(|digest| repository.blobs.get(&digest)) {
                    None => error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
                    Some(_) if self.options.redirect_for.is_some() => self.redirect(name, rest),
                    Some(bytes) => self.blob(bytes, headers, fault, busy),
                }
            }
        }
    }

    /// The answer to a request without the right to `scope`.
    fn refusal(&self, scope: &str, headers: &HeaderMap) -> Option<Response> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let challenge = match &self.options.access {
            Access::Open => return None,
            Access::Basic { username, password } => {
                if given == Some(&basic(username, password)) {
                    return None;
                }
                "Basic realm=\"double\"".to_owned()
            }
            Access::Bearer(_) => {
                let token = given.and_then(|given| given.strip_prefix("Bearer "));
                let tokens = self.tokens.lock().unwrap();
                let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
                // A token is for the repositories that were asked for, and to push only where that was.
                let is_enough = |(end, asked): &(Instant, String)| {
                    let mut asked = asked.split(' ').filter_map(|asked| asked.rsplit_once(':'));
                    let may_push =
                        |asked: &str| asked.contains("push") && !self.options.writing.is_denied;
                    Instant::now() < *end
                        && asked.any(|(name, asked)| {
                            name == resource && (may_push(asked) || !actions.ends_with("push"))
                        })
                };
                if token.and_then(|token| tokens.get(token)).is_some_and(is_enough) {
                    return None;
                }
                format!(
                    "Bearer realm=\"http://{}/token\",service=\"double\",scope=\"{scope}\"",
                    self.host(At::TokenServer)
                )
            }
        };
        let challenge = [(header::WWW_AUTHENTICATE, challenge)];
        let body = error(401, "UNAUTHORIZED", "authentication required");
        Some((challenge, body).into_response())
    }

    /// A page of a list that lies at `path`.
    fn page<'a>(
        &self,
        path: &str,
        kind: &str,
        names: impl Iterator<Item = &'a String>,
        uri: &Uri,
    ) -> Response {
        let query = uri.query().unwrap_or_default();
        let last = query.split('&').find_map(|pair| pair.strip_prefix("last=")).unwrap_or_default();
        let mut behind: Vec<_> = names.filter(|name| name.as_str() > last).cloned().collect();
        let more = self.options.tags_per_page.filter(|&limit| behind.len() > limit);
        behind.truncate(more.unwrap_or(usize::MAX));
        let page = json!({ kind: behind }).to_string();
        match (more, behind.last()) {
            (Some(limit), Some(last)) => {
                let next = format!("</v2/{path}?last={last}&n={limit}>; rel=\"next\"");
                ([(header::LINK, next)], page).into_response()
            }
            _ => page.into_response(),
        }
    }

    fn redirect(&self, name: &str, digest: &str) -> Response {
        let lifetime = self.options.redirect_for.unwrap_or_default().as_secs();
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let (storage, signature) = (self.host(At::Storage), self.secret());
        let target = format!(
            "http://{storage}/{name}/{digest}?X-Amz-Date={now}&X-Amz-Expires={lifetime}&X-Amz-Signature={signature}"
        );
        (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response()
    }

    fn storage(
        self: &Arc<Self>,
        uri: &Uri,
        headers: &HeaderMap,
        fault: Option<&Fault>,
        busy: Option<Busy>,
    ) -> Response {
        if headers.contains_key(header::AUTHORIZATION) {
            return (StatusCode::BAD_REQUEST, "only one auth mechanism allowed").into_response();
        }
        let signature = uri.query().and_then(|query| query.rsplit_once("Signature="));
        let signature = signature.and_then(|(_, number)| number.parse::<usize>().ok());
        if signature.is_none_or(|number| number < self.first_signature.load(Ordering::SeqCst)) {
            return (StatusCode::FORBIDDEN, "Request has expired").into_response();
        }
        let content = self.content.lock().unwrap();
        let path = uri.path().trim_start_matches('/').rsplit_once('/');
        let bytes = path
            .and_then(|(name, digest)| content.get(name)?.blobs.get(&Digest::parse(digest).ok()?));
        match bytes {
            Some(bytes) => self.blob(bytes, headers, fault, busy),
            None => (StatusCode::NOT_FOUND, "NoSuchKey").into_response(),
        }
    }

    fn token(&self, method: &Method, uri: &Uri, headers: &HeaderMap, form: &str) -> Response {
        let Access::Bearer(tokens) = &self.options.access else {
            return error(404, "UNSUPPORTED", "no tokens here");
        };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let is_known = if *method == Method::POST {
            let identity = tokens.identity.as_ref();
            identity.is_some_and(|identity| form.contains(&format!("refresh_token={identity}")))
        } else {
            match &tokens.password {
                Some((username, password)) => given == Some(&basic(username, password)),
                None => tokens.identity.is_none(),
            }
        };
        let asked = format!("{uri} {form}");
        let scopes = ["scope=repository%3A", "scope=registry%3Acatalog%3A"];
        if !is_known || !scopes.iter().any(|scope| asked.contains(scope)) {
            return error(401, "UNAUTHORIZED", "incorrect username or password");
        }
        let token = format!("secret-token-{}", self.secret());
        let end = Instant::now() + tokens.lifetime;
        let text = uri.query().filter(|query| !query.is_empty()).unwrap_or(form);
        let pairs = url::form_urlencoded::parse(text.as_bytes());
        let scopes: Vec<_> =
            pairs.filter(|(key, _)| key == "scope").map(|(_, scope)| scope).collect();
        self.tokens.lock().unwrap().insert(token.clone(), (end, scopes.join(" ")));
        let answer = if tokens.terse {
            json!({ "access_token": token })
        } else {
            json!({ "token": token, "expires_in": tokens.lifetime.as_secs() })
        };
        answer.to_string().into_response()
    }

    /// A blob, or the requested range of a blob.
    fn blob(
        self: &Arc<Self>,
        bytes: &Bytes,
        headers: &HeaderMap,
        fault: Option<&Fault>,
        busy: Option<Busy>,
    ) -> Response {
        let shared = Arc::clone(self);
        serve(bytes, headers, fault, move |sent| {
            let _held = &busy;
            shared.bytes_served.fetch_add(sent as u64, Ordering::SeqCst);
        })
    }
}

/// Bytes or the requested range of them, changed by the fault. `sent` counts the bytes that leave,
/// and lives as long as the body.
pub(super) fn serve(
    bytes: &Bytes,
    headers: &HeaderMap,
    fault: Option<&Fault>,
    sent: impl Fn(usize) + Send + 'static,
) -> Response {
    let asked = match fault {
        Some(Fault::IgnoreRange) => None,
        _ => headers.get(header::RANGE).and_then(|value| value.to_str().ok()),
    };
    let size = bytes.len();
    let range = match asked.map(|asked| parse_range(asked, size)) {
        None => 0..size,
        Some(Some(range)) => range,
        Some(None) => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
        }
    };
    let mut response = Response::new(body(bytes.slice(range.clone()), fault, sent));
    let own = response.headers_mut();
    if asked.is_some() {
        let text = match fault {
            Some(Fault::ContentRange(text)) => text.clone(),
            _ => format!("bytes {}-{}/{size}", range.start, range.end - 1),
        };
        own.insert(header::CONTENT_RANGE, text.parse().expect("a header value"));
    }
    if !matches!(fault, Some(Fault::Short { .. } | Fault::Long { .. })) {
        own.insert(header::CONTENT_LENGTH, range.len().into());
    }
    if asked.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

/// A body that counts its bytes, and fails as the fault says.
fn body(bytes: Bytes, fault: Option<&Fault>, sent: impl Fn(usize) + Send + 'static) -> Body {
    let mut content = bytes.to_vec();
    let mut end: Option<io::Result<()>> = Some(Ok(()));
    match fault {
        Some(Fault::Reset { after_bytes }) => {
            content.truncate(*after_bytes);
            end = Some(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Some(Fault::Stall { after_bytes }) => {
            content.truncate(*after_bytes);
            end = None;
        }
        Some(Fault::Short { after_bytes }) => content.truncate(*after_bytes),
        Some(Fault::Long { extra_bytes }) => {
            content.extend(std::iter::repeat_n(0, *extra_bytes));
        }
        Some(Fault::Corrupt) => {
            if let Some(byte) = content.first_mut() {
                *byte ^= 1;
            }
        }
        _ => {}
    }
    let pieces: Vec<_> = content.chunks(PIECE_BYTES).map(Bytes::copy_from_slice).collect();
    let pieces = stream::iter(pieces).map(move |piece| {
        sent(piece.len());
        Ok::<_, io::Error>(piece)
    });
    let end = async move {
        match end {
            Some(Ok(())) => None,
            Some(Err(error)) => {
                // The bytes before the break arrive first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some(Err(error))
            }
            None => std::future::pending().await,
        }
    };
    Body::from_stream(pieces.chain(stream::once(end).filter_map(std::future::ready)))
}

/// Counts the open answers.
struct Busy(Arc<Shared>);

impl Busy {
    fn new(shared: Arc<Shared>) -> Self {
        let busy = shared.busy.fetch_add(1, Ordering::SeqCst) + 1;
        shared.peak.fetch_max(busy, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

fn manifest(
    repository: &Repository,
    selector: &str,
    headers: &HeaderMap,
    fault: Option<&Fault>,
) -> Response {
    let accepts = headers.get_all(header::ACCEPT).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.contains(MANIFEST_TYPE) || value.contains("*/*"))
    });
    let digest = Digest::parse(selector).ok().or_else(|| repository.tags.get(selector).copied());
    let found = digest.and_then(|digest| Some((digest, repository.manifests.get(&digest)?)));
    let Some((digest, json)) = found.filter(|_| accepts) else {
        return error(404, "MANIFEST_UNKNOWN", "manifest unknown");
    };
    let mut json = json.to_vec();
    if let (Some(Fault::Corrupt), Some(byte)) = (fault, json.last_mut()) {
        *byte ^= 1;
    }
    let named =
        [("docker-content-digest", digest.to_string()), ("content-type", MANIFEST_TYPE.into())];
    (named, json).into_response()
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}

fn parse_range(text: &str, size: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: usize = first.parse().ok()?;
    let last: usize = if last.is_empty() { size - 1 } else { last.parse().ok()? };
    (first < size && first <= last).then(|| first..(last + 1).min(size))
}
