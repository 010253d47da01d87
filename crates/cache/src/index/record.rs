//! Rows of the index as bytes. Every row begins with its format and a CRC32C over its key and content, because the
//! database does not check pages when it reads them: a row that was damaged, or that stands under another key, is
//! no row.

use penstock_types::{ObjectId, ObjectKey, SourceId, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::page_map::{PAGES_PER_STRIPE, StripeImage, WORDS_PER_STRIPE};

/// Format of the rows. Raised when one changes; rows of another format are not read.
pub const ROW_FORMAT: u8 = 1;
const HEADER: usize = 1 + size_of::<u32>();

/// What is known of an extent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    pub source: SourceId,
    pub key: ObjectKey,
    pub version: Version,
    /// Size of the object, bytes.
    pub size: u64,
    /// Slot of its tier.
    pub tier: u32,
    /// Inode of its file; another one means that the file was replaced.
    pub inode: u64,
    /// The data was synced after the last page was written.
    pub durable: bool,
    /// The boot in which its data was written or verified last.
    pub boot: u64,
    /// Every page is present.
    pub complete: bool,
    /// Bytes of the tier's budget it holds.
    pub charged: u64,
    /// Uses and queue of the eviction.
    pub uses: u8,
    /// Milliseconds since the Unix epoch.
    pub last_use_ms: i64,
}

impl Record {
    pub fn id(&self) -> ObjectId {
        ObjectId { source: self.source.clone(), key: self.key.clone(), version: self.version.clone() }
    }

    pub fn is_of(&self, id: &ObjectId) -> bool {
        self.key == id.key && self.version == id.version && self.source == id.source
    }
}

/// A tier as the index knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TierRow {
    /// How records name it; never given twice.
    pub slot: u32,
    /// The identity that its directory carries.
    pub identity: u64,
    /// Bytes that the records of this tier are charged with.
    pub bytes: u64,
}

/// What the index knows of itself; one row.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Every file of a number below is known to the index, but for what was being made during the last flush.
    pub clean_below: u64,
    /// Numbers from here on were never given.
    pub number_limit: u64,
    pub tiers: Vec<TierRow>,
    pub scrub: ScrubRow,
}

/// How far the scrub is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScrubRow {
    /// When the pass began, milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// The extent under way, and the page of it that is next.
    pub extent: u64,
    pub page: u64,
    /// Pages done in this pass.
    pub done: u64,
    /// Directory of extent files that is looked through for orphans next.
    pub directory: u64,
}

/// Encodes a row for `key`.
pub fn encode<T: Serialize>(key: &[u8], row: &T) -> Vec<u8> {
    let content = postcard::to_stdvec(row).expect("rows are plain data, which postcard encodes");
    seal(key, &content)
}

/// The row of `key`; `None` when it is damaged, foreign or of another format.
pub fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Option<T> {
    let (row, rest) = postcard::take_from_bytes(unseal(key, bytes)?).ok()?;
    rest.is_empty().then_some(row)
}

/// Encodes a stripe of a page map: its bits, then the checksums of the pages that are present, in order.
pub fn encode_stripe(key: &[u8], image: &StripeImage) -> Vec<u8> {
    let mut content = Vec::with_capacity(WORDS_PER_STRIPE * 8 + image.sums.len() * 4);
    image.bits.iter().for_each(|word| content.extend_from_slice(&word.to_le_bytes()));
    for (page, sum) in image.sums.iter().enumerate() {
        if has(&image.bits, page) {
            content.extend_from_slice(&sum.to_le_bytes());
        }
    }
    seal(key, &content)
}

/// The stripe of `key`; `None` when it is damaged or foreign.
pub fn decode_stripe(key: &[u8], bytes: &[u8]) -> Option<StripeImage> {
    let content = unseal(key, bytes)?;
    let (words, sums) = content.split_at_checked(WORDS_PER_STRIPE * 8)?;
    let mut bits = [0; WORDS_PER_STRIPE];
    for (word, bytes) in bits.iter_mut().zip(words.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    let present: usize = bits.iter().map(|word| word.count_ones() as usize).sum();
    if sums.len() != present * 4 {
        return None;
    }
    let mut stored = sums.chunks_exact(4).map(|sum| u32::from_le_bytes(sum.try_into().expect("chunks of four")));
    let next = |page| if has(&bits, page) { stored.next().unwrap_or(0) } else { 0 };
    Some(StripeImage { bits, sums: (0..PAGES_PER_STRIPE as usize).map(next).collect() })
}

fn has(bits: &[u64; WORDS_PER_STRIPE], page: usize) -> bool {
    bits[page / 64] & (1 << (page % 64)) != 0
}

fn seal(key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(HEADER + content.len());
    row.push(ROW_FORMAT);
    row.extend_from_slice(&sum(key, content).to_le_bytes());
    row.extend_from_slice(content);
    row
}

fn unseal<'a>(key: &[u8], row: &'a [u8]) -> Option<&'a [u8]> {
    let (header, content) = row.split_at_checked(HEADER)?;
    let stored = u32::from_le_bytes(header[1..].try_into().ok()?);
    (header[0] == ROW_FORMAT && stored == sum(key, content)).then_some(content)
}

