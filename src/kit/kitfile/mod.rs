//! The Kitfile: decoded from the config blob, encoded as `kit unpack` writes it (modelkit-spec 2).
//!
//! ```text
//! config blob --value (JSON, bounded)--> Kitfile --yaml (go-yaml's habits)--> the file `Kitfile`
//! ```
//!
//! Decoding follows Go's `encoding/json`, which wrote the blob: unknown fields are passed over, a
//! `null` is as good as nothing, numbers are 64-bit floats. One table (`Section::fields`) has the
//! fields of each entry, in the order of the YAML. The families (`modelkit`, `modelpack`) check
//! paths and match layers.

pub mod authored;
mod entry;
mod facts;
mod generated;
mod json;
mod value;
mod yaml;

use value::{Object, Value};

pub(in crate::kit) use entry::{Entry, Field, Section};

/// The largest config that is decoded, in bytes. Registries bound manifests so too. A Kitfile of
/// 1,000 entries has about 0.3 MB.
pub const KITFILE_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// The largest file `Kitfile`, in bytes. The file is kept in memory, and each line is indented by
/// its depth: a hostile config could become sixty times larger. Real ones hardly grow.
const YAML_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// A Kitfile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kitfile {
    manifest_version: String,
    package: Package,
    model: Option<Entry>,
    /// `model.parts`.
    parts: Vec<Entry>,
    /// Code, data sets, docs, prompts and MCP servers: in this order, as the Kitfile has it.
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Package {
    name: String,
    version: String,
    description: String,
    license: String,
    authors: Vec<String>,
}

/// The versions of go-yaml. They differ in texts that begin with a line break.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GoYaml {
    /// `gopkg.in/yaml.v3`, as in kit up to 1.10: a text loses a line break at its start.
    Older,
    /// `go.yaml.in/yaml/v3`, as in kit from 1.11 on.
    #[default]
    Newer,
}

impl GoYaml {
    /// The version in the kit release that packed a kit (the manifest's
    /// `ml.kitops.modelkit.cli-version`). So the bytes of a kit's Kitfile never change.
    pub fn of_kit(cli_version: Option<&str>) -> Self {
        let mut numbers = cli_version.unwrap_or_default().trim_start_matches('v').split('.');
        let mut number = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
        match (number(), number()) {
            (Some(0), _) | (Some(1), Some(0..=10)) => Self::Older,
            _ => Self::Newer,
        }
    }
}

/// The fault of a Kitfile, with the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KitfileError(pub String);

impl Kitfile {
    /// Decodes a config blob.
    ///
    /// # Errors
    /// Fails if the config is too large (as YAML too) or too deep, is not JSON, or a field has a value
    /// of another type.
    pub fn decode(json: &[u8]) -> Result<Self, KitfileError> {
        if json.len() > KITFILE_LIMIT_BYTES {
            let bytes = json.len();
            return Err(KitfileError(format!(
                "it has {bytes} bytes, and {KITFILE_LIMIT_BYTES} are the limit"
            )));
        }
        let root = Value::decode(json)?;
        let root = Object::new(&root, "the Kitfile")?;
        let package = root.object("package")?;
        let model = root.present_object("model")?;
        let mut entries = Vec::new();
        for section in Section::LISTS {
            entries.extend(section.decode_list(&root)?);
        }
        let kitfile = Self {
            manifest_version: root.text("manifestVersion")?,
            package: Package {
                name: package.text("name")?,
                version: package.text("version")?,
                description: package.text("description")?,
                license: package.text("license")?,
                authors: package.texts("authors")?,
            },
            parts: match &model {
                Some(model) => Section::Parts.decode_list(model)?,
                None => Vec::new(),
            },
            model: model.map(|model| Entry::decode(Section::Model, &model)).transpose()?,
            entries,
        };
        match yaml::document(&kitfile, GoYaml::Newer, YAML_LIMIT_BYTES) {
            Some(_) => Ok(kitfile),
            None => Err(KitfileError(format!(
                "it would have more than {YAML_LIMIT_BYTES} bytes as YAML, for its nesting"
            ))),
        }
    }

    /// The YAML that `kit unpack` and `kit info` write, byte for byte (modelkit-spec 2.2, 9.3).
    pub fn to_yaml(&self, go_yaml: GoYaml) -> Vec<u8> {
        yaml::document(self, go_yaml, usize::MAX).expect("there is no limit")
    }

