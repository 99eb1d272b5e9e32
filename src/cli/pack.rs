//! `kitfs pack DIR -t REF`.

mod base;
mod complete;
mod parents;
pub(in crate::cli) mod report;

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;

use self::report::Report;
use super::arguments::NetworkArguments;
use super::error::CliError;
use super::help::MORE_OPTIONS;
use super::output::{byte_bar, print_warnings, say};
use super::settings::Settings;
use crate::control::api::FailureKind;
use crate::kit::AuthoredKitfile;
use crate::kit::kitfile::KITFILE_LIMIT_BYTES;
use crate::layer::encode::Effort;
use crate::oci::{Format, Reference, Selector};
use crate::pack::{Options, PackError, Packed, Prepared, Progress, Stamp, find_kitfile};
use crate::source::kit_storage::writing::{StorageError, StorageWriter};

/// The packer in the manifest. A bare version would be taken for a version of kit.
const PACKER: &str = concat!("kitfs-", env!("CARGO_PKG_VERSION"));
/// The interval at which the progress bar moves.
const LOOK: Duration = Duration::from_millis(100);
/// The files that are named one by one when they end in no layer.
const MOST_NAMED: usize = 20;
/// The repository of kits without a name, as in kit.
const NO_REPOSITORY: &str = "localhost/_";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The kit goes where `kit pack` puts it (KITOPS_HOME). Layers without compression
and the config are the same bytes as kit's. DIR may be a mount or a writable view
(`kitfs mount --overlay`): layers without changes are then not read.

Examples:
  kitfs pack . -t ghcr.io/org/model:v2
  kitfs pack . --dry-run               which file goes into which layer
  kitfs pack . -t model:small,latest -f Kitfile.small --layer-format raw")]
pub(super) struct Arguments {
    /// The folder with the files of the kit.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Name the kit: [HOST/]REPOSITORY[:TAG[,TAG…]]. Without HOST it is a kit of this machine only.
    #[arg(short, long, value_name = "REF")]
    tag: Option<String>,
    /// The Kitfile, or - for the standard input [default: Kitfile, kitfile or .kitfile in DIR].
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Compress the layers. kitfs reads layers without compression fastest.
    #[arg(long, value_enum, default_value_t, value_name = "METHOD")]
    compression: CompressionArgument,
    /// Make each layer a tar archive, or the plain file that the Kitfile names.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    layer_format: FormatArgument,
    /// Make a CNCF ModelPack rather than a ModelKit.
    #[arg(long, alias = "use-model-pack")]
    model_pack: bool,
    /// Of a writable view or a mount: download the layers that did not change, so that `kit` can use
    /// the kit. kitfs reads them where the base has them.
    #[arg(long, help_heading = MORE_OPTIONS)]
    complete: bool,
    /// Show the layers and the files without a layer; write nothing.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
    /// Name every file that ends in no layer though an entry of the Kitfile leads to it.
    #[arg(long, help_heading = MORE_OPTIONS)]
    all_warnings: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

/// kit's words for compressions.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum CompressionArgument {
    #[default]
    None,
    Gzip,
    GzipFastest,
    Zstd,
}

/// kit's words for the form of layers.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum FormatArgument {
    #[default]
    Tar,
    Raw,
}

impl Arguments {
    fn options(&self) -> Options {
        Options {
            is_model_pack: self.model_pack,
            format: match self.layer_format {
                FormatArgument::Tar => Format::Tar,
                FormatArgument::Raw => Format::Raw,
            },
            effort: match self.compression {
                CompressionArgument::None => Effort::None,
                CompressionArgument::Gzip => Effort::Gzip,
                CompressionArgument::GzipFastest => Effort::GzipFastest,
                CompressionArgument::Zstd => Effort::Zstd,
            },
        }
    }
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let name = Name::parse(arguments.tag.as_deref())?;
    let stamp = Stamp { created: created(settings)?, packer: PACKER.to_owned() };
    let network = settings.network(&arguments.network)?;
    let Some(home) = network.kitops_home.clone() else {
        let message = "kit's local storage is not known: set KITOPS_HOME or --config";
        return Err(CliError::usage(message));
    };
    let (place, yaml) = read_kitfile(&arguments)?;
    let kitfile = AuthoredKitfile::parse(&yaml)
        .map_err(|error| PackError::Kitfile { kitfile: place.clone(), error })?;
    let parents = parents::paths(settings, &kitfile, network.clone()).await?;
    let options = arguments.options();
    let mut prepared = Prepared::new(&arguments.folder, &place, kitfile, &parents, options)?;
    let based_on = base::find(settings, &arguments.folder, &network).await?;
    if let Some(based_on) = &based_on {
        prepared = prepared.based_on(based_on);
    }
    print_warnings(&prepared.warnings());
    warn_of_surprises(&prepared, arguments.all_warnings);
    if arguments.dry_run {
        return Report::planned(&prepared, &name).print_plan(&prepared, arguments.json);
    }
    if let Some(based_on) = based_on.filter(|_| arguments.complete) {
        let blobs = prepared.kept_blobs();
        complete::complete_all(&home, &based_on.origin, blobs, &network).await?;
    }
    let prepared = Arc::new(prepared);
    let packed = write(&prepared, home, &name, stamp).await?;
    for (tag, before) in &packed.moved {
        say(format_args!("the tag {}:{tag} named {before} until now", name.repository));
    }
    Report::packed(&prepared, &packed, &name).print(arguments.json)
}

