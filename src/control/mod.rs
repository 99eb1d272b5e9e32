//! The control plane: each operation of a daemon, declared once, and the path from a command to it.
//!
//! ```text
//! command --> Connection --a daemon runs--> client --unix socket--> server --> dispatch --> Handle<O>
//!                  '------- no daemon runs: in this process ------------------------------------^
//! ```
//!
//! - [`api`]: the operations. Each is a request type with its answer, its events and its name ([`Operation`]).
//! - [`Connection`]: sends a request, to a daemon or to a service in the same process.
//! - [`Handle`]: the work of an operation. [`Caller`]: the command, as that work sees it.
//! - `client`, `server`: the two ends of the socket. `frames`: the wire (docs/format/control.md).
//! - [`Activity`]: the commands that are being answered.
//! - [`socket`]: the addresses at which a daemon listens.
//!
//! This room knows neither kits nor mounts.

mod activity;
pub mod api;
mod caller;
mod client;
mod connection;
mod frames;
mod server;
pub mod socket;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use activity::{Activity, Answering, Quiet};
pub use caller::{Caller, Handle, Peer};
pub use client::{ANSWER_TIMEOUT, Client, Liveness, silence};
pub use connection::{ByteStream, Connection, Lease};
pub use server::{Admission, serve};

use api::Failure;

/// The version of kitfs. Commands and daemons compare it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A request that a command sends to a daemon, and everything that comes back.
pub trait Operation: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name on the wire.
    const NAME: &'static str;
    /// Whether commands of every version may send it. Its fields then keep their meaning for ever.
    const IS_FOR_ALL_VERSIONS: bool = false;
    /// Whether the answer takes milliseconds, so that a daemon without an answer hangs.
    const IS_QUICK: bool = false;
    /// A message before the answer: the progress. A slow command misses some.
    type Event: Serialize + DeserializeOwned + Send + 'static;
    /// The answer of a success. A failure is a [`Failure`].
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// Whether the request has paths which the daemon opens, beside those of credentials and certificates.
    fn has_paths(&self) -> bool {
        false
    }
}

/// The event type of operations without events.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub enum NoEvent {}

/// Declares the operations of a service. Each has a [`Handle`], and a request finds it by its name.
macro_rules! operations {
    ($($operation:ty),+ $(,)?) => {
        /// A service that does the work of every operation.
        pub trait Service: $(Handle<$operation> +)+ Send + Sync + 'static {}

        impl<S: $(Handle<$operation> +)+ Send + Sync + 'static> Service for S {}

        /// Answers a request.
        async fn dispatch<S: Service>(service: &std::sync::Arc<S>, call: server::Call) {
            match call.operation() {
                $(<$operation as Operation>::NAME => call.answer::<$operation, S>(service).await,)+
                _ => call.refuse().await,
            }
        }
    };
}

operations![
    api::AliveRequest,
    api::StatusRequest,
    api::ActivityRequest,
    api::StopRequest,
    api::ReplaceRequest,
    api::UpgradeRequest,
    api::RestoreRequest,
    api::OpenRequest,
    api::OpenMountedRequest,
    api::InfoRequest,
    api::TagsRequest,
    api::CatalogueRequest,
    api::CompareRequest,
    api::ListRequest,
    api::StatRequest,
    api::ReadRequest,
    api::ResidencyRequest,
    api::ExplainRequest,
    api::WorkRequest,
    api::CloneRequest,
    api::WarmRequest,
    api::MountRequest,
    api::UnmountRequest,
    api::AwaitEndRequest,
    api::RecordRequest,
    api::StopRecordingRequest,
    api::CacheRequest,
];

/// A failure of the connection to a daemon.
fn gone(detail: &str) -> Failure {
    let message =
        format!("the kitfs daemon does not answer ({detail}); see daemon.log in the cache folder");
    Failure::new(api::FailureKind::Daemon, message)
}
