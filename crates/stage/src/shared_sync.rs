//! One sync for all who wait for one: what was done before it began is durable when it succeeds.

use std::sync::{Condvar, Mutex, MutexGuard};

use penstock_types::Result;

/// Numbers what is done, and shares the syncs that make it durable.
#[derive(Default)]
pub struct SharedSync {
    state: Mutex<State>,
    turn: Condvar,
}

#[derive(Default)]
struct State {
    /// Number of what was done last.
    done: u64,
    /// Everything up to here is durable, but for what is lost.
    durable: u64,
    /// What was done in here may be lost for good: a sync failed, and one that succeeds later proves nothing of it.
    lost: Option<(u64, penstock_types::Error)>,
    lost_from: u64,
    syncing: bool,
}

impl SharedSync {
    /// Notes that something was done; its number.
    pub fn note(&self) -> u64 {
        let mut state = self.state();
        state.done += 1;
        state.done
    }

    /// Returns once `number` is durable. `sync` is called, without a lock, by one of those who wait.
    ///
    /// # Errors
    /// What `sync` returned, to all for whom it was called.
    pub fn wait(&self, number: u64, sync: impl Fn() -> Result<()>) -> Result<()> {
        let mut state = self.state();
        loop {
            if let Some((until, error)) = &state.lost
                && (state.lost_from..=*until).contains(&number)
            {
                return Err(error.clone());
            }
            if state.durable >= number {
                return Ok(());
            }
            if state.syncing {
                state = self.turn.wait(state).expect("no panic while the state of a sync is held");
                continue;
            }
            state.syncing = true;
            let through = state.done;
            drop(state);
            let synced = sync();
            state = self.state();
            state.syncing = false;
            match synced {
                Ok(()) => state.durable = through,
                Err(error) => {
                    if state.lost.is_none() {
                        state.lost_from = state.durable + 1;
                    }
                    state.lost = Some((through, error));
                }
            }
            self.turn.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the state of a sync is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_types::{Error, ErrorKind};
    use std::cell::Cell;

    #[test]
    fn what_was_done_before_a_sync_needs_no_other() {
        let (shared, syncs) = (SharedSync::default(), Cell::new(0));
        let sync = || {
            syncs.set(syncs.get() + 1);
            Ok(())
        };
        let numbers = [shared.note(), shared.note()];
        numbers.iter().for_each(|number| shared.wait(*number, sync).unwrap());
        assert_eq!(syncs.get(), 1);
        shared.wait(shared.note(), sync).unwrap();
        assert_eq!(syncs.get(), 2);
    }

    #[test]
    fn what_a_failed_sync_was_for_is_lost_though_a_later_one_succeeds() {
        let shared = SharedSync::default();
        let (first, second) = (shared.note(), shared.note());
        shared.wait(first, || Err(Error::new(ErrorKind::Disk, "sync", "broken"))).unwrap_err();
        let third = shared.note();
        shared.wait(third, || Ok(())).unwrap();
        shared.wait(second, || Ok(())).unwrap_err();
        shared.wait(third, || Ok(())).unwrap();
    }
}
