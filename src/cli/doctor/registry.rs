//! Checks of a registry, by the client that mounts use ([`crate::source::registry::Probe`]).

use std::time::Duration;

use super::super::sizes;
use super::check::{Check, Subject};
use crate::oci::{BlobId, BlobOffset, Document, Manifest, Selector};
use crate::process::running_time;
use crate::source::registry::{Greeting, Login, Probe, PushRights, Rate, ServedRange};
use crate::source::{SourceError, Sources};

const GROUP: &str = "Registry";
const ADDRESS: Subject = Subject(GROUP, "address");
const REACH: Subject = Subject(GROUP, "reachability");
const LOGIN: Subject = Subject(GROUP, "login");
const CLOCK: Subject = Subject(GROUP, "clock");
const KIT: Subject = Subject(GROUP, "kit");
const RATE: Subject = Subject(GROUP, "rate limit");
const RANGES: Subject = Subject(GROUP, "ranges");
const STORAGE: Subject = Subject(GROUP, "redirects");
const REFERRERS: Subject = Subject(GROUP, "referrers");
const UPLOADS: Subject = Subject(GROUP, "uploads");

/// The error of the clock, in seconds, from which fresh tokens look old.
const SKEW_SECONDS: u64 = 60;
/// The error of the clock, in seconds, from which S3 refuses signatures (RequestTimeTooSkewed).
const WRONG_SKEW_SECONDS: u64 = 15 * 60;

/// The time to the head of an answer from which every first read is slow.
const SLOW: Duration = Duration::from_secs(2);

/// The bytes of a blob to ask for: one read of the kernel.
const RANGE_BYTES: u64 = 128 * 1024;

/// A registry, and how to look at it.
pub(super) struct Look<'a> {
    pub sources: &'a Sources,
    pub host: &'a str,
    /// Empty to look at the registry alone.
    pub repository: &'a str,
    pub selector: Option<&'a Selector>,
    /// The time for each request.
    pub limit: Duration,
    /// Begin an upload, and take it back.
    pub tries_uploads: bool,
}

/// Checks every address of the registry, and calls `show` with each check as it is made.
pub(super) async fn check(look: &Look<'_>, show: &mut impl FnMut(Check)) {
    let probes = match look.sources.probes(look.host, look.repository) {
        Ok(probes) => probes,
        Err(error) => return show(ADDRESS.failed(error)),
    };
    let count = probes.len();
    for (index, probe) in probes.iter().enumerate() {
        if count > 1 {
            show(ADDRESS.ok(format!("{} of {count} in hosts.toml", index + 1)));
        }
        look.address(probe, show).await;
    }
}

