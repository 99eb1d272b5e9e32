//! `kitfs ls REF[/PATH]…`.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::ArgAction;

use super::arguments::{KitArguments, LabelArguments, NetworkArguments};
use super::error::CliError;
use super::globs;
use super::help::MORE_OPTIONS;
use super::kits::Kits;
use super::output::{Colour, Names, print_json, print_warnings};
use super::reference::parse_kit_path;
use super::settings::Settings;
use crate::control::api::{Entry, EntryKind, Listing};

/// The width of a digest with its mark: `sha256:`, 64 digits, `*`.
const DIGEST_WIDTH: usize = 72;

#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
#[command(after_help = "\
PATH begins after the tag or digest. Write REF//PATH when REF has neither.

Examples:
  kitfs ls ghcr.io/org/model:v1
  kitfs ls -lh 'ghcr.io/org/model:v1/weights/*.safetensors'
  kitfs ls -R oci:./kits/article//src")]
pub(super) struct Arguments {
    /// A kit, and a path in it or a quoted pattern: `*`, `?`, `[a-z]`, `**` for folders.
    #[arg(value_name = "REF[/PATH]", required = true)]
    paths: Vec<OsString>,
    /// Show the mode, size and modification time, and the target of a symlink.
    #[arg(short)]
    long: bool,
    /// Show sizes as 1.5K, 24M, 7.1G; with -l.
    #[arg(short = 'h', long = "human-readable")]
    is_human: bool,
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
    /// Print help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    network: NetworkArguments,
}

/// A path that was listed.
struct Listed {
    /// The folder's path, for the heading where there are several; `None` for a file.
    folder: Option<Vec<u8>>,
    /// The number of bytes to cut from the start of each path.
    base: usize,
    entries: Vec<Entry>,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let choice = LabelArguments { labels: arguments.labels.clone() };
    let options = KitArguments { choice, no_remote: arguments.no_remote };
    let digests = arguments.digest || arguments.json;
    let mut kits = Kits::new(settings, &options, &arguments.network);
    let mut listed = Vec::new();
    let mut warnings: Vec<String> = Vec::new();
    for wanted in arguments.paths.iter().map(|path| parse_kit_path(path)) {
        let wanted = wanted?;
        let kit = kits.open(&wanted).await?;
        for path in globs::expand(&kit, &wanted.path).await? {
            let listing = kit.list_with(path, arguments.recursive, digests).await?;
            let new = listing.warnings.iter().filter(|warning| !warnings.contains(warning));
            let new: Vec<String> = new.cloned().collect();
            print_warnings(&new);
            warnings.extend(new);
            listed.push(Listed::of(listing, arguments.recursive));
        }
    }
    // As with ls(1), files come before the content of folders.
    listed.sort_by_key(|listed| listed.folder.is_some());
    if arguments.json {
        let entries: Vec<_> = listed.into_iter().flat_map(|listed| listed.entries).collect();
        return print_json(&entries);
    }
    let names = Names::for_stdout();
    let mut output = io::BufWriter::new(io::stdout().lock());
    let has_headings = listed.len() > 1;
    let mut is_first = true;
    for group in &listed {
        if let (true, Some(folder)) = (has_headings, &group.folder) {
            output.write_all(if is_first { b"" } else { b"\n" })?;
            names.write(
                &mut output,
                if folder.is_empty() { b"/" } else { folder },
                Colour::Plain,
            )?;
            output.write_all(b":\n")?;
        }
        is_first = false;
        let size = |entry: &Entry| match arguments.is_human {
            true => human_size(entry.size),
            false => entry.size.to_string(),
        };
        let width = group.entries.iter().map(|entry| size(entry).len()).max().unwrap_or(0);
        for entry in &group.entries {
            if arguments.long {
                write!(output, "{} {:>width$} {} ", mode(entry), size(entry), time(entry))?;
            }
            if arguments.digest {
                write!(output, "{:DIGEST_WIDTH$} ", digest(entry))?;
            }
            write_name(&mut output, names, entry, group.base, arguments.long)?;
        }
    }
    Ok(output.flush()?)
}

/// Writes the name of an entry, and with `is_long` the target of a symlink.
fn write_name(
    output: &mut impl Write,
    names: Names,
    entry: &Entry,
    base: usize,
    is_long: bool,
) -> io::Result<()> {
    let name = &entry.path.0[base.min(entry.path.0.len())..];
    match &entry.kind {
        EntryKind::Directory => names.write(output, name, Colour::Directory)?,
        EntryKind::File => names.write(output, name, Colour::Plain)?,
        EntryKind::Symlink(target) => {
            names.write(output, name, Colour::Symlink)?;
            if is_long {
                output.write_all(b" -> ")?;
                names.write(output, &target.0, Colour::Plain)?;
            }
        }
    }
    output.write_all(b"\n")
}

impl Listed {
    fn of(listing: Listing, is_recursive: bool) -> Self {
        let base = base_length(&listing, is_recursive);
        match listing.entry.kind {
            EntryKind::Directory => {
                Self { folder: Some(listing.entry.path.0), base, entries: listing.below }
            }
            EntryKind::File | EntryKind::Symlink(_) => {
                Self { folder: None, base, entries: vec![listing.entry] }
            }
        }
    }
}

/// A size as ls(1) writes it with -h: rounded up, with one digit behind the point below 10.
fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if bytes < 1024 {
        return bytes.to_string();
    }
    let mut unit_bytes: u128 = 1024;
    for unit in UNITS {
        let tenths = (u128::from(bytes) * 10).div_ceil(unit_bytes);
        if tenths < 100 {
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
        let whole = u128::from(bytes).div_ceil(unit_bytes);
        if whole < 1024 || unit == "E" {
            return format!("{whole}{unit}");
        }
        unit_bytes *= 1024;
    }
    unreachable!("the last unit takes every size")
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
    fn sizes_read_as_with_ls_h() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10_137, "9.9K"),
            (10_138, "10K"),
            (1_047_553, "1.0M"),
            (1 << 30, "1.0G"),
            (25_769_803_776, "24G"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }

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
