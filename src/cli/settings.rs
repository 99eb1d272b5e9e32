//! Turns arguments and environment into the typed configuration of the other rooms.
//!
//! All paths become absolute, because the daemon has another working directory.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arguments::{CacheArguments, IdleArguments, KitArguments, NetworkArguments};
use super::durations::{Limit, show_limit};
use super::environment::Environment;
use super::error::CliError;
use super::listen;
use super::output::warn;
use super::sizes;
use super::supervisor::notify_alive;
use crate::control::api::{KitRequest, NetworkOptions};
use crate::daemon::{Backend, DaemonConfig, ListenConfig, SystemConfig, Watchdog};
use crate::oci::Digest;
use crate::source::registry_rules::RegistryRule;
use crate::source::s3::S3Config;

/// The permission bits that commands without `--umask` take away, as `kit unpack` does.
pub(super) const DEFAULT_UMASK: u32 = 0o022;

/// The cache of the system daemon (file-hierarchy(7)).
const SYSTEM_CACHE_FOLDER: &str = "/var/cache/kitfs";
/// The folder of the system daemon's socket.
const SYSTEM_RUNTIME_FOLDER: &str = "/run/kitfs";

/// The default of `--keep-free`: enough for the logs of the program that fills the disk.
const DEFAULT_KEEP_FREE_BYTES: u64 = 1 << 30;
/// The default of `--memory`: 64 requests of 8 MiB, which keep a fast network busy.
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;

/// Digits of a path's digest in a folder's name. 12: among a million paths, two have the same digits with a chance
/// of 1 in 500.
const OVERLAY_DIGITS: usize = 12;

/// The default of `--idle-exit` for a daemon that a mount starts. Long enough for the next run of a script, which
/// finds the connections and the cache open.
const ON_DEMAND_IDLE_EXIT: Duration = Duration::from_secs(600);

/// The settings that every command may need.
pub(super) struct Settings {
    cache: CacheArguments,
    environment: Environment,
    registries: Vec<RegistryRule>,
    problems: Vec<String>,
    is_about_one_cache: bool,
}

impl Settings {
    pub(super) fn new(cache: CacheArguments, environment: Environment) -> Self {
        Self {
            cache,
            environment,
            registries: Vec::new(),
            problems: Vec::new(),
            is_about_one_cache: false,
        }
    }

    /// Notes whether the command line itself names the cache folder ([`Self::is_about_one_cache`]).
    pub(super) fn with_cache_flag(self, is_flag: bool) -> Self {
        Self { is_about_one_cache: is_flag, ..self }
    }

    /// Whether the user asks about one cache folder, with the flag `--cache-dir`. A variable or a file names the usual
    /// folder, which says nothing about the question.
    pub(super) fn is_about_one_cache(&self) -> bool {
        self.is_about_one_cache
    }

    /// Adds the rules that files set for single registries.
    pub(super) fn with_registries(self, registries: Vec<RegistryRule>) -> Self {
        Self { registries, ..self }
    }

    /// Adds the problems of configuration files, for the commands that go on with them.
    pub(super) fn with_problems(self, problems: Vec<String>) -> Self {
        Self { problems, ..self }
    }

    /// The problems of configuration files.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The variables, for commands that look for the user's own files.
    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The watchdog of a supervisor, if this process has one.
    pub(super) fn watchdog(&self) -> Option<Watchdog> {
        let limit = self.environment.watchdog_limit?;
        Some(Watchdog { limit, ping: notify_alive })
    }

    /// Whether a cache folder was named, by flag, variable or file.
    pub(super) fn names_cache_folder(&self) -> bool {
        self.cache.cache_dir.is_some()
    }

