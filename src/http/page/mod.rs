//! `/`: one page for people, made on the server, without a script.
//!
//! The page is a pure function of the daemon's answers (`layout`); this file makes the requests. `maud` escapes all
//! text of kits, paths and messages. The policy of the page lets a browser load its style sheet and nothing else.

mod chart;
mod layout;
mod text;

use axum::body::Body;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::http::{HeaderValue, Response};

use self::layout::{MountView, View};
use super::api::{ask, response};
use super::problem::Problem;
use super::{Server, now};
use crate::control::Service;
use crate::control::api::{
    ActivityRequest, MountStatus, RawPath, ResidencyRequest, ResidencyRows, StatusRequest, Subject,
};

/// The most mounts on the page, and the most with a map. A map looks at every file of the kit.
const MOST_MOUNTS: usize = 100;
const MOST_MAPS: usize = 16;
/// The files of a map, the largest first, and the parts of each bar.
const FILES: u32 = 6;
const CELLS: u16 = 96;

/// The policy of the page: a style sheet of this server, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page at this moment.
pub(super) async fn answer<S: Service>(server: &Server<S>) -> Result<Response<Body>, Problem> {
    let status = ask(server, StatusRequest {}).await?;
    let activity = ask(server, ActivityRequest {}).await?;
    let mut mounts = Vec::new();
    for (at, mount) in status.mounts.iter().take(MOST_MOUNTS).enumerate() {
        let map = match at < MOST_MAPS {
            // A mount may end meanwhile, and kits by path have no map as a whole.
            true => ask(server, map_of(mount)).await.ok(),
            false => None,
        };
        mounts.push(MountView { mount, map });
    }
    let view = View { status: &status, activity: &activity, mounts: &mounts, now: now() };
    let page = layout::page(&view).into_string();
    let mut response = response("text/html; charset=utf-8", page.into_bytes());
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}

fn map_of(mount: &MountStatus) -> ResidencyRequest {
    ResidencyRequest {
        subject: Subject::Mount {
            mountpoint: mount.mountpoint.clone(),
            view: mount.elsewhere.clone(),
        },
        path: RawPath::default(),
        rows: ResidencyRows::Largest,
        skip: 0,
        most_rows: FILES,
        cells: CELLS,
        most_ranges: 0,
    }
}

/// The style sheet of the page.
pub(super) fn style() -> Response<Body> {
    response("text/css; charset=utf-8", include_bytes!("style.css").to_vec())
}
