//! The files that the daemon needs while it serves a mount, and that the mount must not hide.

use std::path::Path;

use crate::control::api::{MountDescription, NetworkOptions};
use crate::fuse::OwnPath;
use crate::oci::Origin;
use crate::source::registry_rules::RegistryRule;

/// The paths that a mount needs, beside the kernel's own.
pub(super) fn own_paths(cache_folder: &Path, request: &MountDescription) -> Vec<OwnPath> {
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
    if let Some(upper) = &request.overlay {
        let what = "the folder of its changes".to_owned();
        paths.push(OwnPath { what, path: upper.clone(), is_closed: true });
    }
    let NetworkOptions {
        kitops_home,
        registries_dir,
        credential_files,
        ca_files,
        client_certificate,
        client_key,
        s3,
        registries,
        ..
    } = &request.kit.network;
    if let Ok(Origin::OciLayout { folder, .. }) = Origin::parse(&request.kit.reference) {
        paths.push(open("the folder that the kit is read from", &folder));
    }
    // Any kit may have a parent or a data set in a registry, in kit's storage or in an S3 store. Files that
    // are there are read again, whenever a connection or a token is made.
    let of_registries: Vec<_> = registries.iter().flat_map(RegistryRule::files).cloned().collect();
    let files = [
        ("a file of a registry's section", of_registries.as_slice()),
        ("kit's own folder", kitops_home.as_slice()),
        ("the folder of mirrors", registries_dir.as_slice()),
        ("a file with credentials", credential_files.as_slice()),
        ("a file with credentials", s3.credentials_file.as_slice()),
        ("the configuration for S3", s3.config_file.as_slice()),
        ("a certificate authority", ca_files.as_slice()),
        ("the client certificate", client_certificate.as_slice()),
        ("the key of the client certificate", client_key.as_slice()),
        ("the access trace", request.trace.as_slice()),
    ];
    for (what, files) in files {
        paths.extend(files.iter().filter(|file| file.exists()).map(|file| open(what, file)));
    }
    paths
}
