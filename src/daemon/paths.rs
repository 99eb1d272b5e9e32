//! Paths inside a kit, as a user types them, followed in its tree. Pure.
//!
//! Nothing here can leave the kit: `..` is refused in paths that a user types, and a symlink that leads out
//! of the kit (an absolute one, or one with too many `..`) is an error, not a look at this
//! machine's files.

use crate::control::api::{Failure, FailureKind, RawPath};
use crate::fs::LoadedKit;
use crate::kit::{NodeId, NodeKind, Tree};

/// Symlinks followed for one path, as in Linux (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// Warnings in the message about a path that is not there: a kit may have a hundred, and the message is one
/// line.
const MOST_TOLD: usize = 3;

/// Whether a symlink at the end of a path stands for itself or for its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastLink {
    /// For itself, as `ls` and `cp -r` want it.
    Keep,
    /// For its target, as `cat` wants it.
    Follow,
}

/// Checks that the loaded kit has the content of a file or directory. The content of a remote data set may
/// be missing.
///
/// # Errors
/// `Unavailable`, with the reason.
pub(super) fn check_is_there(tree: &Tree, node: NodeId) -> Result<(), Failure> {
    match tree.missing(node) {
        Some(reason) => {
            let path = String::from_utf8_lossy(&tree.path(node)).into_owned();
            Err(Failure::new(FailureKind::Unavailable, format!("`{path}` is missing: {reason}")))
        }
        None => Ok(()),
    }
}

/// The node that `path` names in a kit. The message about a missing path has the kit's warnings, too: the layer
/// with the path may be missing.
///
/// # Errors
/// As [`resolve`].
pub(super) fn find(kit: &LoadedKit, path: &RawPath, last: LastLink) -> Result<NodeId, Failure> {
    resolve(&kit.tree, path, last).map_err(|failure| match failure.kind {
        FailureKind::NotFound => with_warnings(failure, &kit.all_warnings()),
        _ => failure,
    })
}

fn with_warnings(mut failure: Failure, warnings: &[String]) -> Failure {
    for warning in warnings.iter().take(MOST_TOLD) {
        failure.message += &format!("; {warning}");
    }
    if warnings.len() > MOST_TOLD {
        failure.message += &format!("; and {} more warnings", warnings.len() - MOST_TOLD);
    }
    failure
}

/// The node that `path` names; empty components and `.` are passed over.
///
/// # Errors
/// `Usage` for a path with `..`, `NotFound` for one that is not there, `BadContent` for a symlink
/// that goes round in a circle or leaves the kit.
pub(super) fn resolve(tree: &Tree, path: &RawPath, last: LastLink) -> Result<NodeId, Failure> {
    let shown = String::from_utf8_lossy(&path.0).into_owned();
    let refuse = |kind, why: &str| Err(Failure::new(kind, format!("`{shown}` {why}")));
    // Components still to be followed, the next one last.
    let mut pending: Vec<Vec<u8>> = Vec::new();
    push_components(&mut pending, &path.0);
    if pending.iter().any(|component| component == b"..") {
        return refuse(FailureKind::Usage, "holds `..`: name the path from the kit's root");
    }
    let follows_last = last == LastLink::Follow || path.0.ends_with(b"/");
    let mut links = 0;
    let mut at = Tree::ROOT;
    while let Some(component) = pending.pop() {
        if component == b".." {
            if at == Tree::ROOT {
                return refuse(FailureKind::BadContent, "is a symlink that leaves the kit");
            }
            at = tree.parent(at);
            continue;
        }
        if !matches!(tree.kind(at), NodeKind::Directory) {
            return refuse(
                FailureKind::NotFound,
                "is not in the kit: a part of the path is a file, not a directory",
            );
        }
        let Some(node) = tree.lookup(at, &component) else {
            check_is_there(tree, at)?;
            return refuse(FailureKind::NotFound, "is not in the kit; `kitfs ls` shows what is");
        };
        match tree.kind(node) {
            NodeKind::Symlink(target) if follows_last || !pending.is_empty() => {
                links += 1;
                if links > MOST_LINKS {
                    return refuse(FailureKind::BadContent, "goes through too many symlinks");
                }
                if target.starts_with(b"/") {
                    return refuse(FailureKind::BadContent, "is a symlink that leaves the kit");
                }
                push_components(&mut pending, target);
            }
            NodeKind::Symlink(_) | NodeKind::Directory | NodeKind::File(_) => at = node,
        }
    }
    if path.0.ends_with(b"/") && !matches!(tree.kind(at), NodeKind::Directory) {
        return refuse(FailureKind::NotFound, "is a file, not a directory");
    }
    Ok(at)
}

