//! The remote as a plain HTTP client sees it.

mod lifetime;
mod listing;
mod objects;
mod support;
mod uploads;
