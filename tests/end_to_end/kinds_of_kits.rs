//! Kits of every kind (modelkit-spec 1 to 4 and 6). The tests build and mount them, and compare them
//! with the tree that `kit unpack` would write.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::kit_builder::{Compression, Kit, Layer, Written};
use crate::support::kit_server::KitServer;
use crate::support::kitfs::Kitfs;
use crate::support::tar_stream::{self, Stream};
use crate::support::tree::Tree;
use crate::support::{Random, hostile, map_registry};

/// Content that makes a member big enough for a file of its own in the cache.
fn weights() -> Vec<u8> {
    Random::new(1).bytes(3_000_001)
}

fn tar_layer(role: &str) -> Layer {
    Layer::tar(role, "weights")
        .directory("weights", 0o755)
        .file("weights/model.bin", 0o644, &weights())
        .file("weights/empty", 0o600, b"")
        .directory("weights/shards", 0o750)
        .file("weights/shards/block", 0o444, &[b'x'; 512])
        .file("weights/shards/run.sh", 0o4755, b"#!/bin/sh\n")
}

#[track_caller]
fn assert_mounts_as_unpacked(kit: &Kit, has_kitfile: bool) {
    let folder = TempDir::new().unwrap();
    let written = kit.write(folder.path(), "v1");
    assert!(!written.tree.0.is_empty(), "the test expects nothing");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&written.reference, &[]);
    assert_eq!(mountpoint.join("Kitfile").exists(), has_kitfile, "Kitfile");
    let mounted = Tree::read(&mountpoint).without_kitfile();
    mounted.assert_equals(&written.tree, "the mounted tree");
}

#[rstest]
fn modelkit_tar_layers(
    #[values(Compression::None, Compression::Gzip, Compression::Zstd)] compression: Compression,
) {
    let code = Layer::tar("code", "src").directory("src", 0o755).file("src/a.py", 0o644, b"a = 1");
    let kit = Kit::modelkit().with(tar_layer("model").compressed(compression)).with(code);
    assert_mounts_as_unpacked(&kit, true);
}

#[rstest]
fn modelkit_raw_layers(
    #[values(Compression::None, Compression::Gzip, Compression::Zstd)] compression: Compression,
) {
    let model = Layer::raw("model", "weights/model.bin", 0o640, &weights());
    let data = Layer::raw("dataset", "data/train.csv", 0o644, b"a,b\n1,2\n");
    let kit = Kit::modelkit()
        .with(model.compressed(compression))
        .with(data.compressed(compression))
        .with(Layer::raw("docs", "empty.md", 0o644, b""));
    assert_mounts_as_unpacked(&kit, true);
}

#[rstest]
fn modelpack_tar_layers(
    #[values(Compression::None, Compression::Gzip, Compression::Zstd)] compression: Compression,
) {
    let kit = Kit::modelpack()
        .with(tar_layer("weight").compressed(compression))
        .with(Layer::tar("doc", "README.md").file("README.md", 0o644, b"# read me"));
    assert_mounts_as_unpacked(&kit, false);
}

#[test]
fn modelpack_raw_layers() {
    let kit = Kit::modelpack()
        .with(Layer::raw("weight.config", "config.json", 0o644, b"{}"))
        .with(Layer::raw("weight", "model.safetensors", 0o644, &weights()));
    assert_mounts_as_unpacked(&kit, false);
}

#[test]
fn modelpack_with_a_kitfile_annotation() {
    let kit = Kit::modelpack().with(tar_layer("weight")).with_kitfile_annotation();
    assert_mounts_as_unpacked(&kit, true);
}

#[test]
fn legacy_kits_name_their_members_from_the_parent_of_their_path() {
    let kit = Kit::legacy()
        .with(Layer::tar("model", "deep/er/model.bin").file("deep/er/model.bin", 0o644, b"model"))
        .with(Layer::tar("code", "lib/src/").directory("lib/src", 0o755).file(
            "lib/src/a.py",
            0o644,
            b"a",
        ));
    assert_mounts_as_unpacked(&kit, true);
}

