//! Mounts with other users, and below other mounts. Only root can become another user, or mount a tmpfs.

use super::*;

/// The number of Debian's user nobody.
const NOBODY: u32 = 65534;

fn as_nobody(program: &str, arguments: &[&OsStr]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", program]);
    command.args(arguments).output().unwrap()
}

#[test]
fn other_users_are_kept_out_unless_they_are_let_in() {
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, b"weights"));
    let mounted = Mounted::new(kit.clone());
    let refused = as_nobody("cat", &[mounted.path("weights.bin").as_os_str()]);
    assert!(!refused.status.success());

    let mounted = Mounted::with(kit, How { allow_other: true, ..How::default() });
    let output = as_nobody("cat", &[mounted.path("weights.bin").as_os_str()]);
    assert_eq!(output.stdout, b"weights");
    let private = Layer::raw("model", "weights.bin", 0o600, b"weights");
    let how = How { allow_other: true, ..How::default() };
    let mounted = Mounted::with(Kit::modelkit().with(private), how);
    let refused = as_nobody("cat", &[mounted.path("weights.bin").as_os_str()]);
    assert!(!refused.status.success(), "the mode holds for other users");
}

#[test]
fn a_mount_of_others_at_the_same_place_is_left_alone() {
    let mut mounted = Mounted::new(Kit::modelkit());
    let tmpfs = |root: &Path| {
        rustix::mount::mount("none", root, "tmpfs", MountFlags::empty(), None).unwrap();
    };
    tmpfs(&mounted.root);
    let covered = mounted.mount().unmount(false).unwrap_err();
    assert!(matches!(&covered, MountError::Busy(words) if words.contains("mounted over")));
    rustix::mount::unmount(&mounted.root, UnmountFlags::empty()).unwrap();

    let output = run("umount", &[mounted.root.as_os_str()]);
    assert!(output.status.success(), "{output:?}");
    tmpfs(&mounted.root);
    fs::write(mounted.path("theirs"), "").unwrap();
    mounted.mount().unmount(true).unwrap();
    drop(mounted.mount.take());
    assert!(mounted.path("theirs").exists());
    rustix::mount::unmount(&mounted.root, UnmountFlags::empty()).unwrap();
}

/// The part of the next test that runs as another user: it mounts, reads and unmounts.
#[test]
#[ignore = "run by an_ordinary_user_mounts_through_fusermount3_and_has_no_passthrough"]
fn child_of_an_ordinary_user() {
    assert_eq!(rustix::process::geteuid().as_raw(), NOBODY);
    let folder = std::env::current_dir().unwrap();
    let reference = format!("oci:{}:v1", folder.join("kit").display());
    let engine = Engine::new(&folder.join("cache"), None);
    let options =
        |allow_other| MountOptions { allow_other, ..MountOptions::at(folder.join("mount")) };
    let refused = Mountpoint::prepare(&options(true)).unwrap_err();
    assert!(refused.to_string().contains("user_allow_other"), "{refused}");

    let kit = Arc::new(engine.load(&reference).unwrap());
    let _inside = engine.runtime.enter();
    let mountpoint = Mountpoint::prepare(&options(false)).unwrap();
    let sessions = Sessions::start(Default::default()).unwrap();
    let mount =
        Mount::new(kit, mountpoint, &options(false), FsConfig::default(), sessions).unwrap();
    let path = folder.join("mount/weights.bin");
    for _ in 0..2 {
        assert_eq!(fs::read(&path).unwrap(), [7; 2_000_000]);
    }
    let PassthroughStatus::Off { reason } = mount.passthrough() else { panic!("it is on") };
    assert!(reason.contains("CAP_SYS_ADMIN"), "{reason}");
    assert_eq!(mount.open_files(), 0, "opens are not counted where they lead to nothing");
    assert_eq!(fs::metadata(&path).unwrap().uid(), NOBODY);
    let file = File::open(&path).unwrap();
    assert!(matches!(mount.unmount(false), Err(MountError::Busy(_))));
    drop(file);
    mount.unmount(false).unwrap();
    assert!(!path.exists());
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3_and_has_no_passthrough() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions("/dev/fuse", PermissionsExt::from_mode(0o666)).unwrap();
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &[7; 2_000_000]));
    kit.write(&folder.path().join("kit"), "v1");
    for name in ["cache", "mount"] {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // A copy of the test, because other users may have no access to the build's folder.
    let program = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&program)
        .args(["--exact", "as_root::child_of_an_ordinary_user", "--ignored", "--nocapture"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}\n{errors}");
    assert!(words.contains("1 passed"), "{words}");
}
