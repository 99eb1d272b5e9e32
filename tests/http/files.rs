//! Files, their ranges, and entries.

use std::io::{Read, Write};
use std::net::TcpStream;

use kitfs::fs::percent_encoded;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Served, golden_path};
use crate::support::Random;
use crate::support::golden_reference;
use crate::support::http_client::{Answer, ask, get};
use crate::support::kit_builder::{Kit, Layer};
use crate::support::registry_double::{Fault, Options, RegistryDouble, Rule};

#[test]
fn the_answers_are_those_of_the_commands() {
    let served = Served::new();
    let reference = golden_reference("article");
    let entries = served.kitfs.json(&["ls", "-R", "--json", &reference]);
    let got = get(served.server, &golden_path("entries", "article", "?recursive=true")).json();
    assert_eq!(got, entries);
    let mut files = 0;
    for entry in entries.as_array().unwrap() {
        let path = entry["path"].as_str().unwrap();
        let answer = get(served.server, &golden_path("files", "article", path));
        assert_eq!(answer.status, 200, "{answer:?}");
        if entry["kind"] == "file" {
            files += 1;
            let bytes = served.kitfs.run(&["cat", &format!("{reference}//{path}")]).stdout;
            assert!(answer.body == bytes, "{path}");
            assert_eq!(answer.header("accept-ranges"), "bytes");
            assert!(answer.header("etag").starts_with("\"sha256:"), "{answer:?}");
        } else if entry["kind"] == "directory" {
            assert_eq!(
                answer.json(),
                served.kitfs.json(&["ls", "--json", &format!("{reference}//{path}")])
            );
        }
    }
    assert!(files > 3, "{entries}");
    let info = format!("/v1/info/oci:{}:v1", crate::support::golden("article").display());
    assert_eq!(
        get(served.server, &info).json(),
        served.kitfs.json(&["info", "--json", &reference])
    );
    let other = golden_reference("comp-none");
    let diff = format!("/v1/diff?from={}&to={}", percent_encoded(reference.as_bytes()), other);
    let outcome = served.kitfs.run(&["diff", "--json", &reference, &other]);
    let expected: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let got = get(served.server, &diff).json();
    assert_eq!(got["changes"], expected["changes"]);
    let version = get(served.server, "/v1/version").json();
    assert_eq!(version, json!({"version": env!("CARGO_PKG_VERSION"), "api": 1}));
    assert_eq!(get(served.server, "/v1/mounts").json(), json!([]));
    let status = get(served.server, "/v1/status").json();
    assert_eq!(status["http"], format!("http://{}", served.server));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(served.server, path).text(), "ok\n");
    }
}

/// A kit with one file of many megabytes, in a layout.
struct Big {
    served: Served,
    content: Vec<u8>,
    path: String,
}

impl Big {
    fn new(layer: impl FnOnce(&[u8]) -> Layer) -> Self {
        let served = Served::new();
        let content = Random::new(7).bytes(9 * 1024 * 1024 + 12_345);
        let layout = served.kitfs.folder().join("layout");
        Kit::modelkit().with(layer(&content)).write(&layout, "v1");
        let path = format!("/v1/files/oci:{}:v1/model.bin", layout.display());
        Self { served, content, path }
    }

    fn range(&self, range: &str, headers: &[&str]) -> Answer {
        let range = format!("Range: {range}");
        ask(self.served.server, "GET", &self.path, &[&[&*range], headers].concat())
    }
}

fn tar(content: &[u8]) -> Layer {
    Layer::tar("model", "model.bin").file("model.bin", 0o644, content)
}

