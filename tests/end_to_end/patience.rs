//! Registries that are connected and silent, such as a pull-through cache that fetches a blob first.

use std::time::{Duration, Instant};

use rstest::rstest;

use crate::counted::Counted;
use crate::support::kit_builder::{Kit, Layer};
use crate::support::registry_double::{Fault, Rule};

fn small_kit() -> Kit {
    let layer = Layer::tar("model", "model.bin");
    Kit::modelkit().with(layer.file("model.bin", 0o644, b"weights"))
}

#[rstest]
#[case::looking("ls")]
#[case::warming("warm")]
#[case::describing("info")]
fn a_silent_registry_is_waited_for_and_the_command_says_so(#[case] command: &str) {
    let counted = Counted::new(&small_kit());
    // Longer than it takes until the user is told.
    let late = Fault::Late(Duration::from_secs(14));
    counted.registry.script(Rule::on("/manifests/").times(1).then(late));
    let outcome = counted.kitfs.run(&[command, &counted.reference]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let told = format!("still waiting for {}…", counted.registry.host());
    assert!(outcome.stderr.contains(&told), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--open-timeout"), "{}", outcome.stderr);
}

#[test]
fn open_timeout_is_how_long_a_silent_registry_is_waited_for() {
    let counted = Counted::new(&small_kit());
    let late = Fault::Late(Duration::from_secs(3600));
    counted.registry.script(Rule::on("/blobs/").then(late));
    let started = Instant::now();
    let outcome = counted.kitfs.run(&["warm", "--open-timeout", "1", &counted.reference]);
    assert_eq!(outcome.code, Some(5), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("no answer came within 1 s"), "{}", outcome.stderr);
    assert!(started.elapsed() < Duration::from_secs(60));
}
