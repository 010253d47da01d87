//! Reading the journal's directory: the files that make it up, newest to oldest, and their records in order.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use penstock_types::{Disk, Error, ErrorKind, OpenMode, Result};

use super::frame::{FORMAT, HeaderFound, SegmentHeader};
use super::scan::{Damage, Ending, Scanned, has_frames_of, scan};
use super::{Place, number_of, segment_path};
use crate::files::{disk_error, read_some};
use crate::record::Record;

/// What the journal said.
#[derive(Debug, Default)]
pub struct Replayed {
    /// The node and the newest start that wrote it; `None` when there was none.
    pub node: Option<u64>,
    pub epoch: u64,
    /// In order, oldest first.
    pub records: Vec<Statement>,
    /// Files that are needed, oldest first.
    pub segments: Vec<u64>,
    /// Files of the journal that are not needed any more.
    pub garbage: Vec<PathBuf>,
    /// Greatest number of a file, needed or not.
    pub last_number: u64,
    /// Sequence of the last record.
    pub last_sequence: u64,
}

/// A record with the place of its data.
#[derive(Debug)]
pub struct Statement {
    pub record: Record,
    pub place: Place,
}

struct Segment {
    path: PathBuf,
    bytes: Vec<u8>,
    header: SegmentHeader,
}

/// Reads every file of the journal that is needed.
///
/// # Errors
/// `Corrupt` when something that had been durable is damaged; `Unsupported` when a newer Penstock wrote it; `Disk`.
pub fn replay(disk: &dyn Disk, directory: &Path) -> Result<Replayed> {
    let names = disk.list(directory).map_err(|error| disk_error("read", directory, &error))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let mut replayed = Replayed { last_number: numbers.last().copied().unwrap_or(0), ..Replayed::default() };
    if let Some(tail) = tail(disk, directory, &numbers)? {
        read_back(disk, directory, tail, &mut replayed)?;
    }
    let unneeded = numbers.iter().filter(|number| !replayed.segments.contains(number));
    replayed.garbage = unneeded.map(|number| segment_path(directory, *number)).collect();
    Ok(replayed)
}

/// The newest file that was begun: one whose header was never synced has no records.
fn tail(disk: &dyn Disk, directory: &Path, numbers: &[u64]) -> Result<Option<Segment>> {
    for number in numbers.iter().rev() {
        let path = segment_path(directory, *number);
        let bytes = read(disk, &path)?;
        if let Some(header) = header_of(&bytes, *number, &path)? {
            return Ok(Some(Segment { path, bytes, header }));
        }
        if has_frames_of(&bytes, *number) {
            return Err(damaged(&path, Damage { offset: 0, before: 0, behind: 1 }));
        }
    }
    Ok(None)
}

/// Reads from the tail back to the oldest file that is needed.
fn read_back(disk: &dyn Disk, directory: &Path, tail: Segment, replayed: &mut Replayed) -> Result<()> {
    (replayed.node, replayed.epoch) = (Some(tail.header.node), tail.header.epoch);
    let (mut segment, mut ending) = (tail, Ending::Open);
    let mut first = segment.header.first;
    loop {
        let header = segment.header;
        let scanned = scan(&segment.bytes, &header, ending).map_err(|damage| damaged(&segment.path, damage))?;
        if ending == Ending::Open {
            replayed.last_sequence = scanned.last;
            report_torn(&segment.path, &scanned);
        }
        let mut records = records_of(&segment, &scanned)?;
        first = records.iter().filter_map(|said| first_in(&said.record)).fold(first, u64::max);
        if header.number < first {
            break;
        }
        // Files are read newest first, their records oldest first.
        records.append(&mut replayed.records);
        replayed.records = records;
        replayed.segments.insert(0, header.number);
        if header.number == first || header.previous < first || header.previous == 0 {
            break;
        }
        ending = Ending::At(header.previous_sequence);
        segment = open_needed(disk, directory, header.previous)?;
    }
    Ok(())
}

fn open_needed(disk: &dyn Disk, directory: &Path, number: u64) -> Result<Segment> {
    let path = segment_path(directory, number);
    let bytes = read(disk, &path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => unreadable(&path, "it is missing"),
        _ => error,
    })?;
    match header_of(&bytes, number, &path)? {
        Some(header) => Ok(Segment { path, bytes, header }),
        None => Err(damaged(&path, Damage { offset: 0, before: 0, behind: 0 })),
    }
}

