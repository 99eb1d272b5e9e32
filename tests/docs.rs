//! Checks the pages of the project: each page of docs/ is in the book, and each link leads somewhere.
//!
//! Command lines in the pages are checked beside the command line, in `src/cli/documented`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Folders of the project without pages of its own.
const LEFT_OUT: [&str; 4] = ["target", ".git", "golden", "node_modules"];

#[test]
fn every_page_is_in_the_book() {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).expect("the book has a summary");
    let listed: BTreeSet<_> = links(&summary).into_iter().collect();
    let pages = pages_below(&docs).into_iter().map(|path| {
        let path = path.strip_prefix(&docs).expect("below docs");
        path.to_str().expect("a name in UTF-8").to_owned()
    });
    let pages: BTreeSet<_> = pages.filter(|path| path != "SUMMARY.md").collect();
    let missing: Vec<_> = pages.difference(&listed).collect();
    assert!(missing.is_empty(), "pages that docs/SUMMARY.md does not list: {missing:#?}");
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    let mut count = 0;
    for page in pages_below(root()) {
        let text = fs::read_to_string(&page).expect("the page is text");
        for target in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            count += 1;
            if let Err(reason) = follow(&page, &text, &target) {
                let page = page.strip_prefix(root()).expect("below the root").display();
                broken.push(format!("{page}: {target}: {reason}"));
            }
        }
    }
    assert!(count > 100, "only {count} links found");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn the_check_finds_links_and_headings() {
    let page = "# A page\n\n[one](a.md), ![two](b.svg)\n`[no](c.md)`\n\n```sh\n# no heading\n[no](d.md)\n```\n\n\
                ## What `kit` does: (1) & *two*_x\n## A page\n";
    assert_eq!(links(page), ["a.md", "b.svg"]);
    assert_eq!(anchors(page), ["a-page", "what-kit-does-1--two_x", "a-page-1"]);
    assert_eq!(normal(Path::new("/a/b/../c/./d")), Path::new("/a/c/d"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Markdown files below a folder.
fn pages_below(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("the folder can be listed") {
            let entry = entry.expect("the folder can be listed");
            let (path, name) = (entry.path(), entry.file_name());
            let is_folder = entry.file_type().expect("it has a type").is_dir();
            if is_folder && !LEFT_OUT.iter().any(|left_out| name == *left_out) {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// Finds the file of a link and, behind `#`, its heading.
fn follow(page: &Path, text: &str, target: &str) -> Result<(), String> {
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    };
    let folder = page.parent().expect("a page is in a folder");
    let path = if path.is_empty() { page.to_owned() } else { normal(&folder.join(path)) };
    if !path.exists() {
        return Err("no such file".to_owned());
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let text = if path == page {
        text.to_owned()
    } else {
        fs::read_to_string(&path).map_err(|error| error.to_string())?
    };
    match anchors(&text).iter().any(|known| known == anchor) {
        true => Ok(()),
        false => Err("no such heading".to_owned()),
    }
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// The targets of a page's links, outside of code.
fn links(page: &str) -> Vec<String> {
    let text = outside_blocks(page).join("\n");
    let text = text.split('`').step_by(2).collect::<Vec<_>>().join("code");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    // A target may be followed by a title.
    let targets = targets.map(|(target, _)| target.split_whitespace().next().unwrap_or_default());
    targets.map(str::to_owned).collect()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(page: &str) -> Vec<String> {
    let mut anchors = Vec::<String>::new();
    for line in outside_blocks(page) {
        let text = line.trim_start_matches('#');
        let (true, Some(text)) = (text.len() < line.len(), text.strip_prefix(' ')) else {
            continue;
        };
        let kept = text.trim().chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it));
        let kept = kept.collect::<String>().to_lowercase().replace(' ', "-");
        // The second heading of the same text has a number.
        let number = |anchor: &&String| {
            let rest = anchor.strip_prefix(kept.as_str());
            rest.is_some_and(|rest| {
                rest.is_empty() || rest[1..].parse::<u32>().is_ok() && rest.starts_with('-')
            })
        };
        let anchor = match anchors.iter().filter(number).count() {
            0 => kept,
            earlier => format!("{kept}-{earlier}"),
        };
        anchors.push(anchor);
    }
    anchors
}

/// The lines of a page outside of code blocks.
fn outside_blocks(page: &str) -> Vec<&str> {
    let mut is_code = false;
    let lines = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect()
}
