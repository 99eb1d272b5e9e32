//! `kitfs status`.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::Serialize;

use super::arguments::IdleArguments;
use super::error::CliError;
use super::output::{
    path_text, print_json, print_table, printable, short_digest, state_name, warn,
};
use super::settings::Settings;
use super::sizes;
use crate::control::api::{DaemonStatus, HydrateState, MountStatus, PassthroughState};
use crate::daemon::{self, Backend};
use crate::fuse::{Answer, OtherMount, other_mounts};
use crate::overlay;
use crate::process::view::own_view;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Columns:
  ACCESS       read-only: writes fail with EROFS; `kitfs mount --overlay` mounts
               a writable view. writable: size and folder of its changes
  RESIDENT     bytes of the kit that are in the cache. `unchecked` bytes came
               shortly before the machine went down; kitfs checks each of them
               before a program reads it.
  STATE        confirmed    every layer is complete and has the right digest
               unconfirmed  some layer is not complete, so it has no digest yet
               POISONED     a digest is wrong: files of that layer do not read
               DEAD         the daemon is gone: run `kitfs umount DIR`
  REST         what happens to the bytes that are not in the cache:
               begun files  the files of which programs read half or more are
                            complete; reads download the others
               waits        kitfs downloads them when readers are quiet
               coming       kitfs downloads them now
               here         nothing is missing
               no room      the cache has no room for them
               on demand    reads download them (--hydrate none)
               local        the kit lies on a disk of this machine
               failed       see the warning below the table
  PASSTHROUGH  on, when the kernel reads confirmed files from the cache without
               the daemon; else the reason why not")]
pub(super) struct Arguments {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    // Without a cache folder there is no daemon of it, but there may be mounts of other daemons.
    let (running, lost) = match settings.daemon_on_demand(&IdleArguments::default()) {
        Ok(config) => (
            status_of(daemon::running_or_restoring(&config).await?).await?,
            Backend::lost(&config).await?,
        ),
        Err(_) => (None, Vec::new()),
    };
    let mut seen = Vec::new();
    let (mut mounts, trouble) = match running {
        Some(status) => {
            seen.extend(seen_mounts(&status));
            (status.mounts, status.cache_trouble)
        }
        None => (Vec::new(), None),
    };
    if let Some(folder) = settings.system_folder()
        && let Some(system) = Backend::of_system(&folder).await?
    {
        let status = system.status().await?;
        seen.extend(seen_mounts(&status));
        mounts.extend(status.mounts);
    }
    for daemon in lost {
        let status = daemon.status().await?;
        warn(format_args!(
            "the cache folder {} was removed or replaced; its daemon, process {}, still serves the mounts \
             that it had, and ends with the last of them",
            path_text(&status.cache_folder),
            status.pid
        ));
        seen.extend(seen_mounts(&status));
        mounts.extend(status.mounts);
    }
    let others = tokio::task::spawn_blocking(move || other_mounts(&seen));
    let others = others.await.map_err(|error| CliError::internal(error.to_string()))?;
    let mut dead = others.unwrap_or_else(|error| {
        warn(format_args!("cannot look for mounts whose daemon is gone: {error}"));
        Vec::new()
    });
    dead.retain(|mount| mount.answer == Answer::Dead);
    match arguments.json {
        true => print_json(&listed(&mounts, &dead)),
        false => print_table_of(&mounts, &dead),
    }?;
    if let Some(trouble) = trouble {
        warn(format_args!(
            "the cache cannot keep bytes, and reads go through without it: {trouble}"
        ));
    }
    for mount in &dead {
        let place = printable(mount.mountpoint.as_os_str().as_bytes());
        warn(format_args!(
            "{place}: the daemon of this mount is gone; `kitfs umount {place}` removes the mount"
        ));
    }
    for mount in &mounts {
        let place = path_text(&mount.mountpoint);
        if let HydrateState::Failed { reason } = &mount.hydrate {
            warn(format_args!("{place}: the background download failed: {reason}"));
        }
        if let Some(digest) = &mount.moved_to {
            let why = match &mount.follow_failure {
                Some(failure) => format!("that kit could not take its place: {failure}"),
                None => {
                    format!("`kitfs mount --replace {} {place}` mounts that kit", mount.reference)
                }
            };
            warn(format_args!("{place}: {} names {digest} by now; {why}", mount.reference));
        }
        if let Some(failure) = &mount.last_failure {
            warn(format_args!("{place}: a read failed: {failure}"));
        }
        if let [first, rest @ ..] = &mount.replaced[..] {
            let others = match rest.len() as u64 + mount.replaced_others {
                0 => String::new(),
                others => format!(", and {others} more ranges (`kitfs status --json`, daemon.log)"),
            };
            warn(format_args!(
                "{place}: {} came with wrong bytes from {} to {}{others}; they are right now, and programs that \
                 read them before may have wrong ones",
                first.path, first.start, first.end
            ));
        }
    }
    Ok(())
}

