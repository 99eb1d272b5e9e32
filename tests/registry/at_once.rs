//! Many requests at once: parallel ones, limited ones, and none that waits for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use kitfs::cache::{Cache, CacheConfig};
use kitfs::fetch::{FetchConfig, Fetcher};
use kitfs::fs::{self, LoadRequest};
use kitfs::oci::Origin;
use kitfs::source::admission::{Admission, AdmissionConfig};
use kitfs::source::s3::S3Config;
use kitfs::source::{Sources, Urgency};

use crate::setup::{NAME, admission, client_with, content, read, repository};
use crate::support::kit_builder::{Kit, Layer};
use crate::support::registry_double::{Access, At, Fault, Options, RegistryDouble, Rule, Tokens};

/// Longer than anything here takes that does not hang.
const HANG: Duration = Duration::from_secs(60);

/// A registry with a kit of tar layers, each with a file of this size.
async fn registry_with_kit(options: Options, layers: usize, file_bytes: usize) -> RegistryDouble {
    let folder = tempfile::tempdir().unwrap();
    let kit = (0..layers).fold(Kit::modelkit(), |kit, number| {
        let mut bytes = content(file_bytes);
        bytes[0] = number as u8;
        let path = format!("data/{number}");
        kit.with(Layer::tar("dataset", &path).file(path, 0o644, &bytes))
    });
    kit.write(folder.path(), "v1");
    let registry = RegistryDouble::start(options).await;
    registry.push_layout(NAME, folder.path());
    registry
}

/// Loads the kit as a mount does.
async fn load(registry: &RegistryDouble, admission: Arc<Admission>) {
    let folder = tempfile::tempdir().unwrap();
    let config = CacheConfig::new(folder.path().join("cache"));
    let fetcher = Fetcher::new(Cache::open(config).unwrap(), FetchConfig::default());
    let sources =
        Sources::new(client_with(|config| config.admission = admission), None, S3Config::default());
    let origin = Origin::parse(&registry.reference(NAME, "v1")).unwrap();
    let request = LoadRequest { umask: 0o022, ..LoadRequest::all_of(origin) };
    let loaded = fs::load(&fetcher, &sources, &request, &|_, _| ());
    tokio::time::timeout(HANG, loaded).await.expect("it does not hang").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_layers_of_a_kit_are_opened_at_once() {
    for (at, redirect_for) in [(At::Registry, None), (At::Storage, Some(Duration::from_secs(3600)))]
    {
        let access = Access::Bearer(Tokens::default());
        let options = Options { access, redirect_for, ..Options::default() };
        let registry = registry_with_kit(options, 8, 1000).await;
        // The first blob is the config. No layer is answered before all of them are asked for.
        registry.script(Rule::on("sha256:").at(at).after(1).then(Fault::Gather(8)));
        load(&registry, Admission::new(AdmissionConfig::default())).await;
        assert_eq!(registry.peak(), 8, "{at:?}");
    }
}

#[tokio::test]
async fn a_kit_of_large_layers_opens_with_a_limit_of_one_request() {
    // The head and the tail of a layer are asked for at once, and the head waits for the tail.
    let registry = registry_with_kit(Options::default(), 3, 200_000).await;
    load(&registry, admission(1, Duration::from_millis(20))).await;
}

#[tokio::test]
async fn streams_that_are_never_read_do_not_keep_others_out_for_ever() {
    let registry = RegistryDouble::start(Options::default()).await;
    let blob = registry.push_blob(NAME, content(300_000));
    let admission = admission(2, Duration::from_millis(20));
    let repository =
        repository(&client_with(|config| config.admission = admission), &registry.host());
    let undrained =
        join_all((0..6).map(|_| repository.open(blob, blob.whole(), Urgency::on_demand())));
    let undrained = tokio::time::timeout(HANG, undrained).await.expect("it does not hang");
    read(&repository, blob, 0..100).await.unwrap();
    for stream in undrained {
        let pieces: Vec<_> = stream.unwrap().bytes.collect().await;
        assert_eq!(pieces.into_iter().map(|piece| piece.unwrap().len()).sum::<usize>(), 300_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_host_gets_more_requests_at_once_than_allowed() {
    let access = Access::Bearer(Tokens::default());
    let registry = RegistryDouble::start(Options { access, ..Options::default() }).await;
    let blob = registry.push_blob(NAME, content(300_000));
    let admission = admission(2, AdmissionConfig::default().patience);
    // Two clients share the limit, and tokens are asked for in the midst of it.
    let clients = [0, 1].map(|_| client_with(|config| config.admission = admission.clone()));
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..12 {
        let repository = repository(&clients[number % 2], &registry.host());
        readers.spawn(async move { read(&repository, blob, 0..200_000).await.map(drop) });
    }
    for result in readers.join_all().await {
        result.unwrap();
    }
    assert!(registry.peak() <= 2, "{}", registry.peak());
    assert!(registry.requests_to(At::Registry, "/blobs/").len() >= 12);
}
