//! A million files, in memory that does not grow with them.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{self, Seek, SeekFrom, Write};

use penstock_image::{ImageWriter, Settings};

/// Far less than any list of what was written would take.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

fn settings() -> Settings {
    Settings {
        owner: (0, 0),
        file_mode: 0o444,
        directory_mode: 0o555,
        built_ms: 0,
        uuid: [0; 16],
        label: String::new(),
    }
}

/// Counts what is written and keeps none of it.
#[derive(Default)]
struct Counted {
    position: u64,
    end: u64,
    writes: u64,
    largest: usize,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.position += bytes.len() as u64;
        self.end = self.end.max(self.position);
        self.writes += 1;
        self.largest = self.largest.max(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Counted {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(position) = to else { panic!("the writer knows where it is") };
        assert!(position <= self.end);
        self.position = position;
        Ok(position)
    }
}

fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_million_files_in_a_thousand_directories_are_written_as_they_come() {
    let before = peak_memory_bytes();
    let mut writer = ImageWriter::new(Counted::default(), &settings()).unwrap();
    for number in 0..1_000_000_u64 {
        let path = format!("part-{:04}/sample-{:08}.jpg", number / 1000, number);
        let place = writer.file(&path, 1 + number % 100_000, 1_600_000_000_000).unwrap();
        assert_eq!(place.device, 0);
    }
    let finished = writer.finish().unwrap();
    assert_eq!((finished.files, finished.directories), (1_000_000, 1001));
    assert_eq!(finished.out.end, finished.bytes);
    // 96 bytes of inode, 12 of entry, 19 of name, and what the ends of blocks leave.
    assert!((127_000_000..140_000_000).contains(&finished.bytes), "{} bytes", finished.bytes);
    assert!(finished.out.largest <= 1 << 20, "a write of {} bytes", finished.out.largest);
    assert!(finished.out.writes < 1000, "{} writes", finished.out.writes);
    let growth = peak_memory_bytes() - before;
    assert!(growth < GROWTH_BYTES_MAX, "memory grew by {growth} bytes");
}

#[test]
fn small_directories_take_hundreds_of_bytes_and_few_writes() {
    let mut writer = ImageWriter::new(Counted::default(), &settings()).unwrap();
    for number in 0..100_000_u64 {
        writer.file(&format!("{:03}/{:03}/x/y", number / 1000, number % 1000), 1, 0).unwrap();
    }
    let finished = writer.finish().unwrap();
    assert_eq!((finished.files, finished.directories), (100_000, 1 + 100 + 100_000 + 100_000));
    assert!(finished.bytes < 100_000 * 400, "{} bytes", finished.bytes);
    assert!(finished.out.writes < 50_000, "{} writes", finished.out.writes);
}
