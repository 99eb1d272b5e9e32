//! HTTP answers to requests, from the contents of a layout.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, RANGE,
};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::byte_range::Asked;
use super::catalogue::Catalogue;
use super::page::Query;
use super::route::Route;
use super::stored_manifest::{INDEX_TYPE, StoredManifest};
use crate::oci::{BlobId, BlobOffset, Digest, Reference, Selector};
use crate::source::oci_layout::OciLayout;
use crate::source::{BlobSource, SourceError, Urgency};

/// The header with the digest of the blob or manifest.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// An error as the distribution-spec writes it ("Error Codes").
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// Answers one request.
pub(super) async fn answer(
    catalogue: Arc<Catalogue>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let mut response = match dispatch(catalogue, &method, &uri, &headers).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    response.headers_mut().insert(
        "docker-distribution-api-version",
        axum::http::HeaderValue::from_static("registry/2.0"),
    );
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

async fn dispatch(
    catalogue: Arc<Catalogue>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    if method != Method::GET && method != Method::HEAD {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "UNSUPPORTED",
            message: "this registry is read-only: change the folder it serves".to_owned(),
        });
    }
    let route = Route::parse(uri.path()).ok_or_else(|| Refusal {
        status: StatusCode::NOT_FOUND,
        code: "NAME_UNKNOWN",
        message: format!("{} is no path of a registry", uri.path()),
    })?;
    let name = match route {
        Route::Base => return Ok(sized_json("application/json", &json!({}))),
        Route::Catalog => return repositories(catalogue, uri).await,
        Route::Manifest { name, .. }
        | Route::Blob { name, .. }
        | Route::Tags { name }
        | Route::Referrers { name, .. } => name,
    };
    let layout = blocking({
        let (catalogue, name) = (catalogue, name.to_owned());
        move || catalogue.find(&name).ok_or_else(|| unknown_name(&name))
    })
    .await?;
    match route {
        Route::Base | Route::Catalog => unreachable!("answered above"),
        Route::Manifest { name, reference } => manifest(layout, name, reference).await,
        Route::Blob { digest, .. } => blob(layout, digest, headers).await,
        Route::Tags { name } => tags(layout, name, uri).await,
        Route::Referrers { digest, .. } => referrers(layout, digest, uri).await,
    }
}

async fn repositories(catalogue: Arc<Catalogue>, uri: &Uri) -> Result<Response, Refusal> {
    let query = query::<Query>(uri)?;
    let names = blocking(move || Ok(catalogue.names())).await?;
    let page = query.page(names);
    Ok(linked(
        sized_json("application/json", &json!({"repositories": page.entries})),
        uri,
        page.next,
    ))
}

async fn tags(layout: Arc<OciLayout>, name: &str, uri: &Uri) -> Result<Response, Refusal> {
    let query: Query = query(uri)?;
    let repository = name.to_owned();
    let tags = blocking(move || {
        let is_tag = |tag: &String| selector(&repository, tag).is_some();
        Ok(layout.index()?.tags().into_iter().filter(is_tag).collect())
    })
    .await?;
    let page = query.page(tags);
    let body = json!({"name": name, "tags": page.entries});
    Ok(linked(sized_json("application/json", &body), uri, page.next))
}

