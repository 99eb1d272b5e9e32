//! Parses `REF[/PATH]` and `MOUNT[/PATH]`, for commands that look at a kit or at the kit of a mount.
//!
//! The kernel's mount table decides whether a path is below a mount. Text that begins with `/`, `./` or `../` is
//! always a path. Other text is a path if it names a file in a mount, and else a reference.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::arguments::{KitArguments, LabelArguments, NetworkArguments};
use super::error::CliError;
use super::output::open_kit;
use super::reference::parse_kit_path;
use super::settings::{Settings, absolute};
use super::system::{self, Otherwise};
use crate::control::api::{Failure, FailureKind, KitRequest, RawPath, Subject};
use crate::control::{Handle, Operation};
use crate::daemon::{Backend, OpenKit, Server, Service};
use crate::fuse::mount_above;
use crate::process::view::own_view;

/// The arguments that name a kit, a mount, and a path in them.
#[derive(Debug, clap::Args)]
pub(super) struct SubjectArguments {
    /// A kit or the directory of a mount, and a path in it.
    #[arg(value_name = "REF|MOUNT[/PATH]")]
    subject: OsString,
    /// Take the kit with this label from an index; `kitfs info REF` lists the labels.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Leave out data sets in other kits and in S3 stores (`remotePath` in the Kitfile).
    #[arg(long, help_heading = super::help::MORE_OPTIONS)]
    no_remote: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

/// A kit that a daemon or this process has open, or a mount, and a path in it.
pub(super) struct Found {
    place: Place,
    /// The path from the root of the kit or of the mount.
    pub(super) path: RawPath,
}

enum Place {
    Kit(Box<OpenKit>),
    Mount(Backend, Subject),
}

/// Finds the kit or the mount that the arguments name.
pub(super) async fn find(
    settings: &Settings,
    arguments: SubjectArguments,
) -> Result<Found, CliError> {
    let SubjectArguments { subject, labels, no_remote, network } = arguments;
    if let Some((mountpoint, path)) = below_mount(&subject).await? {
        let backend = server_of(settings, &mountpoint).await?;
        let subject = Subject::Mount { mountpoint: mountpoint.into(), view: own_view().ok() };
        return Ok(Found { place: Place::Mount(backend, subject), path });
    }
    let wanted = parse_kit_path(&subject)?;
    let kit = KitArguments { choice: LabelArguments { labels }, no_remote };
    let mut kit = settings.kit(wanted.reference.clone(), &kit, &network)?;
    let backend = system::backend(settings, &mut kit, false, Otherwise::AnyBackend).await?;
    let kit = open_kit(&backend, kit).await.map_err(|error| wanted.explain(error))?;
    Ok(Found { place: Place::Kit(Box::new(kit)), path: wanted.path })
}

impl Found {
    /// The daemon, or the service in this process.
    pub(super) fn backend(&self) -> &Backend {
        match &self.place {
            Place::Kit(kit) => kit.backend(),
            Place::Mount(backend, _) => backend,
        }
    }

    /// The mountpoint of a mount.
    pub(super) fn mountpoint(&self) -> Option<&Path> {
        match &self.place {
            Place::Mount(_, Subject::Mount { mountpoint, .. }) => Some(mountpoint),
            Place::Mount(_, Subject::Kit(_)) | Place::Kit(_) => None,
        }
    }

    /// The request that names the kit, where no mount was named.
    pub(super) fn pinned(&self) -> Option<&KitRequest> {
        match &self.place {
            Place::Kit(kit) => Some(kit.pinned()),
            Place::Mount(..) => None,
        }
    }

    /// Asks about the kit.
    pub(super) async fn ask<O: Operation>(
        &self,
        request: impl Fn(Subject) -> O + Send,
    ) -> Result<O::Answer, CliError>
    where
        Service: Handle<O>,
    {
        Ok(match &self.place {
            Place::Kit(kit) => kit.ask_about(request).await?,
            Place::Mount(backend, subject) => backend.ask(request(subject.clone())).await?,
        })
    }
}

/// The daemon of a mount: one of this user, or the system daemon.
async fn server_of(settings: &Settings, mountpoint: &OsStr) -> Result<Backend, CliError> {
    let place = Path::new(mountpoint).display();
    let failed = |message: String| Err(CliError::new(FailureKind::Daemon, message));
    match Backend::of_mount(Path::new(mountpoint)).await? {
        Server::Daemon(backend) => return Ok(backend),
        Server::NoMount => return Err(no_kit(Path::new(mountpoint))),
        Server::Silent | Server::Gone => {}
    }
    if let Some(folder) = settings.system_folder()
        && let Some(system) = Backend::of_system(&folder).await?
    {
        return Ok(system);
    }
    failed(format!(
        "the daemon of the mount {place} does not answer this command: it is gone, hangs, or belongs to another \
         user; `kitfs status` tells"
    ))
}

fn no_kit(path: &Path) -> CliError {
    let message = format!(
        "{}: no kit is mounted here or above; `kitfs status` lists the mounts",
        path.display()
    );
    CliError::from(Failure::new(FailureKind::NotFound, message))
}

/// The mount that a path lies in, and the path in it; `None` for a reference.
async fn below_mount(text: &OsStr) -> Result<Option<(OsString, RawPath)>, CliError> {
    let is_path = is_path(text);
    let named = absolute(Path::new(text))?;
    // A mount that hangs would block this thread at the first look at its files.
    let work = tokio::task::spawn_blocking(move || find_mount(&named, is_path));
    let found = work.await.map_err(|error| CliError::internal(error.to_string()))?;
    let found = found.map_err(|error| {
        CliError::new(FailureKind::Internal, format!("cannot read the mount table: {error}"))
    })?;
    match found {
        None if is_path => Err(no_kit(Path::new(text))),
        found => Ok(found),
    }
}

fn find_mount(named: &Path, is_path: bool) -> std::io::Result<Option<(OsString, RawPath)>> {
    let split = |path: &Path| {
        let Some(mountpoint) = mount_above(path)? else { return Ok(None) };
        let below = path.strip_prefix(&mountpoint).unwrap_or(Path::new(""));
        let path = RawPath(below.as_os_str().as_bytes().to_vec());
        Ok(Some((mountpoint.into_os_string(), path)))
    };
    // The path is compared as text, because a hanging mount does not answer a look at its files. The daemon follows
    // symlinks in the kit.
    let is_plain = named.components().all(|part| part != Component::ParentDir);
    if is_path
        && is_plain
        && let Some(found) = split(named)?
    {
        return Ok(Some(found));
    }
    match named.canonicalize() {
        Ok(real) => split(&real),
        Err(_) => Ok(None),
    }
}

/// Whether a text can only be a path: no reference begins so.
fn is_path(text: &OsStr) -> bool {
    let text = text.as_bytes();
    [&b"/"[..], b"./", b"../"].iter().any(|start| text.starts_with(start))
        || text == b"."
        || text == b".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_begins_with_a_slash_or_a_dot() {
        for path in ["/models/a", "./a", "../a", ".", ".."] {
            assert!(is_path(OsStr::new(path)), "{path}");
        }
        for other in ["ghcr.io/org/model:v1", "oci:./kit", ".hidden", "models/a", ""] {
            assert!(!is_path(OsStr::new(other)), "{other}");
        }
    }
}