fn header_of(bytes: &[u8], number: u64, path: &Path) -> Result<Option<SegmentHeader>> {
    match SegmentHeader::decode(bytes) {
        HeaderFound::Good(header) => Ok((header.number == number).then_some(header)),
        HeaderFound::None => Ok(None),
        HeaderFound::OfFormat(format) => {
            Err(Error::new(ErrorKind::Unsupported, action(path), "it was written by another version of Penstock")
                .advise("start that version, and persist what is staged")
                .fact("format", format)
                .fact("known", FORMAT))
        }
    }
}

fn records_of(segment: &Segment, scanned: &Scanned) -> Result<Vec<Statement>> {
    let decode = |frame: &super::frame::Frame| {
        let record = Record::decode(&segment.bytes[frame.record.clone()]).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, action(&segment.path), "a record is of a kind that is not known")
                .advise("start the version of Penstock that wrote it, and persist what is staged")
                .fact("offset", frame.record.start)
        })?;
        let length = u32::try_from(frame.data.len()).unwrap_or(u32::MAX);
        let place =
            Place { segment: segment.header.number, offset: frame.data.start as u64, length, sum: frame.data_sum };
        Ok(Statement { record, place })
    };
    scanned.frames.iter().map(decode).collect()
}

fn first_in(record: &Record) -> Option<u64> {
    match record {
        Record::First { segment } => Some(*segment),
        _ => None,
    }
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let file = disk.open(path, OpenMode::Read)?;
        let size = disk.facts(file.as_fd())?.size;
        let mut bytes = vec![0; usize::try_from(size).map_err(std::io::Error::other)?];
        let read = read_some(disk, file.as_fd(), 0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    };
    read().map_err(|error: std::io::Error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = disk_error("read", path, &error);
        if missing { error.with_kind(ErrorKind::NotFound) } else { error }
    })
}

fn report_torn(path: &Path, scanned: &Scanned) {
    if let Some(offset) = scanned.torn_at {
        let path = path.display();
        tracing::warn!(code = "stage-journal-torn", %path, offset, "a write that was never acknowledged is cut off");
    }
}

fn damaged(path: &Path, damage: Damage) -> Error {
    unreadable(path, "the journal is damaged before its end")
        .fact("offset", damage.offset)
        .fact("records_before", damage.before)
        .fact("records_behind", damage.behind)
}

fn unreadable(path: &Path, reason: &str) -> Error {
    Error::new(ErrorKind::Corrupt, action(path), reason).advise(
        "copy the directory of the stage away before anything else: the files in it are whole; \
         restore the journal from a copy of the disk, or move the directory aside to start without what is staged",
    )
}

fn action(path: &Path) -> String {
    format!("replay {}", path.display())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the bytes are a file of the journal whose every record can be read.
    fn reads(bytes: &[u8]) -> bool {
        let HeaderFound::Good(header) = SegmentHeader::decode(bytes) else { return false };
        let segment = Segment { path: PathBuf::new(), bytes: bytes.to_vec(), header };
        scan(bytes, &header, Ending::Open).is_ok_and(|scanned| records_of(&segment, &scanned).is_ok())
    }

    #[test]
    fn the_corpus_of_journals_is_read_or_refused_as_it_must_be() {
        penstock_testkit::corpus::check(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/journals"), reads);
    }

    fn sample(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/journals").join(name)).unwrap()
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..9_000)) {
            reads(&bytes);
        }

        #[test]
        fn no_bytes_behind_a_good_header_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..9_000)) {
            let mut file = sample("right-nothing");
            file.extend_from_slice(&bytes);
            reads(&file);
        }

        #[test]
        fn no_change_of_a_file_makes_it_panic_or_read_other_records(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let good = sample("right-everything");
            let mut file = good.clone();
            changes.iter().for_each(|(at, byte)| file[at.index(good.len())] = *byte);
            let records = |bytes: &[u8]| {
                let HeaderFound::Good(header) = SegmentHeader::decode(bytes) else { return None };
                let segment = Segment { path: PathBuf::new(), bytes: bytes.to_vec(), header };
                let scanned = scan(bytes, &header, Ending::Open).ok()?;
                records_of(&segment, &scanned).ok().map(|said| said.into_iter().map(|said| said.record).collect::<Vec<_>>())
            };
            let all = records(&good).unwrap();
            if let Some(found) = records(&file) {
                prop_assert!(all.starts_with(&found));
            }
        }

        #[test]
        fn no_bytes_as_a_record_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(record) = Record::decode(&bytes) {
                prop_assert_eq!(Record::decode(&record.encode()), Some(record));
            }
        }
    }
}
