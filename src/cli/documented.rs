//! Holds the pages of this project together with the command line: docs/commands.md is generated from
//! it, each command line in a page must parse, and docs/schema/ has the JSON of each command.

mod command_lines;
mod command_page;
mod schemas;

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the project.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and the pages below docs/ and examples/. A design page may name commands of its time.
fn pages() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    let mut open = vec![root().join("docs"), root().join("examples")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("the folder can be listed") {
            let path = entry.expect("the folder can be listed").path();
            if path.is_dir() {
                let is_left_out = path.ends_with("docs/design");
                open.extend((!is_left_out).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 40, "only {} pages found", found.len());
    found
}
