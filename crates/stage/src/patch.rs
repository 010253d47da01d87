//! A file that lies over an object of the source: what was written of it is here, the rest is read from there, and copied
//! by the source itself when the file is uploaded.

use std::sync::{Arc, Mutex, MutexGuard};

use penstock_types::ByteRange;
use serde::{Deserialize, Serialize};

use crate::change::Original;

/// Which bytes of a file are its own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Patch {
    /// Below, the bytes are the object's where nothing was written; from there on they are the file's.
    kept: u64,
    /// What was written below: in order, apart from each other.
    written: Vec<ByteRange>,
}

impl Patch {
    /// So many ranges a file is made of at most: whoever writes more brings what lies between them.
    pub const RANGES_MAX: usize = 10_000;

    /// Of a file that is as the object, `size` bytes long.
    pub fn over(size: u64) -> Self {
        Self { kept: size, written: Vec::new() }
    }

    /// Notes that a range is the file's own.
    pub fn write(&mut self, range: ByteRange) {
        let range = range.intersect(ByteRange::new(0, self.kept));
        if range.is_empty() {
            return;
        }
        let first = self.written.partition_point(|known| known.end < range.start);
        let last = self.written.partition_point(|known| known.start <= range.end);
        let joined = self.written[first..last]
            .iter()
            .fold(range, |joined, known| ByteRange::new(joined.start.min(known.start), joined.end.max(known.end)));
        self.written.splice(first..last, [joined]);
    }

    /// Notes that the file ends, or ended once, at `size`: nothing of the object is kept behind.
    pub fn cut(&mut self, size: u64) {
        self.kept = self.kept.min(size);
        self.written.retain_mut(|known| {
            *known = known.intersect(ByteRange::new(0, size));
            !known.is_empty()
        });
    }

    /// Whether it can be what became of `before` by writing and cutting: for what somebody else says.
    pub fn may_follow(&self, before: &Self) -> bool {
        let is_ordered = self.written.windows(2).all(|pair| pair[0].end < pair[1].start);
        let is_within = |range: &ByteRange| range.start < range.end && range.end <= self.kept;
        let has = |range: &ByteRange| self.own_bytes(*range) == range.len();
        self.kept <= before.kept
            && self.written.len() <= Self::RANGES_MAX
            && is_ordered
            && self.written.iter().all(is_within)
            && before.written.iter().all(has)
    }

    /// Whether nothing of the object is needed.
    pub fn is_whole(&self) -> bool {
        self.written.iter().map(ByteRange::len).sum::<u64>() == self.kept
    }

    /// How many ranges it is made of.
    pub fn ranges(&self) -> usize {
        self.written.len()
    }

    /// A range of the file in pieces, in order, each with whether it is the file's own.
    pub fn pieces(&self, range: ByteRange) -> Vec<(ByteRange, bool)> {
        let mut pieces = Vec::new();
        let mut add = |start: u64, end: u64, own| {
            let piece = ByteRange::new(start, end.max(start)).intersect(range);
            if !piece.is_empty() {
                pieces.push((piece, own));
            }
        };
        let mut at = 0;
        let first = self.written.partition_point(|known| known.end <= range.start);
        for known in self.written[first..].iter().take_while(|known| known.start < range.end) {
            add(at, known.start, false);
            add(known.start, known.end, true);
            at = known.end;
        }
        add(at, self.kept, false);
        add(self.kept, range.end, true);
        pieces
    }

    /// Bytes of a range that are the file's own.
    pub fn own_bytes(&self, range: ByteRange) -> u64 {
        self.pieces(range).iter().filter(|(_, own)| *own).map(|(piece, _)| piece.len()).sum()
    }
}

/// The patch of a draft: of those who write to it, and of those who read it meanwhile and afterwards.
#[derive(Clone, Debug)]
pub struct Over {
    /// What it lies over: the version that is edited, or the change of it that was committed last.
    pub original: Original,
    patch: Arc<Mutex<Patch>>,
}

impl Over {
    /// A patch of its own over `original`.
    pub fn new(original: Original, patch: Patch) -> Self {
        Self { original, patch: Arc::new(Mutex::new(patch)) }
    }

    /// The patch as it is.
    pub fn patch(&self) -> MutexGuard<'_, Patch> {
        self.patch.lock().expect("no panic while a patch is held")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, u64),
        Cut(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..120, 0u64..40).prop_map(|(start, length)| Step::Write(start, start + length)),
            1 => (0u64..120).prop_map(Step::Cut),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_or_cut_off_is_the_files_own_and_nothing_else(
            size in 0u64..100, steps in prop::collection::vec(step(), 0..20), ask in (0u64..150, 0u64..150),
        ) {
            let (mut patch, mut own) = (Patch::over(size), [false; 300]);
            own[usize::try_from(size).unwrap()..].fill(true);
            for step in steps {
                match step {
                    Step::Write(start, end) => {
                        patch.write(ByteRange::new(start, end));
                        own[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(true);
                    }
                    Step::Cut(at) => {
                        patch.cut(at);
                        own[usize::try_from(at).unwrap()..].fill(true);
                    }
                }
            }
            let range = ByteRange::new(ask.0.min(ask.1), ask.0.max(ask.1));
            let mut at = range.start;
            for (piece, is_own) in patch.pieces(range) {
                prop_assert_eq!(piece.start, at);
                prop_assert!(!piece.is_empty());
                prop_assert!((piece.start..piece.end).all(|at| own[usize::try_from(at).unwrap()] == is_own));
                at = piece.end;
            }
            prop_assert_eq!(at, range.end);
            prop_assert!(patch.may_follow(&Patch::over(size)) && patch.may_follow(&patch));
            prop_assert_eq!(patch.is_whole(), own.iter().all(|own| *own));
            prop_assert!(patch.written.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