impl Look<'_> {
    /// Waits for a request as long as the limit.
    async fn within<T>(
        &self,
        question: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let late = |_| SourceError::Unavailable {
            place: self.host.to_owned(),
            detail: format!("no answer came within {} s (--timeout)", self.limit.as_secs()),
        };
        running_time::timeout(self.limit, question).await.map_err(late)?
    }

    async fn address(&self, probe: &Probe, show: &mut impl FnMut(Check)) {
        let greeting = match self.within(probe.greet()).await {
            Ok(greeting) => greeting,
            Err(error) => return show(REACH.failed(error)),
        };
        show(reached(&greeting));
        show(login(&greeting));
        show(clock(greeting.clock_ahead_seconds));
        if self.repository.is_empty() {
            let words = "name a kit to check rights, ranges and uploads: `kitfs doctor HOST/REPOSITORY:TAG`";
            return show(KIT.skip(words));
        }
        self.pulls(probe, show).await;
        if probe.can_push() {
            show(self.uploads(probe).await);
        }
    }

    /// Checks what a mount asks for.
    async fn pulls(&self, probe: &Probe, show: &mut impl FnMut(Check)) {
        let latest = Selector::Tag("latest".to_owned());
        let selector = self.selector.unwrap_or(&latest);
        if !probe.can_resolve() && matches!(selector, Selector::Tag(_)) {
            return show(KIT.skip("hosts.toml lets this address resolve no tags"));
        }
        let found = match self.within(probe.manifest(selector)).await {
            Ok(found) => found,
            Err(error) => return show(KIT.failed(error)),
        };
        show(KIT.ok(format!("{} may be read; {}", self.repository, found.digest)));
        show(rate(found.rate));
        match self.within(probe.referrers(found.digest)).await {
            Ok(Some(count)) => show(REFERRERS.ok(format!("listed: {count}; kitfs needs none"))),
            Ok(None) => show(REFERRERS.ok("not listed by this registry; kitfs needs none")),
            Err(error) => {
                show(REFERRERS.warn(error.to_string(), "kitfs needs none; other tools may"))
            }
        }
        if !probe.can_pull() {
            return show(RANGES.skip("hosts.toml lets this address serve no content"));
        }
        match self.largest_blob(probe, &found.bytes).await {
            Ok(Some(blob)) => self.ranges(probe, blob, show).await,
            Ok(None) => show(RANGES.skip("the kit has no layer with two bytes or more")),
            Err(error) => show(RANGES.failed(error)),
        }
    }

    /// The largest layer of the kit, or of the first kit of an index.
    async fn largest_blob(
        &self,
        probe: &Probe,
        document: &[u8],
    ) -> Result<Option<BlobId>, SourceError> {
        let malformed = |error: String| SourceError::Protocol {
            place: self.repository.to_owned(),
            detail: error,
        };
        let decode =
            |bytes: &[u8]| Document::decode(bytes).map_err(|error| malformed(error.to_string()));
        let largest = |manifest: &Manifest| {
            let blobs = manifest.layers.iter().map(|layer| layer.blob());
            blobs.filter(|blob| blob.size > 1).max_by_key(|blob| blob.size)
        };
        match decode(document)? {
            Document::Manifest(manifest) => Ok(largest(&manifest)),
            Document::Index(index) => {
                let Some(first) = index.candidates().first().map(|entry| entry.descriptor.digest)
                else {
                    return Ok(None);
                };
                let found = self.within(probe.manifest(&Selector::Digest(first))).await?;
                match decode(&found.bytes)? {
                    Document::Manifest(manifest) => Ok(largest(&manifest)),
                    Document::Index(_) => Ok(None),
                }
            }
        }
    }

    async fn ranges(&self, probe: &Probe, blob: BlobId, show: &mut impl FnMut(Check)) {
        // The range begins at the second byte, so an answer with the whole blob is never right by chance.
        let range = BlobOffset(1)..BlobOffset(blob.size.min(1 + RANGE_BYTES));
        let found = match self.within(probe.range(blob, range)).await {
            Ok(found) => found,
            Err(error) => return show(RANGES.failed(error)),
        };
        let time = format!("{} ms", found.elapsed.as_millis());
        show(match found.served {
            ServedRange::Exact if found.elapsed > SLOW => RANGES.warn(
                format!("served, and the first byte came after {time}"),
                "each first read of a file waits so long: a mirror nearby helps (docs/registries.md)",
            ),
            ServedRange::Exact => RANGES.ok(format!("served; the first byte came after {time}")),
            ServedRange::Fewer(bytes) => RANGES.warn(
                format!("served in pieces of {}", sizes::show(bytes)),
                "kitfs asks for the rest each time; look at the proxy before the registry",
            ),
            ServedRange::Whole | ServedRange::Unclear => RANGES.warn(
                "not served: each read downloads the whole layer",
                "switch ranges on in the registry or in the proxy before it, or `kitfs warm` kits before use",
            ),
            ServedRange::Wrong(detail) => RANGES.fail(
                format!("answered wrongly: {detail}"),
                "look at the registry, its storage, and the proxy before it",
            ),
        });
        show(match found.redirects.as_slice() {
            [] => STORAGE.ok("none: the registry sends content itself"),
            hosts => STORAGE.ok(format!("content comes from {}", hosts.join(", then "))),
        });
    }

    async fn uploads(&self, probe: &Probe) -> Check {
        if self.tries_uploads {
            return match self.within(probe.begin_upload()).await {
                Ok(true) => UPLOADS.ok("permitted: an upload began, and was taken back"),
                Ok(false) => UPLOADS.ok(
                    "permitted: an upload began; the registry did not take it back, and drops it by itself",
                ),
                Err(error) => UPLOADS.warn(error.to_string(), "`kitfs push` needs the right to push"),
            };
        }
        match self.within(probe.push_rights()).await {
            Ok(PushRights::Granted) => UPLOADS.ok("the token permits them"),
            Ok(PushRights::Refused) => UPLOADS.ok("not permitted: the token is for reading"),
            Ok(PushRights::Unknown) => {
                UPLOADS.skip("only a trial tells: --uploads begins an upload and takes it back")
            }
            Err(SourceError::Unauthorized { hint, .. }) => {
                UPLOADS.ok(format!("not permitted: {hint}"))
            }
            Err(error) => UPLOADS.warn(error.to_string(), "try again with --uploads"),
        }
    }
}

