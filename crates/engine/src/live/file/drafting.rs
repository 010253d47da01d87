//! Where a live file is written to next, where that cannot be where it is.

use penstock_types::Result;

use crate::live::content::{Content, copy_content};
use crate::live::file::{LiveFile, State};

impl LiveFile {
    /// Goes on in a file where it is written in memory.
    pub(super) fn leave_memory(&self) -> Result<()> {
        let is_there = self.read_state().content.is_in_memory();
        if is_there { self.make_draft() } else { Ok(()) }
    }

    /// What was committed stays as it is: goes on in a copy of it, or has a copy committed in its place. So does what
    /// becomes too large for memory.
    pub(super) fn make_draft(&self) -> Result<()> {
        let engine = self.engine()?;
        let mut state = self.write_state();
        let (size, _) = self.facts_of(&state)?;
        let State { content, under, place, target, adorned, in_memory, .. } = &mut *state;
        match content {
            Content::Draft(small) if small.is_in_memory() => {
                let draft = engine.stage.create(target)?;
                copy_content(small.descriptor(), &draft)?;
                draft.describe(adorned.said(content).without_time());
                (*content, *in_memory) = (Content::Draft(draft), None);
                Ok(())
            }
            Content::Draft(_) => Ok(()),
            Content::Lent(lent) if place.is_none() => {
                // Nobody can open what was committed.
                lent.is_shared = false;
                Ok(())
            }
            Content::Lent(_) => {
                drop(state);
                self.part().map(drop)
            }
            Content::Committed(committed) => {
                let draft = match under {
                    Some(under) => under.draft(&engine, target, committed, size)?,
                    None => {
                        let draft = engine.stage.create(target)?;
                        copy_content(committed, &draft)?;
                        draft
                    }
                };
                *content = Content::Draft(draft);
                Ok(())
            }
        }
    }
}
