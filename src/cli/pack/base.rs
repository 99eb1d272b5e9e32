//! The base of a new version: DIR is a writable view (an overlay) or a mounted kit.

use std::path::Path;

use crate::cli::error::CliError;
use crate::cli::output::{open_kit, warn};
use crate::cli::settings::{DEFAULT_UMASK, Settings};
use crate::control::api::{EntryKind, Failure, KitRequest, Listing, NetworkOptions, RawPath};
use crate::daemon::{Backend, sources_of_command};
use crate::kit::kitfile::KITFILE_LIMIT_BYTES;
use crate::kit::packing::reuse::{Base, Changes};
use crate::oci::{Digest, Manifest, Origin, Selector};
use crate::overlay::{Marks, Overlay};
use crate::pack::{BasedOn, changes_in};
use crate::source::kit_storage::Origins;
use crate::source::{Repositories, read_blob};

/// A kit, and the changes to it.
struct Found {
    origin: Origin,
    changes: Changes,
}

/// The base of the kit in `folder`; `None` where the folder is an ordinary one.
pub(super) async fn find(
    settings: &Settings,
    folder: &Path,
    network: &NetworkOptions,
) -> Result<Option<BasedOn>, CliError> {
    let Some(Found { origin, changes }) = found(folder)? else { return Ok(None) };
    match load(settings, &origin, changes, network).await {
        Ok(based_on) => Ok(Some(based_on)),
        Err(error) => {
            // A full pack makes the same kit.
            warn(format_args!("every layer is packed anew, because {}", words(error)));
            Ok(None)
        }
    }
}

fn words(error: CliError) -> String {
    match error {
        CliError::Failure(failure) => failure.message,
        CliError::OutputClosed | CliError::Interrupted | CliError::Passed(_) => {
            "the base cannot be read".to_owned()
        }
    }
}

fn found(folder: &Path) -> Result<Option<Found>, CliError> {
    let overlay = Overlay::at(folder).map_err(|error| CliError::usage(error.to_string()))?;
    let Some(overlay) = overlay else {
        return Ok(mounted_at(folder).map(|origin| Found { origin, changes: Changes::default() }));
    };
    let place = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    match &overlay.mountpoint {
        None => Err(CliError::usage(format!(
            "{} holds the changes of a writable view that is not mounted; mount it, and pack the mount: kitfs \
             mount --overlay={0} {} DIR",
            overlay.folder.display(),
            overlay.base.reference
        ))),
        // A folder inside of a view is an ordinary folder with a Kitfile of its own.
        Some(mountpoint) if *mountpoint != place => Ok(None),
        Some(_) => {
            let origin = Origin::parse(&overlay.base.reference).map_err(Failure::from)?;
            let origin = origin.with_selector(Selector::Digest(overlay.base.digest));
            let are_marks_readable = match overlay.base.marks {
                Some(Marks::Trusted) => is_root_of_the_machine(),
                Some(Marks::User | Marks::FuseOverlayfs) => true,
                None => false,
            };
            let changes = changes_in(&overlay.upper(), are_marks_readable)?;
            Ok(Some(Found { origin, changes }))
        }
    }
}

/// Whether this process can read `trusted.*` attributes: root, and not only in a user namespace.
fn is_root_of_the_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut fields = map.split_whitespace();
    let is_whole = fields.next() == Some("0") && fields.next() == Some("0");
    rustix::process::geteuid().is_root() && is_whole && fields.next() == Some("4294967295")
}

/// The kit that is mounted at a folder.
fn mounted_at(folder: &Path) -> Option<Origin> {
    /// The longest reference that is read.
    const LIMIT_BYTES: usize = 4096;
    let attribute = |name: &str| {
        let mut value = vec![0; LIMIT_BYTES];
        let length = rustix::fs::getxattr(folder, name, &mut value[..]).ok()?;
        value.truncate(length);
        String::from_utf8(value).ok()
    };
    let origin = Origin::parse(&attribute("user.kitfs.reference")?).ok()?;
    let digest = Digest::parse(&attribute("user.kitfs.digest")?).ok()?;
    Some(origin.with_selector(Selector::Digest(digest)))
}

async fn load(
    settings: &Settings,
    origin: &Origin,
    changes: Changes,
    network: &NetworkOptions,
) -> Result<BasedOn, CliError> {
    let sources = sources_of_command(network).map_err(Failure::from)?;
    let repository = sources.open(origin).map_err(Failure::from)?;
    let (_, json) = repository.manifest(origin.selector()).await.map_err(Failure::from)?;
    let malformed = |error: &dyn std::fmt::Display| CliError::usage(format!("{origin}: {error}"));
    let manifest = Manifest::decode(&json).map_err(|error| malformed(&error))?;
    let config = match manifest.config.content() {
        Some(content) => content,
        None => {
            let (blob, limit) = (manifest.config.blob(), KITFILE_LIMIT_BYTES as u64);
            let place = repository.name();
            let read = read_blob(&repository, blob, limit, "the config", &place).await;
            read.map_err(Failure::from)?
        }
    };
    let mut base = Base::decode(&manifest, &config).map_err(|error| malformed(&error))?;
    let kit = KitRequest {
        reference: origin.to_string(),
        labels: Vec::new(),
        filters: Vec::new(),
        allow_empty: true,
        no_remote: true,
        umask: DEFAULT_UMASK,
        network: network.clone(),
    };
    let backend = Backend::open(&settings.daemon()?).await?;
    let opened = open_kit(&backend, kit).await?;
    fill(&mut base, opened.list(RawPath::default(), true).await?);
    let origins = match origin {
        Origin::KitStorage(reference) | Origin::Registry(reference) => {
            let kept = sources.kept(reference);
            kept.map(|storage| storage.all_origins().clone()).unwrap_or_default()
        }
        Origin::OciLayout { .. } => Origins::default(),
    };
    Ok(BasedOn { origin: origin.clone(), base, changes, origins })
}

/// Adds the files and directories of a kit's tree.
fn fill(base: &mut Base, listing: Listing) {
    let digests: Vec<_> =
        listing.layers.iter().map(|layer| Digest::parse(&layer.digest).ok()).collect();
    for entry in listing.below {
        let digest = entry.layer.and_then(|layer| *digests.get(layer as usize)?);
        match (entry.kind, digest) {
            (EntryKind::Directory, _) => {
                base.directories.insert(entry.path.0, entry.mode);
            }
            (EntryKind::File, Some(digest)) => {
                base.files.insert(entry.path.0, (entry.size, digest));
            }
            // The Kitfile, and what kitfs does not pack.
            (EntryKind::File | EntryKind::Symlink(_), _) => {}
        }
    }
}