#[test]
fn prompts_and_mcp_bundles() {
    let prompt = Layer::tar("code", "prompts/ask.md").file("prompts/ask.md", 0o644, b"why?");
    let bundle = Layer::raw("mcpb", "tools/search.mcpb", 0o644, b"bundle").named("search");
    let kit = Kit::modelkit().with(tar_layer("model")).with(prompt.prompt()).with(bundle);
    assert_mounts_as_unpacked(&kit, true);
}

#[test]
fn the_same_directory_in_several_layers_and_missing_ones() {
    let kit = Kit::modelkit()
        .with(Layer::tar("model", "a/m").directory("a", 0o700).file("a/m", 0o644, b"m"))
        .with(Layer::tar("code", "a/c").directory("a", 0o755).file("a/c", 0o644, b"c"))
        .with(Layer::tar("docs", "d").file("d/e/f/readme", 0o644, b"no directory entries"));
    assert_mounts_as_unpacked(&kit, true);
}

#[test]
fn two_layers_with_the_same_blob() {
    let empty = Layer::tar("code", "none");
    let kit = Kit::modelkit().with(tar_layer("model")).with(empty.clone()).with(empty);
    assert_mounts_as_unpacked(&kit, true);
}

#[test]
fn names_that_are_long_or_not_utf8_or_contain_dots() {
    let long = format!("d/{}/{}", "n".repeat(200), "m".repeat(255));
    let kit = Kit::modelkit().with(
        Layer::tar("dataset", "d")
            .file(long, 0o644, b"long")
            .file("d/é ü.txt", 0o644, b"not ASCII")
            .file(b"d/\xff\xfe\x01\n", 0o644, b"not UTF-8")
            .file("d/a..b", 0o644, b"kit refuses this name, and no harm is in it")
            .file("d/...", 0o644, b"nor in this one"),
    );
    assert_mounts_as_unpacked(&kit, true);
}

#[test]
fn symbolic_links_are_kept() {
    let layer = Layer::tar("code", "src").file("src/a", 0o644, b"a").symlink("src/b", b"a");
    assert_mounts_as_unpacked(&Kit::modelkit().with(layer), true);
}

#[test]
fn files_beyond_4_and_8_gib_and_what_follows_them() {
    let gib = 1 << 30;
    let folder = TempDir::new().unwrap();
    let tar = Layer::tar("model", "w")
        .hole("w/five", 5 * gib + 3)
        .hole("w/nine", 9 * gib + 1)
        .file("w/after", 0o644, b"after");
    let kit = Kit::modelkit().with(tar).with(Layer::raw("dataset", "raw", 0o644, b"raw"));
    let written = kit.write(folder.path(), "v1");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&written.reference, &[]);
    for (name, size) in [("w/five", 5 * gib + 3), ("w/nine", 9 * gib + 1)] {
        let file = File::open(mountpoint.join(name)).unwrap();
        assert_eq!(file.metadata().unwrap().size(), size, "{name}");
        let mut end = [1; 4096];
        file.read_exact_at(&mut end, size - 4096).unwrap();
        assert_eq!(end, [0; 4096], "{name}");
        assert_eq!(file.read_at(&mut end, size).unwrap(), 0, "{name} ends where it should");
    }
    assert_eq!(fs::read(mountpoint.join("w/after")).unwrap(), b"after");
}

