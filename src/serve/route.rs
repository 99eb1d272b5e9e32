//! The routes of a registry (distribution-spec, "Endpoints"). Pure.

/// A parsed path. Names, references and digests are unchecked text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/v2/`: answers that this is a registry.
    Base,
    /// `/v2/_catalog`.
    Catalog,
    /// `/v2/NAME/manifests/REFERENCE`.
    Manifest { name: &'a str, reference: &'a str },
    /// `/v2/NAME/blobs/DIGEST`.
    Blob { name: &'a str, digest: &'a str },
    /// `/v2/NAME/tags/list`.
    Tags { name: &'a str },
    /// `/v2/NAME/referrers/DIGEST`.
    Referrers { name: &'a str, digest: &'a str },
}

impl<'a> Route<'a> {
    /// Parses a path from its end, because a name may hold slashes.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?;
        if matches!(rest, "" | "/") {
            return Some(Self::Base);
        }
        let rest = rest.strip_prefix('/')?;
        if rest == "_catalog" {
            return Some(Self::Catalog);
        }
        let (rest, last) = rest.rsplit_once('/')?;
        let (name, kind) = rest.rsplit_once('/')?;
        match (kind, last) {
            ("manifests", reference) => Some(Self::Manifest { name, reference }),
            ("blobs", digest) => Some(Self::Blob { name, digest }),
            ("tags", "list") => Some(Self::Tags { name }),
            ("referrers", digest) => Some(Self::Referrers { name, digest }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_slashes_and_even_the_words_of_the_api() {
        assert_eq!(Route::parse("/v2/"), Some(Route::Base));
        assert_eq!(Route::parse("/v2/_catalog"), Some(Route::Catalog));
        assert_eq!(
            Route::parse("/v2/a/blobs/b/manifests/v1"),
            Some(Route::Manifest { name: "a/blobs/b", reference: "v1" })
        );
        assert_eq!(Route::parse("/v2/a/b/tags/list"), Some(Route::Tags { name: "a/b" }));
        for path in ["/", "/v1/", "/v2x", "/v2/a", "/v2/a/tags/other", "/v2/manifests/x"] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}
