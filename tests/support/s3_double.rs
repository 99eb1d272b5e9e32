//! An S3 store in memory that checks signatures with its own code, with faults on request.
//!
//! The store computes the signature from the request that arrived (AWS, "Signature Version 4"). So it
//! refuses a client that signs another request than it sends.
//!
//! ```no_run
//! let store = S3Double::start(S3Options::default()).await;
//! let etag = store.put("bucket", "folder/data.bin", b"content");
//! kitfs.command(&["mount", …]).envs(store.environment());
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use super::registry_double::{At, Fault, Recorded, Rule, serve};
use super::tree::sha256;

/// The most by which a request's time may be off (AWS: 15 minutes).
const MOST_SKEW_SECONDS: i64 = 15 * 60;

/// An access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Keys {
    pub id: &'static str,
    pub secret: &'static str,
    pub token: Option<&'static str>,
}

/// The behaviour of a double without faults.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The key that may read. `None`: every request may read, signed or not.
    pub keys: Option<S3Keys>,
    /// The region of the buckets.
    pub region: &'static str,
}

impl Default for S3Options {
    fn default() -> Self {
        let keys = S3Keys { id: "AKIDOUBLE", secret: "secret/of+double", token: None };
        Self { keys: Some(keys), region: "us-east-1" }
    }
}

/// A running store. Dropping the value stops it.
pub struct S3Double {
    shared: Arc<Shared>,
    host: String,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    options: Mutex<S3Options>,
    /// Content and ETag of each `BUCKET/KEY[?versionId=…]`.
    objects: Mutex<BTreeMap<String, (Bytes, String)>>,
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<Recorded>>,
    bytes_served: Arc<AtomicU64>,
}

impl S3Double {
    /// Starts to listen.
    pub async fn start(options: S3Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let host = listener.local_addr().expect("it is bound").to_string();
        let shared = Arc::new(Shared {
            options: Mutex::new(options),
            objects: Mutex::default(),
            rules: Mutex::default(),
            requests: Mutex::default(),
            bytes_served: Arc::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it never ends");
        });
        Self { shared, host, server }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.host)
    }

    /// The environment variables that point the AWS tools to this store.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let options = self.shared.options.lock().unwrap();
        let mut environment =
            vec![("AWS_ENDPOINT_URL_S3", self.endpoint()), ("AWS_REGION", options.region.into())];
        if let Some(keys) = &options.keys {
            environment.push(("AWS_ACCESS_KEY_ID", keys.id.to_owned()));
            environment.push(("AWS_SECRET_ACCESS_KEY", keys.secret.to_owned()));
            environment.extend(keys.token.map(|token| ("AWS_SESSION_TOKEN", token.to_owned())));
        }
        environment
    }

    /// Stores an object; returns its ETag without quotes.
    pub fn put(&self, bucket: &str, key: &str, content: impl Into<Bytes>) -> String {
        let content = content.into();
        // As many digits as those of an MD5, which this is not: ETags say nothing of the bytes.
        let etag = sha256(&content)[..32].to_owned();
        let object = (content, etag.clone());
        self.shared.objects.lock().unwrap().insert(format!("{bucket}/{key}"), object);
        etag
    }

    /// Removes an object.
    pub fn remove(&self, bucket: &str, key: &str) {
        self.shared.objects.lock().unwrap().remove(&format!("{bucket}/{key}"));
    }

    /// Accepts only these keys from now on.
    pub fn accept(&self, keys: S3Keys) {
        self.shared.options.lock().unwrap().keys = Some(keys);
    }

    /// Adds a rule after the existing ones.
    pub fn script(&self, rule: Rule) {
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// All requests, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The requests for bytes, without the requests for sizes.
    pub fn reads(&self) -> Vec<Recorded> {
        self.requests().into_iter().filter(|one| one.method == Method::GET).collect()
    }

    /// The bytes of objects that were sent.
    pub fn bytes_served(&self) -> u64 {
        self.shared.bytes_served.load(Ordering::SeqCst)
    }
}

impl Drop for S3Double {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Answers a request, and records it.
async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let arrived = Instant::now();
    let (head, _) = request.into_parts();
    let fault = {
        let mut rules = shared.rules.lock().unwrap();
        rules.iter_mut().find_map(|rule| rule.applies(At::Storage, &head.method, &head.uri))
    };
    let response = match &fault {
        Some(Fault::Status(503)) => error(503, "SlowDown"),
        Some(Fault::Status(status)) => error(*status, "InternalError"),
        Some(Fault::Redirect(target)) => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target.clone())]).into_response()
        }
        _ => match shared.refusal(&head.method, &head.uri, &head.headers) {
            Some(refusal) => refusal,
            None => shared.object(&head.method, &head.uri, &head.headers, fault.as_ref()),
        },
    };
    let (method, uri, headers) = (head.method, head.uri, head.headers);
    let (status, form) = (response.status(), String::new());
    let recorded = Recorded { at: At::Storage, method, uri, headers, form, status, arrived };
    shared.requests.lock().unwrap().push(recorded);
    response
}

