//! The part of the file tree that a process sees.
//!
//! A path may name another folder in another mount namespace or below another root: in a container that
//! shares the cache folder, after `unshare --mount`, in a chroot. A mount that a daemon makes for a
//! command is of use only if both see the same tree, or the mount propagates (mount_namespaces(7)).

use std::io;
use std::os::unix::fs::MetadataExt;

/// The mount namespace and the root of this process, as a text to compare.
///
/// # Errors
/// Where /proc is not mounted.
pub fn own_view() -> io::Result<String> {
    let namespace = std::fs::read_link("/proc/self/ns/mnt")?;
    let root = std::fs::metadata("/")?;
    Ok(format!("{} {}:{}", namespace.display(), root.dev(), root.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_of_a_process_have_one_view() {
        let own = own_view().unwrap();
        assert!(own.starts_with("mnt:["), "{own}");
        assert_eq!(std::thread::spawn(own_view).join().unwrap().unwrap(), own);
    }
}