/// Packs on a thread of its own, and shows the progress meanwhile.
async fn write(
    prepared: &Arc<Prepared>,
    home: PathBuf,
    name: &Name,
    stamp: Stamp,
) -> Result<Packed, CliError> {
    let progress = Arc::new(Progress::default());
    let bar = byte_bar(prepared.total_bytes(), "packing");
    let work = {
        let (prepared, progress, name) =
            (Arc::clone(prepared), Arc::clone(&progress), name.clone());
        tokio::task::spawn_blocking(move || {
            let storage = StorageWriter::open(&home)?;
            prepared.pack(&storage, &name.repository, &name.tags, &stamp, &progress)
        })
    };
    let mut work = std::pin::pin!(work);
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            () = tokio::time::sleep(LOOK) => {
                bar.set_position(progress.done_bytes());
                bar.set_message(progress.current());
            }
        }
    };
    bar.finish_and_clear();
    match outcome {
        Ok(packed) => Ok(packed?),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(CliError::internal(format!("packing was cut off: {error}"))),
        },
    }
}

/// Where a kit is filed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    /// With its host.
    repository: String,
    tags: Vec<String>,
}

impl Name {
    fn parse(text: Option<&str>) -> Result<Self, CliError> {
        let Some(text) = text else {
            return Ok(Self { repository: NO_REPOSITORY.to_owned(), tags: Vec::new() });
        };
        if text.starts_with("oci:") {
            return Err(CliError::usage(
                "kitfs pack stores into kit's local storage: write -t REPOSITORY:TAG, and copy the kit \
                 from there",
            ));
        }
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let refused = |error: &dyn std::fmt::Display| CliError::usage(error.to_string());
        let reference = Reference::parse(first).map_err(|error| refused(&error))?;
        let Selector::Tag(tag) = reference.selector() else {
            return Err(CliError::usage(format!(
                "`{text}` names a digest, and the digest follows from the files: write a tag"
            )));
        };
        let mut tags = vec![tag.clone()];
        for tag in parts {
            match Selector::tag(tag).map_err(|error| refused(&error))? {
                Selector::Tag(tag) if !tags.contains(&tag) => tags.push(tag),
                _ => {}
            }
        }
        Ok(Self {
            repository: format!("{}/{}", reference.registry(), reference.repository()),
            tags,
        })
    }
}

/// Reads the Kitfile. Returns its place for messages.
fn read_kitfile(arguments: &Arguments) -> Result<(String, Vec<u8>), CliError> {
    let Some(file) = &arguments.file else { return Ok(find_kitfile(&arguments.folder)?) };
    let place = file.display().to_string();
    let mut yaml = Vec::new();
    let limit = KITFILE_LIMIT_BYTES as u64 + 1;
    let read = match place.as_str() {
        "-" if std::io::stdin().is_terminal() => {
            let message = "-f - reads the Kitfile from the standard input, which is a terminal";
            return Err(CliError::usage(message));
        }
        "-" => std::io::stdin().lock().take(limit).read_to_end(&mut yaml),
        _ => std::fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut yaml)),
    };
    let place = if place == "-" { "the standard input".to_owned() } else { place };
    match read {
        Ok(_) => Ok((place, yaml)),
        Err(error) => Err(CliError::usage(format!("cannot read the Kitfile {place}: {error}"))),
    }
}

/// The time for the manifest: now, or `SOURCE_DATE_EPOCH` for the same bytes at every run.
fn created(settings: &Settings) -> Result<jiff::Timestamp, CliError> {
    let Some(text) = settings.source_date_epoch() else { return Ok(jiff::Timestamp::now()) };
    let time = text.parse().ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.ok_or_else(|| {
        CliError::usage(format!(
            "SOURCE_DATE_EPOCH is `{text}`, and seconds since 1970 are expected"
        ))
    })
}

/// Warns of files that are in no layer although an entry of the Kitfile leads to them.
fn warn_of_surprises(prepared: &Prepared, are_all_named: bool) {
    let mut surprises = prepared.surprises();
    let most = if are_all_named { usize::MAX } else { MOST_NAMED };
    let named: Vec<_> = surprises
        .by_ref()
        .take(most)
        .map(|it| format!("{} is not packed: {}", prepared.entry(it.index).path, it.reason))
        .collect();
    print_warnings(&named);
    match surprises.count() {
        0 => {}
        more => super::output::warn(format_args!(
            "{more} more files are not packed; --all-warnings names them, --dry-run lists every file"
        )),
    }
}

impl From<PackError> for CliError {
    fn from(error: PackError) -> Self {
        let kind = match &error {
            PackError::NoKitfile { .. }
            | PackError::Kitfile { .. }
            | PackError::Ignore { .. }
            | PackError::Plan { .. }
            | PackError::Unsupported { .. } => FailureKind::Usage,
            PackError::Read { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                FailureKind::NotFound
            }
            PackError::Changed { .. } => FailureKind::BadContent,
            PackError::Storage(StorageError::Io { error, .. }) => {
                match FailureKind::of_write(error) {
                    // The folder is not one that the user has named here.
                    FailureKind::Usage => FailureKind::Cache,
                    kind => kind,
                }
            }
            PackError::Storage(StorageError::Damaged { .. }) => FailureKind::BadContent,
            PackError::Read { .. } => FailureKind::Cache,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_host_and_tags() {
        for (text, repository, tags) in [
            (Some("model"), "localhost/model", &["latest"][..]),
            (Some("org/model:v1,latest,v1"), "localhost/org/model", &["v1", "latest"]),
            (Some("ghcr.io/org/model:v1"), "ghcr.io/org/model", &["v1"]),
            (None, "localhost/_", &[]),
        ] {
            let name = Name::parse(text).unwrap();
            assert_eq!(name.repository, repository);
            assert_eq!(name.tags, tags);
        }
        let digest = format!("model@sha256:{}", "0".repeat(64));
        for text in ["oci:folder:v1", "Model:v1", "model:v1,-x", digest.as_str()] {
            assert!(Name::parse(Some(text)).is_err(), "{text}");
        }
    }
}