async fn manifest(
    layout: Arc<OciLayout>,
    name: &str,
    reference: &str,
) -> Result<Response, Refusal> {
    let unknown = || Refusal {
        status: StatusCode::NOT_FOUND,
        code: "MANIFEST_UNKNOWN",
        message: format!("{name} has no manifest {reference}"),
    };
    let selector = selector(name, reference).ok_or_else(unknown)?;
    let found = blocking(move || {
        let digest = match selector {
            Selector::Digest(digest) => Some(digest),
            Selector::Tag(tag) => layout.index()?.tagged(&tag),
        };
        let Some(digest) = digest else { return Ok(None) };
        match layout.manifest_bytes(digest) {
            Ok(bytes) => Ok(StoredManifest::decode(&bytes).map(|read| (digest, bytes, read))),
            // The digest of a layer on the manifests path is not found, because a layer is no manifest.
            Err(SourceError::NotFound { .. } | SourceError::Protocol { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    let (digest, bytes, read) = found.ok_or_else(unknown)?;
    let headers = [
        (CONTENT_TYPE.as_str(), read.media_type().to_owned()),
        (CONTENT_LENGTH.as_str(), bytes.len().to_string()),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    Ok((headers, bytes).into_response())
}

async fn blob(
    layout: Arc<OciLayout>,
    digest: &str,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let digest = parse_digest(digest)?;
    let size = layout.blob_size(digest).await?;
    let blob = BlobId { digest, size };
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let (status, range) = match Asked::parse(range, size) {
        Asked::Whole => (StatusCode::OK, blob.whole()),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, BlobOffset::of(range)),
        Asked::Unsatisfiable => {
            let refusal = Refusal {
                status: StatusCode::RANGE_NOT_SATISFIABLE,
                code: "SIZE_INVALID",
                message: format!("the blob has {size} bytes"),
            };
            return Ok(([(CONTENT_RANGE, format!("bytes */{size}"))], refusal).into_response());
        }
    };
    let content = [
        (CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (ACCEPT_RANGES.as_str(), "bytes".to_owned()),
        (CONTENT_LENGTH.as_str(), (range.end - range.start).to_string()),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    let body = match range.is_empty() {
        true => Body::empty(),
        false => {
            Body::from_stream(layout.open(blob, range.clone(), Urgency::on_demand()).await?.bytes)
        }
    };
    let mut response = (status, content, body).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{size}", range.start, range.end.get() - 1);
        let value = value.parse().expect("digits make a header value");
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    Ok(response)
}

/// The query of a list of referrers.
#[derive(Default, Deserialize)]
struct ReferrersQuery {
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
}

/// The manifests in the index that name `digest` as their subject.
async fn referrers(layout: Arc<OciLayout>, digest: &str, uri: &Uri) -> Result<Response, Refusal> {
    let subject = parse_digest(digest)?;
    let wanted = query::<ReferrersQuery>(uri)?.artifact_type;
    let is_filtered = wanted.is_some();
    let found = blocking(move || {
        let mut digests: Vec<_> =
            layout.index()?.entries.into_iter().map(|entry| entry.digest).collect();
        digests.sort();
        digests.dedup();
        let mut found = Vec::new();
        for digest in digests {
            // One broken manifest must not hide the others.
            let Ok(bytes) = layout.manifest_bytes(digest) else { continue };
            let Some(read) = StoredManifest::decode(&bytes) else { continue };
            let is_wanted = wanted.is_none() || read.artifact_type() == wanted.as_deref();
            if read.subject() == Some(subject) && is_wanted {
                found.push(read.descriptor(digest, bytes.len()));
            }
        }
        Ok(found)
    })
    .await?;
    let body = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": found});
    let mut response = sized_json(INDEX_TYPE, &body);
    if is_filtered {
        let value = axum::http::HeaderValue::from_static("artifactType");
        response.headers_mut().insert("oci-filters-applied", value);
    }
    Ok(response)
}

/// The tag or digest in a path; `None` if it is neither.
fn selector(name: &str, reference: &str) -> Option<Selector> {
    if let Ok(digest) = Digest::parse(reference) {
        return Some(Selector::Digest(digest));
    }
    let reference = Reference::parse(&format!("registry.invalid/{name}:{reference}")).ok()?;
    Some(reference.selector().clone())
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    Digest::parse(text).map_err(|error| Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "DIGEST_INVALID",
        message: error.to_string(),
    })
}

fn query<Q: for<'de> Deserialize<'de>>(uri: &Uri) -> Result<Q, Refusal> {
    let query = axum::extract::Query::<Q>::try_from_uri(uri);
    query.map(|query| query.0).map_err(|error| Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "PAGINATION_NUMBER_INVALID",
        message: error.to_string(),
    })
}

fn unknown_name(name: &str) -> Refusal {
    let message = format!("no repository {name} here; /v2/_catalog lists them");
    Refusal { status: StatusCode::NOT_FOUND, code: "NAME_UNKNOWN", message }
}

/// A JSON answer with its length. HEAD needs the length although it sends no body.
fn sized_json(media_type: &str, body: &serde_json::Value) -> Response {
    let body = Bytes::from(body.to_string());
    let headers = [(CONTENT_TYPE, media_type.to_owned()), (CONTENT_LENGTH, body.len().to_string())];
    (headers, body).into_response()
}

fn linked(response: Response, uri: &Uri, next: Option<String>) -> Response {
    match next {
        Some(next) => {
            ([(LINK, format!("<{}?{next}>; rel=\"next\"", uri.path()))], response).into_response()
        }
        None => response,
    }
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
        tracing::error!("a request failed: {error}");
        Err(Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "UNKNOWN",
            message: "the registry failed: its log says why".to_owned(),
        })
    })
}

impl From<SourceError> for Refusal {
    /// The message leaves out the server's paths. The full reason goes to the log.
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::NotFound { what, .. } => Self {
                status: StatusCode::NOT_FOUND,
                code: "BLOB_UNKNOWN",
                message: format!("{what} not found"),
            },
            error => {
                tracing::warn!("{error}");
                Self {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    code: "UNKNOWN",
                    message: "the folder cannot be read: the registry's log says why".to_owned(),
                }
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({"errors": [{"code": self.code, "message": self.message}]});
        let mut response = (self.status, sized_json("application/json", &body)).into_response();
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            let value = axum::http::HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, value);
        }
        response
    }
}
