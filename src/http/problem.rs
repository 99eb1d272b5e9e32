//! Errors, as clients get them: `{"error": {"kind": "not_found", "message": "…"}}`.

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::control::api::{Failure, FailureKind};

/// The error of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The status code.
    pub(super) status: StatusCode,
    /// The word for programs: one of [`FailureKind`], or one of HTTP.
    pub(super) kind: &'static str,
    /// The message for people.
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into() }
    }

    /// A request that does not fit the interface.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "usage", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// The response.
    pub(super) fn response(self) -> Response<Body> {
        let body =
            json!({"error": {"kind": self.kind, "message": self.message}}).to_string() + "\n";
        let mut response = Response::builder()
            .status(self.status)
            .header(CONTENT_TYPE, "application/json")
            .header(CONTENT_LENGTH, body.len());
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            response = response.header(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response.body(Body::from(body)).expect("the headers are plain text")
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let (status, kind) = match failure.kind {
            FailureKind::Usage => (StatusCode::BAD_REQUEST, "usage"),
            FailureKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            // The registry has refused the user, not this server.
            FailureKind::Unauthorized => (StatusCode::FORBIDDEN, "unauthorized"),
            FailureKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            FailureKind::BadContent => (StatusCode::BAD_GATEWAY, "bad_content"),
            FailureKind::Mountpoint => (StatusCode::CONFLICT, "mountpoint"),
            FailureKind::Cache => (StatusCode::INSUFFICIENT_STORAGE, "cache"),
            FailureKind::Daemon => (StatusCode::SERVICE_UNAVAILABLE, "daemon"),
            FailureKind::Stale => (StatusCode::SERVICE_UNAVAILABLE, "stale"),
            FailureKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self::new(status, kind, failure.message)
    }
}
