//! What an extent costs its tier, and how it leaves: bytes are counted from before they are written until nobody has
//! the file any more.

use std::sync::atomic::Ordering;

use penstock_types::Result;

use crate::descriptors::KeptFile;
use crate::extent::{Extent, Life, State};
use crate::index::object_hash;
use crate::page_map::PageMap;

/// File systems give space in blocks of this many bytes.
pub const BLOCK: u64 = 4096;

impl Extent {
    /// Takes `bytes` of the budget for this extent; what was really taken, and whether that used the credit up.
    pub(crate) fn charge(&self, bytes: u64) -> Result<(u64, bool)> {
        let owner = self.owner()?;
        let used_credit = std::mem::take(&mut self.state().credit);
        let wanted = if used_credit { bytes - BLOCK } else { bytes };
        if let Err(error) = owner.reserve(&self.tier, wanted, self) {
            self.state().credit |= used_credit;
            return Err(error);
        }
        self.grow(wanted);
        Ok((wanted, used_credit))
    }

    pub(crate) fn refund(&self, bytes: u64, used_credit: bool) {
        let (bytes, charged) = {
            let mut state = self.state();
            state.credit |= used_credit;
            // What is gone may have given everything back already.
            let bytes = bytes.min(state.charged);
            state.charged -= bytes;
            (bytes, state.charged)
        };
        self.tier.release(bytes);
        self.tier.policy().resize(self.number, charged);
    }

    /// Charges one block for a file that is about to be made, and enters the queues of the tier.
    pub(crate) fn charge_file(&self) -> Result<()> {
        self.owner()?.reserve(&self.tier, BLOCK, self)?;
        self.state().credit = true;
        self.tier.policy().insert(self.number, object_hash(self.id()), 0, self.uses.clone());
        self.grow(BLOCK);
        Ok(())
    }

    /// Takes the charge of a file back that could not be made.
    pub(crate) fn refund_file(&self) {
        self.state().credit = false;
        self.refund(BLOCK, false);
        self.tier.policy().remove(self.number);
    }

    fn grow(&self, bytes: u64) {
        let charged = {
            let mut state = self.state();
            state.charged += bytes;
            state.charged
        };
        self.tier.policy().resize(self.number, charged);
    }

    /// Gives the budget of dropped pages back; one block stays charged for the file.
    pub(crate) fn discharge_pages(&self, dropped: &[u64]) {
        let bytes: u64 = dropped.iter().map(|page| self.map.page_range(*page).len().next_multiple_of(BLOCK)).sum();
        let mut state = self.state();
        state.durable = false;
        state.generation += 1;
        let mut bytes = bytes.min(state.charged);
        if bytes > 0 && bytes == state.charged {
            bytes -= BLOCK;
            state.credit = true;
        }
        state.charged -= bytes;
        let charged = state.charged;
        drop(state);
        self.tier.release(bytes);
        self.tier.policy().resize(self.number, charged);
    }

    /// Begins to leave, unless it is in use and `force` is not set. From here on nothing is lent or filled.
    pub(crate) fn begin_leave(&self, force: bool) -> bool {
        let mut state = self.state();
        let busy = state.leases > 0 || !state.filling.is_empty() || state.opening || state.verifying;
        if state.life != Life::Here || (busy && !force) {
            return false;
        }
        state.life = Life::Leaving;
        true
    }

    /// Stays after all: its file could not be unlinked.
    pub(crate) fn undo_leave(&self) {
        self.state().life = Life::Here;
        // A flush that came by meanwhile passed it over.
        self.changed.store(false, Ordering::Release);
        self.note_changed();
    }

    /// Is gone: its file is unlinked. The bytes that came free at once.
    pub(crate) fn finish_leave(&self) -> u64 {
        let mut state = self.state();
        state.life = Life::Gone;
        let charged = state.charged;
        let unused = self.settle(&mut state);
        let freed = charged - state.charged;
        drop(state);
        drop(unused);
        freed
    }

    /// Gives the budget back once the extent is gone and nobody uses its file; until then its bytes are reported as
    /// unlinked but lent. The files that are not needed any more: closing the last descriptor of an unlinked file
    /// frees its blocks, which takes time, so the caller drops them without the lock.
    #[must_use]
    pub(crate) fn settle(&self, state: &mut State) -> [Option<KeptFile>; 2] {
        if state.life != Life::Gone {
            return [None, None];
        }
        let unused = state.leases == 0 && state.filling.is_empty();
        if unused {
            self.tier.release(std::mem::take(&mut state.charged));
        }
        let before = std::mem::replace(&mut state.lent_unlinked, state.charged);
        self.tier.note_lent_unlinked(before, state.charged);
        if unused { [state.read.take(), state.write.take()] } else { [None, None] }
    }

    /// Whether its file was made.
    pub(crate) fn has_file(&self) -> bool {
        self.state().created
    }

    /// Leases that are held.
    pub(crate) fn leases(&self) -> u32 {
        self.state().leases
    }

    /// Bytes of the budget that it holds.
    pub(crate) fn charged(&self) -> u64 {
        self.state().charged
    }

    /// Closes the files that are kept open, unless it is lent, is being opened or was used since it was asked last.
    pub(crate) fn close_files(&self) -> bool {
        if self.touched.swap(false, Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state();
        if state.life != Life::Here {
            return true;
        }
        // A file that is being opened has its place in the ring already and is kept in a moment.
        if state.opening || (state.leases > 0 && state.read.is_some()) {
            return false;
        }
        let unused = [state.read.take(), state.write.take()];
        drop(state);
        drop(unused);
        true
    }

    pub(crate) fn end_lease(&self) {
        let mut state = self.state();
        state.leases -= 1;
        let unused = self.settle(&mut state);
        drop(state);
        drop(unused);
        self.tier.metrics.leases.dec();
    }
}

/// What the present pages of a map are charged with.
pub fn pages_charge(map: &PageMap) -> u64 {
    map.present_bytes().next_multiple_of(BLOCK)
}
