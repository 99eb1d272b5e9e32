//! The clients that are let in.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use super::{Served, golden_path};
use crate::support::http_client::{ask, get, send};

#[test]
fn requests_of_web_pages_are_refused() {
    let served = Served::new();
    let own = format!("Origin: http://{}", served.server);
    for path in ["/v1/status", "/healthz", &golden_path("files", "article", "Kitfile")] {
        assert_eq!(ask(served.server, "GET", path, &[&own]).status, 200, "{path}");
        for header in [
            "Host: evil.example",
            "Origin: http://evil.example",
            "Origin: null",
            "Sec-Fetch-Site: cross-site",
        ] {
            let answer = ask(served.server, "GET", path, &[header]);
            assert_eq!(
                (answer.status, &answer.json()["error"]["kind"]),
                (403, &json!("forbidden")),
                "{path}: {header}"
            );
        }
    }
    let answer = get(served.server, "/v1/status");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert!(answer.header("content-security-policy").contains("default-src 'none'"));
}

/// A browser of this machine may be led to a server for other machines by a name of a web page, too.
#[test]
fn a_page_of_this_machine_gets_no_metrics_of_a_public_server() {
    let served = Served::with_options(&["--listen-public"]);
    for path in ["/metrics", "/healthz"] {
        let rebound = ask(served.server, "GET", path, &["Host: evil.example"]);
        assert_eq!(rebound.status, 403, "{path}");
        assert_eq!(get(served.server, path).status, 200, "{path}");
    }
}

#[test]
fn bytes_that_are_no_request_end_the_connection() {
    let served = Served::new();
    let junk = [
        b"kitfs\0\0\x02\x01\0\0\0\0\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \0\r\n\r\n".to_vec(),
        [&b"GET /"[..], &[b'x'; 200_000], b" HTTP/1.1\r\n\r\n"].concat(),
        [&b"GET / HTTP/1.1\r\n"[..], &b"X: y\r\n".repeat(100), b"\r\n"].concat(),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: x\r\nContent-Length: 5\r\n\r\n"
            .to_vec(),
    ];
    for request in junk {
        let answer = send(served.server, &request);
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
    // A request that never ends takes a connection, and nobody else waits for it.
    let mut slow = TcpStream::connect(served.server).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost:").unwrap();
    assert_eq!(get(served.server, "/healthz").status, 200);
    slow.write_all(b" 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

mod as_root {
    use std::thread;

    use rustix::fs::Uid;

    use super::*;

    /// A user that every Debian has.
    const OTHER: u32 = 1;

    #[test]
    fn other_users_of_the_machine_get_no_kits() {
        let served = Served::new();
        let server = served.server;
        let files = golden_path("files", "article", "Kitfile");
        let as_other = thread::spawn(move || {
            // Changes the id of this thread alone.
            rustix::thread::set_thread_uid(Uid::from_raw(OTHER)).unwrap();
            let refused = ["/", "/v1/status", "/v1/activity", "/v1/nothing", &files]
                .map(|path| get(server, path));
            let health = ["/healthz", "/readyz", "/metrics"].map(|path| get(server, path).status);
            (refused, health)
        });
        let (refused, health) = as_other.join().unwrap();
        for answer in refused {
            assert_eq!(
                (answer.status, &answer.json()["error"]["kind"]),
                (403, &json!("forbidden"))
            );
        }
        assert_eq!(health, [200, 200, 200]);
        assert_eq!(get(served.server, "/v1/status").status, 200);
    }

    /// More connections than all places together.
    const MANY: usize = 300;

    #[test]
    fn another_user_who_opens_many_connections_keeps_nobody_out() {
        let served = Served::new();
        let server = served.server;
        let many = thread::spawn(move || {
            rustix::thread::set_thread_uid(Uid::from_raw(OTHER)).unwrap();
            let open = |_| {
                let mut stream = TcpStream::connect(server).unwrap();
                // The server may have closed it.
                let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:");
                stream
            };
            (0..MANY).map(open).collect::<Vec<_>>()
        });
        let many = many.join().unwrap();
        assert_eq!(get(server, "/v1/version").status, 200);
        let is_open = |stream: &&TcpStream| {
            stream.set_nonblocking(true).unwrap();
            let read = (&**stream).read(&mut [0]);
            read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        crate::support::kitfs::wait_until("the connections beyond the places are closed", || {
            many.iter().filter(is_open).count() < 20
        });
        assert!(many.iter().any(|stream| is_open(&stream)), "a peer has places");
    }

    #[test]
    fn the_system_daemon_serves_root_alone() {
        let served = {
            let kitfs = crate::support::kitfs::Kitfs::new();
            let mut command =
                kitfs.command(&["daemon", "start", "--system", "--listen", "127.0.0.1:0"]);
            command.env("KITFS_RUNTIME_DIR", kitfs.folder().join("run"));
            let started = crate::support::kitfs::Kitfs::run_command(command);
            assert_eq!(started.code, Some(0), "{}", started.stderr);
            let server = crate::address(&kitfs);
            Served { kitfs, server }
        };
        let server = served.server;
        assert_eq!(get(server, "/v1/status").status, 200);
        let status = thread::spawn(move || {
            rustix::thread::set_thread_uid(Uid::from_raw(OTHER)).unwrap();
            get(server, "/v1/status").status
        });
        assert_eq!(status.join().unwrap(), 403);
    }
}
