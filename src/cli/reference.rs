//! Parses `REF` and `REF/PATH` from the command line.
//!
//! A path begins at the first `/` after the tag or digest; `REF//PATH` always works. In
//! `oci:FOLDER/PATH` the folder is the longest leading path that is an OCI layout. The text
//! `:HOST/REPOSITORY:TAG` after it is one name if the folder's index has that name; else it is a tag
//! and a path. This module makes folders absolute, because the daemon has another working directory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::CliError;
use super::settings::absolute;
use crate::control::api::{FailureKind, RawPath};
use crate::oci::{Origin, Reference};
use crate::source::oci_layout::OciLayout;

/// How a reference to an OCI layout folder begins.
const OCI: &[u8] = b"oci:";

/// A reference to a kit, and a path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KitPath {
    /// The reference, with an absolute folder.
    pub reference: String,
    /// The path from the kit's root; empty for the root. Bytes, as names in kits are.
    pub path: RawPath,
}

/// A reference without a path, with an absolute folder.
pub(super) fn parse_reference(text: &str) -> Result<String, CliError> {
    let (reference, path) = split(text.as_bytes(), &is_layout);
    let path = String::from_utf8_lossy(path);
    let path = path.trim_matches('/');
    // Two slashes within the name of a folder (`$DIR/kit`) begin no path.
    let is_folders = match reference.strip_prefix(OCI) {
        Some(folder) => {
            named_manifest(folder).is_none() && layout_end(folder, &is_layout) != Some(folder.len())
        }
        None => is_folder(text),
    };
    if !path.is_empty() && !is_folders && !text.contains("://") {
        let reference = String::from_utf8_lossy(reference);
        return Err(CliError::usage(format!(
            "`{text}` contains a path, `{path}`: write the kit alone, `{reference}`; `kitfs warm REF \
             PATH` takes paths, and --filter takes layers"
        )));
    }
    match text.strip_prefix("oci:") {
        Some("") => Err(CliError::usage("`oci:` names no folder: write oci:FOLDER[:TAG]")),
        Some(layout) => absolute_layout(layout),
        None if is_folder(text) => Err(CliError::usage(format!(
            "`{text}` is a folder: write `oci:{text}` for the kit in an OCI layout folder"
        ))),
        None => Ok(text.to_owned()),
    }
}

fn is_layout(folder: &Path) -> bool {
    // One of both files is enough. The message about the missing one then names the layout.
    ["index.json", "oci-layout"].iter().any(|file| folder.join(file).is_file())
}

/// Whether `name` after a layout folder is the full name of a manifest (`ghcr.io/org/model:v1`) instead of a tag
/// and a path. It is a full name if the folder's index has it. It is one too if it names a host, and no tag of the
/// index has the host's name.
fn is_whole_name(folder: &Path, name: &str) -> bool {
    let index = OciLayout::open(folder).and_then(|layout| layout.index());
    let (Some((first, rest)), Ok(index)) = (name.split_once('/'), index) else { return false };
    let is_hosted = || {
        let reference = Reference::parse(name);
        rest.contains([':', '@']) && reference.is_ok_and(|reference| !reference.is_local())
    };
    index.names().iter().any(|known| known.to_string() == name)
        || is_hosted() && index.tagged(first).is_none()
}

/// Whether the user forgot `oci:` before a folder. No reference begins with `/` or `.`.
fn is_folder(text: &str) -> bool {
    let path = Path::new(text);
    text.starts_with(['/', '.']) && path.is_dir() || path.join("oci-layout").is_file()
}

/// Parses a reference and a path in its kit.
pub(super) fn parse_kit_path(text: &OsStr) -> Result<KitPath, CliError> {
    let (reference, path) = split(text.as_bytes(), &is_layout);
    let Ok(reference) = std::str::from_utf8(reference) else {
        let message = format!("`{}` is not a reference: it is not UTF-8", text.display());
        return Err(CliError::usage(message));
    };
    let path = match path.iter().position(|&byte| byte != b'/') {
        Some(start) => path[start..].to_vec(),
        None => Vec::new(),
    };
    Ok(KitPath { reference: parse_reference(reference)?, path: RawPath(path) })
}

impl KitPath {
    /// Explains where a path begins, if the reference that was not found may contain one.
    pub(super) fn explain(&self, error: CliError) -> CliError {
        let CliError::Failure(mut failure) = error else { return error };
        let is_layout = self.reference.starts_with("oci:");
        let repository = self.reference.split_once('/').map_or("", |(_, repository)| repository);
        let may_hold_path = repository.contains('/') && !repository.contains([':', '@']);
        if failure.kind == FailureKind::NotFound && !is_layout && may_hold_path {
            failure.message +=
                "; a path in a kit begins after its tag: REPOSITORY:TAG/PATH or REPOSITORY//PATH";
        }
        CliError::Failure(failure)
    }
}

