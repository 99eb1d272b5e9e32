//! `kitfs completions SHELL` and `kitfs man [COMMAND]`, generated from the command line's definition.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use super::arguments;
use super::error::CliError;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kitfs completions bash > /etc/bash_completion.d/kitfs
  kitfs completions fish > ~/.config/fish/completions/kitfs.fish")]
pub(super) struct CompletionsArguments {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kitfs man | man -l -
  kitfs man mount > /usr/local/share/man/man1/kitfs-mount.1")]
pub(super) struct ManArguments {
    /// Print the page of this command [default: kitfs].
    command: Option<String>,
}

/// Prints a completion script.
pub(super) fn completions(arguments: &CompletionsArguments) -> Result<(), CliError> {
    let mut script = Vec::new();
    let mut command = arguments::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "kitfs", &mut script);
    print(&script)
}

/// Prints a manual page in roff.
pub(super) fn man(arguments: &ManArguments) -> Result<(), CliError> {
    let mut command = arguments::Arguments::command();
    command.build();
    let command = match &arguments.command {
        None => command,
        Some(name) => {
            let found = command.get_subcommands().find(|command| command.get_name() == name);
            let Some(found) = found else {
                return Err(CliError::usage(format!("kitfs has no command `{name}`")));
            };
            // `build` has named it `kitfs-COMMAND`.
            found.clone()
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print(&page)
}

fn print(text: &[u8]) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    output.write_all(text)?;
    Ok(output.flush()?)
}
