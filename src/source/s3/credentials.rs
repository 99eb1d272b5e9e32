//! The sources of the keys, the region and the endpoint, in the order of the AWS tools.
//!
//! ```text
//! keys:     environment --> profile's keys --> profile's credential_process --> none (unsigned)
//! region:   environment --> profile --> us-east-1
//! endpoint: environment --> profile --> AWS
//! ```
//!
//! The files are read again after a while, and at once after a refusal. So new keys count for a running mount.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::address::DEFAULT_REGION;
use super::keys::{Keys, Secret};
use super::profile::{self, Profile};
use crate::process::limits::ChildLimits;
use crate::process::running_time;
use crate::source::SourceError;
use crate::source::blob_folder::{off_the_runtime, read_small};

/// The largest file that is read; real ones have some kilobytes.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;
/// The time for which the content of the files counts. 60 s: temporary keys are replaced without a notice.
const KEEP: Duration = Duration::from_secs(60);
/// The time that a `credential_process` has. It may ask an identity provider.
const PROCESS_LIMIT: Duration = Duration::from_secs(30);
/// The most that is read of its output.
const OUTPUT_LIMIT_BYTES: u64 = 256 * 1024;

/// The settings of an S3 store, as environment and command line have them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// The URL of a store other than AWS.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// An access key.
    pub keys: Option<Keys>,
    /// The profile to take from the files; `default` where none is named.
    pub profile: Option<String>,
    /// The credentials file of the AWS tools.
    pub credentials_file: Option<PathBuf>,
    /// The config file of the AWS tools.
    pub config_file: Option<PathBuf>,
    /// Sign no request, even with keys.
    pub anonymous: bool,
}

/// The keys and the address of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// `None` for requests that are not signed.
    pub(super) keys: Option<Keys>,
    pub(super) region: String,
    pub(super) endpoint: Option<String>,
}

impl S3Config {
    /// The settings for a daemon of another user, which must not read the user's files. They have the present keys
    /// of these files and of the `credential_process`.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a profile that is not there or that leads to no keys.
    pub async fn carry(&self, child_limits: ChildLimits) -> Result<Self, SourceError> {
        let access = Credentials::new(self.clone(), child_limits).read().await?;
        Ok(Self {
            endpoint: access.endpoint,
            region: Some(access.region),
            keys: access.keys,
            anonymous: self.anonymous,
            ..Self::default()
        })
    }
}

/// The settings, and the keys and address that were found with them.
pub(super) struct Credentials {
    config: S3Config,
    /// The limits that a `credential_process` gets.
    child_limits: ChildLimits,
    known: Mutex<Option<(Instant, Arc<Access>)>>,
}

/// The output of a `credential_process`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireKeys {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

impl Credentials {
    pub(super) fn new(config: S3Config, child_limits: ChildLimits) -> Self {
        Self { config, child_limits, known: Mutex::new(None) }
    }

    /// The keys and the address of the next request.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a profile that is not there or that leads to no keys.
    pub(super) async fn access(&self) -> Result<Arc<Access>, SourceError> {
        if let Some((read, access)) = &*self.known.lock()
            && read.elapsed() < KEEP
        {
            return Ok(access.clone());
        }
        let access = Arc::new(self.read().await?);
        *self.known.lock() = Some((Instant::now(), access.clone()));
        Ok(access)
    }

    /// Has the next request read all files again.
    pub(super) fn forget(&self) {
        *self.known.lock() = None;
    }

    /// The endpoint of the environment, for the store's name, which must not wait.
    pub(super) fn config(&self) -> &S3Config {
        &self.config
    }

