//! Bytes that came wrong, in the pages of the kernel.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const MIB: usize = 1024 * 1024;

/// A mounted file of 5 MiB whose byte at `at` comes wrong the first `times` times.
fn mounted_wrong(at: usize, times: u32) -> (Mounted, Vec<u8>) {
    let content = Random::new(11).bytes(5 * MIB);
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content));
    let mounted = Mounted::new(kit);
    mounted.engine.faults.flip(content.len() as u64, at as u64, times);
    (mounted, content)
}

impl Mounted {
    /// The same kit at another place.
    fn mount_beside(&self, name: &str) -> (Mount, PathBuf) {
        let root = self.folder.path().join(name);
        fs::create_dir(&root).unwrap();
        let kit = self.engine.load_with_umask(&self.written.reference, 0o022).unwrap();
        let options = MountOptions::at(root.clone());
        let _inside = self.engine.runtime.enter();
        let mountpoint = Mountpoint::prepare(&options).unwrap();
        let config = FsConfig::default();
        let mount =
            Mount::new(Arc::new(kit), mountpoint, &options, config, self.sessions.clone()).unwrap();
        (mount, root)
    }

    fn is_doubted(&self) -> bool {
        self.mount().nodes().single().unwrap().kit().layers[0].store().is_doubted()
    }

    fn state(&self) -> String {
        let mut state = [0; 32];
        let path = self.path("weights.bin");
        let length = rustix::fs::getxattr(path, "user.kitfs.state", &mut state[..]).unwrap();
        String::from_utf8(state[..length].to_vec()).unwrap()
    }
}

/// A byte of a map, as it is now.
fn byte_of(mapped: &Mapped, at: usize) -> u8 {
    // SAFETY: `at` lies within the map.
    unsafe { std::ptr::read_volatile(&raw const mapped.bytes()[at]) }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn pages_of_bytes_that_came_wrong_are_dropped_in_every_mount_and_map() {
    let at = 2 * MIB + 77;
    let (mounted, content) = mounted_wrong(at, 1);
    let (other, root) = mounted.mount_beside("beside");
    let files = [mounted.open("weights.bin"), File::open(root.join("weights.bin")).unwrap()];
    let maps: Vec<_> = files
        .iter()
        .flat_map(|file| [MapFlags::SHARED, MapFlags::PRIVATE].map(|kind| (file, kind)))
        .map(|(file, kind)| Mapped::new(file, content.len(), kind))
        .collect();
    // Before all of the layer is here, and its digest is known.
    for file in &files {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        assert_eq!(byte, [content[at] ^ 1]);
    }
    for mapped in &maps {
        assert_eq!(byte_of(mapped, at), content[at] ^ 1);
    }
    // The reader that completes the layer may wait for the second copy already.
    let path = root.join("weights.bin");
    let reader = std::thread::spawn(move || fs::read(path).unwrap());
    until("the digest is wrong", || mounted.is_doubted());
    mounted.engine.faults.release();
    assert_eq!(reader.join().unwrap().len(), content.len());
    for mapped in &maps {
        until("the right byte in a map", || byte_of(mapped, at) == content[at]);
        assert!(mapped.bytes() == content);
    }
    for file in &files {
        let mut bytes = vec![0; content.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content);
    }
    until("confirmed", || mounted.state() == "confirmed");
    for mount in [mounted.mount(), &other] {
        let replaced = mount.replaced();
        let start = (at as u64).next_multiple_of(CHUNK_BYTES) - CHUNK_BYTES;
        assert_eq!(replaced.others, 0);
        let [range] = &replaced.named[..] else { panic!("{replaced:?}") };
        assert_eq!(
            (&*range.path, range.range.clone()),
            ("weights.bin", start..start + CHUNK_BYTES)
        );
    }
}

/// Readers wait for the second copy, with pages of it locked, while the kernel is told to drop pages.
#[test]
fn a_layer_is_fetched_again_under_readers_and_maps() {
    let at = 3 * MIB + 1;
    let (mounted, content) = mounted_wrong(at, 1);
    let file = mounted.open("weights.bin");
    let mapped = Mapped::new(&file, content.len(), MapFlags::SHARED);
    assert_eq!(byte_of(&mapped, at), content[at] ^ 1);
    let (is_over, mounted) = (AtomicBool::new(false), &mounted);
    let is_right = |offset: usize, bytes: &[u8]| {
        let expected = &content[offset..offset + bytes.len()];
        bytes
            .iter()
            .zip(expected)
            .zip(offset..)
            .all(|((byte, right), place)| byte == right || place == at && *byte == right ^ 1)
    };
    let (is_over, is_right, content) = (&is_over, &is_right, &content);
    std::thread::scope(|scope| {
        for reader in 0..6u64 {
            let file = mounted.open("weights.bin");
            scope.spawn(move || {
                let mut random = Random::new(reader);
                let mut bytes = vec![0; 700_000];
                while !is_over.load(Ordering::SeqCst) {
                    let length = 1 + random.below(700_000) as usize;
                    let offset = random.below((content.len() - length) as u64) as usize;
                    if reader % 2 == 0 {
                        let advice = rustix::fs::Advice::DontNeed;
                        rustix::fs::fadvise(&file, 0, None, advice).unwrap();
                    }
                    file.read_exact_at(&mut bytes[..length], offset as u64).unwrap();
                    assert!(is_right(offset, &bytes[..length]), "a byte that nobody sent");
                }
            });
        }
        for reader in 0..2u64 {
            let file = mounted.open("weights.bin");
            scope.spawn(move || {
                let mapped = &Mapped::new(&file, content.len(), MapFlags::SHARED);
                let mut random = Random::new(100 + reader);
                while !is_over.load(Ordering::SeqCst) {
                    let place = random.below(content.len() as u64) as usize;
                    assert!(is_right(place, &[byte_of(mapped, place)]));
                }
            });
        }
        until("the digest is wrong", || mounted.is_doubted());
        std::thread::sleep(Duration::from_millis(100));
        mounted.engine.faults.release();
        until("the right byte", || byte_of(&mapped, at) == content[at]);
        until("confirmed", || mounted.state() == "confirmed");
        std::thread::sleep(Duration::from_millis(50));
        is_over.store(true, Ordering::SeqCst);
    });
    assert!(mapped.bytes() == *content);
    assert!(fs::read(mounted.path("weights.bin")).unwrap() == *content);
}

#[test]
fn a_layer_that_comes_wrong_twice_loses_its_pages() {
    let at = 4 * MIB;
    let (mounted, content) = mounted_wrong(at, 2);
    let file = mounted.open("weights.bin");
    let mut bytes = vec![0; content.len()];
    // The first copy is read to its end before its digest is known, or the reader meets the error itself.
    let _ = file.read_exact_at(&mut bytes, 0);
    until("poisoned", || mounted.state() == "poisoned");
    let is_refused = |at: usize| file.read_exact_at(&mut [0], at as u64).is_err();
    until("no page is left", || (0..content.len()).step_by(CHUNK_BYTES as usize).all(is_refused));

    // It is removed while it is mounted and open.
    let key = mounted.engine.cache().layers().unwrap()[0].key;
    mounted.engine.faults.release();
    mounted.engine.cache().remove_layer(key).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == content);
    until("confirmed", || mounted.state() == "confirmed");
}
