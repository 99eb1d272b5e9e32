//! The registry client against a registry that misbehaves on request. Each test is named after the
//! sentence it proves.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod asking;
mod at_once;
mod catalogue;
mod content;
mod forms;
mod limits;
mod login;
mod mirrors;
mod objects;
mod patience;
mod redirects;
mod sent_kit;
mod setup;
mod tls;
mod uploading;
mod wire;
