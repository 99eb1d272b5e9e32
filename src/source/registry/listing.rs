//! Lists the tags of a repository, or the repositories of a registry, page by page.
//!
//! ```text
//! tags/list?n=1000 --refused for its n--> tags/list
//!       '--page--> Link: rel="next" --page--> … --no link, or nothing new--> all names, sorted
//! ```

use std::collections::{BTreeSet, HashSet};

use http::{HeaderMap, StatusCode, header};
use url::Url;

use super::errand::Errand;
use super::repository::Remote;
use super::retry::Failure;
use super::tags::{self, Listed};
use super::upstream::Upstream;
use crate::source::SourceError;

impl Remote {
    /// Every name that one upstream lists, sorted.
    pub(super) async fn names_once(
        &self,
        listed: Listed,
        upstream: &Upstream,
        errand: &Errand,
    ) -> Result<Vec<String>, Failure> {
        let protocol =
            |detail| SourceError::Protocol { place: upstream.place(self.repository()), detail };
        let mut all = BTreeSet::new();
        let mut asked = HashSet::new();
        let mut next = Some(self.list_url(listed, upstream, tags::PAGE_NAMES));
        while let Some(url) = next.take() {
            if asked.len() == tags::PAGE_LIMIT {
                let (pages, names) = (asked.len(), listed.names());
                return Err(protocol(format!("more than {pages} pages of {names}")).into());
            }
            let page = self.page(listed, upstream, &url, errand, asked.is_empty()).await?;
            asked.insert(url);
            let known = all.len();
            all.extend(page.names);
            if all.len() > tags::NAME_LIMIT {
                let (most, names) = (tags::NAME_LIMIT, listed.names());
                return Err(protocol(format!("more than {most} {names}")).into());
            }
            // Some registries always name a next page: the first one, an empty or a missing one.
            next = page.next.filter(|next| all.len() > known && !asked.contains(next));
        }
        Ok(all.into_iter().collect())
    }

    fn list_url(&self, listed: Listed, upstream: &Upstream, number: Option<u32>) -> Url {
        match listed {
            Listed::Tags => upstream.tags(self.repository(), number),
            Listed::Repositories => upstream.catalogue(number),
        }
    }

    /// Requests one page. If the registry refuses the number of names, it requests the first page again without a
    /// number.
    async fn page(
        &self,
        listed: Listed,
        upstream: &Upstream,
        url: &Url,
        errand: &Errand,
        is_first: bool,
    ) -> Result<Page, Failure> {
        let headers = HeaderMap::new();
        let request = self.request(upstream, url, &headers, errand);
        let mut answer = self.client().ask(&request, |_| ()).await?;
        let mut at = url.clone();
        if is_first && tags::may_refuse_number(answer.status()) {
            drop(answer);
            at = self.list_url(listed, upstream, None);
            let request = self.request(upstream, &at, &headers, errand);
            answer = self.client().ask(&request, |_| ()).await?;
        }
        let stall = self.timing().stall;
        let is_gone = matches!(answer.status(), StatusCode::NOT_FOUND | StatusCode::GONE);
        if is_gone && !is_first {
            return Ok(Page::default());
        }
        if answer.status() != StatusCode::OK {
            return Err(answer.refusal(listed.list(), listed.hint(), stall).await);
        }
        let body = answer.document(listed.list(), tags::PAGE_LIMIT_BYTES, stall).await?;
        let protocol =
            |detail| SourceError::Protocol { place: upstream.place(self.repository()), detail };
        let names = tags::decode(&body, listed).map_err(protocol)?;
        let links = answer.headers().get_all(header::LINK).iter();
        let links = links.filter_map(|link| std::str::from_utf8(link.as_bytes()).ok());
        Ok(Page { names, next: tags::next(&at, links, listed).map_err(protocol)? })
    }
}

/// One page of a list.
#[derive(Default)]
struct Page {
    names: Vec<String>,
    next: Option<Url>,
}
