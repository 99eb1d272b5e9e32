//! Files `Kitfile` in layers. As for `kit unpack`, each must be equal to the kit's own.

use std::collections::HashSet;
use std::ops::Range;

use super::error::LoadError;
use super::opening::Opened;
use crate::kit::{Placement, TreeError};
use crate::layer::{Extents, Member, StreamOffset, Toc};

/// The most files `Kitfile` in layers that are read and compared. 8: kit packs none, another tool one.
const MOST_KITFILES: usize = 8;

/// Compares every file `Kitfile` that a layer puts at the root with the kit's own. The merge compares
/// sizes, since it reads nothing; this reads the few files that are left.
///
/// # Errors
/// Fails if one of them is another file, or cannot be read.
pub(super) async fn check_others(kitfile: &[u8], opened: &Opened) -> Result<(), LoadError> {
    let mut compared = HashSet::new();
    for layer in &opened.wanted {
        let (index, contents) = opened.contents(layer);
        for range in kitfiles_in(&layer.placement, &contents.toc) {
            let has_same_size = range.end - range.start == kitfile.len() as u64;
            if !has_same_size || !compared.insert((index, range.start)) {
                continue;
            }
            let bytes = opened.layers[index as usize].read(range.clone()).await;
            let bytes = bytes.map_err(|error| layer.failed(error))?;
            if compared.len() > MOST_KITFILES || bytes != *kitfile {
                let error = TreeError::Collision(format!(
                    "`Kitfile` in {} is another file than the kit's own, which `kit unpack` \
                     refuses as well: leave one of them out with --filter",
                    layer.name
                ));
                return Err(LoadError::Tree { reference: layer.reference.clone(), error });
            }
        }
    }
    Ok(())
}

/// The places of the files that a layer puts at the root under the name `Kitfile`. Leaves out files with holes,
/// which the merge refuses.
fn kitfiles_in(placement: &Placement, toc: &Toc) -> impl Iterator<Item = Range<StreamOffset>> {
    let is_at_root = move |member: &&Member| match placement {
        Placement::Raw { path, .. } => path.as_bytes() == b"Kitfile",
        Placement::Tar { below: Some(_) } => false,
        Placement::Tar { below: None } => {
            member.path.as_ref().is_some_and(|path| path.as_bytes() == b"Kitfile")
        }
    };
    let files = toc.shown().filter(is_at_root).filter_map(|member| member.kind.extents());
    files.filter(|extents| extents.is_contiguous()).map(Extents::stored)
}
