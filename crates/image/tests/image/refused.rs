//! What is refused, with what words, and what stays of the image afterwards.

use std::io::{self, Cursor, Seek, SeekFrom, Write};

use penstock_image::{Allocator, ImageWriter, Settings};
use penstock_types::ErrorKind;

use crate::listing::settings;
use crate::reader::Image;

type Writer = ImageWriter<Cursor<Vec<u8>>>;

fn writer() -> Writer {
    ImageWriter::new(Cursor::new(Vec::new()), &settings()).unwrap()
}

fn paths(writer: Writer) -> Vec<String> {
    let image = writer.finish().unwrap().out.into_inner();
    Image(&image).superblock();
    Image(&image).walk().into_keys().filter(|path| !path.is_empty()).collect()
}

#[test]
fn a_name_that_no_directory_can_hold_is_refused_and_the_next_path_may_follow() {
    let long = format!("a/{}", "x".repeat(256));
    let wide = format!("{}/b", "é".repeat(128));
    let cases = [
        ("", "an empty name"),
        ("/a", "an empty name"),
        ("a/", "an empty name"),
        ("a//b", "an empty name"),
        (".", ". or .. in it"),
        ("a/./b", ". or .. in it"),
        ("a/..", ". or .. in it"),
        (long.as_str(), "more than 255 bytes"),
        (wide.as_str(), "more than 255 bytes"),
        ("a/b\0c", "NUL"),
    ];
    let mut writer = writer();
    for (path, words) in cases {
        for error in [writer.file(path, 1, 0).unwrap_err(), writer.directory(path, 0).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path:?}");
            assert!(error.to_string().contains(words), "{path:?}: {error}");
            assert!(error.action().contains(&format!("{path:?}")), "{error}");
        }
    }
    writer.file("a/..b", 1, 0).unwrap();
    assert_eq!(paths(writer), ["a", "a/..b"]);
}

#[test]
fn the_names_of_a_directory_may_come_in_any_order_and_are_found() {
    let mut writer = writer();
    // As the keys of an object store are sorted: `-` and `.` come before `/`.
    for path in ["b-x", "b.y/z", "b/d!x", "b/d/x", "b/d0", "c", "a/z", "a/b"] {
        writer.file(path, 1, 0).unwrap();
    }
    let found = ["a", "a/b", "a/z", "b", "b-x", "b.y", "b.y/z", "b/d", "b/d!x", "b/d/x", "b/d0", "c"];
    assert_eq!(paths(writer), found);
}

#[test]
fn a_path_that_is_given_twice_or_in_parts_never_makes_an_image() {
    let cases: [&[&str]; 4] =
        [&["b/c", "b/c"], &["b/c", "d", "b/e"], &["b/c", "b/c/below"], &["b/c/x", "b/d", "b/c/y"]];
    for paths in cases {
        let mut writer = writer();
        let given = paths.iter().try_for_each(|path| writer.file(path, 1, 0).map(drop));
        let error = given.and_then(|()| writer.finish().map(drop)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{paths:?}");
        assert!(error.to_string().contains("is there twice"), "{paths:?}: {error}");
    }
    let mut ended = writer();
    for path in ["b/c", "d", "b/e"] {
        ended.file(path, 1, 0).unwrap();
    }
    ended.directory("f", 0).unwrap();
    ended.file("b/c/x", 1, 0).unwrap();
    ended.file("b/c/x/y", 1, 0).unwrap();
    assert!(ended.file("g", 1, 0).unwrap_err().to_string().contains("is there twice"));
    assert!(ended.file("h", 1, 0).unwrap_err().to_string().contains("is there twice"));
    assert!(ended.finish().unwrap_err().to_string().contains("is there twice"));
    let mut writer = writer();
    writer.file("b/c/file", 1, 0).unwrap();
    for path in ["b", "b/c"] {
        let error = writer.file(path, 1, 0).unwrap_err();
        assert!(error.to_string().contains("a directory has this path already"), "{error}");
    }
    writer.directory("b/d", 0).unwrap();
    assert_eq!(self::paths(writer), ["b", "b/c", "b/c/file", "b/d"]);
}

#[test]
fn a_file_that_fits_no_device_is_refused_by_its_path_and_takes_no_room() {
    let out = Cursor::new(Vec::new());
    let mut writer = ImageWriter::with_allocator(out, &settings(), Allocator::with_device_blocks(2)).unwrap();
    let first = writer.file("a", 4096, 0).unwrap();
    let error = writer.file("b/large", 8193, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.action().contains("\"b/large\""), "{error}");
    assert_eq!(writer.file("c", 1, 0).unwrap().offset, first.offset + 4096);
    assert_eq!(paths(writer), ["a", "c"]);
}

#[test]
fn settings_out_of_bounds_are_refused() {
    let cases = [
        (Settings { file_mode: 0o100_644, ..settings() }, "a mode"),
        (Settings { directory_mode: 0o10_000, ..settings() }, "a mode"),
        (Settings { label: "sixteen bytes it".to_owned(), ..settings() }, "label has more than 15"),
        (Settings { label: "a\0b".to_owned(), ..settings() }, "label contains a NUL"),
    ];
    for (settings, words) in cases {
        let error = ImageWriter::new(Cursor::new(Vec::new()), &settings).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// An output that is full after so many bytes, for once.
#[derive(Debug)]
struct Full {
    left: usize,
    kind: io::ErrorKind,
    refused: bool,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 && !self.refused {
            self.refused = true;
            return Err(io::Error::new(self.kind, "no room on the test disk"));
        }
        let length = if self.refused { bytes.len() } else { bytes.len().min(self.left) };
        self.left = self.left.saturating_sub(length);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Full {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Ok(0)
    }
}

#[test]
fn an_error_of_the_output_keeps_its_reason_and_is_not_forgotten() {
    let kinds = [(io::ErrorKind::StorageFull, ErrorKind::NoSpace), (io::ErrorKind::Other, ErrorKind::Disk)];
    for (kind, expected) in kinds {
        // Enough for some writes of the buffer, and then in the middle of one.
        for left in [1, 3_500_000] {
            let mut writer = ImageWriter::new(Full { left, kind, refused: false }, &settings()).unwrap();
            let first = (0..60_000).find_map(|number| writer.file(&format!("{number:05}"), 1, 0).err()).unwrap();
            assert_eq!(first.kind(), expected);
            assert!(first.to_string().contains("no room on the test disk"), "{first}");
            assert_eq!(writer.file("later", 1, 0).unwrap_err(), first);
            assert_eq!(writer.directory("later", 0).and_then(|()| writer.file("later/a", 1, 0)).unwrap_err(), first);
            assert_eq!(writer.finish().unwrap_err(), first);
        }
        // Everything is in the buffer until the end.
        let mut writer = ImageWriter::new(Full { left: 100, kind, refused: false }, &settings()).unwrap();
        writer.file("a", 1, 0).unwrap();
        assert_eq!(writer.finish().unwrap_err().kind(), expected);
    }
}
