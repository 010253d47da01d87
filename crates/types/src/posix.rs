//! What POSIX programs say of a file besides its bytes. Kept in the metadata of its object, which other programs of
//! stores pass over.

use serde::{Deserialize, Serialize};

/// Permissions that are kept: no others mean anything on a mount that runs nobody's rights.
const MODE_MASK: u32 = 0o777;

/// Mode, owner and time of a file, as far as somebody has said them; where nobody has, a mount shows its own and the time
/// of the version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Posix {
    /// Permission bits, `0o777` at most.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Modification time, nanoseconds since the Unix epoch.
    pub modified_ns: Option<i64>,
}

impl Posix {
    /// Name of the metadata entry that holds it.
    pub const METADATA: &str = "penstock-posix";

    /// Whether nobody has said anything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The permissions of a file mode, as they are kept.
    #[allow(clippy::cast_possible_truncation, reason = "nine bits are left")]
    pub fn permissions(mode: u32) -> u16 {
        (mode & MODE_MASK) as u16
    }

    /// What is said after `change` was said as well.
    #[must_use]
    pub fn merged(self, change: Self) -> Self {
        Self {
            mode: change.mode.or(self.mode),
            uid: change.uid.or(self.uid),
            gid: change.gid.or(self.gid),
            modified_ns: change.modified_ns.or(self.modified_ns),
        }
    }

    /// What of this is not so already where `known` is.
    #[must_use]
    pub fn beyond(self, known: Self) -> Self {
        fn other<T: PartialEq>(said: Option<T>, known: Option<T>) -> Option<T> {
            if said == known { None } else { said }
        }
        Self {
            mode: other(self.mode, known.mode),
            uid: other(self.uid, known.uid),
            gid: other(self.gid, known.gid),
            modified_ns: other(self.modified_ns, known.modified_ns),
        }
    }

    /// As it is after the content was written anew.
    #[must_use]
    pub fn without_time(self) -> Self {
        Self { modified_ns: None, ..self }
    }

    /// The modification time, milliseconds since the Unix epoch.
    pub fn modified_ms(&self) -> Option<i64> {
        self.modified_ns.map(|ns| ns.div_euclid(1_000_000))
    }

    /// What the metadata of an object says; entries that are not known are passed over.
    pub fn of(metadata: &[(String, String)]) -> Self {
        let text = metadata.iter().find(|(name, _)| name == Self::METADATA).map(|(_, value)| value.as_str());
        let mut posix = Self::default();
        for (name, value) in text.unwrap_or_default().split(' ').filter_map(|entry| entry.split_once('=')) {
            match name {
                "mode" => posix.mode = u32::from_str_radix(value, 8).ok().map(Self::permissions),
                "uid" => posix.uid = value.parse().ok(),
                "gid" => posix.gid = value.parse().ok(),
                "mtime" => posix.modified_ns = value.parse().ok(),
                _ => {}
            }
        }
        posix
    }

    /// Has metadata say this, and nothing where there is nothing to say.
    pub fn describe(&self, metadata: &mut Vec<(String, String)>) {
        metadata.retain(|(name, _)| name != Self::METADATA);
        let entries = [
            self.mode.map(|mode| format!("mode={mode:o}")),
            self.uid.map(|uid| format!("uid={uid}")),
            self.gid.map(|gid| format!("gid={gid}")),
            self.modified_ns.map(|ns| format!("mtime={ns}")),
        ];
        let entries: Vec<String> = entries.into_iter().flatten().collect();
        if !entries.is_empty() {
            metadata.push((Self::METADATA.to_owned(), entries.join(" ")));
        }
    }

    /// The metadata that says this.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let mut metadata = Vec::new();
        self.describe(&mut metadata);
        metadata
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn metadata_says_it_in_one_entry_and_other_entries_stay() {
        let other = ("author".to_owned(), "somebody".to_owned());
        let mut metadata = vec![other.clone()];
        let posix = Posix { mode: Some(0o755), uid: Some(1000), gid: None, modified_ns: Some(-1_500_000_000) };
        posix.describe(&mut metadata);
        assert_eq!(metadata[1], ("penstock-posix".to_owned(), "mode=755 uid=1000 mtime=-1500000000".to_owned()));
        assert_eq!((Posix::of(&metadata), posix.modified_ms()), (posix, Some(-1500)));
        Posix::default().describe(&mut metadata);
        assert_eq!(metadata, [other]);
        assert_eq!(Posix::permissions(0o10_4755), 0o755);
    }

    #[test]
    fn what_is_not_known_is_passed_over() {
        let said = |value: &str| Posix::of(&[(Posix::METADATA.to_owned(), value.to_owned())]);
        assert_eq!(said("mode=4640 acl=x uid= gid=7"), Posix { mode: Some(0o640), gid: Some(7), ..Posix::default() });
        assert_eq!(said("mode=9 nonsense"), Posix::default());
    }

    proptest! {
        #[test]
        fn it_comes_back_from_metadata_and_what_was_said_last_counts(
            mode in proptest::option::of(0u16..0o1000),
            uid in proptest::option::of(any::<u32>()),
            gid in proptest::option::of(any::<u32>()),
            modified_ns in proptest::option::of(any::<i64>()),
        ) {
            let posix = Posix { mode, uid, gid, modified_ns };
            prop_assert_eq!(Posix::of(&posix.metadata()), posix);
            prop_assert_eq!(posix.merged(Posix::default()), posix);
            prop_assert_eq!(Posix::default().merged(posix), posix);
            prop_assert!(posix.beyond(posix).is_empty());
        }
    }
}
