//! Modification times of layers and manifests. Each is given once and kept; versions of a kit get different times.
//!
//! A layer's files are dated by themselves, by their kit, or by the moment at which this cache first
//! saw the layer. The caller says which of these applies. This module gives the time once and keeps
//! it in the layer's `meta` file, so a layer that two versions of a kit share keeps its date.
//!
//! A manifest dates what lies in no layer: the Kitfile. The file `mtime` beside the manifest
//! keeps its second.
//!
//! Many tools (rsync, nginx, Python's byte code) compare whole seconds and sizes. Two versions of a
//! kit may have the same second: one script packed or mounted both, or a packer gives all files a
//! constant date. The layer that comes second then gets the next free second.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use super::known::{Known, Shared};
use super::meta::Meta;
use super::{Cache, LayerKey};
use crate::layer::Mtime;
use crate::oci::Digest;

/// The source of the date of a layer's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dated {
    /// The files have this time themselves.
    ByItself(Mtime),
    /// A kit that has the layer was made then.
    ByItsKit(Mtime),
    /// The moment at which this cache first saw the layer.
    ByFirstSight,
}

impl Cache {
    /// The modification time of each layer, in their order.
    ///
    /// A layer that has one keeps it. A new one gets the time that [`Dated`] says, moved to the first
    /// second in which no layer of another kit would pass for another version of it:
    /// - for [`Dated::ByItself`], no layer of the same size has that second. A time with nanoseconds
    ///   is taken as it is: no packer writes such a time as a constant.
    /// - else no layer at all has it.
    ///
    /// Where the time has no nanoseconds, they stand for the layer's digest.
    ///
    /// Layers of one kit never hold the same path. So `kit`, which is every layer of the kit that is
    /// loaded and of its parents, may share a second.
    pub fn date_layers(&self, layers: &[(LayerKey, Dated)], kit: &HashSet<LayerKey>) -> Vec<Mtime> {
        // One load at a time: two versions must not choose the same second.
        let _one_at_a_time = self.dating.lock();
        let mtime_of =
            |key| self.shared.known(key).meta.read().as_ref().and_then(|meta| meta.mtime);
        let given: Option<Vec<Mtime>> = layers.iter().map(|&(key, _)| mtime_of(key)).collect();
        if let Some(given) = given {
            // No look at the other layers: the kit was mounted before.
            return given;
        }
        let mut taken = HashSet::new();
        let mut taken_with_size = HashSet::new();
        for known in self.shared.all_known() {
            let Some(meta) = known.meta.read().clone() else { continue };
            let Some(mtime) = meta.mtime.filter(|_| !kit.contains(&known.key)) else { continue };
            taken.insert(mtime.seconds());
            taken_with_size.insert((mtime.seconds(), stream_bytes(&meta)));
        }
        let date = |&(key, dated): &(LayerKey, Dated)| {
            let known = self.shared.known(key);
            let meta = known.meta.read().clone();
            let size = meta.as_ref().map_or(0, stream_bytes);
            let mtime = match (meta.and_then(|meta| meta.mtime), dated) {
                (Some(mtime), _) => return mtime,
                (None, Dated::ByItself(mtime)) if mtime.nanoseconds() != 0 => mtime,
                (None, Dated::ByItself(mtime)) => {
                    free_second(mtime, |second| taken_with_size.contains(&(second, size)))
                }
                (None, Dated::ByItsKit(mtime)) => free_second(mtime, |it| taken.contains(&it)),
                (None, Dated::ByFirstSight) => {
                    free_second(first_seen(&known), |it| taken.contains(&it))
                }
            };
            put_mtime(&self.shared, &known, mtime.or_fraction_of(&key.digest))
        };
        layers.iter().map(date).collect()
    }

