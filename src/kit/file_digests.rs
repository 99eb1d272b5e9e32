//! The annotation that lists the files of a layer with their digests (docs/format/file-digests.md).
//!
//! OCI digests whole blobs, and a tar layer holds no digest of its files. `kitfs pack` reads every
//! byte of a layer, so it hashes each file on the way and writes the list into the layer's
//! descriptor. Two versions of a kit can then be compared without a byte of their layers.
//!
//! The list is the packer's claim. Nothing checks it before the layer's bytes are read: a list may show that files
//! changed, and never serves one file's bytes as another's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::layer::MemberPath;
use crate::oci::{Descriptor, Digest};

/// The key of the annotation.
pub const FILE_DIGESTS: &str = "dev.kitfs.layer.files";

/// The longest text of the annotation, in bytes as a manifest holds it (a quote takes two). Registries
/// refuse manifests of more than 4 MiB, and a kit has several layers. A file takes about 100 bytes, so
/// a list has room for about 5,000 files.
pub const FILE_DIGESTS_LIMIT_BYTES: usize = 512 * 1024;

/// The version that is written and read.
const VERSION: u32 = 1;

/// The files of one layer, in the order of their paths' bytes. No path comes twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileDigests(Vec<FileDigest>);

/// One file of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigest {
    /// Its path below the kit's root.
    pub path: MemberPath,
    /// Its size, in bytes.
    pub size: u64,
    /// The sha256 of its content.
    pub digest: Digest,
}

/// The fault of an annotation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the annotation {FILE_DIGESTS} is malformed: {0}")]
pub struct FileDigestsError(String);

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    files: Vec<(WirePath, u64, String)>,
}

/// A path: a text where it is UTF-8.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WirePath {
    Text(String),
    Bytes { base64: String },
}

impl FileDigests {
    /// The list of these files. Of two entries with one path, the last one counts.
    pub fn new(files: impl IntoIterator<Item = FileDigest>) -> Self {
        let files: std::collections::BTreeMap<_, _> =
            files.into_iter().map(|file| (file.path.as_bytes().to_vec(), file)).collect();
        Self(files.into_values().collect())
    }

    /// The text of the annotation; `None` where a manifest has no room for it.
    pub fn encode(&self) -> Option<String> {
        let file = |file: &FileDigest| (WirePath::new(&file.path), file.size, file.digest.hex());
        let wire = Wire { version: VERSION, files: self.0.iter().map(file).collect() };
        let text = serde_json::to_string(&wire).expect("texts and numbers are JSON");
        (written_bytes(&text) <= FILE_DIGESTS_LIMIT_BYTES).then_some(text)
    }

    /// The list in the annotations of a layer, if it has one.
    ///
    /// # Errors
    /// As for [`FileDigests::decode`].
    pub fn of(layer: &Descriptor) -> Result<Option<Self>, FileDigestsError> {
        layer.annotations.get(FILE_DIGESTS).map(|text| Self::decode(text)).transpose()
    }

    /// Decodes the text of an annotation.
    ///
    /// # Errors
    /// Fails if the text is too long, is not the JSON of this version, or its paths are not clean and
    /// in order.
    pub fn decode(text: &str) -> Result<Self, FileDigestsError> {
        if text.len() > FILE_DIGESTS_LIMIT_BYTES {
            return Err(FileDigestsError(format!(
                "it has {} bytes, and {FILE_DIGESTS_LIMIT_BYTES} are the limit",
                text.len()
            )));
        }
        let wire: Wire =
            serde_json::from_str(text).map_err(|error| FileDigestsError(error.to_string()))?;
        if wire.version != VERSION {
            return Err(FileDigestsError(format!(
                "its version is {}, and this kitfs reads version {VERSION}",
                wire.version
            )));
        }
        let mut files: Vec<FileDigest> = Vec::with_capacity(wire.files.len());
        for (number, (path, size, hex)) in wire.files.into_iter().enumerate() {
            let wrong = |what: &str| FileDigestsError(format!("file {number}: {what}"));
            let path = path.parse().ok_or_else(|| wrong("its path is not clean"))?;
            let digest = Digest::from_hex(&hex).ok_or_else(|| wrong("its sha256 is malformed"))?;
            if files.last().is_some_and(|last| last.path >= path) {
                return Err(wrong("its path is not above the one before it"));
            }
            // As in every tar archive and manifest: sizes are signed there.
            if i64::try_from(size).is_err() {
                return Err(wrong("its size is too large"));
            }
            files.push(FileDigest { path, size, digest });
        }
        Ok(Self(files))
    }

    /// The file at a path.
    pub fn get(&self, path: &MemberPath) -> Option<&FileDigest> {
        self.0.binary_search_by(|file| file.path.cmp(path)).ok().map(|index| &self.0[index])
    }

