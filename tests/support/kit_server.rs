//! `kitfs serve` over a folder of OCI layouts. Dropping the value ends the registry.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use super::kitfs::Kitfs;

/// A registry of the `kitfs` binary.
pub struct KitServer {
    child: Child,
    host: String,
}

impl KitServer {
    /// Serves the layouts in `folder` on a free port.
    pub fn start(kitfs: &Kitfs, folder: &Path) -> Self {
        let folder = format!("oci:{}", folder.display());
        let mut child = kitfs
            .command(&["serve", &folder, "--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kitfs can be started");
        let output = child.stdout.take().expect("the output is piped");
        let mut lines = BufReader::new(output).lines();
        let host = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| host_in(&line))
            .expect("kitfs serve says where it listens");
        // Reads the rest of the output and drops it, because a full pipe would stop the registry.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, host }
    }

    /// The registry's host and port.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Drop for KitServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first `127.0.0.1:PORT` of a line.
fn host_in(line: &str) -> Option<String> {
    let host = &line[line.find("127.0.0.1:")?..];
    let end = host.find(|it: char| !it.is_ascii_digit() && it != '.' && it != ':');
    let host = &host[..end.unwrap_or(host.len())];
    Some(host.trim_end_matches([':', '.']).to_owned())
}
