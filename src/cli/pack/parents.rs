//! The layer paths of the kits that `model.path` leads to. Their files are not packed again, as with kit.

use std::collections::BTreeSet;

use crate::cli::error::CliError;
use crate::cli::output::say_while_waiting;
use crate::cli::settings::{DEFAULT_UMASK, Settings};
use crate::control::api::{FailureKind, Info, InfoRequest, KitRequest, NetworkOptions};
use crate::daemon::Backend;
use crate::kit::AuthoredKitfile;

/// The longest chain of parents, as in kit (modelkit-spec 4.2).
const PARENTS_LIMIT: usize = 10;

/// The paths of all layers of the parent, and of the models and parts of its own parents.
pub(super) async fn paths(
    settings: &Settings,
    kitfile: &AuthoredKitfile,
    network: NetworkOptions,
) -> Result<Vec<String>, CliError> {
    let mut next = kitfile.parent().map(str::to_owned);
    let Some(first) = next.clone() else { return Ok(Vec::new()) };
    let backend = Backend::open(&settings.daemon()?).await?;
    let mut paths = Vec::new();
    let mut seen = BTreeSet::new();
    while let Some(reference) = next {
        let failed = |why: &str| {
            let message = format!("model.path names the kit {first}, {why}");
            CliError::new(FailureKind::BadContent, message)
        };
        if seen.len() == PARENTS_LIMIT {
            return Err(failed(&format!("whose chain of parents is longer than {PARENTS_LIMIT}")));
        }
        if !seen.insert(reference.clone()) {
            return Err(failed(&format!("whose chain of parents comes back to {reference}")));
        }
        let kit = KitRequest {
            reference: reference.clone(),
            labels: Vec::new(),
            filters: Vec::new(),
            allow_empty: false,
            no_remote: true,
            umask: DEFAULT_UMASK,
            network: network.clone(),
        };
        let asked =
            say_while_waiting(&reference, backend.ask(InfoRequest { kit, facts: false })).await;
        let about = |error: CliError| error.about("model.path");
        let info = asked.map_err(|failure| about(failure.into()))?;
        let Info::Kit(info) = info else {
            return Err(failed("which is an index: name one of its kits by digest"));
        };
        let is_parent = seen.len() == 1;
        let is_taken = |role: &str| is_parent || matches!(role, "model" | "modelpart");
        let layers = info.layers.into_iter().filter(|layer| is_taken(&layer.role));
        paths.extend(layers.filter_map(|layer| layer.path));
        let parsed = info.kitfile.and_then(|yaml| AuthoredKitfile::parse(yaml.as_bytes()).ok());
        next = parsed.and_then(|kitfile| kitfile.parent().map(str::to_owned));
    }
    Ok(paths)
}
