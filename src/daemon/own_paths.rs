//! What a mount must not hide: the files that the daemon needs while it serves the mount.

use std::path::{Path, PathBuf};

use super::api::{MountRequest, NetworkOptions};
use crate::fuse::OwnPath;
use crate::oci::Origin;

/// The paths that a mount needs, beside the kernel's own.
pub(super) fn own_paths(cache_folder: &Path, request: &MountRequest) -> Vec<OwnPath> {
    let open = |what: &str, path: &Path| OwnPath {
        what: what.to_owned(),
        path: path.to_owned(),
        is_closed: false,
    };
    let mut paths = vec![
        // With its socket and its log.
        OwnPath {
            what: "the cache folder".to_owned(),
            path: cache_folder.to_owned(),
            is_closed: true,
        },
        open("the kernel's tables", Path::new("/proc/self")),
        open("the FUSE device", Path::new("/dev/fuse")),
    ];
    let NetworkOptions { kitops_home, registries_dir, credential_files, ca_files, .. } =
        &request.kit.network;
    match Origin::parse(&request.kit.reference) {
        Ok(Origin::OciLayout { folder, .. }) => {
            paths.push(open("the folder that the kit is read from", &folder));
        }
        Ok(Origin::KitStorage(_)) => {
            let storage = kitops_home.iter().map(|home| open("kit's local storage", home));
            paths.extend(storage);
        }
        Ok(Origin::Registry(_)) => {
            // Read again whenever a token is asked for, if they are there.
            let is_there = |path: &&PathBuf| path.exists();
            let credentials = credential_files.iter().filter(is_there);
            paths.extend(credentials.map(|file| open("a file with credentials", file)));
            let mirrors = registries_dir.iter().map(|folder| open("the folder of mirrors", folder));
            paths.extend(mirrors);
            paths.extend(ca_files.iter().map(|file| open("a certificate authority", file)));
        }
        // The request is refused for it.
        Err(_) => {}
    }
    paths.extend(request.trace.iter().map(|file| open("the access trace", file)));
    paths
}
