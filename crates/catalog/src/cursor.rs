//! Where a listing goes on, as text that clients hand back. Opaque to them; anything else they hand back is refused.

use penstock_types::{Error, ErrorKind, Result};

use crate::keymap;

/// A position in one generation of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cursor {
    /// The listing that was being read; another one is read from the same key when it is gone.
    pub(crate) generation: u64,
    /// Full key to go on from.
    pub(crate) key: Vec<u8>,
    /// Whether the entry at `key` itself is still to come.
    pub(crate) inclusive: bool,
    /// Lengths of the beginnings of `key` that were shown as directories already, ascending.
    pub(crate) shown: Vec<usize>,
}

impl Cursor {
    /// The beginning of what `prefix` holds.
    pub(crate) fn start(generation: u64, prefix: &[u8]) -> Self {
        Self { generation, key: prefix.to_vec(), inclusive: true, shown: Vec::new() }
    }

    /// As text.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{:x}{}", self.generation, if self.inclusive { '=' } else { '+' });
        for (position, length) in self.shown.iter().enumerate() {
            if position > 0 {
                text.push(',');
            }
            text.push_str(&length.to_string());
        }
        text.push(':');
        keymap::push_escaped(&self.key, &mut text);
        text
    }

    /// From text.
    ///
    /// # Errors
    /// `InvalidInput` for text that is no cursor.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::read(text).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "go on with a listing", format!("{text:?} is no position in one"))
                .advise("pass what the page before gave as its next position")
        })
    }

    fn read(text: &str) -> Option<Self> {
        let mark = text.find(['=', '+'])?;
        let generation = u64::from_str_radix(&text[..mark], 16).ok()?;
        let (shown, key) = text[mark + 1..].split_once(':')?;
        let key = keymap::unescaped(key)?;
        let shown = if shown.is_empty() {
            Vec::new()
        } else {
            shown.split(',').map(|length| length.parse().ok()).collect::<Option<Vec<usize>>>()?
        };
        let sorted = shown.is_sorted() && shown.last().is_none_or(|&length| length <= key.len());
        let inclusive = text.as_bytes()[mark] == b'=';
        sorted.then_some(Self { generation, key, inclusive, shown })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_comes_back_from_its_text(
            generation in any::<u64>(),
            key in proptest::collection::vec(any::<u8>(), 0..40),
            inclusive in any::<bool>(),
            shown in proptest::collection::btree_set(0usize..40, 0..4),
        ) {
            let shown = shown.into_iter().filter(|&length| length <= key.len()).collect();
            let cursor = Cursor { generation, key, inclusive, shown };
            prop_assert_eq!(Cursor::parse(&cursor.text()), Ok(cursor));
        }

        #[test]
        fn arbitrary_text_is_refused_or_a_cursor(text in "\\PC{0,30}|[0-9a-f]{1,17}[=+][0-9,]{0,9}:.{0,9}") {
            if let Err(error) = Cursor::parse(&text) {
                prop_assert_eq!(error.kind(), ErrorKind::InvalidInput);
            }
        }
    }

    /// Cursors as clients hold them, and texts that are none.
    #[test]
    fn the_corpus_of_cursors_is_read_or_refused_as_it_must_be() {
        penstock_testkit::corpus::check(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/cursors"), |text| {
            std::str::from_utf8(text).is_ok_and(|text| Cursor::parse(text).is_ok_and(|cursor| cursor.text() == text))
        });
    }
}
