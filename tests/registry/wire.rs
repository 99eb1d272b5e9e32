//! A server that writes its answers byte by byte: no HTTP library sends such answers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A running server; it ends with its connections when dropped.
pub struct Wire {
    host: String,
    asked: Arc<Mutex<Vec<Ask>>>,
    task: JoinHandle<()>,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: String,
    pub target: String,
    /// Names are in lower case.
    headers: Vec<(String, String)>,
    pub body: String,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Head and body.
    pub bytes: Vec<u8>,
    /// How long nothing comes, and after how many bytes.
    pub silence: Option<(usize, Duration)>,
    pub then: Then,
}

/// The fate of the connection behind an answer.
#[derive(Clone, Copy, Debug, Default)]
pub enum Then {
    #[default]
    Stay,
    Close,
}

impl Wire {
    /// Answers every request as `answer` says, except the request for the API itself (`/v2/`).
    pub async fn start(answer: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, record) = (Arc::new(answer), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, record) = (Arc::clone(&answer), Arc::clone(&record));
                connections.spawn(async move { serve(stream, &*answer, &record).await });
            }
        });
        Self { host, asked, task }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.host.clone()
    }

    /// Every request that arrived, without those for the API itself (`/v2/`).
    pub fn asked(&self) -> Vec<Ask> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ask {
    /// A header's value; its name is written in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The host that the request was sent to: `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        self.header("host").unwrap_or_default()
    }

    /// The first and the last byte of the range that is asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }

    fn parse(head: &str, body: String) -> Self {
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Self { method, target, headers: lines.filter_map(header).collect(), body }
    }
}

impl Reply {
    /// An answer with these header lines and a `Content-Length`.
    pub fn new(status: u16, headers: &[&str], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let length = format!("Content-Length: {}", body.len());
        let headers: Vec<_> = headers.iter().copied().chain([length.as_str()]).collect();
        Self::raw(status, &headers, body)
    }

    /// An answer with these header lines alone.
    pub fn raw(status: u16, headers: &[&str], body: &[u8]) -> Self {
        let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n").into_bytes();
        for header in headers {
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        Self { bytes, ..Self::default() }
    }

    /// The same, with a silence behind its head.
    pub fn silent_behind_head(self, silence: Duration) -> Self {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n");
        Self { silence: Some((end.expect("a head") + 4, silence)), ..self }
    }

    /// The same, with a silence after `bytes` of its body.
    pub fn silent_within_body(self, bytes: usize, silence: Duration) -> Self {
        let behind_head = self.silent_behind_head(silence);
        let silence = behind_head.silence.map(|(head, time)| (head + bytes, time));
        Self { silence, ..behind_head }
    }

    /// The same, after a silence.
    pub fn late(self, silence: Duration) -> Self {
        Self { silence: Some((0, silence)), ..self }
    }

    /// The same, and then this.
    pub fn then(self, then: Then) -> Self {
        Self { then, ..self }
    }
}

/// A body in chunks of 1,000 bytes; `is_ended` says whether the last chunk comes, too.
pub fn chunked(body: &[u8], is_ended: bool) -> Vec<u8> {
    let mut coded = Vec::new();
    for piece in body.chunks(1000) {
        coded.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        coded.extend_from_slice(piece);
        coded.extend_from_slice(b"\r\n");
    }
    if is_ended {
        coded.extend_from_slice(b"0\r\n\r\n");
    }
    coded
}

async fn serve(
    mut stream: TcpStream,
    answer: &(dyn Fn(&Ask) -> Reply + Send + Sync),
    record: &Mutex<Vec<Ask>>,
) {
    // The end of an answer must not wait for the other side to acknowledge its start.
    stream.set_nodelay(true).unwrap();
    let mut came = Vec::new();
    while let Some(ask) = next_ask(&mut stream, &mut came).await {
        let reply = if ask.target == "/v2/" {
            Reply::new(200, &[], "")
        } else {
            record.lock().unwrap().push(ask.clone());
            answer(&ask)
        };
        let (first, rest) = reply.bytes.split_at(reply.silence.map_or(0, |(bytes, _)| bytes));
        if stream.write_all(first).await.is_err() {
            return;
        }
        if let Some((_, silence)) = reply.silence {
            tokio::time::sleep(silence).await;
        }
        if stream.write_all(rest).await.is_err() {
            return;
        }
        match reply.then {
            Then::Stay => {}
            Then::Close => {
                let _ = stream.shutdown().await;
                return;
            }
        }
    }
}

async fn next_ask(stream: &mut TcpStream, came: &mut Vec<u8>) -> Option<Ask> {
    let find_end = |came: &[u8]| came.windows(4).position(|four| four == b"\r\n\r\n");
    loop {
        if let Some(end) = find_end(came) {
            let head = String::from_utf8_lossy(&came[..end]).into_owned();
            let mut ask = Ask::parse(&head, String::new());
            let length = ask.header("content-length").and_then(|text| text.parse().ok());
            let (start, length) = (end + 4, length.unwrap_or(0));
            if came.len() >= start + length {
                ask.body = String::from_utf8_lossy(&came[start..start + length]).into_owned();
                came.drain(..start + length);
                return Some(ask);
            }
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => came.extend_from_slice(&piece[..read]),
        }
    }
}
