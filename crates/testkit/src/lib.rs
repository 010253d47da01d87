//! Dev-only: bytes that say what they are, a clock that tests turn, and sources and disks that misbehave on
//! demand.

mod clock;
mod disk;
mod faults;
pub mod oracle;

pub use clock::ManualClock;
pub use disk::{DiskCall, DiskFault, FaultyDisk, Pretence};
pub use faults::{Fault, FaultySource, SourceCall};
