//! `kitfs completions [SHELL]`: prints or installs a shell's completion script.

mod install;

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use self::install::Place;
use super::arguments;
use super::error::CliError;
use super::output::print_line;
use super::settings::Settings;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kitfs completions --install
  kitfs completions bash > /etc/bash_completion.d/kitfs
  kitfs completions fish > ~/.config/fish/completions/kitfs.fish")]
pub(super) struct Arguments {
    /// The shell [default with --install: the user's shell, from SHELL].
    #[arg(value_enum, required_unless_present = "install")]
    shell: Option<Shell>,
    /// Write the script to the folder where the shell looks for the user's scripts.
    #[arg(long)]
    install: bool,
}

/// Prints or installs a completion script.
pub(super) fn run(settings: &Settings, arguments: &Arguments) -> Result<(), CliError> {
    let shell = match arguments.shell {
        Some(shell) => shell,
        None => settings.shell()?,
    };
    let mut script = Vec::new();
    let mut command = arguments::Arguments::command();
    clap_complete::generate(shell, &mut command, "kitfs", &mut script);
    if !arguments.install {
        let mut output = io::stdout().lock();
        output.write_all(&script)?;
        return Ok(output.flush()?);
    }
    let Place { file, next } = settings.completions_of(shell)?;
    install::write(&file, &script).map_err(|error| CliError::unwritten(&file, &error))?;
    print_line(format_args!("wrote {}", file.display()))?;
    print_line(next)
}
