//! The scope of a token: resources, and the actions that are allowed on them (distribution's "Token
//! Scope Documentation"). Pure.
//!
//! ```text
//! scope = TYPE ":" NAME ":" ACTION *( "," ACTION )      repository:org/model:pull,metadata_read
//! ```
//!
//! A registry names the scope that a request needs. For a reader, kitfs requests a token with this scope, without
//! the actions that change something. For a push, kitfs requests the right to push from the start, and never the
//! right to delete. A new token has the scopes of earlier requests too. So one token serves all requests to a
//! repository, even if they need different rights.

/// The most scopes, and actions in each, that are kept. 32: registries ask for one or two.
const COUNT_LIMIT: usize = 32;

/// The rights that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights<'a> {
    /// To read.
    Pull,
    /// The right to write too, and to read the repository `from`, whose blobs are to be mounted.
    Push { from: Option<&'a str> },
}

/// The scopes of one repository's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scopes(Vec<Scope>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    /// Type and name.
    resource: String,
    actions: Vec<String>,
}

impl Scopes {
    /// Adds the scopes of a challenge. Without any, it adds the right to pull `repository`, or to list all
    /// repositories if the name is empty. Adds the rights of a push if the request needs them.
    pub(super) fn add(&mut self, asked: Option<&str>, repository: &str, rights: Rights<'_>) {
        let pull = match repository {
            "" => "registry:catalog:*".to_owned(),
            repository => format!("repository:{repository}:pull"),
        };
        let asked = asked.filter(|asked| !asked.trim().is_empty()).unwrap_or(&pull);
        if let Rights::Push { from } = rights {
            self.add_actions(&format!("repository:{repository}"), &["pull", "push"]);
            if let Some(from) = from {
                self.add_actions(&format!("repository:{from}"), &["pull"]);
            }
        }
        for scope in asked.split_ascii_whitespace() {
            let Some((resource, actions)) = scope.rsplit_once(':') else { continue };
            let actions = actions.split(',').filter(|action| !action.is_empty());
            let mut actions: Vec<_> = match resource.starts_with("repository:") {
                true => actions.filter(|action| is_allowed(action, rights)).collect(),
                false => actions.collect(),
            };
            if actions.is_empty() {
                actions.push("pull");
            }
            self.add_actions(resource, &actions);
        }
    }

    fn add_actions(&mut self, resource: &str, actions: &[&str]) {
        let known = self.0.iter().position(|scope| scope.resource == resource);
        if known.is_none() {
            if self.0.len() == COUNT_LIMIT {
                return;
            }
            self.0.push(Scope { resource: resource.to_owned(), actions: Vec::new() });
        }
        let index = known.unwrap_or(self.0.len() - 1);
        let scope = &mut self.0[index];
        for action in actions {
            let is_new = !scope.actions.iter().any(|known| known == action);
            if is_new && scope.actions.len() < COUNT_LIMIT {
                scope.actions.push((*action).to_owned());
            }
        }
    }

    /// Each scope as text.
    pub(super) fn written(&self) -> Vec<String> {
        let written = |scope: &Scope| format!("{}:{}", scope.resource, scope.actions.join(","));
        self.0.iter().map(written).collect()
    }
}

/// Whether kitfs requests an action; `*` means all actions.
fn is_allowed(action: &str, rights: Rights<'_>) -> bool {
    let deletes = matches!(action, "delete" | "*") || action.ends_with("_delete");
    let writes = action == "push" || action.ends_with("_write");
    !deletes && (!writes || rights != Rights::Pull)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn asked(scopes: &[Option<&str>]) -> Vec<String> {
        let mut all = Scopes::default();
        scopes.iter().for_each(|scope| all.add(*scope, "org/model", Rights::Pull));
        all.written()
    }

    #[rstest]
    #[case::none(None, &["repository:org/model:pull"])]
    #[case::empty(Some(" "), &["repository:org/model:pull"])]
    #[case::as_asked(Some("repository:m/x:pull"), &["repository:m/x:pull"])]
    #[case::push(Some("repository:m:pull,push"), &["repository:m:pull"])]
    #[case::everything(Some("repository:m:*"), &["repository:m:pull"])]
    #[case::push_alone(Some("repository:m:push,delete"), &["repository:m:pull"])]
    #[case::azure(Some("repository:m:metadata_read"), &["repository:m:metadata_read"])]
    #[case::azure_write(Some("repository:m:pull,metadata_write"), &["repository:m:pull"])]
    #[case::catalogue(Some("registry:catalog:*"), &["registry:catalog:*"])]
    #[case::port(Some("repository:h:5000/m:push,pull"), &["repository:h:5000/m:pull"])]
    #[case::several(Some("repository:a:pull repository:b:pull"), &["repository:a:pull", "repository:b:pull"])]
    #[case::no_scope(Some("everything"), &[])]
    fn only_rights_that_change_nothing_are_asked_for(
        #[case] challenge: Option<&str>,
        #[case] expected: &[&str],
    ) {
        assert_eq!(asked(&[challenge]), expected);
    }

    #[test]
    fn a_push_asks_for_the_right_to_push_and_never_to_delete() {
        let asked = |challenge, from| {
            let mut scopes = Scopes::default();
            scopes.add(challenge, "org/model", Rights::Push { from });
            scopes.written()
        };
        assert_eq!(asked(None, None), ["repository:org/model:pull,push"]);
        let azure = Some("repository:org/model:metadata_write,delete,* repository:x:delete");
        let expected = ["repository:org/model:pull,push,metadata_write", "repository:x:pull"];
        assert_eq!(asked(azure, None), expected);
        let mounted = ["repository:org/model:pull,push", "repository:org/base:pull"];
        assert_eq!(asked(Some("repository:org/model:pull"), Some("org/base")), mounted);
    }

    #[test]
    fn earlier_scopes_are_asked_for_again() {
        let (tags, blobs) = (Some("repository:m:metadata_read"), Some("repository:m:pull"));
        assert_eq!(asked(&[tags, blobs, tags]), ["repository:m:metadata_read,pull"]);
    }

    proptest! {
        #[test]
        fn no_text_asks_for_a_change_or_without_end(
            challenges in prop::collection::vec("(repository:[a-c]:|[a-z:]{0,9} )?[a-z,:* _]{0,60}", 0..40),
        ) {
            let mut scopes = Scopes::default();
            challenges.iter().for_each(|challenge| scopes.add(Some(challenge), "m", Rights::Pull));
            prop_assert!(scopes.0.len() <= COUNT_LIMIT);
            for scope in scopes.0.iter().filter(|scope| scope.resource.starts_with("repository:")) {
                prop_assert!(scope.actions.len() <= COUNT_LIMIT);
                let forbidden = ["push", "delete", "*"];
                prop_assert!(!scope.actions.iter().any(|one| forbidden.contains(&one.as_str())));
            }
        }
    }
}
