//! Which dates files have. Each test's name is a sentence of docs/semantics.md.

use super::*;
use crate::layer::Mtime;

const CREATED: &str = "org.opencontainers.image.created";
/// A tar layer with one file, `t`, dated in its header.
const TAR_TYPE: &str = "application/vnd.kitops.modelkit.dataset.v1.tar";

/// The dates in versions of a kit.
#[derive(Clone, Copy, Default)]
struct Version<'a> {
    tag: &'a str,
    layers: &'a [(&'a str, &'a str, &'a [u8])],
    created: Option<&'a str>,
    metadata_mtime: Option<&'a str>,
}

impl Bench {
    fn push_version(&self, version: Version<'_>) {
        self.registry.push_with(version.tag, None, version.layers, |manifest| {
            if let Some(created) = version.created {
                manifest["annotations"] = json!({CREATED: created});
            }
            let Some(mtime) = version.metadata_mtime else { return };
            for layer in manifest["layers"].as_array_mut().unwrap() {
                let metadata = json!({"mode": 420, "mtime": mtime, "typeflag": 48}).to_string();
                layer["annotations"]["org.cncf.model.file.metadata+json"] = metadata.into();
            }
        });
    }

    /// The times of files and directories of a kit.
    async fn mtimes(&self, tag: &str, paths: &[&str]) -> Vec<Mtime> {
        let kit = self.load(tag, &[]).await.unwrap();
        paths
            .iter()
            .map(|path| kit.tree.mtime(kit.tree.resolve(path.as_bytes()).unwrap()))
            .collect()
    }

    async fn mtime(&self, tag: &str, path: &str) -> Mtime {
        self.mtimes(tag, &[path]).await[0]
    }

    /// The same registry and cache folder in another process.
    fn restarted(self) -> Self {
        let Self { registry, fetcher, _folder, store } = self;
        drop(fetcher);
        let cache = Cache::open(CacheConfig::new(_folder.path())).unwrap();
        let fetcher = Fetcher::new(cache, FetchConfig::default());
        Self { registry, fetcher, _folder, store }
    }
}

fn seconds(mtime: Mtime) -> i64 {
    mtime.seconds().into()
}

fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64
}

const ONE: Version<'static> = Version {
    tag: "registry.test/org/kit:v1",
    layers: &[("model", "model", b"one"), ("docs", "docs/read.me", b"shared")],
    created: None,
    metadata_mtime: None,
};
const TWO: Version<'static> = Version {
    tag: "registry.test/org/kit:v2",
    layers: &[("model", "model", b"two"), ("docs", "docs/read.me", b"shared")],
    ..ONE
};

#[tokio::test]
async fn a_file_has_its_own_date_else_that_of_its_kit_else_that_of_its_first_sight() {
    let bench = Bench::new();
    let before = now();
    bench.push_version(ONE);
    let seen = bench.mtime(ONE.tag, "model").await;
    assert!((before..=now() + 1).contains(&seconds(seen)), "{seen:?}");

    let bench = Bench::new();
    let created = Some("2025-03-01T10:00:00Z");
    bench.push_version(Version { created, ..ONE });
    assert_eq!(seconds(bench.mtime(ONE.tag, "model").await), 1_740_823_200);
    assert_eq!(seconds(bench.mtime(ONE.tag, "Kitfile").await), 1_740_823_200);

    let bench = Bench::new();
    let metadata_mtime = Some("2024-05-29T18:26:40.25+02:00");
    bench.push_version(Version { created, metadata_mtime, ..ONE });
    let own = Mtime::new(1_717_000_000, 250_000_000).unwrap();
    assert_eq!(bench.mtime(ONE.tag, "model").await, own);
}

#[tokio::test]
async fn a_date_before_1980_or_after_2106_counts_for_nothing() {
    for created in ["1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "2200-01-01T00:00:00Z", "x"] {
        let bench = Bench::new();
        let before = now();
        bench.push_version(Version {
            created: Some(created),
            metadata_mtime: Some(created),
            ..ONE
        });
        for path in ["model", "docs", "", "Kitfile"] {
            let mtime = bench.mtime(ONE.tag, path).await;
            assert!((before..=now() + 1).contains(&seconds(mtime)), "{path}: {mtime:?}");
        }
    }
}

