//! Making the cache smaller because somebody asked, not because something needs the room.

use std::sync::Arc;

use penstock_types::Result;

use crate::cache::Cache;
use crate::tier::Tier;

impl Cache {
    /// Evicts, in the order in which eviction would, until at most `target_bytes` are held; the slowest tier gives
    /// first. What is pinned, lent or being filled stays, even where the target is missed for it. Returns the bytes
    /// that came free; [`Cache::usage`] says what is left.
    ///
    /// # Errors
    /// `Disk` when a file cannot be unlinked.
    pub fn shrink(&self, target_bytes: u64) -> Result<u64> {
        let before = self.held();
        for tier in self.tiers.iter().rev() {
            self.shrink_tier(tier, target_bytes)?;
        }
        Ok(before.saturating_sub(self.held()))
    }

    fn shrink_tier(&self, tier: &Arc<Tier>, target_bytes: u64) -> Result<()> {
        while self.held() > target_bytes && tier.used() > 0 {
            if !self.make_room(tier)? && !self.load_rows() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn held(&self) -> u64 {
        self.tiers.iter().map(|tier| tier.used()).sum()
    }
}
