//! The base of a new version: DIR is a writable view (an overlay) or a mounted kit.

use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use crate::cli::error::CliError;
use crate::cli::mounted_kit::mounted_kit;
use crate::cli::output::{open_kit, warn};
use crate::cli::overlay::base_of;
use crate::cli::settings::{DEFAULT_UMASK, Settings};
use crate::control::api::{EntryKind, Failure, KitRequest, Listing, NetworkOptions, RawPath};
use crate::daemon::{Backend, sources_of_command};
use crate::kit::kitfile::KITFILE_LIMIT_BYTES;
use crate::kit::packing::reuse::{Base, Changed};
use crate::oci::{Digest, Manifest, Origin};
use crate::overlay::{Kind, Overlay, Source};
use crate::pack::BasedOn;
use crate::source::kit_storage::Origins;
use crate::source::{Repositories, read_blob};

/// The base of the kit in `folder`; `None` where the folder is an ordinary one.
pub(super) async fn find(
    settings: &Settings,
    folder: &Path,
    network: &NetworkOptions,
) -> Result<Option<BasedOn>, CliError> {
    let overlay = view_at(folder)?;
    let origin = match &overlay {
        Some(view) => Some(Origin::parse(&view.base.pinned()).map_err(Failure::from)?),
        None => mounted_kit(folder)?,
    };
    let Some(origin) = origin else { return Ok(None) };
    match load(settings, &origin, overlay.as_ref(), network).await {
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

/// The writable view that is mounted at `folder`.
fn view_at(folder: &Path) -> Result<Option<Overlay>, CliError> {
    let overlay = Overlay::at(folder).map_err(|error| CliError::usage(error.to_string()))?;
    let Some(overlay) = overlay else { return Ok(None) };
    let place = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    match &overlay.mountpoint {
        None => Err(CliError::usage(format!(
            "{} holds the changes of a writable view that is not mounted; mount it, and pack the mount: kitfs \
             mount --overlay={0} {} DIR",
            overlay.folder.display(),
            overlay.base.reference
        ))),
        // A folder inside a view is an ordinary folder with a Kitfile of its own.
        Some(mountpoint) => Ok((*mountpoint == place).then_some(overlay)),
    }
}

/// The files of a view that differ from the file of the base at the same path.
fn changed(view: &Overlay, listing: &Listing) -> Result<Changed, CliError> {
    let entries = view.view(&base_of(listing));
    let entries = entries.map_err(|error| CliError::usage(error.to_string()))?;
    let changed = entries.into_iter().filter(|(path, (kind, source))| {
        *kind != Kind::Directory && *source != Source::Base(path.clone())
    });
    Ok(changed.map(|(path, _)| path.into_os_string().into_vec()).collect())
}

async fn load(
    settings: &Settings,
    origin: &Origin,
    view: Option<&Overlay>,
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
    let listing = opened.list(RawPath::default(), true).await?;
    let changed = view.map_or_else(|| Ok(Changed::new()), |view| changed(view, &listing))?;
    fill(&mut base, listing);
    let origins = match origin {
        Origin::KitStorage(reference) | Origin::Registry(reference) => {
            let kept = sources.kept(reference);
            kept.map(|storage| storage.all_origins().clone()).unwrap_or_default()
        }
        Origin::OciLayout { .. } => Origins::default(),
    };
    Ok(BasedOn { origin: origin.clone(), base, changed, origins })
}

/// Adds the files and directories of a kit's tree.
fn fill(base: &mut Base, listing: Listing) {
    let digests: Vec<_> =
        listing.layers.iter().map(|layer| Digest::parse(&layer.digest).ok()).collect();
    for (layer, digest) in listing.layers.iter().zip(&digests) {
        base.archived.extend(digest.zip(layer.files));
    }
    for entry in listing.below {
        let digest = entry.layer.and_then(|layer| *digests.get(layer as usize)?);
        match (entry.kind, digest) {
            (EntryKind::Directory, _) => {
                base.directories.insert(entry.path.0, entry.mode);
            }
            (EntryKind::File, Some(digest)) => {
                base.files.insert(entry.path.0, (entry.size, digest));
            }
            (EntryKind::Symlink(_), _) => base.symlinks.push(entry.path.0),
            // The Kitfile.
            (EntryKind::File, None) => {}
        }
    }
}
