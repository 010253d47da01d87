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
    /// The budget that this one is a share of.
    whole: Option<Arc<MemoryBudget>>,
}

/// Bytes taken from the budget; given back when dropped.
pub struct MemoryHold {
    _permits: Vec<OwnedSemaphorePermit>,
    bytes: u64,
    metrics: Metrics,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64, metrics: Metrics) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self { semaphore: Arc::new(Semaphore::new(units as usize)), units, metrics, whole: None }
    }

    /// Half of it, for those who could have all of it under way for long: others find the other half free. What is
    /// taken here is taken from the whole, too.
    pub fn half(&self) -> Self {
        Self { whole: Some(Arc::new(self.clone())), ..Self::new(self.bytes() / 2, self.metrics.clone()) }
    }

    /// The whole budget.
    pub fn bytes(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    /// Waits until `bytes` are free, at most `deadline`. More than the whole budget counts as the whole.
    pub async fn hold(&self, bytes: u64, deadline: Duration) -> Result<MemoryHold> {
        let units = self.units_of(bytes);
        let acquire = async {
            let mut permits = vec![Arc::clone(&self.semaphore).acquire_many_owned(units).await];
            if let Some(whole) = &self.whole {
                permits.push(Arc::clone(&whole.semaphore).acquire_many_owned(units).await);
            }
            permits.into_iter().collect::<std::result::Result<Vec<_>, _>>()
        };
        let permits = tokio::time::timeout(deadline, acquire).await.ok().and_then(std::result::Result::ok);
        permits.map(|permits| self.held(permits, units)).ok_or_else(|| self.in_use(bytes))
    }

    /// Takes `bytes` where they are free now.
    pub fn try_hold(&self, bytes: u64) -> Option<MemoryHold> {
        let units = self.units_of(bytes);
        let budgets = [Some(self), self.whole.as_deref()].into_iter().flatten();
        let permits = budgets.map(|budget| Arc::clone(&budget.semaphore).try_acquire_many_owned(units).ok());
        permits.collect::<Option<Vec<_>>>().map(|permits| self.held(permits, units))
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

    fn held(&self, permits: Vec<OwnedSemaphorePermit>, units: u32) -> MemoryHold {
        let bytes = u64::from(units) * UNIT_BYTES;
        self.metrics.memory_used_bytes.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        MemoryHold { _permits: permits, bytes, metrics: self.metrics.clone() }
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
    async fn a_half_leaves_the_other_half_and_counts_in_the_whole() {
        let metrics = Metrics::default();
        let budget = MemoryBudget::new(4 * UNIT_BYTES, metrics.clone());
        let half = budget.half();
        let held = half.hold(3 * UNIT_BYTES, Duration::from_secs(1)).await.unwrap();
        assert_eq!(metrics.memory_used_bytes.get(), 2 * UNIT_BYTES.cast_signed(), "more than all of it is all of it");
        assert!(half.try_hold(1).is_none());
        assert!(half.hold(1, Duration::from_secs(1)).await.is_err());
        let other = budget.try_hold(2 * UNIT_BYTES).unwrap();
        assert!(budget.try_hold(1).is_none());
        drop((held, other));
        assert_eq!(metrics.memory_used_bytes.get(), 0);
        let all = budget.try_hold(4 * UNIT_BYTES).unwrap();
        assert!(half.try_hold(1).is_none(), "it has no memory of its own");
        drop(all);
        assert!(half.try_hold(1).is_some());
    }

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
