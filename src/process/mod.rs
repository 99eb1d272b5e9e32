//! This process among others: the time that it ran, and the limits that it shares with its children.
//!
//! - [`running_time`]: deadlines that do not run while the process is stopped.
//! - [`limits`]: open files, and the limits that started programs get back.
//! - [`mount_table`]: the mounts that this process sees.
//! - [`pidfd`]: another process, and its end.
//! - [`signals`]: signals that come to this process, and their senders.
//! - [`threads`]: the threads of other processes.
//! - [`view`]: the part of the file tree that this process sees.
//!
//! Every room may use it, and it uses none.

pub mod limits;
pub mod mount_table;
pub mod pidfd;
pub mod running_time;
pub mod signals;
pub mod threads;
pub mod uses;
pub mod view;
