//! The address, over the ends of processes.

use std::net::TcpListener;

use super::{Served, address, golden_path};
use crate::support::golden_reference;
use crate::support::http_client::get;
use crate::support::kitfs::{Kitfs, kill_and_wait, wait_until};

#[test]
fn the_port_outlives_worker_and_keeper() {
    let served = Served::new();
    let (kitfs, server) = (&served.kitfs, served.server);
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    let kitfile = std::fs::read(mountpoint.join("Kitfile")).unwrap();
    let file = golden_path("files", "article", "Kitfile");
    let is_served = |when: &str| {
        assert_eq!(address(kitfs), server, "{when}");
        assert!(get(server, &file).body == kitfile, "{when}");
    };
    is_served("at first");
    kill_and_wait(kitfs.worker_pid());
    // The client waits for the next worker.
    assert!(get(server, &file).body == kitfile);
    is_served("after the end of a worker");
    kitfs.succeed(&["daemon", "restart"]);
    is_served("after a restart");
    kitfs.succeed(&["daemon", "upgrade"]);
    is_served("after an upgrade");
    let keeper = kitfs.daemon_pid();
    kill_and_wait(keeper);
    let has_keeper = || ![keeper, kitfs.worker_pid()].contains(&kitfs.daemon_pid());
    wait_until("another keeper", has_keeper);
    is_served("after the end of a keeper");
    kill_and_wait(kitfs.worker_pid());
    is_served("after the end of a worker of the next keeper");
    kitfs.succeed(&["daemon", "restart"]);
    is_served("after a restart by the next keeper");
    kitfs.succeed(&["daemon", "stop"]);
    assert!(TcpListener::bind(server).is_ok(), "the port is free");
}

#[test]
fn an_address_that_cannot_be_had_is_an_error() {
    let kitfs = Kitfs::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = kitfs.fail(5, &["daemon", "start", "--listen", &address]);
    assert!(said.contains(&address) && said.contains("port 0"), "{said}");
    let said = kitfs.fail(2, &["daemon", "start", "--listen", "0.0.0.0:0"]);
    assert!(said.contains("--listen-public"), "{said}");
    let no_address = kitfs.run(&["daemon", "start", "--listen", "example.com:80"]);
    assert_eq!(no_address.code, Some(2), "{}", no_address.stderr);
    kitfs.fail(9, &["daemon", "status"]);
    kitfs.succeed(&["daemon", "start"]);
    let said = kitfs.fail(9, &["daemon", "start", "--listen", "127.0.0.1:0"]);
    assert!(said.contains("serves no HTTP") && said.contains("daemon stop"), "{said}");
}

#[test]
fn a_mount_starts_a_daemon_with_the_address_of_the_environment() {
    let start = |address: &str| {
        let kitfs = Kitfs::new();
        let mountpoint = kitfs.mountpoint("mnt");
        let reference = golden_reference("article");
        let mut command = kitfs.command(&["mount", &reference, mountpoint.to_str().unwrap()]);
        command.env("KITFS_LISTEN", address);
        let mounted = Kitfs::run_command(command);
        assert_eq!(mounted.code, Some(0), "{}{}", mounted.stderr, kitfs.log());
        kitfs
    };
    let kitfs = start("127.0.0.1:0");
    let server = address(&kitfs);
    assert_eq!(get(server, &golden_path("files", "article", "Kitfile")).status, 200);
    assert_eq!(
        get(server, &golden_path("files", "comp-none", "Kitfile")).status,
        200,
        "not mounted"
    );
    // Another daemon of the same user goes without.
    let other = start(&server.to_string());
    assert!(other.json(&["daemon", "status", "--json"])["http"].is_null());
    assert!(other.log().contains("cannot listen"), "{}", other.log());
}

#[test]
fn a_monitor_does_not_keep_an_idle_daemon_alive() {
    let kitfs = Kitfs::new();
    let idle = ["--idle-exit", "2s"];
    kitfs.succeed(&[&["daemon", "start", "--listen", "127.0.0.1:0"], &idle[..]].concat());
    let server = address(&kitfs);
    wait_until("the end of the daemon", || {
        // It may end in the middle of an answer.
        let asked = std::panic::catch_unwind(|| get(server, "/healthz").status);
        asked.is_err() && kitfs.log().contains("nothing was mounted and no command came")
    });
}
