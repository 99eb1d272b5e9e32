//! The definition of the command line, for clap.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use url::Url;

use super::durations::{Limit, parse_limit, parse_seconds};
use super::help::{MORE_CACHE_OPTIONS, MORE_NETWORK_OPTIONS, MORE_OPTIONS};
use super::{
    browse, bugreport, cache, cat, completions, config, copy, cp, daemon, diff, doctor, explain,
    info, inspect, list, log, logs, ls, man, map, mount, overlay, pack, ps, push, run, serve,
    sizes, status, tag, top, trace, umount, warm,
};
use crate::observe;

/// Mount ModelKits from registries as read-only directories, and download what programs read.
#[derive(Debug, Parser)]
#[command(name = "kitfs", version, arg_required_else_help = true)]
#[command(after_help = "\
REF is a kit:
  HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]  in a registry
  oci:FOLDER[:TAG|@DIGEST]              in an OCI image layout folder
  localhost/REPOSITORY[:TAG|@DIGEST]    in the local storage of `kit`

Every option is also a variable, such as KITFS_CACHE_SIZE, and a key of
~/.config/kitfs/config.toml: see `kitfs config --help`.

Examples:
  kitfs mount ghcr.io/org/model:v1 /models
  kitfs ls -l oci:./kits/article:v1/src
  kitfs umount /models")]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Write more to the log; -vv writes still more.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Format of the log, of this command and of a daemon that it starts [default: text]
    /// [env: KITFS_LOG_FORMAT].
    #[arg(long, global = true, value_name = "FORMAT", value_enum, help_heading = MORE_OPTIONS)]
    pub log_format: Option<LogFormat>,
    /// Send traces of reads that wait to this collector of OpenTelemetry, such as http://127.0.0.1:4318, from
    /// a daemon that this command starts (docs/tracing.md) [env: KITFS_OTLP].
    #[arg(long, global = true, value_name = "URL", value_parser = parse_collector, help_heading = MORE_OPTIONS)]
    pub otlp: Option<Url>,
    /// Print help with every option.
    #[arg(long, global = true, action = ArgAction::Help)]
    help_all: Option<bool>,
    #[command(flatten)]
    pub cache: CacheArguments,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Mount a kit; kitfs downloads its bytes when programs read them.
    Mount(mount::Arguments),
    /// Mount all kits of registries; each has a path, and comes when a program looks there
    Browse(browse::Arguments),
    /// Mount kits for a command, run it, and end the mounts.
    Run(run::Arguments),
    /// End mounts.
    #[command(alias = "unmount")]
    Umount(umount::Arguments),
    /// List writable views and their changes, and take changes back.
    Overlay(overlay::Arguments),
    /// Show the mounts, and how much of each kit is in the cache.
    Status(status::Arguments),
    /// Watch the daemon: mounts, rates, hosts, slow readers.
    Top(top::Arguments),
    /// Show which parts of each file are in the cache.
    Map(map::Arguments),
    /// Show why bytes of a file were downloaded, and what made a read slow.
    Explain(explain::Arguments),
    /// List the processes that use mounts.
    Ps(ps::Arguments),
    /// Show everything known about a kit or a mount, as JSON.
    Inspect(inspect::Arguments),
    /// Replace the daemon's processes, as `kitfs daemon restart` does; its mounts go on.
    Restart(daemon::RestartArguments),
    /// Start, stop or show the daemon that serves the mounts.
    Daemon(daemon::Arguments),
    /// Check what kitfs needs on this machine and from a registry, and say what to do.
    Doctor(doctor::Arguments),
    /// Show the log of the daemon.
    Logs(logs::Arguments),
    /// Write a report for a bug: versions, checks, status and log, without secrets
    Bugreport(bugreport::Arguments),
    /// List the files of a kit without mounting it.
    Ls(ls::Arguments),
    /// Print files of a kit without mounting it.
    Cat(cat::Arguments),
    /// Copy files out of a kit without mounting it.
    Cp(cp::Arguments),
    /// Compare two versions of a kit: files, layers, Kitfiles.
    Diff(diff::Arguments),
    /// Send a kit on this machine to a registry.
    Push(push::Arguments),
    /// Copy a kit from one registry or folder to another.
    Copy(copy::Arguments),
    /// Give a kit another tag, where it is.
    Tag(tag::Arguments),
    /// Show a kit's Kitfile and layers.
    Info(info::Arguments),
    /// List the kits of a repository by tag.
    List(list::Arguments),
    /// Show the versions of a repository by date, and what changed between them.
    Log(log::Arguments),
    /// Download a kit, or some of its files, into the cache and verify it.
    Warm(warm::Arguments),
    /// Pack a folder into a kit, as `kit pack` does.
    Pack(pack::Arguments),
    /// Record which bytes programs read, to download them first next time.
    Trace(trace::Arguments),
    /// Show the cache, check it, or make room in it.
    Cache(cache::Arguments),
    /// Serve OCI layout folders as a small read-only registry.
    Serve(serve::Arguments),
    /// Show what configuration files and variables set, and check the files.
    Config(config::Arguments),
    /// Print or install a shell's completion script.
    Completions(completions::Arguments),
    /// Print the manual pages.
    Man(man::Arguments),
}

