//! What the crate reads back of its own images, and that nothing in them makes it panic.

use std::io::{Cursor, Seek, Write};

use penstock_image::{Image, ImageNode, ImageWriter};
use penstock_types::{ErrorKind, Result};

use crate::listing::settings;

fn image(bytes: &[u8]) -> Image {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    Image::new(file)
}

fn find(image: &Image, path: &str) -> Result<Option<ImageNode>> {
    let mut node = image.node(image.root())?;
    for name in path.split('/') {
        let Some(number) = image.look_up(&node, name)? else { return Ok(None) };
        node = image.node(number)?;
    }
    Ok(Some(node))
}

fn names(image: &Image, directory: &ImageNode) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for block in 0.. {
        let Some(found) = image.names(directory, block)? else { break };
        names.extend(found.into_iter().map(|each| each.name));
    }
    Ok(names)
}

#[test]
fn every_name_that_was_written_is_read_back_and_no_other() {
    let mut writer = ImageWriter::new(Cursor::new(Vec::new()), &settings()).unwrap();
    let mut places = Vec::new();
    for number in 0..5000_u64 {
        let path = format!("many/{:x}-{number}", number * 2_654_435_761 % 4096);
        places.push((path.clone(), number, writer.file(&path, number, number as i64 - 7).unwrap()));
    }
    writer.directory("none", 5).unwrap();
    writer.file("one", 0, 0).unwrap();
    let image = image(&writer.finish().unwrap().out.into_inner());
    for (path, size, place) in &places {
        let node = find(&image, path).unwrap().unwrap();
        let expected = (false, *size, *size as i64 - 7, (*size > 0).then_some(*place));
        assert_eq!((node.is_directory, node.size, node.modified_ms, node.place), expected, "{path}");
    }
    for absent in ["many/0", "many/fff-0x", "many/.", "none/x", "zzz", "many/zzz", "\u{1}"] {
        let found = find(&image, absent).unwrap();
        assert!(found.is_none_or(|node| node.is_directory), "{absent}");
    }
    let mut expected: Vec<_> = places.iter().map(|(path, ..)| path["many/".len()..].to_string()).collect();
    expected.sort();
    assert_eq!(names(&image, &find(&image, "many").unwrap().unwrap()).unwrap(), expected);
    assert!(names(&image, &find(&image, "none").unwrap().unwrap()).unwrap().is_empty());
    assert_eq!(find(&image, "one/below").unwrap_err().kind(), ErrorKind::NotADirectory);
}

#[test]
fn an_image_that_was_harmed_is_refused_or_read_and_never_panics() {
    let mut writer = ImageWriter::new(Cursor::new(Vec::new()), &settings()).unwrap();
    for number in 0..300 {
        writer.file(&format!("d{}/{number}", number / 100), number, 0).unwrap();
    }
    let whole = writer.finish().unwrap().out.into_inner();
    let start = whole.len().saturating_sub(40_000);
    for at in (start..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        let image = image(&bytes);
        for path in ["d0/3", "d1/298", "d2/x"] {
            let _ = find(&image, path).and_then(|node| node.map_or(Ok(Vec::new()), |node| names(&image, &node)));
        }
    }
    assert!(image(&whole[..start / 2]).node(u64::MAX).is_err());
}
