//! Tags and lists of tags, and how long they are remembered.
//!
//! | answer | kept for |
//! | --- | --- |
//! | the grammar refuses a name | ever |
//! | a digest is there | ever |
//! | a tag's digest, a list of tags | `tag_ttl` |
//! | a tag or repository is not there | [`NEGATIVE_TTL`], or `tag_ttl` where that is shorter |
//! | the registry refused, or did not answer | nothing: the next lookup asks again |

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::place::{self, Place, is_pinned};
use super::{Browse, MOST_VISITED};
use crate::fs::attributes::{Attributes, FileKind, Ino, Totals};
use crate::fs::error::{FsError, Unopened};
use crate::fs::nodes::number_of_slot;
use crate::oci::{Digest, Origin, Reference, Selector};
use crate::process::running_time;

/// How long a missing tag is remembered as missing. 5 s: a program that looks for a name in a loop makes few
/// requests, and a person who has just pushed the tag soon sees it.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// How long a list of tags serves a listing that was begun with it.
const LISTING_TTL: Duration = Duration::from_secs(60);

/// The most tags and lists that are remembered.
const MOST_TAGS: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");
const MOST_LISTS: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// The most entries of one result. A program continues from the last offset. Without this bound, each page of a
/// listing of 100,000 tags would cost as much as the whole list.
const MOST_AT_ONCE: usize = 1024;

/// The offsets of `.`, `..`, and the first other entry.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// A result, at once or after a request.
pub enum Answer<T> {
    /// The result is known.
    Now(Result<T, FsError>),
    /// The result has to wait for a registry.
    Later(BoxFuture<'static, Result<T, FsError>>),
}

/// The result of a lookup.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `None` where no entry has that name.
    pub attributes: Option<Attributes>,
    /// How long the kernel may keep the result; `None` for ever.
    pub ttl: Option<Duration>,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderEntry {
    /// The number; for an entry without a number, another value that is not 0.
    pub ino: Ino,
    /// The kind.
    pub kind: FileKind,
    /// The name.
    pub name: String,
    /// The offset of the entry that follows. It depends on the name alone. So a listing goes on although tags come
    /// and go, and after another process has taken over.
    pub next_offset: u64,
}

type Resolving = Shared<BoxFuture<'static, Result<Digest, FsError>>>;

/// A value, and the time at which the registry gave it.
type Dated<T> = (Instant, T);

/// The remembered answers of registries.
pub(super) struct Answers {
    tags: Mutex<LruCache<Reference, Dated<Result<Digest, FsError>>>>,
    lists: Mutex<LruCache<String, Dated<Arc<Vec<String>>>>>,
    resolving: Mutex<HashMap<Reference, Resolving>>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            tags: Mutex::new(LruCache::new(MOST_TAGS)),
            lists: Mutex::new(LruCache::new(MOST_LISTS)),
            resolving: Mutex::default(),
        }
    }
}

impl Browse {
    /// The entry `name` of a place. Only a name that can be a kit's makes a request. Counts a lookup of the kernel
    /// where there is an entry.
    pub fn lookup(self: &Arc<Self>, parent: &Place, name: &[u8]) -> Answer<Entry> {
        if name.len() > Totals::NAME_BYTES as usize {
            return Answer::Now(Err(FsError::NameTooLong));
        }
        let Some(place) = parent.child(name, &self.config.hosts) else {
            return Answer::Now(Ok(Entry { attributes: None, ttl: None }));
        };
        let reference = match &place {
            Place::Root | Place::Folder(_) => return Answer::Now(self.enter(place, None)),
            Place::Link { reference, .. } | Place::Kit { reference, .. } => reference.clone(),
        };
        if let Some(known) = self.known(&reference) {
            return Answer::Now(self.resolved(place, known));
        }
        // A tag that was just listed exists. Its kit is resolved when a program follows the link.
        if matches!(place, Place::Link { .. }) && self.is_listed(&reference) {
            return Answer::Now(self.enter(place, None));
        }
        let this = self.clone();
        Answer::Later(
            async move {
                let found = this.in_time(this.resolve(reference), "the tag").await;
                this.resolved(place, found)
            }
            .boxed(),
        )
    }

    /// The result for a kit or link with this digest.
    fn resolved(&self, place: Place, found: Result<Digest, FsError>) -> Result<Entry, FsError> {
        match found {
            Ok(digest) => {
                let digest = Some(digest).filter(|_| matches!(place, Place::Kit { .. }));
                self.enter(place, digest)
            }
            Err(error) if is_not_there(&error) => {
                Ok(Entry { attributes: None, ttl: Some(NEGATIVE_TTL.min(self.config.tag_ttl)) })
            }
            Err(error) => Err(error),
        }
    }

