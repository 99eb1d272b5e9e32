//! The daemon's HTTP interface (docs/api.md): health, status, and files of kits by range.
//!
//! ```text
//! accept --connection--> access (host, origin, user) --route--> files | api --control--> the daemon's service
//! ```
//!
//! - `connection`: one connection, with its time limits. `access`: the requests that are let in.
//! - `peer`: the user at the other end of a connection. `places`: the connections that each peer may have. `route`, `kit_path`: paths of URLs. Pure.
//! - `files`: bytes of files. `body`: their pieces. `validators`: ETags and conditions. Pure.
//! - `metrics`: the text form of Prometheus. `page`: the page for people. Pure.
//! - `api`: answers in JSON. `kits`: the kits that are open for requests. `problem`: errors.
//!
//! This room knows neither mounts nor the cache. Like commands, it uses the operations of [`crate::control`]. It
//! writes nothing: each path takes GET and HEAD.

mod access;
mod api;
mod body;
mod connection;
#[cfg(test)]
mod examples;
mod files;
mod kit_path;
mod kits;
mod metrics;
mod page;
mod peer;
mod places;
mod problem;
mod route;
mod validators;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::api::KitRequest;
use crate::control::{Activity, Service};
use kits::Kits;
use places::Places;

/// The most connections whose peer is being looked up, which takes a millisecond.
const MOST_ARRIVING: usize = 64;
/// How long to wait after a failure to accept. Descriptors may be freed meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The address that the listener has.
    pub address: SocketAddr,
    /// Whether other machines may request metrics and health.
    pub is_public: bool,
    /// The options for kits that are not mounted; the reference is ignored. Without these options, only mounted
    /// kits are served.
    pub kit: Option<KitRequest>,
}

/// The server, as each connection sees it.
struct Server<S> {
    config: HttpConfig,
    kits: Kits<S>,
    places: Places,
    activity: Arc<Activity>,
}

/// Answers requests until `draining`, and then finishes the running ones. `activity` counts the requests that keep
/// the daemon alive. Requests for metrics and health do not, because a monitoring system repeats them for ever.
pub async fn serve<S: Service>(
    listener: TcpListener,
    service: Arc<S>,
    config: HttpConfig,
    activity: Arc<Activity>,
    draining: CancellationToken,
) {
    let kits = Kits::new(service, config.kit.clone());
    let server = Arc::new(Server { config, kits, places: Places::new(), activity });
    let connections = TaskTracker::new();
    let arriving = Arc::new(Semaphore::new(MOST_ARRIVING));
    let accept = async {
        loop {
            let arrival = arriving.clone().acquire_owned().await;
            let arrival = arrival.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (server, draining) = (server.clone(), draining.clone());
                    connections.spawn(connection::run(server, stream, peer, draining, arrival));
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection is not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = draining.cancelled() => {}
        never = kits::close_unused(&server.kits) => match never {},
        () = accept => {}
    }
    connections.close();
    connections.wait().await;
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