#[tokio::test]
async fn a_layer_that_two_versions_share_keeps_its_date() {
    let bench = Bench::new();
    bench.push_version(Version { created: Some("2025-03-01T10:00:00Z"), ..ONE });
    bench.push_version(Version { created: Some("2025-04-01T10:00:00Z"), ..TWO });
    let shared = ["docs/read.me", "docs"];
    let (one, model) = (bench.mtimes(ONE.tag, &shared).await, bench.mtime(ONE.tag, "model").await);
    let bench = bench.restarted();
    assert_eq!(bench.mtimes(TWO.tag, &shared).await, one);
    assert!(bench.mtime(TWO.tag, "model").await > model);
    assert_eq!(bench.mtimes(ONE.tag, &["model"]).await, [model], "a date stays");
}

#[tokio::test]
async fn versions_with_one_date_differ_by_a_second_and_in_what_changed_only() {
    let date = "2025-03-01T10:00:00Z";
    for (created, metadata_mtime) in [(None, None), (Some(date), None), (None, Some(date))] {
        let bench = Bench::new();
        for version in [ONE, TWO] {
            bench.push_version(Version { created, metadata_mtime, ..version });
        }
        let paths = ["model", "docs/read.me", "docs", ""];
        let one = bench.mtimes(ONE.tag, &paths).await;
        let two = bench.mtimes(TWO.tag, &paths).await;
        assert!(seconds(two[0]) > seconds(one[0]), "{one:?} {two:?}");
        assert_eq!((two[1], two[2]), (one[1], one[2]));
        assert_ne!(two[3], one[3], "the root has changed");
        // On another machine that sees one of them only, the date is the same.
        if created.or(metadata_mtime).is_some() {
            let elsewhere = Bench::new();
            elsewhere.push_version(Version { created, metadata_mtime, ..TWO });
            assert_eq!(seconds(elsewhere.mtime(TWO.tag, "model").await), 1_740_823_200);
        }
    }
}

#[tokio::test]
async fn kitfiles_of_versions_differ_by_a_second() {
    for created in [None, Some("2025-03-01T10:00:00Z"), Some("2025-03-01T10:00:00.5Z")] {
        let bench = Bench::new();
        for version in [ONE, TWO] {
            bench.push_version(Version { created, ..version });
        }
        let one = bench.mtime(ONE.tag, "Kitfile").await;
        let two = bench.mtime(TWO.tag, "Kitfile").await;
        assert!(one.seconds() < two.seconds(), "{created:?}: {one:?} {two:?}");
        let bench = bench.restarted();
        assert_eq!(bench.mtime(TWO.tag, "Kitfile").await, two, "a date stays");
        assert_eq!(bench.mtime(ONE.tag, "Kitfile").await, one);
    }
}

/// A file of an archive that has no end marker.
fn member(name: &str, content: &[u8], mtime: u64) -> Vec<u8> {
    let mut block = vec![0; 1024];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    block[136..148].copy_from_slice(format!("{mtime:011o}\0").as_bytes());
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    block[512..512 + content.len()].copy_from_slice(content);
    block
}

#[tokio::test]
async fn files_of_an_archive_have_the_dates_of_their_headers() {
    let bench = Bench::new();
    let archive = |content: &[u8], mtimes: [u64; 2]| {
        let files = ["old", "new"].iter().zip(mtimes);
        files.flat_map(|(name, mtime)| member(name, content, mtime)).collect::<Vec<u8>>()
    };
    let push = |tag: &str, archive: &[u8]| {
        bench.registry.push_with(tag, None, &[("dataset", "t", archive)], |manifest| {
            manifest["layers"][0]["mediaType"] = TAR_TYPE.into();
            manifest["annotations"] = json!({CREATED: "2025-03-01T10:00:00Z"});
        });
    };
    push(ONE.tag, &archive(b"one", [0, 1_700_000_000]));
    let one = bench.mtimes(ONE.tag, &["old", "new"]).await;
    assert_eq!(
        one.iter().map(|it| seconds(*it)).collect::<Vec<_>>(),
        [1_740_823_200, 1_700_000_000]
    );
    // Other bytes of the same size with the same dates.
    push(TWO.tag, &archive(b"two", [0, 1_700_000_000]));
    let two = bench.mtimes(TWO.tag, &["old", "new"]).await;
    assert_ne!(one[0].seconds(), two[0].seconds());
    assert_eq!(one[1].seconds(), two[1].seconds());
    assert_ne!(one[1], two[1]);
}

#[tokio::test]
async fn a_kit_without_layers_is_dated() {
    let bench = Bench::new();
    let before = now();
    bench.push_version(Version { layers: &[], ..ONE });
    let first = bench.mtimes(ONE.tag, &["Kitfile", ""]).await;
    assert!(first.iter().all(|mtime| (before..=now() + 1).contains(&seconds(*mtime))), "{first:?}");
    let bench = bench.restarted();
    assert_eq!(bench.mtimes(ONE.tag, &["Kitfile", ""]).await, first);
}
