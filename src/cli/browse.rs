//! `kitfs browse DIR`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arguments::{IdleArguments, LifeArguments, NetworkArguments, TreeArguments};
use super::durations::{Limit, parse_duration, parse_limit};
use super::error::CliError;
use super::foreground;
use super::help::MORE_OPTIONS;
use super::mount::owner;
use super::output::{print_line, print_warnings, warn};
use super::runtime::block_on;
use super::settings::{Settings, mountpoint};
use crate::control::api::{
    BROWSE_REFERENCE, BrowseDescription, HydrateMode, KitRequest, MountDescription, MountStatus,
    NetworkOptions,
};
use crate::daemon::{self, Backend, DaemonConfig};
use crate::fs::browse::is_host;
use crate::source::credentials::CredentialStore;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every kit has a path below DIR. It is loaded when a program looks into it:
  DIR/HOST/REPOSITORY:TAG/...  or  DIR/HOST/REPOSITORY@sha256:HEX/...
  DIR/HOST/REPOSITORY/  lists the tags; HOST localhost is kit's storage here

Other registries than --registry names (or than you are logged in to) do not
exist below DIR, so `find` and file managers ask none of them. A tag is looked at
again after --tag-ttl; open files and folders stay with their version.
`kitfs umount DIR` ends the mount.

Examples:
  kitfs browse --registry ghcr.io --registry registry.example.com:5000 ~/kits
  ls ~/kits/ghcr.io/org/model/
  cp ~/kits/ghcr.io/org/model:v1/config.json .")]
pub(super) struct Arguments {
    /// An empty directory; kitfs makes it when it does not exist.
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    #[command(flatten)]
    pub life: LifeArguments,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    idle: IdleArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

/// The options of a mount with kits by path.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Options {
    /// A registry that may be asked; may be repeated [default: those that you are logged in to].
    #[arg(long = "registry", value_name = "HOST[:PORT]", value_parser = parse_host)]
    registries: Vec<String>,
    /// How long a tag is taken to name the same kit.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_duration)]
    tag_ttl: Duration,
    /// Let other users read the mount.
    #[arg(long)]
    allow_other: bool,
    /// The most kits in memory. Others come back when a program looks into them.
    #[arg(long, value_name = "NUMBER", default_value_t = 64, help_heading = MORE_OPTIONS)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    most_kits: u32,
    /// How long a kit stays in memory that no program uses.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    #[arg(help_heading = MORE_OPTIONS)]
    forget_after: Duration,
    /// How long a program waits for a registry, or for bytes that do not come: seconds, a time such as 10m,
    /// or never. Ctrl-C and `kill -9` end a waiting program at any time.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_limit)]
    #[arg(help_heading = MORE_OPTIONS)]
    read_deadline: Limit,
    /// Leave out data sets in other kits and in S3 stores (`remotePath` in the Kitfile).
    #[arg(long, help_heading = MORE_OPTIONS)]
    no_remote: bool,
    #[command(flatten)]
    tree: TreeArguments,
    /// Read every file through the daemon.
    #[arg(long, help_heading = MORE_OPTIONS)]
    no_passthrough: bool,
    /// Do not download tensors in the order of safetensors and GGUF headers.
    #[arg(long, help_heading = MORE_OPTIONS)]
    no_tensor_prefetch: bool,
    /// User that the files belong to [default: you].
    #[arg(long, value_name = "UID", help_heading = MORE_OPTIONS)]
    uid: Option<u32>,
    /// Group that the files belong to [default: yours].
    #[arg(long, value_name = "GID", help_heading = MORE_OPTIONS)]
    gid: Option<u32>,
}

impl Options {
    /// The description of a mount with these options. Without `--registry`, it reads the names of the registries
    /// that the user is logged in to.
    async fn describe(
        self,
        mountpoint: PathBuf,
        network: NetworkOptions,
    ) -> Result<MountDescription, CliError> {
        let registries = match self.registries.is_empty() {
            false => self.registries,
            true => CredentialStore::new(network.credential_files.clone()).hosts().await,
        };
        let registries: Vec<_> = registries.into_iter().filter(|host| is_host(host)).collect();
        if registries.is_empty() {
            warn(format_args!(
                "no registry may be asked, because you are logged in to none: name them with --registry HOST"
            ));
        }
        Ok(MountDescription {
            kit: KitRequest {
                reference: BROWSE_REFERENCE.to_owned(),
                labels: Vec::new(),
                filters: Vec::new(),
                allow_empty: false,
                no_remote: self.no_remote,
                umask: self.tree.umask,
                network,
            },
            mountpoint,
            allow_other: self.allow_other,
            nonempty: self.tree.nonempty,
            noexec: self.tree.noexec,
            no_passthrough: self.no_passthrough,
            recheck: false,
            tensor_prefetch: !self.no_tensor_prefetch,
            hydrate: HydrateMode::None,
            hydrate_after_seconds: 0,
            trace: None,
            follow_seconds: None,
            read_deadline_seconds: self.read_deadline.0.map(|deadline| deadline.as_secs()),
            uid: self.uid,
            gid: self.gid,
            overlay: None,
            browse: Some(BrowseDescription {
                registries,
                tag_ttl_ms: milliseconds(self.tag_ttl),
                most_kits: self.most_kits,
                idle_ms: milliseconds(self.forget_after),
            }),
        })
    }
}

pub(super) fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let place = mountpoint(&arguments.mountpoint)?;
    let network = settings.network(&arguments.network)?;
    let owner = arguments.life.while_pid.map(owner).transpose()?;
    block_on(async {
        let request = arguments.options.describe(place.clone(), network).await?;
        if arguments.life.foreground {
            return foreground::serve(settings, settings.daemon()?, request, false).await;
        }
        // The system daemon does not read credential files of its users, so the user's own daemon serves this
        // mount.
        let config = settings.daemon_on_demand(&arguments.idle)?;
        daemon::forget_dead(&config, &place).await?;
        let backend = Backend::daemon(&config).await?;
        settings.warn_of_other_bounds(&backend, &arguments.idle).await?;
        announce(&backend.browse(request, owner.as_ref()).await?)
    })
}

/// Mounts kits by path for `kitfs daemon start --root`. A mount that is there already stays, because the daemon may
/// have restored it.
pub(super) async fn mount_root(
    settings: &Settings,
    config: &DaemonConfig,
    backend: &Backend,
    root: &Path,
    options: Options,
    network: &NetworkArguments,
) -> Result<(), CliError> {
    let place = mountpoint(root)?;
    let mounts = backend.status().await?.mounts;
    let is_there = |mount: &&MountStatus| mount.mountpoint == place && mount.browse.is_some();
    if let Some(mount) = mounts.iter().find(is_there) {
        return announce(mount);
    }
    let request = options.describe(place.clone(), settings.network(network)?).await?;
    daemon::forget_dead(config, &place).await?;
    announce(&backend.browse(request, None).await?)
}

/// Prints the registries that the mount reaches.
pub(super) fn announce(status: &MountStatus) -> Result<(), CliError> {
    print_warnings(&status.warnings);
    let registries = status.browse.as_ref().map(|browse| browse.registries.join(" "));
    let (place, registries) = (status.mountpoint.display(), registries.unwrap_or_default());
    print_line(format_args!("kits by path -> {place}  {registries}"))
}

fn parse_host(text: &str) -> Result<String, String> {
    match is_host(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "`{}` is no registry: write HOST or HOST:PORT, as in a reference",
            text.escape_debug()
        )),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
