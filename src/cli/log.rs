//! `kitfs log HOST/REPOSITORY`: the versions of a repository, the newest first.

pub(in crate::cli) mod history;

use serde::Serialize;

use super::arguments::NetworkArguments;
use super::diff::count_changes;
use super::error::CliError;
use super::list::{has_selector, is_storage};
use super::opening::Opening;
use super::output::{count_of, print_json, print_table, print_warnings, say, say_while_waiting};
use super::reference::parse_reference;
use super::settings::Settings;
use super::sizes;
use super::system::{self, Otherwise};
use crate::control::api::{CompareEvent, CompareRequest, RawPath, TagsRequest};
use crate::daemon::Backend;
use crate::oci::{Digest, Origin, Selector};

use self::history::{Version, history};

/// The number of tags that are looked at without `-n`: each costs a request or two.
const DEFAULT_TAGS: u32 = 50;
/// The most tags of `-n`. A registry that counts requests would refuse more.
const MOST_TAGS: i64 = 10_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The date is that in the manifest (org.opencontainers.image.created). Versions
without one come last, in the order of their tags. Each line says what changed
since the version below it.

Examples:
  kitfs log ghcr.io/org/model
  kitfs log -n 5 --files oci:./kits/article")]
pub(super) struct Arguments {
    /// HOST/REPOSITORY, localhost/REPOSITORY, or oci:FOLDER.
    #[arg(value_name = "REPOSITORY")]
    repository: String,
    /// Look at so many tags at most, the last ones by their version numbers.
    #[arg(short = 'n', long = "tags", value_name = "COUNT", default_value_t = DEFAULT_TAGS,
        value_parser = clap::value_parser!(u32).range(1..=MOST_TAGS))]
    tags: u32,
    /// Compare the files too; this opens every kit.
    #[arg(long)]
    files: bool,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

/// The number of files that changed, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct FileCounts {
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    pub renamed: u64,
    pub mode: u64,
    pub maybe: u64,
    pub same: u64,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let what = &arguments.repository;
    if is_storage(what) {
        return Err(CliError::usage("name a repository: localhost/REPOSITORY"));
    }
    if has_selector(what) {
        return Err(CliError::usage(format!(
            "`{what}` names one version: leave the tag or digest out"
        )));
    }
    let reference = parse_reference(what)?;
    let request = TagsRequest {
        reference: Some(reference.clone()),
        is_one: false,
        // One tag more than asked tells whether there are more.
        most: Some(arguments.tags + 1),
        layers: true,
        network: settings.network(&arguments.network)?,
    };
    let backend = Backend::open(&settings.daemon()?).await?;
    let mut tags = say_while_waiting(&reference, backend.ask(request)).await?;
    drop(backend);
    if tags.len() > arguments.tags as usize {
        tags.remove(0);
        say(format_args!(
            "only {} looked at; -n takes more",
            count_of(u64::from(arguments.tags), "tag is", "tags are")
        ));
    }
    let (mut versions, problems) = history(tags);
    print_warnings(&problems);
    if arguments.files {
        compare_files(settings, &arguments, &reference, &mut versions).await?;
    }
    match arguments.json {
        true => print_json(&versions),
        false => print_versions(&versions),
    }
}

/// Compares the files of each version with those of the version before it.
async fn compare_files(
    settings: &Settings,
    arguments: &Arguments,
    reference: &str,
    versions: &mut [Version],
) -> Result<(), CliError> {
    let origin = Origin::parse(reference)
        .map_err(|error| CliError::usage(format!("`{reference}`: {error}")))?;
    let kit = Default::default();
    for version in versions {
        let Some(changes) = &mut version.changes else { continue };
        let pinned = |digest: &str| {
            let digest =
                Digest::parse(digest).map_err(|error| CliError::internal(error.to_string()))?;
            let pinned = origin.with_selector(Selector::Digest(digest)).to_string();
            settings.kit(pinned, &kit, &arguments.network)
        };
        let (mut before, mut after) = (pinned(&changes.since)?, pinned(&version.digest)?);
        let kits = &mut [&mut before, &mut after];
        let backend = system::backend_for_all(settings, kits, false, Otherwise::AnyBackend).await?;
        let (path, content) = (RawPath::default(), false);
        let request = CompareRequest { before, after, path, content };
        let mut opening = Opening::new();
        let mut show = |event| match event {
            CompareEvent::Opening(progress) => opening.show(progress),
            CompareEvent::Comparing(_) => {}
        };
        let compared = tokio::select! {
            compared = backend.call(request, &mut show) => compared,
            _ = tokio::signal::ctrl_c() => return Err(CliError::Interrupted),
        };
        drop(opening);
        changes.files = Some(count_changes(&compared?));
    }
    Ok(())
}

fn print_versions(versions: &[Version]) -> Result<(), CliError> {
    let has_repositories = versions.iter().any(|version| version.repository.is_some());
    let mut headings = vec!["DATE", "TAGS", "SIZE", "CHANGES", "DIGEST"];
    if has_repositories {
        headings.insert(0, "REPOSITORY");
    }
    let size = usize::from(has_repositories) + 2;
    let rows = versions.iter().map(|version| {
        let mut row = vec![
            date(version.created_seconds),
            tags(version),
            match version.index_entries {
                Some(_) => "-".to_owned(),
                None => sizes::show(version.blob_bytes),
            },
            changes(version),
            version.digest.clone(),
        ];
        if has_repositories {
            row.insert(0, version.repository.clone().unwrap_or_else(|| "-".to_owned()));
        }
        row
    });
    print_table(&headings, &[size], rows)
}

fn date(seconds: Option<i64>) -> String {
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "no date".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M").to_string())
}

fn tags(version: &Version) -> String {
    match version.tags.is_empty() {
        true => "<none>".to_owned(),
        false => version.tags.join(", "),
    }
}

fn changes(version: &Version) -> String {
    if let Some(entries) = version.index_entries {
        return format!("an index of {}", count_of(entries, "kit", "kits"));
    }
    let Some(changes) = &version.changes else { return "the first".to_owned() };
    let count = |kind| changes.layers.iter().filter(|layer| layer.kind == kind).count() as u64;
    let words = |parts: &[(u64, &str)]| {
        let parts = parts.iter().filter(|(count, _)| *count > 0);
        parts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
    };
    let layers = words(&[
        (count(history::LayerKind::Added), "added"),
        (count(history::LayerKind::Removed), "removed"),
        (count(history::LayerKind::Changed), "changed"),
    ]);
    let mut text = match layers.is_empty() {
        true => "same layers".to_owned(),
        false => format!("layers: {layers} ({} new)", sizes::show(changes.new_bytes)),
    };
    if let Some(files) = changes.files {
        let files = words(&[
            (files.added, "added"),
            (files.removed, "removed"),
            (files.changed, "changed"),
            (files.renamed, "renamed"),
            (files.mode, "with another mode"),
            (files.maybe, "maybe changed"),
        ]);
        text += &format!("; files: {}", if files.is_empty() { "the same" } else { &files });
    }
    text
}