    /// The modification time of a manifest: `created`, else the time at which the manifest was kept.
    ///
    /// A manifest that has a time keeps it. A new one gets the first second that no other manifest of
    /// this cache has: Kitfiles of two versions often have one size. A manifest that is not in the
    /// folder gets `created`, else the earliest time.
    pub fn date_manifest(&self, manifest: Digest, created: Option<Mtime>) -> Mtime {
        let _one_at_a_time = self.dating.lock();
        let Some(seen) = self.document_first_seen(manifest) else {
            return created.unwrap_or(Mtime::EARLIEST);
        };
        let wanted = created.unwrap_or(seen);
        if let Some(given) = self.document_second(manifest) {
            return Mtime::new(given, wanted.nanoseconds()).unwrap_or(wanted);
        }
        let taken = self.document_seconds();
        let mtime = free_second(wanted, |second| taken.contains(&second.into()));
        self.put_document_second(manifest, mtime.seconds().into());
        mtime
    }
}

fn stream_bytes(meta: &Meta) -> u64 {
    meta.stream_bytes.unwrap_or(meta.blob_bytes)
}

fn first_seen(known: &Known) -> Mtime {
    let seconds = known.meta.read().as_ref().map(|meta| meta.first_seen_seconds);
    let time = seconds.map_or_else(SystemTime::now, |seconds| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
    });
    Mtime::nearest(time)
}

/// The first second from `mtime` on that is not taken, or the last one there is.
fn free_second(mtime: Mtime, is_taken: impl Fn(u32) -> bool) -> Mtime {
    let mut free = mtime;
    while is_taken(free.seconds()) && free.next_second() != free {
        free = free.next_second();
    }
    free
}

