//! Facts about the machine and the limits of this process that a daemon needs.

use rustix::process::{Resource, getrlimit};

use crate::cache::BootId;

/// The most cache files that are kept open. More saves nothing: a kit has at most some thousand files
/// that are read at a time, and each descriptor costs the kernel about a kilobyte.
const MOST_CACHE_FILES: u64 = 16 * 1024;

/// The number of files that the cache may keep open: half of what this process may open (RLIMIT_NOFILE,
/// getrlimit(2)). The other half is for connections, mounts and files that are just in use.
pub(super) fn cache_files() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (limit / 2).min(MOST_CACHE_FILES) as usize
}

/// The boot of the kernel that this process runs under (random(4)); unknown where it does not tell.
pub(super) fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    parse_boot_id(&text).unwrap_or_default()
}

/// A UUID in its usual form: 32 hexadecimal digits, with hyphens between some of them.
fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|&char| char != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    Some(BootId(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_read_as_a_uuid_and_nonsense_is_none() {
        let parsed = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(parsed.0[..4], [0x00, 0x11, 0x22, 0x33]);
        assert_eq!(parsed.0[15], 0xff);
        for nonsense in ["", "0011", "zz112233-4455-6677-8899-aabbccddeeff"] {
            assert_eq!(parse_boot_id(nonsense), None, "{nonsense}");
        }
        assert_eq!(boot_id(), boot_id());
    }

    #[test]
    fn the_cache_leaves_descriptors_to_others() {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!((1..limit as usize).contains(&cache_files()));
    }
}
