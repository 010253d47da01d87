//! Decorator: how many requests may be under way and how fast they may begin. Foreground goes first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::Instant;

use penstock_types::{ErrorKind, ObjectBody, Priority, ReadRequest, Result, Source};

use crate::around::{Around, Call};
use crate::pace::Pace;

/// Share of the window that jobs leave free, so that somebody who waits finds a place at once.
const FOREGROUND_RESERVE: usize = 4;

/// The gate in front of a source. Clones are the same gate.
#[derive(Clone)]
pub(crate) struct Limit {
    gate: Arc<Gate>,
}

struct Gate {
    state: Mutex<State>,
    /// The pace counts from here.
    epoch: Instant,
}

struct State {
    pace: Pace,
    under_way: usize,
    foreground: VecDeque<Arc<Notify>>,
    background: VecDeque<Arc<Notify>>,
}

enum Turn {
    Admitted,
    /// Somebody else goes first, or the window is full.
    Later,
    /// First in the queue, but the rate says not before.
    In(Duration),
}

impl State {
    fn queue(&mut self, priority: Priority) -> &mut VecDeque<Arc<Notify>> {
        match priority {
            Priority::Foreground => &mut self.foreground,
            Priority::Background => &mut self.background,
        }
    }

    fn turn(&mut self, waiter: &Arc<Notify>, priority: Priority, now: Duration) -> Turn {
        let window = self.pace.window();
        let open = match priority {
            Priority::Foreground => self.under_way < window,
            Priority::Background => {
                let reserve = (window / FOREGROUND_RESERVE).max(1);
                self.foreground.is_empty() && self.under_way < window.saturating_sub(reserve).max(1)
            }
        };
        let first = self.queue(priority).front().is_some_and(|first| Arc::ptr_eq(first, waiter));
        if !open || !first {
            return Turn::Later;
        }
        match self.pace.admit(now) {
            Ok(()) => {
                self.queue(priority).pop_front();
                self.under_way += 1;
                Turn::Admitted
            }
            Err(wait) => Turn::In(wait),
        }
    }

    /// Tells whoever may go next to look.
    fn wake(&self) {
        if let Some(next) = self.foreground.front().or(self.background.front()) {
            next.notify_one();
        }
    }
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}

/// A request's place: given back when it is dropped.
pub(crate) struct Place {
    gate: Arc<Gate>,
    sent: Duration,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.under_way -= 1;
        state.wake();
    }
}

impl Place {
    fn learn<T>(&self, result: &Result<T>) {
        let now = self.gate.now();
        match result {
            Ok(_) => self.gate.state().pace.succeeded(now),
            Err(error) if error.kind() == ErrorKind::RateLimited => self.gate.state().pace.refused(now, self.sent),
            // Other failures say nothing about how much the source bears.
            Err(_) => {}
        }
    }
}

/// A waiter that leaves the queue when its future is dropped.
struct Waiting {
    gate: Arc<Gate>,
    waiter: Arc<Notify>,
    priority: Priority,
    admitted: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        if !self.admitted {
            state.queue(self.priority).retain(|other| !Arc::ptr_eq(other, &self.waiter));
        }
        // Either way there is a new first one.
        state.wake();
    }
}

impl Limit {
    /// At most `max_requests` at once.
    pub(crate) fn new(max_requests: usize) -> Self {
        let state = State {
            pace: Pace::new(max_requests),
            under_way: 0,
            foreground: VecDeque::new(),
            background: VecDeque::new(),
        };
        Self { gate: Arc::new(Gate { state: Mutex::new(state), epoch: Instant::now() }) }
    }

    /// Waits for a place.
    async fn place(&self, priority: Priority) -> Place {
        let waiter = Arc::new(Notify::new());
        self.gate.state().queue(priority).push_back(waiter.clone());
        let mut waiting = Waiting { gate: self.gate.clone(), waiter, priority, admitted: false };
        loop {
            let now = self.gate.now();
            let turn = self.gate.state().turn(&waiting.waiter, priority, now);
            match turn {
                Turn::Admitted => {
                    waiting.admitted = true;
                    return Place { gate: self.gate.clone(), sent: now };
                }
                Turn::Later => waiting.waiter.notified().await,
                Turn::In(wait) => {
                    let _ = tokio::time::timeout(wait, waiting.waiter.notified()).await;
                }
            }
        }
    }
}

impl Around for Limit {
    async fn around<T, F, S>(&self, call: &Call, send: S) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
        S: Fn() -> F + Send + Sync,
    {
        let place = self.place(call.priority).await;
        let answer = send().await;
        place.learn(&answer);
        answer
    }

    async fn read(&self, inner: &Arc<dyn Source>, request: ReadRequest) -> Result<ObjectBody> {
        let place = self.place(request.priority).await;
        let answer = inner.read(request).await;
        place.learn(&answer);
        let mut body = answer?;
        // The place is taken until the body is read or given up.
        let chunks = body.chunks.inspect(move |_| {
            let _ = &place;
        });
        body.chunks = chunks.boxed();
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn queued(limit: &Limit, foreground: usize, background: usize) {
        // Waits for a condition: every task has reached the queue.
        let arrived = || {
            let state = limit.gate.state();
            state.foreground.len() == foreground && state.background.len() == background
        };
        while !arrived() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn foreground_goes_before_background_that_waited_longer() {
        let limit = Limit::new(1);
        let held = limit.place(Priority::Foreground).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let spawn = |priority: Priority| {
            let (limit, order) = (limit.clone(), order.clone());
            tokio::spawn(async move {
                let place = limit.place(priority).await;
                order.lock().unwrap().push(priority);
                drop(place);
            })
        };
        let background = spawn(Priority::Background);
        queued(&limit, 0, 1).await;
        let foreground = spawn(Priority::Foreground);
        queued(&limit, 1, 1).await;
        drop(held);
        foreground.await.unwrap();
        background.await.unwrap();
        assert_eq!(*order.lock().unwrap(), [Priority::Foreground, Priority::Background]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_gives_up_does_not_hold_the_queue() {
        let limit = Limit::new(1);
        let held = limit.place(Priority::Foreground).await;
        let gives_up = tokio::time::timeout(Duration::from_millis(10), limit.place(Priority::Foreground)).await;
        assert!(gives_up.is_err());
        queued(&limit, 0, 0).await;
        drop(held);
        drop(limit.place(Priority::Foreground).await);
        assert_eq!(limit.gate.state().under_way, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_leave_room_for_those_who_wait() {
        let limit = Limit::new(8);
        let mut places = Vec::new();
        for _ in 0..6 {
            places.push(limit.place(Priority::Background).await);
        }
        let seventh = tokio::time::timeout(Duration::from_secs(1), limit.place(Priority::Background)).await;
        assert!(seventh.is_err(), "background took the reserve");
        places.push(limit.place(Priority::Foreground).await);
        places.push(limit.place(Priority::Foreground).await);
        assert_eq!(limit.gate.state().under_way, 8);
    }
}