/// The mountpoints in the part of the file tree that this process sees.
fn seen_mounts(status: &DaemonStatus) -> Vec<PathBuf> {
    let (own, theirs) = (own_view().ok(), status.view.as_deref());
    let seen = status.mounts.iter().filter(|mount| mount.is_seen_from(own.as_deref(), theirs));
    seen.map(|mount| mount.mountpoint.clone()).collect()
}

async fn status_of(daemon: Option<Backend>) -> Result<Option<DaemonStatus>, CliError> {
    match daemon {
        Some(daemon) => Ok(Some(daemon.status().await?)),
        None => Ok(None),
    }
}

/// An element of the JSON array.
#[derive(Serialize)]
#[serde(untagged)]
enum Listed<'a> {
    Served(&'a MountStatus),
    Dead { mountpoint: Cow<'a, str>, reference: &'a str, state: &'static str },
}

fn listed<'a>(mounts: &'a [MountStatus], dead: &'a [OtherMount]) -> Vec<Listed<'a>> {
    let dead = dead.iter().map(|mount| Listed::Dead {
        mountpoint: mount.mountpoint.to_string_lossy(),
        reference: &mount.reference,
        state: "dead",
    });
    mounts.iter().map(Listed::Served).chain(dead).collect()
}

/// Prints the table of mounts.
pub(super) fn print_mounts(mounts: &[MountStatus]) -> Result<(), CliError> {
    print_table_of(mounts, &[])
}

fn print_table_of(mounts: &[MountStatus], dead: &[OtherMount]) -> Result<(), CliError> {
    let headings = [
        "MOUNT",
        "REFERENCE",
        "DIGEST",
        "ACCESS",
        "TOTAL",
        "RESIDENT",
        "STATE",
        "REST",
        "PASSTHROUGH",
    ];
    let mounts = mounts.iter().map(|mount| {
        vec![
            mountpoint_text(mount),
            reference_text(mount),
            if mount.digest.is_empty() { "-" } else { short_digest(&mount.digest) }.to_owned(),
            access_text(mount),
            sizes::show(mount.total_bytes),
            sizes::show_resident(mount.resident_bytes, mount.unchecked_bytes),
            state_name(mount.state).to_owned(),
            hydrate_text(&mount.hydrate).to_owned(),
            passthrough_text(&mount.passthrough),
        ]
    });
    let dead = dead.iter().map(|mount| {
        let unknown = || "-".to_owned();
        vec![
            path_text(&mount.mountpoint),
            mount.reference.clone(),
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            "DEAD".to_owned(),
            unknown(),
            unknown(),
        ]
    });
    print_table(&headings, &[4, 5], mounts.chain(dead))
}

/// The mountpoint, and the owner of the mount. It may lie in another container, where the path means another directory.
fn mountpoint_text(mount: &MountStatus) -> String {
    let place = path_text(&mount.mountpoint);
    let own = own_view().ok();
    let place = match &mount.elsewhere {
        Some(view) if Some(view) != own.as_ref() => format!("{place} (in another namespace)"),
        _ => place,
    };
    match mount.owner {
        Some(pid) => format!("{place} (until process {pid} ends)"),
        None => place,
    }
}

/// The reference, and the labels that chose a kit of an index.
fn reference_text(mount: &MountStatus) -> String {
    if let Some(browse) = &mount.browse {
        return format!("{} kits by path", browse.kits.len());
    }
    let labels = mount.labels.iter().map(|label| format!(" -l {label}"));
    std::iter::once(mount.reference.clone()).chain(labels).collect()
}

/// The column ACCESS: the changes of a writable view.
fn access_text(mount: &MountStatus) -> String {
    let Some(upper) = &mount.overlay else { return "read-only".to_owned() };
    let bytes = overlay::disk_bytes(upper).map(sizes::show);
    let bytes = bytes.unwrap_or_else(|_| "changes".to_owned());
    format!("writable: {bytes} in {}", path_text(upper))
}

/// The column REST.
fn hydrate_text(hydrate: &HydrateState) -> &'static str {
    match hydrate {
        HydrateState::Off => "on demand",
        HydrateState::Begun => "begun files",
        HydrateState::Local => "local",
        HydrateState::Waiting => "waits",
        HydrateState::Running => "coming",
        HydrateState::Complete => "here",
        HydrateState::NoRoom => "no room",
        HydrateState::Failed { .. } => "failed",
    }
}

fn passthrough_text(passthrough: &PassthroughState) -> String {
    match passthrough {
        PassthroughState::On { open_files, opened_files } => {
            format!("on ({open_files} open, {opened_files} so far)")
        }
        PassthroughState::Off { reason } => format!("off: {reason}"),
    }
}
