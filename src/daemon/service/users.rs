//! The users of a daemon: one, or in a system daemon several.
//!
//! A system daemon runs as root, so for its users it
//! - opens no file that a request names ([`Service::admit`]),
//! - unmounts nothing but mounts of root, and removes no directory of others ([`Service::place_of`]),
//! - lets the kernel open no file of the cache ([`Service::is_of_other_user`]),
//! - shows and ends a mount only for the user who has mounted it.

use std::time::SystemTime;

use super::Service;
use crate::control::Peer;
use crate::control::api::{Failure, FailureKind, KitRequest, MountDescription, MountStatus};
use crate::fuse::MountPlace;
use crate::source::credentials::MOST_CARRIED;

/// The text between the view and the user in the key of another user's mount.
const SEPARATOR: &str = " of user ";

impl Service {
    /// Makes a request for a kit one of the user who sends it.
    ///
    /// # Errors
    /// `Usage` where it needs files that only the command may read.
    pub(super) fn admit(&self, kit: &mut KitRequest, peer: Peer) -> Result<(), Failure> {
        kit.network.user = self.has_users.then_some(peer.uid);
        if let Some(carried) = &mut kit.network.carried {
            if carried.configurations.len() > MOST_CARRIED {
                let message = "the request carries too many files of credentials";
                return Err(Failure::new(FailureKind::Usage, message));
            }
            let since =
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            carried.at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        }
        let has_paths = kit.has_paths() || kit.network.has_paths();
        self.refuse_paths(has_paths)
    }

    /// The same for a mount.
    ///
    /// # Errors
    /// As for [`Self::admit`].
    pub(super) fn admit_mount(
        &self,
        mount: &mut MountDescription,
        peer: Peer,
    ) -> Result<(), Failure> {
        self.admit(&mut mount.kit, peer)?;
        mount.uid.get_or_insert(peer.uid);
        mount.gid.get_or_insert(peer.gid);
        self.refuse_paths(mount.trace.is_some())
    }

    pub(super) fn refuse_paths(&self, has_paths: bool) -> Result<(), Failure> {
        if !self.has_users || !has_paths {
            return Ok(());
        }
        let message = "the system daemon opens no files for its users: leave --cache-dir out if it names the \
                       cache of that daemon, or let it name a folder for a cache and a daemon of your own";
        Err(Failure::new(FailureKind::Usage, message))
    }

    /// # Errors
    /// `Usage` in a system daemon: its commands list repositories themselves, because no byte of a list is
    /// shared.
    pub(super) fn refuse_lists(&self) -> Result<(), Failure> {
        self.refuse_paths(true)
    }

    /// The place of a mount, as far as the word of the user counts.
    pub(super) fn place_of(&self, place: MountPlace, peer: Peer) -> MountPlace {
        let is_trusted = is_trusted(peer.uid);
        if !self.has_users || is_trusted && place.view() == self.view.as_deref() {
            return place;
        }
        let view = of_user(place.view(), peer);
        match is_trusted {
            true => place.of_root(view),
            false => place.of_other_user(view),
        }
    }

    /// The view in the name of the mount that a command of this user sees at a mountpoint. A user who names no
    /// view must not reach the mounts of the daemon's own view: those are root's.
    pub(super) fn view_of(&self, view: Option<String>, peer: Peer) -> Option<String> {
        let is_own = view.is_none() || view == self.view;
        if !self.has_users || is_trusted(peer.uid) && is_own {
            return view;
        }
        Some(of_user(view.as_deref(), peer))
    }

    /// Whether another user than root has made a mount, and may have a copy of its FUSE device
    /// ([`crate::fuse::MountOptions::is_of_other_user`]).
    pub(super) fn is_of_other_user(&self, mount: &MountDescription) -> bool {
        let user = mount.kit.network.user;
        self.has_users && user.is_none_or(|uid| !is_trusted(uid))
    }

    /// # Errors
    /// `Unauthorized` for users of a system daemon other than root.
    pub(super) fn for_root(&self, peer: Peer, what: &str) -> Result<(), Failure> {
        if !self.has_users || is_trusted(peer.uid) {
            return Ok(());
        }
        let message =
            format!("only root may {what} of the system daemon, which has other users too");
        Err(Failure::new(FailureKind::Unauthorized, message))
    }

    /// The mounts that a user may see: the user's own, and for root all.
    pub(super) fn seen_by(&self, peer: Peer, mounts: Vec<MountStatus>) -> Vec<MountStatus> {
        if !self.has_users {
            return mounts;
        }
        let own_view = self.view.as_deref();
        let mounts = mounts.into_iter().map(|mount| with_user(mount, own_view));
        let is_seen = |mount: &MountStatus| is_trusted(peer.uid) || mount.user == Some(peer.uid);
        mounts.filter(is_seen).collect()
    }
}

/// Whether a user is root or the user of the daemon, and so may do what concerns all users.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// The view in the name of a mount of this user.
fn of_user(view: Option<&str>, peer: Peer) -> String {
    let view = view.unwrap_or("an unknown part of the file tree");
    format!("{view}{SEPARATOR}{}", peer.uid)
}

/// Takes the user out of the name of the view.
fn with_user(mut mount: MountStatus, own_view: Option<&str>) -> MountStatus {
    let named = mount.elsewhere.take();
    mount.user = Some(0);
    mount.elsewhere = match named.as_deref().and_then(|named| named.rsplit_once(SEPARATOR)) {
        Some((view, user)) => {
            mount.user = user.parse().ok();
            Some(view.to_owned()).filter(|view| Some(view.as_str()) != own_view)
        }
        None => named,
    };
    mount
}
