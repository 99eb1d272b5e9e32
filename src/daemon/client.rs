//! The client of the control socket, for the commands.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::api::{
    CacheReport, CacheRequest, CatalogueRequest, DaemonStatus, Failure, FailureKind, Info,
    KitRequest, ListRequest, Listing, MountEvent, MountRequest, MountStatus, OpenEvent,
    OpenProgress, ReadRequest, RecordRequest, TagInfo, TagsRequest, UnmountReport, UnmountRequest,
    WarmEvent, WarmReport, WarmRequest,
};
use super::frames::{Next, Reader};
use super::server::VERSION_HEADER;
use super::service::VERSION;
use super::socket::SocketPath;
use crate::process::running_time;

/// The largest line of an answer in lines. The longest line has every layer of a kit: a manifest of at
/// most 4 MiB names some ten thousand layers.
const LINE_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// How long a daemon may take for an answer from its memory. It needs milliseconds, but much longer on
/// a machine that is short of memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The way in which a daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    Answers,
    /// It takes connections and breaks them: it is about to end.
    Ends,
    /// No answer came in time.
    Silent,
}

/// A connection to a running daemon.
pub(super) struct Client {
    http: reqwest::Client,
    // Keeps the socket's folder open: a path that is too long for a socket leads through it.
    socket: SocketPath,
}

impl Client {
    pub(super) fn new(socket: SocketPath) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .unix_socket(socket.as_path())
            .no_proxy()
            // There is no TLS, and reading the system's certificates takes longer than most commands.
            .tls_certs_only([])
            .build()
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        Ok(Self { http, socket })
    }

    pub(super) fn socket(&self) -> &SocketPath {
        &self.socket
    }

    /// Whether the daemon answers at all. Daemons of any version do.
    pub(super) async fn liveness(&self) -> Liveness {
        let answer = self.http.get("http://kitfs/v1/alive").send();
        match running_time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(_)) => Liveness::Answers,
            Ok(Err(_)) => Liveness::Ends,
            Err(_) => Liveness::Silent,
        }
    }

    pub(super) async fn status(&self) -> Result<DaemonStatus, Failure> {
        let status = async { json(self.send(Method::GET, "status", &()).await?).await };
        in_time(status).await
    }

    /// Ends the mounts, then the daemon. Returns when the mounts have ended.
    pub(super) async fn stop(&self) -> Result<UnmountReport, Failure> {
        let report = async {
            let body = self.send(Method::POST, "stop", &()).await?.bytes().await;
            // A daemon of another version may answer otherwise, or with nothing.
            Ok(body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default())
        };
        in_time(report).await
    }

    pub(super) async fn replace(&self) -> Result<(), Failure> {
        in_time(self.send(Method::POST, "replace", &())).await.map(|_| ())
    }

    pub(super) async fn mount(
        &self,
        request: &MountRequest,
        on_progress: &mut (dyn FnMut(OpenProgress) + Send),
    ) -> Result<MountStatus, Failure> {
        let mut lines = Lines::new(self.send(Method::POST, "mounts", request).await?);
        while let Some(line) = lines.next().await? {
            match serde_json::from_slice(&line).map_err(not_understood)? {
                MountEvent::Progress(progress) => on_progress(progress),
                MountEvent::Mounted(status) => return Ok(*status),
                MountEvent::Failed(failure) => return Err(failure),
            }
        }
        Err(gone("the connection ended before the mount was made"))
    }

    pub(super) async fn open_kit(
        &self,
        request: &KitRequest,
        on_progress: &mut (dyn FnMut(OpenProgress) + Send),
    ) -> Result<String, Failure> {
        let mut lines = Lines::new(self.send(Method::POST, "open", request).await?);
        while let Some(line) = lines.next().await? {
            match serde_json::from_slice(&line).map_err(not_understood)? {
                OpenEvent::Progress(progress) => on_progress(progress),
                OpenEvent::Opened { pinned } => return Ok(pinned),
                OpenEvent::Failed(failure) => return Err(failure),
            }
        }
        Err(gone("the connection ended before the kit was open"))
    }

    pub(super) async fn warm(
        &self,
        request: &WarmRequest,
        on_event: &mut (dyn FnMut(WarmEvent) + Send),
    ) -> Result<WarmReport, Failure> {
        let mut lines = Lines::new(self.send(Method::POST, "warm", request).await?);
        while let Some(line) = lines.next().await? {
            match serde_json::from_slice(&line).map_err(not_understood)? {
                WarmEvent::Warmed(report) => return Ok(report),
                WarmEvent::Failed(failure) => return Err(failure),
                event => on_event(event),
            }
        }
        Err(gone("the connection ended before the download was complete"))
    }

    /// Records reads. Returns the lines of the trace as text.
    pub(super) async fn record(
        &self,
        request: &RecordRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
        let lines = Lines::new(self.send(Method::POST, "trace", request).await?);
        let lines = stream::unfold(Some(lines), |lines| async {
            let mut lines = lines?;
            match lines.next().await {
                Ok(line) => line.map(|line| (Ok(line), Some(lines))),
                Err(failure) => Some((Err(failure), None)),
            }
        });
        Ok(lines.boxed())
    }

    pub(super) async fn stop_recording(&self, request: &RecordRequest) -> Result<(), Failure> {
        self.send(Method::DELETE, "trace", request).await.map(|_| ())
    }

    pub(super) async fn unmount(
        &self,
        mountpoint: &Path,
        lazy: bool,
    ) -> Result<UnmountReport, Failure> {
        let request = UnmountRequest { mountpoint: mountpoint.to_owned(), lazy };
        json(self.send(Method::DELETE, "mounts", &request).await?).await
    }

    pub(super) async fn info(&self, request: &KitRequest) -> Result<Info, Failure> {
        json(self.send(Method::POST, "info", request).await?).await
    }

    pub(super) async fn tags(&self, request: &TagsRequest) -> Result<Vec<TagInfo>, Failure> {
        json(self.send(Method::POST, "tags", request).await?).await
    }

    pub(super) async fn catalogue(
        &self,
        request: &CatalogueRequest,
    ) -> Result<Vec<String>, Failure> {
        json(self.send(Method::POST, "catalogue", request).await?).await
    }

    pub(super) async fn list(&self, request: &ListRequest) -> Result<Listing, Failure> {
        json(self.send(Method::POST, "list", request).await?).await
    }

    pub(super) async fn cache(&self, request: &CacheRequest) -> Result<CacheReport, Failure> {
        json(self.send(Method::POST, "cache", request).await?).await
    }

    pub(super) async fn read(
        &self,
        request: &ReadRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
        let response = self.send(Method::POST, "read", request).await?;
        let frames = stream::unfold(Some((response, Reader::default())), |state| async {
            let (mut response, mut reader) = state?;
            match next_bytes(&mut response, &mut reader).await {
                Ok(bytes) => bytes.map(|bytes| (Ok(bytes), Some((response, reader)))),
                Err(failure) => Some((Err(failure), None)),
            }
        });
        Ok(frames.boxed())
    }

    /// Sends a request; an answer that is not a success carries a [`Failure`].
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<Response, Failure> {
        let url = format!("http://kitfs/v1/{path}");
        let request = self.http.request(method, url).header(VERSION_HEADER, VERSION).json(body);
        let response = request.send().await;
        let response = response.map_err(|error| broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        Err(serde_json::from_slice(&body).unwrap_or_else(|_| {
            let message = format!("the kitfs daemon refuses the request: {status}");
            Failure::new(FailureKind::Daemon, message)
        }))
    }
}