    /// The configuration of the daemon, or of a command that uses the cache without a daemon.
    pub(super) fn daemon(&self) -> Result<DaemonConfig, CliError> {
        let environment = &self.environment;
        let under_home = || environment.home.as_ref().map(|home| home.join(".cache"));
        let folder = match &self.cache.cache_dir {
            Some(folder) => Some(absolute(folder)?),
            None => {
                let caches = environment.xdg_cache_home.clone().or_else(under_home);
                caches.map(|caches| caches.join("kitfs"))
            }
        };
        let Some(cache_folder) = folder else {
            let message = "there is no place for the cache: HOME is not set, and your user has no home \
                           folder. Name a folder with --cache-dir or KITFS_CACHE_DIR";
            return Err(CliError::usage(message));
        };
        self.daemon_at(cache_folder)
    }

    fn daemon_at(&self, cache_folder: PathBuf) -> Result<DaemonConfig, CliError> {
        Ok(DaemonConfig {
            cache_folder,
            cache_capacity_bytes: self.cache.cache_size,
            keep_free_bytes: self.cache.keep_free.unwrap_or(DEFAULT_KEEP_FREE_BYTES),
            memory_bytes: self.cache.memory.unwrap_or(DEFAULT_MEMORY_BYTES),
            system: None,
            idle_exit: None,
            listen: self.listen()?,
            otlp: self.environment.otlp.clone(),
            log_format: self.environment.log_format,
        })
    }

    /// The HTTP interface of the environment, without options for kits.
    pub(super) fn listen(&self) -> Result<Option<ListenConfig>, CliError> {
        let environment = &self.environment;
        let address = environment.listen.as_deref();
        address
            .map(|address| listen::of_environment(address, environment.listen_public))
            .transpose()
    }

    /// The options for kits over HTTP, from the command that has started this daemon.
    pub(super) fn passed_kit(&self) -> Result<Option<KitRequest>, CliError> {
        self.environment.listen_options.as_deref().map(listen::passed_kit).transpose()
    }

    /// The configuration of the system daemon, with `--cache-dir` or in its usual folder.
    pub(super) fn system_daemon(&self, group: Option<u32>) -> Result<DaemonConfig, CliError> {
        let runtime_folder = self.runtime_folder();
        let folder = self.names_cache_folder().then(|| self.daemon()).transpose()?;
        let cache = match folder {
            Some(config) => config.cache_folder,
            None => PathBuf::from(SYSTEM_CACHE_FOLDER),
        };
        let system = Some(SystemConfig { runtime_folder, group });
        Ok(DaemonConfig { cache_folder: cache.clone(), system, ..self.daemon_at(cache)? })
    }

    /// The folder of the system daemon that commands use; `None` where a cache folder was named.
    pub(super) fn system_folder(&self) -> Option<PathBuf> {
        (!self.names_cache_folder()).then(|| self.runtime_folder())
    }

    pub(super) fn runtime_folder(&self) -> PathBuf {
        let folder = self.environment.runtime_dir.clone();
        folder.unwrap_or_else(|| PathBuf::from(SYSTEM_RUNTIME_FOLDER))
    }

    /// The configuration of a daemon that a mount starts.
    pub(super) fn daemon_on_demand(&self, idle: &IdleArguments) -> Result<DaemonConfig, CliError> {
        let Limit(idle_exit) = idle.idle_exit.unwrap_or(Limit(Some(ON_DEMAND_IDLE_EXIT)));
        Ok(DaemonConfig { idle_exit, ..self.daemon()? })
    }

    /// Whether the locale has the characters of Unicode.
    pub(super) fn is_utf8(&self) -> bool {
        let locale = self.environment.locale.as_deref().unwrap_or_default().to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    }

    /// The folders in which programs are found.
    pub(super) fn program_folders(&self) -> Vec<PathBuf> {
        self.environment.program_folders.clone()
    }

    /// The names of the variables that are set and that kitfs may read.
    pub(super) fn names_of_variables(&self) -> &[String] {
        &self.environment.names
    }

    /// The values of variables that are secrets.
    pub(super) fn secret_values(&self) -> &[String] {
        &self.environment.secrets
    }

    /// The folder for mountpoints that the arguments do not name.
    pub(super) fn folder_for_mountpoints(&self) -> PathBuf {
        let folder = self.environment.xdg_runtime_dir.as_ref().filter(|folder| folder.is_dir());
        folder.unwrap_or(&self.environment.temporary_folder).clone()
    }

