//! Bytes that say what they are: every 32 of them name their object, version and offset, so that a reader can tell
//! zeros, old bytes, mixtures and misplaced bytes from right ones.

use bytes::Bytes;

/// Bytes of one record: magic, object, version, offset; each eight bytes, little-endian.
pub const RECORD_BYTES: u64 = 32;
const MAGIC: u64 = u64::from_le_bytes(*b"PENSTOCK");

/// Content of `object` in `version` at `start..end`.
pub fn content(object: u64, version: u64, start: u64, end: u64) -> Bytes {
    let first = start / RECORD_BYTES * RECORD_BYTES;
    let mut bytes = Vec::with_capacity(usize::try_from(end - first + RECORD_BYTES).expect("test data fits memory"));
    let mut offset = first;
    while offset < end {
        for word in [MAGIC, object, version, offset] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        offset += RECORD_BYTES;
    }
    let skip = usize::try_from(start - first).expect("less than a record");
    let length = usize::try_from(end - start).expect("test data fits memory");
    Bytes::from(bytes).slice(skip..skip + length)
}

/// Says what is wrong with `bytes`, which should be `object` in `version` from `start` on.
pub fn check(object: u64, version: u64, start: u64, bytes: &[u8]) -> Result<(), String> {
    let expected = content(object, version, start, start + bytes.len() as u64);
    match bytes.iter().zip(expected.iter()).position(|(found, wanted)| found != wanted) {
        None => Ok(()),
        Some(at) => {
            let from = at / 32 * 32;
            let record = &bytes[from..bytes.len().min(from + 32)];
            Err(format!("object {object} version {version} offset {}: found {record:02x?}", start + at as u64))
        }
    }
}

/// The version that `bytes` at `start` (a multiple of 32) claim to be, where the first record is whole.
pub fn version_of(bytes: &[u8]) -> Option<u64> {
    let word = bytes.get(16..24)?;
    (bytes.get(..8)? == MAGIC.to_le_bytes()).then(|| u64::from_le_bytes(word.try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_wrong_byte_an_old_record_and_zeros_are_all_seen() {
        let right = content(7, 2, 100, 5000).to_vec();
        assert!(check(7, 2, 100, &right).is_ok());
        let mut flipped = right.clone();
        flipped[999] ^= 1;
        assert!(check(7, 2, 100, &flipped).is_err());
        assert!(check(7, 2, 100, &content(7, 1, 100, 5000)).is_err());
        assert!(check(7, 2, 100, &vec![0; 4900]).is_err());
        assert_eq!(version_of(&content(7, 2, 64, 5000)), Some(2));
    }
}
