//! The kits that a command with several paths reads: each is opened once.

use std::sync::Arc;

use super::arguments::{KitArguments, NetworkArguments};
use super::error::CliError;
use super::output::open_kit;
use super::reference::KitPath;
use super::settings::Settings;
use super::system::{self, Otherwise};
use crate::daemon::OpenKit;

/// The kits that are open, by reference. They stay open, so a tag that moves cannot mix two kits.
pub(super) struct Kits<'a> {
    settings: &'a Settings,
    options: &'a KitArguments,
    network: &'a NetworkArguments,
    open: Vec<(String, Arc<OpenKit>)>,
}

impl<'a> Kits<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        options: &'a KitArguments,
        network: &'a NetworkArguments,
    ) -> Self {
        Self { settings, options, network, open: Vec::new() }
    }

    /// The kit that a path names.
    pub(super) async fn open(&mut self, wanted: &KitPath) -> Result<Arc<OpenKit>, CliError> {
        let known = self.open.iter().find(|(reference, _)| *reference == wanted.reference);
        if let Some((_, kit)) = known {
            return Ok(Arc::clone(kit));
        }
        let mut kit = self.settings.kit(wanted.reference.clone(), self.options, self.network)?;
        let backend =
            system::backend(self.settings, &mut kit, false, Otherwise::AnyBackend).await?;
        let kit = open_kit(&backend, kit).await.map_err(|error| wanted.explain(error))?;
        let kit = Arc::new(kit);
        self.open.push((wanted.reference.clone(), Arc::clone(&kit)));
        Ok(kit)
    }
}
