//! The rules that every source of our own keeps in the same words: ranges, versions, conditions, parts, cursors.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use penstock_types::{ByteRange, CompletedPart, Error, ErrorKind, ObjectKey, Precondition, Result, Version};

/// Part numbers as S3 has them.
const PART_NUMBERS: std::ops::RangeInclusive<u32> = 1..=10_000;

pub(crate) fn no_such_object(action: &str) -> Error {
    Error::new(ErrorKind::NotFound, action, "no such object")
}

/// The pinned version is gone, and the object with it.
pub(crate) fn gone(action: &str) -> Error {
    Error::new(ErrorKind::StaleVersion, action, "the object was deleted")
}

/// The pinned version is gone.
pub(crate) fn changed(action: &str) -> Error {
    Error::new(ErrorKind::StaleVersion, action, "the object changed").advise("open it again")
}

pub(crate) fn no_such_part(action: &str, number: u32) -> Error {
    Error::new(ErrorKind::InvalidInput, action, "a part is not the one that was stored").fact("part", number)
}

/// The range holds something and lies inside the object.
pub(crate) fn range(action: &str, range: ByteRange, size: u64) -> Result<()> {
    if range.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, action, "an empty range was asked for"));
    }
    if range.end > size {
        return Err(Error::new(ErrorKind::InvalidInput, action, "the range is not inside the object")
            .fact("asked", format!("{}..{}", range.start, range.end))
            .fact("size", size));
    }
    Ok(())
}

/// A read's version is the current one.
pub(crate) fn pinned(action: &str, pinned: Option<&Version>, current: &Version) -> Result<()> {
    match pinned {
        Some(pinned) if pinned != current => Err(changed(action)),
        _ => Ok(()),
    }
}

/// A write's condition holds for the current version (`None`: no object).
pub(crate) fn precondition(action: &str, precondition: &Precondition, current: Option<&Version>) -> Result<()> {
    let conflict = |reason: &str| Err(Error::new(ErrorKind::Conflict, action, reason));
    match (precondition, current) {
        (Precondition::None, _) | (Precondition::Absent, None) => Ok(()),
        (Precondition::Absent, Some(_)) => conflict("the object exists already"),
        (Precondition::Version(wanted), Some(current)) if wanted == current => Ok(()),
        (Precondition::Version(_), Some(_)) => conflict("the object is not what the write was decided on"),
        (Precondition::Version(_), None) => conflict("the object is gone"),
    }
}

pub(crate) fn key(action: &str, key: &ObjectKey) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, action, "the key is empty"));
    }
    Ok(())
}

pub(crate) fn limit(action: &str, limit: usize) -> Result<()> {
    if limit == 0 {
        return Err(Error::new(ErrorKind::InvalidInput, action, "a page of no entries was asked for"));
    }
    Ok(())
}

pub(crate) fn part_number(action: &str, number: u32) -> Result<()> {
    if PART_NUMBERS.contains(&number) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, action, "part numbers are 1 to 10,000").fact("part", number))
}

/// There are parts and their numbers ascend.
pub(crate) fn parts_ascend(action: &str, parts: &[CompletedPart]) -> Result<()> {
    if parts.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, action, "an upload without parts cannot be completed"));
    }
    for part in parts {
        part_number(action, part.number)?;
    }
    if parts.windows(2).any(|pair| pair[0].number >= pair[1].number) {
        return Err(Error::new(ErrorKind::InvalidInput, action, "part numbers must ascend"));
    }
    Ok(())
}

/// A key as a continuation; any bytes survive it.
pub(crate) fn encode_token(key: &ObjectKey) -> String {
    percent_encode(key.as_bytes(), NON_ALPHANUMERIC).to_string()
}

/// The key in a continuation of ours.
pub(crate) fn decode_token(token: &str) -> ObjectKey {
    ObjectKey::new(percent_decode_str(token).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_comes_back_from_its_continuation(key in proptest::collection::vec(any::<u8>(), 0..64)) {
            let key = ObjectKey::new(key);
            prop_assert_eq!(decode_token(&encode_token(&key)), key);
        }

        #[test]
        fn any_text_as_a_continuation_is_some_key(text in "(%|[0-9A-F]|\\PC){0,20}") {
            let _ = decode_token(&text);
        }
    }
}
