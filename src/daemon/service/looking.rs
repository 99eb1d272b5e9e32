//! The operations that look at kits and tell what happens to them. They fetch nothing.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::super::failure::panicked;
use super::super::{explaining, residency, work};
use super::Service;
use crate::control::api::{
    ExplainRequest, Explanation, Failure, FailureKind, RawPath, Residency, ResidencyRequest,
    Subject, WorkReport, WorkRequest,
};
use crate::control::{Caller, Handle, Peer};
use crate::fs::LoadedKit;
use crate::fs::browse::Browse;

/// A kit, and a path in it.
pub(super) struct Found {
    pub(super) kit: Arc<LoadedKit>,
    /// From the kit's root.
    pub(super) path: RawPath,
}

impl Handle<ResidencyRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: ResidencyRequest,
        caller: &Caller<ResidencyRequest>,
    ) -> Result<Residency, Failure> {
        let found = self.subject(request.subject.clone(), &request.path, caller.peer()).await?;
        // A large kit has millions of chunks.
        let work = spawn_blocking(move || residency::residency(&found.kit, &found.path, &request));
        work.await.map_err(panicked)?
    }
}

impl Handle<ExplainRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: ExplainRequest,
        caller: &Caller<ExplainRequest>,
    ) -> Result<Explanation, Failure> {
        let found = self.subject(request.subject, &request.path, caller.peer()).await?;
        let work = spawn_blocking(move || explaining::explain(&found.kit, &found.path));
        work.await.map_err(panicked)?
    }
}

impl Handle<WorkRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        _: WorkRequest,
        caller: &Caller<WorkRequest>,
    ) -> Result<WorkReport, Failure> {
        let statuses = self.seen_by(caller.peer(), self.mounts.statuses().await);
        let seen: HashSet<PathBuf> = statuses.into_iter().map(|mount| mount.mountpoint).collect();
        let mut mounts = self.mounts.kits();
        mounts.retain(|(mountpoint, _)| seen.contains(mountpoint));
        // Layers and their histories: some thousands at most, but with locks.
        spawn_blocking(move || work::report(&mounts)).await.map_err(panicked)
    }
}

impl Service {
    /// The kit that a request of this user is about, and the path in that kit.
    ///
    /// # Errors
    /// `NotFound` where there is no such mount, or no kit in memory has the path.
    pub(super) async fn subject(
        &self,
        subject: Subject,
        path: &RawPath,
        peer: Peer,
    ) -> Result<Found, Failure> {
        let (mountpoint, view) = match subject {
            Subject::Kit(handle) => {
                return Ok(Found { kit: self.kits.lent(handle, peer.uid)?, path: path.clone() });
            }
            Subject::Mount { mountpoint, view } => (mountpoint, view),
        };
        self.taken_over().await;
        let view = self.view_of(view, peer);
        let served = self.mounts.at(&self.mount_key(view.as_deref(), mountpoint))?;
        match served.by_path() {
            None => {
                let kit = served.file_system("this")?.kit().clone();
                Ok(Found { kit, path: path.clone() })
            }
            Some(browse) => kit_by_path(browse, path),
        }
    }
}

/// The kit in memory whose path begins `path`, and the rest of it.
fn kit_by_path(browse: &Browse, path: &RawPath) -> Result<Found, Failure> {
    let kits = browse.in_use().into_iter().filter(|kit| kit.is_awake);
    let below = kits.filter_map(|kit| Some((below(&path.0, kit.path.as_bytes())?.to_vec(), kit)));
    // The longest path: a repository may lie below another one.
    let found = below.min_by_key(|(rest, _)| rest.len()).and_then(|(rest, kit)| {
        let kits = browse.kits().into_iter().map(|kit| kit.file_system().kit().clone());
        let kit = kits.into_iter().find(|loaded| loaded.manifest == kit.digest)?;
        Some(Found { kit, path: RawPath(rest) })
    });
    found.ok_or_else(|| {
        let shown = String::from_utf8_lossy(&path.0).into_owned();
        let message = format!(
            "`{shown}` is in no kit that programs use now: name a path that begins with one of the kits that \
             `kitfs status --json` lists"
        );
        Failure::new(FailureKind::NotFound, message)
    })
}

/// The part of `path` below the folder `above`; empty for the folder itself.
fn below<'a>(path: &'a [u8], above: &[u8]) -> Option<&'a [u8]> {
    match path.strip_prefix(above)? {
        [] => Some(&[]),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_below_a_folder_at_a_slash_only() {
        assert_eq!(below(b"host/model/v1/a/b", b"host/model/v1"), Some(&b"a/b"[..]));
        assert_eq!(below(b"host/model/v1", b"host/model/v1"), Some(&b""[..]));
        assert_eq!(below(b"host/model/v12/a", b"host/model/v1"), None);
        assert_eq!(below(b"host", b"host/model"), None);
    }
}
