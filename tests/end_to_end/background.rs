//! Downloads without a reader: warm, hydrate, and replayed access traces.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use crate::counted::{Counted, big_files, expected_content};
use crate::support::Random;
use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{Kitfs, wait_until};
use crate::support::registry_double::{Fault, Rule};
use crate::support::tree::Tree;

const MIB: u64 = 1 << 20;

#[test]
fn warming_a_kit_fetches_every_byte_once_and_confirms_it() {
    let counted = Counted::new(&big_files());
    let report = counted.kitfs.json(&["warm", "--json", &counted.reference]);
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3);
    assert!(layers.iter().all(|layer| layer["state"] == "confirmed"), "{report}");
    let config = counted.everything() - counted.written.layer_bytes();
    // A command without a daemon fetches the config, and the mount fetches it again.
    let (fetched, all) = (counted.fetched(), counted.everything());
    assert!((all..=all + config).contains(&fetched), "{fetched} of {all} bytes");
    let mountpoint = counted.mount();
    Tree::read(&mountpoint).without_kitfile().assert_equals(&counted.written.tree, "warmed");
    assert!(counted.fetched() <= fetched + config, "fetched again");
}

/// Changes the cache as a power cut does that comes before a sync: each layer was in use under another
/// boot, and the first chunk of each big file never reached the disk.
fn cut_power(cache: &Path) {
    for layer in fs::read_dir(cache.join("layers/sha256")).unwrap() {
        let folder = layer.unwrap().path();
        let mut meta = fs::read(folder.join("meta")).unwrap();
        meta[15] = 0;
        meta[112..120].fill(0);
        meta[120..136].fill(0xee);
        let crc = crc32c::crc32c(&meta[..156]).to_le_bytes();
        meta[156..160].copy_from_slice(&crc);
        let record = meta[..160].to_vec();
        meta[4096..].copy_from_slice(&record);
        fs::write(folder.join("meta"), meta).unwrap();
        for member in fs::read_dir(folder.join("members")).unwrap() {
            let member = File::options().write(true).open(member.unwrap().path()).unwrap();
            member.write_all_at(&[0; 4096], 0).unwrap();
        }
    }
}

fn sum(layers: &Value, field: &str) -> u64 {
    layers.as_array().unwrap().iter().map(|layer| layer[field].as_u64().unwrap()).sum()
}

#[test]
fn warming_checks_bytes_that_a_power_cut_may_have_taken_and_fetches_lost_ones_again() {
    let counted = Counted::new(&big_files());
    let kitfs = &counted.kitfs;
    kitfs.succeed(&["warm", &counted.reference]);
    let synced = kitfs.json(&["cache", "ls", "--json"]);
    assert_eq!(sum(&synced, "unchecked_bytes"), 0, "{synced}");
    cut_power(&kitfs.cache());
    let all = counted.written.layer_bytes();
    let uncertain = kitfs.json(&["cache", "ls", "--json"]);
    assert_eq!(sum(&uncertain, "unchecked_bytes"), all, "{uncertain}");
    assert!(kitfs.succeed(&["cache", "ls"]).contains("16.0 MiB unchecked"));
    let before = counted.fetched();
    let report = kitfs.json(&["warm", "--json", &counted.reference]);
    assert_eq!(sum(&report["layers"], "unchecked_bytes"), 0, "{report}");
    // Lost bytes are found without a download of those that are there.
    let again = counted.fetched() - before;
    assert!((3 << 18..MIB + 3 * (1 << 18)).contains(&again), "{again} bytes");
    let certain = kitfs.json(&["cache", "ls", "--json"]);
    assert_eq!(sum(&certain, "unchecked_bytes"), 0, "{certain}");
    let mountpoint = counted.mount();
    Tree::read(&mountpoint).without_kitfile().assert_equals(&counted.written.tree, "warmed");
}

