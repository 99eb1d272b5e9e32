//! Lists in pages (distribution-spec, "Listing tags"): `n` entries after `last`. Pure.

use serde::Deserialize;

/// The query of a list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Query {
    n: Option<usize>,
    last: Option<String>,
}

/// A part of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// The entries, sorted.
    pub(super) entries: Vec<String>,
    /// The query of the next page; `None` on the last page.
    pub(super) next: Option<String>,
}

impl Query {
    /// Cuts the page out of a sorted list.
    pub(super) fn page(&self, all: Vec<String>) -> Page {
        let is_behind = |entry: &String| self.last.as_ref().is_none_or(|last| entry > last);
        let mut entries: Vec<_> = all.into_iter().filter(is_behind).collect();
        let Some(n) = self.n.filter(|n| *n < entries.len()) else {
            return Page { entries, next: None };
        };
        entries.truncate(n);
        let next = entries.last().map(|last| {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("n", &n.to_string()).append_pair("last", last);
            query.finish()
        });
        Page { entries, next }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pages_together_are_the_list(count in 0usize..40, n in 1usize..50) {
            let all: Vec<_> = (0..count).map(|index| format!("tag-{index:02}")).collect();
            let (mut got, mut last) = (Vec::new(), None);
            loop {
                let page = Query { n: Some(n), last }.page(all.clone());
                prop_assert!(page.entries.len() <= n);
                got.extend(page.entries);
                last = got.last().cloned();
                if page.next.is_none() {
                    break;
                }
            }
            prop_assert_eq!(got, all);
        }
    }
}
