//! Every promise, tested on the real binary as a black box, against a real `mongod` and a stub of the API.

#[path = "../support/mod.rs"]
mod support;

mod actions;
mod cli;
mod faults;
mod ops;
mod papers;
mod run;
mod shards;
mod stub;
