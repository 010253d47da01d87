//! Packed runs of listing entries: one row of the store. Pure. Entries are found by bisection without unpacking the row.
//!
//! Layout, little-endian: format (1), CRC32C of the rest (4), moment its request was sent (8), base of modification
//! times (8), entries (2), length of the common prefix (2), common prefix, offset of each entry (4 each), entries.
//! An entry: rest of the key (varint length, bytes), flags (1); for an object also size, modification time less the
//! base (zigzag) and version (varint length, bytes), numbers as LEB128 varints.

use penstock_types::{ObjectAttributes, Version};

use crate::timeline::Moment;

/// Entries of one chunk at most: a walk decodes few rows, an amendment rewrites little.
pub(crate) const CHUNK_ENTRIES: usize = 512;

const FORMAT: u8 = 1;
const HEADER: usize = 25;
const FLAG_PREFIX: u8 = 1;
const FLAG_BESIDE: u8 = 2;
/// The version is lower-case hexadecimal and stored at half its length, as nearly every ETag is.
const FLAG_HEX: u8 = 4;

/// An entry of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// Full key; ends in `/` for a common prefix.
    pub(crate) key: Vec<u8>,
    /// `None` for a common prefix.
    pub(crate) attributes: Option<ObjectAttributes>,
    /// Keys below `key/` exist, so that the object needs its reserved name.
    pub(crate) beside: bool,
}

/// The bytes of a row do not make a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// A row, read in place.
#[derive(Clone, Copy)]
pub(crate) struct Chunk<'a> {
    pub(crate) sent: Moment,
    base_ms: i64,
    count: usize,
    common: &'a [u8],
    offsets: &'a [u8],
    entries: &'a [u8],
}

/// An entry in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryRef<'a> {
    /// What follows the chunk's common prefix in the key.
    pub(crate) rest: &'a [u8],
    flags: u8,
    fields: &'a [u8],
    base_ms: i64,
}

/// Packs entries, sorted by key, into a row.
pub(crate) fn pack(entries: &[Entry], sent: Moment) -> Vec<u8> {
    debug_assert!(entries.windows(2).all(|pair| pair[0].key < pair[1].key), "entries are sorted");
    let common = common_prefix(entries);
    let base_ms = entries.iter().find_map(|entry| Some(entry.attributes.as_ref()?.modified_ms)).unwrap_or(0);
    let mut body = Vec::with_capacity(entries.len() * 48);
    let mut offsets = Vec::with_capacity(entries.len() * 4);
    for entry in entries {
        offsets.extend_from_slice(&u32::try_from(body.len()).expect("512 keys of a few KiB").to_le_bytes());
        push_entry(entry, common, base_ms, &mut body);
    }
    let mut row = Vec::with_capacity(HEADER + common + offsets.len() + body.len());
    row.push(FORMAT);
    row.extend_from_slice(&[0; 4]);
    row.extend_from_slice(&sent.to_le_bytes());
    row.extend_from_slice(&base_ms.to_le_bytes());
    row.extend_from_slice(&u16::try_from(entries.len()).expect("at most 512 entries").to_le_bytes());
    row.extend_from_slice(&u16::try_from(common).expect("the common prefix is cut at 65,535").to_le_bytes());
    row.extend_from_slice(entries.first().map_or(&[], |entry| &entry.key[..common]));
    row.extend_from_slice(&offsets);
    row.extend_from_slice(&body);
    let crc = crc32c::crc32c(&row[5..]);
    row[1..5].copy_from_slice(&crc.to_le_bytes());
    row
}

impl<'a> Chunk<'a> {
    /// Checks a row and reads its header.
    pub(crate) fn parse(row: &'a [u8]) -> Result<Self, Malformed> {
        let header = row.get(..HEADER).ok_or(Malformed)?;
        let crc = u32::from_le_bytes(header[1..5].try_into().map_err(|_| Malformed)?);
        if header[0] != FORMAT || crc32c::crc32c(&row[5..]) != crc {
            return Err(Malformed);
        }
        Self::parse_checked(row)
    }

    fn parse_checked(row: &'a [u8]) -> Result<Self, Malformed> {
        let header = row.get(..HEADER).ok_or(Malformed)?;
        let count = usize::from(u16::from_le_bytes([header[21], header[22]]));
        let common = usize::from(u16::from_le_bytes([header[23], header[24]]));
        let offsets_at = HEADER + common;
        let entries_at = offsets_at + count * 4;
        Ok(Self {
            sent: i64::from_le_bytes(header[5..13].try_into().map_err(|_| Malformed)?),
            base_ms: i64::from_le_bytes(header[13..21].try_into().map_err(|_| Malformed)?),
            count,
            common: row.get(HEADER..offsets_at).ok_or(Malformed)?,
            offsets: row.get(offsets_at..entries_at).ok_or(Malformed)?,
            entries: row.get(entries_at..).ok_or(Malformed)?,
        })
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// What every key begins with.
    pub(crate) fn common(&self) -> &'a [u8] {
        self.common
    }

