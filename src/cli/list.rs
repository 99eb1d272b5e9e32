//! `kitfs list HOST/REPO`.

use super::arguments::NetworkArguments;
use super::error::CliError;
use super::output::{count_of, print_json, print_table, say_while_waiting};
use super::reference::parse_reference;
use super::settings::Settings;
use super::sizes;
use crate::daemon::Backend;
use crate::daemon::api::TagsRequest;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kitfs list ghcr.io/org/model
  kitfs list oci:./kits/article")]
pub(super) struct Arguments {
    /// The repository; kitfs ignores a tag.
    #[arg(value_name = "HOST/REPO")]
    repository: String,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let request = TagsRequest {
        reference: parse_reference(&arguments.repository)?,
        network: settings.network(&arguments.network)?,
    };
    let backend = Backend::open(&settings.daemon()?).await?;
    let tags = say_while_waiting(&arguments.repository, backend.tags(request)).await?;
    if arguments.json {
        return print_json(&tags);
    }
    let problems: Vec<_> = tags
        .iter()
        .filter_map(|tag| Some(format!("{}: {}", tag.tag, tag.problem.as_ref()?)))
        .collect();
    super::output::print_warnings(&problems);
    print_table(
        &["TAG", "SIZE", "NAME", "AUTHOR", "DIGEST"],
        &[1],
        tags.into_iter().filter(|tag| tag.problem.is_none()).map(|tag| {
            let (size, name) = match tag.index_entries {
                Some(entries) => {
                    let what = count_of(entries, "kit", "kits");
                    (String::new(), format!("(an index of {what}: see `kitfs info`)"))
                }
                None => (sizes::show(tag.blob_bytes), tag.name.unwrap_or_default()),
            };
            vec![tag.tag, size, name, tag.author.unwrap_or_default(), tag.digest]
        }),
    )
}