/// An error as S3 writes it.
fn error(status: u16, code: &str) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    (status, [(header::CONTENT_TYPE, "application/xml")], body).into_response()
}

impl Shared {
    /// The answer to a request without the right signature; `None` for a right one.
    fn refusal(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
        let options = self.options.lock().unwrap().clone();
        let keys = options.keys?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(authorization) = text("authorization") else {
            return Some(error(403, "AccessDenied"));
        };
        let field = |name: &str| {
            let (_, rest) = authorization.split_once(&format!("{name}="))?;
            rest.split(',').next()
        };
        let (Some(credential), Some(signed), Some(signature), Some(time)) = (
            field("Credential"),
            field("SignedHeaders"),
            field("Signature"),
            text("x-amz-date").filter(|time| time.len() == 16),
        ) else {
            return Some(error(400, "AuthorizationHeaderMalformed"));
        };
        let [id, date, region, "s3", "aws4_request"] =
            credential.split('/').collect::<Vec<_>>()[..]
        else {
            return Some(error(400, "AuthorizationHeaderMalformed"));
        };
        if region != options.region {
            let mut refusal = error(400, "AuthorizationHeaderMalformed");
            let own = options.region.parse().expect("a header value");
            refusal.headers_mut().insert("x-amz-bucket-region", own);
            return Some(refusal);
        }
        if id != keys.id {
            return Some(error(403, "InvalidAccessKeyId"));
        }
        if text("x-amz-security-token") != keys.token {
            return Some(error(400, "ExpiredToken"));
        }
        let now = jiff::Timestamp::now().as_second();
        let sent = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok();
        let sent = sent.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok());
        if sent.is_none_or(|sent| (sent.timestamp().as_second() - now).abs() > MOST_SKEW_SECONDS) {
            return Some(error(403, "RequestTimeTooSkewed"));
        }
        // S3 insists on the host and on every header of its own.
        let must = headers.keys().filter(|name| name.as_str().starts_with("x-amz-"));
        let mut must = must.map(|name| name.as_str()).chain(["host"]);
        if !must.all(|name| signed.split(';').any(|signed| signed == name)) {
            return Some(error(403, "AccessDenied"));
        }
        let lines = signed.split(';').map(|name| format!("{name}:{}\n", text(name).unwrap_or("")));
        let request = format!(
            "{method}\n{}\n{}\n{}\n{signed}\n{}",
            uri.path(),
            uri.query().unwrap_or_default(),
            lines.collect::<String>(),
            text("x-amz-content-sha256").unwrap_or_default(),
        );
        let scope = format!("{date}/{region}/s3/aws4_request");
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(request.as_bytes()));
        let mut key = hmac(format!("AWS4{}", keys.secret).as_bytes(), date);
        for part in [region, "s3", "aws4_request", &to_sign] {
            key = hmac(&key, part);
        }
        let expected: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        (expected != signature).then(|| error(403, "SignatureDoesNotMatch"))
    }

    fn object(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        fault: Option<&Fault>,
    ) -> Response {
        let mut name = decoded(uri.path().trim_start_matches('/'));
        if let Some(query) = uri.query() {
            name = format!("{name}?{query}");
        }
        let Some((content, etag)) = self.objects.lock().unwrap().get(&name).cloned() else {
            return error(404, "NoSuchKey");
        };
        let etag = format!("\"{etag}\"");
        if headers.get(header::IF_MATCH).is_some_and(|wanted| *wanted != *etag) {
            return error(412, "PreconditionFailed");
        }
        let served = Arc::clone(&self.bytes_served);
        let is_head = *method == Method::HEAD;
        let mut response = serve(&content, headers, fault, move |sent| {
            served.fetch_add(sent as u64, Ordering::SeqCst);
        });
        if is_head {
            *response.body_mut() = axum::body::Body::empty();
        }
        let own = response.headers_mut();
        own.insert(header::ETAG, etag.parse().expect("a header value"));
        let modified = "Fri, 24 May 2013 00:00:00 GMT".parse().expect("a header value");
        own.insert(header::LAST_MODIFIED, modified);
        response
    }
}

fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [byte, behind @ ..] = rest {
        rest = behind;
        if let (b'%', Some(digits)) = (byte, behind.get(..2)) {
            let digits = std::str::from_utf8(digits).expect("digits");
            bytes.push(u8::from_str_radix(digits, 16).expect("digits"));
            rest = &behind[2..];
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).expect("a key is text")
}

/// HMAC-SHA256 (RFC 2104) with keys that fit a block.
fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    assert!(key.len() <= 64, "no longer keys here");
    let pad = |with: u8| (0..64).map(move |at| key.get(at).copied().unwrap_or(0) ^ with);
    let inner = pad(0x36).chain(message.bytes()).collect::<Vec<_>>();
    let outer = pad(0x5c).chain(Sha256::digest(inner)).collect::<Vec<_>>();
    Sha256::digest(outer).to_vec()
}
