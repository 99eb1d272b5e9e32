//! The file system on which an UPPER folder lies.

use std::path::Path;

/// File systems on which overlayfs keeps no changes, by their magic number (linux/magic.h).
const REFUSED: [(u64, &str); 8] = [
    (0x794c_7630, "overlay"),
    (0x6969, "NFS"),
    (0x6573_5546, "FUSE"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x4d44, "FAT"),
    (0x2011_bab0, "exFAT"),
    (0x0102_1997, "9p"),
];

/// The name of the file system at `path`, if overlayfs keeps no changes there.
pub(super) fn refused(path: &Path) -> Option<&'static str> {
    let found = rustix::fs::statfs(path).ok()?;
    // The field is signed or not, and 32 or 64 bits wide, by architecture. The magic numbers have 32 bits.
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "see above")]
    let magic = found.f_type as u64 & 0xffff_ffff;
    REFUSED.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
}
