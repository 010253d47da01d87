//! Dev-only: bytes that say what they are, a clock that tests turn, and sources that misbehave on demand.

mod clock;
mod faults;
pub mod oracle;

pub use clock::ManualClock;
pub use faults::{Fault, FaultySource, SourceCall};
