//! Giving a live file to a kernel that writes it by itself, and taking it back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use penstock_types::Durability;

use crate::live::content::Content;
use crate::live::file::LiveFile;
use crate::live::lent::Lent;

impl LiveFile {
    /// Gives the file to a kernel that reads and writes it by itself: where that has begun, or where it may begin and
    /// nobody else has it. Blocks while a commit is under way.
    pub(crate) fn lend(self: &Arc<Self>, begins: bool) -> Option<Arc<OwnedFd>> {
        let engine = self.engine().ok()?;
        let mut state = self.write_state();
        let is_local = state.place.as_ref().is_some_and(|place| place.durability == Durability::Local);
        // What was there before is replaced as a whole, or not at all.
        let is_new = state.begun_ms.is_none() && state.failed.is_none() && state.writers == 1;
        if let Content::Lent(lent) = &mut state.content {
            lent.offers += 1;
            return Some(Arc::clone(lent.descriptor()));
        }
        let is_on_disk = !state.content.is_in_memory();
        if !(begins && is_new && is_on_disk && is_local && engine.live.may_lend(&engine.stage)) {
            return None;
        }
        let descriptor = Arc::clone(state.content.descriptor());
        match std::mem::replace(&mut state.content, Content::Committed(Arc::clone(&descriptor))) {
            Content::Draft(draft) => state.content = Content::Lent(Lent::new(draft)),
            content => {
                state.content = content;
                return None;
            }
        }
        engine.live.note_lent(self);
        Some(descriptor)
    }

    /// What a kernel reads and writes by itself.
    pub(crate) fn lent(&self) -> Option<Arc<OwnedFd>> {
        match &self.read_state().content {
            Content::Lent(lent) => Some(Arc::clone(lent.descriptor())),
            _ => None,
        }
    }

    /// A kernel did not take what it was offered.
    pub(crate) fn take_back(&self) {
        let mut state = self.write_state();
        let Content::Lent(lent) = &mut state.content else { return };
        lent.offers -= 1;
        if lent.offers > 0 || lent.draft().is_none() {
            return;
        }
        let descriptor = Arc::clone(lent.descriptor());
        let content = std::mem::replace(&mut state.content, Content::Committed(descriptor));
        if let Content::Lent(lent) = content
            && let Some(draft) = lent.into_draft()
        {
            state.content = Content::Draft(draft);
        }
    }

    /// Takes room for what a kernel has written, whether there is any, and has the disk begin with it.
    pub(in crate::live) fn look_at_lent(&self) {
        let Ok(state) = self.state.try_read() else { return };
        let Content::Lent(lent) = &state.content else { return };
        let (Some(draft), Ok((size, _))) = (lent.draft(), self.facts_of(&state)) else { return };
        draft.force_grow(size);
        self.begin_sync(lent.descriptor(), size);
    }
}
