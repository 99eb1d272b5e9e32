//! Compares docs/semantics.md with the tests: the page says that each of its promises is the name of a test.
//!
//! A promise is an item of a list. Its test has the name of its first words, up to a punctuation mark or
//! its end. The test is in a file or folder that the text above the list names. Below a paragraph that ends with a
//! colon and names no file, a list explains the paragraph and promises nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A list item of the page, and the places of its test.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    text: String,
    places: Vec<String>,
}

#[test]
fn every_promise_is_the_name_of_a_test() {
    let page = fs::read_to_string(root().join("docs/semantics.md")).expect("the page is there");
    let promises = promises(&page);
    assert!(promises.len() > 150, "only {} promises found", promises.len());
    let is_kept = |promise: &&Promise| {
        let tests = promise.places.iter().flat_map(|place| tests_in(&root().join(place)));
        let tests: Vec<String> = tests.collect();
        names_of(&promise.text).iter().any(|name| tests.contains(name))
    };
    let broken: Vec<_> = promises.iter().filter(|promise| !is_kept(promise)).collect();
    assert!(broken.is_empty(), "promises without a test of their name:\n{broken:#?}");
}

/// A sentence between the name of a file and its list may turn the list into an explanation.
#[test]
fn every_file_that_the_page_names_has_promises() {
    let page = fs::read_to_string(root().join("docs/semantics.md")).expect("the page is there");
    let promises = promises(&page);
    let kept: BTreeSet<_> = promises.iter().flat_map(|promise| &promise.places).collect();
    let named = page.split("\n\n").filter(|paragraph| !paragraph.starts_with("- "));
    let named: BTreeSet<_> = named.flat_map(places_in).collect();
    let without: Vec<_> = named.iter().filter(|place| !kept.contains(place)).collect();
    assert!(named.len() > 40, "only {} files found", named.len());
    assert!(without.is_empty(), "files of tests without a promise: {without:#?}");
}

#[test]
fn the_check_finds_promises_and_their_names() {
    let page = "## Heading (`tests/a.rs`)\n\n- It's one (`x`).\n- Two, and\n  more: why.\n\n\
                Some text:\n\n- no promise\n\nAnd in `src/b.rs`:\n\n- Three.\n";
    let promise =
        |text: &str, place: &str| Promise { text: text.into(), places: vec![place.into()] };
    let expected = [
        promise("It's one (`x`).", "tests/a.rs"),
        promise("Two, and more: why.", "tests/a.rs"),
        promise("Three.", "src/b.rs"),
    ];
    assert_eq!(promises(page), expected);
    assert_eq!(names_of("Two, and more: why.")[..3], ["two", "two_and_more", "two_and_more_why"]);
    assert_eq!(names_of("It's `--a`.")[0], "its_a");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn promises(page: &str) -> Vec<Promise> {
    let (mut promises, mut places) = (Vec::<Promise>::new(), Vec::new());
    let (mut is_item, mut promises_something) = (false, true);
    let mut paragraph = String::new();
    for line in page.lines() {
        if let Some(text) = line.strip_prefix("- ") {
            is_item = promises_something;
            if is_item {
                promises.push(Promise { text: text.to_owned(), places: places.clone() });
            }
        } else if let (Some(text), true) = (line.strip_prefix("  "), is_item) {
            let promise = promises.last_mut().expect("an item began");
            promise.text = format!("{} {}", promise.text, text.trim());
        } else if line.is_empty() {
            is_item = false;
            if !paragraph.is_empty() {
                let named = places_in(&paragraph);
                promises_something = !named.is_empty() || !paragraph.ends_with(':');
                if !named.is_empty() {
                    places = named;
                }
                paragraph.clear();
            }
        } else {
            paragraph = format!("{paragraph} {}", line.trim());
        }
    }
    promises
}

/// The files and folders of tests that a text names in backticks.
fn places_in(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let places = quoted.filter(|it| it.starts_with("src/") || it.starts_with("tests/"));
    places.map(str::to_owned).collect()
}

/// The names that the test of a promise may have.
fn names_of(text: &str) -> Vec<String> {
    let marks = text.match_indices(['.', ',', ':', ';', '(']).map(|(at, _)| at);
    marks.chain([text.len()]).map(|end| name_of(&text[..end])).collect()
}

fn name_of(text: &str) -> String {
    let text = text.replace(['`', '\''], "").to_lowercase();
    let words = text.split(|character: char| !character.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_")
}

/// The names of all functions in a file, or in all files of a folder.
fn tests_in(place: &Path) -> Vec<String> {
    let mut files = vec![place.to_owned()];
    if place.is_dir() {
        let listed = fs::read_dir(place).expect("the folder can be listed");
        files =
            listed.map(|entry| entry.expect("it can be listed").path()).collect::<Vec<PathBuf>>();
    }
    let texts = files.iter().map(|file| match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => panic!("{} that the page names: {error}", file.display()),
    });
    let names = |text: String| {
        let functions = text.split("fn ").skip(1);
        let name = |text: &str| text.split(['(', '<']).next().unwrap_or_default().to_owned();
        functions.map(name).collect::<Vec<_>>()
    };
    texts.flat_map(names).collect()
}