/// The place of the cache, and its limits.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cache options")]
pub(super) struct CacheArguments {
    /// Folder of the cache and of its daemon [default: ~/.cache/kitfs] [env: KITFS_CACHE_DIR].
    #[arg(long, global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Limit of the cache, such as 200GiB [default: what the disk has] [env: KITFS_CACHE_SIZE].
    #[arg(long, global = true, value_name = "SIZE", value_parser = sizes::parse)]
    pub cache_size: Option<u64>,
    /// Free space to leave on the cache's disk [default: 1GiB].
    #[arg(long, global = true, value_name = "SIZE", value_parser = sizes::parse)]
    #[arg(help_heading = MORE_CACHE_OPTIONS)]
    pub keep_free: Option<u64>,
    /// Limit of the memory for bytes on their way to the cache, at least 32MiB [default: 512MiB].
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_memory)]
    #[arg(help_heading = MORE_CACHE_OPTIONS)]
    pub memory: Option<u64>,
}

/// Which kit of an index to take.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct LabelArguments {
    /// Take the kit with this label from an index; `kitfs info REF` lists the labels.
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
}

/// Which kit to take, and how much of it.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct KitArguments {
    #[command(flatten)]
    pub choice: LabelArguments,
    /// Leave out data sets in other kits and in S3 stores (`remotePath` in the Kitfile).
    #[arg(long, help_heading = MORE_OPTIONS)]
    pub no_remote: bool,
}

/// When a daemon ends by itself.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct IdleArguments {
    /// End the daemon after this time without mounts and commands: seconds, a time such as 10m, or
    /// never. It counts for a daemon that this command starts [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = parse_limit, help_heading = MORE_OPTIONS)]
    pub idle_exit: Option<Limit>,
}

/// When a mount ends by itself.
#[derive(Clone, Debug, Args)]
pub(super) struct LifeArguments {
    /// Stay until Ctrl-C or the end of the mount.
    #[arg(long)]
    pub foreground: bool,
    /// End the mount when the process with this number ends.
    #[arg(long, value_name = "PID", conflicts_with = "foreground")]
    pub while_pid: Option<u32>,
}

/// How files and directories are mounted.
#[derive(Clone, Debug, Args)]
pub(super) struct TreeArguments {
    /// Permission bits to take away from files and directories, in octal.
    #[arg(long, value_name = "OCTAL", default_value = "022", value_parser = parse_umask)]
    #[arg(help_heading = MORE_OPTIONS)]
    pub umask: u32,
    /// Mount over a directory that is not empty.
    #[arg(long, help_heading = MORE_OPTIONS)]
    pub nonempty: bool,
    /// Let nobody run programs from the mount.
    #[arg(long, help_heading = MORE_OPTIONS)]
    pub noexec: bool,
}