    /// Entry `index`, which is below `len`.
    pub(crate) fn entry(&self, index: usize) -> Result<EntryRef<'a>, Malformed> {
        let offset = self.offsets.get(index * 4..index * 4 + 4).ok_or(Malformed)?;
        let offset = u32::from_le_bytes(offset.try_into().map_err(|_| Malformed)?);
        let mut bytes = self.entries.get(offset as usize..).ok_or(Malformed)?;
        let length = take_length(&mut bytes)?;
        let rest = take(&mut bytes, length)?;
        let flags = take(&mut bytes, 1)?[0];
        Ok(EntryRef { rest, flags, fields: bytes, base_ms: self.base_ms })
    }

    /// Every entry.
    pub(crate) fn unpack(&self) -> Result<Vec<Entry>, Malformed> {
        (0..self.count)
            .map(|index| {
                let entry = self.entry(index)?;
                let key = [self.common, entry.rest].concat();
                Ok(Entry { key, attributes: entry.attributes()?, beside: entry.is_beside() })
            })
            .collect()
    }

    /// Index of the first entry whose key is not less than `key`.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> Result<usize, Malformed> {
        let shared = self.common.len().min(key.len());
        match self.common[..shared].cmp(&key[..shared]) {
            std::cmp::Ordering::Less => return Ok(self.count),
            std::cmp::Ordering::Greater => return Ok(0),
            std::cmp::Ordering::Equal if key.len() <= self.common.len() => return Ok(0),
            std::cmp::Ordering::Equal => {}
        }
        let rest = &key[shared..];
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.entry(middle)?.rest < rest {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

impl EntryRef<'_> {
    /// Whether it is a common prefix.
    pub(crate) fn is_prefix(&self) -> bool {
        self.flags & FLAG_PREFIX != 0
    }

    /// Whether keys below `key/` exist beside the object.
    pub(crate) fn is_beside(&self) -> bool {
        self.flags & FLAG_BESIDE != 0
    }

    /// Content length, without unpacking the rest; 0 for a common prefix.
    pub(crate) fn size(&self) -> Result<u64, Malformed> {
        let mut fields = self.fields;
        if self.is_prefix() { Ok(0) } else { take_varint(&mut fields) }
    }

    /// Attributes of an object; `None` for a common prefix.
    pub(crate) fn attributes(&self) -> Result<Option<ObjectAttributes>, Malformed> {
        if self.is_prefix() {
            return Ok(None);
        }
        let mut fields = self.fields;
        let size = take_varint(&mut fields)?;
        let delta = take_varint(&mut fields)?;
        let delta = (delta >> 1).cast_signed() ^ -(delta & 1).cast_signed();
        let length = take_length(&mut fields)?;
        let version = take(&mut fields, length)?;
        let version = if self.flags & FLAG_HEX != 0 { hex(version) } else { text(version)? };
        Ok(Some(ObjectAttributes { size, modified_ms: self.base_ms.wrapping_add(delta), version }))
    }
}

/// The row with the object `key` marked as lying beside a directory; unchanged when the object is not in it.
pub(crate) fn mark_beside(row: &[u8], key: &[u8]) -> Result<Vec<u8>, Malformed> {
    let chunk = Chunk::parse(row)?;
    let mut entries = chunk.unpack()?;
    for entry in entries.iter_mut().filter(|entry| entry.key == key && entry.attributes.is_some()) {
        entry.beside = true;
    }
    Ok(pack(&entries, chunk.sent))
}

fn push_entry(entry: &Entry, common: usize, base_ms: i64, body: &mut Vec<u8>) {
    push_varint((entry.key.len() - common) as u64, body);
    body.extend_from_slice(&entry.key[common..]);
    let beside = if entry.beside { FLAG_BESIDE } else { 0 };
    let Some(attributes) = &entry.attributes else {
        body.push(FLAG_PREFIX | beside);
        return;
    };
    let packed = unhex(attributes.version.as_str());
    body.push(beside | if packed.is_some() { FLAG_HEX } else { 0 });
    push_varint(attributes.size, body);
    let delta = attributes.modified_ms.wrapping_sub(base_ms);
    push_varint((delta << 1 ^ delta >> 63).cast_unsigned(), body);
    let version = packed.as_deref().unwrap_or(attributes.version.as_str().as_bytes());
    push_varint(version.len() as u64, body);
    body.extend_from_slice(version);
}

