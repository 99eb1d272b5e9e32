//! Clients with short time-outs, and the steps that tests have in common.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kitfs::oci::{BlobId, BlobOffset, Reference};
use kitfs::source::admission::{Admission, AdmissionConfig};
use kitfs::source::registry::{RegistryClient, RegistryConfig, Timing};
use kitfs::source::{Repository, SourceError, Urgency};
use serde_json::json;

use crate::support::registry_double::RegistryDouble;

/// The repository that tests read.
pub const NAME: &str = "org/model";

/// Waits that are short where a test expects a failure, and long where it must not see one.
pub fn timing() -> Timing {
    Timing {
        connect: Duration::from_secs(10),
        answer: Duration::from_secs(10),
        hedge: Duration::from_secs(10),
        open: Duration::from_secs(20),
        untold: Duration::from_secs(10),
        stall: Duration::from_secs(10),
        retries: 3,
        backoff_min: Duration::from_millis(2),
        backoff_max: Duration::from_millis(20),
        retry_after_max: Duration::from_secs(2),
        retry_total: Duration::from_secs(10),
        unreachable_total: Duration::from_secs(10),
        resumes: 3,
    }
}

/// A client with `timing`, changed by `change`.
pub fn client_with(change: impl FnOnce(&mut RegistryConfig)) -> Arc<RegistryClient> {
    let mut config = RegistryConfig { timing: timing(), ..RegistryConfig::default() };
    change(&mut config);
    RegistryClient::new(config).expect("the settings can be used")
}

/// An admission with at most so many requests at once for each host, and another patience.
pub fn admission(requests_per_host: usize, patience: Duration) -> Arc<Admission> {
    Admission::new(AdmissionConfig { requests_per_host, patience, ..AdmissionConfig::default() })
}

/// The repository at a host, as a client sees it.
pub fn repository(client: &Arc<RegistryClient>, host: &str) -> Arc<dyn Repository> {
    let reference = Reference::parse(&format!("{host}/{NAME}:v1")).expect("a reference");
    client.repository(&reference).expect("the host can be asked")
}

/// The repository of a double, with a client of its own.
pub fn open(registry: &RegistryDouble) -> Arc<dyn Repository> {
    open_at(&registry.host())
}

/// The repository at a host, with a client of its own.
pub fn open_at(host: &str) -> Arc<dyn Repository> {
    repository(&client_with(|_| {}), host)
}

/// Bytes of which each tells its position.
pub fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at / 7) ^ at) as u8).collect()
}

/// A manifest; its content does not matter to the client.
pub fn manifest() -> Vec<u8> {
    json!({ "schemaVersion": 2, "layers": null }).to_string().into_bytes()
}

/// Reads a stream to its end: its own range, and all bytes.
pub async fn read(
    repository: &Arc<dyn Repository>,
    blob: BlobId,
    range: Range<u64>,
) -> Result<(Range<u64>, Vec<u8>), SourceError> {
    let mut stream = repository.open(blob, BlobOffset::of(range), Urgency::on_demand()).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok((stream.range.start.get()..stream.range.end.get(), bytes))
}

/// Writes a file in Docker's config format that knows one host.
pub fn write_credentials(path: &Path, host: &str, entry: serde_json::Value) {
    let config = json!({ "auths": { host: entry } });
    std::fs::write(path, config.to_string()).expect("the folder is writable");
}
