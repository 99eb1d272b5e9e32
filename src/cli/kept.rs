//! The hint for a kit that its registry lacks, while a kit of this name is packed on this machine.

use std::path::{Path, PathBuf};

use crate::control::api::{Failure, FailureKind, KitRequest};
use crate::oci::{Origin, Reference};
use crate::source::Repository;
use crate::source::kit_storage::KitStorage;

/// A kit that a command asks for, and the storage of kit in which it may be instead.
pub(super) struct Sought {
    reference: String,
    kitops_home: Option<PathBuf>,
}

impl Sought {
    /// The kit of a request. A request to the system daemon names no storage.
    pub(super) fn of(kit: &KitRequest) -> Self {
        Self { reference: kit.reference.clone(), kitops_home: kit.network.kitops_home.clone() }
    }

    /// Adds a hint to a failure to find the kit: its name in kit's local storage, if it is there.
    pub(super) async fn explain(&self, failure: Failure) -> Failure {
        match &self.kitops_home {
            Some(home) if failure.kind == FailureKind::NotFound => {
                with_kept(failure, &self.reference, home).await
            }
            _ => failure,
        }
    }

    /// As [`Self::explain`], for one kit of several: only if the failure names it.
    pub(super) async fn explain_if_named(&self, failure: Failure) -> Failure {
        match failure.message.contains(&self.reference) {
            true => self.explain(failure).await,
            false => failure,
        }
    }
}

async fn with_kept(mut failure: Failure, reference: &str, home: &Path) -> Failure {
    let Ok(Origin::Registry(wanted)) = Origin::parse(reference) else { return failure };
    if is_kept(home, &wanted).await {
        failure.message += &format!(
            "; this machine has it in kit's storage: `kitfs push {reference}` sends it, and --prefer-local reads it"
        );
        return failure;
    }
    for name in local_names(&wanted) {
        let Ok(local) = Reference::parse(&name) else { continue };
        if local.is_local() && is_kept(home, &local).await {
            failure.message += &format!(
                "; this machine has {name}: write that, or `kitfs push {name} {reference}`"
            );
            break;
        }
    }
    failure
}

/// The names that a kit may have without its host: its repository, and the last part of that.
fn local_names(wanted: &Reference) -> Vec<String> {
    let repository = wanted.repository();
    let last = repository.rsplit('/').next().unwrap_or(repository);
    let text = wanted.to_string();
    let selector = text.rfind(repository).map_or("", |at| &text[at + repository.len()..]);
    let mut names = vec![format!("localhost/{repository}{selector}")];
    if last != repository {
        names.push(format!("localhost/{last}{selector}"));
    }
    names
}

async fn is_kept(home: &Path, reference: &Reference) -> bool {
    match KitStorage::open(home, reference) {
        Ok(storage) => storage.manifest(Some(reference.selector())).await.is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kit_may_be_packed_under_its_repository_or_its_last_name() {
        let names = |text: &str| local_names(&Reference::parse(text).unwrap());
        assert_eq!(names("r.example/org/kit:v1"), ["localhost/org/kit:v1", "localhost/kit:v1"]);
        assert_eq!(names("r.example:5000/kit:v1"), ["localhost/kit:v1"]);
    }
}
