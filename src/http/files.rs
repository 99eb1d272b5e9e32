//! `/v1/files/REF/PATH` and `/v1/entries/REF/PATH`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE,
};
use axum::http::{HeaderMap, Response, StatusCode};

use super::Server;
use super::api::{Parameters, ask, json};
use super::body::Reading;
use super::kit_path::{KitPath, Split};
use super::kits::OpenKit;
use super::problem::Problem;
use super::validators::{Verdict, judge};
use crate::control::api::{
    EntryKind, FileStat, ListRequest, RawPath, ResidencyRequest, ResidencyRows, StatRequest,
    StatusRequest, Subject,
};
use crate::control::{Answering, Service};
use crate::serve::byte_range::Asked;

/// The types of files that browsers show. No type may run as a program in the origin of this server, because the
/// content of a kit is hostile.
const TYPES: [(&str, &str); 12] = [
    ("txt", TEXT),
    ("md", TEXT),
    ("yaml", TEXT),
    ("yml", TEXT),
    ("toml", TEXT),
    ("csv", TEXT),
    ("log", TEXT),
    ("py", TEXT),
    ("json", "application/json"),
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
];
const TEXT: &str = "text/plain; charset=utf-8";
/// The default number of rows and ranges of an answer about residency: a page of text.
const RESIDENCY_ROWS: u32 = 100;
const RESIDENCY_RANGES: u32 = 1000;
/// Files whose names have no extension.
const TEXT_FILES: [&str; 3] = ["Kitfile", "README", "LICENSE"];

/// The kit and the path that a URL names.
async fn resolve<S: Service>(server: &Server<S>, text: &str) -> Result<KitPath, Problem> {
    match Split::parse(text)? {
        Split::Clear(path) => Ok(path),
        Split::Open(open) => {
            let (status, _) =
                server.kits.connection().call(StatusRequest {}, &[], &mut |_| {}).await?;
            let mounted: Vec<_> = status.mounts.into_iter().map(|mount| mount.reference).collect();
            open.resolve(&mounted)
        }
    }
}

/// Answers with the bytes of a file, or with the entries of a folder.
pub(super) async fn file<S: Service>(
    server: Arc<Server<S>>,
    text: &str,
    headers: &HeaderMap,
    is_head: bool,
    answering: Answering,
) -> Result<Response<Body>, Problem> {
    let KitPath { reference, path } = resolve(&server, text).await?;
    let (path, kit) = (RawPath(path), server.kits.open(&reference).await?);
    let request = StatRequest { kit: kit.handle, path: path.clone() };
    let (stat, _) = server.kits.connection().call(request, &[], &mut |_| {}).await?;
    let FileStat { entry, content_id: Some(content_id), replacements } = stat else {
        return entries_of(&server, &kit, path, false).await;
    };
    let etag = format!("\"{content_id}\"");
    let builder = Response::builder().header(ETAG, &etag).header(CACHE_CONTROL, "no-cache");
    let range_counts = match judge(headers, &etag) {
        Verdict::Send { range_counts } => range_counts,
        Verdict::NotModified => {
            return Ok(finished(builder.status(StatusCode::NOT_MODIFIED).body(Body::empty())));
        }
        Verdict::Failed => {
            let message = "the file has another ETag than the condition names";
            return Err(Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "precondition_failed",
                message,
            ));
        }
    };
    let range = headers.get(RANGE).filter(|_| range_counts && !is_head);
    let (status, range) = match Asked::parse(range.and_then(|it| it.to_str().ok()), entry.size) {
        Asked::Whole => (StatusCode::OK, 0..entry.size),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Unsatisfiable => {
            let message = format!("the file has {} bytes", entry.size);
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let mut response = Problem::new(status, "range_not_satisfiable", message).response();
            let value = format!("bytes */{}", entry.size).parse().expect("digits make a header");
            response.headers_mut().insert(CONTENT_RANGE, value);
            return Ok(response);
        }
    };
    let mut builder = builder
        .status(status)
        .header(ACCEPT_RANGES, "bytes")
        .header(CONTENT_TYPE, media_type(&path.0))
        .header(CONTENT_LENGTH, range.end - range.start);
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{}", range.start, range.end - 1, entry.size);
        builder = builder.header(CONTENT_RANGE, value);
    }
    if is_head {
        return Ok(finished(builder.body(Body::empty())));
    }
    let replacements = (status == StatusCode::OK).then_some(replacements);
    let reading = Reading { server, kit, path, range, replacements, _answering: answering };
    Ok(finished(builder.body(Body::from_stream(reading.start().await?))))
}

/// Answers with the entries of a folder, or the one entry of a file.
pub(super) async fn entries<S: Service>(
    server: &Server<S>,
    text: &str,
    parameters: &Parameters,
) -> Result<Response<Body>, Problem> {
    let is_recursive = parameters.flag("recursive")?;
    let KitPath { reference, path } = resolve(server, text).await?;
    let kit = server.kits.open(&reference).await?;
    entries_of(server, &kit, RawPath(path), is_recursive).await
}

/// Answers with the parts of files that are in the cache.
pub(super) async fn residency<S: Service>(
    server: &Server<S>,
    text: &str,
    parameters: &Parameters,
) -> Result<Response<Body>, Problem> {
    let KitPath { reference, path } = resolve(server, text).await?;
    let kit = server.kits.open(&reference).await?;
    let request = ResidencyRequest {
        subject: Subject::Kit(kit.handle),
        path: RawPath(path),
        rows: ResidencyRows::Largest,
        skip: parameters.number("skip", 0)?,
        most_rows: parameters.number("rows", RESIDENCY_ROWS)?,
        cells: parameters.number("cells", 0)?,
        most_ranges: parameters.number("ranges", RESIDENCY_RANGES)?,
    };
    json(&ask(server, request).await?)
}

async fn entries_of<S: Service>(
    server: &Server<S>,
    kit: &OpenKit,
    path: RawPath,
    recursive: bool,
) -> Result<Response<Body>, Problem> {
    let request = ListRequest { kit: kit.handle, path, recursive, digests: true };
    let (listing, _) = server.kits.connection().call(request, &[], &mut |_| {}).await?;
    match listing.entry.kind {
        EntryKind::Directory => json(&listing.below),
        EntryKind::File | EntryKind::Symlink(_) => json(&[listing.entry]),
    }
}

fn finished(response: Result<Response<Body>, axum::http::Error>) -> Response<Body> {
    response.expect("the headers are plain text")
}

/// The type of a file's content, by its name.
fn media_type(path: &[u8]) -> &'static str {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    if TEXT_FILES.contains(&&*name) {
        return TEXT;
    }
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    let known = TYPES.iter().find(|(known, _)| extension.as_deref() == Some(known));
    known.map_or("application/octet-stream", |(_, media_type)| media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_type_of_a_file_runs_in_a_browser() {
        assert_eq!(media_type(b"a/config.JSON"), "application/json");
        assert_eq!(media_type(b"Kitfile"), TEXT);
        for name in
            ["x.html", "x.svg", "x.js", "x.xml", "x.xhtml", "x", "", "x.json/", "\u{ff}.css"]
        {
            assert_eq!(media_type(name.as_bytes()), "application/octet-stream", "{name}");
        }
    }
}