/// The next bytes of the files in the body of a read; `None` after the last ones.
async fn next_bytes(
    response: &mut Response,
    reader: &mut Reader,
) -> Result<Option<Bytes>, Failure> {
    let mut is_complete = false;
    loop {
        match reader.next(is_complete).map_err(|error| gone(&error.to_string()))? {
            Next::Bytes(bytes) => return Ok(Some(bytes)),
            Next::End(None) => return Ok(None),
            Next::End(Some(failure)) => return Err(failure),
            Next::More => match response.chunk().await.map_err(|error| broken(&error))? {
                Some(piece) => reader.push(&piece),
                None => is_complete = true,
            },
        }
    }
}

async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    let body = response.bytes().await.map_err(|error| broken(&error))?;
    serde_json::from_slice(&body).map_err(not_understood)
}

fn not_understood(error: serde_json::Error) -> Failure {
    let message = format!(
        "the kitfs daemon sent a malformed answer ({error}). It may be of another version: run \
         `kitfs daemon stop`, and try again"
    );
    Failure::new(FailureKind::Daemon, message)
}

/// Limits the wait for an answer from the daemon's memory: the daemon may hang.
async fn in_time<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match running_time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(gone(&silence())),
    }
}

/// The failure of a connection. reqwest's own message is about the URL, so this takes the message of
/// the innermost cause.
fn broken(error: &reqwest::Error) -> Failure {
    let mut cause: &dyn std::error::Error = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    gone(&cause.to_string())
}

/// The detail of [`Liveness::Silent`].
pub(super) fn silence() -> String {
    format!("no answer for {} s", ANSWER_TIMEOUT.as_secs())
}

fn gone(detail: &str) -> Failure {
    let message =
        format!("the kitfs daemon does not answer ({detail}); see daemon.log in the cache folder");
    Failure::new(FailureKind::Daemon, message)
}

/// Splits a body into lines.
struct Lines {
    response: Response,
    buffer: BytesMut,
}

impl Lines {
    fn new(response: Response) -> Self {
        Self { response, buffer: BytesMut::new() }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Ok(Some(line.freeze()));
            }
            if self.buffer.len() > LINE_LIMIT_BYTES {
                return Err(gone("it sent an endless line"));
            }
            match self.response.chunk().await.map_err(|error| broken(&error))? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}