fn sum(key: &[u8], content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&[ROW_FORMAT]), key), content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_testkit::corpus;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        let names = (any::<String>(), prop::collection::vec(any::<u8>(), 0..1100), any::<String>());
        let numbers = (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<i64>());
        (names, numbers, any::<bool>(), any::<bool>(), 0u8..4).prop_map(|(names, numbers, durable, complete, uses)| {
            let (source, key, version) = names;
            let (size, tier, inode, boot, charged, last_use_ms) = numbers;
            Record {
                source: SourceId(source.into()),
                key: ObjectKey::new(key),
                version: Version(version.into()),
                size,
                tier,
                inode,
                durable,
                boot,
                complete,
                charged,
                uses,
                last_use_ms,
            }
        })
    }

    fn stripe() -> impl Strategy<Value = StripeImage> {
        (any::<[u64; WORDS_PER_STRIPE]>(), any::<u32>()).prop_map(|(bits, seed)| {
            let sum = |page: usize| if has(&bits, page) { seed.wrapping_mul(page as u32 + 1) } else { 0 };
            StripeImage { bits, sums: (0..PAGES_PER_STRIPE as usize).map(sum).collect() }
        })
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_went_in(record in record(), number in any::<u64>()) {
            let key = number.to_be_bytes();
            prop_assert_eq!(decode::<Record>(&key, &encode(&key, &record)), Some(record));
        }

        #[test]
        fn a_stripe_comes_back_as_it_went_in(image in stripe(), key in any::<[u8; 16]>()) {
            prop_assert_eq!(decode_stripe(&key, &encode_stripe(&key, &image)), Some(image));
        }

        #[test]
        fn arbitrary_bytes_are_no_row(bytes in prop::collection::vec(any::<u8>(), 0..600), key in any::<[u8; 8]>()) {
            prop_assert_eq!(decode::<Record>(&key, &bytes), None);
            prop_assert_eq!(decode::<Facts>(&key, &bytes), None);
            prop_assert_eq!(decode_stripe(&key, &bytes), None);
        }

        #[test]
        fn arbitrary_content_under_a_right_checksum_never_panics(content in prop::collection::vec(any::<u8>(), 0..600)) {
            let row = seal(b"key", &content);
            let _ = decode::<Record>(b"key", &row);
            let _ = decode::<Facts>(b"key", &row);
            let _ = decode_stripe(b"key", &row);
        }

        #[test]
        fn a_row_with_any_bit_flipped_or_cut_short_is_no_row(image in stripe(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let row = encode_stripe(b"key", &image);
            let mut flipped = row.clone();
            flipped[at.index(row.len())] ^= 1 << bit;
            prop_assert_eq!(decode_stripe(b"key", &flipped), None);
            prop_assert_eq!(decode_stripe(b"key", &row[..at.index(row.len())]), None);
        }
    }

    /// Rows of this format, and rows that once were, or could be, mistaken for some. Their key is `key`.
    #[test]
    fn the_corpus_of_rows_is_read_or_refused_as_it_must_be() {
        let corpus = |name: &str| format!("{}/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        // Also written as it was read: the format is the same.
        corpus::check(corpus("facts"), |row| {
            decode::<Facts>(b"key", row).is_some_and(|facts| encode(b"key", &facts) == row)
        });
        corpus::check(corpus("records"), |row| {
            decode::<Record>(b"key", row).is_some_and(|record| encode(b"key", &record) == row)
        });
        corpus::check(corpus("stripes"), |row| {
            decode_stripe(b"key", row).is_some_and(|stripe| encode_stripe(b"key", &stripe) == row)
        });
    }

    #[test]
    fn a_row_under_another_key_is_no_row() {
        let good = encode(b"key", &Facts::default());
        assert_eq!(decode::<Facts>(b"kex", &good), None);
        assert_eq!(decode::<Facts>(b"key", &good), Some(Facts::default()));
    }
}
