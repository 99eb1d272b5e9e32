//! `kitfs man [COMMAND]`: manual pages, generated from the command line's definition.

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
  kitfs man --all ~/.local/share/man/man1")]
pub(super) struct Arguments {
    /// Print the page of this command, such as `mount` or `cache verify` [default: kitfs].
    command: Vec<String>,
    /// Write the page of each command into this folder, as `kitfs-COMMAND.1`.
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
        let written =
            fs::create_dir_all(folder).and_then(|()| write_with_commands_below(command, folder));
        return match written {
            Ok(()) => print_line(format_args!("the manual pages are in {}", folder.display())),
            Err(error) => Err(CliError::unwritten(folder, &error)),
        };
    }
    let mut found = &command;
    for name in &arguments.command {
        found = found.find_subcommand(name).ok_or_else(|| {
            CliError::usage(format!("kitfs has no command `{}`", arguments.command.join(" ")))
        })?;
    }
    let text = page(found.clone())?;
    let mut output = io::stdout().lock();
    output.write_all(&text)?;
    Ok(output.flush()?)
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
