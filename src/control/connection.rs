//! Sends requests to a daemon, or to a service in this process.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use tokio_util::task::AbortOnDropHandle;

use super::api::{Failure, FailureKind};
use super::caller::{Caller, Handle, Kept, Peer, Said};
use super::client::{Client, Exchange};
use super::{Operation, gone};

/// The bytes of files, as they arrive.
pub type ByteStream = BoxStream<'static, Result<Bytes, Failure>>;

/// Keeps the values alive that the daemon holds for this command ([`Caller::keep`]).
pub struct Lease {
    _held: Held,
}

enum Held {
    Connection { _exchange: Exchange },
    InProcess { _kept: Kept },
}

/// A running daemon, or a service in this process.
pub enum Connection<S> {
    /// A daemon.
    Daemon(Client),
    /// A service in this process.
    InProcess(Arc<S>),
}

impl<S> Connection<S> {
    /// Sends a request, and waits for its answer. Calls `on_event` meanwhile.
    ///
    /// # Errors
    /// The failure of the operation, or that the daemon does not answer.
    pub async fn call<O: Operation>(
        &self,
        request: O,
        descriptors: &[BorrowedFd<'_>],
        on_event: &mut (dyn FnMut(O::Event) + Send),
    ) -> Result<(O::Answer, Lease), Failure>
    where
        S: Handle<O>,
    {
        let service = match self {
            Self::Daemon(client) => {
                let (answer, exchange) = client.call(&request, descriptors, on_event).await?;
                return Ok((answer, Lease { _held: Held::Connection { _exchange: exchange } }));
            }
            Self::InProcess(service) => service,
        };
        let descriptors = descriptors.iter().map(|it| it.try_clone_to_owned());
        let descriptors = descriptors.collect::<Result<Vec<OwnedFd>, _>>();
        let descriptors =
            descriptors.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        let kept = Kept::default();
        let (caller, mut said) = Caller::new(Peer::own(), descriptors, kept.clone());
        let work = async move { service.handle(request, &caller).await };
        let hear = async {
            while let Some(said) = said.recv().await {
                if let Said::Event(event) = said {
                    on_event(event);
                }
            }
        };
        // The work drops its caller at its end. That ends `hear`.
        let (answer, ()) = tokio::join!(work, hear);
        Ok((answer?, Lease { _held: Held::InProcess { _kept: kept } }))
    }

    /// Sends a request whose answer is bytes. Returns when the first bytes, or the end, are there.
    ///
    /// # Errors
    /// The failure of the operation before its first bytes. A later one is an item of the stream.
    pub async fn stream<O: Operation>(&self, request: O) -> Result<ByteStream, Failure>
    where
        S: Handle<O> + Send + Sync + 'static,
    {
        let service = match self {
            Self::Daemon(client) => return client.stream(&request).await,
            Self::InProcess(service) => service.clone(),
        };
        let (caller, mut said) = Caller::new(Peer::own(), Vec::new(), Kept::default());
        let work = tokio::spawn(async move { service.handle(request, &caller).await.map(drop) });
        let mut work = AbortOnDropHandle::new(work);
        let first = said.recv().await;
        if first.is_none() {
            ended((&mut work).await)?;
            return Ok(stream::empty().boxed());
        }
        let rest = stream::unfold(Some((said, work)), |state| async {
            let (mut said, work) = state?;
            match said.recv().await {
                Some(item) => Some((Ok(item), Some((said, work)))),
                None => ended(work.await).err().map(|failure| (Err(failure), None)),
            }
        });
        let all = stream::iter(first.map(Ok)).chain(rest);
        let bytes = all.filter_map(|item: Result<Said<O::Event>, Failure>| async {
            match item {
                Ok(Said::Bytes(bytes)) => Some(Ok(bytes)),
                Ok(Said::Event(_)) => None,
                Err(failure) => Some(Err(failure)),
            }
        });
        Ok(bytes.boxed())
    }
}

fn ended(end: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    end.unwrap_or_else(|error| Err(gone(&error.to_string())))
}
