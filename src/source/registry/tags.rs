//! Pages of tags (distribution-spec, "Listing Tags"), pages of repositories (distribution's API,
//! "Listing Repositories"), and the links between them (RFC 8288). Pure.

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::encoding;
use super::message;
use crate::oci::{Reference, Selector};

/// The number of names in a request. 1,000: registries allow no more. Without a number, some send 100.
pub(super) const PAGE_NAMES: Option<u32> = Some(1000);

/// The largest page that is read: 8 MiB are 60,000 tags of the longest kind.
pub(super) const PAGE_LIMIT_BYTES: u64 = 8 * 1024 * 1024;

/// The most names of a list. 200,000: some repositories have a tag for each commit.
pub(super) const NAME_LIMIT: usize = 200_000;

/// The most pages of a list. 2,000: with 100 names each, they have all names of the longest list.
pub(super) const PAGE_LIMIT: usize = 2_000;

/// The kind of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    /// The tags of a repository.
    Tags,
    /// The repositories of a registry.
    Repositories,
}

impl Listed {
    /// The list, as messages call it.
    pub(super) fn list(self) -> &'static str {
        match self {
            Self::Tags => "the list of tags",
            Self::Repositories => "the list of repositories",
        }
    }

    /// The names, as messages call them.
    pub(super) fn names(self) -> &'static str {
        match self {
            Self::Tags => "tags",
            Self::Repositories => "repositories",
        }
    }

    /// The advice where a registry has no such list.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Tags => "check the name of the repository",
            Self::Repositories => {
                "many registries have none: name a repository, HOST/REPOSITORY, to list its tags"
            }
        }
    }

    /// The end of the path of its pages.
    fn path(self) -> &'static str {
        match self {
            Self::Tags => "/tags/list",
            Self::Repositories => "/_catalog",
        }
    }

    /// Whether a reference can have this name.
    fn has(self, name: &str) -> bool {
        match self {
            Self::Tags => Selector::tag(name).is_ok(),
            Self::Repositories => Reference::parse(&format!("host.test/{name}:v")).is_ok(),
        }
    }
}

/// Whether an answer may refuse the requested number of names instead of the list.
pub(super) fn may_refuse_number(status: StatusCode) -> bool {
    let is_about_something_else = matches!(status.as_u16(), 401 | 403 | 404 | 408 | 410 | 429);
    (status.is_client_error() && !is_about_something_else) || status == StatusCode::NOT_IMPLEMENTED
}

/// Decodes a page. Leaves out texts that no reference can have, because these may have any content and length.
///
/// # Errors
/// The message, when it is not such a list.
pub(super) fn decode(page: &[u8], listed: Listed) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Page {
        tags: Option<Vec<Value>>,
        repositories: Option<Vec<Value>>,
    }
    let page: Page = serde_json::from_slice(encoding::without_mark(page))
        .map_err(|error| format!("what came is no list of {}: {error}", listed.names()))?;
    let names = match listed {
        Listed::Tags => page.tags,
        Listed::Repositories => page.repositories,
    };
    let names = names.unwrap_or_default().into_iter();
    let names = names.filter_map(|name| name.as_str().map(str::to_owned));
    Ok(names.filter(|name| listed.has(name)).collect())
}

/// The page behind the one at `at`, as the values of its `Link` headers name it.
///
/// A registry behind a proxy may name itself by another host or below another path. So only the query of a link to
/// such a list counts, and the request for the next page goes to the same address.
///
/// # Errors
/// The message, when the link is no URL, or does not lead to a list at another host.
pub(super) fn next<'a>(
    at: &Url,
    links: impl Iterator<Item = &'a str>,
    listed: Listed,
) -> Result<Option<Url>, String> {
    let Some(target) = links.flat_map(parse).find(|link| link.is_next).map(|link| link.target)
    else {
        return Ok(None);
    };
    let next = at.join(target).map_err(|_| "a next page that is no URL".to_owned())?;
    if !next.path().ends_with(listed.path()) {
        return match next.origin() == at.origin() {
            true => Ok(Some(next)),
            false => Err(format!("a next page at another host, {}", message::origin(&next))),
        };
    }
    let mut own = at.clone();
    own.set_query(next.query());
    // The query names the registry at a mirror of several registries. A link leaves it out.
    let namespace =
        |url: &Url| url.query_pairs().find(|(key, _)| key == "ns").map(|it| it.1.into_owned());
    if let (Some(registry), None) = (namespace(at), namespace(&own)) {
        own.query_pairs_mut().append_pair("ns", &registry);
    }
    Ok(Some(own))
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
        next(&at, std::iter::once(link), Listed::Tags).map(|next| next.map(|url| url.to_string()))
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
    }

    #[test]
    fn the_next_page_is_asked_where_this_one_was_found() {
        for named in [
            "<http://internal:5000/v2/a/tags/list?last=b>; rel=next",
            "<https://r.example:8443/other/v2/a/tags/list?last=b>; rel=next",
            "<?last=b>; rel=next",
        ] {
            let expected = "https://r.example/v2/a/tags/list?last=b";
            assert_eq!(follow(named), Ok(Some(expected.to_owned())), "{named}");
        }
        assert!(follow("<https://evil.example/?secret>; rel=next").unwrap_err().contains("evil"));
        let at = Url::parse("https://m.example/v2/a/tags/list?n=2&ns=r.example").unwrap();
        let link = std::iter::once("</v2/a/tags/list?last=b>; rel=next");
        let next = next(&at, link, Listed::Tags).unwrap();
        let expected = "https://m.example/v2/a/tags/list?last=b&ns=r.example";
        assert_eq!(next.unwrap().as_str(), expected);
    }

    #[test]
    fn pages() {
        let tags = |page: &[u8]| decode(page, Listed::Tags);
        assert_eq!(tags(br#"{"name":"a","tags":["b","a"]}"#).unwrap(), ["b", "a"]);
        assert_eq!(tags(br#"{"name":"a","tags":null}"#).unwrap(), [""; 0]);
        assert!(tags(b"<html>").is_err());
        let page = serde_json::json!({"tags": ["v1", "", "a\u{1b}[31m", ".a", "x".repeat(129), 7]});
        assert_eq!(tags(page.to_string().as_bytes()).unwrap(), ["v1"]);
        let page = serde_json::json!({"repositories": ["org/b", "a", "../x", "a b", "A", 7, ""]});
        let repositories = decode(page.to_string().as_bytes(), Listed::Repositories);
        assert_eq!(repositories.unwrap(), ["org/b", "a"]);
    }

    #[test]
    fn a_refused_number_of_names_is_told_from_a_refused_list() {
        let refuses = |status| may_refuse_number(StatusCode::from_u16(status).unwrap());
        assert!([400, 405, 416, 422, 501].into_iter().all(refuses));
        assert!(![200, 401, 403, 404, 429, 500, 503].into_iter().any(refuses));
    }

    proptest! {
        #[test]
        fn any_header_is_survived(link in any::<String>()) {
            let _ = follow(&link);
        }
    }
}
