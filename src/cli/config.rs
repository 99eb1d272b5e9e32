//! Configuration files, and `kitfs config show|path|check`.
//!
//! Every option is a flag, a variable and a key: [`catalogue`] finds the options in clap's definition, [`mod@file`]
//! reads the files, and [`resolve`] decides which value counts.

mod catalogue;
mod file;
mod registries;
mod resolve;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, Subcommand};
use serde::Serialize;

use self::catalogue::{Kind, Setting};
use self::file::{ConfigFile, Problem, dotted};
use self::registries::SectionKey;
use self::resolve::{Origin, Value, leaf, with_defaults};
use super::environment::Environment;
use super::error::CliError;
use super::nearest::advice;
use super::output::{print_json, print_line, print_table, say, warn};
use crate::observe::without_user;
use crate::source::registry_rules::RegistryRule;

pub(super) use self::catalogue::{Catalogue, KeyHelp, with_values_of_switches};
pub(super) use self::registries::{KEYS as REGISTRY_KEYS, SectionKeyHelp};

/// The file of the machine.
const SYSTEM_FILE: &str = "/etc/kitfs/config.toml";
/// The file of a user, below `XDG_CONFIG_HOME`.
const USER_FILE: &str = "kitfs/config.toml";
/// The path that stands for no file.
const NO_FILE: &str = "/dev/null";
/// Variables that set no option. Those of `kitfs run` begin with the last one.
const OTHER_VARIABLES: [&str; 5] =
    ["KITFS_CONFIG", "KITFS_LISTEN_OPTIONS", "KITFS_LOG", "KITFS_RUNTIME_DIR", "KITFS_MOUNT"];

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every option is a flag (--cache-size 200GiB), a variable (KITFS_CACHE_SIZE) and a
key (cache-size = \"200GiB\"). A key at the top of a file counts for every command
that has the option; a key in a table, such as [mount] or [daemon.start], for one
command. Flags win over variables, variables over the file of the user
(~/.config/kitfs/config.toml), and that file over /etc/kitfs/config.toml. With
KITFS_CONFIG=FILE, kitfs reads FILE and no other file. A daemon keeps the values
of the command that started it. All keys: docs/configuration.md.

Examples:
  kitfs config show
  kitfs config show cache-size mount.hydrate
  KITFS_CONFIG=new.toml kitfs config check")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the value of each option, and where the value comes from.
    Show {
        /// Only these keys, such as cache-size, mount.hydrate, or mount for all of a command.
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
        /// Leave out options that have their default.
        #[arg(long)]
        changed: bool,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Print the paths of the files, the first wins.
    Path,
    /// Read the files, and name every wrong key and value.
    Check,
}

/// The values of the files and the variables.
pub(super) struct Config {
    catalogue: Catalogue,
    /// The paths of possible files. The first file that sets a key wins.
    places: Vec<PathBuf>,
    files: Vec<ConfigFile>,
    problems: Vec<Problem>,
    /// The variables of the process that can set options.
    variables: BTreeMap<String, OsString>,
    /// The options of every command that are on the command line, by key.
    flags: BTreeMap<String, Vec<OsString>>,
}

impl Config {
    /// Reads the files that the environment names.
    fn read(command: &Command, environment: &Environment) -> Self {
        let mut config = Self {
            catalogue: Catalogue::of(command),
            places: places(environment),
            files: Vec::new(),
            problems: Vec::new(),
            variables: environment.options.clone(),
            flags: BTreeMap::new(),
        };
        for path in &config.places {
            match file::read(path) {
                Ok(Some(text)) => {
                    let home = environment.home.as_deref();
                    let (file, problems) = file::parse(path, &text, home, &config.catalogue);
                    config.files.push(file);
                    config.problems.extend(problems);
                }
                Ok(None) if environment.config_file.is_some() => config.problems.push(Problem {
                    path: path.clone(),
                    line: None,
                    message: "is not there; KITFS_CONFIG names it".to_owned(),
                }),
                Ok(None) => {}
                Err(problem) => config.problems.push(problem),
            }
        }
        config
    }

    /// The sections of the files for single registries, as rules. The first of equal ones counts.
    pub(super) fn registries(&self) -> Vec<RegistryRule> {
        self.files.iter().flat_map(|file| &file.sections).map(|it| it.rule.clone()).collect()
    }

    /// Whether the command line itself has the option with this key.
    pub(super) fn is_flag(&self, key: &str) -> bool {
        self.flags.contains_key(key)
    }

    /// Fails where a file or a variable is wrong. Prints all problems but the first, and returns the first.
    /// The problems of all files, as they are told.
    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.iter().map(ToString::to_string).collect()
    }

    fn refuse(&self) -> Result<(), CliError> {
        let Some((first, others)) = self.problems.split_first() else { return Ok(()) };
        others.iter().for_each(say);
        Err(CliError::usage(first.to_string()))
    }
}

