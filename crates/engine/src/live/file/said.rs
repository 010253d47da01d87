//! What is said of a live file besides its bytes.

use std::sync::Arc;

use penstock_stage::{Base, Change};
use penstock_types::{ErrorKind, Posix, Result, TreePath};

use crate::live::file::{LiveFile, State};

impl LiveFile {
    /// Says something of it besides its bytes, which goes along with the next commit. Waits where one is under way.
    pub(crate) fn set_posix(&self, posix: Posix) {
        let State { adorned, content, .. } = &mut *self.write_state();
        adorned.say(posix, content);
    }

    /// As [`LiveFile::set_posix`], where it is new.
    pub(crate) fn set_posix_of_new(&self, posix: Posix) {
        let State { adorned, content, place, .. } = &mut *self.write_state();
        if place.as_ref().is_some_and(|place| place.base == Base::Absent) {
            adorned.say(posix, content);
        }
    }

    /// What is shown of it: bytes, time, what was said. Waits where a commit is under way.
    ///
    /// # Errors
    /// `Disk`.
    pub(crate) fn shown(&self) -> Result<(u64, i64, Posix)> {
        self.shown_of(&self.read_state())
    }

    /// As [`LiveFile::shown`], without waiting: `None` where it would have to.
    pub(crate) fn shown_now(&self) -> Option<Result<(u64, i64, Posix)>> {
        Some(self.shown_of(&*self.state.try_read().ok()?))
    }

    fn shown_of(&self, state: &State) -> Result<(u64, i64, Posix)> {
        let (size, modified_ms) = self.facts_of(state)?;
        Ok((size, modified_ms, state.adorned.said(&state.content)))
    }

    /// Commits what was said of a content that is as it was committed or found, where that need not be committed again.
    pub(super) fn commit_posix(&self, state: &mut State) -> Result<Option<(TreePath, Arc<Change>)>> {
        let (engine, (size, _)) = (self.engine()?, self.facts_of(state)?);
        if state.is_changed() {
            return Ok(None);
        }
        let State { place: Some(place), adorned, under, begun_ms, .. } = state else { return Ok(None) };
        let base = engine.base_now(place);
        if base == Base::Absent {
            return Ok(None);
        }
        let change = match engine.adorn_now(place, base, (size, begun_ms.unwrap_or_default()), adorned.news()) {
            // Then its content is committed with it.
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Unsupported) => return Ok(None),
            change => change?,
        };
        engine.note_own(place, &change);
        under.iter_mut().for_each(|under| under.adorned(&change));
        adorned.committed();
        Ok(Some((place.path.clone(), change)))
    }
}
