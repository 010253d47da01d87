//! The engine over sources and disks that fail, and sources that change: what readers get, when, and what is left
//! afterwards.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, their support included")]
#![allow(missing_docs, reason = "these are tests")]

mod cursors;
mod deadlines;
mod door;
mod history;
mod model;
mod once_each;
mod pressure;
mod run;
mod world;
