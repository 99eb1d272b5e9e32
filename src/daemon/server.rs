//! The server of the control socket: HTTP/1.1 with JSON bodies. Each request type has a route.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_util::future::ready;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::api::{
    CacheRequest, CatalogueRequest, Failure, FailureKind, KitRequest, ListRequest, MountEvent,
    MountRequest, OpenEvent, ReadRequest, RecordRequest, TagsRequest, UnmountReport,
    UnmountRequest, WarmEvent, WarmRequest,
};
use super::failure::panicked;
use super::frames;
use super::service::{Service, VERSION};

/// The header with the version of the command.
pub(super) const VERSION_HEADER: &str = "kitfs-version";
/// The largest request body. The longest parts are lists of filters and paths, which people type.
const BODY_LIMIT_BYTES: usize = 1024 * 1024;
/// The number of progress lines that may wait for a slow client. The server drops further lines.
const PROGRESS_LINES: usize = 16;

/// The routes of the control API.
pub(super) fn router(service: Arc<Service>) -> Router {
    let versioned = Router::new()
        .route("/v1/mounts", post(mount))
        .route("/v1/open", post(open))
        .route("/v1/info", post(info))
        .route("/v1/tags", post(tags))
        .route("/v1/catalogue", post(catalogue))
        .route("/v1/list", post(list))
        .route("/v1/read", post(read))
        .route("/v1/warm", post(warm))
        .route("/v1/trace", post(record).delete(stop_recording))
        .route("/v1/cache", post(cache))
        .route_layer(middleware::from_fn(check_version));
    // A command of another version may still ask for the status, unmount, stop and replace.
    Router::new()
        .route("/v1/alive", get(async || StatusCode::NO_CONTENT))
        .route("/v1/status", get(status))
        .route("/v1/stop", post(stop))
        .route("/v1/replace", post(replace))
        .route("/v1/mounts", delete(unmount))
        .merge(versioned)
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .with_state(service)
}

/// Refuses commands of another version, because their bodies may have another meaning. Accepts
/// clients without a version, such as curl.
async fn check_version(request: Request, next: Next) -> Response {
    let version = request.headers().get(VERSION_HEADER);
    if version.is_none_or(|version| version == VERSION) {
        return next.run(request).await;
    }
    let version = version.and_then(|version| version.to_str().ok()).unwrap_or("another version");
    let message = format!(
        "the running daemon is kitfs {VERSION} and this command is kitfs {version}: replace it with \
         `kitfs daemon restart` (its mounts go on), or end it and its mounts with `kitfs daemon stop`, \
         and try again"
    );
    Failure::new(FailureKind::Daemon, message).into_response()
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
    Json(service.status().await).into_response()
}

async fn stop(State(service): State<Arc<Service>>) -> Json<UnmountReport> {
    Json(service.stop().await)
}

async fn replace(State(service): State<Arc<Service>>) -> Response {
    answer(service.request_replacement())
}

async fn info(State(service): State<Arc<Service>>, Asked(request): Asked<KitRequest>) -> Response {
    answer(service.info(&request).await)
}

async fn tags(State(service): State<Arc<Service>>, Asked(request): Asked<TagsRequest>) -> Response {
    answer(service.tags(&request).await)
}

async fn catalogue(
    State(service): State<Arc<Service>>,
    Asked(request): Asked<CatalogueRequest>,
) -> Response {
    answer(service.catalogue(&request).await)
}

async fn list(State(service): State<Arc<Service>>, Asked(request): Asked<ListRequest>) -> Response {
    answer(service.list(&request).await)
}

async fn cache(
    State(service): State<Arc<Service>>,
    Asked(request): Asked<CacheRequest>,
) -> Response {
    answer(service.cache(request).await)
}

async fn unmount(
    State(service): State<Arc<Service>>,
    Asked(request): Asked<UnmountRequest>,
) -> Response {
    answer(service.unmount(&request.mountpoint, request.lazy).await)
}

fn answer(result: Result<impl Serialize, Failure>) -> Response {
    match result {
        Ok(body) => Json(body).into_response(),
        Err(failure) => failure.into_response(),
    }
}

