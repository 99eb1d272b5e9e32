//! Every page of every kind of file, damaged.

use super::damage::Full;
use super::*;

/// The damages of an ordinary run. `KITFS_DAMAGES` asks for another number.
const DAMAGES: usize = 48;

const PAGE: usize = 4096;

/// Damage of a disk to a page of a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Zeros { page: usize },
    Truncate { page: usize },
}

impl Damage {
    /// Of a random page of a file with so many bytes.
    fn any(random: &mut Random, bytes: usize) -> Self {
        let page = random.below(bytes.div_ceil(PAGE).max(1) as u64) as usize;
        match random.below(3) {
            0 => Self::Zeros { page },
            1 => Self::Truncate { page },
            _ => {
                let in_page = (bytes - page * PAGE).clamp(1, PAGE);
                let at = page * PAGE + random.below(in_page as u64) as usize;
                Self::Flip { at, bit: random.below(8) as u8 }
            }
        }
    }

    /// In place, as a disk damages a file that a process may have open.
    fn apply(self, file: &Path) {
        let length = fs::metadata(file).unwrap().len() as usize;
        let open = File::options().read(true).write(true).open(file).unwrap();
        match self {
            Self::Flip { at, .. } if at >= length => {}
            Self::Flip { at, bit } => {
                let mut byte = [0];
                open.read_exact_at(&mut byte, at as u64).unwrap();
                open.write_all_at(&[byte[0] ^ 1 << bit], at as u64).unwrap();
            }
            Self::Zeros { page } => {
                let end = length.min((page + 1) * PAGE);
                open.write_all_at(&vec![0; end - page * PAGE], (page * PAGE) as u64).unwrap();
            }
            Self::Truncate { page } => open.set_len((page * PAGE) as u64).unwrap(),
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => _ = fs::copy(entry.path(), target).unwrap(),
        }
    }
}

/// A cache with every kind of file: confirmed layers of each encoding, one that is not complete, one whose pass
/// was interrupted, a poisoned one.
struct Template {
    full: Full,
    partial: Vec<u8>,
    poisoned: Vec<u8>,
}

fn spooled_key() -> LayerKey {
    let encoding = Encoding { format: Format::Raw, compression: Compression::Zstd };
    LayerKey { digest: Digest::of(b"interrupted"), encoding }
}

impl Template {
    fn make(folder: &Path) -> Self {
        let cache = open_under(folder, 1);
        let full = Full::fill(&cache);
        let partial = content(21, 2 * MIB);
        fill(&cache, &raw_layer(&cache, &partial), &partial, 0..5);
        let mut stage = cache.layer(spooled_key(), 100_000).unwrap().stage().unwrap();
        stage.spool_append(&content(22, 50_000)).unwrap();
        drop(stage);
        let poisoned = content(23, MIB);
        let store = raw_layer(&cache, &poisoned);
        fill_all(&cache, &store, &content(24, MIB));
        assert!(matches!(store.confirm(&|| true).unwrap(), LayerState::Poisoned { .. }));
        drop(store);
        cache.settle(&|| true);
        Self { full, partial, poisoned }
    }

    /// Every byte that is served is right; the others are misses.
    fn check(&self, cache: &Arc<Cache>, what: &str) {
        let document = cache.document(self.full.document);
        assert!(document.is_none_or(|bytes| &bytes[..] == b"manifest"), "{what}");
        assert!(cache.recall("host/kit:v1").is_none_or(|it| it == self.full.document), "{what}");
        let partial = (key(&self.partial, Format::Raw), 2 * MIB as u64, self.partial.clone());
        for (key, blob_bytes, bytes) in self.full.layers.iter().chain([&partial]) {
            let store = cache.layer(*key, *blob_bytes).unwrap();
            let Some(contents) = store.contents() else { continue };
            for chunk in (0..contents.layout.chunks()).map(ChunkId) {
                let start = contents.layout.chunk(chunk).stream.start.get() as usize;
                is_resident(&store, bytes, start..start + store.filled(chunk) as usize);
            }
        }
        let store = cache.layer(key(&self.poisoned, Format::Raw), MIB as u64).unwrap();
        assert_ne!(store.state(), LayerState::Confirmed, "{what}");
        assert!(!matches!(store.read(StreamOffset(0), &mut [0; 10]), Ok(Lookup::Hit)), "{what}");
    }

    fn verify(&self, cache: &Arc<Cache>) {
        for usage in cache.layers().unwrap() {
            cache.verify_layer(usage.key).unwrap();
        }
        cache.verify_documents().unwrap();
    }
}

#[test]
fn damage_to_any_page_of_any_file_is_found_before_a_byte_of_it_is_served_or_by_verify() {
    let template_folder = tempfile::tempdir().unwrap();
    let template = Template::make(template_folder.path());
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut random = Random::new(seed.as_secs());
    let files: Vec<PathBuf> = files_below(template_folder.path())
        .into_iter()
        .map(|path| path.strip_prefix(template_folder.path()).unwrap().to_owned())
        .collect();
    for name in [
        "format",
        "state.redb",
        "document",
        "meta",
        "toc",
        "chunks",
        "chunks.copy",
        "stream",
        "spool",
    ] {
        assert!(files.iter().any(|file| file.ends_with(name)), "no {name} among {files:?}");
    }
    assert!(files.iter().any(|file| file.parent().is_some_and(|it| it.ends_with("members"))));
    let damages = std::env::var("KITFS_DAMAGES").map_or(DAMAGES, |number| number.parse().unwrap());
    let first = random.below(files.len() as u64) as usize;
    for (index, file) in files.iter().cycle().skip(first).take(damages).enumerate() {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(template_folder.path(), folder.path());
        let length = fs::metadata(folder.path().join(file)).unwrap().len() as usize;
        let damage = Damage::any(&mut random, length);
        let is_running = index % 2 == 1;
        let what = format!(
            "{} {damage:?}, running: {is_running}, seed {}",
            file.display(),
            seed.as_secs()
        );
        eprintln!("{what}");
        if is_running {
            let cache = open_under(folder.path(), 1);
            template.check(&cache, &what);
            damage.apply(&folder.path().join(file));
            template.verify(&cache);
            template.check(&cache, &what);
        } else {
            damage.apply(&folder.path().join(file));
        }
        // After whatever the first process did about it, and after the machine died.
        for boot in [1, 2] {
            let cache = open_under(folder.path(), boot);
            template.check(&cache, &what);
            template.verify(&cache);
            template.check(&cache, &what);
        }
    }
}
