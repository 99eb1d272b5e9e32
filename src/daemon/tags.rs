//! The answer of `kitfs list`: the kits of a repository, a folder, or kit's own storage, by their tags.

use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::describing;
use crate::control::api::{Failure, TagInfo, TagsRequest};
use crate::fetch::Fetcher;
use crate::fs::{self, Described, IndexDescription};
use crate::oci::{LabelSelector, Origin, Reference, Selector};
use crate::source::oci_layout::OciLayout;
use crate::source::{Repositories, Repository, Sources};

/// Tags described at once; the limit for each registry host holds as well.
const TAGS_AT_ONCE: usize = 8;

/// A kit to be listed.
struct Listed {
    repository: Option<String>,
    tag: Option<String>,
    /// Its source.
    origin: Origin,
}

/// Every kit that the request means. A tag that is no kit is listed with its problem, unless it is the
/// one that was asked for.
pub(super) async fn tags(
    fetcher: &Arc<Fetcher>,
    sources: &Sources,
    request: &TagsRequest,
) -> Result<Vec<TagInfo>, Failure> {
    let listed = match &request.reference {
        None => in_storage(sources).await?,
        Some(reference) => {
            let origin = Origin::parse(reference)?;
            if request.is_one {
                let described = look(fetcher, sources, &origin).await?;
                let tag = match origin.selector() {
                    Some(Selector::Tag(tag)) => Some(tag.clone()),
                    Some(Selector::Digest(_)) | None => None,
                };
                return Ok(vec![info(Listed { repository: None, tag, origin }, Ok(&described))]);
            }
            match &origin {
                Origin::OciLayout { .. } => in_layout(&origin).await?,
                Origin::Registry(_) | Origin::KitStorage(_) => {
                    in_repository(sources, &origin).await?
                }
            }
        }
    };
    let listed = match request.most {
        Some(most) => last(listed, most as usize),
        None => listed,
    };
    let described = stream::iter(listed).map(|one| async move {
        match look(fetcher, sources, &one.origin).await {
            Ok(described) => {
                let layers = request.layers.then(|| describing::layers(&described));
                TagInfo { layers: layers.unwrap_or_default(), ..info(one, Ok(&described)) }
            }
            Err(failure) => info(one, Err(failure)),
        }
    });
    Ok(described.buffered(TAGS_AT_ONCE).collect().await)
}

/// The last `most` of the tags. Numbers in tags count as numbers, so `v10` comes after `v9`.
fn last(mut listed: Vec<Listed>, most: usize) -> Vec<Listed> {
    listed.sort_by_cached_key(|one| {
        let tag = one.tag.as_deref().map(natural);
        (tag, one.repository.clone())
    });
    listed.split_off(listed.len().saturating_sub(most))
}

/// A tag as texts and numbers, which compare as version numbers do: numbers by their length without leading
/// zeros, then by their digits.
fn natural(tag: &str) -> Vec<(String, usize, String)> {
    let mut pieces = Vec::new();
    let mut rest = tag;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, after) = rest.split_at(digits);
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(end);
        let number = number.trim_start_matches('0');
        pieces.push((text.to_owned(), number.len(), number.to_owned()));
        rest = after;
    }
    pieces
}

async fn look(
    fetcher: &Arc<Fetcher>,
    sources: &Sources,
    origin: &Origin,
) -> Result<Described, Failure> {
    Ok(fs::look(fetcher, sources, origin, &LabelSelector::default()).await?)
}

/// Everything in kit's storage, as `kit list` shows it.
async fn in_storage(sources: &Sources) -> Result<Vec<Listed>, Failure> {
    let mut all = Vec::new();
    for storage in sources.stored().await? {
        let name = storage.repository();
        let Ok(reference) = Reference::parse(name) else { continue };
        let shown = name.strip_prefix("localhost/").unwrap_or(name);
        for (tag, digest) in storage.listed().await? {
            let stored = reference.with_selector(Selector::Digest(digest));
            let (repository, origin) = (Some(shown.to_owned()), Origin::KitStorage(stored));
            all.push(Listed { repository, tag, origin });
        }
    }
    Ok(all)
}

async fn in_layout(origin: &Origin) -> Result<Vec<Listed>, Failure> {
    let Origin::OciLayout { folder, repository, .. } = origin else { return Ok(Vec::new()) };
    let layout = OciLayout::open(folder)?.of_repository(repository.clone());
    let listed = layout.listed().await?.into_iter().map(|(name, digest)| {
        let (repository, tag) = match name {
            Some(name) => (name.repository, Some(name.tag)),
            None => (None, None),
        };
        Listed { repository, tag, origin: origin.with_selector(Selector::Digest(digest)) }
    });
    Ok(listed.collect())
}

async fn in_repository(sources: &Sources, origin: &Origin) -> Result<Vec<Listed>, Failure> {
    let pulled = sources.pulled(origin).filter(|pulled| pulled.is_preferred);
    let tags = match pulled {
        Some(pulled) => pulled.storage.tags().await?,
        None => sources.open(origin)?.tags().await?,
    };
    let listed = tags.into_iter().map(|tag| {
        let origin = origin.with_selector(Selector::Tag(tag.clone()));
        Listed { repository: None, tag: Some(tag), origin }
    });
    Ok(listed.collect())
}

fn info(listed: Listed, described: Result<&Described, Failure>) -> TagInfo {
    let Listed { repository, tag, origin } = listed;
    let digest = match origin.selector() {
        Some(Selector::Digest(digest)) => digest.to_string(),
        Some(Selector::Tag(_)) | None => String::new(),
    };
    let unknown = TagInfo {
        repository,
        tag,
        digest,
        blob_bytes: 0,
        name: None,
        author: None,
        created_seconds: None,
        layers: Vec::new(),
        index_entries: None,
        problem: None,
    };
    match described {
        Err(failure) => TagInfo { problem: Some(failure.message), ..unknown },
        Ok(Described::Index(IndexDescription { digest, index, .. })) => TagInfo {
            digest: digest.to_string(),
            index_entries: Some(index.candidates().len() as u64),
            ..unknown
        },
        Ok(Described::Kit(description)) => {
            let kitfile = &description.kit.kitfile;
            let sizes = description.manifest.layers.iter().map(|layer| layer.size);
            TagInfo {
                digest: description.digest.to_string(),
                blob_bytes: sizes.fold(0, u64::saturating_add),
                name: kitfile.package_name().map(str::to_owned),
                author: kitfile.first_author().map(str::to_owned),
                created_seconds: description.kit.created.map(|at| at.seconds().into()),
                ..unknown
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_tags_count_as_numbers() {
        let order = ["1", "1.2", "1.10", "1.10.1", "2", "0010", "11", "a", "v9", "v10", "v10-rc"];
        for pair in order.windows(2) {
            assert!(natural(pair[0]) < natural(pair[1]), "{pair:?}");
        }
    }
}
