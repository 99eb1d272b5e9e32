//! Kits from before v0.5.0 (modelkit-spec 3.4): their Kitfile has no digests.
//!
//! Entries and layers of a role are in the same order. The members of a layer are relative to the
//! directory of the entry's path: `models/m.h5` is packed as `m.h5`.

use std::collections::HashMap;

use super::assign::Known;
use super::kitfile::{Entry, Field};
use super::{KitError, shown};
use crate::layer::{MemberPath, MemberPathError};

/// For each layer, its entry: the n-th of a role has the n-th entry of that role.
///
/// # Errors
/// Fails if a role has more layers than entries: nothing says where the members of the others go.
pub(super) fn by_order<'a>(
    layers: &[Known<'_>],
    entries: &[&'a Entry],
) -> Result<Vec<Vec<&'a Entry>>, KitError> {
    let mut queues: HashMap<_, Vec<&'a Entry>> = HashMap::new();
    for entry in entries.iter().rev() {
        queues.entry(entry.section().role()).or_default().push(entry);
    }
    let mut assigned = Vec::with_capacity(layers.len());
    for layer in layers {
        let entry = queues.get_mut(&layer.role()).and_then(Vec::pop).ok_or_else(|| {
            KitError::Malformed(format!(
                "the {} of type `{}` has no entry in the Kitfile, which tells where its files go",
                layer.title(None),
                shown(&layer.descriptor.media_type)
            ))
        })?;
        assigned.push(vec![entry]);
    }
    Ok(assigned)
}

/// The directory above the members of an entry's layer; `None` for the root.
pub(super) fn directory(entry: &Entry) -> Result<Option<MemberPath>, KitError> {
    match MemberPath::parse(entry.text(Field::Path).as_bytes()) {
        Ok(path) => Ok(path.parent()),
        Err(MemberPathError::Root) => Ok(None),
        Err(error) => Err(KitError::Malformed(format!(
            "the path of the Kitfile's entry {} cannot be used: {error}",
            shown(&entry.title())
        ))),
    }
}
