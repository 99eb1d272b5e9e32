//! Answers in JSON, and those about health.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use serde::Serialize;

use super::kit_path::{checked, reference};
use super::problem::Problem;
use super::route::Route;
use super::{Server, files, metrics, page};
use crate::control::api::{
    ActivityRequest, CompareRequest, DaemonStatus, Info, InfoRequest, KitRequest, RawPath,
    StatusRequest,
};
use crate::control::{Activity, Answering, Handle, Operation, Service, VERSION};
use crate::fs::percent_decoded;
use crate::observe::metrics::Exposition;
use crate::process::running_time;

/// The version of the interface. A change that a client notices makes it larger.
const API: u32 = 1;
/// How long `/readyz` waits for the status, which takes milliseconds.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers one request.
///
/// # Errors
/// The problem to answer with.
pub(super) async fn answer<S: Service>(
    server: Arc<Server<S>>,
    route: Route<'_>,
    uri: &Uri,
    headers: &HeaderMap,
    is_head: bool,
) -> Result<Response<Body>, Problem> {
    match route {
        Route::Health => return Ok(text("ok\n")),
        Route::Ready => return ready(&server).await,
        Route::Metrics => {
            let (status, activity) =
                (ask(&server, StatusRequest {}).await?, ask(&server, ActivityRequest {}).await?);
            let text = metrics::render(&status, &activity);
            return Ok(response(Exposition::MEDIA_TYPE, text.into_bytes()));
        }
        _ => {}
    }
    let answering = begin(&server.activity)?;
    let parameters = Parameters::parse(uri.query().unwrap_or_default())?;
    let is_known = |name: &str| match route {
        Route::Entries(_) => name == "recursive",
        Route::Residency(_) => ["rows", "skip", "cells", "ranges"].contains(&name),
        Route::Diff => ["from", "to", "path", "content"].contains(&name),
        _ => false,
    };
    parameters.check(is_known)?;
    match route {
        Route::Health | Route::Ready | Route::Metrics => unreachable!("answered above"),
        Route::Page => page::answer(&server).await,
        Route::Style => Ok(page::style()),
        Route::Version => json(&serde_json::json!({"version": VERSION, "api": API})),
        Route::Status => json(&ask(&server, StatusRequest {}).await?),
        Route::Activity => json(&ask(&server, ActivityRequest {}).await?),
        Route::Mounts => json(&ask(&server, StatusRequest {}).await?.mounts),
        Route::Files(path) => files::file(server, path, headers, is_head, answering).await,
        Route::Entries(path) => files::entries(&server, path, &parameters).await,
        Route::Residency(path) => files::residency(&server, path, &parameters).await,
        Route::Info(path) => {
            let kit = server.kits.request(&reference(path)?)?;
            match ask(&server, InfoRequest { kit, facts: false }).await? {
                Info::Kit(kit) => json(&kit),
                Info::Index(index) => json(&index),
            }
        }
        Route::Diff => {
            let version = |name| kit_of(&server, &parameters, name);
            let request = CompareRequest {
                before: version("from")?,
                after: version("to")?,
                path: RawPath(parameters.get("path").map(<[u8]>::to_vec).unwrap_or_default()),
                content: parameters.flag("content")?,
            };
            json(&ask(&server, request).await?)
        }
    }
}

/// The request for the kit that a parameter names.
fn kit_of<S: Service>(
    server: &Server<S>,
    parameters: &Parameters,
    name: &str,
) -> Result<KitRequest, Problem> {
    let missing =
        || Problem::usage(format!("the parameter `{name}` is missing: a reference of a kit"));
    let given = std::str::from_utf8(parameters.get(name).ok_or_else(missing)?);
    let given =
        given.map_err(|_| Problem::usage(format!("the parameter `{name}` is not UTF-8")))?;
    Ok(server.kits.request(&checked(given)?)?)
}

/// Keeps the daemon alive for a request.
fn begin(activity: &Arc<Activity>) -> Result<Answering, Problem> {
    activity.begin().ok_or_else(|| {
        let message = "the daemon is about to end: try again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "daemon", message)
    })
}

