//! The work of the operations that the HTTP interface needs beside those of commands.

use std::sync::Arc;

use super::super::{listing, paths};
use super::Service;
use crate::control::api::{
    ActivityReport, ActivityRequest, Failure, FailureKind, FileStat, KitHandle, OpenMountedRequest,
    StatRequest,
};
use crate::control::{Caller, Handle};
use crate::oci::Origin;

impl Handle<ActivityRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        _: ActivityRequest,
        caller: &Caller<ActivityRequest>,
    ) -> Result<ActivityReport, Failure> {
        // It names the registries of all users.
        self.for_root(caller.peer(), "see the activity")?;
        Ok(self.observed.report())
    }
}

impl Handle<OpenMountedRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: OpenMountedRequest,
        caller: &Caller<OpenMountedRequest>,
    ) -> Result<Option<KitHandle>, Failure> {
        self.for_root(caller.peer(), "open the kit of a mount")?;
        self.taken_over().await;
        let origin = Origin::parse(&request.reference)?;
        let Some(kit) = self.mounts.kit_of(&origin) else { return Ok(None) };
        let (handle, lease) = self.kits.lend(kit, caller.peer().uid);
        caller.keep(lease);
        Ok(Some(handle))
    }
}

impl Handle<StatRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: StatRequest,
        caller: &Caller<StatRequest>,
    ) -> Result<FileStat, Failure> {
        let kit = self.kits.lent(request.kit, caller.peer().uid)?;
        let node = paths::find(&kit, &request.path, paths::LastLink::Follow)?;
        paths::check_is_there(&kit.tree, node)?;
        listing::stat(&kit, node).ok_or_else(|| {
            let path = String::from_utf8_lossy(&request.path.0).into_owned();
            Failure::new(
                FailureKind::NotFound,
                format!("`{path}` is neither a file nor a directory"),
            )
        })
    }
}
