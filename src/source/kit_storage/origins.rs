//! Blobs of a kit that lie elsewhere: the file `BASE64URL(REGISTRY/REPOSITORY)-origins.json` beside kit's own
//! side files (docs/format/kit-storage.md).
//!
//! `kitfs pack` writes the file when it takes a layer of another kit by digest. A reader of the kit fetches the
//! layer from its origin, and its digest shows whether the bytes are right.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Origin};

/// The version that is written and read.
const VERSION: u32 = 1;
/// The most places of one blob. 8: a read may try all of them before it fails.
pub(super) const PLACES_LIMIT: usize = 8;

/// The places of blobs: references of kits that have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<Digest, Vec<Origin>>);

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    origins: BTreeMap<Digest, Vec<String>>,
}

impl Origins {
    /// Notes that a blob is in the kit at `origin`. A blob has the eight latest places.
    pub fn add(&mut self, digest: Digest, origin: Origin) {
        let places = self.0.entry(digest).or_default();
        places.retain(|place| *place != origin);
        places.insert(0, origin);
        places.truncate(PLACES_LIMIT);
    }

    /// Adds all of `other`, whose places go first.
    pub fn extend(&mut self, other: &Self) {
        for (digest, places) in &other.0 {
            places.iter().rev().for_each(|place| self.add(*digest, place.clone()));
        }
    }

    /// The places of some blobs.
    pub fn only(&self, is_wanted: impl Fn(Digest) -> bool) -> Self {
        let wanted = self.0.iter().filter(|(digest, _)| is_wanted(**digest));
        Self(wanted.map(|(digest, places)| (*digest, places.clone())).collect())
    }

    /// The places of a blob; the latest first.
    pub fn of(&self, digest: Digest) -> &[Origin] {
        self.0.get(&digest).map_or(&[], Vec::as_slice)
    }

    /// Whether no blob has an origin.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let texts = |places: &Vec<Origin>| places.iter().map(ToString::to_string).collect();
        let origins = self.0.iter().map(|(digest, places)| (*digest, texts(places))).collect();
        serde_json::to_vec(&Wire { version: VERSION, origins }).expect("texts are JSON")
    }

    /// Decodes the file.
    ///
    /// # Errors
    /// The fault of the file, in words.
    pub fn decode(json: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if wire.version != VERSION {
            return Err(format!("its version is {}, and this kitfs reads {VERSION}", wire.version));
        }
        let mut origins = Self::default();
        for (digest, texts) in wire.origins {
            for text in texts.iter().take(PLACES_LIMIT).rev() {
                let origin = Origin::parse(text).map_err(|error| error.to_string())?;
                origins.add(digest, origin);
            }
        }
        Ok(origins)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::parse(text).unwrap()
    }

    #[test]
    fn the_text_is_as_the_format_page_shows_it() {
        let mut origins = Origins::default();
        origins.add(Digest::of(b""), origin("ghcr.io/org/a:v1"));
        origins.add(Digest::of(b""), origin("oci:/srv/kits:v1"));
        let expected = format!(
            r#"{{"version":1,"origins":{{"{}":["oci:/srv/kits:v1","ghcr.io/org/a:v1"]}}}}"#,
            Digest::of(b"")
        );
        assert_eq!(String::from_utf8(origins.encode()).unwrap(), expected);
        assert_eq!(Origins::decode(expected.as_bytes()), Ok(origins));
    }

    #[test]
    fn hostile_texts_are_refused() {
        for json in [
            "",
            "[]",
            r#"{"version":2,"origins":{}}"#,
            r#"{"version":1,"origins":{"sha256:../../etc/passwd":[]}}"#,
            r#"{"version":1,"origins":{"sha256:00":["a/b"]}}"#,
        ] {
            assert!(Origins::decode(json.as_bytes()).is_err(), "{json}");
        }
        let bad = format!(r#"{{"version":1,"origins":{{"{}":["http://a/b"]}}}}"#, Digest::of(b""));
        assert!(Origins::decode(bad.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn origins_are_read_back_and_the_latest_is_first(
            added in prop::collection::vec((any::<u8>(), "[ab]\\.io/[xy]{1,2}:v[12]"), 0..40),
        ) {
            let mut origins = Origins::default();
            for (content, text) in &added {
                origins.add(Digest::of(&[*content % 3]), origin(text));
                let places = origins.of(Digest::of(&[*content % 3]));
                prop_assert_eq!(places[0].to_string(), text.clone());
                prop_assert!(places.len() <= PLACES_LIMIT);
            }
            prop_assert_eq!(Origins::decode(&origins.encode()).unwrap(), origins.clone());
            let mut other = Origins::default();
            other.extend(&origins);
            prop_assert_eq!(other, origins);
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Origins::decode(&bytes);
        }
    }
}
