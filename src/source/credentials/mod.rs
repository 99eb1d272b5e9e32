//! Credentials for registries: kit's own file first, then Docker's config with its helpers
//! (modelkit-spec 5.3).
//!
//! In each file the order is oras-go's and Docker's: the helper that `credHelpers` names for the host, then the
//! store that `credsStore` names, then the file's own `auths`. Public kits need no credential, so a failure of a
//! general store is no error by itself. If the registry then refuses, the message has the failure too. The failure
//! of a helper for this host is an error.
//!
//! Why not the crate docker_credential: it fails on an empty `credsStore`, waits for helpers without
//! end, and searches the ambient PATH.

mod carried;
mod docker_config;
mod helper;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use carried::{CarriedCredentials, CarriedStore, MOST_CARRIED};

use docker_config::DockerConfig;
use helper::Helper;

use super::SourceError;
use super::blob_folder::{off_the_runtime, read_small};
use super::registry_rules::RegistryRules;
use crate::process::limits::ChildLimits;

/// The largest credential file that is read. An entry has some 200 bytes, an OAuth token at most a few thousand.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// The time that a helper has. 10 s: a keyring may have to start, but no user would answer a prompt.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// The identity that kitfs shows to a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credential {
    /// No identity, because no file knows the host.
    #[default]
    Anonymous,
    /// A user and a password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// An identity token (OAuth2 refresh token), exchanged at the token endpoint.
    IdentityToken(String),
    /// A bearer token to send as it is (`registrytoken`).
    RegistryToken(String),
}

/// The result of reading the files for one host.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The credential.
    pub credential: Credential,
    /// The failure of a credential store or of a file, for a message; `None` without a failure.
    pub trouble: Option<String>,
    /// The paths of credential files, existing or not; empty before the first search.
    pub looked_in: Vec<PathBuf>,
    /// The place of the credential; `None` without a credential, and for a carried one.
    pub found_in: Option<FoundIn>,
    version: FilesVersion,
}

/// The place where a credential was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundIn {
    /// The file with the credential, or with the name of the helper that has it.
    pub file: PathBuf,
    /// The name of the credential helper.
    pub helper: Option<String>,
}

/// The version of the files that were read, to notice a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FilesVersion(Vec<Option<FileVersion>>, u64);

/// The properties of a file that change when it is written or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    /// The change time, in seconds and nanoseconds. Unlike the modification time, no program can set it.
    changed: (i64, i64),
}

/// Files in Docker's config format; the first that knows a host wins.
#[derive(Clone, Debug, Default)]
pub struct CredentialStore {
    /// Credentials that commands have carried here. They come before the files.
    carried: Option<Arc<CarriedStore>>,
    files: Vec<PathBuf>,
    /// Helpers and files for single registries. They come before the other files.
    rules: RegistryRules,
    helper_path: Option<OsString>,
    helper_timeout: Option<Duration>,
    helper_limits: ChildLimits,
    has_warned: Arc<AtomicBool>,
}

