//! `kitfs list`: the kits of a repository, the repositories of a registry, or what kit itself has.

use std::collections::HashMap;

use super::arguments::NetworkArguments;
use super::error::CliError;
use super::output::{count_of, print_json, print_table, print_warnings, say_while_waiting, warn};
use super::reference::parse_reference;
use super::settings::Settings;
use super::sizes;
use crate::control::api::{CatalogueRequest, TagInfo, TagsRequest};
use crate::daemon::Backend;

/// The text in the place of a tag where a kit has none, as in kit and Docker.
const NO_TAG: &str = "<none>";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Digests are whole, so that they can be written behind REPOSITORY@. Many registries, most public
ones among them, do not list their repositories.

Examples:
  kitfs list                                  what kit pack and kit pull keep here
  kitfs list ghcr.io/org/model                its tags
  kitfs list ghcr.io/org/model:v1             one tag
  kitfs list registry.example.com             its repositories
  kitfs list oci:./kits/article")]
pub(super) struct Arguments {
    // No doc comment: rustdoc would take the brackets for links.
    #[arg(
        value_name = "WHAT",
        help = "HOST/REPO[:TAG], HOST, localhost/REPO, or oci:FOLDER [default: kit's local storage]"
    )]
    what: Option<String>,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let network = settings.network(&arguments.network)?;
    let what = arguments.what.as_deref().filter(|what| !is_storage(what));
    if let Some(host) = what.and_then(host) {
        let request = CatalogueRequest { host: host.to_owned(), network };
        let backend = Backend::open(&settings.daemon()?).await?;
        let repositories = say_while_waiting(host, backend.ask(request)).await?;
        return match arguments.json {
            true => print_json(&repositories),
            false => print_table(&["REPOSITORY"], &[], repositories.into_iter().map(|it| vec![it])),
        };
    }
    let request = TagsRequest {
        reference: what.map(parse_reference).transpose()?,
        is_one: what.is_some_and(has_selector),
        most: None,
        layers: false,
        network,
    };
    let is_storage = request.reference.is_none();
    let backend = Backend::open(&settings.daemon()?).await?;
    let kits = say_while_waiting(what.unwrap_or_default(), backend.ask(request)).await?;
    if arguments.json {
        return print_json(&kits);
    }
    if kits.is_empty() && is_storage {
        warn("kit keeps no kits on this machine (KITOPS_HOME and --config say where it looks)");
    }
    let problems: Vec<_> = kits.iter().filter_map(problem).collect();
    print_warnings(&problems);
    print_kits(kits.into_iter().filter(|kit| kit.problem.is_none()).collect())
}

/// Whether kit's local storage is meant as a whole.
pub(super) fn is_storage(what: &str) -> bool {
    matches!(what, "localhost" | "localhost/")
}

/// The registry, where `what` names one and no repository: a name with a point or port, or one that
/// ends in a slash.
pub(super) fn host(what: &str) -> Option<&str> {
    if let Some(host) = what.strip_suffix('/') {
        return (!host.is_empty() && !host.contains(['/', '@']) && !what.starts_with("oci:"))
            .then_some(host);
    }
    let (name, port) = match what.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        Some(_) => return what.starts_with('[').then_some(what).filter(|what| what.ends_with(']')),
        None => (what, None),
    };
    let is_host =
        name.contains('.') || name.starts_with('[') || (name == "localhost" && port.is_some());
    (is_host && !what.contains(['/', '@']) && !name.starts_with('.')).then_some(what)
}

/// Whether a reference has a tag or digest.
pub(super) fn has_selector(what: &str) -> bool {
    if let Some(layout) = what.strip_prefix("oci:") {
        return crate::oci::Origin::parse(&format!("oci:{layout}"))
            .is_ok_and(|origin| origin.selector().is_some());
    }
    let name = what.rsplit_once('/').map_or(what, |(_, name)| name);
    name.contains([':', '@'])
}

fn problem(kit: &TagInfo) -> Option<String> {
    let problem = kit.problem.as_ref()?;
    let tag = kit.tag.as_deref().unwrap_or(NO_TAG);
    Some(match &kit.repository {
        Some(repository) => format!("{repository}:{tag}: {problem}"),
        None => format!("{tag}: {problem}"),
    })
}

fn print_kits(kits: Vec<TagInfo>) -> Result<(), CliError> {
    let has_repositories = kits.iter().any(|kit| kit.repository.is_some());
    let same = same_as(&kits);
    let has_same = same.iter().any(|tags| !tags.is_empty());
    let mut headings = vec!["TAG", "SIZE", "NAME", "AUTHOR", "DIGEST"];
    if has_same {
        headings.insert(4, "SAME AS");
    }
    if has_repositories {
        headings.insert(0, "REPOSITORY");
    }
    let size = usize::from(has_repositories) + 1;
    let rows = kits.into_iter().zip(same).map(|(kit, same)| {
        let (size, name) = match kit.index_entries {
            Some(entries) => {
                let what = count_of(entries, "kit", "kits");
                (String::new(), format!("(an index of {what}: see `kitfs info`)"))
            }
            None => (sizes::show(kit.blob_bytes), kit.name.unwrap_or_default()),
        };
        let tag = kit.tag.unwrap_or_else(|| NO_TAG.to_owned());
        let mut row = vec![tag, size, name, kit.author.unwrap_or_default(), kit.digest];
        if has_same {
            row.insert(4, same);
        }
        if has_repositories {
            row.insert(0, kit.repository.unwrap_or_else(|| "-".to_owned()));
        }
        row
    });
    print_table(&headings, &[size], rows)
}

/// For each kit, the other tags of its repository that point to the same digest, as a table shows them.
fn same_as(kits: &[TagInfo]) -> Vec<String> {
    /// The number of tags that are named.
    const MOST_NAMED: usize = 3;
    let mut tags: HashMap<(&Option<String>, &str), Vec<&str>> = HashMap::new();
    for kit in kits {
        if let Some(tag) = &kit.tag {
            tags.entry((&kit.repository, &kit.digest)).or_default().push(tag);
        }
    }
    let others = kits.iter().map(|kit| {
        let all = tags.get(&(&kit.repository, &*kit.digest)).into_iter().flatten();
        let others: Vec<&str> =
            all.copied().filter(|tag| Some(*tag) != kit.tag.as_deref()).collect();
        let mut text = others.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(", ");
        if others.len() > MOST_NAMED {
            text += &format!(" and {} more", others.len() - MOST_NAMED);
        }
        text
    });
    others.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_and_repositories_are_told_apart() {
        for what in ["ghcr.io", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "[::1]"] {
            assert_eq!(host(what), Some(what));
            assert_eq!(host(&format!("{what}/")), Some(what));
        }
        assert_eq!(host("registry/"), Some("registry"));
        for what in [
            "model",
            "model:v1",
            "model:1",
            "org/model",
            "ghcr.io/model",
            "localhost",
            "./kit",
            "/",
            "oci:kit",
            "oci:kit/",
            "sha256:00",
            "a.b@sha256:00",
        ] {
            assert_eq!(host(what), None, "{what}");
        }
    }

    #[test]
    fn a_tag_is_told_from_a_port_and_a_folder() {
        for what in ["a:v1", "ghcr.io/a:v1", "host:5000/a/b@sha256:00", "oci:kit:v1", "oci:/a/b:v"]
        {
            assert!(has_selector(what), "{what}");
        }
        for what in ["a", "host:5000/a", "ghcr.io/a/b", "oci:kit", "oci:/a:b/c"] {
            assert!(!has_selector(what), "{what}");
        }
    }
}
