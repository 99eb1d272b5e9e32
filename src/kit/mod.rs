//! What a kit is: Kitfile, families, filters, parents, and layers merged into one tree. Pure.

pub mod tree;

pub use tree::Tree;
