//! Reads the environment, once. No other module of the crate reads it.
//!
//! clap could read the variables of options, but then the usage line of an error shows each flag that a
//! variable sets. So `config` gives their values to clap.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, getpid, getppid};
use url::Url;

use crate::daemon::KIT_OPTIONS_VARIABLE;
use crate::observe::{self, is_secret_name};
use crate::source::s3::{Keys, S3Config};

/// A variable of kit that sets an option of kitfs: kit's home.
const OF_KIT: &str = "KITOPS_HOME";

/// The variables that kitfs knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    /// `HOME`, else the folder that the password database names.
    pub home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`.
    pub xdg_cache_home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub xdg_data_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `TMPDIR`, else `/tmp`.
    pub temporary_folder: PathBuf,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `KITFS_CONFIG`: the only configuration file that is read.
    pub config_file: Option<PathBuf>,
    /// The variables that may set options, by name: `KITFS_*` and [`OF_KIT`]. An empty variable is left out.
    pub options: BTreeMap<String, OsString>,
    /// `PATH`: the folders in which programs are found.
    pub program_folders: Vec<PathBuf>,
    /// The names of the variables that kitfs may read and that are set.
    pub names: Vec<String>,
    /// The values of variables whose names are those of secrets.
    pub secrets: Vec<String>,
    /// `KITFS_RUNTIME_DIR`: the folder with the socket of the system daemon.
    pub runtime_dir: Option<PathBuf>,
    /// `KITFS_LISTEN`, in the form of `--listen`, which wins.
    pub listen: Option<String>,
    /// `KITFS_LISTEN_PUBLIC`, as a text for yes or no.
    pub listen_public: bool,
    /// The options for kits over HTTP, from the command that has started the daemon.
    pub listen_options: Option<String>,
    /// `SOURCE_DATE_EPOCH`: the time that packed kits carry, in seconds since 1970.
    pub source_date_epoch: Option<String>,
    /// `DOCKER_CONFIG`, a folder.
    pub docker_config: Option<PathBuf>,
    /// `KITOPS_CLIENT_CERT`; wins over `--cert`, as in kit.
    pub client_certificate: Option<PathBuf>,
    /// `KITOPS_CLIENT_KEY`; wins over `--key`, as in kit.
    pub client_key: Option<PathBuf>,
    /// `HTTP_PROXY` or `http_proxy`.
    pub http_proxy: Option<String>,
    /// `HTTPS_PROXY` or `https_proxy`.
    pub https_proxy: Option<String>,
    /// `NO_PROXY` or `no_proxy`.
    pub no_proxy: Option<String>,
    /// The S3 store of remote objects.
    pub s3: S3Config,
    /// The locale of characters: `LC_ALL`, `LC_CTYPE` or `LANG` (locale(7)).
    pub locale: Option<String>,
    /// `WATCHDOG_USEC`: the time without a sign of life after which systemd restarts this process, or the keeper that
    /// started it (`WATCHDOG_PID`).
    pub watchdog_limit: Option<Duration>,
    /// `SHELL`: the user's shell.
    pub shell: Option<PathBuf>,
    /// `BASH_COMPLETION_USER_DIR`: bash-completion's folder of the user.
    pub bash_completion_folder: Option<PathBuf>,
    /// `ZDOTDIR`: the folder with zsh's files of the user; `HOME` without it.
    pub zsh_folder: Option<PathBuf>,
    /// The format of the log (`--log-format`, `KITFS_LOG_FORMAT`).
    pub log_format: observe::LogFormat,
    /// The collector of traces (`--otlp`, `KITFS_OTLP`).
    pub otlp: Option<Url>,
    /// `KITFS_LOG`: a filter for the log, in the grammar of `tracing_subscriber::EnvFilter`.
    pub log: Option<String>,
}

/// Reads the variables for S3. kit's own variables win over those of the AWS tools.
fn s3() -> S3Config {
    let first = |names: &[&str]| names.iter().find_map(|name| text(name));
    let keys = |id, secret, token: Option<&str>| {
        Some(Keys::new(&text(id)?, &text(secret)?, token.and_then(text).as_deref()))
    };
    S3Config {
        endpoint: first(&["S3_API_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
        region: first(&["S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"]),
        keys: keys("S3_ACCESS_KEY_ID", "S3_SECRET_KEY", None).or_else(|| {
            keys("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", Some("AWS_SESSION_TOKEN"))
        }),
        profile: text("AWS_PROFILE"),
        credentials_file: path("AWS_SHARED_CREDENTIALS_FILE"),
        config_file: path("AWS_CONFIG_FILE"),
        anonymous: is_yes("AWS_SKIP_SIGNATURE"),
    }
}

/// Reads the variables of systemd's watchdog. The worker of a keeper pings in its place.
fn watchdog_limit() -> Option<Duration> {
    let watched = Pid::from_raw(text("WATCHDOG_PID")?.parse().ok()?)?;
    let is_ours = watched == getpid() || Some(watched) == getppid();
    let limit = text("WATCHDOG_USEC")?.parse().ok().map(Duration::from_micros);
    limit.filter(|limit| is_ours && !limit.is_zero())
}

impl Environment {
    /// Reads the process's environment. An empty variable counts as unset.
    pub(super) fn read() -> Self {
        let either = |upper, lower| text(upper).or_else(|| text(lower));
        Self {
            // Without HOME, as in a service of root, this is the folder of the password database.
            home: env::home_dir().filter(|home| home.is_absolute()),
            // The XDG specification has programs ignore relative paths.
            xdg_cache_home: path("XDG_CACHE_HOME").filter(|path| path.is_absolute()),
            xdg_data_home: path("XDG_DATA_HOME").filter(|path| path.is_absolute()),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR").filter(|path| path.is_absolute()),
            temporary_folder: env::temp_dir(),
            xdg_config_home: path("XDG_CONFIG_HOME").filter(|path| path.is_absolute()),
            config_file: path("KITFS_CONFIG"),
            options: options(),
            names: names(),
            secrets: secrets(),
            program_folders: path("PATH").iter().flat_map(env::split_paths).collect(),
            runtime_dir: path("KITFS_RUNTIME_DIR").filter(|path| path.is_absolute()),
            listen: text("KITFS_LISTEN"),
            listen_public: is_yes("KITFS_LISTEN_PUBLIC"),
            listen_options: text(KIT_OPTIONS_VARIABLE),
            source_date_epoch: text("SOURCE_DATE_EPOCH"),
            docker_config: path("DOCKER_CONFIG"),
            client_certificate: path("KITOPS_CLIENT_CERT"),
            client_key: path("KITOPS_CLIENT_KEY"),
            http_proxy: either("HTTP_PROXY", "http_proxy"),
            https_proxy: either("HTTPS_PROXY", "https_proxy"),
            no_proxy: either("NO_PROXY", "no_proxy"),
            s3: s3(),
            locale: text("LC_ALL").or_else(|| text("LC_CTYPE")).or_else(|| text("LANG")),
            watchdog_limit: watchdog_limit(),
            shell: path("SHELL"),
            bash_completion_folder: path("BASH_COMPLETION_USER_DIR"),
            zsh_folder: path("ZDOTDIR"),
            // The value comes with the command line, because this is an option.
            log_format: observe::LogFormat::default(),
            otlp: None,
            log: text("KITFS_LOG"),
        }
    }
}

fn is_yes(name: &str) -> bool {
    text(name).is_some_and(|value| matches!(value.to_lowercase().as_str(), "true" | "1" | "yes"))
}

fn options() -> BTreeMap<String, OsString> {
    let variables = env::vars_os();
    let variables = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let is_option = |name: &str| name.starts_with("KITFS_") || name == OF_KIT;
    variables.filter(|(name, value)| is_option(name) && !value.is_empty()).collect()
}

/// How the names of variables begin that kitfs or its libraries look at.
const KNOWN: [&str; 16] = [
    "KITFS_",
    "KITOPS_",
    "S3_",
    "AWS_",
    "XDG_",
    "DOCKER_CONFIG",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "HOME",
    "TMPDIR",
    "NO_COLOR",
    "CLICOLOR",
    "SSL_CERT_",
    "SOURCE_DATE_EPOCH",
    "RUST_",
];

fn names() -> Vec<String> {
    let is_known = |name: &String| KNOWN.iter().any(|known| name.to_uppercase().starts_with(known));
    let mut names: Vec<_> =
        env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(is_known).collect();
    names.sort();
    names
}

fn secrets() -> Vec<String> {
    let secret = env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        // A variable with the path of a secret file has no secret itself.
        (is_secret_name(&name) && !value.starts_with('/')).then_some(value)
    });
    secret.collect()
}

fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
