//! EROFS metadata from a listing: names, attributes and where each file's bytes lie in the data devices. Pure:
//! never reads a file, never mounts, does no I/O but its output; the same listing gives the same bytes.
//!
//! The kernel mounts what comes out of an [`ImageWriter`] with one `device=` option for each data device, and reads
//! the content from there at the places that the [`Allocator`] gives.

mod directory;
mod format;
mod output;
mod place;
mod reader;
mod writer;

pub use format::BLOCK_BYTES;
pub use place::{Allocator, DEVICE_BLOCKS, DEVICES_MAX, Place};
pub use reader::{Image, ImageName, ImageNode};
pub use writer::{Finished, ImageWriter, Settings};
