//! A journal that was damaged at rest: it is noticed and named, and what only looks so is not.

use std::fs;
use std::path::Path;

use penstock_types::ErrorKind;

use crate::support::*;

const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A stage that was ended in order, with several files of the journal, and what readers see of it.
fn ended_in_order() -> (Bench, Vec<Option<Vec<u8>>>) {
    let mut bench = Bench::default();
    bench.bounds.segment_bytes = 16 * 1024;
    let stage = bench.open();
    for (number, key) in KEYS.iter().enumerate() {
        put(&stage, key, &content(number as u64, 3_000));
    }
    bring(&stage, "v1", 0).unwrap();
    let change = stage.next().unwrap();
    stage.conflict(&change, conflict());
    let seen = KEYS.iter().map(|key| seen(&stage, key)).collect();
    stage.close();
    assert!(bench.segments().len() > 1);
    (bench, seen)
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_byte_is_noticed_and_named_or_was_no_part_of_the_journal() {
    let (bench, expected) = ended_in_order();
    let mut noticed = 0;
    for segment in bench.segments() {
        let size = fs::read(&segment).unwrap().len();
        // Every byte of headers and of the beginnings of frames, and others here and there.
        let offsets = (0..size).filter(|offset| offset % 4096 < 100 || offset % 509 == 0);
        for offset in offsets {
            let copy = bench.after_a_kill();
            let damaged = copy.root().join("journal").join(segment.file_name().unwrap());
            flip(&damaged, offset);
            match copy.try_open() {
                Err(error) => {
                    let text = error.to_string();
                    assert!(matches!(error.kind(), ErrorKind::Corrupt), "{text}");
                    assert!(text.contains(damaged.to_str().unwrap()) && text.contains("offset="), "{text}");
                    noticed += 1;
                }
                Ok(stage) => {
                    let found: Vec<_> = KEYS.iter().map(|key| seen(&stage, key)).collect();
                    assert!(found == expected, "{} at {offset}", segment.display());
                    assert_eq!(stage.status().conflicts, 1);
                }
            }
        }
    }
    println!("{noticed} flips were noticed");
    assert!(noticed > 100);
}

#[test]
fn a_file_of_the_journal_that_is_missing_is_named() {
    let (bench, _) = ended_in_order();
    let missing = bench.segments().remove(0);
    fs::remove_file(&missing).unwrap();
    let error = bench.try_open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
}

#[test]
fn a_torn_end_is_cut_off_and_what_was_before_it_is_there() {
    let mut bench = Bench::default();
    bench.bounds.segment_bytes = 32 * 1024;
    let stage = bench.open();
    let (first, last) = (content(1, 3_000), content(2, 3_000));
    put(&stage, "a", &first);
    put(&stage, "b", &last);
    let killed = bench.after_a_kill();
    let bytes = fs::read(&killed.segments()[0]).unwrap();
    let end = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    for cut in (2 * 4096 + 1..end).step_by(97) {
        let copy = killed.after_a_kill();
        let segment = &copy.segments()[0];
        let mut torn = bytes.clone();
        torn[cut..].fill(0);
        fs::write(segment, torn).unwrap();
        for round in 0..2 {
            let stage = copy.open();
            assert_eq!(seen(&stage, "a").unwrap(), first, "cut at {cut}, start {round}");
            assert_eq!(laid(&stage, "b"), None, "cut at {cut}, start {round}");
            stage.close();
        }
    }
}

#[test]
fn a_damaged_journal_is_left_as_it_is() {
    let (bench, expected) = ended_in_order();
    let segment = bench.segments().remove(0);
    let before = fs::read(&segment).unwrap();
    flip(&segment, 4096 + 100);
    let (files, journal) = (bench.files(), bench.segments());
    bench.try_open().unwrap_err();
    bench.try_open().unwrap_err();
    assert_eq!((bench.files(), bench.segments()), (files, journal));
    fs::write(&segment, before).unwrap();
    let stage = bench.open();
    assert!(KEYS.iter().map(|key| seen(&stage, key)).eq(expected));
}
