//! Prints the files that differ, the layers, and the bytes of a switch.

use std::io::{self, Write};

use super::super::error::CliError;
use super::super::output::{
    Colour, Names, count_of, print_line, print_table, printable, short_digest,
};
use super::super::sizes;
use crate::control::api::{
    ComparedFile, Comparison, EntryKind, FileChange, FileChangeKind, LayerChange, LayerChangeKind,
};

/// Prints the paths of files that differ, one a line.
pub(super) fn print_names(comparison: &Comparison) -> Result<(), CliError> {
    let names = Names::for_stdout();
    let mut output = io::BufWriter::new(io::stdout().lock());
    for change in &comparison.changes {
        names.write(&mut output, &change.path.0, Colour::Plain)?;
        output.write_all(b"\n")?;
    }
    Ok(output.flush()?)
}

/// Prints two tables and a summary; nothing for kits without a difference.
pub(super) fn print(comparison: &Comparison) -> Result<(), CliError> {
    if !comparison.changes.is_empty() {
        let rows = comparison.changes.iter().map(row);
        print_table(&["CHANGE", "BEFORE", "AFTER", "PATH"], &[1, 2], rows)?;
    }
    let layers = comparison.layers.iter().filter(|layer| layer.kind != LayerChangeKind::Same);
    let layers: Vec<_> = layers.collect();
    if !layers.is_empty() {
        if !comparison.changes.is_empty() {
            print_line("")?;
        }
        let rows = layers.iter().map(|layer| layer_row(layer));
        print_table(&["LAYER", "SIZE", "TO FETCH", "DIGEST", "NAME"], &[1, 2], rows)?;
    }
    if comparison.changes.is_empty() && layers.is_empty() {
        return Ok(());
    }
    print_line("")?;
    print_line(summary(comparison))?;
    print_line(switch(comparison))
}

fn row(change: &FileChange) -> Vec<String> {
    let kind = match change.kind {
        FileChangeKind::Added => "added",
        FileChangeKind::Removed => "removed",
        FileChangeKind::Changed => "changed",
        FileChangeKind::Renamed => "renamed",
        FileChangeKind::Mode => "mode",
        FileChangeKind::Maybe => "maybe",
    };
    let path = String::from_utf8_lossy(&change.path.0);
    let path = match &change.from {
        Some(from) => format!("{} -> {path}", String::from_utf8_lossy(&from.0)),
        None => path.into_owned(),
    };
    let size = |file: &Option<ComparedFile>| match file {
        Some(file) if change.kind == FileChangeKind::Mode => format!("{:04o}", file.mode),
        Some(file) => match file.kind {
            EntryKind::File => sizes::show(file.size),
            EntryKind::Directory => "directory".to_owned(),
            EntryKind::Symlink(_) => "symlink".to_owned(),
        },
        None => "-".to_owned(),
    };
    let mark = if change.claimed { "*" } else { "" };
    vec![format!("{kind}{mark}"), size(&change.before), size(&change.after), path]
}

fn layer_row(layer: &LayerChange) -> Vec<String> {
    let (kind, to_fetch) = match layer.kind {
        LayerChangeKind::Same => ("same", sizes::show(layer.missing_bytes)),
        LayerChangeKind::Added => ("new", sizes::show(layer.missing_bytes)),
        LayerChangeKind::Removed => ("gone", "-".to_owned()),
    };
    // The name ends with the digest.
    let name = layer.name.split(" (sha256:").next().unwrap_or_default();
    vec![
        kind.to_owned(),
        sizes::show(layer.blob_bytes),
        to_fetch,
        short_digest(&layer.digest).to_owned(),
        name.to_owned(),
    ]
}

fn summary(comparison: &Comparison) -> String {
    let count = |kind| comparison.changes.iter().filter(|change| change.kind == kind).count();
    let parts = [
        (FileChangeKind::Added, "added"),
        (FileChangeKind::Removed, "removed"),
        (FileChangeKind::Changed, "changed"),
        (FileChangeKind::Renamed, "renamed"),
        (FileChangeKind::Mode, "with another mode"),
        (FileChangeKind::Maybe, "maybe changed"),
    ];
    let parts = parts.map(|(kind, word)| (count(kind), word));
    let mut words: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    words.push(format!("{} the same", count_of(comparison.same_files, "file", "files")));
    let mut text = words.join(", ");
    if count(FileChangeKind::Maybe) > 0 {
        text += "\nmaybe: another layer and the same size; --content compares the bytes";
    }
    let claimed = comparison.changes.iter().filter(|change| change.claimed).count() as u64;
    let claimed = claimed + comparison.claimed_same_files;
    if claimed > 0 {
        let files = count_of(claimed, "file", "files");
        text += &format!("\n*: by digests that the packer has listed ({files}, the same ones too)");
    }
    text
}

fn switch(comparison: &Comparison) -> String {
    let all = comparison.layers.iter().filter(|layer| layer.kind != LayerChangeKind::Removed);
    let all = all.count() as u64;
    let new = comparison.layers.iter().filter(|layer| layer.kind == LayerChangeKind::Added).count();
    let bytes = &comparison.switch;
    let mut text = format!(
        "{new} of {} new: a switch from {} to {} fetches {} at most; this cache lacks {} of the later version",
        count_of(all, "layer is", "layers are"),
        printable(comparison.before.reference.as_bytes()),
        printable(comparison.after.reference.as_bytes()),
        sizes::show(bytes.new_bytes),
        sizes::show(bytes.missing_bytes - bytes.fetched_bytes),
    );
    if bytes.fetched_bytes > 0 {
        let fetched = sizes::show(bytes.fetched_bytes);
        text += &format!(" (this comparison has fetched {fetched})");
    }
    text
}
