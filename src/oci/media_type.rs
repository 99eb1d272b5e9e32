//! Media types of manifests and layers (modelkit-spec 1.1, 1.2 and 6).

/// How the content of a layer is laid out before compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A tar archive of files and directories.
    Tar,
    /// The bytes of one regular file.
    Raw,
}

/// How a layer's content is compressed in the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Stored as it is: blob offsets are stream offsets.
    None,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
}

/// How the bytes of a blob become the bytes of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Encoding {
    /// The layout of the uncompressed stream.
    pub format: Format,
    /// The compression of the blob.
    pub compression: Compression,
}
