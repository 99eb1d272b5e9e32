//! Pages of tags (distribution-spec, "Listing Tags") and the links between them (RFC 8288). Pure.

use serde::Deserialize;
use url::Url;

use super::message;
use crate::oci::Selector;

/// The largest page that is read: 8 MiB are 60,000 tags of the longest kind.
pub(super) const PAGE_LIMIT_BYTES: u64 = 8 * 1024 * 1024;

/// The most tags that are listed. 200,000: some repositories have a tag for each commit.
pub(super) const TAG_LIMIT: usize = 200_000;

/// The most pages that are asked for, which also ends a list that goes round in a circle.
pub(super) const PAGE_LIMIT: usize = 2_000;

/// Decodes a page. What could not be a tag is left out: nobody could ask for it, and it may hold
/// anything, at any length.
///
/// # Errors
/// In words, when it is not a list of tags.
pub(super) fn decode(page: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Page {
        tags: Option<Vec<String>>,
    }
    let page: Page =
        serde_json::from_slice(page).map_err(|error| format!("no list of tags: {error}"))?;
    let mut tags = page.tags.unwrap_or_default();
    tags.retain(|tag| Selector::tag(tag).is_ok());
    Ok(tags)
}

/// The page behind the one at `at`, as the values of its `Link` headers name it.
///
/// # Errors
/// In words, when it lies at another host: nobody else answers for a registry.
pub(super) fn next<'a>(
    at: &Url,
    links: impl Iterator<Item = &'a str>,
) -> Result<Option<Url>, String> {
    let Some(target) = links.flat_map(parse).find(|link| link.is_next).map(|link| link.target)
    else {
        return Ok(None);
    };
    let next = at.join(target).map_err(|_| "a next page that is no URL".to_owned())?;
    if next.origin() != at.origin() {
        return Err(format!("a next page at another host, {}", message::origin(&next)));
    }
    Ok(Some(next))
}

struct Link<'a> {
    target: &'a str,
    is_next: bool,
}

/// The links of one header: `<TARGET>; rel="next", <TARGET>; …`.
fn parse(header: &str) -> Vec<Link<'_>> {
    let mut links = Vec::new();
    let mut rest = header;
    while let Some((_, behind)) = rest.split_once('<') {
        let Some((target, parameters)) = behind.split_once('>') else { break };
        let (own, others) = parameters.split_once(",").unwrap_or((parameters, ""));
        let is_next = own.split(';').any(|parameter| {
            parameter.split_once('=').is_some_and(|(name, value)| {
                let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
                name.trim().eq_ignore_ascii_case("rel")
                    && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
            })
        });
        links.push(Link { target, is_next });
        rest = others;
    }
    links
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn follow(link: &str) -> Result<Option<String>, String> {
        let at = Url::parse("https://r.example/v2/a/tags/list?n=2").unwrap();
        next(&at, std::iter::once(link)).map(|next| next.map(|url| url.to_string()))
    }

    #[test]
    fn links() {
        let expected = Ok(Some("https://r.example/v2/a/tags/list?last=b&n=2".to_owned()));
        assert_eq!(follow(r#"</v2/a/tags/list?last=b&n=2>; rel="next""#), expected);
        assert_eq!(follow("<list?last=b&n=2>;REL=next"), expected);
        assert_eq!(
            follow(r#"<x>; rel="prev", <list?last=b&n=2>; title="t"; rel="last next""#),
            expected
        );
        assert_eq!(follow(r#"<x>; rel="prev""#), Ok(None));
        assert_eq!(follow("<x"), Ok(None));
        assert!(follow("<https://evil.example/?secret>; rel=next").unwrap_err().contains("evil"));
        assert!(follow("<http://r.example/>; rel=next").is_err());
    }

    #[test]
    fn pages() {
        assert_eq!(decode(br#"{"name":"a","tags":["b","a"]}"#).unwrap(), ["b", "a"]);
        assert_eq!(decode(br#"{"name":"a","tags":null}"#).unwrap(), [""; 0]);
        assert!(decode(b"<html>").is_err());
        let page = serde_json::json!({"tags": ["v1", "", "a\u{1b}[31m", ".a", "x".repeat(129)]});
        assert_eq!(decode(page.to_string().as_bytes()).unwrap(), ["v1"]);
    }

    proptest! {
        #[test]
        fn any_header_is_survived(link in any::<String>()) {
            let _ = follow(&link);
        }
    }
}
