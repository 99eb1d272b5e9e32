//! Checks of what mounting needs: the FUSE device, fusermount3, the kernel.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::check::{Check, Subject};
use super::machine::Machine;

const GROUP: &str = "Mounting";
const DEVICE: Subject = Subject(GROUP, "FUSE device");
const FUSERMOUNT: Subject = Subject(GROUP, "fusermount3");
const ALLOW_OTHER: Subject = Subject(GROUP, "--allow-other");
const KERNEL: Subject = Subject(GROUP, "kernel");
const PASSTHROUGH: Subject = Subject(GROUP, "passthrough");
const OVERLAY: Subject = Subject(GROUP, "--overlay");

/// The first kernel with FUSE passthrough, and with requests that a second process can take over.
const FULL_KERNEL: (u32, u32) = (6, 9);

/// The bit of a program that runs with the rights of its owner.
const SETUID: u32 = 0o4000;

pub(super) fn checks(machine: &Machine, cache_folder: Option<&Path>) -> Vec<Check> {
    vec![
        device(machine),
        fusermount(machine),
        allow_other(machine),
        kernel(machine),
        passthrough(machine, cache_folder),
        overlay(machine),
    ]
}

fn device(machine: &Machine) -> Check {
    let path = machine.at("/dev/fuse");
    match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(device) if device.metadata().is_ok_and(|it| it.file_type().is_char_device()) => {
            DEVICE.ok("/dev/fuse can be opened")
        }
        Ok(_) => DEVICE.fail(
            "/dev/fuse is no device",
            "remove the file and run `modprobe fuse`, or `mknod /dev/fuse c 10 229`",
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => DEVICE.fail(
            "there is no /dev/fuse",
            "run `modprobe fuse`; in a container pass `--device /dev/fuse --cap-add SYS_ADMIN`",
        ),
        Err(error) => DEVICE.fail(
            format!("/dev/fuse cannot be opened: {error}"),
            "give it the mode 0666 (`chmod 666 /dev/fuse`); in a container pass `--device /dev/fuse \
             --cap-add SYS_ADMIN`",
        ),
    }
}

fn fusermount(machine: &Machine) -> Check {
    let Some(program) = machine.program("fusermount3") else {
        let (found, advice) = ("there is none in PATH", "install it: `apt install fuse3`");
        return match machine.is_root {
            true => FUSERMOUNT.ok("there is none; root mounts without it"),
            false => FUSERMOUNT.fail(found, advice),
        };
    };
    let path = program.display().to_string();
    let is_setuid = program.metadata().is_ok_and(|it| it.mode() & SETUID != 0 && it.uid() == 0);
    match (is_setuid, machine.is_root) {
        (true, _) => FUSERMOUNT.ok(path),
        (false, true) => {
            FUSERMOUNT.ok(format!("{path} lacks the setuid bit; root mounts without it"))
        }
        (false, false) => FUSERMOUNT.fail(
            format!("{path} lacks the setuid bit of root, so users may not mount"),
            format!(
                "as root: `chown root {path} && chmod u+s {path}`; not on a file system with nosuid"
            ),
        ),
    }
}

fn allow_other(machine: &Machine) -> Check {
    let conf = machine.read("/etc/fuse.conf").unwrap_or_default();
    let is_set = conf.lines().any(|line| line.trim() == "user_allow_other");
    match (machine.is_root, is_set) {
        (true, _) => ALLOW_OTHER.ok("root may use it"),
        (false, true) => ALLOW_OTHER.ok("users may use it (user_allow_other in /etc/fuse.conf)"),
        (false, false) => ALLOW_OTHER.ok(
            "only root may use it; the line `user_allow_other` in /etc/fuse.conf lets users do so",
        ),
    }
}

fn kernel(machine: &Machine) -> Check {
    let found = format!("Linux {}", machine.kernel);
    match machine.kernel_version() {
        Some(version) if version < FULL_KERNEL => KERNEL.warn(
            format!("{found}: mounts end when a process of the daemon crashes"),
            "Linux 6.9 or later keeps the mounts, and has passthrough",
        ),
        _ => KERNEL.ok(found),
    }
}

