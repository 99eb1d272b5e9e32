//! The system daemon: which commands use it, and which requests they send.
//!
//! The daemon runs as root and opens no file for its users. So a command reads its files itself, and sends
//! their content. Requests that need a folder on this machine go to a daemon of the user's own.

use super::arguments::IdleArguments;
use super::error::CliError;
use super::settings::Settings;
use crate::control::api::{Failure, KitRequest, NetworkOptions};
use crate::daemon::Backend;
use crate::oci::Origin;
use crate::process::limits::ChildLimits;
use crate::source::credentials::CredentialStore;
use crate::source::registry_rules::{RegistryRule, RegistryRules};

/// The backend of a command that does not use the system daemon.
#[derive(Clone, Copy, Debug)]
pub(super) enum Otherwise<'a> {
    /// A daemon of the user, which is started when none runs.
    Daemon(&'a IdleArguments),
    /// A running daemon of the user, or this process.
    AnyBackend,
}

/// The backend for a kit: the system daemon, if it runs and this user may use it. The request then carries the
/// content of files instead of paths. A request that the system daemon cannot serve goes to a daemon of the user's
/// own; `needs_own` names such requests (a trace file, a mount by the daemon).
pub(super) async fn backend(
    settings: &Settings,
    kit: &mut KitRequest,
    needs_own: bool,
    otherwise: Otherwise<'_>,
) -> Result<Backend, CliError> {
    backend_for_all(settings, &mut [kit], needs_own, otherwise).await
}

/// As [`backend`], for several kits of one request.
pub(super) async fn backend_for_all(
    settings: &Settings,
    kits: &mut [&mut KitRequest],
    needs_own: bool,
    otherwise: Otherwise<'_>,
) -> Result<Backend, CliError> {
    if let Some(folder) = settings.system_folder()
        && !needs_own
        && kits.iter().all(|kit| is_for_system(kit))
        && let Some(system) = Backend::of_system(&folder).await?
    {
        for kit in kits {
            kit.network = carried(kit).await?;
        }
        return Ok(system);
    }
    Ok(match otherwise {
        Otherwise::Daemon(idle) => Backend::daemon(&settings.daemon_on_demand(idle)?).await?,
        Otherwise::AnyBackend => Backend::open(&settings.daemon()?).await?,
    })
}

/// Whether the system daemon can serve the request: a kit of a registry, without files other than credentials.
fn is_for_system(kit: &KitRequest) -> bool {
    let NetworkOptions {
        prefer_local,
        ca_files,
        client_certificate,
        client_key,
        registries_dir,
        registries,
        ..
    } = &kit.network;
    let files = [client_certificate, client_key, registries_dir];
    !kit.has_paths()
        && !prefer_local
        && ca_files.is_empty()
        && !registries.iter().any(RegistryRule::is_about_addresses)
        && files.into_iter().all(Option::is_none)
}

/// The options with the content of files instead of paths.
async fn carried(kit: &KitRequest) -> Result<NetworkOptions, CliError> {
    let network = kit.network.clone();
    let mut carried = None;
    if let Ok(Origin::Registry(reference)) = Origin::parse(&kit.reference) {
        let store = CredentialStore::new(network.credential_files.clone())
            .with_rules(RegistryRules::new(network.registries.clone()));
        let (registry, repository) = (reference.registry(), reference.repository());
        carried = Some(store.carry(registry, repository).await.map_err(Failure::from)?);
    }
    // Few kits need a store, so a profile without keys is no error here.
    let s3 = network.s3.carry(ChildLimits::default()).await.unwrap_or_default();
    let registries = network.registries.iter().map(RegistryRule::about_credentials).collect();
    Ok(NetworkOptions {
        carried,
        s3,
        registries,
        credential_files: Vec::new(),
        kitops_home: None,
        ..network
    })
}
