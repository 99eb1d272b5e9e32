//! The value of each option, and where the value comes from.
//!
//! ```text
//! flag > variable > user's file > system's file > default
//! in a file: the table of the command > the table above it > the top
//! ```
//!
//! clap parses the flags first, without the files. Then the values of variables and files become the defaults
//! of the options that were not given, and clap parses again. So one parser reads every value. An option
//! that conflicts with a flag is left out: the flag wins.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::Config;
use super::catalogue::Setting;
use crate::observe::without_user;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The command line.
    Flag,
    /// An environment variable.
    Variable(String),
    /// A key of a file.
    File { path: PathBuf, line: usize },
    /// Nothing sets the option.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value of an option, with its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// The value, as the flag would take it; several values of a list.
    pub values: Vec<OsString>,
    pub origin: Origin,
}

impl Config {
    /// The value that variables and files give an option of a command; `None` for its default.
    ///
    /// # Errors
    /// The message for a variable with a wrong value. The values of files were checked when they were read.
    pub(super) fn value(
        &self,
        setting: &Setting,
        command: &[String],
    ) -> Result<Option<Value>, String> {
        for name in setting.variables() {
            let Some(text) = self.variables.get(&name) else { continue };
            let values = words_of(setting, text);
            for value in &values {
                setting.check(value).map_err(|reason| {
                    let value = without_user(&value.to_string_lossy());
                    format!("the variable {name} cannot be {value:?}: {reason}")
                })?;
            }
            return Ok(Some(Value { values, origin: Origin::Variable(name) }));
        }
        for file in &self.files {
            let fits = file
                .items
                .iter()
                .filter(|item| item.key == setting.key && command.starts_with(&item.table));
            if let Some(item) = fits.max_by_key(|item| item.table.len()) {
                let origin = Origin::File { path: file.path.clone(), line: item.line };
                let values = item.values.iter().map(OsString::from).collect();
                return Ok(Some(Value { values, origin }));
            }
        }
        Ok(None)
    }

    /// The values of variables and files for the command of `matches`, by the option's identifier.
    ///
    /// # Errors
    /// As [`Config::value`].
    pub(super) fn defaults(
        &self,
        command: &Command,
        words: &[String],
        leaf: &ArgMatches,
    ) -> Result<BTreeMap<String, Vec<OsString>>, String> {
        let definition =
            words.iter().try_fold(command, |command, word| command.find_subcommand(word));
        let Some(definition) = definition else { return Ok(BTreeMap::new()) };
        let is_given = |id: &str| leaf.value_source(id) == Some(ValueSource::CommandLine);
        let arguments = || definition.get_arguments();
        let given: Vec<_> = arguments().filter(|it| is_given(it.get_id().as_str())).collect();
        let conflicts = |id: &str| {
            let own = arguments().find(|it| it.get_id() == id);
            let own = own.into_iter().flat_map(|it| definition.get_arg_conflicts_with(it));
            own.into_iter().any(|it| is_given(it.get_id().as_str()))
                || given.iter().any(|it| {
                    !it.is_global_set()
                        && definition.get_arg_conflicts_with(it).iter().any(|it| it.get_id() == id)
                })
        };
        let mut defaults = BTreeMap::new();
        for setting in self.catalogue.of_command(words) {
            if is_given(setting.id()) || conflicts(setting.id()) {
                continue;
            }
            if let Some(value) = self.value(setting, words)? {
                defaults.insert(setting.id().to_owned(), value.values);
            }
        }
        Ok(defaults)
    }
}

/// Gives the options of a command and of the commands above it these defaults.
pub(super) fn with_defaults(
    command: Command,
    words: &[String],
    defaults: &BTreeMap<String, Vec<OsString>>,
) -> Command {
    let command = command.mut_args(|argument| match defaults.get(argument.get_id().as_str()) {
        Some(values) => argument.default_values(values),
        None => argument,
    });
    match words.split_first() {
        Some((first, rest)) => {
            command.mut_subcommand(first, |command| with_defaults(command, rest, defaults))
        }
        None => command,
    }
}

/// The words of the command that was given, and its matches.
pub(super) fn leaf(matches: &ArgMatches) -> (Vec<String>, &ArgMatches) {
    let (mut words, mut leaf) = (Vec::new(), matches);
    while let Some((name, inner)) = leaf.subcommand() {
        words.push(name.to_owned());
        leaf = inner;
    }
    (words, leaf)
}

/// The values of a variable. A list has blanks between its values; `\ ` is a blank within a value.
fn words_of(setting: &Setting, value: &OsStr) -> Vec<OsString> {
    // A value that is not UTF-8 is one path, so it is not split at blanks.
    let Some(text) = value.to_str() else { return vec![value.to_owned()] };
    if setting.is_switch() {
        let value = match text.to_ascii_lowercase().as_str() {
            "1" | "yes" | "on" | "true" => "true",
            "0" | "no" | "off" | "false" => "false",
            _ => text,
        };
        return vec![value.into()];
    }
    match setting.is_list() {
        true => split(text).into_iter().map(OsString::from).collect(),
        false => vec![value.to_owned()],
    }
}

fn split(text: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if matches!(characters.peek(), Some(' ' | '\\')) => word.extend(characters.next()),
            character if character.is_whitespace() => {
                words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
            }
            character => word.push(character),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_of_a_variable_is_read_as_it_was_written(
            words in proptest::collection::vec("[^\\s\\\\]([a-z \\\\]{0,6}[^\\s\\\\])?", 0..5),
        ) {
            let quoted = |word: &String| word.replace('\\', "\\\\").replace(' ', "\\ ");
            let text: Vec<_> = words.iter().map(quoted).collect();
            prop_assert_eq!(split(&text.join(" ")), words);
        }
    }
}
