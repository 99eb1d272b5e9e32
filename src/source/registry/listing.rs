//! Lists the tags of a repository, page by page (distribution-spec, "Listing Tags").
//!
//! ```text
//! tags/list?n=1000 --refused for its n--> tags/list
//!       '--page--> Link: rel="next" --page--> … --no link, or nothing new--> all tags, sorted
//! ```

use std::collections::{BTreeSet, HashSet};

use http::{HeaderMap, StatusCode, header};
use url::Url;

use super::errand::Errand;
use super::repository::Remote;
use super::retry::Failure;
use super::tags;
use super::upstream::Upstream;
use crate::source::SourceError;

impl Remote {
    /// Every tag that one upstream lists, sorted.
    pub(super) async fn tags_once(
        &self,
        upstream: &Upstream,
        errand: &Errand,
    ) -> Result<Vec<String>, Failure> {
        let protocol =
            |detail| SourceError::Protocol { place: upstream.place(self.repository()), detail };
        let mut all = BTreeSet::new();
        let mut asked = HashSet::new();
        let mut next = Some(upstream.tags(self.repository(), tags::PAGE_TAGS));
        while let Some(url) = next.take() {
            if asked.len() == tags::PAGE_LIMIT {
                return Err(protocol(format!("more than {} pages of tags", asked.len())).into());
            }
            let page = self.page(upstream, &url, errand, asked.is_empty()).await?;
            asked.insert(url);
            let known = all.len();
            all.extend(page.tags);
            if all.len() > tags::TAG_LIMIT {
                return Err(protocol(format!("more than {} tags", tags::TAG_LIMIT)).into());
            }
            // Some registries name a next page for ever, the first one or an empty one.
            next = page.next.filter(|next| all.len() > known && !asked.contains(next));
        }
        Ok(all.into_iter().collect())
    }

    /// Asks for one page. The first one is asked for once more without a number of tags where the
    /// registry refuses that.
    async fn page(
        &self,
        upstream: &Upstream,
        url: &Url,
        errand: &Errand,
        is_first: bool,
    ) -> Result<Page, Failure> {
        let headers = HeaderMap::new();
        let question = self.question(upstream, url, &headers, errand);
        let mut answer = self.client().ask(&question, |_| ()).await?;
        let mut at = url.clone();
        if is_first && tags::may_refuse_number(answer.status()) {
            drop(answer);
            at = upstream.tags(self.repository(), None);
            let question = self.question(upstream, &at, &headers, errand);
            answer = self.client().ask(&question, |_| ()).await?;
        }
        let stall = self.timing().stall;
        if answer.status() != StatusCode::OK {
            let (what, hint) = ("the list of tags", "check the name of the repository");
            return Err(answer.refusal(what, hint, stall).await);
        }
        let body = answer.document("the list of tags", tags::PAGE_LIMIT_BYTES, stall).await?;
        let protocol =
            |detail| SourceError::Protocol { place: upstream.place(self.repository()), detail };
        let tags = tags::decode(&body).map_err(protocol)?;
        let links = answer.headers().get_all(header::LINK).iter();
        let links = links.filter_map(|link| std::str::from_utf8(link.as_bytes()).ok());
        Ok(Page { tags, next: tags::next(&at, links).map_err(protocol)? })
    }
}

/// One page of a list.
struct Page {
    tags: Vec<String>,
    next: Option<Url>,
}
