//! Notices, while keys stream by in order, the objects whose name a directory takes: `a` where `a/…` follows, however
//! far behind (`a`, `a-1`, `a-2`, …, `a/b`). Pure; holds at most one object per length of a key.

/// Objects that a directory of their name may still follow, each a beginning of the next.
#[derive(Default, Debug)]
pub(crate) struct Shadows {
    open: Vec<Vec<u8>>,
}

impl Shadows {
    /// Takes the next key, which is greater than every one before, and calls `beside` for each object whose directory
    /// it proves. `object` tells keys of objects from common prefixes.
    pub(crate) fn take(&mut self, key: &[u8], object: bool, mut beside: impl FnMut(&[u8])) {
        self.settle(key, &mut beside);
        if object {
            self.open.push(key.to_vec());
        }
    }

    /// The first object of which it is not known whether a directory takes its name.
    pub(crate) fn first(&self) -> Option<&[u8]> {
        self.open.first().map(Vec::as_slice)
    }

    /// An object was settled by other means.
    pub(crate) fn settle_by_hand(&mut self, object: &[u8]) {
        self.open.retain(|open| open != object);
    }

    /// The objects that are not settled.
    pub(crate) fn into_open(self) -> Vec<Vec<u8>> {
        self.open
    }

    fn settle(&mut self, key: &[u8], beside: &mut impl FnMut(&[u8])) {
        while let Some(object) = self.open.last() {
            let next = key.strip_prefix(object.as_slice()).and_then(|rest| rest.first());
            match next {
                Some(&byte) if byte < b'/' => return,
                Some(b'/') => beside(object),
                _ => {}
            }
            self.open.pop();
        }
    }
}

/// What the keys below an object's name begin with.
pub(crate) fn directory_of(object: &[u8]) -> Vec<u8> {
    [object, b"/"].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_object_with_a_directory_of_its_name_is_noticed_and_no_other(
            keys in proptest::collection::btree_set("[a./-]{1,6}".prop_map(String::into_bytes), 0..40),
        ) {
            let mut shadows = Shadows::default();
            let mut noticed = BTreeSet::new();
            for key in &keys {
                shadows.take(key, true, |object| {
                    noticed.insert(object.to_vec());
                });
                let settled = |object: &Vec<u8>| directory_of(object) <= *key;
                prop_assert!(shadows.first().is_none_or(|first| !settled(&first.to_vec()) || first == key));
                prop_assert!(keys.iter().filter(|open| *open <= key && !settled(open)).all(|open| shadows.open.contains(open)));
            }
            let expected = keys.iter().filter(|object| {
                let directory = directory_of(object);
                keys.iter().any(|key| key.starts_with(&directory))
            });
            prop_assert_eq!(noticed, expected.cloned().collect());
        }
    }
}
