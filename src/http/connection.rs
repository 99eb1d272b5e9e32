//! One connection of a client, and its time limits.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::places::Peer;
use super::problem::Problem;
use super::route::Route;
use super::{Server, access, api, peer};
use crate::control::Service;

/// How long a client may take for the head of a request, or be silent between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may read no byte of an answer. 5 min: a program may work between two reads. After a longer
/// pause, it continues with a range request.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// The longest head of a request: a path of 4 KiB, percent-encoded, and the headers of browsers. The buffer of an
/// answer is as large.
const BUFFER_BYTES: usize = 64 * 1024;
/// The most headers of a request; browsers send about 20.
const MOST_HEADERS: usize = 64;

/// Headers of each answer. With them, no content of this server runs in a browser, or is shown inside another page.
const HEADERS: [(HeaderName, &str); 5] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; sandbox"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The two ends of a connection.
struct Ends {
    client: SocketAddr,
    server: SocketAddr,
    /// The user of the client; `None` where this machine does not know.
    user: Option<u32>,
}

impl Ends {
    async fn of(stream: &TcpStream, client: SocketAddr) -> Option<Self> {
        let server = stream.local_addr().ok()?;
        let mut ends = Self { client, server, user: None };
        if ends.are_of_this_machine() {
            ends.user = find_user(client, server).await;
        }
        Some(ends)
    }

    /// Whether the client has an address of this machine, as far as the two addresses tell.
    fn are_of_this_machine(&self) -> bool {
        access::is_loopback_address(self.client.ip())
            || self.client.ip().to_canonical() == self.server.ip().to_canonical()
    }

    /// Whether the client is the user of the daemon, or root.
    fn are_of_owner(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.user.is_some_and(|uid| uid == 0 || uid == own)
    }

    fn peer(&self) -> Peer {
        self.user.map_or(Peer::Address(self.client.ip()), Peer::User)
    }
}

/// Answers the requests of one connection, until the client closes it or `draining`.
pub(super) async fn run<S: Service>(
    server: Arc<Server<S>>,
    stream: TcpStream,
    client: SocketAddr,
    draining: CancellationToken,
    arrival: OwnedSemaphorePermit,
) {
    let Some(ends) = Ends::of(&stream, client).await else { return };
    drop(arrival);
    let place = match ends.are_of_owner() {
        true => tokio::select! {
            place = server.places.of_owner() => Some(place),
            () = draining.cancelled() => None,
        },
        false => server.places.of_other(ends.peer()),
    };
    let Some(_place) = place else { return };
    // Small answers must not wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    let ends = Arc::new(ends);
    let service = service_fn(move |request| {
        let (server, ends) = (server.clone(), ends.clone());
        async move { Ok::<_, Infallible>(answer(server, &ends, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.max_buf_size(BUFFER_BYTES).max_headers(MOST_HEADERS);
    let io = TokioIo::new(Stalling::new(stream, STALL_TIMEOUT));
    let mut connection = pin!(builder.serve_connection(io, service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %client, "an HTTP connection ended early");
    }
}

async fn answer<S: Service>(
    server: Arc<Server<S>>,
    ends: &Ends,
    request: Request<Incoming>,
) -> Response<Body> {
    let answered = admitted(server, ends, &request).await;
    let mut response = answered.unwrap_or_else(Problem::response);
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    if request.method() == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

async fn admitted<S: Service>(
    server: Arc<Server<S>>,
    ends: &Ends,
    request: &Request<Incoming>,
) -> Result<Response<Body>, Problem> {
    let (uri, headers) = (request.uri(), request.headers());
    let route = Route::parse(uri.path());
    let is_open = route.is_some_and(Route::is_open);
    access::check_origin(headers)?;
    // A monitoring system on another machine uses another name for this one. A browser of this machine may have been
    // led here by a name of a web page.
    if !(is_open && server.config.is_public) || ends.are_of_this_machine() {
        access::check_host(uri, headers)?;
    }
    if !is_open {
        check_user(ends)?;
    }
    let is_head = request.method() == Method::HEAD;
    if !is_head && request.method() != Method::GET {
        let message = "this interface is read-only: it takes GET and HEAD";
        return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message));
    }
    let route = route.ok_or_else(|| {
        Problem::not_found(format!(
            "`{}` is no path of this interface: see docs/api.md",
            uri.path()
        ))
    })?;
    api::answer(server, route, uri, headers, is_head).await
}

/// Checks that the client belongs to the user of the daemon or to root.
fn check_user(ends: &Ends) -> Result<(), Problem> {
    match ends.user {
        _ if ends.are_of_owner() => Ok(()),
        Some(_) => Err(Problem::forbidden("this daemon belongs to another user of the machine")),
        None => Err(Problem::forbidden(
            "the user of the connection is unknown: only processes of this machine and network namespace may ask",
        )),
    }
}

async fn find_user(client: SocketAddr, server: SocketAddr) -> Option<u32> {
    match spawn_blocking(move || peer::user_of(client, server)).await {
        Ok(Ok(user)) => user,
        Ok(Err(error)) => {
            tracing::warn!(%error, "users of HTTP connections cannot be found, and are refused");
            None
        }
        Err(_) => None,
    }
}

/// A stream whose writes fail when the client reads no byte for a while.
struct Stalling<T> {
    stream: T,
    limit: Duration,
    /// Runs while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<T> Stalling<T> {
    fn new(stream: T, limit: Duration) -> Self {
        Self { stream, limit, deadline: None }
    }

    /// The outcome of a write, or the failure of a write that has waited for too long.
    fn judge<R>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stalling<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stalling<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_fails_when_nobody_reads() {
        let (client, server) = tokio::io::duplex(64);
        let mut stream = Stalling::new(server, Duration::from_secs(10));
        let error = stream.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_served() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut stream = Stalling::new(server, Duration::from_secs(10));
        let writing = tokio::spawn(async move { stream.write_all(&[7; 640]).await });
        let mut got = [0; 640];
        for piece in got.chunks_mut(64) {
            tokio::time::sleep(Duration::from_secs(9)).await;
            client.read_exact(piece).await.unwrap();
        }
        writing.await.unwrap().unwrap();
        assert_eq!(got, [7; 640]);
    }
}
