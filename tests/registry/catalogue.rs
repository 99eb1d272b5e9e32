//! Lists of repositories, where a registry has one.

use crate::setup::client_with;
use crate::support::registry_double::{Access, At, Fault, Options, RegistryDouble, Rule, Tokens};

#[tokio::test]
async fn repositories_are_collected_over_all_pages_and_sorted() {
    for access in [Access::Open, Access::Bearer(Tokens::default())] {
        let options = Options { tags_per_page: Some(2), access, ..Options::default() };
        let registry = RegistryDouble::start(options).await;
        for name in ["org/c", "a", "org/b", "z/y/x", "b"] {
            registry.push_blob(name, b"content".to_vec());
        }
        let listed = client_with(|_| {}).catalogue(&registry.host()).await.unwrap();
        assert_eq!(listed, ["a", "b", "org/b", "org/c", "z/y/x"]);
        assert_eq!(registry.requests_to(At::Registry, "_catalog?last=").len(), 2);
    }
}

#[tokio::test]
async fn a_registry_that_lists_no_repositories_is_told_from_one_that_fails() {
    for (status, advice) in [(401, true), (403, true), (404, true), (500, false)] {
        let registry = RegistryDouble::start(Options::default()).await;
        registry.script(Rule::on("_catalog").then(Fault::Status(status)));
        let error = client_with(|_| {}).catalogue(&registry.host()).await.unwrap_err();
        let said = error.to_string();
        assert_eq!(said.contains("name a repository, HOST/REPOSITORY"), advice, "{said}");
    }
}
