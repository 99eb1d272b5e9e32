//! Tells the user of a command which hosts are silent while a kit is opened or warmed.
//!
//! The registry client knows which hosts have sent nothing for a while to a request that is patient.
//! Mounts with the same network options share a client, so a command may name a host that another command
//! waits for: that host is silent for both.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use super::networks::{Networks, open_timeout};
use crate::control::api::{Failure, NetworkOptions, Waiting};

/// The interval between two looks at the silent hosts. 2 s: the first message comes soon after a wait has
/// become a long one.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The interval between two messages about a host that stays silent.
const TELL_INTERVAL: Duration = Duration::from_secs(30);

/// Does `work`, and tells meanwhile which hosts are silent.
pub(super) async fn told<T>(
    networks: &Networks,
    options: &NetworkOptions,
    tell: &(dyn Fn(Waiting) + Send + Sync),
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let sources = networks.sources(options)?;
    let mut work = pin!(work);
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    let mut told: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = looks.tick() => {
                let silences = sources.silences();
                // A host that answered and falls silent again gets a message at once.
                told.retain(|host, _| silences.iter().any(|silence| silence.host == *host));
                for silence in silences {
                    let last = told.get(&silence.host);
                    if last.is_some_and(|last| last.elapsed() < TELL_INTERVAL) {
                        continue;
                    }
                    tracing::info!(host = silence.host, silent_for = ?silence.silent_for,
                        "still waiting");
                    told.insert(silence.host.clone(), Instant::now());
                    tell(Waiting {
                        host: silence.host,
                        silent_seconds: silence.silent_for.as_secs(),
                        limit_seconds: open_timeout(options).as_secs(),
                    });
                }
            }
        }
    }
}
