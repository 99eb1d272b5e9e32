//! Holds the comments to a rule of the house style: a sentence does not begin with Who, What, Whoever and the like.
//!
//! Such a sentence has a clause for its subject ("What is pinned stays"), and a reader must find the noun alone. Write
//! the noun: "Pinned chunks stay".

use std::fs;
use std::path::{Path, PathBuf};

/// Words that begin no sentence of a comment.
const REFUSED: [&str; 6] = ["Who", "Whoever", "Whose", "What", "Whatever", "That which"];

/// Folders with code. `golden` below tests has files of other programs.
const FOLDERS: [&str; 5] = ["src", "tests", "benches", "examples", "scripts"];

#[test]
fn no_sentence_of_a_comment_begins_with_a_clause() {
    let mut wrong = Vec::new();
    let files = files();
    for path in &files {
        let text = fs::read_to_string(path).expect("code is text");
        let mark = if path.extension().is_some_and(|it| it == "rs") { "//" } else { "#" };
        for (line, comment) in comments(&text, mark) {
            for sentence in sentences(&comment) {
                if begins_with_a_clause(sentence) {
                    let path = path.strip_prefix(root()).expect("below the root").display();
                    wrong.push(format!("{path}:{line}: {sentence}"));
                }
            }
        }
    }
    assert!(files.len() > 400, "only {} files found", files.len());
    assert!(wrong.is_empty(), "write the noun first:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_finds_comments_and_sentences() {
    let code = "/// A file. What it\n/// has. See e.g. What.\nlet a = 1; // Who knows\n\n//! - Whatever\n//! - fine\n";
    let found = comments(code, "//");
    let texts: Vec<_> = found.iter().map(|(line, text)| (*line, text.as_str())).collect();
    let expected = [
        (1, "A file. What it has. See e.g. What."),
        (3, "Who knows"),
        (5, "Whatever"),
        (6, "fine"),
    ];
    assert_eq!(texts, expected);
    let wrong: Vec<_> = found.iter().flat_map(|(_, text)| sentences(text)).collect();
    let wrong: Vec<_> = wrong.into_iter().filter(|it| begins_with_a_clause(it)).collect();
    assert_eq!(wrong, ["What it has.", "What.", "Who knows", "Whatever"]);
    assert!(!begins_with_a_clause("Whether it is"));
    assert!(begins_with_a_clause("That which is"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files() -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), FOLDERS.map(|name| root().join(name)).to_vec());
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("the folder can be listed").path();
            let extension = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
            if path.is_dir() {
                open.extend((!path.ends_with("golden")).then_some(path));
            } else if ["rs", "sh", "py"].contains(&extension) && !path.ends_with("tests/words.rs") {
                found.push(path);
            }
        }
    }
    found
}

/// The comments of a file, each with the number of its first line. Lines below one another are one comment, except for
/// the items of a list.
fn comments(code: &str, mark: &str) -> Vec<(usize, String)> {
    let mut comments: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (index, line) in code.lines().enumerate() {
        let at_start = line.trim_start().strip_prefix(mark);
        // Behind code, only ` // ` is a comment for sure.
        let behind = line.split_once(&format!(" {mark} ")).map(|(_, text)| text);
        let Some(text) = at_start.or(behind) else {
            goes_on = false;
            continue;
        };
        let text = text.trim_start_matches(['/', '!', '#']).trim();
        let item = text.strip_prefix("- ");
        match comments.last_mut().filter(|_| goes_on && at_start.is_some() && item.is_none()) {
            Some((_, comment)) if !text.is_empty() => *comment = format!("{comment} {text}"),
            _ => comments.push((index + 1, item.unwrap_or(text).to_owned())),
        }
        goes_on = at_start.is_some() && !text.is_empty();
    }
    comments
}

/// The sentences of a comment, as far as full stops tell.
fn sentences(comment: &str) -> Vec<&str> {
    comment.split_inclusive(". ").map(str::trim).collect()
}

fn begins_with_a_clause(sentence: &str) -> bool {
    let after = REFUSED.iter().filter_map(|word| sentence.strip_prefix(word));
    after.into_iter().any(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
}
