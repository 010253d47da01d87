//! Names that were asked for one by one, as rows: what a listing would have said of them. Pure.

use penstock_types::{ObjectAttributes, ObjectKey};
use serde::{Deserialize, Serialize};

use crate::Item;
use crate::keymap::Place;
use crate::known::{Answer, Fact};
use crate::timeline::{LONG_AGO, Moment};

#[derive(Serialize, Deserialize)]
struct Row {
    sent: Moment,
    epoch: u32,
    /// `None` for a directory.
    attributes: Option<ObjectAttributes>,
}

/// Where the full key begins in the key of a row.
pub(crate) const KEY_AT: usize = 5;

/// The key of a place's row; `None` for places that are not kept by name.
pub(crate) fn row_key(scope: u32, attached: &[u8], place: &Place) -> Option<Vec<u8>> {
    let (shape, key) = match place {
        Place::Name(key) => (0, key),
        Place::Beside(key) => (1, key),
        Place::Root | Place::Piece(_) => return None,
    };
    Some([&scope.to_be_bytes()[..], &[shape], attached, key].concat())
}

/// A fact as a row; `None` for an absence, which is not believed for long enough to be worth one.
pub(crate) fn to_row(fact: &Fact, epoch: u32) -> Option<Vec<u8>> {
    let attributes = match &fact.answer {
        Answer::Found(Item::File { attributes, .. }) => Some(attributes.clone()),
        Answer::Found(Item::Directory) => None,
        Answer::Absent | Answer::BelowFile => return None,
    };
    postcard::to_stdvec(&Row { sent: fact.sent, epoch, attributes }).ok()
}

/// A fact from the row of the object with this full key; `None` for bytes that are no row.
pub(crate) fn from_row(row: &[u8], key: &[u8], epoch: u32) -> Option<Fact> {
    let row: Row = postcard::from_bytes(row).ok()?;
    let sent = if row.epoch == epoch { row.sent } else { LONG_AGO };
    let item = match row.attributes {
        Some(attributes) => Item::File { key: ObjectKey::new(key.to_vec()), attributes },
        None => Item::Directory,
    };
    Some(Fact { answer: Answer::Found(item), sent })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_fact_comes_back_from_its_row(sent in any::<i64>(), size in any::<u64>(), modified_ms in any::<i64>(), version in "\\PC{0,40}") {
            let attributes = ObjectAttributes { size, modified_ms, version: version.as_str().into() };
            let item = Item::File { key: ObjectKey::from("d/a"), attributes };
            for answer in [Answer::Found(item), Answer::Found(Item::Directory)] {
                let fact = Fact { answer, sent };
                let row = to_row(&fact, 7).expect("found things are kept");
                prop_assert_eq!(from_row(&row, b"d/a", 7), Some(fact.clone()));
                prop_assert_eq!(from_row(&row, b"d/a", 8), Some(Fact { sent: LONG_AGO, ..fact }));
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read(row in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = from_row(&row, b"d/a", 0);
        }
    }

    /// Rows as they are kept, and rows that announce what does not follow.
    #[test]
    fn the_corpus_of_names_is_read_or_refused_as_it_must_be() {
        penstock_testkit::corpus::check(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/names"), |row| {
            from_row(row, b"d/a", 7).is_some_and(|fact| to_row(&fact, 7).as_deref() == Some(row))
        });
    }
}
