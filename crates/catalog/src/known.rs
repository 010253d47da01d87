//! What stored listings say of a name. No requests.

use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{ObjectKey, Result};

use crate::Item;
use crate::chunk::CHUNK_ENTRIES;
use crate::keymap::{self, PIECE, Place, Shape};
use crate::scan::{Seen, Sight, Step, scan};
use crate::shadows::directory_of;
use crate::store::{Kind, Listing, Store};
use crate::timeline::{LONG_AGO, Moment};

/// What is known of a name, and since when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fact {
    pub(crate) answer: Answer,
    /// When the request that told it was sent.
    pub(crate) sent: Moment,
}

/// What a name is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Found(Item),
    /// Nothing has the name.
    Absent,
    /// Nothing has the name, and something above it is a file.
    BelowFile,
}

impl Answer {
    /// Whether both say the same; of one version the attributes are the same however they were learnt.
    pub(crate) fn agrees(&self, other: &Answer) -> bool {
        match (self, other) {
            (
                Answer::Found(Item::File { attributes: one, .. }),
                Answer::Found(Item::File { attributes: other, .. }),
            ) => one.version == other.version,
            (one, other) => one == other,
        }
    }
}

/// A complete listing that covers a directory.
pub(crate) struct Covering {
    pub(crate) kind: Kind,
    pub(crate) prefix: Vec<u8>,
    pub(crate) listing: Listing,
    pub(crate) store: Arc<Store>,
    pub(crate) sight: Sight,
}

impl Covering {
    /// How many entries of the listing are in a directory, about; counts no further than `limit` and a chunk.
    pub(crate) fn entries_in(&self, directory: &[u8], limit: u64) -> Result<u64> {
        if self.kind == Kind::Directory {
            return Ok(self.listing.entries);
        }
        let mut chunks = 1;
        for first in self.sight.reader.first_keys_from(self.listing.generation, directory)? {
            if !first?.starts_with(directory) || chunks * (CHUNK_ENTRIES as u64) > limit {
                break;
            }
            chunks += 1;
        }
        Ok((chunks * CHUNK_ENTRIES as u64).min(self.listing.entries))
    }
}

/// Every complete listing that shows what is in the directory whose keys begin with `prefix`.
pub(crate) fn covering(store: &Arc<Store>, scope: u32, prefix: &[u8]) -> Result<Vec<Covering>> {
    let reader = Arc::new(store.reader()?);
    let mut found = Vec::new();
    let trees = ancestors(prefix).map(|prefix| (Kind::Tree, prefix));
    for (kind, prefix) in std::iter::once((Kind::Directory, prefix)).chain(trees) {
        if let Some(listing) = reader.listing(scope, kind, prefix)? {
            let believed = listing.epoch == store.epoch();
            let sight = Sight {
                reader: reader.clone(),
                generation: listing.generation,
                sent: if believed { listing.sent } else { LONG_AGO },
                below: None,
                overlay: None,
            };
            found.push(Covering { kind, prefix: prefix.to_vec(), listing, store: store.clone(), sight });
        }
    }
    Ok(found)
}

/// The prefix itself and those of the directories above it.
pub(crate) fn ancestors(prefix: &[u8]) -> impl Iterator<Item = &[u8]> {
    let inner = prefix.split_last().map_or(prefix, |(_, inner)| inner);
    let above = (0..=inner.len()).rev().filter(|&at| at == 0 || inner[at - 1] == b'/').map(|at| &prefix[..at]);
    std::iter::once(prefix).chain(above.filter(|above| above.len() < prefix.len()))
}

/// What a complete listing, with the changes laid over it, says of a place below the `attached` first bytes of its key.
pub(crate) fn look_up(sight: &Sight, place: &Place, attached: &[u8]) -> Result<Fact> {
    let full = |key: &[u8]| [attached, key].concat();
    let (found, sent) = match place {
        Place::Root => (Some(Item::Directory), None),
        Place::Name(key) => look_up_name(sight, &full(key))?,
        Place::Beside(key) => match object_at(sight, &full(key))? {
            Some((item, true, sent)) => (item, Some(sent)),
            _ => (None, None),
        },
        Place::Piece(bytes) => (has_piece(sight, &full(bytes), attached.len())?.then_some(Item::Directory), None),
    };
    // The listing as a whole is as old as its first page; a page of it may be younger.
    let sent = sent.filter(|_| sight.sent != LONG_AGO).unwrap_or(sight.sent);
    match (found, place) {
        (Some(item), _) => Ok(Fact { answer: Answer::Found(item), sent }),
        (None, Place::Name(key) | Place::Beside(key)) if is_below_file(sight, key, attached)? => {
            Ok(Fact { answer: Answer::BelowFile, sent: sight.sent })
        }
        (None, _) => Ok(Fact { answer: Answer::Absent, sent: sight.sent }),
    }
}

