//! The daemon's side of the control socket: HTTP/1.1 with JSON bodies, one route a request type.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::api::{
    CacheRequest, Failure, FailureKind, KitRequest, ListRequest, MountEvent, MountRequest,
    PassProgress, ReadRequest, TagsRequest, UnmountRequest,
};
use super::service::Service;

/// The largest request body; the longest lists are filters and paths typed by a person.
const BODY_LIMIT_BYTES: usize = 1024 * 1024;
/// Progress lines that may wait for a slow client; more are dropped.
const PROGRESS_LINES: usize = 16;

/// The routes of the control API.
pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/stop", post(stop))
        .route("/v1/mounts", post(mount).delete(unmount))
        .route("/v1/info", post(info))
        .route("/v1/tags", post(tags))
        .route("/v1/list", post(list))
        .route("/v1/read", post(read))
        .route("/v1/cache", post(cache))
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .with_state(service)
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.kind {
            FailureKind::Usage | FailureKind::Mountpoint => StatusCode::BAD_REQUEST,
            FailureKind::NotFound => StatusCode::NOT_FOUND,
            FailureKind::Unauthorized => StatusCode::FORBIDDEN,
            FailureKind::Unavailable | FailureKind::BadContent => StatusCode::BAD_GATEWAY,
            FailureKind::Cache | FailureKind::Daemon | FailureKind::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        (status, Json(self)).into_response()
    }
}

async fn status(State(service): State<Arc<Service>>) -> Response {
    Json(service.status()).into_response()
}

async fn stop(State(service): State<Arc<Service>>) -> StatusCode {
    service.request_stop();
    StatusCode::ACCEPTED
}

async fn info(State(service): State<Arc<Service>>, Json(request): Json<KitRequest>) -> Response {
    answer(service.info(&request).await)
}

async fn tags(State(service): State<Arc<Service>>, Json(request): Json<TagsRequest>) -> Response {
    answer(service.tags(&request).await)
}

async fn list(State(service): State<Arc<Service>>, Json(request): Json<ListRequest>) -> Response {
    answer(service.list(&request).await)
}

async fn cache(State(service): State<Arc<Service>>, Json(request): Json<CacheRequest>) -> Response {
    answer(service.cache(request).await)
}

async fn unmount(
    State(service): State<Arc<Service>>,
    Json(request): Json<UnmountRequest>,
) -> Response {
    answer(service.unmount(request.mountpoint, request.lazy).await)
}

fn answer(result: Result<impl serde::Serialize, Failure>) -> Response {
    match result {
        Ok(body) => Json(body).into_response(),
        Err(failure) => failure.into_response(),
    }
}

async fn read(State(service): State<Arc<Service>>, Json(request): Json<ReadRequest>) -> Response {
    match service.read(&request).await {
        Ok(bytes) => {
            // The status line is out by then: what fails later breaks the body off, which the
            // client sees; the words go to the log.
            let bytes = bytes.inspect(|piece| {
                if let Err(failure) = piece {
                    tracing::warn!(%failure, "a read over the control socket broke off");
                }
            });
            Body::from_stream(bytes).into_response()
        }
        Err(failure) => failure.into_response(),
    }
}

/// Answers with a line an event, the last one `Mounted` or `Failed`.
async fn mount(State(service): State<Arc<Service>>, Json(request): Json<MountRequest>) -> Response {
    let (progress, incoming) = mpsc::channel::<PassProgress>(PROGRESS_LINES);
    // A task of its own: a client that goes away does not leave a mount half made.
    let mounting = tokio::spawn(async move {
        service.mount(request, &move |report| drop(progress.try_send(report))).await
    });
    let events = stream::unfold(Some((incoming, mounting)), |state| async move {
        let (mut incoming, mounting) = state?;
        if let Some(progress) = incoming.recv().await {
            return Some((MountEvent::Progress(progress), Some((incoming, mounting))));
        }
        let event = match mounting.await {
            Ok(Ok(status)) => MountEvent::Mounted(status),
            Ok(Err(failure)) => MountEvent::Failed(failure),
            Err(error) => {
                MountEvent::Failed(Failure::new(FailureKind::Internal, error.to_string()))
            }
        };
        Some((event, None))
    });
    let lines = events.map(|event| {
        let mut line = serde_json::to_vec(&event).expect("events have string keys only");
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    Body::from_stream(lines).into_response()
}
