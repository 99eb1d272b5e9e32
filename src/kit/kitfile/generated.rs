//! The Kitfile of a ModelPack that carries none, as kit makes one for `kit info` and `kit list`
//! (modelkit-spec 4.3).
//!
//! Its entries are the layers that name their path. kit stops there. kitfs adds the name, version,
//! description, license and authors of the ModelPack's own config, because users read a list of
//! kits for these. The tree never has this Kitfile.

use super::entry::{Entry, Section};
use super::value::{Object, Value};
use super::{KITFILE_LIMIT_BYTES, Kitfile, KitfileError, Package};

/// The `manifestVersion` that kit writes.
const MANIFEST_VERSION: &str = "1.0.0";

impl Kitfile {
    /// A Kitfile with these entries (section and path), in the order of the layers. A Kitfile has
    /// one model, so further models become its parts.
    ///
    /// If the config is malformed, only the package is missing: no file's place depends on the config.
    pub(in crate::kit) fn of_modelpack<'a>(
        config: &[u8],
        layers: impl Iterator<Item = (Section, &'a str)>,
    ) -> Self {
        let mut kitfile = Self {
            manifest_version: MANIFEST_VERSION.to_owned(),
            package: package(config).unwrap_or_default(),
            ..Self::default()
        };
        for (section, path) in layers {
            match section {
                Section::Model if kitfile.model.is_none() => {
                    kitfile.model = Some(Entry::of_path(Section::Model, path));
                }
                Section::Model | Section::Parts => {
                    kitfile.parts.push(Entry::of_path(Section::Parts, path));
                }
                section => kitfile.entries.push(Entry::of_path(section, path)),
            }
        }
        if !kitfile.parts.is_empty() {
            kitfile.model.get_or_insert_with(|| Entry::of_path(Section::Model, ""));
        }
        let position = |entry: &Entry| Section::LISTS.iter().position(|it| *it == entry.section());
        kitfile.entries.sort_by_key(position);
        kitfile
    }
}

/// The package, from the `descriptor` of a ModelPack's config (modelkit-spec 6).
fn package(config: &[u8]) -> Result<Package, KitfileError> {
    if config.len() > KITFILE_LIMIT_BYTES {
        return Ok(Package::default());
    }
    let root = Value::decode(config)?;
    let descriptor = Object::new(&root, "the config")?.object("descriptor")?;
    Ok(Package {
        name: descriptor.text("name")?,
        version: descriptor.text("version")?,
        description: descriptor.text("description")?,
        license: descriptor.texts("licenses")?.join(", "),
        authors: descriptor.texts("authors")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::GoYaml;
    use super::*;

    #[test]
    fn entries_are_grouped_by_section_and_further_models_are_parts() {
        let layers = [
            (Section::Docs, "README.md"),
            (Section::Parts, "config.json"),
            (Section::Model, "1.safetensors"),
            (Section::Model, "2.safetensors"),
            (Section::Code, "run.py"),
        ];
        let config = br#"{"descriptor":{"name":"n","version":"1.0","licenses":["MIT","Apache-2.0"],
            "authors":["a"],"family":"f"},"modelfs":{}}"#;
        let yaml = Kitfile::of_modelpack(config, layers.into_iter()).to_yaml(GoYaml::default());
        let expected = r#"manifestVersion: 1.0.0
package:
  name: "n"
  version: "1.0"
  license: MIT, Apache-2.0
  authors: [a]
model:
  path: 1.safetensors
  parts:
    - path: config.json
    - path: 2.safetensors
code:
  - path: run.py
docs:
  - path: README.md
"#;
        assert_eq!(String::from_utf8(yaml).unwrap(), expected);
    }

    #[test]
    fn a_config_that_is_not_understood_costs_the_package_only() {
        for config in [&b"not JSON"[..], b"{}", b"[]", br#"{"descriptor":{"name":7}}"#] {
            let layers = [(Section::Parts, "config.json")];
            let yaml = Kitfile::of_modelpack(config, layers.into_iter()).to_yaml(GoYaml::default());
            let expected = "manifestVersion: 1.0.0\nmodel:\n  parts:\n    - path: config.json\n";
            assert_eq!(String::from_utf8(yaml).unwrap(), expected);
        }
    }
}
