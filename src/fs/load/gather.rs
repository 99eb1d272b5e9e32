//! Finds the kits and objects from which a kit takes layers, in the order in which `kit unpack` writes them.
//!
//! ```text
//! grandparent --> parent --> data sets that lie elsewhere --> the kit itself
//!                               '-- of a kit: its own data sets that lie elsewhere, then itself
//! ```
//!
//! A missing parent is an error. Missing remote data is left out with a warning, and the tree shows its place. So a
//! program that reads the data gets an error instead of an empty file.
//!
//! A kit comes from the network, and so does every reference in it. Such a reference never names a folder of this
//! machine. Depth, circles, and the number of kits and objects are bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};

use super::LoadRequest;
use super::error::{For, LoadError};
use super::merging::key_of;
use super::objects::{self, KnownObject};
use super::resolve::{Description, Kin, Relation, Resolved, resolve};
use crate::cache::LayerKey;
use crate::fetch::Fetcher;
use crate::kit::{Filters, Missing, Parents, RemoteData, RemoteTarget};
use crate::layer::MemberPath;
use crate::oci::{Digest, LabelSelector, Origin, Reference};
use crate::source::{ObjectId, Repositories};

/// Remote data sets of a kit that are looked up at the same time. 8: enough to hide the round trips of some dozens,
/// few enough for any host.
const LOOK_UP_AT_ONCE: usize = 8;

/// The most kits and objects that a kit's data sets may lead to, over all levels. Each costs a request before the
/// kit can be listed, and each kit may name thousands more.
pub(super) const MOST_REMOTE: usize = 1000;

/// The tools of loading.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) fetcher: &'a Arc<Fetcher>,
    pub(super) repositories: &'a dyn Repositories,
    pub(super) request: &'a LoadRequest,
}

/// All kits and objects that layers are taken from.
#[derive(Default)]
pub(super) struct Gathered {
    /// In the order in which they are merged.
    pub(super) parts: Vec<Part>,
    /// Directories into which data sets of other kits belong.
    pub(super) directories: Vec<MemberPath>,
    /// Missing remote data.
    pub(super) missing: Vec<Missing>,
    /// Warnings about parts that are left out or missing.
    pub(super) warnings: Vec<String>,
}

/// A kit or object that layers are taken from.
pub(super) enum Part {
    /// The kit itself or a parent.
    Kit(Box<Taken>),
    /// A kit that a data set names.
    RemoteKit(Box<Taken>, Arc<Place>),
    /// An object that a data set names.
    Object(KnownObject, Arc<Place>),
}

/// A kit, and the filters for its layers.
pub(super) struct Taken {
    pub(super) resolved: Resolved,
    pub(super) filters: Filters,
    /// The kit as messages name it.
    pub(super) name: String,
}

/// The place of a remote data set in the tree.
#[derive(Debug)]
pub(super) struct Place {
    /// Its path; `None` for the root.
    pub(super) path: Option<MemberPath>,
    /// The path as messages name it.
    pub(super) shown: String,
    /// Its source.
    target: String,
    is_directory: bool,
}

impl Place {
    /// The node that stands for the data set in the tree, and the warning for the user.
    pub(super) fn missing(&self, why: &impl std::fmt::Display) -> (Option<Missing>, String) {
        let warning = format!("the data set `{}` is missing: {why}", self.shown);
        let missing = self.path.clone().map(|path| Missing {
            path,
            is_directory: self.is_directory,
            reason: format!("its content lies in {} and cannot be had: {why}", self.target),
        });
        (missing, warning)
    }
}

/// Resolves all kits and objects from which the requested kit takes layers. Returns the kit itself too.
///
/// # Errors
/// Fails if the kit or a parent cannot be resolved, or the parents make no chain.
pub(super) async fn gather(site: Site<'_>) -> Result<(Description, Gathered), LoadError> {
    let request = site.request;
    let kin = Kin::of_request(request);
    let kit = resolve(site.fetcher.cache(), site.repositories, &kin).await?;
    let mut parents = resolve_parents(site, &kit).await?;
    parents.reverse();
    let mut gathered = Gathered::default();
    for parent in parents {
        gathered.take(parent, None);
    }
    let description = kit.description.clone();
    if request.remote {
        let chain = Parents::new(&request.origin.to_string());
        let budget = AtomicUsize::new(MOST_REMOTE);
        let walk = Walk { site, budget: &budget };
        let from =
            From { kit: &description, filters: &request.filters, chain: &chain, above: None };
        gathered.append(walk.remote_data(from).await);
    }
    let name = kin.to_string();
    gathered.take(Taken { resolved: kit, filters: request.filters.clone(), name }, None);
    Ok((description, gathered))
}