impl CredentialStore {
    /// A store over these files. Missing files are skipped.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files, ..Self::default() }
    }

    /// Adds rules. Their helpers and files come first.
    pub fn with_rules(mut self, rules: RegistryRules) -> Self {
        self.rules = rules;
        self
    }

    /// Adds credentials of [`CredentialStore::carry`]. They come first.
    pub fn with_carried(mut self, carried: Arc<CarriedStore>) -> Self {
        self.carried = Some(carried);
        self
    }

    /// Sets the folders of helpers (as in `PATH`) instead of those of the process.
    pub fn with_helper_path(mut self, helper_path: OsString) -> Self {
        self.helper_path = Some(helper_path);
        self
    }

    /// Starts helpers with these limits.
    pub fn with_helper_limits(mut self, helper_limits: ChildLimits) -> Self {
        self.helper_limits = helper_limits;
        self
    }

    /// The limits that helpers are started with.
    pub(super) fn helper_limits(&self) -> ChildLimits {
        self.helper_limits
    }

    /// Looks for the credential of `repository` at `registry` (`HOST[:PORT]`). Reads the files anew
    /// each time; a credential helper gets a time limit. Blocking work happens off the runtime.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a malformed file, or a helper of this host that fails.
    pub async fn find(&self, registry: &str, repository: &str) -> Result<Known, SourceError> {
        // Taken before the files are read, so that a change meanwhile is noticed later.
        let version = self.version().await?;
        let looked_in = self.files.clone();
        let mut known = Known { version, looked_in, ..Known::default() };
        if let Some(carried) = &self.carried {
            known.credential = carried.find(registry, repository)?;
            if known.credential != Credential::Anonymous {
                return Ok(known);
            }
        }
        let rule = self.rules.of(registry);
        if let Some(name) = &rule.credential_helper {
            let found = self.ask(name, registry).await;
            let what = format!("`credential-helper` of [registry.\"{registry}\"]");
            known.credential = found.map_err(|detail| configuration(&what, detail))?;
            if known.credential != Credential::Anonymous {
                return Ok(known);
            }
        }
        for path in rule.credentials_file.iter().chain(&self.files) {
            let is_of_rule = rule.credentials_file.as_ref() == Some(path);
            if is_of_rule && is_open_to_all(path) {
                let detail =
                    "every user can read its passwords: `chmod 600` protects it".to_owned();
                return Err(configuration(&path.display().to_string(), detail));
            }
            let (file, limit) = (path.clone(), FILE_LIMIT_BYTES);
            let json = match off_the_runtime(move || read_small(&file, limit)).await {
                Ok(None) if is_of_rule => {
                    let detail = format!("is not there; [registry.\"{registry}\"] names it");
                    return Err(configuration(&path.display().to_string(), detail));
                }
                Ok(None) => continue,
                Ok(Some(json)) => json,
                // The file is another user's, as with sudo. A public kit needs no credential.
                Err(SourceError::Io { path, error }) => {
                    known.trouble.get_or_insert(format!("{path} cannot be read: {error}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let config = DockerConfig::decode(&json)
                .map_err(|detail| configuration(&path.display().to_string(), detail))?;
            let asked = Asked { config: &config, path, registry, repository };
            let (credential, helper) = self.find_in(&asked, &mut known.trouble).await?;
            if credential != Credential::Anonymous {
                known.credential = credential;
                known.found_in = Some(FoundIn { file: path.clone(), helper });
                break;
            }
        }
        Ok(known)
    }

    /// The hosts that the files name, in order: those that the user has logged in to. Files that cannot be read
    /// name none.
    pub async fn hosts(&self) -> Vec<String> {
        let files = self.files.clone();
        let read = move || {
            let read = |path: &PathBuf| read_small(path, FILE_LIMIT_BYTES).ok().flatten();
            let configs = files.iter().filter_map(read);
            let configs = configs.filter_map(|json| DockerConfig::decode(&json).ok());
            let hosts: BTreeSet<_> = configs.flat_map(|config| config.hosts()).collect();
            Ok(hosts.into_iter().collect())
        };
        off_the_runtime(read).await.unwrap_or_default()
    }

    /// Whether the files have changed since `known` was read from them. Costs a few system calls.
    ///
    /// # Errors
    /// As for [`CredentialStore::find`].
    pub(super) async fn has_changed(&self, known: &Known) -> Result<bool, SourceError> {
        Ok(self.version().await? != known.version)
    }

    async fn version(&self) -> Result<FilesVersion, SourceError> {
        let files: Vec<_> = self.rules.credential_files().chain(&self.files).cloned().collect();
        let changes = self.carried.as_ref().map_or(0, |carried| carried.changes());
        off_the_runtime(move || {
            let version = |path: &PathBuf| {
                let metadata = path.metadata().ok()?;
                Some(FileVersion {
                    device: metadata.dev(),
                    inode: metadata.ino(),
                    size: metadata.size(),
                    changed: (metadata.ctime(), metadata.ctime_nsec()),
                })
            };
            Ok(FilesVersion(files.iter().map(version).collect(), changes))
        })
        .await
    }

    /// Looks up a credential in a file. Also returns the name of the helper that gave it.
    async fn find_in(
        &self,
        asked: &Asked<'_>,
        trouble: &mut Option<String>,
    ) -> Result<(Credential, Option<String>), SourceError> {
        let Asked { config, path, registry, repository } = *asked;
        let file = path.display().to_string();
        if let Some(name) = config.helper(registry, repository) {
            let found = self.ask(name, registry).await;
            let found = found.map_err(|detail| configuration(&file, detail))?;
            return Ok((found, Some(name.to_owned())));
        }
        if let Some(name) = config.store() {
            match self.ask(name, registry).await {
                Ok(Credential::Anonymous) => {}
                Ok(credential) => return Ok((credential, Some(name.to_owned()))),
                Err(detail) => {
                    tracing::warn!(%file, registry, %detail, "going on without the credential store");
                    let words = format!("the credential store of {file} cannot be asked: {detail}");
                    trouble.get_or_insert(words);
                }
            }
        }
        let credential =
            config.auth(registry, repository).map_err(|detail| configuration(&file, detail))?;
        if credential != Credential::Anonymous {
            self.warn_if_open_to_all(path);
        }
        Ok((credential, None))
    }

    async fn ask(&self, name: &str, registry: &str) -> Result<Credential, String> {
        let helper = Helper::find(name, self.helper_path.as_deref(), self.helper_limits)?;
        let timeout = self.helper_timeout.unwrap_or(HELPER_TIMEOUT);
        let server = docker_config::server_url(registry);
        let found = helper.get(server, timeout).await?;
        // A keyring compares texts, and most logins have the host in lower case.
        let lower = server.to_ascii_lowercase();
        match found == Credential::Anonymous && lower != server {
            true => helper.get(&lower, timeout).await,
            false => Ok(found),
        }
    }

    /// Warns once where other users of the machine can read a file with passwords.
    fn warn_if_open_to_all(&self, path: &Path) {
        if is_open_to_all(path) && !self.has_warned.swap(true, Ordering::Relaxed) {
            let file = path.display();
            tracing::warn!("every user can read the passwords in {file}: run `chmod 600 {file}`");
        }
    }
}

/// Whether other users of the machine can read a file.
pub fn is_open_to_all(file: &Path) -> bool {
    const READ_BY_OTHERS: u32 = 0o004;
    file.metadata().is_ok_and(|metadata| metadata.mode() & READ_BY_OTHERS != 0)
}

/// A file, and the host to look for.
struct Asked<'a> {
    config: &'a DockerConfig,
    path: &'a Path,
    registry: &'a str,
    repository: &'a str,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic { .. }",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
        })
    }
}

fn configuration(what: &str, detail: String) -> SourceError {
    SourceError::Configuration { what: what.to_owned(), detail }
}

#[cfg(test)]
mod tests;
