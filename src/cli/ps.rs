//! `kitfs ps`: the processes that use mounts.

use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use serde::Serialize;

use super::error::CliError;
use super::output::{path_text, print_json, print_table, printable, say};
use super::settings::{Settings, mountpoint};
use super::status::overview;
use crate::control::api::RawPath;
use crate::process::uses::{self, Uses};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A process uses a mount with its working directory, its program, an open file or
a mapped file. kitfs looks in /proc: only root sees the processes of other users
and of other namespaces.

Examples:
  kitfs ps
  kitfs ps --files /models")]
pub(super) struct Arguments {
    /// Only this mount.
    #[arg(value_name = "MOUNT")]
    mount: Option<PathBuf>,
    /// A line for each file that a process uses.
    #[arg(long)]
    files: bool,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

/// A process and a mount that it uses.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct User {
    pid: u32,
    command: String,
    mountpoint: String,
    /// The files, from the root of the mount; empty for the root itself.
    files: Vec<RawPath>,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let overview = overview(settings).await?;
    let others = overview.dead.iter().chain(&overview.silent).map(|mount| mount.mountpoint.clone());
    let served = overview.mounts().map(|(_, mount)| mount.mountpoint.clone());
    let mut mounts: Vec<PathBuf> = served.chain(others).collect();
    if let Some(wanted) = arguments.mount {
        let wanted = mountpoint(&wanted)?;
        mounts.retain(|mount| *mount == wanted);
        if mounts.is_empty() {
            let place = wanted.display();
            let message = format!("no kit is mounted on {place}; `kitfs status` lists the mounts");
            return Err(CliError::new(crate::control::api::FailureKind::NotFound, message));
        }
    }
    let found = tokio::task::spawn_blocking(move || uses::find(&mounts));
    let found = found.await.map_err(|error| CliError::internal(error.to_string()))?;
    if found.is_partial {
        say(match rustix::process::geteuid().is_root() {
            true => {
                "some processes cannot be looked at: this container, or a security module, hides them"
            }
            false => "some processes cannot be looked at; root sees those of all users",
        });
    }
    let users: Vec<User> = found.users.into_iter().map(user).collect();
    if arguments.json {
        return print_json(&users);
    }
    let rows = users.iter().flat_map(|user| {
        let of = |files: String| {
            vec![user.pid.to_string(), user.command.clone(), user.mountpoint.clone(), files]
        };
        match arguments.files {
            true => user.files.iter().map(|file| of(shown(file))).collect::<Vec<_>>(),
            false => vec![of(user.files.len().to_string())],
        }
    });
    print_table(
        &["PID", "COMMAND", "MOUNT", if arguments.files { "FILE" } else { "FILES" }],
        &[0],
        rows,
    )
}

fn shown(file: &RawPath) -> String {
    printable(&file.0).into_owned()
}

fn user(Uses { pid, command, mountpoint, files }: Uses) -> User {
    let files = files.into_iter().map(|file| RawPath(file.into_os_string().into_vec()));
    User { pid, command, mountpoint: path_text(&mountpoint), files: files.collect() }
}
