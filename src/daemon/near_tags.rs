//! The tags that a user may have meant, for the message that a tag is not there.

use std::time::Duration;

use crate::control::api::{Failure, FailureKind};
use crate::oci::{Origin, Selector};
use crate::process::running_time;
use crate::source::{Repositories, Sources};

/// The most tags that a message names: more do not fit one line of a terminal.
const MOST_NAMED: usize = 5;
/// How long a failed command waits for the list of tags. 3 s: a registry that has just answered answers again, and a
/// hint is worth no longer wait.
const LIST_TIMEOUT: Duration = Duration::from_secs(3);

/// Adds the near tags to the failure of a kit that was not found, if its tag is missing and the list of tags comes.
pub(super) async fn with_near_tags(
    sources: &Sources,
    origin: &Origin,
    failure: Failure,
) -> Failure {
    let Some(Selector::Tag(tag)) = origin.selector() else { return failure };
    if failure.kind != FailureKind::NotFound {
        return failure;
    }
    let Ok(repository) = sources.open(origin) else { return failure };
    let listed = running_time::timeout(LIST_TIMEOUT, repository.tags()).await;
    // A tag that is there was found; a parent of its kit was not.
    let tags = match listed {
        Ok(Ok(tags)) if !tags.contains(tag) => tags,
        Ok(_) | Err(_) => return failure,
    };
    match near(tag, &tags).as_slice() {
        [] => failure,
        near => Failure {
            message: format!("{}; near tags: {}", failure.message, near.join(", ")),
            ..failure
        },
    }
}

/// The tags that differ from `typed` in a few characters, or by what follows; the nearest first.
fn near<'a>(typed: &str, tags: &'a [String]) -> Vec<&'a str> {
    let most = (typed.chars().count() / 3).max(1);
    let typed = typed.to_lowercase();
    let mut near: Vec<(usize, &str)> = Vec::new();
    for tag in tags {
        let lower = tag.to_lowercase();
        let distance = strsim::osa_distance(&typed, &lower);
        if distance <= most || lower.starts_with(&typed) || typed.starts_with(&lower) {
            near.push((distance, tag));
        }
    }
    near.sort_unstable();
    near.into_iter().take(MOST_NAMED).map(|(_, tag)| tag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_tags_differ_in_little_or_by_what_follows() {
        let tags: Vec<String> = ["V1.0", "v1.0-q4", "v1.0", "v1.1", "v10", "latest", "production"]
            .map(String::from)
            .into();
        assert_eq!(near("v1.0", &tags), ["V1.0", "v1.0", "v1.1", "v10", "v1.0-q4"]);
        assert_eq!(near("lastet", &tags), ["latest"]);
        assert_eq!(near("prodution", &tags), ["production"]);
        assert!(near("nothing-like-it", &tags).is_empty());
        let many: Vec<String> = (0..100).map(|number| format!("v{number}")).collect();
        assert_eq!(near("v", &many).len(), MOST_NAMED);
    }
}
