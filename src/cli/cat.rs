//! `kitfs cat REF/PATH…`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::Range;

use futures_util::StreamExt;

use super::arguments::{KitArguments, NetworkArguments};
use super::error::CliError;
use super::globs;
use super::kits::Kits;
use super::reference::parse_kit_path;
use super::settings::Settings;
use super::sizes;
use crate::control::ByteStream;
use crate::control::api::{FilePart, RawPath};
use crate::daemon::OpenKit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command downloads only what it prints: `kitfs cat REF/PATH | head` stops
after the first bytes.

Examples:
  kitfs cat ghcr.io/org/model:v1/config.json
  kitfs cat oci:./kits/article:v1/Kitfile oci:./kits/article:v1/src/train.py
  kitfs cat 'ghcr.io/org/model:v1/src/*.py'
  kitfs cat --length 8 ghcr.io/org/model:v1/model.safetensors | xxd")]
pub(super) struct Arguments {
    /// A file of a kit, or a quoted pattern: `*`, `?`, `[a-z]`, `**` for folders.
    #[arg(value_name = "REF/PATH", required = true)]
    paths: Vec<OsString>,
    /// Begin at this byte of the file.
    #[arg(long, value_name = "BYTES", value_parser = sizes::parse)]
    offset: Option<u64>,
    /// Print this number of bytes at most.
    #[arg(long, value_name = "BYTES", value_parser = sizes::parse)]
    length: Option<u64>,
    #[command(flatten)]
    kit: KitArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let has_range = arguments.offset.is_some() || arguments.length.is_some();
    if has_range && arguments.paths.len() > 1 {
        return Err(one_file());
    }
    let wanted = arguments.paths.iter().map(|path| parse_kit_path(path));
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    let mut kits = Kits::new(settings, &arguments.kit, &arguments.network);
    for group in wanted.chunk_by(|one, next| one.reference == next.reference) {
        let kit = kits.open(&group[0]).await?;
        let mut paths = Vec::new();
        for wanted in group {
            paths.extend(globs::expand(&kit, &wanted.path).await?);
        }
        match &paths[..] {
            [path] if has_range => {
                print_range(&kit, path, arguments.offset.unwrap_or(0), arguments.length).await?;
            }
            _ if has_range => return Err(one_file()),
            // One request reads all files.
            _ => print(kit.read(paths).await?).await?,
        }
    }
    Ok(io::stdout().lock().flush()?)
}

fn one_file() -> CliError {
    CliError::usage("--offset and --length are for one file: name one")
}

/// Prints the part of a file that lies in a range, as far as the file has it.
async fn print_range(
    kit: &OpenKit,
    path: &RawPath,
    offset: u64,
    length: Option<u64>,
) -> Result<(), CliError> {
    let file_bytes = kit.stat(path).await?.entry.size;
    let end = length.map_or(file_bytes, |length| offset.saturating_add(length).min(file_bytes));
    for part in parts(offset.min(end)..end) {
        print(kit.read_part(path, part).await?).await?;
    }
    Ok(())
}

async fn print(mut bytes: ByteStream) -> Result<(), CliError> {
    while let Some(piece) = bytes.next().await {
        io::stdout().lock().write_all(&piece?)?;
    }
    Ok(())
}

/// The requests for a range of a file. An empty range has one request too, because its failure tells that a path is
/// no file.
fn parts(range: Range<u64>) -> impl Iterator<Item = FilePart> {
    let first = std::iter::once(range.start);
    let others = (range.start..range.end).step_by(FilePart::LIMIT_BYTES as usize).skip(1);
    first.chain(others).map(move |start| FilePart {
        start,
        end: range.end.min(start + FilePart::LIMIT_BYTES),
        ahead_end: range.end,
        confirm: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_the_range_without_gaps(start in any::<u32>(), length in 0u64..1 << 26) {
            let range = u64::from(start)..u64::from(start) + length;
            let mut at = range.start;
            for part in parts(range.clone()) {
                prop_assert_eq!((part.start, part.ahead_end, part.confirm), (at, range.end, None));
                prop_assert!(part.end - part.start <= FilePart::LIMIT_BYTES);
                prop_assert!(part.end > part.start || range.is_empty());
                at = part.end;
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
