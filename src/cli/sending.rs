//! The common part of `push`, `copy` and `tag`: opens both sides, sends, and prints the outcome.
//!
//! These commands need no daemon. They read local files and this user's credentials, and keep nothing in the
//! cache.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::error::CliError;
use super::list::has_selector;
use super::output::{byte_bar, print_json, print_line};
use super::sizes;
use crate::control::api::Failure;
use crate::oci::{Digest, Document, Origin, Reference, Selector};
use crate::source::kit_storage::{KitStorage, Origins};
use crate::source::sending::{self, Destination, Replaces, Sender, Sent};
use crate::source::{Repositories, Repository, Sources};

/// The interval between two updates of the progress bar, as for other bars.
const TICK: Duration = Duration::from_millis(100);

/// The word for a kit that got another tag and was not sent.
const TAGGED: &str = "tagged";

/// The options of sending.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct SendArguments {
    /// Move a tag that names another kit.
    #[arg(short, long)]
    pub force: bool,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

impl SendArguments {
    fn replaces(&self) -> Replaces {
        if self.force { Replaces::Anything } else { Replaces::Nothing }
    }
}

/// The outcome of a command, for `--json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Outcome {
    /// The destination, with its tag.
    reference: String,
    digest: String,
    /// Blobs that were sent, and their bytes.
    sent_blobs: u64,
    sent_bytes: u64,
    /// Bytes that the registry took from another of its repositories.
    mounted_bytes: u64,
    /// Bytes of blobs that the destination had.
    skipped_bytes: u64,
    /// Manifests that were put.
    manifests: u64,
}

/// Parses the destination of a command. A destination without a tag gets the tag of the kit.
pub(super) fn destination_of(text: &str, from: &Origin) -> Result<Origin, CliError> {
    let to = Origin::parse(text).map_err(Failure::from)?;
    Ok(match (&to, from.selector()) {
        (Origin::OciLayout { selector: None, .. }, Some(selector)) => {
            to.with_selector(selector.clone())
        }
        (Origin::Registry(_) | Origin::KitStorage(_), Some(tag @ Selector::Tag(_)))
            if !has_selector(text) =>
        {
            to.with_selector(tag.clone())
        }
        _ => to,
    })
}

/// Sends the kit `from` of `source` to `to`.
pub(super) async fn send(
    sources: &Sources,
    source: Arc<dyn Repository>,
    from: &Origin,
    to: &Origin,
    arguments: &SendArguments,
    others: impl Fn(Digest) -> Vec<Reference> + Send + Sync + 'static,
    done: &str,
) -> Result<(), CliError> {
    let about = |error: CliError| error.about(&from.to_string());
    let (digest, root) = source
        .manifest(from.selector())
        .await
        .map_err(Failure::from)
        .map_err(CliError::from)
        .map_err(about)?;
    let tag = tag_of(to, digest)?;
    let destination: Arc<dyn Destination> = sources.destination(to).await.map_err(Failure::from)?;
    let sender = Sender::new(source, root, destination).await.map_err(Failure::from)?;
    let sender = sender.with_others(others);
    let bar = byte_bar(sender.total_bytes(), "sending");
    let progress = sender.progress();
    let mut ticks = tokio::time::interval(TICK);
    let sending = sender.send(tag.as_deref(), arguments.replaces());
    let mut sending = std::pin::pin!(sending);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let sent = loop {
        tokio::select! {
            sent = &mut sending => break sent.map_err(|error| CliError::from(Failure::from(error))),
            // Ctrl-C drops the transfer. The next one finds the bytes that have arrived.
            _ = &mut interrupted => break Err(CliError::Interrupted),
            _ = ticks.tick() => bar.set_position(progress.bytes()),
        }
    };
    bar.finish_and_clear();
    tell(to, digest, sent?, arguments.json, done)
}

/// Gives the kit `from` the name `to`, where it is.
pub(super) async fn tag(
    sources: &Sources,
    from: &Origin,
    to: &Origin,
    arguments: &SendArguments,
) -> Result<(), CliError> {
    let source = sources.open(from).map_err(Failure::from)?;
    let manifest = source.manifest(from.selector()).await.map_err(Failure::from);
    let (digest, manifest) =
        manifest.map_err(|error| CliError::from(error).about(&from.to_string()))?;
    let destination = match (from, to) {
        (Origin::KitStorage(from), Origin::KitStorage(to) | Origin::Registry(to)) => {
            let kept = sources.kept(from).map_err(Failure::from)?;
            sources.storage_destination(to, origins_of(&kept, &manifest)).await
        }
        _ => sources.destination(to).await,
    };
    let destination = destination.map_err(Failure::from)?;
    let Some(Selector::Tag(name)) = to.selector() else {
        return Err(CliError::usage(format!("{to} names no tag")));
    };
    let moved = sending::tag(&*destination, manifest, name, arguments.replaces()).await;
    let manifests = u64::from(moved.map_err(Failure::from)?);
    tell(to, digest, Sent { manifests, ..Sent::default() }, arguments.json, TAGGED)
}

/// The places of the blobs of a kit that the storage lacks.
fn origins_of(kept: &KitStorage, manifest: &[u8]) -> Origins {
    let mut origins = Origins::default();
    if let Ok(Document::Manifest(manifest)) = Document::decode(manifest) {
        for layer in &manifest.layers {
            let places = kept.origins(layer.digest).iter().rev();
            places.for_each(|place| origins.add(layer.digest, place.clone()));
        }
    }
    origins
}

/// The tag to point at the kit; `None` where the destination names the kit's own digest.
fn tag_of(to: &Origin, digest: Digest) -> Result<Option<String>, CliError> {
    match to.selector() {
        Some(Selector::Tag(tag)) => Ok(Some(tag.clone())),
        Some(Selector::Digest(named)) if *named == digest => Ok(None),
        Some(Selector::Digest(named)) => Err(CliError::usage(format!(
            "{to} names the digest {}, and the kit has {}: name a tag instead",
            named.short(),
            digest.short()
        ))),
        None => Ok(None),
    }
}

/// The repository of a registry that an origin names.
pub(super) fn repository_of(origin: &Origin) -> Option<Reference> {
    match origin {
        Origin::Registry(reference) => Some(reference.clone()),
        Origin::OciLayout { .. } | Origin::KitStorage(_) => None,
    }
}

pub(super) fn tell(
    to: &Origin,
    digest: Digest,
    sent: Sent,
    is_json: bool,
    done: &str,
) -> Result<(), CliError> {
    if is_json {
        return print_json(&Outcome {
            reference: to.to_string(),
            digest: digest.to_string(),
            sent_blobs: sent.sent_blobs,
            sent_bytes: sent.sent_bytes,
            mounted_bytes: sent.mounted_bytes,
            skipped_bytes: sent.present_bytes,
            manifests: sent.manifests,
        });
    }
    if sent.sent_blobs == 0 && sent.mounted_bytes == 0 && sent.manifests == 0 {
        print_line(format_args!("{to} is this kit already: nothing to send"))?;
    } else if done == TAGGED {
        print_line(format_args!("{done} {to}"))?;
    } else {
        let mut words = format!("{done} {to}: sent {}", sizes::show(sent.sent_bytes));
        if sent.mounted_bytes > 0 {
            let mounted = sizes::show(sent.mounted_bytes);
            words.push_str(&format!(", {mounted} taken from other repositories there"));
        }
        if sent.present_bytes > 0 {
            words.push_str(&format!(", {} were there", sizes::show(sent.present_bytes)));
        }
        print_line(words)?;
    }
    print_line(digest)
}
