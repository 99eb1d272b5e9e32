//! Credential helpers: programs named `docker-credential-NAME` that look into a keyring
//! (docker/docker-credential-helpers). `get` reads a server from its input and prints JSON.
//!
//! A helper is a foreign program, so its time and its output are bounded. No message repeats the output, because it
//! may be the secret.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::Credential;
use crate::process::limits::ChildLimits;
use crate::process::running_time;

/// The most that is read of a helper's output; cloud tokens have some 12 KiB.
const OUTPUT_LIMIT_BYTES: u64 = 256 * 1024;

/// The most braces of an output that are tried as the start of the answer. Earlier braces belong to warnings.
const BRACES: usize = 16;

/// The output of a helper that does not know the server; its exit code is 1.
const NOT_FOUND: &str = "credentials not found";

/// The user's name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// A helper program.
pub(super) struct Helper {
    name: String,
    program: PathBuf,
    limits: ChildLimits,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireAnswer {
    #[serde(default)]
    username: String,
    secret: String,
}

impl Helper {
    /// The helper `docker-credential-NAME` in `search_path`, or where the process finds programs.
    pub(super) fn find(
        name: &str,
        search_path: Option<&OsStr>,
        limits: ChildLimits,
    ) -> Result<Self, String> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !name.bytes().all(is_word) {
            return Err(format!(
                "`{}` is not the name of a credential helper",
                name.escape_debug()
            ));
        }
        let name = format!("docker-credential-{name}");
        let program = match search_path {
            None => PathBuf::from(&name),
            Some(folders) => std::env::split_paths(folders)
                .map(|folder| folder.join(&name))
                .find(|program| program.is_absolute() && program.is_file())
                .ok_or_else(|| missing(&name))?,
        };
        Ok(Self { name, program, limits })
    }

    /// Asks for the credential of `server`.
    pub(super) async fn get(&self, server: &str, limit: Duration) -> Result<Credential, String> {
        let name = &self.name;
        match running_time::timeout(limit, self.run(server)).await {
            Ok(Ok((true, output))) => decode(&output)
                .ok_or_else(|| format!("{name} printed something other than a credential")),
            Ok(Ok((false, output))) if is_not_found(&output) => Ok(Credential::Anonymous),
            Ok(Ok((false, _))) => {
                Err(format!("{name} failed: `echo {server} | {name} get` shows why"))
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Err(missing(name)),
            Ok(Err(error)) => Err(format!("{name} cannot be run: {error}")),
            Err(_) => {
                Err(format!("{name} did not answer within {limit:?}: is the keyring locked?"))
            }
        }
    }

    /// Runs the helper to its end, and returns its success and its output. Dropping the future kills the helper.
    async fn run(&self, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
        let mut command = Command::new(&self.program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        self.limits.give_back(command.as_std_mut());
        let mut child = command.kill_on_drop(true).spawn()?;
        let mut input = child.stdin.take().expect("stdin is piped");
        // A helper that does not read its input may still answer.
        let _ = input.write_all(server.as_bytes()).await;
        drop(input);
        let mut output = Vec::new();
        let printed = child.stdout.take().expect("stdout is piped");
        printed.take(OUTPUT_LIMIT_BYTES).read_to_end(&mut output).await?;
        Ok((child.wait().await?.success(), output))
    }
}

/// A daemon has the `PATH` of the command that started it, which may be another user's shell.
fn missing(name: &str) -> String {
    format!(
        "{name} is not installed, or not on the PATH of kitfs: install it; a daemon that runs has the \
         PATH that it was started with until `kitfs daemon stop`"
    )
}

/// The credential in the output of a helper. Some print warnings before it.
fn decode(output: &[u8]) -> Option<Credential> {
    let answer_at = |start: usize| {
        let mut values = serde_json::Deserializer::from_slice(&output[start..]).into_iter();
        values.next()?.ok()
    };
    let braces = (0..output.len()).filter(|&at| output[at] == b'{').take(BRACES);
    Some(match braces.filter_map(answer_at).next()? {
        WireAnswer { secret, .. } if secret.is_empty() => Credential::Anonymous,
        WireAnswer { username, secret } if username == TOKEN_USER => {
            Credential::IdentityToken(secret)
        }
        WireAnswer { username, secret } => Credential::Basic { username, password: secret },
    })
}

fn is_not_found(output: &[u8]) -> bool {
    String::from_utf8_lossy(output).contains(NOT_FOUND)
}
