//! The identity of a layer in the cache, and the name of its folder.

use crate::oci::{Compression, Digest, Encoding, Format};

/// The identity of a layer. The same blob read as tar and as raw is two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerKey {
    /// The digest of the blob as stored.
    pub digest: Digest,
    /// The layout and compression of its files.
    pub encoding: Encoding,
}

impl LayerKey {
    /// The folder's name below `layers/sha256/`: the digest's digits, and for anything but an
    /// uncompressed tar a point and the encoding: `<hex>`, `<hex>.raw`, `<hex>.tar+gzip`.
    pub(super) fn folder_name(&self) -> String {
        let mut name = self.digest.hex();
        if let Some(suffix) = suffix(self.encoding) {
            name.push('.');
            name.push_str(suffix);
        }
        name
    }

    /// The key whose folder has this name.
    pub(super) fn parse_folder_name(name: &str) -> Option<Self> {
        let (hex, encoding) = match name.split_once('.') {
            None => (name, PLAIN),
            Some((hex, text)) => {
                (hex, ENCODINGS.iter().find(|(suffix, _)| *suffix == text).map(|(_, e)| *e)?)
            }
        };
        Some(Self { digest: Digest::from_hex(hex)?, encoding })
    }
}

const PLAIN: Encoding = Encoding { format: Format::Tar, compression: Compression::None };

const ENCODINGS: [(&str, Encoding); 6] = [
    ("raw", Encoding { format: Format::Raw, compression: Compression::None }),
    ("tar+gzip", Encoding { format: Format::Tar, compression: Compression::Gzip }),
    ("tar+zstd", Encoding { format: Format::Tar, compression: Compression::Zstd }),
    ("object", Encoding::OBJECT),
    ("raw+gzip", Encoding { format: Format::Raw, compression: Compression::Gzip }),
    ("raw+zstd", Encoding { format: Format::Raw, compression: Compression::Zstd }),
];

fn suffix(encoding: Encoding) -> Option<&'static str> {
    ENCODINGS.iter().find(|(_, known)| *known == encoding).map(|(suffix, _)| *suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_encoding_has_a_folder_of_its_own_and_names_parse_back() {
        let digest = Digest::of(b"layer");
        let mut names = std::collections::HashSet::new();
        for format in [Format::Tar, Format::Raw] {
            for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
                let key = LayerKey { digest, encoding: Encoding { format, compression } };
                assert_eq!(LayerKey::parse_folder_name(&key.folder_name()), Some(key));
                names.insert(key.folder_name());
            }
        }
        let object = LayerKey { digest, encoding: Encoding::OBJECT };
        assert_eq!(LayerKey::parse_folder_name(&object.folder_name()), Some(object));
        names.insert(object.folder_name());
        assert_eq!(names.len(), 7);
        assert!(names.contains(&digest.hex()), "an uncompressed tar has no suffix");
    }

    #[test]
    fn other_names_are_no_layers() {
        let hex = Digest::of(b"layer").hex();
        for name in ["", "x", &hex[1..], &format!("{hex}."), &format!("{hex}.tar"), ".removed"] {
            assert_eq!(LayerKey::parse_folder_name(name), None, "{name}");
        }
    }
}
