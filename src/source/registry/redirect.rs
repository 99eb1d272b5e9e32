//! The real place of a blob: redirects, and the memory of their targets.
//!
//! Registries answer a blob request with a redirect to a signed URL at a storage host. A new request to the
//! registry for every range would double the round trips. So the last target of a blob is kept until it expires or
//! is refused.
//!
//! ```text
//!        .--> elsewhere (its target) --expired, or 400/401/403/404/410--> unknown
//! unknown
//!        '--> here (asked at the registry each time) --a target that lasts--> elsewhere
//! ```
//!
//! At a registry that redirects, one request at a time looks for the unknown target of a blob: it has the turn. The
//! others wait only for the redirect, because the turn ends before the request to the target. A blob is `here` when
//! the registry sends it itself, or redirects to a URL that cannot be used twice. Then no request waits for
//! another. A signed URL is a secret, and is never printed.

use std::num::NonZeroUsize;
use std::sync::Arc;

use http::{HeaderMap, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use url::Url;

use super::message;

/// The most redirects on the way to one body. 5: registry, CDN and storage make two.
pub(super) const HOP_LIMIT: usize = 5;

/// Registries that are known to redirect. 256: far more than a process talks to.
const REGISTRIES: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// Blobs whose targets are remembered. 4,096 signed URLs of about 1 KiB are 4 MiB.
const BLOBS: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");

/// The time before its end at which a target counts as expired. 10 s: clocks differ, and a request takes time.
const EXPIRY_MARGIN: SignedDuration = SignedDuration::from_secs(10);

/// Whether an answer redirects the client.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether a status means that a remembered target has expired. Storage hosts answer differently: S3 and Azure 403,
/// GCS 400, deleted objects 404 and 410.
pub(super) fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410)
}

/// The `Location` of an answer as text. UTF-8 stays, because `Url` encodes it. Other bytes are percent-encoded one
/// by one, so that the server gets the same bytes back.
pub(super) fn location(headers: &HeaderMap) -> Option<String> {
    let bytes = headers.get(header::LOCATION)?.as_bytes();
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Some(text.to_owned());
    }
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte.is_ascii() {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    Some(text)
}

/// The URL that a `Location` leads to from `from`. The first request went to the registry `home`.
///
/// # Errors
/// The message, when it is no http(s) URL, or leads from https to http at another host than home.
pub(super) fn next_hop(from: &Url, location: &str, home: &Url) -> Result<Url, String> {
    let next =
        from.join(location).map_err(|_| "a redirect to something that is no URL".to_owned())?;
    let mut next = by_https_at_home(&next, home);
    match (from.scheme(), next.scheme()) {
        ("http", "http") | (_, "https") => {}
        ("https", "http") => {
            return Err(format!(
                "a redirect from https to plain http ({}), which would give the content away",
                message::origin(&next)
            ));
        }
        (_, scheme) => return Err(format!("a redirect to a `{scheme}:` URL")),
    }
    // A password in a Location would be sent as one. No registry needs that.
    next.set_username("").and_then(|()| next.set_password(None)).expect("http URLs have a host");
    next.set_fragment(None);
    Ok(next)
}

/// `url`, with https in the place of http where it names the host of `home`, and home speaks https.
///
/// A registry behind a TLS proxy often does not know that clients use https. Its port may be named or left out;
/// another port is another server.
pub(super) fn by_https_at_home(url: &Url, home: &Url) -> Url {
    let has_same_port =
        url.port().is_none() || url.port_or_known_default() == home.port_or_known_default();
    let mut next = url.clone();
    if (url.scheme(), home.scheme()) == ("http", "https")
        && url.host() == home.host()
        && has_same_port
    {
        next.set_scheme("https")
            .and_then(|()| next.set_port(home.port()))
            .expect("an http URL with a host can be an https URL with a port");
    }
    next
}

/// Whether a redirect stays at its host, so that it may get the password. Scheme, host and port must be the same,
/// or http became https at the default port of each.
pub(super) fn is_same_host(from: &Url, to: &Url) -> bool {
    let is_secured = (from.scheme(), to.scheme()) == ("http", "https")
        && from.host() == to.host()
        && from.port().is_none()
        && to.port().is_none();
    from.origin() == to.origin() || is_secured
}

