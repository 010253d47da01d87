//! The stage: what was written here and its source has not got yet. Staged files, the journal that makes them survive,
//! their replay, and what they lay over the names of a source. It owns its directory alone, and knows nothing of the
//! network: an uploader takes changes from it and tells how that went.
//!
//! ```text
//! create ─▶ Draft ─ commit ─▶ file, directory and journal synced ─▶ overlay ─ next ─▶ (upload) ─ settle ─▶ forgotten
//!                                                                                  ├ failed ─▶ waits, given out again
//!                                                                                  └ conflict ─▶ kept, out of the overlay
//!                                                                                       restage ─▶ a change once more
//!                                                                                       discard ─▶ forgotten
//! ```

mod adorn;
mod budget;
mod burst;
mod change;
mod copies;
mod draft;
mod files;
mod house;
mod journal;
mod keys;
mod new;
mod open;
mod operation;
mod overlay;
mod pace;
mod patch;
mod pins;
mod record;
mod resolve;
mod schedule;
mod shared_sync;
mod stage;
mod status;
mod stream;
mod table;

pub use change::{Base, Change, Content, OperationId, Original, Settled, Target, Written, operation_of};
pub use draft::Draft;
pub use patch::{Over, Patch};
pub use pins::Pin;
pub use stage::{Batch, Bounds, Stage, StageParts};
pub use status::{Conflicted, Failing, Pressure, Recovered, StageStatus};
pub use stream::{Orphan, Sent, SentPart, Standing, Stream};