/// The paths of possible files. The first file that sets a key wins.
fn places(environment: &Environment) -> Vec<PathBuf> {
    match &environment.config_file {
        Some(path) if path.as_os_str() == NO_FILE => Vec::new(),
        Some(path) => vec![path.clone()],
        None => {
            let under_home = || environment.home.as_ref().map(|home| home.join(".config"));
            let configs = environment.xdg_config_home.clone().or_else(under_home);
            let user = configs.map(|folder| folder.join(USER_FILE));
            user.into_iter().chain([PathBuf::from(SYSTEM_FILE)]).collect()
        }
    }
}

/// Why a command line cannot be used.
pub(super) enum Refusal {
    /// clap prints an error of the arguments, or the help.
    Clap(clap::Error),
    /// A file or a variable is wrong.
    Config(CliError),
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error)
    }
}

/// Parses the arguments, with the values of variables and files as defaults.
pub(super) fn parse(
    command: Command,
    arguments: &[OsString],
    environment: &Environment,
) -> Result<(ArgMatches, Config), Refusal> {
    let matches = command.clone().try_get_matches_from(arguments)?;
    let mut config = Config::read(&super::arguments::Arguments::command(), environment);
    let (words, leaf) = leaf(&matches);
    config.flags = flags(&config.catalogue, leaf);
    let (is_config, is_needed) =
        (words.first().is_some_and(|it| it == "config"), is_needed(&words));
    match is_needed {
        _ if is_config => {}
        true => config.problems.iter().for_each(warn),
        false if is_internal(&command, &words) => config.files.clear(),
        false => config.refuse().map_err(Refusal::Config)?,
    }
    let defaults = match config.defaults(&command, &words, leaf) {
        Ok(defaults) => defaults,
        Err(_) if is_config => BTreeMap::new(),
        Err(message) if is_needed => {
            warn(message);
            BTreeMap::new()
        }
        Err(message) => return Err(Refusal::Config(CliError::usage(message))),
    };
    if defaults.is_empty() {
        return Ok((matches, config));
    }
    let matches = with_defaults(command, &words, &defaults).try_get_matches_from(arguments)?;
    Ok((matches, config))
}

/// Whether a user needs the command to get out of trouble. A wrong file is a warning for it.
fn is_needed(words: &[String]) -> bool {
    const NEEDED: [&str; 11] = [
        "umount",
        "daemon stop",
        "daemon status",
        "daemon restart",
        "daemon upgrade",
        "restart",
        "doctor",
        "logs",
        "bugreport",
        "man",
        "completions",
    ];
    NEEDED.contains(&words.join(" ").as_str())
}

/// Whether only kitfs itself runs the command. Its flags then have all values.
fn is_internal(command: &Command, words: &[String]) -> bool {
    let mut command = command;
    words.iter().any(|word| match command.find_subcommand(word) {
        Some(child) => {
            command = child;
            child.is_hide_set()
        }
        None => false,
    })
}

/// The options of every command that are on the command line, by key.
fn flags(catalogue: &Catalogue, leaf: &ArgMatches) -> BTreeMap<String, Vec<OsString>> {
    let global = catalogue
        .of_command(&[])
        .filter(|setting| leaf.value_source(setting.id()) == Some(ValueSource::CommandLine));
    let text = |setting: &Setting| {
        leaf.get_raw(setting.id()).into_iter().flatten().map(ToOwned::to_owned).collect()
    };
    global.map(|setting| (setting.key.clone(), text(setting))).collect()
}

pub(super) fn run(config: &Config, arguments: Arguments) -> Result<(), CliError> {
    match arguments.command {
        Action::Show { keys, changed, json } => show(config, &keys, changed, json),
        Action::Path => {
            for path in &config.places {
                let state = match config.files.iter().any(|file| file.path == *path) {
                    true => "",
                    false if config.problems.iter().any(|it| it.path == *path) => "  (not used)",
                    false => "  (not there)",
                };
                print_line(format_args!("{}{state}", path.display()))?;
            }
            Ok(())
        }
        Action::Check => {
            config.unknown_variables().iter().for_each(warn);
            config.rows()?;
            config.refuse()?;
            for file in &config.files {
                print_line(format_args!("{}: no problem", file.path.display()))?;
            }
            match config.files.is_empty() {
                true => print_line("there is no configuration file"),
                false => Ok(()),
            }
        }
    }
}

/// An option with its value, as `--json` prints it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Row {
    key: String,
    /// Without a value the option has no default, or its default depends on the machine.
    value: Option<serde_json::Value>,
    /// `flag`, `variable`, `file` or `default`.
    origin: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip)]
    shown: [String; 2],
}

impl Row {
    fn of_setting(key: String, setting: &Setting, value: Option<Value>) -> Self {
        let Value { values, origin } = value.unwrap_or_else(|| Value {
            values: setting.default().map(OsString::from).into_iter().collect(),
            origin: Origin::Default,
        });
        let values = values.iter().map(|value| value.to_string_lossy().into_owned()).collect();
        Self::new(key, values, setting.kind(), origin)
    }