/// The repository in a URL of a registry's API (distribution-spec, "Endpoints"): `/v2/NAME/manifests/…`,
/// `/v2/NAME/blobs/…`, `/v2/NAME/tags/list`. Some registries have their API below a path of their own. URLs of
/// storage hosts have other paths.
pub(super) fn repository_in(url: &Url) -> Option<String> {
    let (_, behind) = url.path().split_once("/v2/")?;
    let (rest, _) = behind.rsplit_once('/')?;
    let kinds = ["/manifests", "/blobs", "/tags"];
    let name = kinds.iter().find_map(|kind| rest.strip_suffix(kind))?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// A URL that serves a blob, from a redirect.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) url: Url,
    /// The end of the URL's life, if the URL says so.
    expires: Option<Timestamp>,
}

impl Target {
    pub(super) fn new(url: Url) -> Self {
        Self { expires: expiry(&url), url }
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|end| now.duration_until(end) > EXPIRY_MARGIN)
    }
}

/// The end of a signed URL: AWS and Google V4 (`X-…-Date` + `X-…-Expires`), AWS V2, Google V2 and
/// CloudFront (`Expires`, seconds since 1970), Azure (`se`).
fn expiry(url: &Url) -> Option<Timestamp> {
    let query = |name: &str| {
        let found = url.query_pairs().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.into_owned())
    };
    for vendor in ["X-Amz", "X-Goog"] {
        let date = query(&format!("{vendor}-Date"));
        let seconds = query(&format!("{vendor}-Expires"));
        if let (Some(date), Some(seconds)) = (date, seconds) {
            let date: Timestamp = date.parse().ok()?;
            let seconds = SignedDuration::from_secs(seconds.parse::<u32>().ok()?.into());
            return date.checked_add(seconds).ok();
        }
    }
    if let Some(seconds) = query("Expires") {
        return Timestamp::from_second(seconds.parse().ok()?).ok();
    }
    query("se").and_then(|end| end.parse().ok())
}

/// The place of a blob.
#[derive(Default)]
enum Place {
    #[default]
    Unknown,
    /// At the registry itself, with a request to it each time.
    Here,
    Elsewhere(Target),
}

/// One blob of a registry that redirects.
#[derive(Default)]
struct Blob {
    place: Mutex<Place>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Blob {
    fn is_here(&self) -> bool {
        matches!(*self.place.lock(), Place::Here)
    }
}

/// The targets of blobs, by their URL at the registry.
pub(super) struct Targets {
    blobs: Mutex<LruCache<String, Arc<Blob>>>,
    /// Registries that have redirected a blob.
    redirecting: Mutex<LruCache<String, ()>>,
}

impl Targets {
    pub(super) fn new() -> Self {
        Self {
            blobs: Mutex::new(LruCache::new(BLOBS)),
            redirecting: Mutex::new(LruCache::new(REGISTRIES)),
        }
    }

    fn blob(&self, blob: &Url) -> Option<Arc<Blob>> {
        self.blobs.lock().get(blob.as_str()).map(Arc::clone)
    }

    fn blob_or_new(&self, blob: &Url) -> Arc<Blob> {
        let mut blobs = self.blobs.lock();
        Arc::clone(blobs.get_or_insert_ref(blob.as_str(), Arc::default))
    }

    /// The target of `blob`; `None` for an expired one.
    pub(super) fn find(&self, blob: &Url, now: Timestamp) -> Option<Target> {
        match &*self.blob(blob)?.place.lock() {
            Place::Elsewhere(target) => Some(target.clone()).filter(|target| target.is_fresh(now)),
            Place::Unknown | Place::Here => None,
        }
    }

    /// Waits for the turn to look for the target of `blob`; `None` where no turn is needed.
    pub(super) async fn turn(&self, blob: &Url) -> Option<OwnedMutexGuard<()>> {
        let known = match self.redirecting.lock().get(&message::origin(blob)) {
            Some(()) => self.blob_or_new(blob),
            None => return None,
        };
        if known.is_here() {
            return None;
        }
        let turn = Arc::clone(&known.turn).lock_owned().await;
        // The request before this one may have found that no turn is needed.
        (!known.is_here()).then_some(turn)
    }