    /// The files in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &FileDigest> {
        self.0.iter()
    }
}

impl WirePath {
    fn new(path: &MemberPath) -> Self {
        match std::str::from_utf8(path.as_bytes()) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes { base64: STANDARD.encode(path.as_bytes()) },
        }
    }

    /// The path, if it is written as [`MemberPath`] keeps it.
    fn parse(self) -> Option<MemberPath> {
        let name = match self {
            Self::Text(text) => text.into_bytes(),
            Self::Bytes { base64 } => STANDARD.decode(base64).ok()?,
        };
        MemberPath::parse(&name).ok().filter(|path| path.as_bytes() == name)
    }
}

/// The bytes that a text takes as a JSON string in a manifest.
fn written_bytes(text: &str) -> usize {
    text.bytes().map(|byte| if matches!(byte, b'"' | b'\\') { 2 } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &[u8], content: &[u8]) -> FileDigest {
        let path = MemberPath::parse(path).unwrap();
        FileDigest { path, size: content.len() as u64, digest: Digest::of(content) }
    }

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_text_is_as_the_format_page_shows_it() {
        let files = FileDigests::new([file(b"src/\xff", b""), file(b"src/a \"b\"", b"")]);
        let text = format!(
            r#"{{"version":1,"files":[["src/a \"b\"",0,"{EMPTY}"],[{{"base64":"c3JjL/8="}},0,"{EMPTY}"]]}}"#
        );
        assert_eq!(files.encode().as_deref(), Some(text.as_str()));
        assert_eq!(FileDigests::decode(&text), Ok(files));
    }

    #[test]
    fn hostile_texts_are_refused_with_the_reason() {
        let one = |path: &str, size: &str, hex: &str| {
            format!(r#"{{"version":1,"files":[[{path},{size},"{hex}"]]}}"#)
        };
        let twice = format!(r#"{{"version":1,"files":[["a",0,"{EMPTY}"],["a",0,"{EMPTY}"]]}}"#);
        for (text, expected) in [
            (String::new(), "EOF"),
            ("[]".to_owned(), "invalid"),
            (r#"{"version":2,"files":[]}"#.to_owned(), "version is 2"),
            (one(r#""../a""#, "0", EMPTY), "path is not clean"),
            (one(r#""/a""#, "0", EMPTY), "path is not clean"),
            (one(r#""a/""#, "0", EMPTY), "path is not clean"),
            (one(r#""a\u0000""#, "0", EMPTY), "path is not clean"),
            (one(r#"{"base64":"%"}"#, "0", EMPTY), "path is not clean"),
            (one(r#""a""#, "0", &EMPTY[1..]), "sha256 is malformed"),
            (one(r#""a""#, "-1", EMPTY), "invalid"),
            (one(r#""a""#, "9223372036854775808", EMPTY), "size is too large"),
            (twice, "not above"),
            (" ".repeat(FILE_DIGESTS_LIMIT_BYTES + 1), "limit"),
            ("[".repeat(FILE_DIGESTS_LIMIT_BYTES), "malformed"),
        ] {
            let error = FileDigests::decode(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_list_without_room_in_a_manifest_is_not_written() {
        let many = |count: usize| {
            FileDigests::new(
                (0..count).map(|n| file(format!("folder/file-{n:08}").as_bytes(), b"")),
            )
        };
        let fits = many(5_000).encode().expect("the constant's comment promises it");
        assert!(serde_json::to_string(&fits).unwrap().len() <= FILE_DIGESTS_LIMIT_BYTES + 2);
        assert_eq!(many(6_000).encode(), None);
    }

    proptest! {
        #[test]
        fn lists_are_read_back(
            files in prop::collection::vec(
                (prop::collection::vec(prop::sample::select(b"ab/.\"\\\n\xc3\xa9\xff".to_vec()), 1..8),
                 prop::collection::vec(any::<u8>(), 0..4)), 0..8),
        ) {
            let files = files.iter().filter_map(|(path, content)| {
                let path = MemberPath::parse(path).ok()?;
                Some(file(path.as_bytes(), content))
            });
            let files = FileDigests::new(files);
            let text = files.encode().unwrap();
            let manifest = serde_json::to_string(&text).unwrap();
            prop_assert!(manifest.len() >= written_bytes(&text));
            let decoded = FileDigests::decode(&text);
            prop_assert_eq!(decoded.as_ref(), Ok(&files));
            for file in files.iter() {
                prop_assert_eq!(files.get(&file.path), Some(file));
            }
        }

        #[test]
        fn any_text_is_decoded_without_a_panic(text in "[\\[\\]{}\",:0-9a-f versionfilbas64\\\\.-]{0,80}") {
            let _ = FileDigests::decode(&text);
            let _ = FileDigests::decode(&format!(r#"{{"version":1,"files":[{text}]}}"#));
        }
    }
}
