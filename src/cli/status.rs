//! `kitfs status`.

mod mounts;
mod table;

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::durations::parse_seconds;
use super::error::CliError;
use super::output::{path_text, print_json, printable, warn};
use super::screen::Screen;
use super::settings::Settings;
use crate::control::api::{HydrateState, MountStatus};

pub(super) use mounts::{Overview, overview};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Columns:
  RESIDENT  bytes of the kit that are in the cache. `unchecked` bytes came
            shortly before the machine went down; kitfs checks each of them
            before a program reads it. Headers that a mount has read do not
            count before a program reads there.
  STATE     fetching  bytes are missing: kitfs fetches them when programs read
            complete  every byte is here; a digest is not computed yet, or
                      there is none, as of data in an S3 store
            verified  every byte is here, and every digest is right
            BAD       a digest is wrong: files of that layer do not read
            DEAD      the daemon is gone: run `kitfs umount DIR`
            silent    no answer: the daemon hangs, or is of another version
With --wide:
  ACCESS    read-only: writes fail with EROFS; `kitfs mount --overlay` mounts
            a writable view. writable: size and folder of its changes
  STATE     the state of the digests: confirmed, unconfirmed, POISONED
  REST      what happens to the bytes that are not in the cache:
            begun files  the files of which programs read half or more are
                         complete; reads download the others
            waits        kitfs downloads them when readers are quiet
            coming       kitfs downloads them now
            here         nothing is missing
            no room      the cache has no room for them
            on demand    reads download them (--hydrate none)
            local        the kit lies on a disk of this machine
            failed       see the warning below the table")]
pub(super) struct Arguments {
    /// Show every column.
    #[arg(long)]
    wide: bool,
    /// Show the table again every SECONDS (2), until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(value_parser = parse_seconds, default_missing_value = "2", conflicts_with = "json")]
    watch: Option<u64>,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let Some(seconds) = arguments.watch else {
        let overview = overview(settings).await?;
        return match arguments.json {
            true => {
                print_json(&listed(&overview))?;
                warn_about(&overview);
                Ok(())
            }
            false => show(settings, &overview, arguments.wide),
        };
    };
    let is_terminal = std::io::stdout().is_terminal();
    loop {
        let overview = overview(settings).await?;
        if is_terminal {
            // Moves to the top and clears the screen. It comes this late so that the old table stays until the new
            // one is known.
            std::io::stdout().lock().write_all(b"\x1b[H\x1b[J")?;
        }
        show(settings, &overview, arguments.wide)?;
        if !is_terminal {
            std::io::stdout().lock().write_all(b"\n")?;
        }
        tokio::time::sleep(Duration::from_secs(seconds.max(1))).await;
    }
}

fn show(settings: &Settings, overview: &Overview, is_wide: bool) -> Result<(), CliError> {
    let screen = Screen::of_stdout(!settings.is_utf8());
    let mounts = overview.mounts().map(|(_, mount)| mount);
    table::print(mounts, &overview.dead, &overview.silent, &screen, is_wide)?;
    warn_about(overview);
    Ok(())
}

/// Prints warnings that the table has no column for.
fn warn_about(overview: &Overview) {
    for (index, daemon) in overview.daemons.iter().enumerate() {
        if let Some(trouble) = &daemon.cache_trouble {
            let whose = match (index, overview.has_own) {
                (0, true) => "the cache".to_owned(),
                _ => format!("the cache {}", path_text(&daemon.cache_folder)),
            };
            warn(format_args!(
                "{whose} cannot keep bytes, and reads go through without it: {trouble}"
            ));
        }
    }
    for mount in &overview.dead {
        let place = printable(mount.mountpoint.as_os_str().as_bytes());
        warn(format_args!(
            "{place}: the daemon of this mount is gone; `kitfs umount {place}` removes the mount"
        ));
    }
    overview.mounts().for_each(|(_, mount)| warn_about_mount(mount));
}

fn warn_about_mount(mount: &MountStatus) {
    let place = path_text(&mount.mountpoint);
    if let HydrateState::Failed { reason } = &mount.hydrate {
        warn(format_args!("{place}: the background download failed: {reason}"));
    }
    if let Some(digest) = &mount.moved_to {
        let why = match &mount.follow_failure {
            Some(failure) => format!("that kit could not take its place: {failure}"),
            None => format!("`kitfs mount --replace {} {place}` mounts that kit", mount.reference),
        };
        warn(format_args!("{place}: {} names {digest} by now; {why}", mount.reference));
    }
    if let Some(failure) = &mount.last_failure {
        let failure = printable(failure.as_bytes());
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

/// An element of the JSON array.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub(in crate::cli) enum Listed<'a> {
    Served {
        #[serde(flatten)]
        mount: &'a MountStatus,
        cache_folder: &'a Path,
    },
    Without {
        mountpoint: Cow<'a, str>,
        reference: &'a str,
        state: &'static str,
    },
}

fn listed(overview: &Overview) -> Vec<Listed<'_>> {
    let served = overview
        .mounts()
        .map(|(daemon, mount)| Listed::Served { mount, cache_folder: &daemon.cache_folder });
    let dead = overview.dead.iter().map(|mount| (mount, "dead"));
    let silent = overview.silent.iter().map(|mount| (mount, "silent"));
    let others = dead.chain(silent).map(|(mount, state)| Listed::Without {
        mountpoint: mount.mountpoint.to_string_lossy(),
        reference: &mount.reference,
        state,
    });
    served.chain(others).collect()
}

/// Prints the table of a daemon's mounts, with every column.
pub(super) fn print_mounts(mounts: &[MountStatus]) -> Result<(), CliError> {
    table::print(mounts.iter(), &[], &[], &Screen::of_stdout(false), true)
}
