//! The exit codes of kitfs: one table, for docs/exit-codes.md and for the manual page.
//!
//! Most codes say what failed ([`FailureKind`]). Commands that compare, diagnose or run a program have the codes of
//! diff(1), of grep(1) and of env(1).

use std::ffi::OsString;

use super::help;
use crate::control::api::FailureKind;

/// A diagnosis finds a failure.
pub(super) const FOUND: u8 = 1;
/// A comparison finds differences, as of diff(1).
pub(super) const DIFFERENT: u8 = 1;
/// A comparison fails.
pub(super) const TROUBLE: u8 = 2;
/// kitfs fails where it runs a program for the user, as of env(1) and timeout(1).
pub(super) const RUNNER_FAILED: u8 = 125;
/// The program cannot be run.
pub(super) const NOT_RUNNABLE: u8 = 126;
/// There is no such program.
pub(super) const NOT_FOUND: u8 = 127;
/// A signal ended the program, plus the number of the signal, as in shells.
pub(super) const BY_SIGNAL: u8 = 128;
/// The exit code that shells give to a program which SIGINT ended.
pub(super) const INTERRUPTED: u8 = 130;

/// The codes that only some commands have: commands, code, meaning.
const OF_COMMANDS: [(&str, &str, &str); 9] = [
    ("diff, overlay diff", "0", "no difference"),
    ("diff, overlay diff", "1", "a difference"),
    ("diff, overlay diff", "2", "any failure"),
    ("doctor", "1", "a check is FAIL"),
    (
        "run, trace record",
        "125",
        "kitfs failed: the command line, the mount, the daemon, the trace",
    ),
    ("run, trace record", "126", "the command cannot be run"),
    ("run, trace record", "127", "the command was not found"),
    ("run, trace record", "128 + N", "signal N ended the command"),
    ("run, trace record", "other", "the exit code of the command"),
];

/// The codes of every command: code and meaning.
fn of_all() -> Vec<(u8, &'static str)> {
    let kinds = FailureKind::ALL.map(|kind| (kind.exit_code(), kind.meaning()));
    let mut codes = vec![(0, "success")];
    codes.extend(kinds);
    codes.push((INTERRUPTED, "interrupted from the keyboard"));
    codes
}

/// The exit code for a command line that cannot be parsed. `kitfs run` has its own: 2 may be a code of the command
/// that it runs.
pub(super) fn of_usage(arguments: &[OsString]) -> u8 {
    let tolerant = help::command_for(arguments).ignore_errors(true);
    let matches = tolerant.try_get_matches_from(arguments).ok();
    let (mut words, mut at) = (Vec::new(), matches.as_ref());
    while let Some((word, inner)) = at.and_then(|matches| matches.subcommand()) {
        words.push(word);
        at = Some(inner);
    }
    match words.join(" ").as_str() {
        "run" | "trace record" => RUNNER_FAILED,
        _ => FailureKind::Usage.exit_code(),
    }
}

/// The section of the manual page, in roff (man(7)).
pub(super) fn section_of_manual() -> String {
    let mut section = String::from(".SH \"EXIT STATUS\"\n");
    for (code, meaning) in of_all() {
        section += &format!(".TP\n{code}\n{meaning}\n");
    }
    for (commands, code, meaning) in OF_COMMANDS {
        section += &format!(".TP\n{code} (kitfs {commands})\n{meaning}\n");
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page between its markers.
    fn page() -> String {
        let mut page = String::from("| code | meaning |\n|---|---|\n");
        for (code, meaning) in of_all() {
            page += &format!("| {code} | {meaning} |\n");
        }
        page += "\nSome commands have codes of their own:\n\n| command | code | meaning |\n|---|---|---|\n";
        for (commands, code, meaning) in OF_COMMANDS {
            let commands: Vec<_> =
                commands.split(", ").map(|command| format!("`kitfs {command}`")).collect();
            page += &format!("| {} | {code} | {meaning} |\n", commands.join(", "));
        }
        page
    }

    #[test]
    fn the_page_of_exit_codes_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/exit-codes.md");
        let written = std::fs::read_to_string(path).expect("the page is there");
        assert!(written.contains(&page()), "docs/exit-codes.md must contain:\n{}", page());
    }

    #[test]
    fn exit_codes_are_distinct() {
        let mut codes: Vec<_> = of_all().iter().map(|(code, _)| *code).collect();
        let count = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), count);
    }

    #[test]
    fn a_wrong_command_line_of_run_has_the_code_of_a_runner() {
        let of = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            of_usage(&words)
        };
        assert_eq!(of("kitfs run"), RUNNER_FAILED);
        assert_eq!(of("kitfs -v --cache-dir /c run --nonsense REF -- true"), RUNNER_FAILED);
        assert_eq!(of("kitfs trace record --nonsense -- true"), RUNNER_FAILED);
        assert_eq!(of("kitfs trace show --nonsense"), 2);
        assert_eq!(of("kitfs ls --nonsense"), 2);
        assert_eq!(of("kitfs run-it"), 2);
        assert_eq!(of("kitfs ls -- run"), 2);
    }
}