/// The parents of a kit, the nearest first, each with the filters that apply to it.
async fn resolve_parents(site: Site<'_>, kit: &Resolved) -> Result<Vec<Taken>, LoadError> {
    let request = site.request;
    let own = Kin::of_request(request);
    let none = LabelSelector::default();
    let mut chain = Parents::new(&request.origin.to_string());
    let mut parents: Vec<Taken> = Vec::new();
    let mut filters = request.filters.for_parent();
    let mut next = kit.description.kit.parent.clone();
    while let (Some(reference), Some(applied)) = (&next, filters) {
        let origin = Origin::from(Reference::parse(reference).of(&own)?);
        chain.push(&origin.to_string()).of(&own)?;
        let relation = Relation::ParentOf(&request.origin);
        let kin = Kin { origin: &origin, labels: &none, relation };
        let parent = resolve(site.fetcher.cache(), site.repositories, &kin).await?;
        next = parent.description.kit.parent.clone();
        filters = applied.for_parent();
        parents.push(Taken { resolved: parent, filters: applied, name: kin.to_string() });
    }
    Ok(parents)
}

/// The walk through the kits that data sets name.
#[derive(Clone, Copy)]
struct Walk<'a> {
    site: Site<'a>,
    /// The number of kits and objects that may still be looked up.
    budget: &'a AtomicUsize,
}

/// A kit on the walk, and how it was reached.
#[derive(Clone, Copy)]
struct From<'a> {
    kit: &'a Description,
    filters: &'a Filters,
    chain: &'a Parents,
    /// The directory that its paths lie below.
    above: Option<&'a MemberPath>,
}

