//! What the stage promises, tried from outside.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, their support included")]

mod bringing;
mod budget;
mod committing;
mod damage;
mod faults;
mod journal;
mod overlay;
mod power;
mod renames;
mod resolving;
mod restart;
mod streaming;
mod support;
mod without;
