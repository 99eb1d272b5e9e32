//! Behaviour put around a source: [`Counted`], [`Limited`] and [`Faulty`].
//!
//! Each wraps a source and is a source itself; around a repository it is a repository.

mod counted;
mod faulty;
mod limited;

pub use counted::{Counted, Counts};
pub use faulty::{Fault, Faulty};
pub use limited::Limited;

/// Passes requests for manifests and tags on to the wrapped repository.
macro_rules! pass_on_manifests_and_tags {
    ($decorator:ident) => {
        impl<S: crate::source::Repository> crate::source::Repository for $decorator<S> {
            fn manifest(
                &self,
                selector: Option<&crate::oci::Selector>,
            ) -> futures_util::future::BoxFuture<
                '_,
                Result<(crate::oci::Digest, bytes::Bytes), crate::source::SourceError>,
            > {
                self.source.manifest(selector)
            }

            fn tags(
                &self,
            ) -> futures_util::future::BoxFuture<
                '_,
                Result<Vec<String>, crate::source::SourceError>,
            > {
                self.source.tags()
            }

            fn name(&self) -> String {
                self.source.name()
            }
        }
    };
}
use pass_on_manifests_and_tags;
