//! `kitfs ls REF[/PATH]`.

use std::ffi::OsString;
use std::io::{self, Write};

use super::arguments::{KitArguments, LabelArguments, NetworkArguments};
use super::error::CliError;
use super::help::MORE_OPTIONS;
use super::output::{Colour, Names, open_kit, print_json, print_warnings};
use super::reference::parse_kit_path;
use super::settings::Settings;
use super::system::{self, Otherwise};
use crate::control::api::{Entry, EntryKind, Listing};

/// The width of a digest with its mark: `sha256:`, 64 digits, `*`.
const DIGEST_WIDTH: usize = 72;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
PATH begins after the tag or digest. Write REF//PATH when REF has neither.

Examples:
  kitfs ls ghcr.io/org/model:v1
  kitfs ls -l ghcr.io/org/model:v1/src
  kitfs ls -R oci:./kits/article//src")]
pub(super) struct Arguments {
    /// The kit, and a path in it.
    #[arg(value_name = "REF[/PATH]")]
    path: OsString,
    /// Show the mode, size and modification time, and the target of a symlink.
    #[arg(short)]
    long: bool,
    /// List everything below the directory, by path.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Show the sha256 of each file, where it is known; `*` marks the packer's word.
    #[arg(long)]
    digest: bool,
    /// Print a JSON array, with the digests that are known.
    #[arg(long)]
    json: bool,
    /// Take the kit with this label from an index; `kitfs info REF` lists the labels.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Leave out data sets in other kits and in S3 stores (`remotePath` in the Kitfile).
    #[arg(long, help_heading = MORE_OPTIONS)]
    no_remote: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let wanted = parse_kit_path(&arguments.path)?;
    let choice = LabelArguments { labels: arguments.labels };
    let kit = KitArguments { choice, no_remote: arguments.no_remote };
    let mut kit = settings.kit(wanted.reference.clone(), &kit, &arguments.network)?;
    let backend = system::backend(settings, &mut kit, false, Otherwise::AnyBackend).await?;
    let kit = open_kit(&backend, kit).await.map_err(|error| wanted.explain(error))?;
    let digests = arguments.digest || arguments.json;
    let listing = kit.list_with(wanted.path, arguments.recursive, digests).await?;
    print_warnings(&listing.warnings);
    let base = base_length(&listing, arguments.recursive);
    let entries = match listing.entry.kind {
        EntryKind::Directory => listing.below,
        EntryKind::File | EntryKind::Symlink(_) => vec![listing.entry],
    };
    if arguments.json {
        return print_json(&entries);
    }
    let names = Names::for_stdout();
    let mut output = io::BufWriter::new(io::stdout().lock());
    let width = entries.iter().map(|entry| entry.size.to_string().len()).max().unwrap_or(0);
    for entry in &entries {
        if arguments.long {
            write!(output, "{} {:>width$} {} ", mode(entry), entry.size, time(entry))?;
        }
        if arguments.digest {
            write!(output, "{:DIGEST_WIDTH$} ", digest(entry))?;
        }
        let name = &entry.path.0[base.min(entry.path.0.len())..];
        match &entry.kind {
            EntryKind::Directory => names.write(&mut output, name, Colour::Directory)?,
            EntryKind::File => names.write(&mut output, name, Colour::Plain)?,
            EntryKind::Symlink(target) => {
                names.write(&mut output, name, Colour::Symlink)?;
                if arguments.long {
                    output.write_all(b" -> ")?;
                    names.write(&mut output, &target.0, Colour::Plain)?;
                }
            }
        }
        output.write_all(b"\n")?;
    }
    Ok(output.flush()?)
}

/// The digest with its mark, `-` where there is none.
fn digest(entry: &Entry) -> String {
    let mark = if entry.digest_claimed { "*" } else { "" };
    entry.digest.as_ref().map_or_else(|| "-".to_owned(), |digest| format!("{digest}{mark}"))
}

/// The number of bytes to cut from the start of each path. Names are relative to the directory in the
/// arguments; with `-R` they are relative to the kit's root.
fn base_length(listing: &Listing, is_recursive: bool) -> usize {
    match (&listing.entry.kind, listing.entry.path.0.len()) {
        (EntryKind::Directory, length) if length > 0 && !is_recursive => length + 1,
        _ => 0,
    }
}

/// The mode as ls(1) writes it.
fn mode(entry: &Entry) -> String {
    let kind = match entry.kind {
        EntryKind::Directory => 'd',
        EntryKind::File => '-',
        EntryKind::Symlink(_) => 'l',
    };
    let bits = (0..9).rev().map(|bit| match (entry.mode >> bit & 1, bit % 3) {
        (0, _) => '-',
        (_, 2) => 'r',
        (_, 1) => 'w',
        (_, _) => 'x',
    });
    std::iter::once(kind).chain(bits).collect()
}

/// The modification time in UTC, to the minute.
fn time(entry: &Entry) -> String {
    match jiff::Timestamp::from_second(entry.mtime_seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => entry.mtime_seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::RawPath;

    #[test]
    fn modes_and_times_read_as_in_ls() {
        let entry = |kind, mode, mtime_seconds| Entry {
            path: RawPath::default(),
            kind,
            mode,
            size: 0,
            mtime_seconds,
            layer: None,
            digest: None,
            digest_claimed: false,
            missing: None,
        };
        assert_eq!(mode(&entry(EntryKind::Directory, 0o755, 0)), "drwxr-xr-x");
        assert_eq!(mode(&entry(EntryKind::File, 0o640, 0)), "-rw-r-----");
        assert_eq!(mode(&entry(EntryKind::Symlink(RawPath::default()), 0o777, 0)), "lrwxrwxrwx");
        assert_eq!(time(&entry(EntryKind::File, 0, 0)), "1970-01-01 00:00");
        assert_eq!(time(&entry(EntryKind::File, 0, i64::MAX)), i64::MAX.to_string());
    }
}