/// Notes how the files of a layer are dated, unless the layer is not in the folder.
///
/// The file is written in place and not synced, because a kit has hundreds of layers: its two copies
/// of the record lie in two blocks, and one of them is whole after a power cut.
fn put_mtime(shared: &Shared, known: &Known, mtime: Mtime) -> Mtime {
    let _one_writer = known.writing_meta.lock();
    let Some(meta) = known.meta.read().clone() else { return mtime };
    let meta = Meta { mtime: Some(mtime), ..meta };
    let place = shared.layer_folder(known.key).join("meta");
    let written = place.open().and_then(|file| file.write_all_at(&meta.encode(), 0));
    if let Err(error) = written {
        tracing::warn!(%error, "the date of a layer is not kept: its files are dated anew after a restart");
    }
    *known.meta.write() = Some(meta);
    mtime
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::cache::CacheConfig;
    use crate::oci::{Compression, Encoding, Format};

    const NOON: i64 = 1_700_000_000;

    fn second(offset: i64) -> Mtime {
        Mtime::new(NOON + offset, 0).unwrap()
    }

    fn open(folder: &Path) -> Arc<Cache> {
        Cache::open(CacheConfig::new(folder)).unwrap()
    }

    /// A layer that the cache has, with that many bytes.
    fn layer(cache: &Arc<Cache>, name: u8, bytes: u64) -> LayerKey {
        let encoding = Encoding { format: Format::Raw, compression: Compression::None };
        let key = LayerKey { digest: Digest::of(&[name]), encoding };
        cache.layer(key, bytes).unwrap();
        key
    }

    /// Dates a kit of these layers, all in the same way.
    fn date(cache: &Cache, layers: &[LayerKey], dated: Dated) -> Vec<Mtime> {
        let wanted: Vec<_> = layers.iter().map(|&key| (key, dated)).collect();
        cache.date_layers(&wanted, &layers.iter().copied().collect())
    }

    fn seconds(mtimes: &[Mtime]) -> Vec<i64> {
        mtimes.iter().map(|mtime| mtime.seconds().into()).collect()
    }

    #[test]
    fn a_layer_keeps_its_date_over_versions_and_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        let (shared, old, new) = (layer(&cache, 0, 9), layer(&cache, 1, 9), layer(&cache, 2, 9));
        let seen = cache.layer(shared, 9).unwrap().first_seen_seconds();
        let first = date(&cache, &[shared, old], Dated::ByFirstSight);
        assert_eq!(seconds(&first)[0], seen);
        assert_ne!(first[0], first[1]);
        let version_2 = date(&cache, &[shared, new], Dated::ByItsKit(second(70)));
        assert_eq!((version_2[0], seconds(&version_2)[1]), (first[0], NOON + 70));
        drop(cache);
        let cache = open(folder.path());
        assert_eq!(date(&cache, &[shared, old], Dated::ByItsKit(second(500))), first);
        assert_eq!(date(&cache, &[shared, new], Dated::ByFirstSight), version_2);
    }

    #[test]
    fn versions_of_one_second_get_different_seconds() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        let made: Vec<i64> = (0..5)
            .map(|name| layer(&cache, name, name.into()))
            .flat_map(|key| seconds(&date(&cache, &[key], Dated::ByItsKit(second(0)))))
            .collect();
        assert_eq!(made, (0..5).map(|offset| NOON + offset).collect::<Vec<_>>());
        let seen: HashSet<i64> = (5..10)
            .map(|name| layer(&cache, name, name.into()))
            .flat_map(|key| seconds(&date(&cache, &[key], Dated::ByFirstSight)))
            .collect();
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn a_constant_date_moves_for_another_layer_of_the_same_size_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        let own = Dated::ByItself(second(0));
        let of = |name, bytes| seconds(&date(&cache, &[layer(&cache, name, bytes)], own))[0] - NOON;
        assert_eq!(of(0, 100), 0);
        assert_eq!(of(1, 200), 0);
        assert_eq!(of(2, 100), 1);
        assert_eq!(of(3, 100), 2);
        let exact = Mtime::new(NOON, 5).unwrap();
        let key = layer(&cache, 4, 100);
        assert_eq!(date(&cache, &[key], Dated::ByItself(exact)), [exact]);
        // Shards of one kit have one size and may have one second.
        let shards = [layer(&cache, 5, 300), layer(&cache, 6, 300)];
        assert_eq!(seconds(&date(&cache, &shards, own)), [NOON, NOON]);
    }

    #[test]
    fn manifests_of_one_second_get_different_seconds_and_keep_them() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        let manifests: Vec<Digest> = (0..20_u8)
            .map(|name| {
                cache.put_document(Digest::of(&[name]), &[name]).unwrap();
                Digest::of(&[name])
            })
            .collect();
        let created = |index: usize| match index % 3 {
            0 => Some(second(0)),
            1 => Mtime::new(NOON, 5),
            _ => None,
        };
        let date_all = |cache: &Cache| -> Vec<Mtime> {
            let dated = manifests.iter().enumerate();
            dated.map(|(index, &digest)| cache.date_manifest(digest, created(index))).collect()
        };
        let first = date_all(&cache);
        assert_eq!(seconds(&first).into_iter().collect::<HashSet<_>>().len(), manifests.len());
        assert_eq!((seconds(&first)[0], seconds(&first)[1]), (NOON, NOON + 1));
        assert_eq!(date_all(&cache), first);
        drop(cache);
        let cache = open(folder.path());
        assert_eq!(date_all(&cache), first, "after a restart");
        let unknown = Digest::of(b"not kept");
        assert_eq!(cache.date_manifest(unknown, None), Mtime::EARLIEST);
    }

    #[test]
    fn a_damaged_date_of_a_manifest_is_given_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        let digest = Digest::of(b"a manifest");
        cache.put_document(digest, b"a manifest").unwrap();
        let date = folder.path().join(format!("kits/sha256/{}/mtime", digest.hex()));
        let hostile: [&[u8]; 7] =
            [b"", b"x\n", b"-5\n", b"0\n", b"99999999999999999999\n", b"1\n2\n", &[b'1'; 4096]];
        for bytes in hostile {
            std::fs::write(&date, bytes).unwrap();
            assert_eq!(cache.date_manifest(digest, Some(second(0))), second(0), "{bytes:?}");
            assert_eq!(std::fs::read_to_string(&date).unwrap(), format!("{NOON}\n"));
        }
        cache.clear_documents().unwrap();
        assert!(!date.exists());
    }

    #[test]
    fn the_last_second_is_given_again() {
        let last = Mtime::new(i64::from(u32::MAX), 0).unwrap();
        assert_eq!(free_second(last, |_| true), last);
    }
}
