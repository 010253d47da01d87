//! What a fork needs: arenas that a child can see are never filled again, and a child lets go of the connections it
//! inherited, so that the node notices when the parent ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::pool::Pool;

static FORKS: AtomicU64 = AtomicU64::new(0);
static POOLS: Mutex<Vec<Weak<Pool>>> = Mutex::new(Vec::new());

/// Forks of this process so far.
pub fn count() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Remembers a pool for the next fork.
pub fn watch(pool: &Arc<Pool>) {
    let Ok(mut pools) = POOLS.lock() else { return };
    pools.retain(|known| known.strong_count() > 0);
    pools.push(Arc::downgrade(pool));
}

/// A pool of this process that goes to the same socket, where there is one.
pub fn find(matches: impl Fn(&Pool) -> bool) -> Option<Arc<Pool>> {
    POOLS.lock().ok()?.iter().filter_map(Weak::upgrade).find(|pool| matches(pool))
}

/// Has the interpreter call us around each fork.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let arguments = PyDict::new(module.py());
    arguments.set_item("before", wrap_pyfunction!(before_fork, module)?)?;
    arguments.set_item("after_in_child", wrap_pyfunction!(after_fork_in_child, module)?)?;
    module.py().import("os")?.call_method("register_at_fork", (), Some(&arguments))?;
    Ok(())
}

#[pyfunction]
fn before_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

#[pyfunction]
fn after_fork_in_child() {
    // Only attached threads hold these locks, and only one was attached when it forked.
    let Ok(pools) = POOLS.try_lock() else { return };
    pools.iter().filter_map(Weak::upgrade).for_each(|pool| pool.leave_to_parent());
}