#[test]
fn an_unknown_layer_type_is_passed_over_with_a_warning() {
    let unknown = "application/vnd.kitops.modelkit.hologram.v7.tar";
    let odd = Layer::tar("hologram", "h").file("h/x", 0o644, b"x").media_type(unknown);
    let folder = TempDir::new().unwrap();
    let written = Kit::modelkit().with(tar_layer("model")).with(odd).write(folder.path(), "v1");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let outcome = kitfs.run(&["mount", &written.reference, mountpoint.to_str().unwrap()]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(unknown), "no warning: {}", outcome.stderr);
    assert!(!mountpoint.join("h").exists());
    assert!(kitfs.status_of(&mountpoint)["warnings"].to_string().contains(unknown));
    let path = format!("{}/h/x", written.reference);
    for command in [&["cat", &*path][..], &["ls", &path], &["cp", &path, "copy"]] {
        let said = kitfs.fail(3, command);
        assert!(said.contains("not in the kit") && said.contains(unknown), "{said}");
    }
}

/// A kit with a layer of each type, for filters.
fn filtered(filters: &[&str]) -> Vec<String> {
    let folder = TempDir::new().unwrap();
    let file = |role, path: &str| Layer::tar(role, path).file(path, 0o644, path.as_bytes());
    let written = Kit::modelkit()
        .with(file("model", "model").named("base"))
        .with(file("modelpart", "part").named("lora"))
        .with(file("code", "code"))
        .with(file("dataset", "train").named("training"))
        .with(file("dataset", "test"))
        .with(file("docs", "docs"))
        .write(folder.path(), "v1");
    let kitfs = Kitfs::new();
    let options: Vec<_> = filters.iter().flat_map(|filter| ["--filter", *filter]).collect();
    let mountpoint = kitfs.mount(&written.reference, &options);
    let tree = Tree::read(&mountpoint);
    tree.0.keys().map(|path| String::from_utf8(path.clone()).unwrap()).collect()
}

#[rstest]
#[case(&["model"], &["model", "part"])]
#[case(&["model:lora"], &["part"])]
#[case(&["datasets"], &["test", "train"])]
#[case(&["datasets:training"], &["train"])]
#[case(&["datasets:test,training", "kitfile"], &["Kitfile", "test", "train"])]
#[case(&["code,docs"], &["code", "docs"])]
fn filters_take_whole_layers_in_kits_grammar(#[case] filters: &[&str], #[case] expected: &[&str]) {
    assert_eq!(filtered(filters), expected);
}

#[test]
fn a_filter_that_is_none_is_a_usage_error() {
    let folder = TempDir::new().unwrap();
    let written = Kit::modelkit().with(tar_layer("model")).write(folder.path(), "v1");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let mountpoint = mountpoint.to_str().unwrap();
    let said = kitfs.fail(2, &["mount", &written.reference, mountpoint, "--filter", "dataset"]);
    assert!(said.contains("dataset"), "{said}");
}

#[test]
fn the_umask_is_taken_from_every_mode() {
    let folder = TempDir::new().unwrap();
    let layer = Layer::tar("code", "d").directory("d", 0o777).file("d/f", 0o6777, b"f");
    let written = Kit::modelkit().with(layer).write(folder.path(), "v1");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&written.reference, &["--umask", "077"]);
    let mode = |path: &str| fs::metadata(mountpoint.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("d"), mode("d/f"), mode("Kitfile")), (0o700, 0o700, 0o600));
}

#[test]
fn the_kitfile_reads_back_as_the_config() {
    let folder = TempDir::new().unwrap();
    let kit = Kit::modelkit()
        .with(Layer::tar("model", "m").named("yes: no").file("m", 0o644, b"m"))
        .with(Layer::tar("code", "é #1").file("c", 0o644, b"c"));
    let written = kit.write(folder.path(), "v1");
    let mut config: Value =
        serde_json::from_slice(&fs::read(written.blob(&written.config)).unwrap()).unwrap();
    for entry in ["/model", "/code/0"] {
        let entry = config.pointer_mut(entry).unwrap().as_object_mut().unwrap();
        entry.retain(|key, _| key != "digest" && key != "diffId");
    }
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&written.reference, &[]);
    let kitfile = fs::read_to_string(mountpoint.join("Kitfile")).unwrap();
    let kitfile: Value = serde_saphyr::from_str(&kitfile).unwrap();
    assert_eq!(kitfile, config);
}

