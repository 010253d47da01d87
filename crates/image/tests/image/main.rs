//! Images as somebody else reads them: a reader that knows only the format, and the kernel.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

mod listing;
mod mounted;
mod read_back;
mod reader;
mod refused;
mod roundtrip;