#[rstest]
#[case::without_a_daemon(false)]
#[case::through_the_daemon(true)]
fn warming_a_file_fetches_no_other(#[case] has_daemon: bool) {
    let counted = Counted::new(&big_files());
    if has_daemon {
        counted.kitfs.succeed(&["daemon", "start"]);
    }
    let outcome = counted.kitfs.run(&["warm", &counted.reference, "weights/shard-1"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let fetched = counted.fetched();
    assert!((16 * MIB..17 * MIB).contains(&fetched), "{fetched} bytes");
    let mountpoint = counted.mount();
    let before = counted.fetched();
    let content = fs::read(mountpoint.join("weights/shard-1")).unwrap();
    assert!(content == expected_content(&counted, 1));
    assert_eq!(counted.fetched(), before);
    let missing = ["warm", &counted.reference, "weights/shard-9"];
    assert!(counted.kitfs.fail(3, &missing).contains("weights/shard-9"));
}

#[test]
fn warming_says_what_it_cannot_do_as_asked() {
    let counted = Counted::new(&big_files());
    let left_out = ["warm", "-f", "docs", "--allow-empty", &counted.reference, "weights/shard-1"];
    let said = counted.kitfs.fail(3, &left_out);
    assert!(said.contains("`weights/shard-1` is left out by --filter"), "{said}");
    let unknown = ["warm", "-f", "model", &counted.reference, "nope"];
    let said = counted.kitfs.fail(3, &unknown);
    assert!(said.contains("`nope` is not in what --filter takes of the kit"), "{said}");
    let said = counted.kitfs.fail(3, &["warm", &counted.reference, "nope"]);
    assert!(said.contains("`nope` is not in the kit") && !said.contains("filter"), "{said}");
    let path = format!("{}/weights/shard-1", counted.reference);
    assert!(counted.kitfs.fail(2, &["warm", &path]).contains("`weights/shard-1`"));
    counted.kitfs.succeed(&["daemon", "start", "--memory", "64MiB", "--keep-free", "1MiB"]);
    let (warm, reference) = ("warm", &counted.reference[..]);
    let outcome = counted.kitfs.run(&[warm, "--memory", "32MiB", "--keep-free", "2MiB", reference]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for option in ["the running daemon keeps 64.0 MiB", "the running daemon keeps 1.0 MiB"] {
        assert!(outcome.stderr.contains(option), "{}", outcome.stderr);
    }
    let outcome = counted.kitfs.run(&[warm, "--memory", "64MiB", reference]);
    assert!(!outcome.stderr.contains("--memory"), "{}", outcome.stderr);
    let mountpoint = counted.kitfs.mountpoint("told");
    let place = mountpoint.to_str().unwrap();
    let outcome = counted.kitfs.run(&["mount", "--cache-size", "1GiB", reference, place]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the running daemon keeps no limit"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("`kitfs daemon stop`"), "{}", outcome.stderr);
}

#[test]
fn a_layer_with_a_wrong_digest_cannot_be_warmed() {
    let kitfs = Kitfs::new();
    let folder = tempfile::tempdir().unwrap();
    let written = big_files().write(folder.path(), "v1");
    let blob = File::options().write(true).open(written.blob(&written.layers[1].0)).unwrap();
    blob.write_all_at(b"other bytes", 5 * MIB).unwrap();
    let said = kitfs.fail(6, &["warm", &written.reference]);
    assert!(said.contains(&written.layers[1].0), "{said}");
}

#[test]
fn a_kit_larger_than_the_cache_is_not_warmed() {
    let kitfs = Kitfs::with_options(&["--cache-size", "20MiB"]);
    let counted = Counted::with(&big_files(), kitfs);
    let said = counted.kitfs.fail(8, &["warm", &counted.reference]);
    assert!(said.contains("48.0 MiB") && said.contains("20.0 MiB (--cache-size)"), "{said}");
    assert!(counted.fetched() < MIB);
    counted.kitfs.succeed(&["warm", &counted.reference, "weights/shard-0"]);
}

/// Scripts a fault for a layer, and returns its digest. The cache knows the layer's headers already, so
/// the fault hits only its bytes.
fn scripted(counted: &Counted, index: usize, fault: Fault) -> String {
    counted.kitfs.succeed(&["ls", &counted.reference]);
    let digest = counted.written.layers[index].0.clone();
    counted.registry.script(Rule::on(&digest).then(fault));
    digest
}

#[rstest]
#[case::not_its_digest(Fault::Corrupt, 6, "poisoned")]
#[case::not_to_be_had(Fault::Status(500), 5, "unconfirmed")]
fn a_layer_that_fails_is_reported_and_the_others_come(
    #[case] fault: Fault,
    #[case] code: i32,
    #[case] state: &str,
) {
    let counted = Counted::new(&big_files());
    let digest = scripted(&counted, 1, fault);
    let arguments = ["warm", "--retries", "0", "--json", &counted.reference];
    let outcome = counted.kitfs.run(&arguments);
    assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
    let report: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let layers = report["layers"].as_array().unwrap();
    let states: Vec<_> = layers.iter().map(|layer| &layer["state"]).collect();
    assert_eq!(states, ["confirmed", state, "confirmed"]);
    assert_eq!(layers[1]["digest"], digest.as_str());
    assert!(layers[1]["failure"]["message"].is_string() && layers[0]["failure"].is_null());
}

#[test]
fn a_layer_that_is_partly_warm_is_named_and_no_failure() {
    let mut random = Random::new(5);
    let (one, two) = (random.bytes(4 << 20), random.bytes(4 << 20));
    let layer = Layer::tar("dataset", "d").file("d/1", 0o644, &one).file("d/2", 0o644, &two);
    let counted = Counted::new(&Kit::modelkit().with(layer));
    let first = counted.kitfs.run(&["warm", &counted.reference, "d/1"]);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert!(first.stderr.contains("1 of 1 layer is only partly"), "{}", first.stderr);
    let second = counted.kitfs.run(&["warm", &counted.reference, "d/2"]);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert!(!second.stderr.contains("partly"), "{}", second.stderr);
}

#[test]
fn a_warm_with_another_cache_size_than_the_daemons_gets_a_warning() {
    let counted = Counted::new(&big_files());
    counted.kitfs.succeed(&["daemon", "start"]);
    let arguments = ["warm", "--cache-size", "1GiB", &counted.reference, "weights/shard-0"];
    let outcome = counted.kitfs.run(&arguments);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the running daemon keeps no limit"), "{}", outcome.stderr);
    let outcome = counted.kitfs.run(&["daemon", "start", "--memory", "64MiB"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the running daemon keeps 512.0 MiB"), "{}", outcome.stderr);
}

#[test]
fn a_warm_that_is_interrupted_ends_in_the_daemon_too() {
    let counted = Counted::new(&big_files());
    scripted(&counted, 2, Fault::Hold);
    counted.kitfs.succeed(&["daemon", "start"]);
    let mut command = counted.kitfs.command(&["warm", &counted.reference]);
    let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the start of the work", || reserved_bytes(&counted) > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    // The registry never sends the held answer, so memory is freed only if the request is given up.
    wait_until("the end of the work", || reserved_bytes(&counted) == 0);
}

fn reserved_bytes(counted: &Counted) -> u64 {
    let status = counted.kitfs.json(&["daemon", "status", "--json"]);
    status["fetch"]["reserved_bytes"].as_u64().unwrap()
}

/// The state of the rest of the kit at `mountpoint`, from `status`.
fn hydrate(kitfs: &Kitfs, mountpoint: &Path) -> String {
    kitfs.status_of(mountpoint)["hydrate"].as_str().unwrap_or("failed").to_owned()
}

#[test]
fn the_rest_of_a_kit_comes_once_its_readers_are_quiet() {
    let counted = Counted::new(&big_files());
    let mountpoint =
        counted.kitfs.mount(&counted.reference, &["--hydrate", "all", "--hydrate-after", "0"]);
    wait_until("all of the kit", || hydrate(&counted.kitfs, &mountpoint) == "complete");
    assert_eq!(counted.kitfs.status_of(&mountpoint)["state"], "confirmed");
    let fetched = counted.fetched();
    assert!(fetched <= counted.everything() + 16 * 1024, "{fetched} bytes");
    Tree::read(&mountpoint).without_kitfile().assert_equals(&counted.written.tree, "hydrated");
    assert_eq!(counted.fetched(), fetched);
}

#[test]
fn a_kit_that_does_not_fit_the_cache_is_not_hydrated() {
    let kitfs = Kitfs::with_options(&["--cache-size", "20MiB"]);
    let counted = Counted::with(&big_files(), kitfs);
    let mountpoint =
        counted.kitfs.mount(&counted.reference, &["--hydrate", "all", "--hydrate-after", "0"]);
    wait_until("no room", || hydrate(&counted.kitfs, &mountpoint) == "no_room");
    assert!(counted.fetched() < MIB);
}

/// Reads so many mebibytes from the start of a file.
fn read_some(path: &Path, mebibytes: u64) {
    let mut file = File::open(path).unwrap();
    let mut left = mebibytes * MIB;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        left -= std::io::Read::read(&mut file, &mut buffer).unwrap() as u64;
    }
}

/// Three files of 16 MiB, each in its own layer. A tenth of one is read, more than half of another, and
/// nothing of the third.
#[test]
fn only_files_that_readers_have_begun_in_earnest_are_completed() {
    let counted = Counted::new(&big_files());
    // Without tensor prefetch, which would begin the next shard by another rule.
    let options = ["--hydrate-after", "0", "--no-tensor-prefetch"];
    let mountpoint = counted.kitfs.mount(&counted.reference, &options);
    assert_eq!(counted.kitfs.status_of(&mountpoint)["hydrate_mode"], "begun");
    assert_eq!(hydrate(&counted.kitfs, &mountpoint), "begun");
    read_some(&mountpoint.join("weights/shard-0"), 1);
    wait_until("quiet", || hydrate(&counted.kitfs, &mountpoint) == "begun");
    let fetched = counted.fetched();
    assert!(fetched < 6 * MIB, "{fetched} bytes for a look");
    read_some(&mountpoint.join("weights/shard-1"), 10);
    let layer = &counted.written.layers[1].0;
    wait_until("the rest of the file that was begun", || {
        let layers = counted.kitfs.json(&["cache", "ls", "--json"]);
        let mut layers = layers.as_array().unwrap().iter();
        layers.any(|it| it["digest"] == layer.as_str() && it["state"] == "confirmed")
    });
    wait_until("quiet", || hydrate(&counted.kitfs, &mountpoint) == "begun");
    let fetched = counted.fetched();
    assert!((16 * MIB..24 * MIB).contains(&fetched), "{fetched} bytes");
    read_some(&mountpoint.join("weights/shard-0"), 9);
    read_some(&mountpoint.join("weights/shard-2"), 9);
    wait_until("all of the kit", || hydrate(&counted.kitfs, &mountpoint) == "complete");
}

#[test]
fn an_untouched_kit_is_not_fetched() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--hydrate-after", "0"]);
    // A person looks around.
    let mut look = Command::new("find");
    look.arg(&mountpoint).args(["-type", "f", "-exec", "head", "-c", "1000", "{}", ";"]);
    assert!(look.stdout(Stdio::null()).status().unwrap().success());
    wait_until("quiet", || hydrate(&counted.kitfs, &mountpoint) == "begun");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(hydrate(&counted.kitfs, &mountpoint), "begun");
    let fetched = counted.fetched();
    assert!(fetched < 6 * MIB, "{fetched} bytes for a look");
}

#[test]
fn nothing_is_hydrated_where_it_is_switched_off_or_the_kit_is_local() {
    let counted = Counted::new(&big_files());
    let off = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    assert_eq!(hydrate(&counted.kitfs, &off), "off");
    let folder = tempfile::tempdir().unwrap();
    let written = big_files().write(folder.path(), "v1");
    // The local kit has the same layers as the kit of a registry, so it needs a cache of its own.
    let kitfs = Kitfs::new();
    let local = kitfs.mount(&written.reference, &["--hydrate", "all", "--hydrate-after", "0"]);
    assert_eq!(hydrate(&kitfs, &local), "local");
}

/// A mount that has begun to hydrate, and gets no answer before the registry releases the request.
fn hydrating_and_held() -> (Counted, PathBuf) {
    let counted = Counted::new(&big_files());
    counted.kitfs.succeed(&["ls", &counted.reference]);
    counted.registry.script(Rule::on("/blobs/").then(Fault::Hold));
    let mountpoint =
        counted.kitfs.mount(&counted.reference, &["--hydrate", "all", "--hydrate-after", "0"]);
    wait_until("the start", || hydrate(&counted.kitfs, &mountpoint) == "running");
    (counted, mountpoint)
}

#[test]
fn hydrating_pauses_while_a_reader_waits() {
    let (counted, mountpoint) = hydrating_and_held();
    let file = File::open(mountpoint.join("weights/shard-2")).unwrap();
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 4096];
        file.read_exact_at(&mut buffer, 8 * MIB).map(|()| buffer)
    });
    wait_until("a pause", || hydrate(&counted.kitfs, &mountpoint) == "waiting");
    counted.registry.release();
    let expected = expected_content(&counted, 2);
    assert!(reader.join().unwrap().unwrap() == expected[8 << 20..(8 << 20) + 4096]);
    wait_until("the rest", || hydrate(&counted.kitfs, &mountpoint) == "complete");
}

#[test]
fn a_kit_of_wrong_bytes_is_never_called_complete() {
    let counted = Counted::new(&big_files());
    let digest = scripted(&counted, 0, Fault::Corrupt);
    let mountpoint =
        counted.kitfs.mount(&counted.reference, &["--hydrate", "all", "--hydrate-after", "0"]);
    wait_until("the failure", || hydrate(&counted.kitfs, &mountpoint) == "failed");
    let status = counted.kitfs.status_of(&mountpoint);
    let reason = status["hydrate"]["failed"]["reason"].as_str().unwrap();
    let short = &digest[..19];
    assert!(reason.contains(&format!("model `weights/shard-0` ({short})")), "{status}");
    let file = mountpoint.join("weights/shard-2");
    assert!(fs::read(file).unwrap() == expected_content(&counted, 2), "the others are there");
}

#[test]
fn a_layer_that_cannot_be_had_does_not_hold_up_the_others() {
    let counted = Counted::new(&big_files());
    scripted(&counted, 0, Fault::Status(404));
    let mountpoint =
        counted.kitfs.mount(&counted.reference, &["--hydrate", "all", "--hydrate-after", "0"]);
    wait_until("the failure", || hydrate(&counted.kitfs, &mountpoint) == "failed");
    for shard in [1, 2] {
        let file = File::open(mountpoint.join(format!("weights/shard-{shard}"))).unwrap();
        let fetched = counted.fetched();
        file.read_exact_at(&mut [0; 4096], 8 * MIB).unwrap();
        assert_eq!(counted.fetched(), fetched, "shard {shard} is in the cache");
    }
}

#[test]
fn an_unmount_ends_hydrating() {
    let (counted, mountpoint) = hydrating_and_held();
    counted.kitfs.unmount(&mountpoint);
    wait_until("the end of the work", || reserved_bytes(&counted) == 0);
}

/// Records a program that reads the middle of one file, and then the start of another.
fn recorded(counted: &Counted, mountpoint: &Path) -> String {
    let trace = counted.kitfs.folder().join("read.trace");
    let script = "dd if=weights/shard-2 of=/dev/null bs=1M skip=5 count=2 2>&1; \
                  head -c 1000 weights/shard-0 >&2; exit 4";
    let script = format!("cd '{}'; {script}", mountpoint.display());
    let trace = trace.to_str().unwrap().to_owned();
    let place = mountpoint.to_str().unwrap();
    let arguments = ["trace", "record", "-o", &trace, place, "--", "sh", "-c", &script];
    let outcome = counted.kitfs.run(&arguments);
    assert_eq!(outcome.code, Some(4), "the program's code: {}", outcome.stderr);
    trace
}

#[test]
fn a_recorded_trace_tells_what_was_read_in_its_order() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let trace = recorded(&counted, &mountpoint);
    let lines: Vec<serde_json::Value> = fs::read_to_string(&trace)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["kitfs_trace"], 1);
    assert_eq!(lines[0]["digest"], counted.written.digest.as_str());
    let of = |path: &str| lines.iter().position(|line| line["path"] == path).unwrap();
    assert!(of("weights/shard-2") < of("weights/shard-0"), "{lines:?}");
    let range = &lines[of("weights/shard-2")];
    assert_eq!(range["offset"].as_u64(), Some(5 * MIB));
    assert!(range["length"].as_u64().unwrap() >= 2 * MIB, "{range}");
    let shown = counted.kitfs.succeed(&["trace", "show", &trace]);
    assert!(shown.contains("weights/shard-2") && shown.contains("5242880"), "{shown}");
    let shown = counted.kitfs.json(&["trace", "show", "--json", &trace]);
    let ranges = shown["ranges"].as_array().unwrap();
    assert!(ranges.iter().any(|it| it["path"] == "weights/shard-2" && it["offset"] == 5 * MIB));
    // A second recording of the same mount has only reads after the end of the first one.
    recorded(&counted, &mountpoint);
}

