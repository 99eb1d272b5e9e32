//! The chain of kits that refer to one another: `model.path` names a parent (modelkit-spec 4.2), and
//! `datasets[].remotePath` a kit with data sets (9.2).

/// The most references in a chain, as in kit (`MaxModelRefChain`). A longer chain is a mistake.
pub const MOST_PARENTS: usize = 10;

/// The references from a kit to its oldest parent, or to a kit with its data sets.
#[derive(Clone, Debug, Default)]
pub struct Parents {
    seen: Vec<String>,
}

/// The error for a chain that is refused. The message shows the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParentsError {
    /// The chain comes back to an earlier reference.
    #[error("the kits that it refers to go round in a circle: {0}")]
    Cycle(String),
    /// More than [`MOST_PARENTS`] references.
    #[error("it refers to a kit through more than {MOST_PARENTS} others: {0}")]
    TooDeep(String),
}

impl Parents {
    /// A chain that starts at the kit a user asked for.
    pub fn new(reference: &str) -> Self {
        Self { seen: vec![reference.to_owned()] }
    }

    /// Adds the next parent.
    ///
    /// References are compared as text, as in kit: two tags of one manifest are two references. The
    /// limit on the length ends a circle of such tags.
    pub fn push(&mut self, reference: &str) -> Result<(), ParentsError> {
        if self.seen.iter().any(|seen| seen == reference) {
            return Err(ParentsError::Cycle(self.chain(reference)));
        }
        // The first is the kit itself.
        if self.seen.len() > MOST_PARENTS {
            return Err(ParentsError::TooDeep(self.chain(reference)));
        }
        self.seen.push(reference.to_owned());
        Ok(())
    }

    fn chain(&self, next: &str) -> String {
        format!("{} -> {next}", self.seen.join(" -> "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_may_have_ten_parents_and_not_eleven() {
        let mut parents = Parents::new("kit");
        for generation in 0..10 {
            parents.push(&format!("p{generation}")).unwrap();
        }
        let error = parents.push("p10").unwrap_err();
        assert!(matches!(error, ParentsError::TooDeep(_)));
        assert!(error.to_string().contains("kit -> p0 -> p1 "), "{error}");
        assert!(error.to_string().ends_with(" -> p9 -> p10"), "{error}");
    }

    #[test]
    fn a_circle_is_refused_and_shown() {
        let mut parents = Parents::new("a");
        parents.push("b").unwrap();
        let error = parents.push("a").unwrap_err();
        assert_eq!(error, ParentsError::Cycle("a -> b -> a".into()));
        assert!(matches!(Parents::new("a").push("a"), Err(ParentsError::Cycle(_))));
    }
}
