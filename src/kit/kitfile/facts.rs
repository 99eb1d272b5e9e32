//! A Kitfile as a flat list of facts, so that two versions can be laid side by side.
//!
//! ```text
//! package.version            1.2
//! model.parameters.epochs    10
//! datasets[train].digest     sha256:…
//! ```
//!
//! An entry is named by its `name`, else by its `path`, so that it keeps its key when entries come and go.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::entry::{Entry, Field};
use super::value::Value;
use super::{Kitfile, KitfileError, Section};

/// The most bytes of all keys and texts together. A real Kitfile has some kilobytes. A hostile one repeats
/// a long key in the key of each value below it.
const FACTS_LIMIT_BYTES: usize = 16 * 1024 * 1024;

struct Facts {
    list: Vec<(String, Json)>,
    bytes: usize,
}

impl Kitfile {
    /// The values and their keys, in the Kitfile's order.
    ///
    /// # Errors
    /// Fails if they take more than 16 MiB.
    pub fn facts(&self) -> Result<Vec<(String, Json)>, KitfileError> {
        let mut facts = Facts { list: Vec::new(), bytes: 0 };
        let package = &self.package;
        for (key, text) in [
            ("name", &package.name),
            ("version", &package.version),
            ("description", &package.description),
            ("license", &package.license),
            ("authors", &package.authors.join(", ")),
        ] {
            facts.text(format!("package.{key}"), text)?;
        }
        if let Some(model) = &self.model {
            facts.entry("model", model)?;
        }
        facts.entries("model.parts", self.parts.iter())?;
        for section in Section::LISTS {
            let entries = self.entries.iter().filter(|entry| entry.section() == section);
            facts.entries(section.name(), entries)?;
        }
        Ok(facts.list)
    }
}

impl Facts {
    fn entries<'a>(
        &mut self,
        section: &str,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> Result<(), KitfileError> {
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (number, entry) in entries.enumerate() {
            let name = match (entry.text(Field::Name), entry.text(Field::Path)) {
                ("", "") => number.to_string(),
                ("", path) => path.to_owned(),
                (name, _) => name.to_owned(),
            };
            let times = seen.entry(name.clone()).or_default();
            *times += 1;
            let key = match *times {
                1 => format!("{section}[{name}]"),
                times => format!("{section}[{name}#{times}]"),
            };
            self.entry(&key, entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, key: &str, entry: &Entry) -> Result<(), KitfileError> {
        for &field in entry.section().fields() {
            match field {
                Field::Parts | Field::Parameters => {}
                _ => self.text(format!("{key}.{}", field.name()), entry.text(field))?,
            }
        }
        if let Some(digest) = entry.digest() {
            self.text(format!("{key}.digest"), &digest.to_string())?;
        }
        match entry.parameters() {
            Some(value) => self.value(format!("{key}.{}", Field::Parameters.name()), value),
            None => Ok(()),
        }
    }

    /// Adds a text. An empty one is as good as none.
    fn text(&mut self, key: String, text: &str) -> Result<(), KitfileError> {
        match text {
            "" => Ok(()),
            text => self.add(key, text.into()),
        }
    }

    /// Adds a value and all below it. Values are bounded in depth.
    fn value(&mut self, key: String, value: &Value) -> Result<(), KitfileError> {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                fields.iter().try_for_each(|(name, value)| self.value(below(&key, name), value))
            }
            Value::List(items) if !items.is_empty() => (0..)
                .zip(items)
                .try_for_each(|(number, item)| self.value(format!("{key}[{number}]"), item)),
            Value::Object(_) => self.add(key, Json::Object(serde_json::Map::new())),
            Value::List(_) => self.add(key, Json::Array(Vec::new())),
            Value::Null => self.add(key, Json::Null),
            Value::Bool(value) => self.add(key, (*value).into()),
            Value::Number(number) => self.add(key, json_number(*number)),
            Value::Text(text) => self.add(key, text.as_str().into()),
        }
    }

    fn add(&mut self, key: String, value: Json) -> Result<(), KitfileError> {
        self.bytes += key.len() + value.as_str().map_or(8, str::len);
        if self.bytes > FACTS_LIMIT_BYTES {
            let message = format!("its values take more than {FACTS_LIMIT_BYTES} bytes");
            return Err(KitfileError(message));
        }
        self.list.push((key, value));
        Ok(())
    }
}

/// The key of a field. A name that would look like several fields stands in brackets.
fn below(key: &str, name: &str) -> String {
    match name.is_empty() || name.contains(['.', '[', ']']) {
        true => format!("{key}[{name}]"),
        false => format!("{key}.{name}"),
    }
}

/// The number without a fraction where it has none.
fn json_number(number: f64) -> Json {
    /// Integers up to 2^53 are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number.fract() == 0.0 && number.abs() <= EXACT {
        true => (number as i64).into(),
        false => number.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kitfile_is_a_list_of_keys_and_values() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let json = format!(
            r#"{{"package":{{"name":"n","version":"2","authors":["a","b"]}},
            "model":{{"path":"m","parameters":{{"lr":0.5,"epochs":10,"a.b":null,"tags":["x",true],"e":{{}}}},
              "parts":[{{"path":"p"}}]}},
            "datasets":[{{"name":"train","path":"d","digest":"{digest}"}},{{"path":"e"}},{{"path":"e"}}]}}"#
        );
        let facts = Kitfile::decode(json.as_bytes()).unwrap().facts().unwrap();
        let facts: Vec<_> = facts.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected = [
            r#"package.name="n""#,
            r#"package.version="2""#,
            r#"package.authors="a, b""#,
            r#"model.path="m""#,
            "model.parameters[a.b]=null",
            "model.parameters.e={}",
            "model.parameters.epochs=10",
            "model.parameters.lr=0.5",
            r#"model.parameters.tags[0]="x""#,
            "model.parameters.tags[1]=true",
            r#"model.parts[p].path="p""#,
            r#"datasets[train].name="train""#,
            r#"datasets[train].path="d""#,
            &format!(r#"datasets[train].digest="{digest}""#),
            r#"datasets[e].path="e""#,
            r#"datasets[e#2].path="e""#,
        ];
        assert_eq!(facts, expected);
    }

    #[test]
    fn a_kitfile_whose_keys_repeat_is_bounded() {
        let values = "1,".repeat(100_000);
        let long = "k".repeat(10_000);
        let json = format!(r#"{{"model":{{"parameters":{{"{long}":[{values}1]}}}}}}"#);
        let error = Kitfile::decode(json.as_bytes()).unwrap().facts().unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }
}