#[rstest]
#[case::raw(|content: &[u8]| Layer::raw("model", "model.bin", 0o644, content))]
#[case::tar(tar)]
#[case::gzip(|content: &[u8]| tar(content).gzip())]
fn any_range_is_that_of_the_file(#[case] layer: fn(&[u8]) -> Layer) {
    let big = Big::new(layer);
    let (content, size) = (&big.content, big.content.len() as u64);
    let whole = get(big.served.server, &big.path);
    assert!(whole.status == 200 && whole.body == *content);
    let mut random = Random::new(11);
    for round in 0..40 {
        let start = random.below(size);
        let length = 1 + random.below([1, 4096, 3 << 20][round % 3]);
        let end = (start + length).min(size);
        let answer = big.range(&format!("bytes={start}-{}", start + length - 1), &[]);
        assert_eq!(answer.status, 206, "{start} {length}");
        assert!(answer.body == content[start as usize..end as usize], "{start}..{end}");
        assert_eq!(answer.header("content-range"), format!("bytes {start}-{}/{size}", end - 1));
    }
    assert!(big.range("bytes=-5", &[]).body == content[content.len() - 5..]);
    let beyond = big.range(&format!("bytes={size}-"), &[]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, &*format!("bytes */{size}")));
    assert_eq!(beyond.json()["error"]["kind"], "range_not_satisfiable");
    let several = big.range("bytes=0-1,5-6", &[]);
    assert_eq!((several.status, several.body.len() as u64), (200, size));
}

#[test]
fn conditions_spare_the_bytes() {
    let big = Big::new(|content| Layer::raw("model", "model.bin", 0o644, content));
    let head = ask(big.served.server, "HEAD", &big.path, &["Range: bytes=0-1"]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), big.content.len().to_string());
    // A raw layer is the file, so the ETag is its sha256.
    let etag = head.header("etag").to_owned();
    let digest = kitfs::oci::Digest::of(&big.content);
    assert_eq!(etag, format!("\"{digest}\""));
    let with = |header: &str| ask(big.served.server, "GET", &big.path, &[header]);
    let unchanged = with(&format!("If-None-Match: W/\"x\", {etag}"));
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(unchanged.header("etag"), etag);
    assert_eq!(with("If-Match: \"x\"").status, 412);
    assert_eq!(big.range("bytes=3-4", &[&format!("If-Range: {etag}")]).body, &big.content[3..5]);
    let whole = big.range("bytes=3-4", &["If-Range: \"x\""]);
    assert!(whole.status == 200 && whole.body == big.content);
}

#[test]
fn a_mounted_kit_needs_no_tag_and_no_registry() {
    let content = Random::new(3).bytes(300_000);
    let served = Served::new();
    let layout = served.kitfs.folder().join("layout");
    Kit::modelkit().with(tar(&content)).write(&layout, "v1");
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    registry.push_layout("org/model", &layout);
    let reference = registry.reference("org/model", "v1");
    let mountpoint = served.kitfs.mount(&reference, &[]);
    std::fs::read(mountpoint.join("model.bin")).unwrap();
    registry.script(Rule::on("").then(Fault::Status(503)));
    let paths = [
        format!("/v1/files/{reference}/model.bin"),
        format!("/v1/files/{}/org/model/model.bin", registry.host()),
        format!("/v1/files/{}/model.bin", reference.replace('/', "%2F")),
        format!("/v1/files/{}/model.bin", reference.replace('/', "%2F").replace(':', "%3A")),
    ];
    for path in &paths {
        let answer = get(served.server, path);
        assert!(answer.status == 200 && answer.body == content, "{path}: {}", answer.status);
    }
    let mounts = get(served.server, "/v1/mounts").json();
    assert_eq!(mounts[0]["reference"], reference);
    let other = get(served.server, &format!("/v1/files/{}/org/other/x", registry.host()));
    assert_eq!((other.status, &other.json()["error"]["kind"]), (400, &json!("usage")));
    runtime.shutdown_background();
}