async fn read(State(service): State<Arc<Service>>, Asked(request): Asked<ReadRequest>) -> Response {
    match service.read(&request).await {
        Ok(bytes) => {
            let ended = stream::once(async { None });
            let frames = bytes.map(Some).chain(ended).scan(false, |is_over, piece| {
                let frame = match piece {
                    _ if *is_over => return ready(None),
                    Some(Ok(piece)) => return ready(Some(frames::frame(&piece))),
                    Some(Err(failure)) => frames::end(Some(&failure)),
                    None => frames::end(None),
                };
                *is_over = true;
                ready(Some(frame))
            });
            Body::from_stream(frames.map(Ok::<_, Infallible>)).into_response()
        }
        Err(failure) => failure.into_response(),
    }
}

async fn mount(
    State(service): State<Arc<Service>>,
    Asked(request): Asked<MountRequest>,
) -> Response {
    lines(MountEvent::Progress, |progress| async move {
        match service.mount(request, &*progress).await {
            Ok(status) => MountEvent::Mounted(Box::new(status)),
            Err(failure) => MountEvent::Failed(failure),
        }
    })
}

async fn open(State(service): State<Arc<Service>>, Asked(request): Asked<KitRequest>) -> Response {
    lines(OpenEvent::Progress, |progress| async move {
        match service.open_kit(&request, &*progress).await {
            Ok(pinned) => OpenEvent::Opened { pinned },
            Err(failure) => OpenEvent::Failed(failure),
        }
    })
}

async fn warm(State(service): State<Arc<Service>>, Asked(request): Asked<WarmRequest>) -> Response {
    let same = std::convert::identity::<WarmEvent>;
    lines(same, |report| async move {
        match service.warm(request, &*report).await {
            Ok(report) => WarmEvent::Warmed(report),
            Err(failure) => WarmEvent::Failed(failure),
        }
    })
}

async fn record(
    State(service): State<Arc<Service>>,
    Asked(request): Asked<RecordRequest>,
) -> Response {
    match service.record(&request.mountpoint).await {
        Ok(lines) => Body::from_stream(lines.map(line)).into_response(),
        Err(failure) => failure.into_response(),
    }
}

async fn stop_recording(
    State(service): State<Arc<Service>>,
    Asked(request): Asked<RecordRequest>,
) -> Response {
    answer(service.stop_recording(&request.mountpoint))
}

fn line(event: impl Serialize) -> Result<Bytes, Infallible> {
    let mut line = serde_json::to_vec(&event).expect("events have string keys only");
    line.push(b'\n');
    Ok(Bytes::from(line))
}

/// Answers with one line for each event: the progress of `work`, then its result.
///
/// The work ends when the client closes the connection, so an interrupted command mounts nothing.
fn lines<Report, Event, Work>(
    event: fn(Report) -> Event,
    work: impl FnOnce(Box<dyn Fn(Report) + Send + Sync>) -> Work,
) -> Response
where
    Report: Send + 'static,
    Event: Serialize + From<Failure> + Send + 'static,
    Work: Future<Output = Event> + Send + 'static,
{
    let (progress, incoming) = mpsc::channel::<Report>(PROGRESS_LINES);
    let work = work(Box::new(move |report| _ = progress.try_send(report)));
    let work = AbortOnDropHandle::new(tokio::spawn(work));
    let events = stream::unfold(Some((incoming, work)), move |state| async move {
        let (mut incoming, work) = state?;
        if let Some(progress) = incoming.recv().await {
            return Some((event(progress), Some((incoming, work))));
        }
        let last = work.await.unwrap_or_else(|error| Event::from(panicked(error)));
        Some((last, None))
    });
    Body::from_stream(events.map(line)).into_response()
}

/// The body of a request. A malformed body becomes a [`Failure`], like every other error.
struct Asked<T>(T);

impl<S, T> FromRequest<S> for Asked<T>
where
    S: Send + Sync,
    Json<T>: FromRequest<S, Rejection = JsonRejection>,
{
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match Json::from_request(request, state).await {
            Ok(Json(asked)) => Ok(Self(asked)),
            Err(rejection) => Err(Failure::new(FailureKind::Usage, rejection.body_text())),
        }
    }
}
