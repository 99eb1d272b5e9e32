//! The chain of parents: `model.path` names another kit (modelkit-spec 4.2).
#![allow(unused_variables, dead_code)]

/// The references on the way from a kit to its oldest parent.
#[derive(Clone, Debug, Default)]
pub struct Parents {
    seen: Vec<String>,
}

/// Why a chain of parents is refused; the message shows the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParentsError {
    /// The chain comes back to a reference that is in it.
    #[error("the kit's parents go round in a circle: {0}")]
    Cycle(String),
    /// More than 10 references.
    #[error("the kit has more than 10 generations of parents: {0}")]
    TooDeep(String),
}

impl Parents {
    /// A chain that starts at the kit a user asked for.
    pub fn new(reference: &str) -> Self {
        todo!()
    }

    /// Adds the next parent.
    pub fn push(&mut self, reference: &str) -> Result<(), ParentsError> {
        todo!()
    }
}
