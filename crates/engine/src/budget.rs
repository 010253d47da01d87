//! The memory budget: what fills and answers hold together. Waiting for it is the back-pressure.

use std::sync::Arc;
use std::time::Duration;

use penstock_types::{Error, ErrorKind, Metrics, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in units, because a semaphore counts to 2^32.
const UNIT_BYTES: u64 = 64 * 1024;

/// A bounded number of bytes, shared by everything that holds content in memory.
#[derive(Clone)]
pub struct MemoryBudget {
    semaphore: Arc<Semaphore>,
    units: u32,
    metrics: Metrics,
}

/// Bytes taken from the budget; given back when dropped.
pub struct MemoryHold {
    _permit: OwnedSemaphorePermit,
    bytes: u64,
    metrics: Metrics,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64, metrics: Metrics) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self { semaphore: Arc::new(Semaphore::new(units as usize)), units, metrics }
    }

    /// The whole budget.
    pub fn bytes(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    /// Waits until `bytes` are free, at most `deadline`. More than the whole budget counts as the whole.
    pub async fn hold(&self, bytes: u64, deadline: Duration) -> Result<MemoryHold> {
        let units = self.units_of(bytes);
        let acquire = Arc::clone(&self.semaphore).acquire_many_owned(units);
        let permit = tokio::time::timeout(deadline, acquire).await.ok().and_then(std::result::Result::ok);
        permit.map(|permit| self.held(permit, units)).ok_or_else(|| self.in_use(bytes))
    }

    /// Takes `bytes` where they are free now.
    pub fn try_hold(&self, bytes: u64) -> Option<MemoryHold> {
        let units = self.units_of(bytes);
        Arc::clone(&self.semaphore).try_acquire_many_owned(units).ok().map(|permit| self.held(permit, units))
    }

    /// What is said to whom `bytes` cannot be given.
    pub fn in_use(&self, bytes: u64) -> Error {
        Error::new(ErrorKind::ResourceLimit, "reserve memory for a transfer", "the memory budget is in use")
            .advise("try again, or raise memory.budget")
            .fact("wanted_bytes", bytes)
            .fact("budget_bytes", self.bytes())
    }

    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.units)
    }

    fn held(&self, permit: OwnedSemaphorePermit, units: u32) -> MemoryHold {
        let bytes = u64::from(units) * UNIT_BYTES;
        self.metrics.memory_used_bytes.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        MemoryHold { _permit: permit, bytes, metrics: self.metrics.clone() }
    }
}

impl Drop for MemoryHold {
    fn drop(&mut self) {
        self.metrics.memory_used_bytes.dec_by(i64::try_from(self.bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_budget_holds_back_until_the_deadline_and_then_says_so() {
        let budget = MemoryBudget::new(1024 * 1024, Metrics::default());
        let held = budget.hold(1024 * 1024, Duration::from_secs(1)).await.unwrap();
        let refused = budget.hold(1, Duration::from_secs(1)).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ResourceLimit);
        drop(held);
        assert!(budget.hold(1, Duration::from_secs(1)).await.is_ok());
    }
}
