//! `kitfs man [PAGE]`: manual pages, generated from the command line's definition.
//!
//! | section | pages | from |
//! |---|---|---|
//! | 1 | `kitfs`, and one for each command | clap's definition |
//! | 5 | `kitfs-config.toml` ([`config_file`]) | the catalogue of keys |
//! | 8 | `mount.fuse.kitfs` ([`mount_words`]) | the words of `-o` |

mod config_file;
mod mount_words;
mod roff_page;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::arguments;
use super::error::CliError;
use super::exit_codes;
use super::output::print_line;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kitfs man mount | man -l -
  kitfs man cache verify | man -l -
  kitfs man kitfs-config.toml | man -l -
  kitfs man --all ~/.local/share/man")]
pub(super) struct Arguments {
    /// Print the page of this command, such as `mount` or `cache verify`; `mount.fuse.kitfs` and
    /// `kitfs-config.toml` are pages too [default: kitfs].
    command: Vec<String>,
    /// Write all pages into the folders man1, man5 and man8 of this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    all: Option<PathBuf>,
}

/// Prints a manual page in roff, or writes all of them.
pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    // `help` prints the help of other commands, so it has no page.
    let mut command = arguments::Arguments::command().disable_help_subcommand(true);
    // Names each command below as `kitfs-COMMAND`.
    command.build();
    if let Some(folder) = &arguments.all {
        let written = write_all(command, folder);
        return match written {
            Ok(()) => print_line(format_args!("the manual pages are in {}", folder.display())),
            Err(error) => Err(CliError::unwritten(folder, &error)),
        };
    }
    if let [name] = &*arguments.command
        && let Some(page) = Page::ALL.iter().find(|page| page.name() == name)
    {
        return print(page.render(&command).as_bytes());
    }
    let mut found = &command;
    for name in &arguments.command {
        found = found.find_subcommand(name).ok_or_else(|| {
            CliError::usage(format!("kitfs has no command `{}`", arguments.command.join(" ")))
        })?;
    }
    print(&page(found.clone())?)
}

fn print(text: &[u8]) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    output.write_all(text)?;
    Ok(output.flush()?)
}

/// A page that is not about a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    ConfigFile,
    MountWords,
}

impl Page {
    const ALL: [Self; 2] = [Self::ConfigFile, Self::MountWords];

    fn name(self) -> &'static str {
        match self {
            Self::ConfigFile => config_file::NAME,
            Self::MountWords => mount_words::NAME,
        }
    }

    fn section(self) -> &'static str {
        match self {
            Self::ConfigFile => config_file::SECTION,
            Self::MountWords => mount_words::SECTION,
        }
    }

    fn render(self, command: &Command) -> String {
        match self {
            Self::ConfigFile => config_file::page(),
            Self::MountWords => mount_words::page(command),
        }
    }
}

/// Writes every page below a folder of manual pages, such as `/usr/share/man`.
fn write_all(command: Command, folder: &Path) -> io::Result<()> {
    for page in Page::ALL {
        let (name, section) = (page.name(), page.section());
        let of_section = folder.join(format!("man{section}"));
        fs::create_dir_all(&of_section)?;
        fs::write(of_section.join(format!("{name}.{section}")), page.render(&command))?;
    }
    let of_commands = folder.join("man1");
    fs::create_dir_all(&of_commands)?;
    write_with_commands_below(command, &of_commands)
}

/// The page of a command. That of kitfs itself has the exit codes of all commands.
fn page(command: Command) -> io::Result<Vec<u8>> {
    let is_of_all = command.get_display_name().unwrap_or(command.get_name()) == command.get_name();
    let mut text = Vec::new();
    let man = Man::new(command).source(concat!("kitfs ", env!("CARGO_PKG_VERSION")));
    man.manual("kitfs").render(&mut text)?;
    if is_of_all {
        text.extend_from_slice(exit_codes::section_of_manual().as_bytes());
    }
    Ok(text)
}

fn write_with_commands_below(command: Command, folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_with_commands_below(below.clone(), folder)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    fs::write(folder.join(format!("{name}.1")), page(command)?)
}
