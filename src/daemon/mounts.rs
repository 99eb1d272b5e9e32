//! The table of mounts.
