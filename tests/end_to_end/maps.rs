//! `kitfs map`: which parts of files are in the cache.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use serde_json::Value;

use crate::counted::{Counted, big_files};
use crate::support::Random;
use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{Kitfs, wait_until};

const MIB: u64 = 1 << 20;

/// The map of a subject as JSON.
fn map(kitfs: &Kitfs, subject: &str, options: &[&str]) -> Value {
    kitfs.json(&[&["map", "--json", subject], options].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The ranges of the one row, with their states.
fn ranges(map: &Value) -> Vec<(u64, u64, &str)> {
    let ranges = map["rows"][0]["ranges"].as_array().map_or(&[][..], Vec::as_slice).iter();
    let number = |range: &Value, name: &str| range[name].as_u64().unwrap();
    ranges
        .map(|range| {
            (number(range, "start"), number(range, "end"), range["state"].as_str().unwrap())
        })
        .collect()
}

#[test]
fn a_map_shows_the_parts_of_a_file_that_were_read() {
    let counted = Counted::new(&big_files());
    let kitfs = &counted.kitfs;
    let mountpoint = counted.mount();
    let path = mountpoint.join("weights/shard-1");
    let before = map(kitfs, text(&path), &[]);
    // A look at the header of the archive brings a few KiB of the file behind it.
    let head = before["total"]["resident_bytes"].as_u64().unwrap();
    assert!(head < 64 << 10, "{before}");
    assert_eq!(before["total"]["bytes"], 16 * MIB);

    let file = File::open(&path).unwrap();
    fadvise(&file, 0, None, Advice::Random).unwrap();
    file.read_exact_at(&mut [0; 4096], 5 * MIB + 1000).unwrap();
    let expected = [(0, head, "resident"), (5 * MIB, 5 * MIB + (256 << 10), "resident")];
    let after = map(kitfs, text(&path), &[]);
    assert_eq!(ranges(&after), expected, "{after}");
    let cells = after["rows"][0]["cells"].as_array().unwrap();
    let is_here = |cell: &&Value| cell["resident"] == 100;
    assert_eq!(cells.iter().filter(is_here).count(), cells.len() * (256 << 10) / (16 << 20));

    // The same of a path below the mount that is relative, of the kit by reference, and without a daemon.
    let by_reference = format!("{}/weights/shard-1", counted.reference);
    assert_eq!(ranges(&map(kitfs, &by_reference, &[])), expected);
    let relative = path.strip_prefix(kitfs.folder()).unwrap();
    assert_eq!(ranges(&map(kitfs, text(relative), &[])), expected);
    drop(file);
    kitfs.unmount(&mountpoint);
    kitfs.succeed(&["daemon", "stop"]);
    assert_eq!(ranges(&map(kitfs, &by_reference, &[])), expected);

    kitfs.succeed(&["warm", &counted.reference]);
    let warmed = map(kitfs, &counted.reference, &[]);
    assert_eq!(warmed["total"]["verified_bytes"], warmed["total"]["stored_bytes"]);
    assert_eq!(ranges(&map(kitfs, &by_reference, &[])), [(0, 16 * MIB, "verified")]);
}

#[test]
fn a_table_fits_a_terminal_and_names_what_it_leaves_out() {
    let mut layer = Layer::tar("code", "src");
    for number in 0..60 {
        let name = format!("src/{}/file-{number}.py", "deep-folder/".repeat(9));
        layer = layer.file(&name, 0o644, &vec![b'x'; 100 + number]);
    }
    let big = Layer::raw("model", "model.bin", 0o644, &Random::new(1).bytes(1 << 20));
    let kit = Kit::modelkit().with(layer).with(big);
    let kitfs = Kitfs::new();
    let folder = kitfs.folder().join("layout");
    kit.write(&folder, "v1");
    let reference = format!("oci:{}:v1", folder.display());
    let outcome = kitfs.run(&["map", "--ascii", &reference]);
    let table = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(table.is_ascii() && !table.contains('\x1b'), "{table}");
    let rows: Vec<_> = table.lines().skip(3).collect();
    assert_eq!(rows.len(), 40, "{table}");
    assert!(rows.iter().all(|row| row.len() <= 80), "{table}");
    assert!(rows[0].starts_with("model.bin ") && rows[0].contains("1.0 MiB    0 %"), "{table}");
    assert!(outcome.stderr.contains("22 more rows are not shown"), "{}", outcome.stderr);

    let all = kitfs.succeed(&["map", "--all", &reference]);
    assert_eq!(all.lines().skip(3).count(), 62, "{all}");
    let folders = kitfs.succeed(&["map", "--folders", &reference]);
    let names: Vec<_> = folders.lines().skip(3).map(|row| row.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["Kitfile", "model.bin", "src/"], "{folders}");

    let picture = kitfs.folder().join("map.svg");
    kitfs.succeed(&["map", "--svg", text(&picture), &reference]);
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert_eq!(svg.matches(">model.bin</text>").count(), 1, "{svg}");
}

#[test]
fn holes_and_compressed_layers_are_mapped() {
    let content = [vec![7; 300 << 10], vec![0; 700 << 10], vec![9; 1000]].concat();
    let runs = vec![0..300 << 10, 1000 << 10..content.len()];
    let sparse = Layer::tar("dataset", "d").sparse_file("d/sparse", 0o644, &content, runs);
    let zipped = Layer::tar("code", "c").file("c/text", 0o644, &vec![b'a'; 600 << 10]).gzip();
    let counted = Counted::new(&Kit::modelkit().with(sparse).with(zipped));
    let kitfs = &counted.kitfs;
    let of = |path: &str| map(kitfs, &format!("{}/{path}", counted.reference), &[]);
    let sparse = of("d/sparse");
    let hole = (300 << 10, 1000 << 10, "hole");
    assert!(ranges(&sparse).contains(&hole), "{sparse}");
    assert_eq!(sparse["total"]["stored_bytes"], (300 << 10) + 1000);
    // A compressed layer comes as a whole when its kit is opened.
    let zipped = of("c/text");
    assert_eq!(ranges(&zipped), [(0, 600 << 10, "verified")], "{zipped}");
    kitfs.succeed(&["cat", &format!("{}/d/sparse", counted.reference)]);
    wait_until("the digest", || {
        kitfs.succeed(&["warm", &counted.reference]);
        let sparse = of("d/sparse");
        ranges(&sparse)
            == [(0, 300 << 10, "verified"), hole, (1000 << 10, content.len() as u64, "verified")]
    });
}

#[test]
fn bytes_of_a_layer_that_is_not_what_its_digest_says_are_bad() {
    let kitfs = Kitfs::new();
    let content = Random::new(3).bytes(300 << 10);
    let kit = Kit::modelkit().with(Layer::raw("model", "model.bin", 0o644, &content));
    let written = kit.write(&kitfs.folder().join("layout"), "v1");
    let blob = File::options().write(true).open(written.blob(&written.layers[0].0)).unwrap();
    blob.write_all_at(b"flipped", 3000).unwrap();
    let mountpoint = kitfs.mount(&written.reference, &[]);
    let path = mountpoint.join("model.bin");
    let _ = fs::read(&path);
    wait_until("the digest", || kitfs.status_of(&mountpoint)["state"] == "poisoned");
    let map = map(&kitfs, text(&path), &[]);
    assert_eq!(ranges(&map), [(0, 300 << 10, "bad")]);
    assert_eq!(map["total"]["bad_bytes"], 300 << 10);
    assert!(kitfs.succeed(&["map", "--ascii", text(&path)]).contains("BAD"));
}

#[test]
fn a_path_outside_of_mounts_is_told() {
    let kitfs = Kitfs::new();
    let said = kitfs.fail(3, &["map", text(kitfs.folder())]);
    assert!(said.contains("no kit is mounted here or above"), "{said}");
    let kit = Kit::modelkit().with(Layer::raw("model", "model.bin", 0o644, b"x"));
    kit.write(&kitfs.folder().join("layout"), "v1");
    let reference = format!("oci:{}:v1", kitfs.folder().join("layout").display());
    let mountpoint = kitfs.mount(&reference, &[]);
    let said = kitfs.fail(3, &["map", text(&mountpoint.join("nothing"))]);
    assert!(said.contains("`nothing` is not in the kit"), "{said}");
}