    /// Counts a lookup of a place.
    fn enter(&self, place: Place, digest: Option<Digest>) -> Result<Entry, FsError> {
        let ttl = match &place {
            Place::Kit { reference, .. } | Place::Link { reference, .. }
                if !is_pinned(reference) =>
            {
                Some(self.config.tag_ttl)
            }
            Place::Root | Place::Folder(_) | Place::Link { .. } | Place::Kit { .. } => None,
        };
        let number = self.table.write().look_up(place.clone(), digest)?;
        let attributes = self.attributes_of(&place, number_of_slot(number));
        Ok(Entry { attributes: Some(attributes), ttl })
    }

    /// The remembered digest of a reference, or the remembered error; `None` where neither is remembered.
    fn known(&self, reference: &Reference) -> Option<Result<Digest, FsError>> {
        let mut tags = self.answers.tags.lock();
        let (at, found) = tags.get(reference)?;
        let ttl = match found {
            Ok(_) if is_pinned(reference) => return Some(found.clone()),
            Ok(_) => self.config.tag_ttl,
            Err(_) => NEGATIVE_TTL.min(self.config.tag_ttl),
        };
        (at.elapsed() < ttl).then(|| found.clone())
    }

    /// Resolves a reference to its manifest. Lookups of the same reference share one request.
    fn resolve(&self, reference: Reference) -> Resolving {
        let mut resolving = self.answers.resolving.lock();
        if let Some(running) = resolving.get(&reference) {
            return running.clone();
        }
        let Some(this) = self.this.upgrade() else { return ended().boxed().shared() };
        let asked = reference.clone();
        let job = self.runtime.spawn(async move {
            let found = this.source.resolve(Origin::from(asked.clone())).await;
            this.answers.resolving.lock().remove(&asked);
            if found.is_ok() {
                this.visit(&place::repository_path(&asked));
            }
            if found.as_ref().err().is_none_or(is_not_there) {
                this.answers.tags.lock().put(asked, (Instant::now(), found.clone()));
            }
            found
        });
        let answer = async move { job.await.unwrap_or_else(|_| Err(fault())) };
        let answer = answer.boxed().shared();
        resolving.insert(reference, answer.clone());
        answer
    }

    /// Notes that a program has used a repository, or that the repository exists.
    fn visit(&self, repository: &str) {
        let mut visited = self.visited.lock();
        if visited.len() < MOST_VISITED && !visited.contains(repository) {
            visited.insert(repository.to_owned());
        }
    }

    fn is_listed(&self, reference: &Reference) -> bool {
        let Selector::Tag(tag) = reference.selector() else { return false };
        let list = self.listed(&place::repository_path(reference), self.config.tag_ttl);
        list.is_some_and(|tags| {
            let at = tags.partition_point(|other| offset_of_tag(other) < offset_of_tag(tag));
            tags.get(at) == Some(tag)
        })
    }

    /// The tags of a repository in the order of their offsets, if they were listed within `ttl`.
    fn listed(&self, repository: &str, ttl: Duration) -> Option<Arc<Vec<String>>> {
        let mut lists = self.answers.lists.lock();
        lists.get(repository).filter(|(at, _)| at.elapsed() < ttl).map(|(_, list)| list.clone())
    }

    /// The next entries of a place, in the order of their offsets, from `offset` on; none at the end. Asks a registry for the tags of
    /// a repository. `.` and `..` come first.
    ///
    /// # Errors
    /// [`FsError::NotADirectory`], and where the registry refuses or does not answer, and nothing is known of
    /// the folder.
    pub fn entries(self: &Arc<Self>, place: &Place, offset: u64) -> Answer<Vec<FolderEntry>> {
        let folder = match place {
            Place::Root => {
                let hosts =
                    self.config.hosts.iter().map(|host| (host.to_owned(), FileKind::Directory));
                return Answer::Now(Ok(self.listing(place, hosts.collect(), offset)));
            }
            Place::Folder(folder) => folder.clone(),
            Place::Link { .. } | Place::Kit { .. } => {
                return Answer::Now(Err(FsError::NotADirectory));
            }
        };
        let Some(repository) = place.repository() else {
            return Answer::Now(Ok(self.listing(place, self.folders_in(&folder), offset)));
        };
        // A listing goes on with the list that it began with, as long as the list is remembered.
        let ttl =
            if offset == 0 { self.config.tag_ttl } else { LISTING_TTL.max(self.config.tag_ttl) };
        if let Some(tags) = self.listed(&folder, ttl) {
            return Answer::Now(Ok(self.folder_listing(place, &folder, &tags, offset)));
        }
        let (this, place) = (self.clone(), place.clone());
        Answer::Later(
            async move {
                let tags = this.list(&folder, repository).await?;
                Ok(this.folder_listing(&place, &folder, &tags, offset))
            }
            .boxed(),
        )
    }

