//! The daemon's HTTP interface, asked as clients ask it (docs/api.md).

#[path = "../support/mod.rs"]
mod support;

mod access;
mod browser;
mod files;
mod lifecycle;
mod observing;

use std::net::SocketAddr;

use support::kitfs::Kitfs;

/// A daemon with an HTTP interface.
struct Served {
    kitfs: Kitfs,
    server: SocketAddr,
}

impl Served {
    fn new() -> Self {
        Self::with_options(&[])
    }

    /// As [`Served::new`], with options of `kitfs daemon start`.
    fn with_options(options: &[&str]) -> Self {
        let kitfs = Kitfs::new();
        kitfs.succeed(&[&["daemon", "start", "--listen", "127.0.0.1:0"], options].concat());
        let server = address(&kitfs);
        Self { kitfs, server }
    }
}

/// The address that the daemon says.
fn address(kitfs: &Kitfs) -> SocketAddr {
    let status = kitfs.json(&["daemon", "status", "--json"]);
    let url = status["http"].as_str().unwrap_or_else(|| panic!("no HTTP: {status}"));
    url.strip_prefix("http://").expect("a URL").parse().expect("an address")
}

/// The path of a URL that reads `PATH` of a golden kit.
fn golden_path(word: &str, kit: &str, path: &str) -> String {
    format!("/v1/{word}/oci:{}:v1/{path}", support::golden(kit).display())
}
