//! A real registry: Debian's `docker-registry` on a free port of 127.0.0.1, with a folder of its own,
//! and `skopeo` to push to it. It shows distribution's real behaviour, which a double only imitates.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The time limit for the registry's first answer. It needs about 0.1 s on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The attempts to start: another process may take the free port before the registry does.
const START_ATTEMPTS: usize = 5;
/// The interval between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running registry. Dropping the value ends it.
pub struct RegistryProcess {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl RegistryProcess {
    /// Starts an empty registry and waits until it answers.
    pub fn start() -> Self {
        for _ in 0..START_ATTEMPTS {
            let folder = TempDir::new().expect("a folder for the registry");
            let port = free_port();
            let mut child = spawn(folder.path(), port);
            if is_up(&mut child, port) {
                return Self { child, port, folder };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start: is the package docker-registry installed?");
    }

    /// The registry's host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The registry's storage folder.
    pub fn storage(&self) -> &Path {
        self.folder.path()
    }

    /// Pushes `tag` of an OCI layout as `repository:tag`; returns the reference.
    pub fn push(&self, layout: &Path, tag: &str, repository: &str) -> String {
        let reference = format!("{}/{repository}:{tag}", self.host());
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{reference}"))
            .env("HOME", self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .output()
            .expect("skopeo is installed");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo cannot push {reference}: {words}");
        reference
    }

    /// Ends the registry; its port then refuses connections.
    pub fn stop(self) {}
}

impl Drop for RegistryProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

fn spawn(folder: &Path, port: u16) -> Child {
    let config = folder.join("config.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        folder.join("storage").display()
    );
    fs::write(&config, text).expect("the registry's configuration can be written");
    let log = File::create(folder.join("log")).expect("the registry's log can be written");
    Command::new("docker-registry")
        .arg("serve")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle of the log"))
        .stderr(log)
        .spawn()
        .expect("docker-registry is installed (Debian package docker-registry)")
}

fn is_up(child: &mut Child, port: u16) -> bool {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        if child.try_wait().expect("the registry can be waited for").is_some() {
            return false;
        }
        if answers(port) {
            return true;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    false
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let request = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}