/// The message about a kit with one layer of this stream, which must be refused as bad content.
#[track_caller]
fn refusal_of(stream: Stream) -> (String, Written) {
    let folder = TempDir::new().unwrap();
    let kit = Kit::modelkit().with(Layer::of_stream("model", "model", stream));
    let written = kit.write(folder.path(), "v1");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let said = kitfs.fail(6, &["mount", &written.reference, mountpoint.to_str().unwrap()]);
    (said, written)
}

#[rstest]
#[case("../evil")]
#[case("model/../../evil")]
#[case("/../evil")]
#[case("model/..")]
fn a_hostile_name_is_refused_by_layer_and_entry(#[case] name: &str) {
    let (said, written) = refusal_of(hostile::named(name.as_bytes()));
    let digest = &written.layers[0].0["sha256:".len()..];
    assert!(said.contains(&digest[..12]), "names no layer: {said}");
    assert!(said.contains(name), "names no entry: {said}");
}

#[test]
fn a_nul_in_a_name_is_refused() {
    // Only a PAX record can hold a NUL: a ustar name ends at the first one.
    let mut stream = Stream::default();
    let record = tar_stream::pax_record(b"path", b"model/we\0ights");
    stream.push(&tar_stream::header(b"pax", b'x', 0o644, record.len() as u64, b""));
    tar_stream::push_padded(&mut stream, &record);
    tar_stream::push_member(&mut stream, b"model/weights", b'0', 0o644, 0, b"");
    tar_stream::push_end(&mut stream);
    refusal_of(stream);
}

#[rstest]
#[case::truncated(hostile::truncated())]
#[case::corrupt(hostile::corrupt())]
fn a_malformed_archive_is_refused(#[case] stream: Stream) {
    let (said, _) = refusal_of(stream);
    assert!(said.contains("model"), "names no path or layer: {said}");
}

#[test]
fn odd_archives_are_mounted_as_gnu_tar_extracts_them_with_a_warning() {
    for (stream, path, content, words) in [
        (hostile::named(b"/etc/evil"), "etc/evil", None, "the leading `/` of `/etc/evil`"),
        (
            hostile::file_and_directory(),
            "model/weights.bin",
            Some("file"),
            "`model` is a file and then",
        ),
    ] {
        let folder = TempDir::new().unwrap();
        let kit = Kit::modelkit().with(Layer::of_stream("model", "model", stream));
        let written = kit.write(folder.path(), "v1");
        let kitfs = Kitfs::new();
        let mountpoint = kitfs.mountpoint("mnt");
        let run = kitfs.run(&["mount", &written.reference, mountpoint.to_str().unwrap()]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(run.stderr.contains(words), "{}", run.stderr);
        let read = fs::read_to_string(mountpoint.join(path)).unwrap();
        assert!(content.is_none_or(|content| read == content), "{read}");
    }
}

#[test]
fn a_path_that_two_layers_have_is_refused_as_kit_does() {
    let folder = TempDir::new().unwrap();
    let written = Kit::modelkit()
        .with(Layer::tar("model", "a").file("a/same", 0o644, b"1"))
        .with(Layer::tar("code", "b").file("a/same", 0o644, b"2"))
        .write(folder.path(), "v1");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let said = kitfs.fail(6, &["mount", &written.reference, mountpoint.to_str().unwrap()]);
    assert!(said.contains("a/same"), "{said}");
}

#[rstest]
#[case::not_json(b"{\"manifestVersion\": ")]
#[case::wrong_type(br#"{"manifestVersion": "1.0.0", "model": [1, 2]}"#)]
#[case::digest_of_no_layer(
    br#"{"manifestVersion": "1.0.0", "model": {"path": "m",
    "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "diffId": "sha256:0000000000000000000000000000000000000000000000000000000000000000"}}"#
)]
fn a_malformed_kitfile_is_refused(#[case] config: &[u8]) {
    let folder = TempDir::new().unwrap();
    let kit = Kit::modelkit().with(tar_layer("model")).with_config(config);
    let written = kit.write(folder.path(), "v1");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let said = kitfs.fail(6, &["mount", &written.reference, mountpoint.to_str().unwrap()]);
    assert!(said.contains(&written.reference), "names no reference: {said}");
}

