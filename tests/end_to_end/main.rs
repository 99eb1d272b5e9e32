//! Kits, mounted by the `kitfs` binary as users run it. All these tests are one binary, because linking
//! takes longer than most of the tests.

#[path = "../support/mod.rs"]
mod support;

mod background;
mod browsing;
mod counted;
mod differential;
mod explaining;
mod failover;
mod filling;
mod frozen;
#[path = "fstab.rs"]
mod fstab_as_root;
mod golden_kits;
mod healing;
mod idle_daemon;
mod idle_mounts;
mod indexes;
mod keeper;
mod kinds_of_kits;
mod kit_storage;
mod lazy;
mod limits;
mod listing;
mod looking;
mod lost_cache;
mod maps;
mod mounting;
mod mountpoints;
#[path = "namespaces.rs"]
mod namespaces_as_root;
mod outages;
#[path = "overlays.rs"]
mod overlays_as_root;
mod owners;
mod patience;
mod pushing;
mod remote_data;
mod replacing;
mod restoring;
#[path = "small_disk.rs"]
mod small_disk_as_root;
mod supervised;
#[path = "system_daemon.rs"]
mod system_daemon_as_root;
mod upgrading;
mod versions;
