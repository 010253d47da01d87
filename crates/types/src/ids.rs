//! Names of things. A new type each, so that a key can never stand where a version is meant.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Identity of a source: service, endpoint, bucket or directory, account. Never prefix or credentials.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct SourceId(pub Arc<str>);

/// Stable id of an attachment; survives detach and attach of its document.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct AttachmentId(pub Arc<str>);

/// Full key of an object in its source. Bytes, because stores admit keys that are not UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectKey(Bytes);

/// Opaque version token: an ETag without quotes or a generation; for `file` device, inode, times and size.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Version(pub Arc<str>);

/// One immutable content: (source, key, version) never changes meaning.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ObjectId {
    /// Where it lives.
    pub source: SourceId,
    /// Its full key there.
    pub key: ObjectKey,
    /// Which content of that key.
    pub version: Version,
}

impl ObjectKey {
    /// Takes the bytes as they are; any byte string is a key.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The raw bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key as text where it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// This key followed by `suffix`.
    pub fn join(&self, suffix: &[u8]) -> Self {
        let mut joined = Vec::with_capacity(self.0.len() + suffix.len());
        joined.extend_from_slice(&self.0);
        joined.extend_from_slice(suffix);
        Self(joined.into())
    }

    /// Whether no byte is in it; the empty key is the prefix of everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Smallest key greater than every key that starts with this prefix; `None` when there is none.
    pub fn prefix_end(&self) -> Option<Self> {
        let mut end = self.0.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Some(Self(end.into()));
            }
        }
        None
    }
}

impl From<&str> for ObjectKey {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl fmt::Display for ObjectKey {
    /// Text where it is text; other bytes as `\xNN`, so that logs and errors stay one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({self})")
    }
}

impl Serialize for ObjectKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for ObjectKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Vec::<u8>::deserialize(deserializer)?.into()))
    }
}

macro_rules! text_id {
    ($name:ident) => {
        impl $name {
            /// The token as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text_id!(SourceId);
text_id!(AttachmentId);
text_id!(Version);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prefix_end_is_the_first_key_after_every_key_with_the_prefix() {
        assert_eq!(ObjectKey::from("a/").prefix_end(), Some(ObjectKey::from("a0")));
        assert_eq!(ObjectKey::new(vec![b'a', 0xff]).prefix_end(), Some(ObjectKey::from("b")));
        assert_eq!(ObjectKey::new(vec![0xff]).prefix_end(), None);
        assert_eq!(ObjectKey::default().prefix_end(), None);
    }

    #[test]
    fn a_key_of_any_bytes_survives_postcard_like_encodings() {
        let key = ObjectKey::new(vec![0, 0xff, b'/', b'a']);
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<ObjectKey>(&text).unwrap(), key);
    }

    proptest! {
        #[test]
        fn a_key_is_below_the_end_of_a_prefix_exactly_when_it_has_it_or_sorts_before(
            prefix in proptest::collection::vec(prop_oneof![Just(0xff), Just(0xfe), any::<u8>()], 0..4),
            key in proptest::collection::vec(prop_oneof![Just(0xff), Just(0xfe), any::<u8>()], 0..6),
        ) {
            let end = ObjectKey::new(prefix.clone()).prefix_end();
            let below = end.is_none_or(|end| ObjectKey::new(key.clone()) < end);
            prop_assert_eq!(below, key.starts_with(&prefix) || key < prefix);
        }
    }
}