/// Kits that name each other as parents, served under the name `kits.test`.
struct Family {
    kitfs: Kitfs,
    _server: KitServer,
    registries: String,
}

impl Family {
    fn new(write: impl FnOnce(&Path)) -> Self {
        let kitfs = Kitfs::new();
        let layouts = kitfs.folder().join("layouts");
        write(&layouts);
        let server = KitServer::start(&kitfs, &layouts);
        let registries = kitfs.folder().join("registries");
        map_registry(&registries, "kits.test", server.host());
        let registries = registries.to_str().unwrap().to_owned();
        Self { kitfs, _server: server, registries }
    }

    fn mount(&self, reference: &str) -> Result<Tree, String> {
        let mountpoint = self.kitfs.mountpoint("mnt");
        let mounted = mountpoint.to_str().unwrap();
        let arguments = ["mount", reference, mounted, "--registries-dir", &self.registries];
        let outcome = self.kitfs.run(&arguments);
        match outcome.code {
            Some(0) => Ok(Tree::read(&mountpoint)),
            Some(6) => Err(outcome.stderr),
            code => panic!("{code:?}: {}{}", outcome.stderr, self.kitfs.log()),
        }
    }
}

fn part(name: &str) -> Layer {
    Layer::tar("modelpart", name).named(name).file(name, 0o644, name.as_bytes())
}

#[test]
fn a_parent_gives_its_model_and_nothing_else() {
    let family = Family::new(|layouts| {
        Kit::modelkit()
            .with(Layer::tar("model", "base").file("base", 0o644, b"base"))
            .with(Layer::tar("code", "parent.py").file("parent.py", 0o644, b"parent"))
            .write(&layouts.join("parent"), "v1");
        let code = Layer::tar("code", "child.py").file("child.py", 0o644, b"child");
        let child = Kit::modelkit().with_parent("kits.test/parent:v1").with(part("lora"));
        child.with(code).write(&layouts.join("child"), "v1");
    });
    let tree = family.mount("kits.test/child:v1").unwrap();
    let paths: Vec<_> = tree.0.keys().map(|path| String::from_utf8_lossy(path)).collect();
    assert_eq!(paths, ["Kitfile", "base", "child.py", "lora"]);
}

/// Kits `k0` … `kN`. Each kit is the parent of the one before; the last one has no parent.
fn chain(references: usize) -> Family {
    Family::new(|layouts| {
        for index in 0..=references {
            let mut kit = Kit::modelkit().with(part(&format!("p{index}")));
            if index < references {
                kit = kit.with_parent(&format!("kits.test/k{}:v1", index + 1));
            }
            kit.write(&layouts.join(format!("k{index}")), "v1");
        }
    })
}

#[test]
fn a_chain_of_ten_parents_is_merged() {
    let tree = chain(10).mount("kits.test/k0:v1").unwrap();
    assert_eq!(tree.without_kitfile().0.len(), 11);
}

#[test]
fn a_chain_of_eleven_parents_is_refused() {
    let said = chain(11).mount("kits.test/k0:v1").unwrap_err();
    assert!(said.contains("10"), "does not say the limit: {said}");
}

#[test]
fn a_cycle_of_parents_is_refused() {
    let family = Family::new(|layouts| {
        for (name, parent) in [("a", "b"), ("b", "a")] {
            let parent = format!("kits.test/{parent}:v1");
            let kit = Kit::modelkit().with_parent(&parent).with(part(name));
            kit.write(&layouts.join(name), "v1");
        }
    });
    let said = family.mount("kits.test/a:v1").unwrap_err();
    assert!(said.contains("kits.test/a:v1"), "does not name the cycle: {said}");
}