pub(super) async fn ask<S, O>(server: &Server<S>, request: O) -> Result<O::Answer, Problem>
where
    S: Service + Handle<O>,
    O: Operation,
{
    let (answer, _lease) = server.kits.connection().call(request, &[], &mut |_| {}).await?;
    Ok(answer)
}

/// Whether the daemon can do its work.
async fn ready<S: Service>(server: &Server<S>) -> Result<Response<Body>, Problem> {
    let not_ready = |why: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why);
    let status = running_time::timeout(READY_TIMEOUT, ask(server, StatusRequest {})).await;
    let status = status.map_err(|_| not_ready("the daemon does not answer"))??;
    match why_not_ready(&status) {
        Some(why) => Err(not_ready(&why)),
        None => Ok(text("ok\n")),
    }
}

fn why_not_ready(status: &DaemonStatus) -> Option<String> {
    if status.cache_folder_is_lost {
        return Some("the cache folder was removed or replaced".to_owned());
    }
    let trouble = status.cache_trouble.as_ref()?;
    Some(format!("the cache cannot keep bytes, and reads go through without it: {trouble}"))
}

/// A response with JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Response<Body>, Problem> {
    let body = serde_json::to_vec(value).map_err(|error| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Problem::new(status, "internal", error.to_string())
    })?;
    Ok(response("application/json", body))
}

fn text(body: &'static str) -> Response<Body> {
    response("text/plain; charset=utf-8", body.as_bytes().to_vec())
}

/// A response of this moment.
pub(super) fn response(media_type: &'static str, body: Vec<u8>) -> Response<Body> {
    Response::builder()
        .header(CONTENT_TYPE, media_type)
        .header(CACHE_CONTROL, "no-store")
        .header(CONTENT_LENGTH, body.len())
        .body(Body::from(body))
        .expect("the headers are plain text")
}

/// The parameters of a URL, decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters(Vec<(String, Vec<u8>)>);

impl Parameters {
    /// Parses `NAME=VALUE&…`. A `+` stands for a space, as in forms.
    fn parse(query: &str) -> Result<Self, Problem> {
        let malformed = || Problem::usage("malformed percent-encoding in the parameters");
        let decode = |text: &str| percent_decoded(&text.replace('+', " ")).ok_or_else(malformed);
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8(decode(name)?).map_err(|_| malformed())?;
            Ok((name, decode(value)?))
        });
        Ok(Self(pairs.collect::<Result<_, Problem>>()?))
    }

    /// Refuses unknown parameters, and known ones that are there twice.
    fn check(&self, is_known: impl Fn(&str) -> bool) -> Result<(), Problem> {
        for (at, (name, _)) in self.0.iter().enumerate() {
            if !is_known(name) {
                return Err(Problem::usage(format!("this path has no parameter `{name}`")));
            }
            if self.0[..at].iter().any(|(before, _)| before == name) {
                return Err(Problem::usage(format!("the parameter `{name}` is there twice")));
            }
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// A parameter that is a number.
    pub(super) fn number<T: std::str::FromStr>(
        &self,
        name: &str,
        default: T,
    ) -> Result<T, Problem> {
        let Some(text) = self.get(name) else { return Ok(default) };
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| Problem::usage(format!("`{name}` is no number, or too large")))
    }

    /// A parameter that is on (`name`, `name=true`, `name=1`) or off.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some(b"false" | b"0") => Ok(false),
            Some(b"" | b"true" | b"1") => Ok(true),
            Some(_) => Err(Problem::usage(format!("`{name}` is true or false"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_checked() {
        let parameters = Parameters::parse("from=a%2Fb&recursive&path=a+b%FF").unwrap();
        assert_eq!(parameters.get("from"), Some(&b"a/b"[..]));
        assert_eq!(parameters.get("path"), Some(&b"a b\xff"[..]));
        assert_eq!(parameters.flag("recursive"), Ok(true));
        assert_eq!(parameters.flag("content"), Ok(false));
        assert!(parameters.flag("from").is_err());
        assert!(parameters.check(|name| name != "path").is_err());
        assert!(parameters.check(|_| true).is_ok());
        assert!(Parameters::parse("a=1&a=2").unwrap().check(|_| true).is_err());
        assert!(Parameters::parse("a=%zz").is_err());
        assert_eq!(Parameters::parse("").unwrap(), Parameters::default());
    }
}
