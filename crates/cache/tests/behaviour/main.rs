//! What the cache promises, tried from outside.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, their support included")]

mod adopting;
mod eviction;
mod faults;
mod filling;
mod integrity;
mod restart;
mod shrinking;
mod support;