    /// The folder for changes of writable views without a named UPPER folder.
    pub(super) fn overlays_folder(&self) -> Result<PathBuf, CliError> {
        let environment = &self.environment;
        let under_home = || environment.home.as_ref().map(|home| home.join(".local/share"));
        let shares = environment.xdg_data_home.clone().or_else(under_home);
        let shares = shares.ok_or_else(|| {
            CliError::usage("there is no place for the changes: HOME is not set. Name a folder with --overlay=UPPER")
        })?;
        Ok(shares.join("kitfs/overlays"))
    }

    /// The folder with the changes of the view at a mountpoint: the next mount there finds them again.
    pub(super) fn overlay_folder(&self, mountpoint: &Path) -> Result<PathBuf, CliError> {
        Ok(self.overlays_folder()?.join(overlay_name(mountpoint)))
    }

    /// Warns when the running daemon has other limits than the arguments name. A daemon keeps its
    /// limits until it ends.
    pub(super) async fn warn_of_other_bounds(
        &self,
        backend: &Backend,
        idle: &IdleArguments,
    ) -> Result<(), CliError> {
        let cache_size = self.daemon()?.cache_capacity_bytes;
        let has_bound =
            cache_size.is_some() || self.cache.keep_free.is_some() || self.cache.memory.is_some();
        if !has_bound && idle.idle_exit.is_none() {
            return Ok(());
        }
        let status = backend.status().await?;
        let idle_exit = status.idle_exit_seconds.map(Duration::from_secs);
        if let Some(Limit(asked)) = idle.idle_exit.filter(|asked| asked.0 != idle_exit) {
            warn(format_args!(
                "--idle-exit {} has no effect: the running daemon keeps {} until `kitfs daemon stop`",
                show_limit(asked),
                show_limit(idle_exit)
            ));
        }
        for (option, asked, has) in [
            ("--cache-size", cache_size, status.cache_capacity_bytes),
            ("--keep-free", self.cache.keep_free, Some(status.cache_keep_free_bytes)),
            ("--memory", self.cache.memory, Some(status.fetch.memory_bytes)),
        ] {
            if let Some(asked) = asked.filter(|&asked| has != Some(asked)) {
                let has = has.map_or("no limit".to_owned(), sizes::show);
                warn(format_args!(
                    "{option} {} has no effect: the running daemon keeps {has} until `kitfs daemon stop`",
                    sizes::show(asked)
                ));
            }
        }
        Ok(())
    }

    /// `SOURCE_DATE_EPOCH`, as it is.
    pub(super) fn source_date_epoch(&self) -> Option<&str> {
        self.environment.source_date_epoch.as_deref()
    }

    /// A request for a whole kit, with default modes.
    pub(super) fn kit(
        &self,
        reference: String,
        kit: &KitArguments,
        network: &NetworkArguments,
    ) -> Result<KitRequest, CliError> {
        Ok(KitRequest {
            reference,
            labels: kit.choice.labels.clone(),
            filters: Vec::new(),
            allow_empty: false,
            no_remote: kit.no_remote,
            umask: DEFAULT_UMASK,
            network: self.network(network)?,
        })
    }

