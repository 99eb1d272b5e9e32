//! Checks the paths and types of a Kitfile before anything is packed (modelkit-spec 2, "Validation").

use std::collections::BTreeMap;

use super::super::{Field, KitfileError, Section};
use super::AuthoredKitfile;
use super::nodes::at;
use crate::kit::ignore::clean_path;
use crate::kit::shown;
use crate::oci::Reference;

/// The longest type of a model part, as in kit.
const TYPE_LIMIT_BYTES: usize = 64;

/// Checks every entry.
pub(super) fn check(kitfile: &AuthoredKitfile) -> Result<(), KitfileError> {
    let mut known: BTreeMap<Vec<u8>, (String, usize)> = BTreeMap::new();
    let mut names = BTreeMap::new();
    for authored in kitfile.entries() {
        let (entry, line) = (&authored.entry, authored.line);
        let section = entry.section();
        let path = entry.text(Field::Path);
        let title = shown(&entry.title());
        let failed = |reason: String| at(line, format!("{title}: {reason}"));
        check_path(section, path).map_err(failed)?;
        if let Some((other, first)) =
            known.insert(clean_path(path.as_bytes()), (title.clone(), line))
            && !(section == Section::Prompts && path.is_empty())
        {
            return Err(failed(format!("{other} on line {first} has the same path")));
        }
        match section {
            Section::Parts => check_type(entry.text(Field::Type)).map_err(failed)?,
            Section::McpServers => {
                let name = entry.text(Field::Name);
                if name.is_empty() {
                    return Err(failed("an MCP server needs a name".to_owned()));
                }
                if let Some(first) = names.insert(name.to_owned(), line) {
                    return Err(failed(format!("line {first} has a server of the same name")));
                }
                if !path.ends_with(".mcpb") {
                    return Err(failed("the path of an MCP server ends in `.mcpb`".to_owned()));
                }
            }
            Section::Datasets => {
                let (remote, hash) = (entry.text(Field::RemotePath), entry.text(Field::RemoteHash));
                if remote.is_empty() && !hash.is_empty() {
                    return Err(failed("remoteHash needs a remotePath".to_owned()));
                }
                if remote.starts_with("s3://") && hash.is_empty() {
                    return Err(failed("an object of an S3 store needs its remoteHash".to_owned()));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_path(section: Section, path: &str) -> Result<(), String> {
    if is_reference(path) {
        return match section {
            Section::Model => Ok(()),
            _ => Err(format!(
                "`{}` is a reference to a kit, and only `model.path` may be one",
                shown(path)
            )),
        };
    }
    if path.contains("://") {
        return Err("its path is a URL, and only files of the folder can be packed".to_owned());
    }
    if path.starts_with('/') {
        return Err("its path is absolute; write it relative to the folder".to_owned());
    }
    if path.contains('\0') {
        return Err("its path holds a NUL byte".to_owned());
    }
    let cleaned = clean_path(path.as_bytes());
    if cleaned == b".." || cleaned.starts_with(b"../") {
        return Err(
            "its path leaves the folder, and only files of the folder can be packed".to_owned()
        );
    }
    Ok(())
}

/// Whether a path is a reference to a kit (modelkit-spec 2.1).
pub(in crate::kit) fn is_reference(path: &str) -> bool {
    path.contains([':', '@']) && !path.contains("://") && Reference::parse(path).is_ok()
}

fn check_type(text: &str) -> Result<(), String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_type = text.starts_with(is_word)
        && text.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
        && text.len() <= TYPE_LIMIT_BYTES;
    match text.is_empty() || is_type {
        true => Ok(()),
        false => Err(format!(
            "its type `{}` must be letters, digits, `_`, `.` and `-`, at most {TYPE_LIMIT_BYTES}",
            shown(text)
        )),
    }
}
