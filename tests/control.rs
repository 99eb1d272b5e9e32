//! The control socket, spoken to by hand (docs/format/control.md).

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tempfile::TempDir;

use support::kit_builder::{Kit, Layer};
use support::kitfs::{Kitfs, wait_until};
use support::{golden, golden_reference};

const REQUEST: u8 = 1;
const EVENT: u8 = 2;
const ANSWER: u8 = 5;
const FAILURE: u8 = 6;

/// A connection that stays open, as long as this value lives.
struct Connection(UnixStream);

impl Connection {
    fn new(kitfs: &Kitfs) -> Self {
        Self(UnixStream::connect(kitfs.cache().join("control.sock")).unwrap())
    }

    /// Sends a request. The daemon may close its end before it has read a long one.
    fn send(&mut self, body: &[u8]) {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let _ = self.0.write_all(&[b"kitfs\0\0\x02", &[REQUEST][..], &length, body].concat());
    }

    /// The kind and the body of the next frame; `None` at the end.
    fn next(&mut self) -> Option<(u8, Value)> {
        let mut header = [0; 5];
        self.0.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        let mut body = vec![0; length as usize];
        self.0.read_exact(&mut body).unwrap();
        Some((header[0], serde_json::from_slice(&body).unwrap()))
    }

    /// The frames up to the answer or the failure.
    fn ask(&mut self, body: &[u8]) -> Vec<(u8, Value)> {
        self.send(body);
        let mut frames = Vec::new();
        while let Some(frame) = self.next() {
            let is_last = [ANSWER, FAILURE].contains(&frame.0);
            frames.push(frame);
            if is_last {
                break;
            }
        }
        frames
    }
}

fn request(version: &str, operation: &str, request: &Value) -> Vec<u8> {
    json!({"version": version, "operation": operation, "request": request}).to_string().into_bytes()
}

/// The last frame of the answer to a request.
fn ask(kitfs: &Kitfs, version: &str, operation: &str, body: &Value) -> (u8, Value) {
    Connection::new(kitfs).ask(&request(version, operation, body)).pop().expect("an answer")
}

const OWN: &str = env!("CARGO_PKG_VERSION");

#[test]
fn other_versions_and_what_is_not_understood_are_refused() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let (kind, other) = ask(&kitfs, "0.0.1", "info", &json!({"unknown": 1}));
    assert_eq!((kind, &other["kind"]), (FAILURE, &json!("daemon")));
    let words = other["message"].as_str().unwrap();
    for word in ["this command is kitfs 0.0.1", "kitfs daemon restart", "kitfs daemon stop"] {
        assert!(words.contains(word), "{words}");
    }
    let (kind, unknown) = ask(&kitfs, OWN, "fly", &json!({}));
    assert_eq!(kind, FAILURE);
    assert!(unknown["message"].as_str().unwrap().contains("no operation `fly`"), "{unknown}");
    let (kind, usage) = ask(&kitfs, OWN, "info", &json!({"unknown": 1}));
    assert_eq!((kind, &usage["kind"]), (FAILURE, &json!("usage")));

    for body in ["", "{", "[]", r#"{"unknown": 1}"#, &"[".repeat(100_000)] {
        let frames = Connection::new(&kitfs).ask(body.as_bytes());
        assert!(
            matches!(&frames[..], [(FAILURE, usage)] if usage["kind"] == "usage"),
            "{frames:?}"
        );
    }
    // The daemon refuses a request that is too long, and does not wait for its end.
    assert_eq!(Connection::new(&kitfs).ask(&vec![b' '; (1 << 20) + 1]), []);
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"kitfs\0\0\x03", b"kitfs\0\0\x02\x63\0\0\0\0"] {
        let mut connection = Connection::new(&kitfs);
        connection.0.write_all(junk).unwrap();
        let _ = connection.0.read_to_end(&mut Vec::new());
    }
    assert_eq!(ask(&kitfs, OWN, "alive", &json!({})), (ANSWER, Value::Null));
}

#[test]
fn a_command_of_another_version_may_ask_for_the_status_and_stop_the_daemon() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let (kind, status) = ask(&kitfs, "0.0.1", "status", &json!({}));
    assert_eq!((kind, &status["version"]), (ANSWER, &json!(OWN)));
    let place = json!({"mountpoint": "/no/mount"});
    let (kind, unmount) = ask(&kitfs, "0.0.1", "unmount", &place);
    assert_eq!((kind, &unmount["kind"]), (FAILURE, &json!("not_found")));
    assert_eq!(ask(&kitfs, "0.0.1", "stop", &json!({})).0, ANSWER);
    wait_until("the end of the daemon", || kitfs.run(&["daemon", "status"]).code == Some(9));
}

#[test]
fn a_mount_needs_the_device() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let mut connection = Connection::new(&kitfs);
    let kit = json!({"reference": golden_reference("article"), "umask": 18});
    let opened = connection.ask(&request(OWN, "open", &json!({"kit": &kit}))).pop().unwrap().1;
    let mount = json!({
        "kit": opened["kit"],
        "mount": {
            "kit": kit, "mountpoint": "/mnt", "tensor_prefetch": true, "hydrate": "begun",
            "hydrate_after_seconds": 30,
        },
        "place": {"path": "/mnt", "device": null, "made": null},
    });
    let (kind, failure) = ask(&kitfs, OWN, "mount", &mount);
    assert_eq!((kind, &failure["kind"]), (FAILURE, &json!("usage")), "{failure}");
}

#[test]
fn a_compressed_kit_is_opened_with_progress() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let reference = golden_reference("comp-gzip");
    let open = json!({"kit": {"reference": &reference, "umask": 18}});
    let frames = Connection::new(&kitfs).ask(&request(OWN, "open", &open));
    let is_pass = |(kind, event): &(u8, Value)| {
        *kind == EVENT && event["passing"]["passed_bytes"].is_number()
    };
    assert!(frames.iter().any(is_pass), "{frames:?}");
    let digest = kitfs.json(&["info", "--json", &reference])["digest"].clone();
    let pinned = format!("oci:{}@{}", golden("comp-gzip").display(), digest.as_str().unwrap());
    let (kind, opened) = frames.last().unwrap();
    assert_eq!((*kind, &opened["pinned"]["reference"]), (ANSWER, &json!(pinned)));
}

/// A command that reads thousands of files must resolve the kit once.
#[test]
fn a_handle_names_an_open_kit_until_its_command_ends() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let folder = TempDir::new().unwrap();
    let kit = Kit::modelkit().with(Layer::raw("docs", "README.md", 0o644, b"read me"));
    let layout = folder.path().join("kit");
    let reference = kit.write(&layout, "v1").reference;
    let mut connection = Connection::new(&kitfs);
    let open = json!({"kit": {"reference": &reference, "umask": 18}});
    let opened = connection.ask(&request(OWN, "open", &open)).pop().unwrap().1;
    fs::remove_dir_all(layout).unwrap();
    let list = || ask(&kitfs, OWN, "list", &json!({"kit": opened["kit"], "path": ""}));
    let (kind, listing) = list();
    assert_eq!(kind, ANSWER);
    assert!(listing["below"].to_string().contains("README.md"), "{listing}");
    drop(connection);
    wait_until("the end of the handle", || list() == (FAILURE, list().1));
    assert_eq!(list().1["kind"], "stale");
}
