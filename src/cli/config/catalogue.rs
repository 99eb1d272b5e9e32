//! The options that files and variables may set, found in clap's definition of the command line.
//!
//! An option has one name. The flag `--cache-size` has the key `cache-size` and the variable `KITFS_CACHE_SIZE`. A
//! new option needs no entry here; [`ONE_SHOT`] lists the options that no file sets.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command, ValueHint};

/// Options of one run of a command, which no file sets: the task, the kind of output, and its place.
const ONE_SHOT: &[&str] = &[
    "all",
    "changed",
    "content",
    "delete",
    "digest",
    "dry-run",
    "file",
    "files",
    "folders",
    "force",
    "foreground",
    "human-readable",
    "install",
    "interval",
    "json",
    "kit",
    "kitfile",
    "lazy",
    "length",
    "lines",
    "name-only",
    "offset",
    "output",
    "overlay",
    "recursive",
    "replace",
    "summary",
    "svg",
    "system",
    "tag",
    "timeout",
    "to",
    "trace",
    "uploads",
    "watch",
    "while-pid",
    "wide",
];

/// As [`ONE_SHOT`], of one command. `KITFS_LISTEN` is for the daemon; a registry would take its address.
const ONE_SHOT_OF: &[(&str, &str)] = &[("serve", "listen")];

/// Options whose key is not the name of the flag.
///
/// `--config` is kit's flag for its home. In a file of kitfs the word would mean something else.
const RENAMED: &[(&str, &str)] = &[("config", "kitops-home")];

/// Variables of other programs that set options, with the keys.
const FOREIGN_VARIABLES: &[(&str, &str)] = &[("kitops-home", "KITOPS_HOME")];

/// An option of one command.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// The words of the command: `["daemon", "start"]`. None for the options of every command.
    pub command: Vec<String>,
    /// The name in files.
    pub key: String,
    argument: Arg,
}

/// How values are written in files and in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text or a number.
    Text,
    /// `true` or `false`.
    Switch,
    /// Several texts.
    List,
}

/// The options of all commands.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Catalogue {
    settings: Vec<Setting>,
    /// The words of every command, hidden ones too.
    commands: Vec<Vec<String>>,
}

/// A key, as the pages explain it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct KeyHelp {
    pub key: String,
    /// The commands with the option: `daemon start`. None for an option of every command.
    pub commands: Vec<String>,
    /// The defaults; several where commands differ.
    pub defaults: Vec<String>,
    /// The help text, without the default and without a full stop.
    pub meaning: String,
}

impl Setting {
    /// The identifier in clap's definition.
    pub(super) fn id(&self) -> &str {
        self.argument.get_id().as_str()
    }

    /// Whether the option is on or off.
    pub(super) fn is_switch(&self) -> bool {
        is_switch(&self.argument)
    }