fn reached(greeting: &Greeting) -> Check {
    let proxy = greeting.proxy.as_ref().map(|proxy| format!(" through {proxy}"));
    let found = format!(
        "{} answers after {} ms{}",
        greeting.address,
        greeting.elapsed.as_millis(),
        proxy.unwrap_or_default()
    );
    match greeting.elapsed > SLOW {
        true => {
            REACH.warn(found, "each first question waits so long: look at network, proxy and DNS")
        }
        false => REACH.ok(found),
    }
}

fn login(greeting: &Greeting) -> Check {
    match &greeting.login {
        Login::Open => LOGIN.ok("not wanted for the API"),
        Login::Wanted { schemes, .. } if schemes.is_empty() => LOGIN.warn(
            "access is refused, without saying how to log in",
            "check the address, and ask those who run the registry or the proxy before it",
        ),
        Login::Wanted { schemes, token_server } => {
            let server = token_server.as_ref().map(|server| format!(", from {server}"));
            LOGIN.ok(format!("by {}{}", schemes.join(" or "), server.unwrap_or_default()))
        }
    }
}

fn clock(ahead_seconds: Option<i64>) -> Check {
    let advice = "set this machine's clock (`timedatectl set-ntp true`): tokens and signed URLs depend on it";
    let Some(ahead) = ahead_seconds else {
        return CLOCK.skip("the registry does not say its time");
    };
    let found = match ahead {
        0 => "as the registry's".to_owned(),
        ahead => format!(
            "this machine is {} s {} the registry",
            ahead.unsigned_abs(),
            if ahead > 0 { "behind" } else { "ahead of" }
        ),
    };
    match ahead.unsigned_abs() {
        skew if skew >= WRONG_SKEW_SECONDS => CLOCK.fail(found, advice),
        skew if skew >= SKEW_SECONDS => CLOCK.warn(found, advice),
        _ => CLOCK.ok(found),
    }
}

fn rate(rate: Rate) -> Check {
    let window = rate.window_seconds.map(|seconds| format!(" in {seconds} s"));
    let window = window.unwrap_or_default();
    match rate {
        Rate { limit: None, remaining: None, .. } => RATE.ok("the registry names none"),
        Rate { limit, remaining: Some(0), .. } => RATE.fail(
            format!(
                "no request is left{}",
                limit.map(|it| format!(" of {it}{window}")).unwrap_or_default()
            ),
            "wait, log in for a higher limit, or use a mirror (docs/registries.md)",
        ),
        Rate { limit: Some(limit), remaining: Some(left), .. }
            if left.saturating_mul(10) < limit =>
        {
            RATE.warn(
                format!("{left} requests are left of {limit}{window}"),
                "log in for a higher limit, or use a mirror (docs/registries.md)",
            )
        }
        Rate { limit: Some(limit), remaining: Some(left), .. } => {
            RATE.ok(format!("{left} requests are left of {limit}{window}"))
        }
        Rate { limit: Some(limit), remaining: None, .. } => {
            RATE.ok(format!("{limit} requests{window}"))
        }
        Rate { limit: None, remaining: Some(left), .. } => {
            RATE.ok(format!("{left} requests are left"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Outcome;
    use super::*;

    #[test]
    fn a_clock_warns_from_a_minute_and_fails_from_a_quarter_of_an_hour() {
        let outcome = |ahead| clock(ahead).outcome;
        assert_eq!(outcome(None), Outcome::Skip);
        for (ahead, expected) in [
            (0, Outcome::Ok),
            (59, Outcome::Ok),
            (-60, Outcome::Warn),
            (899, Outcome::Warn),
            (-900, Outcome::Fail),
            (i64::MIN, Outcome::Fail),
        ] {
            assert_eq!(outcome(Some(ahead)), expected, "{ahead}");
        }
        assert!(clock(Some(100)).found.contains("behind"));
        assert!(clock(Some(-100)).found.contains("ahead of"));
    }

    #[test]
    fn few_requests_warn_and_none_fails() {
        let outcome =
            |limit, remaining| rate(Rate { limit, remaining, window_seconds: Some(60) }).outcome;
        assert_eq!(outcome(None, None), Outcome::Ok);
        assert_eq!(outcome(Some(100), Some(50)), Outcome::Ok);
        assert_eq!(outcome(Some(100), Some(9)), Outcome::Warn);
        assert_eq!(outcome(Some(100), Some(0)), Outcome::Fail);
        assert_eq!(outcome(None, Some(0)), Outcome::Fail);
        assert_eq!(outcome(Some(u64::MAX), Some(u64::MAX)), Outcome::Ok);
    }
}