    /// How to reach registries.
    pub(super) fn network(&self, network: &NetworkArguments) -> Result<NetworkOptions, CliError> {
        let environment = &self.environment;
        let kitops_home = match &network.config {
            Some(folder) => Some(absolute(folder)?),
            None => {
                let under_home = || environment.home.as_ref().map(|home| home.join(".local/share"));
                let shares = environment.xdg_data_home.clone().or_else(under_home);
                shares.map(|shares| shares.join("kitops"))
            }
        };
        // The environment wins over the flags, as in kit (modelkit-spec 5.2).
        let certificate = environment.client_certificate.as_ref().or(network.cert.as_ref());
        let key = environment.client_key.as_ref().or(network.key.as_ref());
        let proxies = match &network.proxy {
            // The proxy of the flag serves every host, as in kit.
            Some(proxy) => (Some(proxy.clone()), Some(proxy.clone()), None),
            None => (
                environment.http_proxy.clone(),
                environment.https_proxy.clone(),
                environment.no_proxy.clone(),
            ),
        };
        let registries_dir = network.registries_dir.as_ref();
        if let Some(folder) = registries_dir.filter(|folder| !folder.is_dir()) {
            let message =
                format!("--registries-dir names {}, which is not a folder", folder.display());
            return Err(CliError::usage(message));
        }
        Ok(NetworkOptions {
            prefer_local: network.prefer_local,
            plain_http: network.plain_http,
            insecure_tls: !network.tls_verify,
            ca_files: network
                .ca_files
                .iter()
                .map(|file| absolute(file))
                .collect::<Result<_, _>>()?,
            client_certificate: certificate.map(|file| absolute(file)).transpose()?,
            client_key: key.map(|file| absolute(file)).transpose()?,
            http_proxy: proxies.0,
            https_proxy: proxies.1,
            no_proxy: proxies.2,
            registries_dir: registries_dir.map(|folder| absolute(folder)).transpose()?,
            credential_files: self.credential_files(kitops_home.as_deref())?,
            kitops_home,
            retries: network.retries,
            open_timeout_seconds: network.open_timeout,
            s3: self.s3()?,
            registries: self.registries.clone(),
            carried: None,
            user: None,
        })
    }

    /// The S3 store, found as the AWS tools find it.
    fn s3(&self) -> Result<S3Config, CliError> {
        let s3 = &self.environment.s3;
        let home = self.environment.home.as_ref().map(|home| home.join(".aws"));
        let file = |named: &Option<PathBuf>, name: &str| {
            let file = named.clone().or_else(|| Some(home.as_ref()?.join(name)));
            file.map(|file| absolute(&file)).transpose()
        };
        Ok(S3Config {
            credentials_file: file(&s3.credentials_file, "credentials")?,
            config_file: file(&s3.config_file, "config")?,
            ..s3.clone()
        })
    }

    /// The files with credentials: kit's first, then Docker's (modelkit-spec 5.3).
    ///
    /// `DOCKER_CONFIG` names a folder. In a pod it may also name the file of a Kubernetes secret, or
    /// the folder where such a secret is mounted.
    fn credential_files(&self, kitops_home: Option<&Path>) -> Result<Vec<PathBuf>, CliError> {
        let docker = match &self.environment.docker_config {
            Some(path) if path.is_file() => vec![absolute(path)?],
            Some(folder) => {
                let folder = absolute(folder)?;
                vec![folder.join("config.json"), folder.join(".dockerconfigjson")]
            }
            None => {
                let home = self.environment.home.iter();
                home.map(|home| home.join(".docker/config.json")).collect()
            }
        };
        let kit = kitops_home.map(|home| home.join("credentials.json"));
        Ok(kit.into_iter().chain(docker).collect())
    }
}

/// Makes a path absolute. Does not read the file system.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| {
        CliError::usage(format!("cannot tell where {} is: {error}", path.display()))
    })
}

/// Resolves a mountpoint to the path in the kernel's list of mounts: without symlinks, `.` and `..`.
///
/// The mountpoint itself may not answer (a mount whose daemon is gone) or be missing. Then the
/// function resolves its parent only.
pub(super) fn mountpoint(path: &Path) -> Result<PathBuf, CliError> {
    let path = absolute(path)?;
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        _ => Ok(path),
    }
}