    fn new(key: String, values: Vec<String>, kind: Kind, origin: Origin) -> Self {
        let values: Vec<_> = values.iter().map(|value| without_user(value)).collect();
        let text = match values.as_slice() {
            [] => "-".to_owned(),
            values => values.join(", "),
        };
        let shown = [text, origin.to_string()];
        let json = match kind {
            Kind::List => Some(values.into()),
            Kind::Switch => values.first().map(|value| (value == "true").into()),
            Kind::Text => values.into_iter().next().map(Into::into),
        };
        let (name, variable, file, line) = match origin {
            Origin::Flag => ("flag", None, None, None),
            Origin::Variable(name) => ("variable", Some(name), None, None),
            Origin::File { path, line } => ("file", None, Some(path), Some(line)),
            Origin::Default => ("default", None, None, None),
        };
        Self { key, value: json, origin: name, variable, file, line, shown }
    }
}

impl Config {
    /// A row for each option. An option of several commands has one row, and one more for each command with another
    /// value.
    fn rows(&self) -> Result<Vec<Row>, CliError> {
        let mut rows = Vec::new();
        let settings = self.catalogue.settings();
        for (index, setting) in settings.iter().enumerate() {
            let alike = || settings.iter().filter(|other| other.key == setting.key);
            if settings[..index].iter().any(|other| other.key == setting.key) {
                continue;
            }
            let is_shared = alike().count() > 1 || setting.command.is_empty();
            let at = |command: &[String]| self.value(setting, command).map_err(CliError::usage);
            let general = match self.flags.get(&setting.key) {
                Some(values) => Some(Value { values: values.clone(), origin: Origin::Flag }),
                None => at(&[])?,
            };
            if is_shared {
                rows.push(Row::of_setting(setting.key.clone(), setting, general.clone()));
            }
            let is_flag = matches!(general, Some(Value { origin: Origin::Flag, .. }));
            let mut commands: Vec<_> = alike().map(|it| it.command.clone()).collect();
            if setting.command.is_empty() {
                commands = self.tables_with(&setting.key);
            }
            for command in commands {
                let value = at(&command)?;
                if !is_shared || (!is_flag && value != general) {
                    rows.push(Row::of_setting(dotted(&command, &setting.key), setting, value));
                }
            }
        }
        for file in &self.files {
            for SectionKey { name, line, values, kind } in
                file.sections.iter().flat_map(|section| &section.keys)
            {
                let origin = Origin::File { path: file.path.clone(), line: *line };
                rows.push(Row::new(name.clone(), values.clone(), *kind, origin));
            }
        }
        Ok(rows)
    }

    /// A warning for each `KITFS_` variable that sets no option.
    fn unknown_variables(&self) -> Vec<String> {
        let names: Vec<_> = self.catalogue.settings().iter().flat_map(Setting::variables).collect();
        let is_known = |name: &String| {
            names.contains(name)
                || OTHER_VARIABLES.contains(&name.as_str())
                || name.starts_with("KITFS_MOUNT_")
        };
        let unknown = self.variables.keys().filter(|name| !is_known(name));
        let names = || names.iter().map(String::as_str).chain(OTHER_VARIABLES);
        unknown
            .map(|name| format!("kitfs has no variable `{name}`{}", advice(name, names())))
            .collect()
    }

    /// The tables of the files that have a key.
    fn tables_with(&self, key: &str) -> Vec<Vec<String>> {
        let items = self.files.iter().flat_map(|file| &file.items);
        let tables = items.filter(|item| item.key == key && !item.table.is_empty());
        let mut tables: Vec<_> = tables.map(|item| item.table.clone()).collect();
        tables.sort();
        tables.dedup();
        tables
    }
}

fn show(
    config: &Config,
    keys: &[String],
    only_changed: bool,
    is_json: bool,
) -> Result<(), CliError> {
    config.problems.iter().for_each(warn);
    let mut rows = config.rows()?;
    for key in keys {
        if !rows.iter().any(|row| is_named(&row.key, key)) {
            let names = rows.iter().map(|row| row.key.as_str());
            let message = format!("kitfs has no key `{key}`{}", advice(key, names));
            return Err(CliError::usage(message));
        }
    }
    rows.retain(|row| keys.is_empty() || keys.iter().any(|key| is_named(&row.key, key)));
    rows.retain(|row| !only_changed || row.origin != "default");
    if is_json {
        return print_json(&rows);
    }
    let rows = rows.into_iter().map(|row| {
        let [value, origin] = row.shown;
        vec![row.key, value, origin]
    });
    print_table(&["KEY", "VALUE", "FROM"], &[], rows)
}

/// Whether `asked` names a row: by its key, by its key in any table, or by its table.
fn is_named(key: &str, asked: &str) -> bool {
    let rest = key.strip_prefix(asked).map(|rest| rest.is_empty() || rest.starts_with('.'));
    rest == Some(true) || key.strip_suffix(asked).is_some_and(|table| table.ends_with('.'))
}
