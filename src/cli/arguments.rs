//! The command line, as clap reads it.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use super::{
    cache, cat, completions, copy, daemon, info, list, ls, mount, serve, sizes, status, trace,
    umount, warm,
};
use crate::observe;

/// Mount remote ModelKits lazily, as read-only directories.
#[derive(Debug, Parser)]
#[command(name = "kitfs", version, arg_required_else_help = true)]
#[command(after_help = "\
REF is a kit:
  HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]  in a registry
  oci:FOLDER[:TAG|@DIGEST]              in an OCI image layout folder
  localhost/REPOSITORY[:TAG|@DIGEST]    in kit's own local storage

Examples:
  kitfs mount ghcr.io/org/model:v1 /models
  kitfs ls -l oci:./kits/article:v1/src
  kitfs umount /models")]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Log more to the standard error; twice for still more.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    #[command(flatten)]
    pub cache: CacheArguments,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Mount a kit; its bytes are fetched when they are read.
    Mount(mount::Arguments),
    /// End a mount.
    #[command(alias = "unmount")]
    Umount(umount::Arguments),
    /// Show what is mounted, and how much of it is in the cache.
    Status(status::Arguments),
    /// Start, stop or look at the daemon that serves the mounts.
    Daemon(daemon::Arguments),
    /// List the files of a kit without mounting it.
    Ls(ls::Arguments),
    /// Print files of a kit without mounting it.
    Cat(cat::Arguments),
    /// Copy files out of a kit without mounting it.
    Cp(copy::Arguments),
    /// Show a kit's Kitfile and layers.
    Info(info::Arguments),
    /// List the kits of a repository by tag.
    List(list::Arguments),
    /// Fetch a kit, or files of it, into the cache at full speed, and verify it.
    Warm(warm::Arguments),
    /// Record what is read from a mount, to fetch it beforehand next time.
    Trace(trace::Arguments),
    /// Look at the cache, check it, or make room in it.
    Cache(cache::Arguments),
    /// Serve OCI layout folders as a small read-only registry.
    Serve(serve::Arguments),
    /// Print a shell's completion script.
    Completions(completions::CompletionsArguments),
    /// Print the manual page.
    Man(completions::ManArguments),
}

/// Where bytes are kept, and how many.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cache options")]
pub(super) struct CacheArguments {
    /// The cache folder; one daemon owns it [default: ~/.cache/kitfs] [env: KITFS_CACHE_DIR].
    #[arg(long, global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The most content to keep, such as 200GiB; what was used least recently goes first
    /// [default: no limit] [env: KITFS_CACHE_SIZE].
    #[arg(long, global = true, value_name = "SIZE", value_parser = sizes::parse)]
    pub cache_size: Option<u64>,
    /// Free space to leave on the cache's file system [default: 1GiB].
    #[arg(long, global = true, value_name = "SIZE", value_parser = sizes::parse)]
    pub keep_free: Option<u64>,
    /// Memory for bytes under way between the network and the cache; at least 32MiB
    /// [default: 512MiB].
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<u64>,
}

/// Which kit is meant, where the reference alone does not say it.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct LabelArguments {
    /// The kit of an index with this label, such as quantization=q4_0; may be repeated. `kitfs
    /// info REF` lists the labels.
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
}

/// Which kit is meant, and how much of it.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct KitArguments {
    #[command(flatten)]
    pub choice: LabelArguments,
    /// Leave out data sets that lie in other kits and in S3 stores (`remotePath`).
    #[arg(long)]
    pub no_remote: bool,
}

/// How registries are reached; the same flags as kit's.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Network options")]
pub(super) struct NetworkArguments {
    /// Take what `kit pull` has put on this machine before asking the registry; without it, only
    /// where the registry does not answer.
    #[arg(long)]
    pub prefer_local: bool,
    /// Speak plain http; loopback registries get it anyway.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true", hide_default_value = true,
        hide_possible_values = true, action = ArgAction::Set)]
    pub plain_http: bool,
    /// Check certificates; --tls-verify=false accepts any.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = true, default_missing_value = "true", hide_possible_values = true,
        action = ArgAction::Set)]
    pub tls_verify: bool,
    /// PEM file with a further certificate authority; may be repeated.
    #[arg(long = "ca-file", value_name = "FILE")]
    pub ca_files: Vec<PathBuf>,
    /// PEM file with a client certificate (KITOPS_CLIENT_CERT).
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// PEM file with the client certificate's key (KITOPS_CLIENT_KEY).
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Proxy for every registry; otherwise HTTP_PROXY, HTTPS_PROXY and NO_PROXY count.
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
    /// How often a request that failed for now is repeated [default: 5].
    #[arg(long, value_name = "COUNT")]
    pub retries: Option<usize>,
    /// How long opening a kit and `warm` wait for a registry that is connected and silent, as a
    /// cache is that fetches first: seconds, or such as 10m [default: 5m].
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    pub open_timeout: Option<u64>,
    /// Folder of HOST/hosts.toml files that name mirrors, in containerd's layout
    /// [env: KITFS_REGISTRIES_DIR].
    #[arg(long, value_name = "DIR")]
    pub registries_dir: Option<PathBuf>,
    /// kit's folder, with its credentials and local storage [default: ~/.local/share/kitops]
    /// [env: KITOPS_HOME].
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object.
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

/// A size that leaves room for a compressed layer, and for a few requests beside it.
fn parse_memory(text: &str) -> Result<u64, String> {
    const LEAST_BYTES: u64 = 32 * 1024 * 1024;
    match sizes::parse(text)? {
        bytes if bytes < LEAST_BYTES => Err("at least 32MiB are needed".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A time in seconds: a number, alone or with a unit (`s`, `m`, `h`).
fn parse_seconds(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds_per_unit = match unit {
        "" | "s" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let number: Option<u64> = number.parse().ok();
    let seconds = seconds_per_unit.and_then(|unit| number?.checked_mul(unit));
    seconds.filter(|&seconds| seconds > 0).ok_or_else(|| {
        format!("`{text}` is not a time: write seconds, or a number with s, m or h, such as 10m")
    })
}

/// Permission bits in octal, as umask(1) takes them.
pub(super) fn parse_umask(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(umask) if umask <= 0o777 => Ok(umask),
        _ => Err(format!("`{text}` is not an umask: write octal digits, such as 022")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("5min", 300), ("2h", 7200)] {
            assert_eq!(parse_seconds(text), Ok(seconds), "{text}");
        }
        for text in ["", "0", "m", "-5", "1.5m", "5 m", "5d", "18446744073709551615h"] {
            assert!(parse_seconds(text).unwrap_err().contains("such as 10m"), "{text}");
        }
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