    /// Requests the tags of a repository.
    async fn list(&self, folder: &str, origin: Origin) -> Result<Arc<Vec<String>>, FsError> {
        let error = match self.in_time(self.source.tags(origin), "the list of tags").await {
            Ok(mut tags) => {
                self.visit(folder);
                // A registry may list names that are no tags.
                let repository = Place::Folder(folder.to_owned());
                let is_tag = |tag: &String| {
                    repository.child(format!(":{tag}").as_bytes(), &self.config.hosts).is_some()
                };
                tags.retain(is_tag);
                tags.sort_by_cached_key(|tag| offset_of_tag(tag));
                tags.dedup();
                let tags = Arc::new(tags);
                self.answers.lists.lock().put(folder.to_owned(), (Instant::now(), tags.clone()));
                return Ok(tags);
            }
            Err(error) => error,
        };
        if is_not_there(&error) {
            // The folder may be the parent of repositories without being one. The next part of a listing must not
            // have tags of a repository that is gone.
            self.answers.lists.lock().pop(folder);
            return Ok(Arc::default());
        }
        let before = self.answers.lists.lock().get(folder).map(|(_, tags)| tags.clone());
        match before {
            Some(before) => {
                tracing::warn!(folder, %error, "an earlier list of tags is shown");
                Ok(before)
            }
            None if !self.folders_in(folder).is_empty() => Ok(Arc::default()),
            None => Err(error),
        }
    }

    fn folder_listing(
        &self,
        place: &Place,
        folder: &str,
        tags: &[String],
        offset: u64,
    ) -> Vec<FolderEntry> {
        let mut names = self.folders_in(folder);
        let after = tags.partition_point(|tag| offset_of_tag(tag) <= offset);
        let tags = tags[after..].iter().take(MOST_AT_ONCE);
        names.extend(tags.map(|tag| (format!(":{tag}"), FileKind::Symlink)));
        self.listing(place, names, offset)
    }

    /// The folders in a folder whose repositories programs have used.
    fn folders_in(&self, folder: &str) -> BTreeMap<String, FileKind> {
        let above = format!("{folder}/");
        let visited = self.visited.lock();
        let below = visited.range(above.clone()..).take_while(|path| path.starts_with(&above));
        let names = below.filter_map(|path| path[above.len()..].split('/').next());
        names.map(|name| (name.to_owned(), FileKind::Directory)).collect()
    }

    fn listing(
        &self,
        place: &Place,
        names: BTreeMap<String, FileKind>,
        offset: u64,
    ) -> Vec<FolderEntry> {
        let table = self.table.read();
        let number = |place: &Place| match place {
            Place::Root => Ino::ROOT,
            place => table.number(&place.path(), None).map_or(Ino::ROOT, number_of_slot),
        };
        let (own, parent) = (number(place), number(&place.parent()));
        let dots = [(".", own, DOT), ("..", parent, DOT_DOT)].map(|(name, ino, next_offset)| {
            FolderEntry { ino, kind: FileKind::Directory, name: name.to_owned(), next_offset }
        });
        let path = place.path();
        let entries = names.into_iter().map(|(name, kind)| {
            let next_offset = offset_of(&name);
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            // Programs take number 0 for no entry. A later lookup gives the real number.
            let ino = table.number(&path, None).map_or(Ino(next_offset), number_of_slot);
            FolderEntry { ino, kind, name, next_offset }
        });
        let entries = dots.into_iter().chain(entries);
        let mut entries: Vec<_> = entries.filter(|entry| entry.next_offset > offset).collect();
        entries.sort_by_key(|entry| entry.next_offset);
        entries.truncate(MOST_AT_ONCE);
        entries
    }

    /// Waits for a registry until the deadline of reads.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, FsError>>,
        what: &str,
    ) -> Result<T, FsError> {
        let Some(deadline) = self.config.fs.read_deadline else { return answer.await };
        running_time::timeout(deadline, answer).await.unwrap_or_else(|_| {
            let seconds = deadline.as_secs();
            Err(Unopened::Late.error(format!("{what} did not come within {seconds} s")))
        })
    }
}

/// The offset of an entry: a hash of its name, with the top bits clear, because offsets are signed.
fn offset_of(name: &str) -> u64 {
    let hash = Sha256::digest(name.as_bytes());
    let first = hash.first_chunk().copied().unwrap_or_default();
    (u64::from_be_bytes(first) >> 2).max(DOT_DOT + 1)
}

/// The offset of a tag in the folder of its repository.
fn offset_of_tag(tag: &str) -> u64 {
    offset_of(&format!(":{tag}"))
}

pub(super) fn is_not_there(error: &FsError) -> bool {
    matches!(error, FsError::Unopened { why: Unopened::NotThere, .. })
}

/// The error where a task has panicked.
pub(super) fn fault() -> FsError {
    Unopened::Bad.error("a fault in kitfs itself; see daemon.log in the cache folder".to_owned())
}

async fn ended<T>() -> Result<T, FsError> {
    Err(Unopened::Bad.error("the mount has ended".to_owned()))
}
