//! mount(8), umount(8) and fstab: kitfs as `mount.fuse.kitfs`.
//!
//! Each test has a mount namespace of its own, in which `/sbin` has the helper alone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::kitfs::{DROP_OTHERS, Kitfs, Outcome};
use crate::support::{golden, golden_reference};

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

/// Runs a script in a namespace where mount(8) finds the helper. `$0` is kitfs, `$REF` a kit, `$DIR` an empty folder.
fn script(kitfs: &Kitfs, lines: &str) -> Outcome {
    let sbin = kitfs.folder().join("sbin");
    fs::create_dir_all(&sbin).unwrap();
    let helper = sbin.join("mount.fuse.kitfs");
    if !helper.exists() {
        symlink(env!("CARGO_BIN_EXE_kitfs"), &helper).unwrap();
    }
    let place = kitfs.mountpoint("mnt");
    // As at boot: no HOME, and no configuration of the user who runs the tests.
    let before = format!(
        "unset HOME; export KITFS_CONFIG=/dev/null REF={} DIR={}\n\
         exec unshare --mount --propagation private sh -ec '{DROP_OTHERS}\n\
         mount --bind {} /sbin\n{lines}' \"$@\"",
        golden_reference("article"),
        text(&place),
        text(&sbin)
    );
    Kitfs::run_command(kitfs.command_after::<&str>(&before, &[]))
}

#[track_caller]
fn succeeds(kitfs: &Kitfs, lines: &str) -> (String, String) {
    let outcome = script(kitfs, lines);
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.stderr, kitfs.log());
    (String::from_utf8(outcome.stdout).unwrap(), outcome.stderr)
}

#[test]
fn mount_and_umount_of_the_system_mount_and_unmount_a_kit() {
    let kitfs = Kitfs::new();
    let (said, _) = succeeds(
        &kitfs,
        "mount -t fuse.kitfs -o ro,noexec,allow_other,uid=7,umask=077 \"$REF\" \"$DIR\"\n\
         stat -c %u:%a \"$DIR/Kitfile\"; cat \"$DIR/Kitfile\"; grep \" $DIR \" /proc/mounts\n\
         umount \"$DIR\"; ls \"$DIR\"; \"$0\" status; \"$0\" daemon stop",
    );
    assert!(said.starts_with("7:400\n") || said.starts_with("7:600\n"), "{said}");
    let kitfile = golden("article").join("Kitfile");
    if let Ok(kitfile) = fs::read_to_string(kitfile) {
        assert!(said.contains(&kitfile), "{said}");
    }
    assert!(said.contains("manifestVersion") && said.contains("noexec"), "{said}");
}

#[test]
fn lines_of_fstab_are_mounted_once() {
    let kitfs = Kitfs::new();
    let (said, _) = succeeds(
        &kitfs,
        "echo \"$REF $DIR fuse.kitfs ro,hydrate=none,_netdev,nofail,users,x-systemd.automount 0 0\" > fstab\n\
         mount -T fstab -a; mount -T fstab -a; grep -c \" $DIR \" /proc/mounts\n\
         umount \"$DIR\"; mount -T fstab \"$DIR\"; \"$0\" status --json; umount \"$DIR\"; \"$0\" daemon stop",
    );
    assert!(said.starts_with("1\n"), "{said}");
    assert!(said.contains("\"hydrate_mode\": \"none\""), "{said}");
}

#[test]
fn wrong_words_and_failures_have_the_exit_codes_of_mount() {
    let kitfs = Kitfs::new();
    let (said, errors) = succeeds(
        &kitfs,
        "code() { echo \"$1: $2\"; }\n\
         mount -t fuse.kitfs -o ro,alow_other \"$REF\" \"$DIR\" || code word $?\n\
         mount -t fuse.kitfs -o ro,hydrate=some \"$REF\" \"$DIR\" || code value $?\n\
         mount -t fuse.kitfs -o ro \"$REF-missing\" \"$DIR\" || code kit $?\n\
         mount -f -t fuse.kitfs -o ro \"$REF\" \"$DIR\" && code fake $?\n\
         mount -s -t fuse.kitfs -o ro,what=1 \"$REF\" \"$DIR\" && code sloppy $?\n\
         mount -o remount,ro \"$DIR\" || code remount $?\n\
         umount \"$DIR\"; mount -t fuse.kitfs \"$REF\" \"$DIR\"; umount \"$DIR\"; \"$0\" daemon stop",
    );
    for expected in ["word: 1", "value: 1", "kit: 32", "fake: 0", "sloppy: 0", "remount: "] {
        assert!(said.contains(expected), "{expected}: {said}{errors}");
    }
    assert!(errors.contains("did you mean `allow-other`?"), "{errors}");
    assert!(errors.contains("a kit is mounted read-only; `overlay=UPPER`"), "{errors}");
}