    /// Whether the option may have several values.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.argument.get_action(), ArgAction::Append)
    }

    /// How the value is written.
    pub(super) fn kind(&self) -> Kind {
        match (self.is_list(), self.is_switch()) {
            (true, _) => Kind::List,
            (false, true) => Kind::Switch,
            (false, false) => Kind::Text,
        }
    }

    /// Whether the value is a path.
    pub(super) fn is_path(&self) -> bool {
        self.argument.get_value_hint() == ValueHint::AnyPath
    }

    /// Whether the value is a number in octal.
    pub(super) fn is_octal(&self) -> bool {
        self.argument.get_value_names().is_some_and(|names| names.iter().any(|it| it == "OCTAL"))
    }

    /// The variables that set the option; the first that is set counts.
    pub(super) fn variables(&self) -> Vec<String> {
        let own = format!("KITFS_{}", self.key.to_uppercase().replace('-', "_"));
        let foreign = FOREIGN_VARIABLES.iter().filter(|(key, _)| *key == self.key);
        std::iter::once(own).chain(foreign.map(|(_, name)| (*name).to_owned())).collect()
    }

    /// The value without flags, variables and files: clap's default, or the one that the help names.
    pub(super) fn default(&self) -> Option<String> {
        let defaults: Vec<_> = self
            .argument
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        match defaults.as_slice() {
            [] if self.is_switch() => Some("false".to_owned()),
            // The help of such an option explains the flag without a value, not the default.
            [] if self.argument.get_num_args().is_some_and(|range| range.min_values() == 0) => None,
            [] => {
                let help = self.help();
                let (_, rest) = help.split_once("[default: ")?;
                Some(rest.split_once(']')?.0.to_owned())
            }
            values => Some(values.join(" ")),
        }
    }

    /// The help text.
    pub(super) fn help(&self) -> String {
        self.argument.get_help().map(ToString::to_string).unwrap_or_default()
    }

    /// Has clap check a value.
    ///
    /// # Errors
    /// clap's message for a wrong value.
    pub(super) fn check(&self, value: &OsStr) -> Result<(), String> {
        // clap checks defaults in debug builds only, and panics. So a command with this one option parses the
        // value.
        let long = self.argument.get_long().unwrap_or(&self.key).to_owned();
        let mut word = OsString::from(format!("--{long}="));
        word.push(value);
        let parser = match self.is_switch() {
            true => clap::value_parser!(bool),
            false => self.argument.get_value_parser().clone(),
        };
        let option = Arg::new("value").long(long).action(ArgAction::Set).value_parser(parser);
        let command =
            Command::new("kitfs").no_binary_name(true).disable_help_flag(true).arg(option);
        let Err(error) = command.try_get_matches_from([word]) else { return Ok(()) };
        Err(match std::error::Error::source(&error) {
            Some(reason) => reason.to_string(),
            None => {
                let known = self.argument.get_value_parser().possible_values();
                let known: Vec<_> = match self.is_switch() {
                    true => vec!["true".to_owned(), "false".to_owned()],
                    false => {
                        known.into_iter().flatten().map(|it| it.get_name().to_owned()).collect()
                    }
                };
                match known.as_slice() {
                    [] => "a value is needed".to_owned(),
                    known => format!("the values are {}", known.join(", ")),
                }
            }
        })
    }
}

impl Catalogue {
    /// The options of a command line and of the commands below it.
    pub(in crate::cli) fn of(command: &Command) -> Self {
        let mut catalogue = Self { settings: Vec::new(), commands: Vec::new() };
        catalogue.add(command, &mut Vec::new());
        catalogue
    }

    fn add(&mut self, command: &Command, words: &mut Vec<String>) {
        let is_one_shot =
            |name: &str| ONE_SHOT_OF.iter().any(|one| *one == (words.join(" ").as_str(), name));
        let arguments = command.get_arguments().filter(|argument| can_be_set(argument));
        for argument in arguments.filter(|it| !it.get_long().is_some_and(is_one_shot)) {
            let key = key(argument);
            self.settings.push(Setting {
                command: words.clone(),
                key: key.expect("an option that can be set has a name").to_owned(),
                argument: argument.clone(),
            });
        }
        for child in command.get_subcommands() {
            words.push(child.get_name().to_owned());
            self.commands.push(words.clone());
            // kitfs itself runs hidden commands, with a flag for each value.
            if !child.is_hide_set() {
                self.add(child, words);
            }
            words.pop();
        }
    }

    /// Every key in order, for the manual page and docs/configuration.md.
    pub(in crate::cli) fn key_help(&self) -> Vec<KeyHelp> {
        let keys: BTreeSet<_> = self.settings.iter().map(|it| it.key.as_str()).collect();
        let of = |key: &str| {
            let all: Vec<_> = self.with_key(&[], key).collect();
            let commands = all.iter().map(|it| it.command.join(" ")).filter(|it| !it.is_empty());
            let defaults: BTreeSet<_> = all.iter().filter_map(|it| it.default()).collect();
            let help = all.first().map(|it| it.help()).unwrap_or_default();
            let meaning = help.split(" [").next().unwrap_or_default().trim_end_matches('.');
            KeyHelp {
                key: key.to_owned(),
                commands: commands.collect(),
                defaults: defaults.into_iter().collect(),
                meaning: meaning.to_owned(),
            }
        };
        keys.into_iter().map(of).collect()
    }

