//! Checks of the daemons of this user and of the machine, and of their mounts.

use std::path::Path;

use super::super::output::path_text;
use super::check::{Check, Subject};
use crate::control::api::{ContentState, DaemonStatus, HydrateState};
use crate::daemon::{Backend, DaemonConfig};
use crate::fuse::{Answer, other_mounts};

const GROUP: &str = "Daemon";
const DAEMON: Subject = Subject(GROUP, "daemon");
const SYSTEM: Subject = Subject(GROUP, "system daemon");
const CACHE: Subject = Subject(GROUP, "cache");
const READS: Subject = Subject(GROUP, "reads");
const DEAD: Subject = Subject(GROUP, "dead mounts");

/// Checks the daemon of the cache folder, and the system daemon in `system_folder`. Starts none.
pub(super) async fn checks(config: &DaemonConfig, system_folder: Option<&Path>) -> Vec<Check> {
    let mut checks = Vec::new();
    let running = match Backend::running(config).await {
        Ok(Some(daemon)) => daemon.status().await.map(Some),
        Ok(None) => Ok(None),
        Err(failure) => Err(failure),
    };
    match running {
        Ok(Some(status)) => checks.extend(of_status(DAEMON, &status)),
        Ok(None) => checks.push(DAEMON.ok("none runs; `kitfs mount` starts one")),
        Err(failure) => checks.push(DAEMON.failed(failure)),
    }
    if let Some(folder) = system_folder {
        let system = match Backend::of_system(folder).await {
            Ok(Some(daemon)) => daemon.status().await.map(Some),
            Ok(None) => Ok(None),
            Err(failure) => Err(failure),
        };
        match system {
            Ok(Some(status)) => checks.extend(of_status(SYSTEM, &status)),
            Ok(None) => checks.push(SYSTEM.ok("none that this user may use")),
            Err(failure) => checks.push(SYSTEM.failed(failure)),
        }
    }
    checks.push(dead().await);
    checks
}

fn of_status(subject: Subject, status: &DaemonStatus) -> Vec<Check> {
    let mounts = status.mounts.len();
    let found = format!(
        "kitfs {}, process {}, {} {}",
        status.version,
        status.pid,
        mounts,
        if mounts == 1 { "mount" } else { "mounts" }
    );
    let mut checks = vec![match status.version == env!("CARGO_PKG_VERSION") {
        true => subject.ok(found),
        false => subject.warn(
            format!("{found}; this command is kitfs {}", env!("CARGO_PKG_VERSION")),
            "run `kitfs daemon upgrade`",
        ),
    }];
    if status.cache_folder_is_lost {
        checks.push(CACHE.warn(
            format!("{} was removed or replaced under the daemon", path_text(&status.cache_folder)),
            "unmount, and mount again",
        ));
    }
    if let Some(trouble) = &status.cache_trouble {
        checks.push(CACHE.warn(
            format!("it keeps no bytes at the moment: {trouble}"),
            "make room on the disk, or name another one with --cache-dir",
        ));
    }
    for mount in &status.mounts {
        let place = path_text(&mount.mountpoint);
        if mount.content() == ContentState::Bad {
            checks.push(READS.fail(
                format!("{place}: a layer of {} has a wrong digest", mount.reference),
                "`kitfs cache verify` names the layer; remove it with `kitfs cache rm`, or have the kit pushed again",
            ));
        }
        if let Some(failure) = &mount.last_failure {
            checks.push(READS.warn(
                format!("{place}: the last read that failed: {failure}"),
                "`kitfs logs` has all failures; a check of its registry follows with `kitfs doctor REF`",
            ));
        }
        if let HydrateState::Failed { reason } = &mount.hydrate {
            checks.push(READS.warn(
                format!("{place}: the download in the background failed: {reason}"),
                "kitfs tries again; `kitfs doctor REF` checks the registry",
            ));
        }
    }
    checks
}

/// Mounts whose daemon is gone.
async fn dead() -> Check {
    let looked = tokio::task::spawn_blocking(|| other_mounts(&[])).await;
    let Ok(Ok(mounts)) = looked else { return DEAD.skip("the mount table cannot be read") };
    let dead = mounts.iter().filter(|mount| mount.answer == Answer::Dead);
    let places: Vec<_> = dead.map(|mount| path_text(&mount.mountpoint)).collect();
    match places.as_slice() {
        [] => DEAD.ok("none"),
        [first, ..] => DEAD.warn(
            format!("the daemon of these mounts is gone: {}", places.join(", ")),
            format!("`kitfs umount {first}` takes one away"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::Outcome;

    #[test]
    fn a_mount_with_a_wrong_digest_is_a_failure() {
        let status = |state: &str| -> DaemonStatus {
            let mount = json!({
                "mountpoint": "/models", "reference": "r", "digest": "d", "entries": 1, "total_bytes": 10,
                "resident_bytes": 3, "state": state, "mounted_at": 0, "warnings": [],
                "passthrough": {"off": {"reason": ""}}, "hydrate": "off",
                "readahead": {"read_bytes": 0, "unread_bytes": 0, "predictors": []},
            });
            serde_json::from_value(json!({
                "pid": 1, "version": env!("CARGO_PKG_VERSION"), "cache_folder": "/c", "cache_resident_bytes": 5,
                "cache_capacity_bytes": null, "cache_keep_free_bytes": 0, "started_at": 0, "mounts": [mount],
                "fetch": {"requests": 0, "fetched_bytes": 0, "reserved_bytes": 0, "memory_bytes": 0},
            }))
            .unwrap()
        };
        let failures = |state| {
            let checks = of_status(READS, &status(state));
            checks.iter().filter(|check| check.outcome == Outcome::Fail).count()
        };
        assert_eq!((failures("poisoned"), failures("unconfirmed")), (1, 0));
    }
}
