//! docs/schema/: a JSON Schema for each document that kitfs prints with `--json` or sends over HTTP.
//!
//! The schemas come from the types that are written, so that page and code cannot differ. The test writes the files when
//! the variable SNAPSHOTS is `overwrite`, as the other snapshot tests do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use clap::{Command, CommandFactory};
use schemars::generate::SchemaSettings;
use schemars::transform::{RestrictFormats, Transform};
use schemars::{JsonSchema, Schema};
use serde_json::json;

use super::super::arguments::Arguments;
use super::super::warm;
use super::super::{config, diff, doctor, inspect, log, overlay, pack, ps, sending, status, trace};
use super::root;
use crate::control::api::{
    ActivityReport, CacheReport, CachedLayer, Comparison, DaemonStatus, Entry, Explanation,
    IndexInfo, KitInfo, MountStatus, Residency, TagInfo, WarmReport,
};
use crate::overlay::Change;

/// A document.
struct Document {
    /// The name of its file, without the ending.
    file: &'static str,
    /// The commands or paths that give it.
    from: &'static [&'static str],
    schema: Schema,
}

fn document<T: JsonSchema>(file: &'static str, from: &'static [&'static str]) -> Document {
    // As it is written: a field that a reader may leave out is always there.
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    // `uint64` and the like are formats of schemars, which no validator knows.
    RestrictFormats::default().transform(&mut schema);
    schema.insert("title".to_owned(), json!(file));
    Document { file, from, schema }
}

fn documents() -> Vec<Document> {
    vec![
        document::<Vec<CachedLayer>>("cache-ls", &["kitfs cache ls"]),
        document::<CacheReport>(
            "cache",
            &["kitfs cache rm", "kitfs cache clear", "kitfs cache verify"],
        ),
        document::<Vec<config::Row>>("config-show", &["kitfs config show"]),
        document::<DaemonStatus>("daemon-status", &["kitfs daemon status", "/v1/status"]),
        document::<Comparison>("diff", &["kitfs diff", "/v1/diff"]),
        document::<Vec<diff::facts::Row>>("diff-kitfile", &["kitfs diff --kitfile"]),
        document::<doctor::Report>("doctor", &["kitfs doctor"]),
        document::<Explanation>("explain", &["kitfs explain"]),
        document::<KitInfo>("info", &["kitfs info", "/v1/info/REF"]),
        document::<IndexInfo>("info-index", &["kitfs info", "/v1/info/REF"]),
        document::<inspect::Inspected>("inspect", &["kitfs inspect"]),
        document::<Vec<TagInfo>>("list", &["kitfs list"]),
        document::<Vec<String>>("list-repositories", &["kitfs list HOST"]),
        document::<Vec<log::history::Version>>("log", &["kitfs log"]),
        document::<serde_json::Map<String, serde_json::Value>>("logs", &["kitfs logs"]),
        document::<Vec<Entry>>("ls", &["kitfs ls", "/v1/entries/REF/PATH"]),
        document::<Residency>("map", &["kitfs map", "/v1/residency/REF/PATH"]),
        document::<MountStatus>("mount", &["kitfs mount"]),
        document::<Vec<MountStatus>>("mounts", &["/v1/mounts"]),
        document::<Vec<Change>>("overlay-diff", &["kitfs overlay diff"]),
        document::<Vec<overlay::Listed>>("overlay-ls", &["kitfs overlay ls"]),
        document::<pack::report::Report>("pack", &["kitfs pack"]),
        document::<Vec<ps::User>>("ps", &["kitfs ps"]),
        document::<sending::Outcome>("push", &["kitfs push", "kitfs copy", "kitfs tag"]),
        document::<Vec<status::Listed<'_>>>("status", &["kitfs status"]),
        document::<trace::Shown>("trace-show", &["kitfs trace show"]),
        document::<WarmReport>("warm", &["kitfs warm"]),
        document::<warm::folder::Report>("warm-to", &["kitfs warm --to"]),
        document::<ActivityReport>("activity", &["/v1/activity"]),
    ]
}

fn text_of(schema: &Schema) -> String {
    serde_json::to_string_pretty(schema).unwrap() + "\n"
}

#[test]
fn every_document_has_its_schema() {
    let folder = root().join("docs/schema");
    let generated: BTreeMap<String, String> = documents()
        .iter()
        .map(|document| (format!("{}.json", document.file), text_of(&document.schema)))
        .collect();
    if std::env::var_os("SNAPSHOTS").is_some_and(|value| value == "overwrite") {
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in &generated {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names: BTreeSet<String> = names.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(names, generated.keys().cloned().collect(), "files of docs/schema");
    for (name, text) in generated {
        let written = fs::read_to_string(folder.join(&name)).unwrap();
        assert!(
            written == text,
            "docs/schema/{name} is not what the code writes. A field that is renamed or removed breaks scripts. To \
             write the files anew: SNAPSHOTS=overwrite cargo test --lib schemas"
        );
    }
}

#[test]
fn every_command_with_json_has_a_schema_and_stands_on_the_page() {
    let mut command = Arguments::command();
    command.build();
    let mut with_json = BTreeSet::new();
    add(&command, "kitfs", &mut with_json);
    let documents = documents();
    let documented: BTreeSet<&str> =
        documents.iter().flat_map(|document| document.from).copied().collect();
    for name in &with_json {
        assert!(documented.contains(name.as_str()), "`{name} --json` has no schema");
    }
    let page = fs::read_to_string(root().join("docs/json.md")).unwrap();
    for document in &documents {
        let link = format!("(schema/{}.json)", document.file);
        let row = page.lines().find(|line| line.contains(&link));
        let row = row.unwrap_or_else(|| panic!("docs/json.md lacks {link}"));
        for from in document.from {
            assert!(row.contains(&format!("`{from}`")), "{from} is not in: {row}");
        }
    }
}

/// Adds the commands with the flag `--json`.
fn add(command: &Command, name: &str, found: &mut BTreeSet<String>) {
    if command.get_arguments().any(|argument| argument.get_long() == Some("json")) {
        found.insert(name.to_owned());
    }
    for below in command.get_subcommands() {
        add(below, &format!("{name} {}", below.get_name()), found);
    }
}
