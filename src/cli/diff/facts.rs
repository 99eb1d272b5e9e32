//! `kitfs diff --kitfile`: the values of two Kitfiles side by side.

use serde::Serialize;
use serde_json::Value;

use super::super::error::CliError;
use super::super::kept::Sought;
use super::super::output::{
    print_json, print_table, print_warnings, say_while_waiting, short_digest,
};
use crate::control::api::{Fact, FailureKind, Info, InfoRequest, KitInfo, KitRequest};
use crate::daemon::Backend;

/// The longest value that a table shows whole, in characters: a digest fits.
const LONGEST_CELL: usize = 80;
/// The text in the place of a value that a version does not have.
const ABSENT: &str = "-";

/// A value of both versions, for `--json`.
#[derive(Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Row {
    key: String,
    /// Absent where the earlier version does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Value>,
    /// Absent where the later version does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Value>,
}

/// Prints the values that differ, or `all`. Returns whether none differs.
pub(super) async fn compare(
    backend: &Backend,
    before: KitRequest,
    after: KitRequest,
    all: bool,
    json: bool,
) -> Result<bool, CliError> {
    let before = look(backend, before).await?;
    let after = look(backend, after).await?;
    let mut rows = side_by_side(before.facts, after.facts);
    let is_same = rows.iter().all(|row| row.before == row.after);
    if !all {
        rows.retain(|row| row.before != row.after);
    }
    if json {
        print_json(&rows)?;
    } else if !rows.is_empty() {
        let rows = rows.into_iter().map(|row| vec![row.key, cell(row.before), cell(row.after)]);
        print_table(&["KEY", &before.reference, &after.reference], &[], rows)?;
    }
    Ok(is_same)
}

async fn look(backend: &Backend, kit: KitRequest) -> Result<KitInfo, CliError> {
    let reference = kit.reference.clone();
    let sought = Sought::of(&kit);
    let request = InfoRequest { kit, facts: true };
    let info = match say_while_waiting(&reference, backend.ask(request)).await {
        Ok(info) => info,
        Err(failure) => return Err(sought.explain(failure).await.into()),
    };
    match info {
        Info::Kit(info) => {
            print_warnings(&info.warnings);
            Ok(info)
        }
        Info::Index(_) => {
            let message =
                format!("{reference} is an index of several kits: choose one with --label");
            Err(CliError::new(FailureKind::Usage, message))
        }
    }
}

/// Every key once, in the later version's order. A key that is gone follows the key that was before it.
fn side_by_side(before: Vec<Fact>, after: Vec<Fact>) -> Vec<Row> {
    use std::collections::{HashMap, HashSet};
    let keys: HashSet<String> = after.iter().map(|fact| fact.key.clone()).collect();
    let mut old: HashMap<String, Value> = HashMap::new();
    // The keys that are gone, by the key that they follow.
    let mut gone: HashMap<Option<String>, Vec<Row>> = HashMap::new();
    let mut last = None;
    for Fact { key, value } in before {
        if keys.contains(&key) {
            last = Some(key.clone());
            old.insert(key, value);
        } else {
            let row = Row { key, before: Some(value), after: None };
            gone.entry(last.clone()).or_default().push(row);
        }
    }
    let mut rows = gone.remove(&None).unwrap_or_default();
    for Fact { key, value } in after {
        let before = old.remove(&key);
        let followers = gone.remove(&Some(key.clone())).unwrap_or_default();
        rows.push(Row { key, before, after: Some(value) });
        rows.extend(followers);
    }
    rows
}

fn cell(value: Option<Value>) -> String {
    let text = match value {
        None => return ABSENT.to_owned(),
        Some(Value::String(text)) if text.starts_with("sha256:") => short_digest(&text).to_owned(),
        Some(Value::String(text)) => text,
        Some(value) => value.to_string(),
    };
    match text.char_indices().nth(LONGEST_CELL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(keys: &[(u8, u8)]) -> Vec<Fact> {
        let mut seen = std::collections::HashSet::new();
        let facts = keys.iter().filter(|(key, _)| seen.insert(*key));
        let fact = |(key, value): &(u8, u8)| Fact { key: key.to_string(), value: (*value).into() };
        facts.map(fact).collect()
    }

    proptest! {
        #[test]
        fn every_key_of_both_stands_once_with_its_values(
            before in prop::collection::vec((0..9u8, 0..3u8), 0..9),
            after in prop::collection::vec((0..9u8, 0..3u8), 0..9),
        ) {
            let (before, after) = (facts(&before), facts(&after));
            let rows = side_by_side(before.clone(), after.clone());
            let values = |facts: &[Fact]| {
                let pairs = facts.iter().map(|fact| (fact.key.clone(), fact.value.clone()));
                pairs.collect::<std::collections::BTreeMap<_, _>>()
            };
            let (old, new) = (values(&before), values(&after));
            let mut keys = std::collections::BTreeSet::new();
            for row in &rows {
                prop_assert!(keys.insert(row.key.clone()));
                prop_assert_eq!(row.before.as_ref(), old.get(&row.key));
                prop_assert_eq!(row.after.as_ref(), new.get(&row.key));
            }
            let all: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
            prop_assert_eq!(keys, all);
            let order: Vec<_> = rows.iter().filter(|row| row.after.is_some()).map(|row| &row.key).collect();
            prop_assert_eq!(order, after.iter().map(|fact| &fact.key).collect::<Vec<_>>());
        }
    }
}
