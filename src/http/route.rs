//! The paths of the interface. Pure.

/// A path that is known. The texts are those of the URL, still percent-encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/healthz`: the process answers.
    Health,
    /// `/readyz`: the daemon can do its work.
    Ready,
    /// `/metrics`.
    Metrics,
    /// `/`: the page.
    Page,
    /// `/style.css`: how the page looks.
    Style,
    /// `/v1/version`.
    Version,
    /// `/v1/status`.
    Status,
    /// `/v1/mounts`.
    Mounts,
    /// `/v1/activity`.
    Activity,
    /// `/v1/files/REF/PATH`.
    Files(&'a str),
    /// `/v1/entries/REF/PATH`.
    Entries(&'a str),
    /// `/v1/residency/REF/PATH`.
    Residency(&'a str),
    /// `/v1/info/REF`.
    Info(&'a str),
    /// `/v1/diff`.
    Diff,
}

impl<'a> Route<'a> {
    /// Parses the path of a URL.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let route = match path {
            "/healthz" => Self::Health,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/" => Self::Page,
            "/style.css" => Self::Style,
            "/v1/activity" => Self::Activity,
            "/v1/version" => Self::Version,
            "/v1/status" => Self::Status,
            "/v1/mounts" => Self::Mounts,
            "/v1/diff" => Self::Diff,
            _ => {
                let (word, rest) = path.strip_prefix("/v1/")?.split_once('/')?;
                match (word, rest) {
                    (_, "") => return None,
                    ("files", rest) => Self::Files(rest),
                    ("entries", rest) => Self::Entries(rest),
                    ("residency", rest) => Self::Residency(rest),
                    ("info", rest) => Self::Info(rest),
                    _ => return None,
                }
            }
        };
        Some(route)
    }

    /// Whether every process of this machine may send the request, and with `--listen-public` other machines too.
    /// The answer has no content of a kit.
    pub(super) fn is_open(self) -> bool {
        match self {
            Self::Health | Self::Ready | Self::Metrics => true,
            Self::Page
            | Self::Style
            | Self::Activity
            | Self::Version
            | Self::Status
            | Self::Mounts
            | Self::Files(_)
            | Self::Entries(_)
            | Self::Residency(_)
            | Self::Info(_)
            | Self::Diff => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_its_route_and_others_have_none() {
        assert_eq!(Route::parse("/healthz"), Some(Route::Health));
        assert_eq!(Route::parse("/v1/files/a/b:c/d"), Some(Route::Files("a/b:c/d")));
        assert_eq!(Route::parse("/v1/entries/x"), Some(Route::Entries("x")));
        assert_eq!(Route::parse("/v1/info/a/b:c"), Some(Route::Info("a/b:c")));
        for path in
            ["", "/v1", "/v1/", "/v1/files", "/v1/files/", "/v2/files/a", "//healthz", "/healthz/"]
        {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}
