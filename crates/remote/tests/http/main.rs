//! The remote as a plain HTTP client sees it.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod killed;
mod lifetime;
mod listing;
mod objects;
mod signing;
mod support;
mod uploads;