    pub(super) fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// The options of one command, with those of every command.
    pub(super) fn of_command<'a>(
        &'a self,
        words: &'a [String],
    ) -> impl Iterator<Item = &'a Setting> {
        self.settings.iter().filter(move |setting| {
            setting.command.is_empty() || setting.command.as_slice() == words
        })
    }

    /// The options that a key of a table sets: those of its command, and of the commands below it.
    pub(super) fn with_key<'a>(
        &'a self,
        table: &'a [String],
        key: &'a str,
    ) -> impl Iterator<Item = &'a Setting> {
        self.keys(table).filter(move |setting| setting.key == key)
    }

    /// The options that the keys of a table can set.
    pub(super) fn keys<'a>(&'a self, table: &'a [String]) -> impl Iterator<Item = &'a Setting> {
        self.settings
            .iter()
            .filter(move |setting| setting.command.is_empty() || setting.command.starts_with(table))
    }

    /// The commands directly below one.
    pub(super) fn children<'a>(&'a self, table: &'a [String]) -> impl Iterator<Item = &'a str> {
        self.commands.iter().filter_map(move |words| match words.split_last() {
            Some((last, parent)) if parent == table => Some(last.as_str()),
            _ => None,
        })
    }
}

/// Lets each switch that can be set take a value, so that `--allow-other=false` switches off what a file has
/// switched on.
pub(in crate::cli) fn with_values_of_switches(command: Command) -> Command {
    let command = command.mut_args(|argument| match argument.get_action() {
        ArgAction::SetTrue if can_be_set(&argument) => argument
            .action(ArgAction::Set)
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true"),
        _ => argument,
    });
    command.mut_subcommands(|child| match child.is_hide_set() {
        true => child,
        false => with_values_of_switches(child),
    })
}

fn can_be_set(argument: &Arg) -> bool {
    let takes_one =
        matches!(argument.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue);
    takes_one
        && !argument.is_hide_set()
        && argument.get_long().is_some_and(|name| !ONE_SHOT.contains(&name))
}

fn key(argument: &Arg) -> Option<&str> {
    let name = argument.get_long()?;
    Some(RENAMED.iter().find(|(flag, _)| *flag == name).map_or(name, |(_, key)| key))
}

