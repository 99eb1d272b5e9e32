//! Which options `--help` shows.
//!
//! The options under a heading that begins with [`MORE`] are for few people. `--help` leaves them
//! out, `--help-all` shows them; the manual page and the completion scripts have all of them. A switch takes a
//! value (`--allow-other=false`), and no help shows it: `kitfs config --help` says so for all switches.

use std::ffi::{OsStr, OsString};

use clap::{Command, CommandFactory};

use super::arguments::Arguments;
use super::config::with_values_of_switches;

/// How the headings of options for few people begin.
const MORE: &str = "More ";

/// The headings of options for few people.
pub(super) const MORE_OPTIONS: &str = "More options";
pub(super) const MORE_NETWORK_OPTIONS: &str = "More network options";
pub(super) const MORE_CACHE_OPTIONS: &str = "More cache options";

/// The flag that shows every option.
const HELP_ALL: &str = "--help-all";

/// The words that show the common options.
const HELP: [&str; 3] = ["--help", "-h", "help"];

/// The command line that parses `arguments`. Its help has every option when they ask for it.
pub(super) fn command_for(arguments: &[OsString]) -> Command {
    let command = Arguments::command();
    let flags = || arguments.iter().take_while(|argument| *argument != OsStr::new("--"));
    let has = |word: &str| flags().any(|argument| argument == word);
    match has(HELP_ALL) {
        true => command,
        false if HELP.iter().any(|word| has(word)) => without_more(command),
        false => without_more(with_values_of_switches(command)),
    }
}

/// Hides the options for few people in a command and in the commands below it.
fn without_more(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let is_more = argument.get_help_heading().is_some_and(|heading| heading.starts_with(MORE));
        // Some are hidden from everybody.
        let is_hidden = argument.is_hide_set() || is_more;
        argument.hide(is_hidden)
    });
    command.mut_subcommands(without_more)
}
