//! A small HTTP/1.1 client: one request for each connection, sent as it is written.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Far longer than any answer takes, so that a hang becomes a failure.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// With names in lower case.
    pub headers: Vec<(String, String)>,
    /// As far as it came.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Whether the body ended before its promised length.
    pub fn is_cut(&self) -> bool {
        let promised = self.header("content-length").parse::<usize>();
        promised.is_ok_and(|promised| promised > self.body.len())
    }
}

/// Sends a request with these header lines, besides `Host`.
#[track_caller]
pub fn ask(server: SocketAddr, method: &str, path: &str, headers: &[&str]) -> Answer {
    let host = format!("Host: {server}");
    let own = headers.iter().any(|line| line.to_ascii_lowercase().starts_with("host:"));
    let host = if own { None } else { Some(&*host) };
    let lines: Vec<&str> = host.into_iter().chain(headers.iter().copied()).collect();
    let head = lines.iter().map(|line| format!("{line}\r\n")).collect::<String>();
    let request = format!("{method} {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n");
    send(server, request.as_bytes())
}

/// `GET` without further headers.
#[track_caller]
pub fn get(server: SocketAddr, path: &str) -> Answer {
    ask(server, "GET", path, &[])
}

/// Sends bytes, and reads the answer to its end.
#[track_caller]
pub fn send(server: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(server).expect("the server listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    // The server may answer before it has read everything, and close.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    }
    parse(&bytes)
}

#[track_caller]
fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Answer {
        status: status.expect("a status"),
        headers: headers.collect(),
        body: bytes[end + 4..].to_vec(),
    }
}