/// `FOLDER[:TAG|@DIGEST|:NAME]` with an absolute folder, written so that parsing it again does not
/// depend on the files of the disk.
fn absolute_layout(layout: &str) -> Result<String, CliError> {
    let (folder, name) = match named_manifest(layout.as_bytes()) {
        Some((colon, end)) if end == layout.len() => (&layout[..colon], Some(&layout[colon..])),
        Some(_) | None => (layout, None),
    };
    let absolute = absolute(Path::new(folder))?;
    let Some(absolute) = absolute.to_str() else {
        return Err(CliError::usage(format!("{} is not UTF-8", absolute.display())));
    };
    let Some(name) = name else { return Ok(format!("oci:{absolute}")) };
    // A name without a host looks like a part of the folder's name.
    let (short, sure) = (format!("oci:{absolute}{name}"), format!("oci:{absolute}/{name}"));
    let is_clear = Origin::parse(&short).ok() == Origin::parse(&sure).ok();
    Ok(if is_clear { short } else { sure })
}

/// The range of `:NAME` in `FOLDER:NAME[/PATH]`. The folder must be a layout, and NAME the full name of a manifest.
fn named_manifest(layout: &[u8]) -> Option<(usize, usize)> {
    let mut colons = (1..layout.len()).filter(|&at| layout[at] == b':');
    colons.find_map(|colon| {
        let end = colon + 1 + registry_reference_end(&layout[colon + 1..]);
        let name = std::str::from_utf8(&layout[colon + 1..end]).ok()?;
        let folder = Path::new(OsStr::from_bytes(&layout[..colon]));
        (is_layout(folder) && is_whole_name(folder, name)).then_some((colon, end))
    })
}

/// Splits `text` into a reference and a path.
fn split<'a>(text: &'a [u8], is_layout: &dyn Fn(&Path) -> bool) -> (&'a [u8], &'a [u8]) {
    let explicit = text.windows(2).position(|pair| pair == b"//");
    if let Some(cut) = explicit {
        return text.split_at(cut);
    }
    match text.strip_prefix(OCI) {
        Some(rest) => {
            let named = named_manifest(rest).map(|(_, end)| end);
            let end = named.or_else(|| layout_end(rest, is_layout)).unwrap_or(rest.len());
            text.split_at(OCI.len() + end)
        }
        None => text.split_at(registry_reference_end(text)),
    }
}

/// The end of the reference in `FOLDER[:TAG|@DIGEST][/PATH]`: after the longest leading folder that
/// is a layout, and its tag or digest.
fn layout_end(text: &[u8], is_layout: &dyn Fn(&Path) -> bool) -> Option<usize> {
    let slashes = (0..text.len()).filter(|&at| text[at] == b'/' && at > 0);
    let mut ends: Vec<usize> = slashes.collect();
    ends.push(text.len());
    ends.into_iter().rev().find(|&end| {
        let whole = &text[..end];
        let name = whole.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let selector = whole[name..].iter().position(|byte| matches!(byte, b':' | b'@'));
        let bare = selector.map(|selector| &whole[..name + selector]);
        let last_colon = whole[name..].iter().rposition(|byte| matches!(byte, b':' | b'@'));
        let almost = last_colon.map(|selector| &whole[..name + selector]);
        [Some(whole), almost, bare]
            .into_iter()
            .flatten()
            .any(|folder| !folder.is_empty() && is_layout(Path::new(OsStr::from_bytes(folder))))
    })
}