impl<'a> Walk<'a> {
    /// Everything that the data sets of a kit name, in the Kitfile's order.
    fn remote_data(self, from: From<'a>) -> BoxFuture<'a, Gathered> {
        Box::pin(async move {
            let entries = from.kit.kit.remote.iter();
            let wanted = entries.filter(|remote| remote.is_taken_by(from.filters));
            let found = wanted.map(|remote| self.look_up(from, remote));
            // The futures are collected because the compiler does not see that a stream of borrowing futures is
            // Send.
            let found: Vec<_> = found.collect();
            let mut found = stream::iter(found).buffered(LOOK_UP_AT_ONCE);
            let mut gathered = Gathered::default();
            while let Some(one) = found.next().await {
                gathered.append(one);
            }
            gathered
        })
    }

    async fn look_up(self, from: From<'a>, remote: &'a RemoteData) -> Gathered {
        let path = match (from.above, &remote.path) {
            (Some(above), Some(path)) => path.below(above).map(Some),
            (above, path) => Ok(path.as_ref().or(above).cloned()),
        };
        let path = match path {
            Ok(path) => path,
            Err(error) => {
                let warning = format!("the data set `{}` is left out: {error}", remote.entry_path);
                return Gathered { warnings: vec![warning], ..Gathered::default() };
            }
        };
        let shown = path.as_ref().map_or_else(|| "/".to_owned(), ToString::to_string);
        let place = Arc::new(Place {
            path,
            shown,
            target: remote.target.to_string(),
            is_directory: matches!(remote.target, RemoteTarget::Kit(_)),
        });
        let is_within_budget = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok();
        if !is_within_budget {
            let why = format!("the kit leads to more than {MOST_REMOTE} other kits and objects");
            return Gathered::without(&place, &why);
        }
        match &remote.target {
            RemoteTarget::Kit(reference) => match self.kit(from, reference, &place).await {
                Ok(gathered) => gathered,
                Err(error) => Gathered::without(&place, &error),
            },
            RemoteTarget::Object { location, etag } => {
                let object = ObjectId { location: location.clone(), etag: etag.clone() };
                self.object(&object, place).await
            }
        }
    }

    async fn kit(
        self,
        from: From<'a>,
        reference: &Reference,
        place: &Arc<Place>,
    ) -> Result<Gathered, LoadError> {
        let asking = &self.site.request.origin;
        let own = Kin::of_request(self.site.request);
        // A reference from the network never names a folder.
        let origin = Origin::from(reference.clone());
        let mut chain = from.chain.clone();
        chain.push(&origin.to_string()).of(&own)?;
        let Some(filters) = from.filters.for_remote() else { return Ok(Gathered::default()) };
        let none = LabelSelector::default();
        let kin = Kin { origin: &origin, labels: &none, relation: Relation::DataOf(asking) };
        let resolved = resolve(self.site.fetcher.cache(), self.site.repositories, &kin).await?;
        let mut gathered = Gathered::default();
        gathered.directories.extend(place.path.clone());
        let below = From {
            kit: &resolved.description,
            filters: &filters,
            chain: &chain,
            above: place.path.as_ref(),
        };
        // This walk has a shorter lifetime, because it borrows the results of this call.
        let walk = Walk { site: self.site, budget: self.budget };
        gathered.append(walk.remote_data(below).await);
        let name = kin.to_string();
        gathered.take(Taken { resolved, filters, name }, Some(place.clone()));
        Ok(gathered)
    }

    async fn object(self, object: &ObjectId, place: Arc<Place>) -> Gathered {
        let Some(store) = self.site.repositories.objects() else {
            return Gathered::without(&place, &"this kitfs reads no S3 objects");
        };
        let user = self.site.repositories.user();
        match objects::find(self.site.fetcher.cache(), store, object, user).await {
            Ok(known) => {
                Gathered { parts: vec![Part::Object(known, place)], ..Gathered::default() }
            }
            Err(error) => Gathered::without(&place, &error),
        }
    }
}

impl Gathered {
    /// The result for a remote data set that is missing.
    fn without(place: &Place, why: &impl std::fmt::Display) -> Self {
        let (missing, warning) = place.missing(why);
        Self { missing: missing.into_iter().collect(), warnings: vec![warning], ..Self::default() }
    }

    /// Adds a kit, and the warnings about it; `place` is set for remote data.
    fn take(&mut self, taken: Taken, place: Option<Arc<Place>>) {
        let Description { origin, warning, kit, .. } = &taken.resolved.description;
        // The name of the requested kit is its origin. Its warnings need no name.
        let is_own = taken.name == origin.to_string();
        // The doubt about the requested reference may end later, so the loaded kit holds it, not the warnings.
        self.warnings.extend(warning.clone().filter(|_| !is_own));
        self.warnings.extend(kit.warnings.iter().map(|warning| match is_own {
            true => warning.clone(),
            false => format!("{origin}: {warning}"),
        }));
        let taken = Box::new(taken);
        self.parts.push(match place {
            None => Part::Kit(taken),
            Some(place) => Part::RemoteKit(taken, place),
        });
    }

    /// The manifests of the kit and its parents, the oldest first.
    pub(super) fn manifests(&self) -> Vec<Digest> {
        let kits = self.parts.iter().filter_map(|part| match part {
            Part::Kit(taken) => Some(taken.resolved.description.digest),
            Part::RemoteKit(..) | Part::Object(..) => None,
        });
        kits.collect()
    }

    /// Every layer of the kits here, taken or not.
    pub(super) fn layer_keys(&self) -> impl Iterator<Item = LayerKey> {
        let kits = self.parts.iter().filter_map(|part| match part {
            Part::Kit(taken) | Part::RemoteKit(taken, _) => Some(&taken.resolved.description.kit),
            Part::Object(..) => None,
        });
        kits.flat_map(|kit| &kit.layers).map(key_of)
    }

    fn append(&mut self, mut other: Self) {
        self.parts.append(&mut other.parts);
        self.directories.append(&mut other.directories);
        self.missing.append(&mut other.missing);
        self.warnings.append(&mut other.warnings);
    }
}