/// The program matters more than its trace, for example on a full disk.
#[test]
fn a_trace_that_cannot_be_written_does_not_end_the_program() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let place = mountpoint.to_str().unwrap();
    for (code, shard) in [(0, 2), (4, 0)] {
        let read = format!("head -c 2000000 weights/shard-{shard} >/dev/null && sleep 2");
        let script = format!("cd {place} && {read} && echo went on && exit {code}");
        let command = ["trace", "record", "-o", "/dev/full", place, "--", "sh", "-c", &script];
        let outcome = counted.kitfs.run(&command);
        assert_eq!(outcome.stdout, b"went on\n", "{}", outcome.stderr);
        assert!(outcome.stderr.contains("cannot write /dev/full"), "{}", outcome.stderr);
        assert_eq!(outcome.code, Some(if code == 0 { 125 } else { code }), "{}", outcome.stderr);
    }
}

#[rstest]
#[case::warm(true)]
#[case::mount(false)]
fn a_replayed_trace_brings_the_recorded_reads_and_no_more(#[case] warms: bool) {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let trace = recorded(&counted, &mountpoint);
    counted.kitfs.unmount(&mountpoint);
    counted.kitfs.succeed(&["cache", "clear"]);
    let before = counted.fetched();
    if warms {
        counted.kitfs.succeed(&["warm", "--trace", &trace, &counted.reference]);
    }
    let options: &[&str] = if warms { &[] } else { &["--trace", &trace] };
    let mountpoint = counted.kitfs.mount(&counted.reference, options);
    wait_until("the recorded ranges", || counted.fetched() - before >= 2 * MIB);
    let file = File::open(mountpoint.join("weights/shard-2")).unwrap();
    let mut buffer = vec![0; MIB as usize];
    file.read_exact_at(&mut buffer, 5 * MIB).unwrap();
    assert!(buffer == expected_content(&counted, 2)[5 << 20..6 << 20]);
    let fetched = counted.fetched() - before;
    assert!(fetched < 8 * MIB, "{fetched} bytes for a trace of 2 MiB");
}

