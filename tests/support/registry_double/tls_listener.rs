//! A listener that speaks TLS, and answers plain http in fixed words.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::serve::Listener;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The answer of Go's server to plain http.
pub(super) const GO_ANSWER: &str =
    "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// Accepts TLS connections, and answers plain http in fixed words.
pub(super) struct TlsListener {
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    pub(super) fn new(
        listener: TcpListener,
        tls: Arc<tokio_rustls::rustls::ServerConfig>,
        plain_answer: &'static str,
    ) -> Self {
        let address = listener.local_addr().expect("it is bound");
        let (sender, accepted) = mpsc::channel(16);
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(tls);
            while let Ok((stream, peer)) = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            } {
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    if let Some(stream) = handshake(stream, acceptor, plain_answer).await {
                        let _ = sender.send((stream, peer)).await;
                    }
                });
            }
        });
        Self { accepted, address }
    }
}

async fn handshake(
    mut stream: TcpStream,
    acceptor: TlsAcceptor,
    plain_answer: &'static str,
) -> Option<TlsStream<TcpStream>> {
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    stream.peek(&mut first).await.ok()?;
    if first[0] == HANDSHAKE {
        return acceptor.accept(stream).await.ok();
    }
    let _ = stream.read(&mut [0; 4096]).await;
    let _ = stream.write_all(plain_answer.as_bytes()).await;
    None
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
