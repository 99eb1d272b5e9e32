//! Data sets that lie elsewhere.

use super::*;

const DATA: &str = "registry.test/org/data:v1";
const OBJECT: &str = "s3://bucket/key#etag-1";

async fn content(kit: &LoadedKit, path: &str) -> Bytes {
    let node = kit.tree.resolve(path.as_bytes()).unwrap_or_else(|| panic!("{path} is not there"));
    let file = StoredFile::of(kit, node).unwrap_or_else(|| panic!("{path} is in no layer"));
    file.read(0..file.extents.bytes()).await.unwrap()
}

#[tokio::test]
async fn data_sets_of_another_kit_lie_below_the_path_of_the_entry() {
    let bench = Bench::new();
    let deeper = "registry.test/org/deeper:v1";
    bench.registry.push(deeper, None, &[("dataset", "d.csv", b"d"), ("docs", "no.md", b"n")]);
    let data: &[(&str, &str, &[u8])] = &[
        ("dataset", "train/a.csv", b"a"),
        ("model", "no.bin", b"n"),
        ("remote", "more", deeper.as_bytes()),
    ];
    bench.registry.push(DATA, None, data);
    let own: &[(&str, &str, &[u8])] =
        &[("remote", "data/sets", DATA.as_bytes()), ("code", "main.py", b"m")];
    bench.registry.push(KIT, None, own);
    let kit = bench.load(KIT, &[]).await.unwrap();
    let expected = ["Kitfile", "data/sets/more/d.csv", "data/sets/train/a.csv", "main.py"];
    assert_eq!(paths_of(&kit), expected);
    assert_eq!(content(&kit, "data/sets/more/d.csv").await, "d");
    assert_eq!(kit.warnings, [""; 0]);
    // Offline, as everything that was resolved once.
    bench.registry.is_down.store(true, Ordering::SeqCst);
    assert_eq!(paths_of(&bench.load(KIT, &[]).await.unwrap()), expected);
}

#[tokio::test]
async fn filters_reach_the_data_sets_of_another_kit_with_their_names() {
    let bench = Bench::new();
    let data: &[(&str, &str, &[u8])] = &[("dataset", "a", b"a"), ("dataset", "b", b"b")];
    bench.registry.push(DATA, None, data);
    let own: &[(&str, &str, &[u8])] = &[("remote", "data", DATA.as_bytes()), ("code", "c", b"c")];
    bench.registry.push(KIT, None, own);
    assert_eq!(bench.paths(KIT, &["datasets"]).await, ["data/a", "data/b"]);
    assert_eq!(bench.paths(KIT, &["code"]).await, ["c"]);
    // As in kit, the names of a filter count for the entry and for the other kit's own entries.
    assert_eq!(bench.paths(KIT, &["datasets:data,b"]).await, ["data/b"]);
    bench.registry.opened.lock().clear();
    bench.paths(KIT, &["code"]).await;
    assert_eq!(bench.registry.opened.lock().len(), 1, "what is not taken is not looked up");
}

#[tokio::test]
async fn remote_data_that_cannot_be_had_is_missing_and_the_rest_is_there() {
    let bench = Bench::new();
    let own: &[(&str, &str, &[u8])] = &[
        ("remote", "data/kit", b"registry.test/org/gone:v1"),
        ("remote", "data/object.bin", OBJECT.as_bytes()),
        ("code", "main.py", b"m"),
    ];
    bench.registry.push(KIT, None, own);
    let kit = bench.load(KIT, &[]).await.unwrap();
    assert_eq!(paths_of(&kit), ["Kitfile", "data/object.bin", "main.py"]);
    assert_eq!(kit.warnings.len(), 2);
    for (path, place) in
        [("data/kit", "registry.test/org/gone:v1"), ("data/object.bin", "s3://bucket/key")]
    {
        let warning = kit.warnings.iter().find(|warning| warning.contains(path)).unwrap();
        assert!(warning.contains(place) && warning.contains("is missing"), "{warning}");
        let node = kit.tree.resolve(path.as_bytes()).unwrap();
        assert!(kit.tree.missing(node).unwrap().contains(place));
    }
}