/// A name for the folder of a path: its last part, for people, and digits of its digest.
pub(super) fn overlay_name(path: &Path) -> OsString {
    let digest = Digest::of(path.as_os_str().as_bytes()).to_string();
    let digits: String = digest.chars().skip("sha256:".len()).take(OVERLAY_DIGITS).collect();
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("-");
    name.push(digits);
    name
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        cache: CacheArguments,
        #[command(flatten)]
        network: NetworkArguments,
    }

    fn settings(line: &[&str], environment: Environment) -> (Settings, NetworkArguments) {
        let line = Line::parse_from(std::iter::once(&"kitfs").chain(line));
        (Settings::new(line.cache, environment), line.network)
    }

    fn home() -> Environment {
        Environment { home: Some("/home/a".into()), ..Environment::default() }
    }

    #[test]
    fn the_cache_folder_follows_flag_then_xdg_then_home() {
        let xdg = Environment { xdg_cache_home: Some("/xdg".into()), ..home() };
        let folder = |line: &[&str], environment| {
            settings(line, environment).0.daemon().map(|config| config.cache_folder)
        };
        assert_eq!(folder(&["--cache-dir", "/c"], xdg.clone()).unwrap(), Path::new("/c"));
        assert_eq!(folder(&[], xdg).unwrap(), Path::new("/xdg/kitfs"));
        assert_eq!(folder(&[], home()).unwrap(), Path::new("/home/a/.cache/kitfs"));
        assert!(folder(&[], Environment::default()).is_err());
        assert!(folder(&["--cache-dir", "c"], home()).unwrap().is_absolute());
    }

    #[test]
    fn kits_credentials_come_before_dockers() {
        let files = |environment| {
            let (settings, network) = settings(&[], environment);
            settings.network(&network).unwrap().credential_files
        };
        let kit = PathBuf::from("/home/a/.local/share/kitops/credentials.json");
        assert_eq!(files(home()), [kit.clone(), "/home/a/.docker/config.json".into()]);
        let docker = |path: &Path| Environment { docker_config: Some(path.to_owned()), ..home() };
        let folder = ["/d/config.json", "/d/.dockerconfigjson"].map(PathBuf::from);
        assert_eq!(files(docker(Path::new("/d"))), [&[kit.clone()][..], &folder].concat());
        let secret = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(files(docker(secret.path())), [kit, secret.path().to_owned()]);
    }

    #[test]
    fn the_locale_says_whether_there_are_characters_beyond_ascii() {
        for (locale, expected) in [
            (Some("en_GB.UTF-8"), true),
            (Some("C.utf8"), true),
            (Some("de_DE.ISO-8859-1"), false),
            (Some("POSIX"), false),
            (None, false),
        ] {
            let environment = Environment { locale: locale.map(str::to_owned), ..home() };
            assert_eq!(settings(&[], environment).0.is_utf8(), expected, "{locale:?}");
        }
    }

    #[test]
    fn a_proxy_flag_is_for_every_host_and_the_environments_certificate_wins() {
        let environment = Environment {
            http_proxy: Some("http://e".into()),
            no_proxy: Some("*".into()),
            client_certificate: Some("/e.pem".into()),
            ..home()
        };
        let line =
            ["--proxy", "http://p", "--cert", "/f.pem", "--key", "/k.pem", "--tls-verify=false"];
        let (named, network) = settings(&line, environment.clone());
        let options = named.network(&network).unwrap();
        assert_eq!(options.http_proxy.as_deref(), Some("http://p"));
        assert_eq!(options.https_proxy.as_deref(), Some("http://p"));
        assert_eq!(options.no_proxy, None);
        assert_eq!(options.client_certificate, Some("/e.pem".into()));
        assert_eq!(options.client_key, Some("/k.pem".into()));
        assert!(options.insecure_tls);
        let (unnamed, network) = settings(&[], environment);
        assert_eq!(unnamed.network(&network).unwrap().no_proxy.as_deref(), Some("*"));
    }

    #[test]
    fn a_mountpoint_gets_the_path_of_the_kernels_list() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("there")).unwrap();
        std::os::unix::fs::symlink(real.join("there"), real.join("link")).unwrap();
        assert_eq!(mountpoint(&folder.path().join("link/")).unwrap(), real.join("there"));
        let missing = folder.path().join("link/../missing");
        assert_eq!(mountpoint(&missing).unwrap(), real.join("missing"));
    }
}