fn is_switch(argument: &Arg) -> bool {
    let values = argument.get_possible_values();
    let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
    matches!(argument.get_action(), ArgAction::SetTrue) || names == ["true", "false"]
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::arguments::Arguments;

    fn catalogue() -> Catalogue {
        Catalogue::of(&Arguments::command())
    }

    /// The page with a row for each key. The table is between the two marks.
    const PAGE: &str = include_str!("../../../docs/configuration.md");
    const BEGIN: &str = "<!-- keys: a test compares this table with the command line -->\n";
    const END: &str = "<!-- end of keys -->";

    /// The table of the page, as the command line has it.
    fn table() -> String {
        let mut table = "| key | commands | default | meaning |\n|---|---|---|---|\n".to_owned();
        for KeyHelp { key, commands, defaults, meaning } in catalogue().key_help() {
            let commands: Vec<_> = commands.iter().map(|it| format!("`{it}`")).collect();
            let commands = match commands.len() {
                0 => "all".to_owned(),
                1..=5 => commands.join(", "),
                _ => "many".to_owned(),
            };
            let meaning = meaning.replace('|', "\\|");
            table += &format!("| `{key}` | {commands} | {} | {meaning} |\n", defaults.join(" or "));
        }
        table
    }

    #[test]
    fn the_page_has_each_key_with_its_commands_and_default() {
        let (_, rest) = PAGE.split_once(BEGIN).expect("the page has the table");
        let (written, _) = rest.split_once(END).expect("the table has an end");
        let expected = table();
        assert!(
            written == expected,
            "a new option belongs to ONE_SHOT, or into docs/configuration.md:\n{expected}"
        );
    }

    /// Options of clap, which print a text.
    const OF_CLAP: [&str; 3] = ["help", "help-all", "version"];

    #[test]
    fn every_option_of_every_command_is_a_key_or_for_one_run() {
        fn check(catalogue: &Catalogue, command: &Command, words: &mut Vec<String>) -> usize {
            let shown = command.get_arguments().filter(|it| !it.is_positional());
            let mut count = 0;
            for argument in shown.filter(|it| !it.is_hide_set()) {
                let Some(name) = argument.get_long() else {
                    // `kitfs ls -l`, as of ls(1).
                    assert_eq!((words.join(" ").as_str(), argument.get_short()), ("ls", Some('l')));
                    continue;
                };
                let is_key = catalogue
                    .settings()
                    .iter()
                    .any(|it| it.command == *words && it.id() == argument.get_id().as_str());
                let is_excepted = ONE_SHOT.contains(&name)
                    || OF_CLAP.contains(&name)
                    // `-v`, whose variable is `KITFS_LOG`, and `kitfs logs -f`.
                    || matches!(argument.get_action(), ArgAction::Count)
                    || ONE_SHOT_OF.contains(&(words.join(" ").as_str(), name));
                assert!(is_key != is_excepted, "{words:?} --{name}");
                count += 1;
            }
            for child in command.get_subcommands().filter(|it| !it.is_hide_set()) {
                words.push(child.get_name().to_owned());
                count += check(catalogue, child, words);
                words.pop();
            }
            count
        }
        let command = Arguments::command();
        let count = check(&Catalogue::of(&command), &command, &mut Vec::new());
        assert!(count > 250, "only {count} options were seen");
    }

    #[test]
    fn one_shot_options_exist() {
        fn names(command: &Command, found: &mut BTreeSet<String>) {
            let long = command.get_arguments().filter_map(|it| it.get_long());
            found.extend(long.map(str::to_owned));
            command.get_subcommands().for_each(|child| names(child, found));
        }
        let mut found = BTreeSet::new();
        names(&Arguments::command(), &mut found);
        for name in ONE_SHOT.iter().chain(RENAMED.iter().map(|(flag, _)| flag)) {
            assert!(found.contains(*name), "--{name}");
        }
        assert!(ONE_SHOT.is_sorted());
    }

    #[test]
    fn no_key_is_a_command_or_takes_the_variable_of_something_else() {
        let catalogue = catalogue();
        let commands: Vec<_> = catalogue.children(&[]).collect();
        for setting in catalogue.settings() {
            assert!(!commands.contains(&setting.key.as_str()), "{}", setting.key);
            for variable in setting.variables() {
                for taken in ["KITFS_CONFIG", "KITFS_LOG", "KITFS_RUNTIME_DIR", "KITFS_MOUNT"] {
                    assert_ne!(variable, taken);
                }
            }
        }
    }

    #[test]
    fn options_of_one_command_that_can_be_set_do_not_conflict() {
        fn walk(command: &Command) {
            for argument in command.get_arguments().filter(|argument| can_be_set(argument)) {
                for other in command.get_arg_conflicts_with(argument) {
                    assert!(!can_be_set(other), "{} and {}", argument.get_id(), other.get_id());
                }
            }
            command.get_subcommands().filter(|child| !child.is_hide_set()).for_each(walk);
        }
        walk(&Arguments::command());
    }

    #[test]
    fn clap_checks_values_and_its_reason_is_given() {
        let catalogue = catalogue();
        let check = |command: &str, key: &str, value: &str| {
            let words: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
            let setting = catalogue.of_command(&words).find(|it| it.key == key).expect(key);
            setting.check(OsStr::new(value))
        };
        assert_eq!(check("mount", "hydrate", "all"), Ok(()));
        assert_eq!(check("mount", "allow-other", "true"), Ok(()));
        assert!(check("mount", "hydrate", "some").unwrap_err().contains("all, begun, none"));
        assert!(check("mount", "allow-other", "maybe").unwrap_err().contains("true, false"));
        assert!(check("mount", "umask", "9").unwrap_err().contains("umask"));
        assert!(check("ls", "cache-size", "-5").unwrap_err().contains("size"));
        assert!(check("mount", "uid", "x").is_err());
    }

    #[test]
    fn every_switch_that_can_be_set_takes_a_value() {
        let command = with_values_of_switches(Arguments::command());
        let words = ["kitfs", "mount", "--allow-other=false", "--noexec", "r/e:v1", "/m"];
        let matches = command.try_get_matches_from(words).unwrap();
        let mount = matches.subcommand_matches("mount").unwrap();
        assert!(!mount.get_flag("allow_other") && mount.get_flag("noexec"));
        assert!(!mount.get_flag("nonempty"));
    }
}