/// Length of what all keys begin with; sorted, so that first and last tell.
fn common_prefix(entries: &[Entry]) -> usize {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return 0 };
    shared_length(&first.key, &last.key).min(usize::from(u16::MAX))
}

/// How many bytes two keys share at their beginning.
pub(crate) fn shared_length(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

fn push_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Malformed)?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(Malformed);
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take_length(bytes: &mut &[u8]) -> Result<usize, Malformed> {
    usize::try_from(take_varint(bytes)?).map_err(|_| Malformed)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

fn text(bytes: &[u8]) -> Result<Version, Malformed> {
    std::str::from_utf8(bytes).map(Version::from).map_err(|_| Malformed)
}

fn hex(bytes: &[u8]) -> Version {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    let text: String = digits.map(char::from).collect();
    Version(text.into())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    pairs.iter().map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versions() -> impl Strategy<Value = String> {
        prop_oneof!["[0-9a-f]{32}", "[0-9a-f]{32}-[0-9]{1,4}", "\\PC{0,20}", Just(String::new())]
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let key = prop_oneof![
            proptest::collection::vec(any::<u8>(), 1..40),
            "same/prefix/[a-c/]{1,12}".prop_map(String::into_bytes)
        ];
        let value = proptest::option::of((any::<u64>(), any::<i64>(), versions()));
        proptest::collection::btree_map(key, (value, any::<bool>()), 0..60).prop_map(|map| {
            map.into_iter()
                .map(|(key, (value, beside))| Entry {
                    key,
                    attributes: value.map(|(size, modified_ms, version)| ObjectAttributes {
                        size,
                        modified_ms,
                        version: version.as_str().into(),
                    }),
                    beside,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn entries_come_back_from_their_row(entries in entries(), sent in any::<i64>()) {
            let row = pack(&entries, sent);
            prop_assert_eq!(Chunk::parse(&row).map(|chunk| chunk.sent), Ok(sent));
            prop_assert_eq!(Chunk::parse(&row).and_then(|chunk| chunk.unpack()), Ok(entries));
        }

        #[test]
        fn marking_an_object_changes_nothing_else(entries in entries(), at in any::<prop::sample::Index>()) {
            prop_assume!(!entries.is_empty());
            let (row, at) = (pack(&entries, 3), at.index(entries.len()));
            let mut expected = entries.clone();
            expected[at].beside |= expected[at].attributes.is_some();
            let marked = mark_beside(&row, &entries[at].key).expect("a row of ours");
            prop_assert_eq!(Chunk::parse(&marked).and_then(|chunk| chunk.unpack()), Ok(expected));
        }

        #[test]
        fn bisection_finds_the_first_entry_that_is_not_less(entries in entries(), key in proptest::collection::vec(any::<u8>(), 0..30)) {
            let row = pack(&entries, 0);
            let chunk = Chunk::parse(&row).expect("a row of ours");
            for wanted in entries.iter().map(|entry| &entry.key).chain([&key]) {
                let expected = entries.partition_point(|entry| entry.key < *wanted);
                prop_assert_eq!(chunk.lower_bound(wanted), Ok(expected));
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_and_never_trusted(row in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Chunk::parse(&row).is_err());
            if let Ok(chunk) = Chunk::parse_checked(&row) {
                let _ = chunk.unpack();
                let _ = chunk.lower_bound(&row);
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(entries in entries(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut row = pack(&entries, 7);
            let at = at.index(row.len());
            row[at] ^= 1u8 << bit;
            prop_assert!(Chunk::parse(&row).is_err());
            if let Ok(chunk) = Chunk::parse_checked(&row) {
                let _ = chunk.unpack();
            }
        }
    }

    /// Rows of this format, and rows that once were, or could be, mistaken for some.
    #[test]
    fn the_corpus_of_chunks_is_read_or_refused_as_it_must_be() {
        penstock_testkit::corpus::check(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/chunks"), |row| {
            let entries = Chunk::parse(row).and_then(|chunk| Ok((chunk.unpack()?, chunk.sent)));
            let _ = Chunk::parse_checked(row).map(|chunk| (chunk.unpack(), chunk.lower_bound(row)));
            entries.is_ok_and(|(entries, sent)| pack(&entries, sent) == row)
        });
    }
}
