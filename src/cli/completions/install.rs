//! The places where shells look for a user's completion scripts.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap_complete::Shell;

use crate::cli::environment::Environment;
use crate::cli::error::CliError;
use crate::cli::settings::Settings;

/// The place of a completion script.
pub(super) struct Place {
    pub file: PathBuf,
    /// The next step of the user, so that the shell reads the file.
    pub next: String,
}

/// The file of the package bash-completion that reads the scripts in the user's folder.
const BASH_COMPLETION: &str = "/usr/share/bash-completion/bash_completion";

impl Settings {
    /// The user's shell.
    pub(super) fn shell(&self) -> Result<Shell, CliError> {
        let path = self.environment().shell.as_deref();
        path.and_then(Shell::from_shell_path).ok_or_else(|| {
            let found = match path {
                Some(path) => {
                    format!("SHELL names {}, which is none that kitfs knows", path.display())
                }
                None => "SHELL is not set".to_owned(),
            };
            CliError::usage(format!(
                "{found}: name the shell, as in `kitfs completions --install bash`"
            ))
        })
    }

    /// The place of the user's script for `shell`.
    pub(super) fn completions_of(&self, shell: Shell) -> Result<Place, CliError> {
        place(self.environment(), shell, &|file| std::fs::read_to_string(file).unwrap_or_default())
    }
}

/// The place of the script. `read` gives the text of a file, or nothing.
fn place(
    environment: &Environment,
    shell: Shell,
    read: &dyn Fn(&Path) -> String,
) -> Result<Place, CliError> {
    let home = environment.home.as_ref().ok_or_else(|| {
        CliError::usage(format!(
            "HOME is not set, so there is no folder for the script: `kitfs completions {shell} > FILE` prints it"
        ))
    })?;
    let shares = environment.xdg_data_home.clone().unwrap_or_else(|| home.join(".local/share"));
    let configs = environment.xdg_config_home.clone().unwrap_or_else(|| home.join(".config"));
    let in_new_shells = "new shells complete kitfs";
    match shell {
        Shell::Bash => {
            let folder = environment.bash_completion_folder.clone();
            let folder = folder.unwrap_or_else(|| shares.join("bash-completion"));
            let file = folder.join("completions/kitfs");
            let next = match read(Path::new(BASH_COMPLETION)).is_empty() {
                false => in_new_shells.to_owned(),
                true => format!(
                    "install the package bash-completion, or add this line to ~/.bashrc: . '{}'",
                    file.display()
                ),
            };
            Ok(Place { file, next })
        }
        Shell::Zsh => {
            let folder = shares.join("zsh/site-functions");
            let rc = environment.zsh_folder.as_ref().unwrap_or(home).join(".zshrc");
            let next = match read(&rc).contains(".local/share/zsh/site-functions")
                || read(&rc).contains(&*folder.to_string_lossy())
            {
                true => in_new_shells.to_owned(),
                false => format!(
                    "add these lines to {}:\n  fpath=('{}' $fpath)\n  autoload -Uz compinit && compinit",
                    rc.display(),
                    folder.display()
                ),
            };
            Ok(Place { file: folder.join("_kitfs"), next })
        }
        Shell::Fish => {
            let file = configs.join("fish/completions/kitfs.fish");
            Ok(Place { file, next: in_new_shells.to_owned() })
        }
        Shell::Elvish => {
            let rc = configs.join("elvish/rc.elv");
            let next = match read(&rc).lines().any(|line| line.trim() == "use kitfs") {
                true => in_new_shells.to_owned(),
                false => format!("add this line to {}: use kitfs", rc.display()),
            };
            Ok(Place { file: configs.join("elvish/lib/kitfs.elv"), next })
        }
        // PowerShell has no such folder.
        _ => Err(CliError::usage(format!(
            "{shell} has no folder for completion scripts: write `kitfs completions {shell}` to a file, and run that \
             file in your profile"
        ))),
    }
}

/// Writes the script. A shell that starts meanwhile finds the old script or the new one.
pub(super) fn write(file: &Path, script: &[u8]) -> io::Result<()> {
    let folder = file.parent().expect("each place lies in a folder");
    std::fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".kitfs.{}", std::process::id()));
    let written = std::fs::File::create(&temporary)
        .and_then(|mut new| new.write_all(script).and_then(|()| new.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    fn home() -> Environment {
        Environment { home: Some("/home/a".into()), ..Environment::default() }
    }

    fn place_of(environment: &Environment, shell: Shell, text: &str) -> Place {
        let Ok(place) = place(environment, shell, &|_| text.to_owned()) else {
            panic!("{shell} has a place")
        };
        place
    }

    #[test]
    fn each_shell_finds_the_script_below_the_users_folders() {
        let file = |environment: &Environment, shell| place_of(environment, shell, "").file;
        let with_folders = Environment {
            xdg_data_home: Some("/data".into()),
            xdg_config_home: Some("/config".into()),
            ..home()
        };
        for (shell, default, named) in [
            (
                Shell::Bash,
                "/home/a/.local/share/bash-completion/completions/kitfs",
                "/data/bash-completion/completions/kitfs",
            ),
            (
                Shell::Zsh,
                "/home/a/.local/share/zsh/site-functions/_kitfs",
                "/data/zsh/site-functions/_kitfs",
            ),
            (
                Shell::Fish,
                "/home/a/.config/fish/completions/kitfs.fish",
                "/config/fish/completions/kitfs.fish",
            ),
            (Shell::Elvish, "/home/a/.config/elvish/lib/kitfs.elv", "/config/elvish/lib/kitfs.elv"),
        ] {
            assert_eq!(file(&home(), shell), Path::new(default));
            assert_eq!(file(&with_folders, shell), Path::new(named));
        }
        let bash = Environment { bash_completion_folder: Some("/b".into()), ..with_folders };
        assert_eq!(file(&bash, Shell::Bash), Path::new("/b/completions/kitfs"));
    }

    /// Advice that the user has followed is not printed again.
    #[test]
    fn advice_is_given_until_it_was_followed() {
        for shell in [Shell::Zsh, Shell::Elvish] {
            let advice = place_of(&home(), shell, "").next;
            assert!(advice.contains("add "), "{shell}: {advice}");
            let (_, lines) = advice.split_once(": ").or(advice.split_once(":\n")).unwrap();
            assert_eq!(place_of(&home(), shell, lines).next, "new shells complete kitfs");
        }
        assert!(place_of(&home(), Shell::Bash, "").next.contains("bash-completion"));
        assert_eq!(place_of(&home(), Shell::Bash, "the package").next, "new shells complete kitfs");
    }

    #[test]
    fn a_user_without_a_home_or_a_place_is_told_what_to_do() {
        for shell in Shell::value_variants() {
            let error = place(&Environment::default(), *shell, &|_| String::new());
            assert!(error.is_err(), "{shell}");
        }
        assert!(place(&home(), Shell::PowerShell, &|_| String::new()).is_err());
    }
}
