//! Which options `--help` shows.
//!
//! The options under a heading that begins with [`MORE`] are for few people. `--help` leaves these options out, and
//! `--help-all` shows them. The manual page and the completion scripts have all options. A switch takes a value
//! (`--allow-other=false`), and no help shows it: `kitfs config --help` says so for all switches.

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::{Arg, Command, CommandFactory};

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

/// A hint for an option that takes its value only behind `=`, such as `--overlay=./changes`. In `--overlay
/// ./changes`, clap takes the value for the first argument of the command.
pub(super) fn hint(arguments: &[OsString], error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let root = Arguments::command();
    let mut command = &root;
    let words = arguments.iter().skip(1).take_while(|word| *word != OsStr::new("--"));
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap_or_default()).collect();
    for word in &words {
        command = command.find_subcommand(word).unwrap_or(command);
    }
    words.windows(2).find_map(|pair| {
        let (name, value) = (pair[0].strip_prefix("--")?, pair[1]);
        let is_it =
            |option: &&Arg| option.get_long() == Some(name) && option.is_require_equals_set();
        command.get_arguments().find(is_it)?;
        let is_value = !value.is_empty() && !value.starts_with('-');
        is_value.then(|| format!("--{name} takes its value behind `=`: --{name}={value}"))
    })
}

/// Hides the options for few people in a command and in the commands below it.
fn without_more(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let is_more = argument.get_help_heading().is_some_and(|heading| heading.starts_with(MORE));
        // Some options are hidden in every help.
        let is_hidden = argument.is_hide_set() || is_more;
        argument.hide(is_hidden)
    });
    command.mut_subcommands(without_more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint_of(line: &str) -> Option<String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = command_for(&words).try_get_matches_from(&words).expect_err("it is wrong");
        hint(&words, &error)
    }

    #[test]
    fn a_value_that_was_not_joined_by_an_equals_sign_is_told() {
        let hint = hint_of("kitfs mount --overlay ./changes localhost/kit:v1 dir").unwrap();
        assert!(hint.ends_with("--overlay=./changes"), "{hint}");
        let hint = hint_of("kitfs mount --follow 5m localhost/kit:v1 dir").unwrap();
        assert!(hint.ends_with("--follow=5m"), "{hint}");
        assert_eq!(hint_of("kitfs mount --overlay=u localhost/kit:v1 dir more"), None);
        assert_eq!(hint_of("kitfs mount --nonsense x"), None);
        assert_eq!(hint_of("kitfs mount"), None);
    }
}
