//! The bytes of a file of the journal: a header in a block of its own, then frames. Everything has a checksum, and
//! names the file it belongs to, so that what an earlier use of the space left is never taken for a record.

use std::ops::Range;

use penstock_types::faults::{Safeguard, is_left_out};

/// Frames that were synced never share a block with later ones: a torn write cannot reach them. The header has one.
pub const BLOCK: u64 = 4096;
/// Frames begin at multiples of this.
pub const ALIGNMENT: usize = 8;
/// Bytes of a frame before its record.
pub const FRAME_HEADER: usize = 64;
/// Format of header and frames; raised when either changes, or a record.
pub const FORMAT: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"PSTAGEJ\n";
const FRAME_MAGIC: [u8; 4] = *b"PSr\n";
const SEGMENT_HEADER: usize = 64;
/// Longest record and longest data: far above what is written, far below what could not be read.
const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The first block of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub node: u64,
    /// Start of the node that made the file.
    pub epoch: u64,
    /// Its own number, from 1.
    pub number: u64,
    /// The file before it in the journal; 0 for none.
    pub previous: u64,
    /// Sequence of the last record before this file; 0 for none. What that one has behind it never counted.
    pub previous_sequence: u64,
    /// The oldest file that was needed when this one was made.
    pub first: u64,
}

/// What a header is read as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderFound {
    Good(SegmentHeader),
    /// Of another format: a newer Penstock wrote it.
    OfFormat(u32),
    None,
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        bytes.extend_from_slice(&SEGMENT_MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        let Self { node, epoch, number, previous, previous_sequence, first } = self;
        for word in [node, epoch, number, previous, previous_sequence, first] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let sum = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes.resize(BLOCK as usize, 0);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> HeaderFound {
        let Some(bytes) = bytes.get(..SEGMENT_HEADER) else { return HeaderFound::None };
        if bytes[..8] != SEGMENT_MAGIC || word32(bytes, 8) != crc32c::crc32c(&bytes[12..]) {
            return HeaderFound::None;
        }
        if word32(bytes, 12) != FORMAT {
            return HeaderFound::OfFormat(word32(bytes, 12));
        }
        let word = |index: usize| word64(bytes, 16 + 8 * index);
        HeaderFound::Good(Self {
            node: word(0),
            epoch: word(1),
            number: word(2),
            previous: word(3),
            previous_sequence: word(4),
            first: word(5),
        })
    }
}

/// What a frame says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    pub node: u64,
    pub epoch: u64,
    /// Number of the file it is in.
    pub segment: u64,
    /// Sequence of its record; grows.
    pub sequence: u64,
    /// Sequence of the record before it.
    pub previous: u64,
    /// Every record up to this sequence was durable when this one was written.
    pub durable: u64,
}

/// A frame that is whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub header: FrameHeader,
    /// Where its record is in the bytes it was read from.
    pub record: Range<usize>,
    /// Where its data is.
    pub data: Range<usize>,
    /// CRC32C of the data.
    pub data_sum: u32,
    /// Where the next frame of the same write begins.
    pub end: usize,
}

/// Appends a frame to `out`, whose length is aligned; where its data begins in `out`, and the checksum of that.
pub fn encode(header: &FrameHeader, record: &[u8], data: &[u8], out: &mut Vec<u8>) -> (usize, u32) {
    let start = out.len();
    out.extend_from_slice(&FRAME_MAGIC);
    out.extend_from_slice(&[0; 4]);
    let FrameHeader { node, epoch, segment, sequence, previous, durable } = header;
    for word in [node, epoch, segment, sequence, previous, durable] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let lengths = [record.len(), data.len()].map(|length| u32::try_from(length).expect("records are small"));
    lengths.iter().for_each(|length| out.extend_from_slice(&length.to_le_bytes()));
    debug_assert_eq!(out.len(), start + FRAME_HEADER);
    out.extend_from_slice(record);
    // The data has a checksum of its own, so that it can be read alone.
    let data_sum = crc32c::crc32c(data);
    out.extend_from_slice(&data_sum.to_le_bytes());
    let sum = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    let data_start = out.len();
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    (data_start, data_sum)
}

/// Bytes of a frame.
pub fn length_of(record: usize, data: usize) -> usize {
    (FRAME_HEADER + record + size_of::<u32>() + data).next_multiple_of(ALIGNMENT)
}

/// The frame that begins at `start`; `None` where there is no whole one.
pub fn decode(bytes: &[u8], start: usize) -> Option<Frame> {
    let header = bytes.get(start..start.checked_add(FRAME_HEADER)?)?;
    if header[..4] != FRAME_MAGIC {
        return None;
    }
    let lengths = [word32(header, 56), word32(header, 60)].map(|length| length as usize);
    if lengths.iter().any(|length| *length > RECORD_BYTES_MAX) {
        return None;
    }
    let record = start + FRAME_HEADER..start + FRAME_HEADER + lengths[0];
    let data_start = record.end + size_of::<u32>();
    let data = data_start..data_start + lengths[1];
    let summed = bytes.get(start + 8..data_start)?;
    let trusts = is_left_out(Safeguard::RecordSum);
    if crc32c::crc32c(summed) != word32(header, 4) && !trusts {
        return None;
    }
    let data_sum = word32(bytes, record.end);
    if crc32c::crc32c(bytes.get(data.clone())?) != data_sum && !trusts {
        return None;
    }
    let word = |index: usize| word64(header, 8 + 8 * index);
    let header = FrameHeader {
        node: word(0),
        epoch: word(1),
        segment: word(2),
        sequence: word(3),
        previous: word(4),
        durable: word(5),
    };
    let end = data.end.next_multiple_of(ALIGNMENT);
    Some(Frame { header, record, data, data_sum, end })
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The file that what begins at `start` says it is a frame of, whole or not.
pub fn segment_of(bytes: &[u8], start: usize) -> Option<u64> {
    let header = bytes.get(start..start.checked_add(FRAME_HEADER)?)?;
    (header[..4] == FRAME_MAGIC).then(|| word64(header, 24))
}