    /// `package.name`.
    pub fn package_name(&self) -> Option<&str> {
        Some(self.package.name.as_str()).filter(|name| !name.is_empty())
    }

    /// `package.version`.
    pub fn package_version(&self) -> Option<&str> {
        Some(self.package.version.as_str()).filter(|version| !version.is_empty())
    }

    /// `package.authors`.
    pub fn authors(&self) -> &[String] {
        &self.package.authors
    }

    /// The first of `package.authors`.
    pub fn first_author(&self) -> Option<&str> {
        self.package.authors.first().map(String::as_str)
    }

    /// The `model` section.
    pub(in crate::kit) fn model(&self) -> Option<&Entry> {
        self.model.as_ref()
    }

    /// Every entry, in the order in which kit packs their layers.
    pub(in crate::kit) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.model.iter().chain(&self.parts).chain(&self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_as_good_as_nothing_and_unknown_fields_are_passed_over() {
        let json = br#"{"manifestVersion":null,"package":null,"model":null,"code":null,
            "docs":[null,{"path":null,"name":7}],"future":{"a":[1]}}"#;
        let kitfile = Kitfile::decode(json).unwrap();
        assert_eq!(kitfile.package_name(), None);
        assert!(kitfile.model().is_none());
        assert_eq!(kitfile.entries().count(), 2);
        assert_eq!(Kitfile::decode(b"null").unwrap(), Kitfile::default());
    }

    #[test]
    fn a_wrong_type_is_an_error_that_names_the_field() {
        for (json, expected) in [
            ("[]", "the Kitfile is a list, and an object is expected"),
            (r#"{"package":3}"#, "`package` is a number, and an object is expected"),
            (
                r#"{"package":{"authors":["a",1]}}"#,
                "`package.authors[1]` is a number, and a text is expected",
            ),
            (
                r#"{"datasets":[{},{"path":{}}]}"#,
                "`datasets[1].path` is an object, and a text is expected",
            ),
            (
                r#"{"model":{"parts":[{"type":true}]}}"#,
                "`model.parts[0].type` is a boolean, and a text is expected",
            ),
            (r#"{"code":"x"}"#, "`code` is a text, and a list is expected"),
        ] {
            assert_eq!(Kitfile::decode(json.as_bytes()).unwrap_err().to_string(), expected);
        }
        let error = Kitfile::decode(br#"{"model":{"digest":"sha256:1"}}"#).unwrap_err().to_string();
        assert!(error.starts_with("`model.digest`: `sha256:1` is not a digest"), "{error}");
    }

    #[test]
    fn hostile_sizes_and_depths_are_refused() {
        let deep =
            format!("{{\"model\":{{\"parameters\":{}1{}}}}}", "[".repeat(200), "]".repeat(200));
        assert!(Kitfile::decode(deep.as_bytes()).unwrap_err().to_string().contains("deep"));
        let endless = "[".repeat(KITFILE_LIMIT_BYTES);
        assert!(Kitfile::decode(endless.as_bytes()).is_err());
        assert!(
            Kitfile::decode(&vec![b' '; KITFILE_LIMIT_BYTES + 1])
                .unwrap_err()
                .to_string()
                .contains("limit")
        );
        let wide = format!("{}{}1{}", "[".repeat(60), "1,".repeat(200_000), "]".repeat(60));
        let wide = format!("{{\"model\":{{\"parameters\":{wide}}}}}");
        assert!(Kitfile::decode(wide.as_bytes()).unwrap_err().to_string().contains("as YAML"));
        let huge = br#"{"model":{"parameters":1e999}}"#;
        assert!(Kitfile::decode(huge).unwrap_err().to_string().contains("1e999"));
    }

    #[test]
    fn a_list_of_kits_has_its_columns() {
        let json = br#"{"package":{"name":"n","version":"1","authors":["a","b"]}}"#;
        let kitfile = Kitfile::decode(json).unwrap();
        assert_eq!(kitfile.package_name(), Some("n"));
        assert_eq!(kitfile.package_version(), Some("1"));
        assert_eq!(kitfile.first_author(), Some("a"));
        assert_eq!(kitfile.authors().len(), 2);
    }
}