fn passthrough(machine: &Machine, cache_folder: Option<&Path>) -> Check {
    let is_old = machine.kernel_version().is_some_and(|version| version < FULL_KERNEL);
    let is_stacked = cache_folder.and_then(super::cache::kind_of).is_some_and(|it| it.is_stacked);
    match () {
        () if is_old => PASSTHROUGH.ok("off: it takes Linux 6.9; reads go through the daemon"),
        () if !machine.is_admin => {
            PASSTHROUGH.ok("off: it takes CAP_SYS_ADMIN (root); reads go through the daemon")
        }
        () if is_stacked => PASSTHROUGH.warn(
            "off: the cache folder lies on an overlay or on FUSE",
            "put the cache on a volume or disk (--cache-dir)",
        ),
        () => PASSTHROUGH.ok("available: the kernel reads verified files from the cache by itself"),
    }
}

fn overlay(machine: &Machine) -> Check {
    let has_kernels = machine
        .read("/proc/filesystems")
        .is_some_and(|list| list.lines().any(|line| line.ends_with("\toverlay")));
    match (machine.is_admin, machine.program("fuse-overlayfs")) {
        (true, _) if has_kernels => OVERLAY.ok("writable views use the kernel's overlayfs"),
        (_, Some(program)) => {
            OVERLAY.ok(format!("writable views use {}", program.display()))
        }
        (true, None) => OVERLAY.warn(
            "the kernel lists no overlayfs, and there is no fuse-overlayfs",
            "run `modprobe overlay`, or `apt install fuse-overlayfs`, to use `kitfs mount --overlay`",
        ),
        (false, None) => OVERLAY.ok(
            "not for this user: `kitfs mount --overlay` takes root or `apt install fuse-overlayfs`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::check::Outcome;
    use super::super::machine::tests::bare;
    use super::*;

    /// A machine over a new folder with these files, and the folder.
    fn machine(files: &[(&str, &str, u32)]) -> (Machine, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        for (path, content, mode) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        (bare(folder.path()), folder)
    }

    #[test]
    fn a_missing_or_wrong_device_fails_with_the_step_that_helps() {
        let (bare, _folder) = machine(&[]);
        let check = device(&bare);
        assert_eq!(check.outcome, Outcome::Fail);
        assert!(check.advice.unwrap().contains("modprobe fuse"));
        let (wrong, _folder) = machine(&[("dev/fuse", "", 0o666)]);
        assert_eq!(device(&wrong).outcome, Outcome::Fail);
        assert!(device(&wrong).found.contains("no device"));
    }

    #[test]
    fn users_need_fusermount_with_its_setuid_bit_and_root_does_not() {
        let (user, _folder) = machine(&[]);
        assert_eq!(fusermount(&user).outcome, Outcome::Fail);
        assert!(fusermount(&user).advice.unwrap().contains("apt install fuse3"));
        let (plain, _folder) = machine(&[("usr/bin/fusermount3", "", 0o755)]);
        assert_eq!(fusermount(&plain).outcome, Outcome::Fail);
        assert!(fusermount(&plain).advice.unwrap().contains("chmod u+s"));
        let root = |machine: &Machine| Machine { is_root: true, ..machine.clone() };
        assert_eq!(fusermount(&root(&user)).outcome, Outcome::Ok);
        assert_eq!(fusermount(&root(&plain)).outcome, Outcome::Ok);
        let (whole, _folder) = machine(&[("usr/bin/fusermount3", "", 0o4755)]);
        let is_roots = whole.program("fusermount3").unwrap().metadata().unwrap().uid() == 0;
        let expected = if is_roots { Outcome::Ok } else { Outcome::Fail };
        assert_eq!(fusermount(&whole).outcome, expected);
    }

    #[test]
    fn allow_other_is_read_from_the_configuration_of_fuse() {
        let (without, _folder) = machine(&[("etc/fuse.conf", "#user_allow_other\n", 0o644)]);
        assert!(allow_other(&without).found.starts_with("only root"));
        let (with, _folder) =
            machine(&[("etc/fuse.conf", "mount_max = 9\nuser_allow_other\n", 0o644)]);
        assert!(allow_other(&with).found.starts_with("users may"));
    }

    #[test]
    fn an_old_kernel_is_a_warning_and_says_which_one_is_needed() {
        let (new, _folder) = machine(&[]);
        let old = Machine { kernel: "6.1.0-32-amd64".to_owned(), ..new.clone() };
        assert_eq!(kernel(&new).outcome, Outcome::Ok);
        assert_eq!(kernel(&old).outcome, Outcome::Warn);
        assert!(passthrough(&old, None).found.contains("6.9"));
        assert!(passthrough(&new, None).found.contains("CAP_SYS_ADMIN"));
        let admin = Machine { is_admin: true, ..new };
        assert!(passthrough(&admin, None).found.starts_with("available"));
    }
}