#[test]
fn errors_are_json_with_a_kind() {
    let served = Served::new();
    for (path, status, kind) in [
        ("/v1/nothing".to_owned(), 404, "not_found"),
        ("/".to_owned() + &"x".repeat(3000), 404, "not_found"),
        (golden_path("files", "article", "no/such/file"), 404, "not_found"),
        (golden_path("files", "article", "..%2F..%2Fetc%2Fpasswd"), 400, "usage"),
        (golden_path("files", "article", "%zz"), 400, "usage"),
        (golden_path("entries", "article", "?recursive=maybe"), 400, "usage"),
        (golden_path("files", "article", "?other=1"), 400, "usage"),
        ("/v1/files/oci:/no/such/folder:v1/x".to_owned(), 404, "not_found"),
        ("/v1/files/model/x".to_owned(), 400, "usage"),
        ("/v1/info/UPPER".to_owned(), 400, "usage"),
        ("/v1/diff?from=a:b".to_owned(), 400, "usage"),
    ] {
        let answer = get(served.server, &path);
        assert_eq!(
            (answer.status, &answer.json()["error"]["kind"]),
            (status, &json!(kind)),
            "{path}"
        );
        assert!(answer.json()["error"]["message"].as_str().unwrap().len() > 8, "{answer:?}");
    }
    let posted = ask(served.server, "POST", "/v1/status", &["Content-Length: 0"]);
    assert_eq!((posted.status, posted.header("allow")), (405, "GET, HEAD"));
}

#[test]
fn a_read_that_fails_in_the_middle_cuts_the_body() {
    let served = Served::with_options(&["--retries", "0"]);
    let content = Random::new(5).bytes(64 * 1024 * 1024);
    let layout = served.kitfs.folder().join("layout");
    Kit::modelkit().with(tar(&content)).write(&layout, "v1");
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    registry.push_layout("org/model", &layout);
    let path = format!("/v1/files/{}/model.bin", registry.reference("org/model", "v1"));
    assert_eq!(ask(served.server, "HEAD", &path, &[]).status, 200);
    // The beginning is in the cache, so the answer begins whatever the order of the requests is.
    let first = format!("Range: bytes=0-{}", 8 * 1024 * 1024 - 1);
    assert_eq!(ask(served.server, "GET", &path, &[&first]).status, 206);
    registry.script(Rule::on("/blobs/").then(Fault::Status(404)));
    let cut = get(served.server, &path);
    assert_eq!(cut.status, 200);
    assert!(cut.is_cut() && !cut.body.is_empty(), "{} bytes", cut.body.len());
    assert!(cut.body == content[..cut.body.len()]);
    // A failure before the first byte is the answer.
    let last = format!("Range: bytes={}-", content.len() - 10);
    let failed = ask(served.server, "GET", &path, &[&last]);
    assert_eq!((failed.status, &failed.json()["error"]["kind"]), (404, &json!("not_found")));
    registry.heal();
    assert!(get(served.server, &path).body == content);
    runtime.shutdown_background();
}

#[test]
fn a_whole_file_with_wrong_bytes_is_cut_before_its_end() {
    let served = Served::new();
    let content = Random::new(6).bytes(3 * 1024 * 1024);
    let layout = served.kitfs.folder().join("layout");
    Kit::modelkit().with(tar(&content)).write(&layout, "v1");
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    registry.push_layout("org/model", &layout);
    registry.script(Rule::on("/blobs/").after(1).then(Fault::Corrupt));
    let path = format!("/v1/files/{}/model.bin", registry.reference("org/model", "v1"));
    let answer = get(served.server, &path);
    assert!(answer.status == 502 || answer.is_cut(), "{}", answer.status);
    runtime.shutdown_background();
}

/// The memory of a process, in bytes.
fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn clients_that_stop_reading_hold_a_piece_each() {
    const CLIENTS: usize = 24;
    let big = Big::new(|content| {
        let much = content.repeat(6);
        Layer::raw("model", "model.bin", 0o644, &much)
    });
    assert_eq!(get(big.served.server, &big.path).status, 200);
    let worker = big.served.kitfs.worker_pid();
    let before = resident_bytes(worker);
    let stalled: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| {
            let mut stream = TcpStream::connect(big.served.server).unwrap();
            let head = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", big.path, big.served.server);
            stream.write_all(head.as_bytes()).unwrap();
            // The answer has begun.
            stream.read_exact(&mut [0; 4096]).unwrap();
            stream
        })
        .collect();
    // Other clients are served meanwhile.
    assert_eq!(big.range("bytes=0-9", &[]).body.len(), 10);
    let grown = resident_bytes(worker).saturating_sub(before);
    let most = CLIENTS as u64 * 3 * 1024 * 1024;
    assert!(grown < most, "{grown} bytes for {CLIENTS} clients");
    drop(stalled);
}