/// The end of the reference in `[HOST/]REPOSITORY[:TAG|@DIGEST][/PATH]`. Without a tag or digest the
/// whole text is the reference.
fn registry_reference_end(text: &[u8]) -> usize {
    let find = |from: usize, byte: u8| {
        text[from..].iter().position(|&other| other == byte).map(|at| from + at)
    };
    // A colon before the first slash begins a port (modelkit-spec 5.1), except in a bare digest.
    let repository = match find(0, b'/') {
        Some(slash) if !text.starts_with(b"sha256:") => {
            let host = &text[..slash];
            let is_host = host.iter().any(|byte| matches!(byte, b'.' | b':'));
            if is_host { slash + 1 } else { 0 }
        }
        _ => 0,
    };
    let selector = text[repository..].iter().position(|byte| matches!(byte, b':' | b'@'));
    match selector {
        Some(selector) => find(repository + selector, b'/').unwrap_or(text.len()),
        None => text.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &str) -> (String, String) {
        let layouts = ["kits/a", "kits/a/b", "/srv/x:y", "kits/t.d"];
        let is_layout = |folder: &Path| layouts.iter().any(|layout| folder == Path::new(layout));
        let (reference, path) = split(text.as_bytes(), &is_layout);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(reference), text(path))
    }

    #[test]
    fn a_path_begins_after_the_tag_or_digest() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (reference, path) in [
            ("ghcr.io/org/model:v1", "/a/b:c"),
            ("127.0.0.1:5000/model:v1", "/"),
            ("127.0.0.1:5000/model", ""),
            ("localhost/org/model:v1", "/a"),
            ("org/model:v1", "/a"),
            (&format!("ghcr.io/org/model@{digest}"), "/a@b"),
            (&format!("ghcr.io/org/model:v1@{digest}"), "/a"),
            (&digest, "/a"),
            ("ghcr.io/org/model", ""),
            ("ghcr.io/org/model", "//a/b"),
            ("model", "//a:b/c"),
            ("oci:kits/a", ""),
            ("oci:kits/a", "/c/d"),
            ("oci:kits/a/b", "/c/d"),
            ("oci:kits/a:v1", "/c:d/e"),
            (&format!("oci:kits/a@{digest}"), "/c"),
            ("oci:/srv/x:y", "/z"),
            ("oci:/srv/x:y:v1", "/z"),
            ("oci:kits/a/b:v1", ""),
            ("oci:kits/a", "//b"),
            ("oci:elsewhere/a:v1/b", ""),
        ] {
            assert_eq!(cut(&format!("{reference}{path}")), (reference.into(), path.into()));
        }
    }

    #[test]
    fn a_path_where_a_whole_kit_is_wanted_is_named() {
        let error = parse_reference("ghcr.io/org/model:v1/a/b").unwrap_err();
        let CliError::Failure(failure) = error else { panic!("no words: {error:?}") };
        assert_eq!(failure.kind, FailureKind::Usage);
        assert!(failure.message.contains("`a/b`"), "{}", failure.message);
        assert!(failure.message.contains("`ghcr.io/org/model:v1`"), "{}", failure.message);
        for whole in ["ghcr.io/org/model:v1", "ghcr.io/org/model", "https://ghcr.io/org/model"] {
            assert_eq!(parse_reference(whole).unwrap(), whole);
        }
    }

    #[test]
    fn two_slashes_in_the_name_of_a_folder_begin_no_path() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("kit/sub")).unwrap();
        std::fs::write(folder.path().join("kit/index.json"), "{}").unwrap();
        let place = folder.path().display();
        for selector in ["", ":v1"] {
            let whole = parse_reference(&format!("oci:{place}//kit{selector}")).unwrap();
            assert_eq!(whole, format!("oci:{place}/kit{selector}"));
        }
        let words = |text: String| match parse_reference(&text).unwrap_err() {
            CliError::Failure(failure) => failure.message,
            other => panic!("no words: {other:?}"),
        };
        assert!(words(format!("oci:{place}/kit//sub")).contains("`sub`"));
        assert!(words(format!("{place}//kit")).contains("oci:"));
    }

    #[test]
    fn a_whole_name_of_a_layout_is_no_path() {
        let folder = tempfile::tempdir().unwrap();
        let kits = folder.path().join("kits");
        std::fs::create_dir_all(&kits).unwrap();
        std::fs::write(kits.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let names = ["ghcr.io/org/x:v1", "org/y:v1", "v2", "v1.0"];
        let manifests = names.map(|name| {
            let name = format!(r#"{{"org.opencontainers.image.ref.name":"{name}"}}"#);
            format!(r#"{{"digest":"sha256:{}","size":1,"annotations":{name}}}"#, "0".repeat(64))
        });
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
        std::fs::write(kits.join("index.json"), index).unwrap();
        let kits = kits.display();
        let whole = |text: String| {
            let kit = parse_kit_path(OsStr::new(&text)).unwrap();
            (kit.reference, String::from_utf8(kit.path.0).unwrap())
        };
        for (text, reference, path) in [
            (format!("oci:{kits}:ghcr.io/org/x:v1"), format!("oci:{kits}:ghcr.io/org/x:v1"), ""),
            (
                format!("oci:{kits}:ghcr.io/org/x:v1/a/b"),
                format!("oci:{kits}:ghcr.io/org/x:v1"),
                "a/b",
            ),
            (format!("oci:{kits}:org/y:v1/a"), format!("oci:{kits}/:org/y:v1"), "a"),
            (format!("oci:{kits}:v2/org/y:v1"), format!("oci:{kits}:v2"), "org/y:v1"),
            (format!("oci:{kits}:ghcr.io/org/z:v1"), format!("oci:{kits}:ghcr.io/org/z:v1"), ""),
            (format!("oci:{kits}:v1.0/org/z:v1"), format!("oci:{kits}:v1.0"), "org/z:v1"),
        ] {
            assert_eq!(whole(text.clone()), (reference, path.to_owned()), "{text}");
        }
        let origin = parse_reference(&format!("oci:{kits}:org/y:v1")).unwrap();
        let Ok(Origin::OciLayout { repository, .. }) = Origin::parse(&origin) else { panic!() };
        assert_eq!(repository.as_deref(), Some("org/y"));
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in "(oci:)?[a/:@.]{0,20}") {
            let (reference, path) = cut(&text);
            prop_assert_eq!(format!("{reference}{path}"), text);
        }
    }
}