    async fn read(&self) -> Result<Access, SourceError> {
        let config = &self.config;
        let profile = self.profile().await?;
        let is_named = config.profile.is_some();
        let profile = match (profile, &config.profile) {
            (Some(profile), _) => profile,
            (None, Some(name)) if config.keys.is_none() && !config.anonymous => {
                return Err(self.wrong(&format!("has no profile `{}`", name.escape_debug())));
            }
            (None, _) => Profile::default(),
        };
        let keys = match &config.keys {
            _ if config.anonymous => None,
            Some(keys) => Some(keys.clone()),
            None => match (&profile.keys, &profile.process) {
                (Some(keys), _) => Some(keys.clone()),
                (None, Some(command)) => Some(self.keys_of_process(command).await?),
                (None, None) => match profile.other_setting {
                    Some(setting) => return Err(self.unknown_setting(setting)),
                    None if is_named => return Err(self.wrong("has no keys for the profile")),
                    None => None,
                },
            },
        };
        let region = config.region.clone().or(profile.region);
        Ok(Access {
            keys,
            region: region.unwrap_or_else(|| DEFAULT_REGION.to_owned()),
            endpoint: config.endpoint.clone().or(profile.endpoint),
        })
    }

    async fn profile(&self) -> Result<Option<Profile>, SourceError> {
        let files = [self.config.credentials_file.clone(), self.config.config_file.clone()];
        let name = self.config.profile.clone().unwrap_or_else(|| "default".to_owned());
        off_the_runtime(move || {
            let [credentials, config] = files.map(|file| text(file.as_deref()));
            Ok(profile::read(&credentials?, &config?, &name))
        })
        .await
    }

    /// The keys that a command prints. Its output is in no message, because it may be the secret.
    async fn keys_of_process(&self, command: &str) -> Result<Keys, SourceError> {
        let wrong = |why: &str| SourceError::Configuration {
            what: "the AWS profile's credential_process".to_owned(),
            detail: why.to_owned(),
        };
        let output =
            match running_time::timeout(PROCESS_LIMIT, run(command, self.child_limits)).await {
                Ok(Ok((true, output))) => output,
                Ok(Ok((false, _))) => return Err(wrong("failed: run it by hand to see why")),
                Ok(Err(error)) => return Err(wrong(&format!("cannot be run: {error}"))),
                Err(_) => return Err(wrong(&format!("did not end within {PROCESS_LIMIT:?}"))),
            };
        let keys: WireKeys = serde_json::from_slice(&output)
            .map_err(|_| wrong("printed something other than keys"))?;
        Ok(Keys {
            id: keys.access_key_id,
            secret: Secret::new(keys.secret_access_key),
            token: keys.session_token.map(Secret::new),
        })
    }

    fn wrong(&self, why: &str) -> SourceError {
        let files = [&self.config.credentials_file, &self.config.config_file];
        let files: Vec<_> =
            files.into_iter().flatten().map(|file| file.display().to_string()).collect();
        SourceError::Configuration {
            what: format!("the AWS settings ({})", files.join(", ")),
            detail: format!(
                "{why}: see AWS_PROFILE, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ),
        }
    }

    fn unknown_setting(&self, setting: &str) -> SourceError {
        self.wrong(&format!(
            "has the setting `{setting}`, which kitfs does not know; `credential_process = aws configure \
             export-credentials --profile NAME --format process` in another profile makes use of it"
        ))
    }
}

fn text(file: Option<&Path>) -> Result<String, SourceError> {
    let Some(file) = file else { return Ok(String::new()) };
    let bytes = read_small(file, FILE_LIMIT_BYTES)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a command to its end. Returns whether it succeeded, and its output. Dropping the future kills the command.
async fn run(command: &str, limits: ChildLimits) -> std::io::Result<(bool, Vec<u8>)> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    limits.give_back(shell.as_std_mut());
    let mut child = shell.kill_on_drop(true).spawn()?;
    let mut output = Vec::new();
    let printed = child.stdout.take().expect("stdout is piped");
    printed.take(OUTPUT_LIMIT_BYTES).read_to_end(&mut output).await?;
    Ok((child.wait().await?.success(), output))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new(credentials: &str, config: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("credentials"), credentials).unwrap();
            std::fs::write(folder.path().join("config"), config).unwrap();
            Self(folder)
        }

