//! Filters that take nothing. Most are typing errors, which a user would notice late in an empty mount.

use std::collections::BTreeSet;

use super::gather::{Gathered, Part};
use crate::kit::{Filters, Kit, Role};

/// The filters of a command that take no layer of the gathered kits, by their numbers from 0.
pub(super) fn unmatched(filters: &Filters, count: usize, gathered: &Gathered) -> BTreeSet<usize> {
    let mut unmatched: BTreeSet<usize> = (0..count).collect();
    filters.taking_kitfile().for_each(|index| _ = unmatched.remove(&index));
    for part in &gathered.parts {
        let (Part::Kit(taken) | Part::RemoteKit(taken, _)) = part else { continue };
        let kit = &taken.resolved.description.kit;
        // A filter may take a missing data set too, because the tree shows its place.
        let remote = kit.remote.iter().flat_map(|remote| {
            let path = Some(remote.entry_path.as_str());
            taken.filters.taking(Role::Dataset, remote.entry_name.as_deref(), path)
        });
        let layers = kit.layers.iter().flat_map(|layer| {
            let (name, path) = (layer.entry_name.as_deref(), layer.entry_path.as_deref());
            taken.filters.taking(layer.role, name, path)
        });
        layers.chain(remote).for_each(|index| _ = unmatched.remove(&index));
    }
    unmatched
}

/// The entries of a kit that filters could take, for a message.
pub(super) fn offered(kit: &Kit, most: usize) -> String {
    let layers = kit.layers.iter().map(|layer| (layer.role, &layer.entry_name, &layer.entry_path));
    let remote = kit.remote.iter();
    let remote = remote.map(|it| (Role::Dataset, it.entry_name.clone(), it.entry_path.clone()));
    let mut offered: Vec<String> = layers
        .map(|(role, name, path)| shown(role, name.as_ref().or(path.as_ref())))
        .chain(remote.map(|(role, name, path)| shown(role, name.as_ref().or(Some(&path)))))
        .collect();
    if offered.len() > most {
        let more = offered.len() - most;
        offered.truncate(most);
        offered.push(format!("{more} more"));
    }
    match offered.is_empty() {
        true => "nothing but its Kitfile".to_owned(),
        false => offered.join(", "),
    }
}

fn shown(role: Role, name: Option<&String>) -> String {
    match name {
        Some(name) => format!("{} `{name}`", role.as_str()),
        None => role.as_str().to_owned(),
    }
}
