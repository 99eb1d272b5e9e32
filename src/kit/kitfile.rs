//! The Kitfile: decoded from the config blob, encoded as `kit unpack` writes it (modelkit-spec 2).
#![allow(unused_variables, dead_code)]

/// A Kitfile.
#[derive(Clone, Debug, Default)]
pub struct Kitfile {}

/// What is wrong with a Kitfile; names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KitfileError(pub String);

impl Kitfile {
    /// Decodes a config blob.
    pub fn decode(json: &[u8]) -> Result<Self, KitfileError> {
        todo!()
    }

    /// The YAML that `kit unpack` and `kit info` write, byte for byte (modelkit-spec 2.2).
    pub fn to_yaml(&self) -> Vec<u8> {
        todo!()
    }

    /// `package.name`.
    pub fn package_name(&self) -> Option<&str> {
        todo!()
    }

    /// The first of `package.authors`.
    pub fn first_author(&self) -> Option<&str> {
        todo!()
    }
}
