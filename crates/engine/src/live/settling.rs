//! Versions whose file a kernel may still write to: nobody is given their bytes, and they are not uploaded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use penstock_stage::{OperationId, Target};
use penstock_types::ObjectKey;
use tokio::sync::Notify;

/// Replaced versions that are remembered: the stage forgets them within seconds.
const REPLACED_MAX: usize = 1024;

/// Of all live files those that were committed as they are.
#[derive(Default)]
pub(super) struct Settling {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Default)]
struct State {
    files: Vec<Unsettled>,
    /// What was replaced before its file was closed: whoever found it just before must look again.
    replaced: VecDeque<OperationId>,
}

impl State {
    /// Takes a live file out; what it had committed is given to nobody any more, unless it `is_settled`.
    fn take(&mut self, number: u64, is_settled: bool) {
        let Some(at) = self.files.iter().position(|known| known.number == number) else { return };
        let known = self.files.swap_remove(at);
        if let Some((operation, _)) = known.committed.filter(|_| !is_settled) {
            self.replaced.truncate(REPLACED_MAX - 1);
            self.replaced.push_front(operation);
        }
    }
}

struct Unsettled {
    /// Of the live file.
    number: u64,
    target: Target,
    /// What was committed, and when, on the engine's clock; `None` while it is being committed.
    committed: Option<(OperationId, Duration)>,
    /// What was staged before that, and changes no more.
    before: Option<OperationId>,
}

impl Unsettled {
    fn is(&self, scope: &Arc<str>, key: &ObjectKey, operation: OperationId) -> bool {
        let is_meant = match self.committed {
            Some((known, _)) => known == operation,
            None => self.before != Some(operation),
        };
        is_meant && self.target.key == *key && self.target.scope == *scope
    }
}

impl Settling {
    /// What is committed next of a key by a live file is its own file.
    pub(super) fn begin(&self, number: u64, target: &Target, before: Option<OperationId>) {
        let mut state = self.state();
        state.take(number, false);
        state.files.push(Unsettled { number, target: target.clone(), committed: None, before });
    }

    /// It was committed.
    pub(super) fn committed(&self, number: u64, operation: OperationId, now: Duration) {
        if let Some(known) = self.state().files.iter_mut().find(|known| known.number == number) {
            known.committed = Some((operation, now));
        }
    }

    /// Nothing that a live file has committed changes any more: it was closed, or replaced by a copy.
    pub(super) fn end(&self, number: u64, is_closed: bool) {
        self.state().take(number, is_closed);
        self.settled.notify_waiters();
    }

    /// Whether a version was replaced before its file was closed.
    pub(super) fn was_replaced(&self, operation: OperationId) -> bool {
        self.state().replaced.contains(&operation)
    }

    /// The live file that may still change what a change holds.
    pub(super) fn of(&self, scope: &Arc<str>, key: &ObjectKey, operation: OperationId) -> Option<u64> {
        self.state().files.iter().find(|known| known.is(scope, key, operation)).map(|known| known.number)
    }

    /// What a live file has committed that may still change.
    pub(super) fn committed_by(&self, number: u64) -> Option<OperationId> {
        let state = self.state();
        let known = state.files.iter().find(|known| known.number == number)?;
        known.committed.map(|(operation, _)| operation)
    }

    /// Live files that were committed before a time, and stay open.
    pub(super) fn committed_before(&self, time: Duration) -> Vec<u64> {
        let is_meant = |known: &&Unsettled| known.committed.is_some_and(|(_, at)| at < time);
        self.state().files.iter().filter(is_meant).map(|known| known.number).collect()
    }

    /// Returns when a change is settled; after `patience` at the latest: the live file that may still change it.
    pub(super) async fn wait(
        &self,
        (scope, key): (&Arc<str>, &ObjectKey),
        operation: OperationId,
        patience: Duration,
    ) -> Option<u64> {
        let end = tokio::time::Instant::now() + patience;
        loop {
            let told = self.settled.notified();
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            let number = self.of(scope, key, operation)?;
            if tokio::time::timeout_at(end, told).await.is_err() {
                return Some(number);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is looked up what settles")
    }
}
