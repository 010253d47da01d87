//! Dev-only: bytes that say what they are, a clock that tests turn, sources and disks that misbehave on demand
//! or lose their power, inputs of decoders that are kept, and whether a test notices what is left out.

mod clock;
pub mod corpus;
mod disk;
mod faults;
pub mod oracle;
mod power;
mod without;

pub use clock::ManualClock;
pub use disk::{DiskCall, DiskFault, FaultyDisk, Pretence};
pub use faults::{Fault, FaultySource, SourceCall};
pub use power::{Image, Loss, PowerLossDisk};
pub use without::catches;