        fn config(&self) -> S3Config {
            S3Config {
                credentials_file: Some(self.0.path().join("credentials")),
                config_file: Some(self.0.path().join("config")),
                ..S3Config::default()
            }
        }
    }

    async fn access(config: S3Config) -> Result<Arc<Access>, SourceError> {
        Credentials::new(config, ChildLimits::default()).access().await
    }

    const DEFAULT: &str = "[default]\naws_access_key_id=F\naws_secret_access_key=S\n";

    #[tokio::test]
    async fn the_environment_goes_before_the_files() {
        let files = Files::new(DEFAULT, "[default]\nregion=file\nendpoint_url=http://file\n");
        let of_files = access(files.config()).await.unwrap();
        assert_eq!(of_files.keys, Some(Keys::new("F", "S", None)));
        assert_eq!(
            (of_files.region.as_str(), of_files.endpoint.as_deref()),
            ("file", Some("http://file"))
        );
        let environment = S3Config {
            keys: Some(Keys::new("E", "S", None)),
            region: Some("env".to_owned()),
            endpoint: Some("http://env".to_owned()),
            ..files.config()
        };
        let of_environment = access(environment.clone()).await.unwrap();
        assert_eq!(of_environment.keys, Some(Keys::new("E", "S", None)));
        assert_eq!(
            (of_environment.region.as_str(), of_environment.endpoint.as_deref()),
            ("env", Some("http://env"))
        );
        let anonymous = access(S3Config { anonymous: true, ..environment }).await.unwrap();
        assert_eq!(anonymous.keys, None);
    }

    #[tokio::test]
    async fn without_any_keys_requests_are_not_signed() {
        let access = access(S3Config::default()).await.unwrap();
        assert_eq!((&access.keys, access.region.as_str()), (&None, "us-east-1"));
    }

    #[tokio::test]
    async fn a_profile_that_leads_nowhere_is_an_error() {
        let files = Files::new(DEFAULT, "[profile sso]\nsso_session=x\n[profile bare]\nregion=r\n");
        for (profile, words) in
            [("nobody", "no profile `nobody`"), ("sso", "export-credentials"), ("bare", "no keys")]
        {
            let config = S3Config { profile: Some(profile.to_owned()), ..files.config() };
            let error = access(config).await.unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("AWS_PROFILE"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_credential_process_prints_keys() {
        let keys = r#"{\"Version\":1,\"AccessKeyId\":\"P\",\"SecretAccessKey\":\"S\",\"SessionToken\":\"T\"}"#;
        let config = format!(
            "[profile p]\ncredential_process = printf '%s' \"{keys}\"\n[profile q]\ncredential_process = echo secret; exit 1\n"
        );
        let files = Files::new("", &config);
        let of = |profile: &str| S3Config { profile: Some(profile.to_owned()), ..files.config() };
        assert_eq!(access(of("p")).await.unwrap().keys, Some(Keys::new("P", "S", Some("T"))));
        let error = access(of("q")).await.unwrap_err().to_string();
        assert!(error.contains("failed") && !error.contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn new_keys_count_after_a_refusal() {
        let files = Files::new(DEFAULT, "");
        let credentials = Credentials::new(files.config(), ChildLimits::default());
        assert_eq!(credentials.access().await.unwrap().keys, Some(Keys::new("F", "S", None)));
        let renewed = DEFAULT.replace("=F", "=G");
        std::fs::write(files.0.path().join("credentials"), renewed).unwrap();
        assert_eq!(credentials.access().await.unwrap().keys, Some(Keys::new("F", "S", None)));
        credentials.forget();
        assert_eq!(credentials.access().await.unwrap().keys, Some(Keys::new("G", "S", None)));
    }
}