/// Whether any key begins with `prefix`.
pub(crate) fn holds_any(sight: &Sight, prefix: &[u8]) -> Result<bool> {
    let mut found = false;
    scan(sight, prefix, true, |seen| {
        found = seen.key.starts_with(prefix);
        Ok(Step::Stop)
    })?;
    Ok(found)
}

fn look_up_name(sight: &Sight, key: &[u8]) -> Result<(Option<Item>, Option<Moment>)> {
    match object_at(sight, key)? {
        Some((_, true, sent)) => Ok((Some(Item::Directory), Some(sent))),
        Some((item, false, sent)) => Ok((item, Some(sent))),
        None => Ok((holds_any(sight, &directory_of(key))?.then_some(Item::Directory), None)),
    }
}

type Object = (Option<Item>, bool, Moment);

/// The object of exactly that key, whether it lies beside a directory, and since when that is known. A marker is no
/// item.
fn object_at(sight: &Sight, key: &[u8]) -> Result<Option<Object>> {
    let mut found = None;
    scan(sight, key, true, |seen| {
        if seen.key == key && !seen.is_prefix() {
            found = Some((item_at(seen)?, seen.is_beside(), seen.sent));
        }
        Ok(Step::Stop)
    })?;
    Ok(found)
}

fn item_at(seen: &Seen<'_>) -> Result<Option<Item>> {
    if seen.is_marker()? {
        return Ok(None);
    }
    // A copy: what is kept of one name must not keep the keys of its whole chunk.
    let key = seen.at.clone().unwrap_or_else(|| ObjectKey::new(Bytes::copy_from_slice(&seen.key)));
    Ok(seen.attributes()?.map(|attributes| Item::File { key, attributes }))
}

/// Whether a component begins with these bytes and is too long for one name.
fn has_piece(sight: &Sight, bytes: &[u8], attached: usize) -> Result<bool> {
    let base = bytes[attached..].iter().rposition(|&byte| byte == b'/').map_or(attached, |slash| attached + slash + 1);
    let mut found = false;
    scan(sight, bytes, true, |seen| {
        if !seen.key.starts_with(bytes) {
            return Ok(Step::Stop);
        }
        let tail = &seen.key[base..];
        let slash = tail.iter().position(|&byte| byte == b'/');
        let component = &tail[..slash.unwrap_or(tail.len())];
        let shape = if slash.is_none() && seen.is_beside() { Shape::Beside } else { Shape::Plain };
        found = keymap::is_long(component, shape) && component.len() > bytes.len() - base;
        Ok(if found { Step::Stop } else { Step::Next })
    })?;
    debug_assert!((bytes.len() - base).is_multiple_of(PIECE), "a piece place ends with whole pieces");
    Ok(found)
}

/// Whether an object, and no directory, has the name of something above the key.
fn is_below_file(sight: &Sight, key: &[u8], attached: &[u8]) -> Result<bool> {
    for slash in key.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at) {
        let above = [attached, &key[..slash]].concat();
        if let Some((item, beside, _)) = object_at(sight, &above)? {
            return Ok(item.is_some() && !beside);
        }
        if holds_any(sight, &directory_of(&above))? {
            return Ok(false);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ancestors_of_a_prefix_are_the_directories_above_it() {
        let of = |prefix: &'static str| -> Vec<&str> {
            ancestors(prefix.as_bytes()).map(|prefix| std::str::from_utf8(prefix).unwrap()).collect()
        };
        assert_eq!(of("a/b/"), ["a/b/", "a/", ""]);
        assert_eq!(of("a//"), ["a//", "a/", ""]);
        assert_eq!(of("a/nnn"), ["a/nnn", "a/", ""]);
        assert_eq!(of("/"), ["/", ""]);
        assert_eq!(of(""), [""]);
    }
}
