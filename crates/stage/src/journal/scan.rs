//! Reading the bytes of one file of the journal: which frames count, and whether what follows them is the torn end of a
//! crash or damage.

use super::frame::{self, ALIGNMENT, BLOCK, Frame, SegmentHeader};

/// Where a file of the journal ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// With this record: the file after it says so.
    At(u64),
    /// With the last one that is whole.
    Open,
}

/// The frames of a file that count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scanned {
    pub frames: Vec<Frame>,
    /// Sequence of the last one, or of the one before the file.
    pub last: u64,
    /// Where a write that was under way when the machine stopped was cut off.
    pub torn_at: Option<u64>,
}

/// Something is missing or wrong that had been durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where a whole frame should begin.
    pub offset: u64,
    /// Whole frames before that.
    pub before: usize,
    /// Whole frames behind it.
    pub behind: usize,
}

/// Reads the frames of a file with a good header.
pub fn scan(bytes: &[u8], header: &SegmentHeader, ending: Ending) -> Result<Scanned, Damage> {
    let mut frames = Vec::new();
    let (mut at, mut last) = (BLOCK as usize, header.previous_sequence);
    while ending != Ending::At(last) {
        // What is written after a sync begins with the next block.
        let next_block = at.next_multiple_of(BLOCK as usize);
        let Some(frame) = follows(bytes, at, header, last).or_else(|| follows(bytes, next_block, header, last)) else {
            break;
        };
        (at, last) = (frame.end, frame.header.sequence);
        frames.push(frame);
    }
    if ending == Ending::At(last) {
        return Ok(Scanned { frames, last, torn_at: None });
    }
    let behind = frames_of(bytes, at, header.number);
    let lost = ending != Ending::Open || behind.iter().any(|frame| frame.header.durable > last);
    if lost {
        return Err(Damage { offset: at as u64, before: frames.len(), behind: behind.len() });
    }
    let torn =
        !behind.is_empty() || [at, at.next_multiple_of(BLOCK as usize)].iter().any(|at| begins(bytes, *at, header));
    Ok(Scanned { frames, last, torn_at: torn.then_some(at as u64) })
}

/// Whether there is a whole frame that belongs to a file, whatever its header says.
pub fn has_frames_of(bytes: &[u8], number: u64) -> bool {
    !frames_of(bytes, 0, number).is_empty()
}

fn follows(bytes: &[u8], at: usize, header: &SegmentHeader, last: u64) -> Option<Frame> {
    let frame = frame::decode(bytes, at)?;
    let found = &frame.header;
    let belongs = (found.node, found.epoch, found.segment) == (header.node, header.epoch, header.number);
    (belongs && found.previous == last && found.sequence > last).then_some(frame)
}

/// Whether a frame of this file seems to begin there, whole or not.
fn begins(bytes: &[u8], at: usize, header: &SegmentHeader) -> bool {
    frame::segment_of(bytes, at) == Some(header.number)
}

/// Whole frames of a file from `at` on, wherever they begin.
fn frames_of(bytes: &[u8], at: usize, number: u64) -> Vec<Frame> {
    let mut found = Vec::new();
    let mut at = at.next_multiple_of(ALIGNMENT);
    while at < bytes.len() {
        let frame = frame::decode(bytes, at);
        at = frame.as_ref().map_or(at + ALIGNMENT, |frame| frame.end);
        found.extend(frame.filter(|frame| frame.header.segment == number));
    }
    found
}