    /// The registry has redirected `blob` to `url`.
    pub(super) fn led_to(&self, blob: &Url, url: &Url, now: Timestamp) -> Target {
        self.redirecting.lock().put(message::origin(blob), ());
        let target = Target::new(url.clone());
        // At the registry's own host a target needs its authorization, which targets do not get.
        let can_be_reused = target.is_fresh(now) && url.origin() != blob.origin();
        *self.blob_or_new(blob).place.lock() = match can_be_reused {
            true => Place::Elsewhere(target.clone()),
            false => Place::Here,
        };
        target
    }

    /// The registry has sent `blob` itself.
    pub(super) fn is_here(&self, blob: &Url) {
        if let Some(known) = self.blob(blob) {
            *known.place.lock() = Place::Here;
        }
    }

    /// Forgets `refused`, unless another request has found a newer target.
    pub(super) fn forget(&self, blob: &Url, refused: &Target) {
        let Some(known) = self.blob(blob) else { return };
        let mut place = known.place.lock();
        if matches!(&*place, Place::Elsewhere(target) if target == refused) {
            *place = Place::Unknown;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn locations() {
        let from = url("https://registry.example/v2/a/blobs/x?y");
        let home = url("https://registry.example/v2/");
        let next = |location| next_hop(&from, location, &home).map(|url| url.to_string());
        assert_eq!(next("/other#f"), Ok("https://registry.example/other".into()));
        assert_eq!(next("https://u:p@cdn.example/z?s"), Ok("https://cdn.example/z?s".into()));
        assert!(next("http://cdn.example/z?secret").unwrap_err().contains("plain http"));
        assert!(!next("http://cdn.example/z?secret").unwrap_err().contains("secret"));
        assert!(next("ftp://cdn.example/").is_err());
        assert!(next("file:///etc/passwd").is_err());
        assert!(next("https://").is_err());
        let plain = url("http://127.0.0.1:5000/v2/");
        assert!(next_hop(&plain, "http://127.0.0.1:6000/", &plain).is_ok());
        assert!(next_hop(&plain, "https://cdn.example/", &plain).is_ok());
        // The registry does not know that the client uses https.
        assert_eq!(next("http://registry.example/z"), Ok("https://registry.example/z".into()));
        assert!(next("http://registry.example:81/z").is_err());
    }

    #[test]
    fn a_location_may_hold_any_bytes() {
        let from = url("https://registry.example/v2/a/blobs/x");
        let next = |bytes: &[u8]| {
            let value = http::HeaderValue::from_bytes(bytes).unwrap();
            let headers = HeaderMap::from_iter([(header::LOCATION, value)]);
            next_hop(&from, &location(&headers).unwrap(), &from).map(|url| url.to_string())
        };
        let encoded = Ok("https://s.example/%E6%A8%A1%20x?f=%E5%9E%8B".to_owned());
        assert_eq!(next("https://s.example/模 x?f=型".as_bytes()), encoded);
        assert_eq!(
            next(b"https://s.example/\xe9?f=\xff"),
            Ok("https://s.example/%E9?f=%FF".into())
        );
        assert_eq!(location(&HeaderMap::new()), None);
    }

    #[test]
    fn a_password_stays_at_its_host() {
        let stays = |from: &str, to: &str| is_same_host(&url(from), &url(to));
        assert!(stays("http://a.example/t", "http://a.example/u?x"));
        assert!(stays("http://a.example/t", "https://A.example/t"));
        assert!(stays("https://a.example:8443/t", "https://a.example:8443/u"));
        for to in ["http://a.example/t", "https://a.example:444/t", "https://b.a.example/t"] {
            assert!(!stays("https://a.example/t", to), "{to}");
        }
        assert!(!stays("http://a.example:5000/t", "https://a.example/t"));
    }

    #[test]
    fn another_registry_is_told_from_a_storage_host() {
        let repository = |text: &str| repository_in(&url(text));
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(repository("https://b.example/v2/org/m/blobs/sha256:00"), name("org/m"));
        assert_eq!(repository("https://b.example/v2/m/manifests/v1?ns=x"), name("m"));
        assert_eq!(repository("https://b.example/v2/m/tags/list"), name("m"));
        let below = "https://b.example/artifactory/api/docker/hub/v2/org/m/blobs/sha256:00";
        assert_eq!(repository(below), name("org/m"));
        for other in [
            "https://s.example/docker/registry/v2/blobs/sha256/00/00aa/data",
            "https://s.example/v2/blobs/sha256:00",
            "https://s.example/v2/",
            "https://s.example/bucket/object",
        ] {
            assert_eq!(repository(other), None, "{other}");
        }
    }

    #[test]
    fn signed_urls_say_when_they_end() {
        let end = |query: &str| expiry(&url(&format!("https://s.example/o?{query}")));
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        assert_eq!(
            end("X-Amz-Date=20261124T180000Z&X-Amz-Expires=600&X-Amz-Signature=x"),
            at("2026-11-24T18:10:00Z")
        );
        assert_eq!(
            end("x-goog-date=20261124T180000Z&x-goog-expires=60"),
            at("2026-11-24T18:01:00Z")
        );
        assert_eq!(end("Expires=1795543200&Signature=x"), at("2026-11-24T18:00:00Z"));
        assert_eq!(end("sv=2020&se=2026-11-24T18%3A00%3A00Z&sig=x"), at("2026-11-24T18:00:00Z"));
        assert_eq!(end("X-Amz-Date=never&X-Amz-Expires=600"), None);
        assert_eq!(end("X-Amz-Date=20261124T180000Z&X-Amz-Expires=-1"), None);
        assert_eq!(end("Expires=99999999999999999999"), None);
        assert_eq!(end(""), None);
    }

    const BLOB: &str = "https://registry.example/v2/a/blobs/x";
    const OTHER: &str = "https://registry.example/v2/a/blobs/y";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_target_is_kept_until_it_ends_or_is_refused() {
        let targets = Targets::new();
        let blob = url(BLOB);
        let now = at("2026-11-24T18:00:00Z");
        assert!(targets.find(&blob, now).is_none());

        let end = url("https://s.example/o?se=2026-11-24T18:05:00Z");
        let target = targets.led_to(&blob, &end, now);
        assert!(targets.find(&blob, now).is_some());
        let late = at("2026-11-24T18:04:55Z");
        assert!(targets.find(&blob, late).is_none(), "the margin counts");

        let end = url("https://s.example/o?se=2026-11-24T19:00:00Z");
        let newer = targets.led_to(&blob, &end, now);
        targets.forget(&blob, &target);
        assert!(targets.find(&blob, late).is_some(), "an old refusal does not hit a new target");
        targets.forget(&blob, &newer);
        assert!(targets.find(&blob, late).is_none());
    }

    #[tokio::test]
    async fn turns_are_taken_at_registries_that_redirect() {
        let (targets, now) = (Targets::new(), Timestamp::now());
        assert!(targets.turn(&url(BLOB)).await.is_none());
        targets.led_to(&url(BLOB), &url("https://s.example/o"), now);
        for blob in [url(BLOB), url(OTHER)] {
            let turn = targets.turn(&blob).await;
            assert!(turn.is_some());
            assert!(targets.turn(&blob).now_or_never().is_none());
        }
        assert!(targets.turn(&url("https://other.example/v2/a/blobs/x")).await.is_none());
    }

    #[tokio::test]
    async fn no_request_waits_for_a_target_that_is_of_use_only_once() {
        let now = at("2026-11-24T18:00:00Z");
        for once in ["https://s.example/o?se=2026-11-24T18:00:05Z", "https://registry.example/o"] {
            let (targets, blob) = (Targets::new(), url(OTHER));
            targets.led_to(&url(BLOB), &url("https://s.example/o"), now);
            let turn = targets.turn(&blob).await;
            let mut waiting = Box::pin(targets.turn(&blob));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            targets.led_to(&blob, &url(once), now);
            drop(turn);
            assert!(waiting.await.is_none());
            assert!(targets.find(&blob, now).is_none());
        }
    }
}
