//! The kit that is mounted at a directory, by the extended attributes of the mount.

use std::path::Path;

use super::error::CliError;
use crate::oci::{Digest, Origin, Selector};

/// The longest reference and digest that is read.
const LONGEST_BYTES: usize = 4096;

/// The kit that is mounted at a directory, pinned to its manifest; `None` where none is.
///
/// # Errors
/// When the mount names a kit that is no reference.
pub(super) fn mounted_kit(directory: &Path) -> Result<Option<Origin>, CliError> {
    if !directory.is_dir() {
        return Ok(None);
    }
    let attribute = |name: &str| {
        let mut value = vec![0; LONGEST_BYTES];
        let length = rustix::fs::getxattr(directory, name, &mut value[..]).ok()?;
        value.truncate(length);
        String::from_utf8(value).ok()
    };
    let named = (attribute("user.kitfs.reference"), attribute("user.kitfs.digest"));
    let (Some(reference), Some(digest)) = named else { return Ok(None) };
    let pinned = || {
        let digest = Digest::parse(&digest).ok()?;
        Some(Origin::parse(&reference).ok()?.with_selector(Selector::Digest(digest)))
    };
    pinned().map(Some).ok_or_else(|| {
        let place = directory.display();
        CliError::usage(format!("the kit that is mounted at {place} has no usable reference"))
    })
}
