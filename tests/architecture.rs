//! Enforces the map of the rooms in `src/lib.rs`. Fails on an import that the map does not allow, on a
//! file that is too long, and on a crate outside of its room.
//!
//! The check reads text: it cuts off comments and then counts every `crate::ROOM`, in tests too. So
//! the check needs no types.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The arrows of the map. A room may import each room that it reaches by arrows, and [`SHARED`] rooms.
const ARROWS: [(&str, &[&str]); 18] = [
    ("oci", &[]),
    ("layer", &["oci"]),
    ("kit", &["layer", "oci"]),
    ("source", &["oci"]),
    ("pack", &["kit", "source"]),
    ("cache", &["layer"]),
    ("fetch", &["cache", "source"]),
    ("fs", &["fetch", "kit"]),
    ("overlay", &["oci"]),
    ("fuse", &["fs", "overlay"]),
    ("serve", &["source"]),
    ("control", &["fuse"]),
    ("http", &["control", "serve"]),
    ("daemon", &["control", "http", "keeper"]),
    ("keeper", &[]),
    ("cli", &["daemon", "serve", "pack"]),
    ("observe", &[]),
    ("process", &[]),
];

/// Rooms that every room may import.
const SHARED: [&str; 2] = ["observe", "process"];

/// Crates that only a few rooms may use.
const CRATES: [(&str, &[&str]); 16] = [
    ("reqwest", &["source"]),
    ("rustls", &["source"]),
    ("rustls_native_certs", &["source"]),
    ("axum", &["http", "serve"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("clap", &["cli"]),
    ("redb", &["cache"]),
    ("libc", &["cache", "daemon", "keeper"]),
    ("tar", &["layer"]),
    ("granit_parser", &["kit"]),
    ("zstd", &["layer"]),
    ("libz_rs_sys", &["layer"]),
    ("opentelemetry", &["daemon"]),
    ("opentelemetry_otlp", &["daemon"]),
    ("opentelemetry_sdk", &["daemon"]),
];

/// House style: think again at 400 lines, split at 800.
const MOST_LINES: usize = 800;

struct Source {
    path: PathBuf,
    /// The folder or file below `src`; `main` for the binary.
    room: String,
    /// The text without comments.
    code: String,
    lines: usize,
}

#[test]
fn every_import_follows_the_map() {
    let allowed = reachable();
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(allowed) = allowed.get(source.room.as_str()) else { continue };
        for room in rooms_named(&source.code) {
            if room != source.room && !allowed.contains(room.as_str()) {
                wrong.push(format!("{}: {} -> {room}", source.path.display(), source.room));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that src/lib.rs does not draw:\n{}", wrong.join("\n"));
}

#[test]
fn every_room_is_on_the_map() {
    let known: BTreeSet<_> = ARROWS.iter().map(|(room, _)| *room).chain(["main", "lib"]).collect();
    for source in sources() {
        assert!(known.contains(source.room.as_str()), "{} is in no room", source.path.display());
    }
}

#[test]
fn every_crate_stays_in_its_room() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (name, rooms) in CRATES {
            if !rooms.contains(&source.room.as_str()) && names_crate(&source.code, name) {
                wrong.push(format!("{} uses {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "crates outside their rooms:\n{}", wrong.join("\n"));
}

#[test]
fn the_environment_is_read_by_the_commands_only() {
    for source in sources() {
        let reads = ["env::var", "env::vars", "env::temp_dir", "env::home_dir"];
        let reads = reads.iter().any(|read| source.code.contains(read));
        let at_home = ["cli", "main"].contains(&source.room.as_str());
        assert!(at_home || !reads, "{} reads the environment", source.path.display());
    }
}

/// A process that was frozen would find all its deadlines passed.
#[test]
fn deadlines_count_the_time_that_the_process_runs() {
    for source in sources().iter().filter(|source| source.room != "process") {
        let own = source.code.split("#[cfg(test)]").next().expect("the first part");
        let has_clock = own.contains("tokio::time::timeout");
        assert!(!has_clock, "{}: use process::running_time", source.path.display());
    }
}

#[test]
fn no_file_has_more_than_800_lines() {
    for source in sources() {
        let (path, lines) = (source.path.display(), source.lines);
        assert!(lines <= MOST_LINES, "{path} has {lines} lines: split it");
    }
}

#[test]
fn the_check_finds_imports_and_crates() {
    let code = without_comments(
        "use crate::cache::{Cache, LayerKey};\n// crate::daemon\nuse crate::{fs, oci::Digest};\n\
         fn f() { crate::kit::Tree::merge(\"// \", '\"') } // crate::cli\n/* crate::fuse */",
    );
    let rooms: Vec<_> = rooms_named(&code).into_iter().collect();
    assert_eq!(rooms, ["cache", "fs", "kit", "oci"]);
    assert!(names_crate("use redb::Database;", "redb"));
    assert!(names_crate("let x: tar::Header;", "tar"));
    assert!(!names_crate("use crate::layer::tar::Scanner;", "tar"));
    assert!(!names_crate("use super::tar::Scanner;", "tar"));
    assert!(!names_crate("let start = 0;", "tar"));
    assert!(reachable()["fs"].contains("source"));
    assert!(!reachable()["cache"].contains("source"));
    assert!(!reachable()["source"].contains("cache"));
}

/// The rooms that each room may import.
fn reachable() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let arrows = BTreeMap::from(ARROWS);
    let below = |room| {
        let mut found = BTreeSet::from(SHARED);
        let mut open = arrows[room].to_vec();
        while let Some(next) = open.pop() {
            if found.insert(next) {
                open.extend(arrows[next]);
            }
        }
        found
    };
    arrows
        .keys()
        .filter(|room| !SHARED.contains(room))
        .map(|room| (*room, below(*room)))
        .chain(SHARED.map(|room| (room, BTreeSet::new())))
        .collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut open = vec![root.clone()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("src can be listed") {
            let path = entry.expect("src can be listed").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is text");
                let path = path.strip_prefix(&root).expect("below src").to_owned();
                let first = path.components().next().expect("a path").as_os_str();
                let room = first.to_string_lossy().trim_end_matches(".rs").to_owned();
                let lines = text.lines().count();
                found.push(Source { path, room, code: without_comments(&text), lines });
            }
        }
    }
    assert!(found.len() > 30, "only {} files found in src", found.len());
    found
}

/// The text without comments and quoted strings: `//` in a string is no comment. A raw string counts
/// as quoted from its first `"` on, which is near enough.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            '\'' if rest.starts_with("'\"'") => 3,
            '"' => quoted_length(rest),
            other => {
                code.push(other);
                other.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    code
}

fn quoted_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The rooms that code names by `crate::ROOM` or `crate::{ROOM::…, ROOM}`.
fn rooms_named(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, name) in code.match_indices("crate::") {
        let rest = &code[at + name.len()..];
        match rest.strip_prefix('{') {
            None => rooms.insert(identifier(rest)),
            Some(list) => {
                rooms.extend(first_level(list).iter().map(|item| identifier(item.trim())));
                true
            }
        };
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

/// The items of a `{…}` list. The text begins after the opening brace.
fn first_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&list[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect()
}

/// `true` if code names the crate by `NAME::`. `…::NAME::` is a module of kitfs.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::")).any(|(at, _)| {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        !(before.is_alphanumeric() || before == '_' || before == ':')
    })
}
