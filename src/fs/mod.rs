//! The read-only file system, without fuser: kits that were loaded, and what is asked of them.
#![allow(unused_variables, dead_code, missing_docs)]

mod load;

pub use load::{Description, LoadError, LoadRequest, LoadedKit, describe, load};
