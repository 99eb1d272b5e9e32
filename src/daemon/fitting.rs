//! The warning of `mount` about a kit that does not fit the cache.
//!
//! A kit that does not fit can be read all the same. Bytes that find no place are fetched again when they
//! are read again; a compressed layer is then decoded from its start each time.

use std::sync::Arc;

use crate::cache::Cache;
use crate::fetch::Layer;
use crate::fs::LoadedKit;
use crate::observe::shown_bytes;

/// The warning about a kit that does not fit; `None` where it does. Blocking: asks the file system.
pub(super) fn warning(cache: &Cache, kit: &LoadedKit) -> Option<String> {
    // Where the file system does not say, nothing is promised and nothing foretold.
    let most_bytes = cache.most_bytes().ok()?;
    let missing_bytes = kit.total_bytes().saturating_sub(kit.resident_bytes());
    if missing_bytes == 0 {
        return None;
    }
    let place = match cache.capacity_bytes() {
        Some(capacity_bytes) if capacity_bytes <= most_bytes => "--cache-size".to_owned(),
        _ => format!("the disk of {} beside --keep-free", cache.folder().display()),
    };
    text(most_bytes, kit.total_bytes(), compressed_bytes(&kit.layers), &place)
}

/// The sum of the unpacked sizes of layers that came compressed.
fn compressed_bytes(layers: &[Arc<Layer>]) -> u64 {
    let compressed = layers.iter().filter(|layer| layer.key().encoding.is_compressed());
    let bytes = compressed.map(|layer| layer.contents().layout.stream_bytes());
    bytes.fold(0, u64::saturating_add)
}

fn text(most_bytes: u64, total_bytes: u64, compressed_bytes: u64, place: &str) -> Option<String> {
    if total_bytes <= most_bytes {
        return None;
    }
    let (most, total) = (shown_bytes(most_bytes), shown_bytes(total_bytes));
    let mut text = format!(
        "the kit has {total} and the cache has room for {most} ({place}): bytes that find no place are \
         fetched again when they are read again"
    );
    if compressed_bytes > most_bytes {
        let compressed = shown_bytes(compressed_bytes);
        text.push_str(&format!(
            "; layers that came compressed are decoded from their start each time, and room for \
             {compressed} avoids that"
        ));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_kit_that_fits_is_not_spoken_of_and_another_one_is_with_the_size_that_would_do() {
        assert_eq!(text(10 * MIB, 10 * MIB, 10 * MIB, "--cache-size"), None);
        let plain = text(9 * MIB, 10 * MIB, 3 * MIB, "--cache-size").unwrap();
        assert!(plain.contains("10.0 MiB") && plain.contains("9.0 MiB (--cache-size)"), "{plain}");
        assert!(!plain.contains("compressed"), "{plain}");
        let compressed = text(2 * MIB, 10 * MIB, 3 * MIB, "--cache-size").unwrap();
        assert!(compressed.contains("room for 3.0 MiB avoids that"), "{compressed}");
    }
}