#[tokio::test]
async fn without_remote_data_nothing_else_is_asked() {
    let bench = Bench::new();
    let own: &[(&str, &str, &[u8])] =
        &[("remote", "data", DATA.as_bytes()), ("remote", "o", OBJECT.as_bytes())];
    bench.registry.push(KIT, None, own);
    let origin = Origin::parse(KIT).unwrap();
    let request = LoadRequest { remote: false, ..LoadRequest::all_of(origin) };
    let kit = load(&bench.fetcher, &bench.repositories(), &request, &|_, _| ()).await.unwrap();
    assert_eq!((paths_of(&kit), kit.warnings.len()), (vec!["Kitfile".to_owned()], 0));
    assert_eq!(bench.registry.opened.lock().len(), 1);
    assert_eq!(bench.store.heads.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn circles_of_remote_data_end() {
    let bench = Bench::new();
    bench.registry.push(DATA, None, &[("remote", "again", KIT.as_bytes()), ("dataset", "d", b"d")]);
    bench.registry.push(KIT, None, &[("remote", "data", DATA.as_bytes())]);
    let kit = bench.load(KIT, &[]).await.unwrap();
    assert_eq!(paths_of(&kit), ["Kitfile", "data/d"]);
    assert!(kit.warnings.iter().any(|warning| warning.contains("circle")), "{:?}", kit.warnings);
    // A chain without a circle ends after ten kits.
    for at in 0..20 {
        let next = format!("registry.test/org/chain:{}", at + 1);
        let layers: &[(&str, &str, &[u8])] = &[("remote", "x", next.as_bytes())];
        bench.registry.push(&format!("registry.test/org/chain:{at}"), None, layers);
    }
    let kit = bench.load("registry.test/org/chain:0", &[]).await.unwrap();
    assert!(kit.warnings[0].contains("more than 10"), "{:?}", kit.warnings);
}

#[tokio::test]
async fn a_kit_that_leads_to_very_many_others_is_cut_off() {
    let bench = Bench::new();
    let names: Vec<_> = (0..gather::MOST_REMOTE + 5).map(|at| format!("o{at}")).collect();
    let own: Vec<(&str, &str, &[u8])> =
        names.iter().map(|name| ("remote", name.as_str(), OBJECT.as_bytes())).collect();
    bench.registry.push(KIT, None, &own);
    let kit = bench.load(KIT, &[]).await.unwrap();
    assert_eq!(bench.store.heads.load(Ordering::SeqCst), gather::MOST_REMOTE as u64);
    assert_eq!(kit.tree.all_missing().count(), gather::MOST_REMOTE + 5);
}

#[tokio::test]
async fn a_remote_layer_that_cannot_be_opened_takes_its_data_set_along() {
    let bench = Bench::new();
    bench.registry.push_with(
        DATA,
        None,
        &[("dataset", "a", &[7; 512]), ("dataset", "b", b"b")],
        |manifest| {
            // Said to be a tar, and none.
            manifest["layers"][0]["mediaType"] =
                "application/vnd.kitops.modelkit.dataset.v1.tar".into();
        },
    );
    let own: &[(&str, &str, &[u8])] = &[("remote", "data", DATA.as_bytes()), ("code", "c", b"b")];
    bench.registry.push(KIT, None, own);
    let kit = bench.load(KIT, &[]).await.unwrap();
    assert_eq!(paths_of(&kit), ["Kitfile", "c"], "`c` has the same layer as the lost `data/b`");
    assert_eq!(content(&kit, "c").await, "b");
    let node = kit.tree.resolve(b"data").unwrap();
    assert!(kit.tree.missing(node).unwrap().contains("dataset `a`"));
}

#[tokio::test]
async fn an_object_is_a_file_whose_bytes_come_when_they_are_read() {
    let bench = Bench::new();
    bench.store.put("s3://bucket/key", "etag-1", b"object content");
    let own: &[(&str, &str, &[u8])] = &[("remote", "data/big.bin", OBJECT.as_bytes())];
    bench.registry.push(KIT, None, own);
    let kit = bench.load(KIT, &[]).await.unwrap();
    let node = kit.tree.resolve(b"data/big.bin").unwrap();
    assert_eq!((kit.tree.size(node), kit.tree.mtime(node).seconds()), (14, 1_700_000_000));
    assert_eq!(kit.resident_bytes(), 0, "nothing is read beforehand");
    assert_eq!(content(&kit, "data/big.bin").await, "object content");
    assert_eq!(kit.layers[0].confirmed().await, crate::cache::LayerState::Unconfirmed);
    drop(kit);
    // Known from now on, with the store gone too.
    bench.store.is_down.store(true, Ordering::SeqCst);
    bench.registry.is_down.store(true, Ordering::SeqCst);
    let kit = bench.load(KIT, &[]).await.unwrap();
    assert_eq!(content(&kit, "data/big.bin").await, "object content");
    assert_eq!(bench.store.heads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_object_with_another_etag_is_another_object() {
    let bench = Bench::new();
    bench.store.put("s3://bucket/key", "etag-1", b"one");
    bench.registry.push(KIT, None, &[("remote", "o", OBJECT.as_bytes())]);
    let first = bench.load(KIT, &[]).await.unwrap();
    assert_eq!(content(&first, "o").await, "one");
    bench.store.put("s3://bucket/key", "etag-2", b"two");
    let second = "registry.test/org/kit:v2";
    bench.registry.push(second, None, &[("remote", "o", b"s3://bucket/key#etag-2")]);
    let second = bench.load(second, &[]).await.unwrap();
    assert_eq!(content(&second, "o").await, "two");
    assert_ne!(first.layers[0].key(), second.layers[0].key());
    // A kit that names the earlier version of the object warns.
    let third = "registry.test/org/kit:v3";
    bench.registry.push(third, None, &[("remote", "o", b"s3://bucket/key#etag-0")]);
    let third = bench.load(third, &[]).await.unwrap();
    assert!(third.warnings[0].contains("was replaced"), "{:?}", third.warnings);
}

#[tokio::test]
async fn an_object_of_the_cache_is_given_only_to_users_whom_its_store_lets_have_it() {
    let bench = Bench::new();
    bench.store.put("s3://bucket/key", "etag-1", b"object content");
    let location = crate::oci::ObjectLocation::parse("s3://bucket/key").unwrap().unwrap();
    let object = ObjectId { location, etag: "etag-1".to_owned() };
    let (cache, may) = (bench.fetcher.cache(), Stores(bench.store.clone()));
    // To a user without the right, the store answers that there is no object.
    let may_not = Stores::default();
    let find = async |stores: &Stores, user| {
        objects::find(cache, stores, &object, Some(UserId(user))).await.is_ok()
    };
    assert!(find(&may, 1).await);
    assert!(!find(&may_not, 2).await);
    bench.store.is_down.store(true, Ordering::SeqCst);
    assert!(find(&may, 1).await, "its last answer to this user counts");
    assert!(!find(&may, 2).await);
    // The right was taken away.
    assert!(!find(&may_not, 1).await);
}
