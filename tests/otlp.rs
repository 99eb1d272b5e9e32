//! Traces of reads, as a collector of OpenTelemetry gets them (docs/tracing.md).

#[path = "support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::Uri;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use support::Random;
use support::kit_builder::{Kit, Layer};
use support::kitfs::{Kitfs, wait_until};
use support::registry_double::{Fault, Options, RegistryDouble, Rule};

const MIB: usize = 1024 * 1024;

/// A span with the attributes of its resource.
#[derive(Clone, Debug)]
struct Got {
    span: Span,
    resource: HashMap<String, String>,
}

/// A collector that keeps what it gets.
struct Collector {
    url: String,
    got: Arc<Mutex<Vec<Got>>>,
    _runtime: Runtime,
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("no text and no number: {other:?}"),
    }
}

fn by_key(attributes: &[KeyValue]) -> HashMap<String, String> {
    attributes.iter().map(|it| (it.key.clone(), text(it.value.as_ref()))).collect()
}

async fn take(State(got): State<Arc<Mutex<Vec<Got>>>>, uri: Uri, body: Bytes) {
    assert_eq!(uri.path(), "/prefix/v1/traces");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for of_resource in request.resource_spans {
        let resource = by_key(&of_resource.resource.unwrap().attributes);
        let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        got.lock().extend(spans.map(|span| Got { span, resource: resource.clone() }));
    }
}

impl Collector {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/prefix", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let router = Router::new().fallback(take).with_state(got.clone());
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, got, _runtime: runtime }
    }

    /// Waits for a read of a file, and returns its span and those of its waits.
    fn read_of(&self, path: &str) -> (Got, Vec<Got>) {
        let is_it = |got: &&Got| {
            got.span.name == "kitfs.read" && by_key(&got.span.attributes)["kitfs.path"] == path
        };
        wait_until("the trace of a read", || self.got.lock().iter().any(|got| is_it(&got)));
        let all = self.got.lock();
        let read = all.iter().find(is_it).unwrap().clone();
        let is_part = |got: &&Got| got.span.parent_span_id == read.span.span_id;
        let parts = all.iter().filter(is_part).cloned().collect();
        (read, parts)
    }
}

/// A registry, and a kit in it.
fn registry(kitfs: &Kitfs, runtime: &Runtime) -> RegistryDouble {
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let mut random = Random::new(7);
    let mut layer =
        |role, path: &str| Layer::tar(role, path).file(path, 0o644, &random.bytes(3 * MIB));
    let kit =
        Kit::modelkit().with(layer("model", "weights/a.bin")).with(layer("dataset", "data/b.bin"));
    let folder = kitfs.folder().join("layout");
    kit.write(&folder, "v1");
    registry.push_layout("org/kit", &folder);
    registry
}

#[test]
fn a_read_that_waits_is_a_span_with_its_waits() {
    let (kitfs, collector) = (Kitfs::new(), Collector::start());
    let runtime = Runtime::new().unwrap();
    let registry = registry(&kitfs, &runtime);
    let reference = registry.reference("org/kit", "v1");
    let mountpoint = kitfs.mount(&reference, &["--otlp", &collector.url]);
    registry.script(Rule::on("/blobs/").then(Fault::Late(Duration::from_millis(100))));
    let file = File::open(mountpoint.join("weights/a.bin")).unwrap();
    let mut buffer = [0; 4096];
    file.read_exact_at(&mut buffer, 2 * MIB as u64).unwrap();

    let (read, parts) = collector.read_of("weights/a.bin");
    assert_eq!(read.resource["service.name"], "kitfs");
    let attributes = by_key(&read.span.attributes);
    assert_eq!(attributes["kitfs.kit"], reference);
    assert_eq!(attributes["process.pid"], std::process::id().to_string());
    let offset: usize = attributes["kitfs.offset"].parse().unwrap();
    assert!(offset <= 2 * MIB && attributes["kitfs.length"].parse::<usize>().unwrap() >= 4096);
    assert!(read.span.parent_span_id.is_empty() && !attributes.contains_key("error.type"));
    assert_eq!(read.span.trace_id.len(), 16);

    let mut answered_ns = 0;
    for Got { span, .. } in &parts {
        assert_eq!(span.trace_id, read.span.trace_id);
        assert!(read.span.start_time_unix_nano <= span.start_time_unix_nano, "{span:?}");
        assert!(span.start_time_unix_nano < span.end_time_unix_nano, "{span:?}");
        assert!(span.end_time_unix_nano <= read.span.end_time_unix_nano, "{span:?}");
        if span.name == "kitfs.answer" {
            answered_ns += span.end_time_unix_nano - span.start_time_unix_nano;
            assert_eq!(by_key(&span.attributes)["server.address"], registry.host());
        }
    }
    assert!(answered_ns > 50_000_000, "{parts:?}");

    // The worker that goes on with the mounts traces, too.
    kitfs.succeed(&["restart"]);
    let file = File::open(mountpoint.join("data/b.bin")).unwrap();
    file.read_exact_at(&mut buffer, 2 * MIB as u64).unwrap();
    collector.read_of("data/b.bin");
}

#[test]
fn a_read_that_fails_at_its_deadline_is_a_span_with_its_reason() {
    let (kitfs, collector) = (Kitfs::new(), Collector::start());
    let runtime = Runtime::new().unwrap();
    let registry = registry(&kitfs, &runtime);
    let options = ["--otlp", &collector.url, "--read-deadline", "2"];
    let mountpoint = kitfs.mount(&registry.reference("org/kit", "v1"), &options);
    registry.script(Rule::on("/blobs/").then(Fault::Hold));
    let file = File::open(mountpoint.join("weights/a.bin")).unwrap();
    file.read_exact_at(&mut [0; 10], 2 * MIB as u64).unwrap_err();
    let (read, _) = collector.read_of("weights/a.bin");
    let status = read.span.status.unwrap();
    assert_eq!(status.code, StatusCode::Error as i32);
    assert!(!status.message.is_empty());
    assert_eq!(by_key(&read.span.attributes)["error.type"], "deadline");
    registry.release();
}

#[test]
fn a_program_that_has_ended_is_named() {
    let (kitfs, collector) = (Kitfs::new(), Collector::start());
    let runtime = Runtime::new().unwrap();
    let registry = registry(&kitfs, &runtime);
    let mountpoint = kitfs.mount(&registry.reference("org/kit", "v1"), &["--otlp", &collector.url]);
    let mut tail = Command::new("tail");
    let mut child = tail
        .args(["-c", "10"])
        .arg(mountpoint.join("weights/a.bin"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    let attributes = by_key(&collector.read_of("weights/a.bin").0.span.attributes);
    assert_eq!(attributes["process.pid"], child.id().to_string());
    assert_eq!(attributes["process.command"], "tail");
}

#[test]
fn a_collector_that_is_away_costs_no_read_and_no_stop() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = registry(&kitfs, &runtime);
    // A port of which nothing is known but that it was free.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mountpoint = kitfs.mount(&registry.reference("org/kit", "v1"), &["--otlp", &url]);
    std::fs::read(mountpoint.join("weights/a.bin")).unwrap();
    kitfs.succeed(&["daemon", "stop"]);
    drop(listener);
}