#[test]
fn a_trace_of_another_kit_is_reported_and_a_file_that_is_no_trace_is_refused() {
    let counted = Counted::new(&big_files());
    let trace = counted.kitfs.folder().join("other.trace");
    let lines = "{\"kitfs_trace\":1,\"reference\":\"r\",\"digest\":\"sha256:0\",\"started_at\":0}\n\
                 {\"at_ms\":0,\"path\":\"weights/shard-0\",\"offset\":0,\"length\":100}\n\
                 {\"at_ms\":0,\"path\":\"gone\",\"offset\":0,\"length\":100}\n";
    fs::write(&trace, lines).unwrap();
    let trace = trace.to_str().unwrap();
    let outcome = counted.kitfs.run(&["warm", "--trace", trace, &counted.reference]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("another kit"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("1 range of the trace is not"), "{}", outcome.stderr);
    fs::write(trace, format!("{lines}what?\n")).unwrap();
    for arguments in
        [&["trace", "show", trace][..], &["warm", "--trace", trace, &counted.reference]]
    {
        let said = counted.kitfs.fail(2, arguments);
        assert!(said.contains("other.trace: line 4"), "{said}");
    }
    counted.kitfs.fail(9, &["trace", "record", "/nowhere"]);
    counted.kitfs.succeed(&["daemon", "start"]);
    counted.kitfs.fail(3, &["trace", "record", "/nowhere"]);
}

/// A trace of the kit with these entries.
fn trace_of(counted: &Counted, lines: &[&str]) -> String {
    let path = counted.kitfs.folder().join("made.trace");
    let digest = &counted.written.digest;
    let header =
        format!(r#"{{"kitfs_trace":1,"reference":"r","digest":"{digest}","started_at":0}}"#);
    let lines = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    fs::write(&path, format!("{header}\n{lines}")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_range_without_end_brings_the_rest_of_its_file_and_no_other() {
    let counted = Counted::new(&big_files());
    // The file is 16 MiB long. The third entry begins beyond its end.
    let trace = trace_of(
        &counted,
        &[
            r#"{"at_ms":0,"path":"weights/shard-1","offset":15728640,"length":18446744073693822975}"#,
            r#"{"at_ms":0,"path":"weights/shard-1","offset":0,"length":0}"#,
            r#"{"at_ms":0,"path":"weights/shard-1","offset":16777216,"length":1}"#,
            r#"{"at_ms":0,"path":"../weights/shard-1","offset":0,"length":1}"#,
            r#"{"at_ms":0,"path":"weights","offset":0,"length":18446744073709551615}"#,
        ],
    );
    let outcome = counted.kitfs.run(&["warm", "--trace", &trace, &counted.reference]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("3 ranges of the trace are not"), "{}", outcome.stderr);
    let fetched = counted.fetched();
    assert!((MIB..4 * MIB).contains(&fetched), "{fetched} bytes");
}

#[test]
fn a_trace_of_the_kitfile_alone_needs_nothing_fetched() {
    let counted = Counted::new(&big_files());
    let line = r#"{"at_ms":0,"path":"Kitfile","offset":0,"length":18446744073709551615}"#;
    let trace = trace_of(&counted, &[line]);
    let outcome = counted.kitfs.run(&["warm", "--trace", &trace, &counted.reference]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
    assert!(counted.fetched() < MIB);
}

#[test]
fn a_trace_that_has_nothing_of_the_kit_fails() {
    let counted = Counted::new(&big_files());
    let trace = trace_of(&counted, &[r#"{"at_ms":0,"path":"gone","offset":0,"length":1}"#]);
    let said = counted.kitfs.fail(3, &["warm", "--trace", &trace, &counted.reference]);
    assert!(said.contains("recorded from another one"), "{said}");
}

#[test]
fn a_warm_prints_the_warnings_of_the_kit() {
    let counted = Counted::new(&big_files());
    let empty = ["warm", "--allow-empty", "-f", "docs", &counted.reference];
    let outcome = counted.kitfs.run(&empty);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let words = "--filter `docs` takes nothing; the kit has model";
    assert!(outcome.stderr.contains(&format!("warning: {words}")), "{}", outcome.stderr);
    let json = counted.kitfs.json(&[&empty[..], &["--json"]].concat());
    assert!(json["warnings"][0].as_str().unwrap().contains(words), "{json}");
    let said = counted.kitfs.fail(2, &["warm", "-f", "docs", &counted.reference]);
    assert!(said.contains(words) && said.contains("--allow-empty"), "{said}");
}

#[test]
fn a_recording_says_how_much_it_has() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let trace = counted.kitfs.folder().join("few.trace");
    let (place, trace) = (mountpoint.to_str().unwrap(), trace.to_str().unwrap());
    let record = |script: &str| {
        let arguments = ["trace", "record", "-o", trace, place, "--", "sh", "-c", script];
        let outcome = counted.kitfs.run(&arguments);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stderr
    };
    counted.kitfs.fail(127, &["trace", "record", "-o", trace, place, "--", "/nowhere/command"]);
    assert!(!Path::new(trace).exists(), "nothing is left of what did not begin");
    let said = record("true");
    assert!(said.contains("the trace is empty"), "{said}");
    assert_eq!(fs::read_to_string(trace).unwrap().lines().count(), 1, "a header");
    let said = record(&format!("head -c 1000 {place}/weights/shard-0 > /dev/null"));
    assert!(said.contains("recorded 1 line\n"), "{said}");
    let text = fs::read_to_string(trace).unwrap();
    counted.kitfs.fail(127, &["trace", "record", "-o", trace, place, "--", "/nowhere/command"]);
    let said = record("true");
    assert!(said.contains("the trace is empty"), "{said}");
    assert_eq!(fs::read_to_string(trace).unwrap(), text, "a good trace stays");
    let said = record(&format!("head -c 1000 {place}/weights/shard-2 > /dev/null"));
    assert!(said.contains("recorded 1 line\n"), "{said}");
    let replaced = fs::read_to_string(trace).unwrap();
    assert!(replaced.contains("shard-2") && !replaced.contains("shard-0"), "{replaced}");
    let said = counted.kitfs.fail(125, &["trace", "record", place, "--", "true"]);
    assert!(said.contains("add -o FILE"), "{said}");
}

#[test]
fn a_lazy_unmount_ends_hydrating_though_a_file_is_open() {
    let (counted, mountpoint) = hydrating_and_held();
    let file = File::open(mountpoint.join("weights/shard-2")).unwrap();
    counted.kitfs.succeed(&["umount", "--lazy", mountpoint.to_str().unwrap()]);
    counted.registry.release();
    let mut buffer = vec![0; 4096];
    file.read_exact_at(&mut buffer, 8 * MIB).unwrap();
    assert!(buffer == expected_content(&counted, 2)[8 << 20..(8 << 20) + 4096]);
    // Requests that were sent come to their end, because the kit is still open; no other is sent.
    wait_until("the end of the work", || reserved_bytes(&counted) == 0);
    let fetched = counted.fetched();
    assert!(fetched < 40 * MIB, "{fetched} bytes: it went on");
}

#[test]
fn a_lazy_unmount_ends_a_recording_though_a_file_is_open() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let file = File::open(mountpoint.join("weights/shard-1")).unwrap();
    let (mut child, trace) = recording(&counted, &mountpoint, "lazy");
    file.read_exact_at(&mut [0; 10], 100).unwrap();
    counted.kitfs.succeed(&["umount", "--lazy", mountpoint.to_str().unwrap()]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let text = fs::read_to_string(&trace).unwrap();
    assert!(text.contains("weights/shard-1"), "what was read is written down: {text}");
    file.read_exact_at(&mut [0; 10], 8 * MIB).unwrap();
    assert_eq!(fs::read_to_string(&trace).unwrap(), text, "it has ended");
}

/// Starts a recording without a command, and waits until it records.
fn recording(counted: &Counted, mountpoint: &Path, name: &str) -> (Child, PathBuf) {
    let trace = counted.kitfs.folder().join(name);
    let mut command = counted.kitfs.command(&["trace", "record"]);
    command.arg(mountpoint).arg("-o").arg(&trace).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let has_begun = || fs::read_to_string(&trace).is_ok_and(|text| text.contains('\n'));
    wait_until("the first line", has_begun);
    (child, trace)
}

#[test]
fn a_mount_has_one_recording_at_a_time_which_ends_with_it() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let (mut first, trace) = recording(&counted, &mountpoint, "first");
    let said = counted.kitfs.fail(7, &["trace", "record", mountpoint.to_str().unwrap()]);
    assert!(said.contains("recorded already"), "{said}");
    let file = File::open(mountpoint.join("weights/shard-1")).unwrap();
    file.read_exact_at(&mut [0; 10], 100).unwrap();
    drop(file);
    kill_process(Pid::from_child(&first), Signal::INT).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(0));
    let text = fs::read_to_string(&trace).unwrap();
    assert!(text.contains("weights/shard-1"), "what was read is written down: {text}");

    let (mut second, _) = recording(&counted, &mountpoint, "second");
    counted.kitfs.unmount(&mountpoint);
    assert_eq!(second.wait().unwrap().code(), Some(0));
    let cleared = counted.kitfs.run(&["cache", "clear"]);
    assert_eq!(cleared.code, Some(0), "{}", cleared.stderr);
    let kept = cleared.stderr.contains("is being read");
    assert!(!kept, "a recording keeps nothing open: {}", cleared.stderr);
}

#[rstest]
#[case::of_a_mount_that_ends("umount", "fusermount3 -u .; exit 5", 5)]
#[case::that_is_killed("killed", "kill -9 $$", 137)]
fn a_recorded_command_passes_its_end_on(
    #[case] name: &str,
    #[case] script: &str,
    #[case] code: i32,
) {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let trace = counted.kitfs.folder().join(name);
    let (place, trace) = (mountpoint.to_str().unwrap(), trace.to_str().unwrap());
    let script = script.replace("-u .", &format!("-u {place}"));
    let arguments = ["trace", "record", "-o", trace, place, "--", "sh", "-c", &script];
    let outcome = counted.kitfs.run(&arguments);
    assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
}

#[rstest]
#[case::that_succeeds(0, 130)]
#[case::that_fails(7, 7)]
fn an_interrupt_ends_the_wait_for_the_end_of_a_trace(
    #[case] commands_code: i32,
    #[case] code: i32,
) {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let daemon = counted.kitfs.worker_pid();
    let at = |name: &str| counted.kitfs.folder().join(name);
    // A stopped daemon never sends the last entries. The signal stops one thread after another.
    let is_running = format!("cat /proc/{daemon}/task/*/status | grep '^State:' | grep -qv T");
    let script = format!(
        "kill -STOP {daemon}; while {is_running}; do sleep 0.01; done; touch began; exit {commands_code}"
    );
    let mut command = counted.kitfs.command(&["trace", "record", "-o", "cut.trace"]);
    command.arg(&mountpoint).args(["--", "sh", "-c", &script]);
    let mut child = command.stderr(File::create(at("said")).unwrap()).spawn().unwrap();
    wait_until("the command", || at("began").exists());
    // An interrupt while the command runs goes to the command. Later ones end the wait.
    wait_until("the end", || {
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        child.try_wait().unwrap().is_some()
    });
    let daemon = Pid::from_raw(daemon.try_into().unwrap()).unwrap();
    kill_process(daemon, Signal::CONT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(code));
    let said = fs::read_to_string(at("said")).unwrap();
    assert!(said.contains("the trace may lack the last reads"), "{said}");
}

#[test]
fn a_command_that_is_interrupted_leaves_a_whole_trace() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let at = |name: &str| counted.kitfs.folder().join(name);
    let place = mountpoint.display();
    let script =
        format!("head -c 1000 '{place}'/weights/shard-0 > /dev/null; touch began; exec sleep 60");
    let mut command = counted.kitfs.command(&["trace", "record", "-o", "whole.trace"]);
    command.arg(&mountpoint).args(["--", "sh", "-c", &script]);
    // A terminal interrupts the command and `kitfs trace record` together.
    let mut child = command.process_group(0).spawn().unwrap();
    wait_until("the reading", || at("began").exists());
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let text = fs::read_to_string(at("whole.trace")).unwrap();
    assert!(text.contains("weights/shard-0"), "{text}");
}

#[test]
fn a_trace_that_never_ends_is_refused() {
    let counted = Counted::new(&big_files());
    let said = counted.kitfs.fail(2, &["warm", "--trace", "/dev/zero", &counted.reference]);
    assert!(said.contains("/dev/zero"), "{said}");
    counted.kitfs.fail(2, &["trace", "show", "/dev/zero"]);
}