fn push_components(pending: &mut Vec<Vec<u8>>, path: &[u8]) {
    let components = path.split(|&byte| byte == b'/');
    let components = components.filter(|component| !component.is_empty() && *component != b".");
    pending.extend(components.rev().map(<[u8]>::to_vec));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::kit::Placement;
    use crate::kit::tree::TreeLayer;
    use crate::layer::{Member, MemberKind, MemberPath, Mtime, Toc};
    use crate::oci::Digest;

    fn tree() -> Tree {
        let member = |path: &str, kind| Member {
            path: Some(MemberPath::parse(path.as_bytes()).unwrap()),
            kind,
            mode: 0o644,
            mtime: None,
            is_replaced: false,
        };
        let link = |target: &str| MemberKind::Symlink(target.as_bytes().into());
        let members = vec![
            member("a/b/file", Toc::raw(4).members[0].kind.clone()),
            member("a/up", link("../a/b")),
            member("link", link("a/up/./file")),
            member("round", link("round")),
            member("out", link("../etc/passwd")),
            member("deeper/out", link("../../etc/passwd")),
            member("absolute", link("/etc/passwd")),
        ];
        let toc = Toc { members, stream_bytes: 4, warnings: Vec::new() };
        let placement = Placement::Tar { below: None };
        let layer = TreeLayer {
            index: 0,
            digest: Digest::of(b""),
            name: "code `.`",
            placement: &placement,
            toc: &toc,
            mtime: Mtime::EARLIEST,
        };
        let kitfile = Some(Bytes::from_static(b"x"));
        Tree::merge(&[layer], kitfile, Mtime::EARLIEST, 0o022).unwrap()
    }

    fn path(text: &str, last: LastLink) -> Result<String, FailureKind> {
        let tree = tree();
        let node = resolve(&tree, &RawPath(text.into()), last).map_err(|failure| failure.kind)?;
        Ok(String::from_utf8(tree.path(node)).unwrap())
    }

    #[test]
    fn paths_lead_through_symlinks_inside_the_kit() {
        assert_eq!(path("", LastLink::Follow).unwrap(), "");
        assert_eq!(path("/", LastLink::Follow).unwrap(), "");
        assert_eq!(path("./a//b/file", LastLink::Follow).unwrap(), "a/b/file");
        assert_eq!(path("a/up/file", LastLink::Keep).unwrap(), "a/b/file");
        assert_eq!(path("link", LastLink::Keep).unwrap(), "link");
        assert_eq!(path("link", LastLink::Follow).unwrap(), "a/b/file");
        assert_eq!(path("a/up/", LastLink::Keep).unwrap(), "a/b");
    }

    #[test]
    fn no_path_leaves_the_kit() {
        assert_eq!(path("../x", LastLink::Follow), Err(FailureKind::Usage));
        assert_eq!(path("a/../Kitfile", LastLink::Follow), Err(FailureKind::Usage));
        for name in ["round", "out", "deeper/out", "absolute"] {
            assert_eq!(path(name, LastLink::Follow), Err(FailureKind::BadContent), "{name}");
            assert_eq!(path(name, LastLink::Keep).unwrap(), name);
        }
    }

    #[test]
    fn a_path_that_is_not_there_is_told_with_a_few_of_the_warnings() {
        let told = |count: usize| {
            let warnings: Vec<String> = (0..count).map(|number| format!("w{number}")).collect();
            with_warnings(Failure::new(FailureKind::NotFound, "no"), &warnings).message
        };
        assert_eq!(told(0), "no");
        assert_eq!(told(2), "no; w0; w1");
        assert_eq!(told(5), "no; w0; w1; w2; and 2 more warnings");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        for name in ["b", "a/b/file/x", "a/b/file/", "Kitfile/x", "a/b/c/d"] {
            assert_eq!(path(name, LastLink::Follow), Err(FailureKind::NotFound), "{name}");
        }
    }
}