/// How to reach registries; `kit` has the same flags.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Network options")]
pub(super) struct NetworkArguments {
    /// Take a kit that `kit pull` has put on this machine, and do not ask the registry. Without it
    /// kitfs does so only when the registry does not answer.
    #[arg(long, help_heading = MORE_NETWORK_OPTIONS)]
    pub prefer_local: bool,
    /// Use http instead of https.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true", hide_default_value = true,
        hide_possible_values = true, action = ArgAction::Set)]
    pub plain_http: bool,
    /// Check certificates; --tls-verify=false accepts any.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = true, default_missing_value = "true", hide_possible_values = true,
        action = ArgAction::Set)]
    pub tls_verify: bool,
    /// PEM file with a certificate authority; may be repeated.
    #[arg(long = "ca-file", value_name = "FILE")]
    pub ca_files: Vec<PathBuf>,
    /// PEM file with a client certificate [env: KITOPS_CLIENT_CERT].
    #[arg(long, value_name = "FILE", help_heading = MORE_NETWORK_OPTIONS)]
    pub cert: Option<PathBuf>,
    /// PEM file with the client certificate's key [env: KITOPS_CLIENT_KEY].
    #[arg(long, value_name = "FILE", help_heading = MORE_NETWORK_OPTIONS)]
    pub key: Option<PathBuf>,
    /// Proxy for every registry [env: HTTP_PROXY, HTTPS_PROXY and NO_PROXY].
    #[arg(long, value_name = "URL", help_heading = MORE_NETWORK_OPTIONS)]
    pub proxy: Option<String>,
    /// How many times kitfs repeats a request after a failure that may pass [default: 5].
    #[arg(long, value_name = "COUNT", help_heading = MORE_NETWORK_OPTIONS)]
    pub retries: Option<usize>,
    /// How long opening a kit and `kitfs warm` wait for a registry that accepts the connection
    /// and then sends nothing, such as a cache that downloads first: seconds, or a time such as
    /// 10m [default: 5m].
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    #[arg(help_heading = MORE_NETWORK_OPTIONS)]
    pub open_timeout: Option<u64>,
    /// Folder with HOST/hosts.toml files that name mirrors, as containerd reads them.
    #[arg(long, value_name = "DIR", help_heading = MORE_NETWORK_OPTIONS)]
    pub registries_dir: Option<PathBuf>,
    /// Folder of `kit`, with its credentials and local storage [default: ~/.local/share/kitops]
    /// [env: KITOPS_HOME].
    #[arg(long, value_name = "DIR", help_heading = MORE_NETWORK_OPTIONS)]
    pub config: Option<PathBuf>,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    #[default]
    Text,
    Json,
}

impl From<LogFormat> for observe::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

/// Parses a memory limit. The least limit holds a compressed layer's buffers and a few requests.
fn parse_memory(text: &str) -> Result<u64, String> {
    const LEAST_BYTES: u64 = 32 * 1024 * 1024;
    match sizes::parse(text)? {
        bytes if bytes < LEAST_BYTES => Err("at least 32MiB are needed".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Parses permission bits in octal, as umask(1) takes them.
fn parse_umask(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8) {
        Ok(umask) if umask <= 0o777 => Ok(umask),
        _ => Err(format!("`{text}` is not an umask: write octal digits, such as 022")),
    }
}

/// Parses the base URL of a collector.
fn parse_collector(text: &str) -> Result<Url, String> {
    if !cfg!(feature = "otlp") {
        return Err("this kitfs was built without traces: build it with `cargo install --path . --features otlp`".to_owned());
    }
    let example = "write one such as http://127.0.0.1:4318";
    let url = Url::parse(text).map_err(|error| format!("no URL ({error}): {example}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("no URL of HTTP: {example}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The list of processes shows the arguments of a daemon.
        return Err("a URL with a password is shown to other users: put a header into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("a base URL has no `?` and no `#`: {example}"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn without_the_feature_traces_are_refused_with_the_build_that_has_them() {
        let error = parse_collector("http://127.0.0.1:4318").unwrap_err();
        assert!(error.contains("--features otlp"), "{error}");
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn a_collector_is_a_base_url_without_secrets() {
        for url in ["http://127.0.0.1:4318", "https://otel.example/prefix/", "http://[::1]:4318"] {
            assert_eq!(
                parse_collector(url).map(String::from).map(|it| it.starts_with(url)),
                Ok(true)
            );
        }
        for url in [
            "127.0.0.1:4318",
            "",
            "file:///tmp",
            "ftp://host",
            "http://u:p@host",
            "http://u@host",
            "http://host/?token=1",
            "http://host/#x",
        ] {
            let error = parse_collector(url).unwrap_err();
            assert!(
                error.contains("http://127.0.0.1:4318") || error.contains("HEADERS"),
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn umasks_are_octal() {
        assert_eq!(parse_umask("022"), Ok(0o022));
        assert_eq!(parse_umask("0077"), Ok(0o077));
        for text in ["", "8", "-1", "1000", "u=rwx"] {
            assert!(parse_umask(text).is_err(), "{text}");
        }
    }
}
