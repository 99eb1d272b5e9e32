//! The Kitfile as YAML.
use super::Kitfile;

pub(super) fn document(_kitfile: &Kitfile) -> Vec<u8> {
    Vec::new()
}
