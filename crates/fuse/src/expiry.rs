//! Takes back from the kernel what it believes in for longer than it is true.
//!
//! The kernel takes the lock of the directory for it, which a program that waits for us may hold: a thread of its own
//! does it. Should that fail, the kernel is told from then on to believe nothing; should it take too long, it is told so
//! until everything that waits has been taken back.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use penstock_types::{Clock, Expired, KernelExpiry, Metrics};
use tokio::sync::oneshot;

/// Orders that wait to be carried out.
const WAITING_MAX: usize = 4096;
/// An order has so long to be carried out; who made a change waits for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is to be taken back.
struct Order {
    expired: Vec<Expired>,
    /// When it was given, microseconds on the clock.
    given: u64,
    done: oneshot::Sender<()>,
}

/// The way back for what the kernel was told.
pub struct Expiry {
    orders: OnceLock<SyncSender<Order>>,
    given: AtomicU64,
    state: Arc<State>,
}

struct State {
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    failed: AtomicBool,
    /// When the oldest order was given that is not carried out yet; 0 when there is none.
    oldest: AtomicU64,
    /// Whether it was said that the kernel is late.
    said_late: AtomicBool,
}

impl Expiry {
    /// Nothing is taken back yet.
    pub fn new(clock: Arc<dyn Clock>, metrics: Metrics) -> Arc<Self> {
        let (failed, oldest, said_late) = Default::default();
        let state = Arc::new(State { clock, metrics, failed, oldest, said_late });
        Arc::new(Self { orders: OnceLock::new(), given: AtomicU64::new(0), state })
    }

    /// Begins to take back from the kernel of a session; the thread for it ends when this is dropped.
    pub fn begin(&self, notifier: Notifier) -> io::Result<()> {
        self.begin_with(move |expired| take_back(&notifier, expired))
    }

    fn begin_with(&self, take_back: impl Fn(&Expired) -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let (sender, orders) = sync_channel(WAITING_MAX);
        let state = Arc::clone(&self.state);
        std::thread::Builder::new().name("expire".into()).spawn(move || state.carry_out(&orders, take_back))?;
        // Begun once, before the first request is read.
        let _ = self.orders.set(sender);
        Ok(())
    }

    /// Whether what is wrong can be taken back in time, so that the kernel may believe in what it is told.
    pub fn works(&self) -> bool {
        !self.state.failed.load(Ordering::Relaxed) && !self.state.is_late()
    }

    /// How many orders were given: what was made up before one may be out of date after it.
    pub fn orders(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }

    /// Says when the kernel is late; once a second will do.
    pub fn tick(&self) {
        let late = self.state.is_late();
        if late != self.state.said_late.swap(late, Ordering::Relaxed) {
            if late {
                tracing::warn!(
                    code = "timeout",
                    "the kernel is late to forget: it is told to believe nothing meanwhile"
                );
            } else {
                tracing::info!("the kernel has forgotten what it was to forget, and may believe again");
            }
        }
    }
}

impl KernelExpiry for Expiry {
    fn expire(&self, expired: Vec<Expired>) -> BoxFuture<'static, ()> {
        let Some(orders) = self.orders.get().filter(|_| !expired.is_empty()) else { return ready(()).boxed() };
        self.given.fetch_add(1, Ordering::SeqCst);
        let (done, carried_out) = oneshot::channel();
        let order = Order { expired, given: self.state.now(), done };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = orders.try_send(order) {
            self.state.fail("more is wrong than the kernel takes back");
            return ready(()).boxed();
        }
        // Late or not: from then on the kernel believes nothing, or has forgotten.
        async move { drop(tokio::time::timeout(PATIENCE, carried_out).await) }.boxed()
    }
}

impl State {
    /// Carries orders out as long as there may be some.
    fn carry_out(&self, orders: &Receiver<Order>, take_back: impl Fn(&Expired) -> io::Result<()>) {
        loop {
            let order = match orders.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    self.oldest.store(0, Ordering::Relaxed);
                    let Ok(order) = orders.recv() else { return };
                    order
                }
            };
            self.oldest.store(order.given, Ordering::Relaxed);
            for expired in &order.expired {
                self.metrics.kernel_expirations.inc();
                match take_back(expired) {
                    // It was not believed in any more, or the mount is gone.
                    Err(error) if matches!(error.raw_os_error(), Some(2 | 19 | 107)) => {}
                    Err(error) => self.fail(&error.to_string()),
                    Ok(()) => {}
                }
            }
            // Who gave it may wait no longer.
            let _ = order.done.send(());
        }
    }

    fn is_late(&self) -> bool {
        let oldest = self.oldest.load(Ordering::Relaxed);
        oldest > 0 && self.now().saturating_sub(oldest) >= u64::try_from(PATIENCE.as_micros()).unwrap_or(u64::MAX)
    }

    fn fail(&self, reason: &str) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(code = "unavailable", reason, "the kernel is told to believe nothing from now on");
        }
    }

    /// Microseconds on the clock; never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX).max(1)
    }
}

fn take_back(notifier: &Notifier, expired: &Expired) -> io::Result<()> {
    match expired {
        Expired::Name(directory, name) => notifier.inval_entry(INodeNo(directory.0), OsStr::new(&**name)),
        // Its attributes, and all pages: they hold its names.
        Expired::Names(directory) => notifier.inval_inode(INodeNo(directory.0), 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    use penstock_testkit::ManualClock;
    use penstock_types::NodeId;

    use super::*;

    struct Bench {
        expiry: Arc<Expiry>,
        clock: Arc<ManualClock>,
        metrics: Metrics,
        taken: Arc<Mutex<Vec<Expired>>>,
        /// The kernel's answers, each to one that is to be taken back.
        answers: Sender<io::Result<()>>,
    }

    impl Bench {
        fn new() -> Self {
            let (clock, metrics) = (Arc::new(ManualClock::default()), Metrics::default());
            let expiry = Expiry::new(Arc::clone(&clock) as Arc<dyn Clock>, metrics.clone());
            let taken = Arc::<Mutex<Vec<Expired>>>::default();
            let (answers, answered) = channel();
            let noted = Arc::clone(&taken);
            expiry
                .begin_with(move |expired| {
                    let answer = answered.recv().unwrap_or(Ok(()));
                    noted.lock().unwrap().push(expired.clone());
                    answer
                })
                .unwrap();
            Self { expiry, clock, metrics, taken, answers }
        }

        /// Waits until so many were taken back.
        async fn await_taken(&self, count: usize) {
            let deadline = std::time::Instant::now() + Duration::from_secs(60);
            while self.taken.lock().unwrap().len() < count || self.expiry.state.oldest.load(Ordering::Relaxed) > 0 {
                assert!(std::time::Instant::now() < deadline, "it was not taken back");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn name(name: &str) -> Expired {
        Expired::Name(NodeId::ROOT, name.into())
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_everything_was_taken_back() {
        let bench = Bench::new();
        (0..2).for_each(|_| bench.answers.send(Ok(())).unwrap());
        bench.expiry.expire(vec![name("a"), Expired::Names(NodeId::ROOT)]).await;
        assert_eq!(*bench.taken.lock().unwrap(), [name("a"), Expired::Names(NodeId::ROOT)]);
        assert!(bench.expiry.works());
        assert_eq!(bench.metrics.kernel_expirations.get(), 2);
        bench.expiry.expire(Vec::new()).await;
        assert_eq!(bench.metrics.kernel_expirations.get(), 2);
    }

    #[tokio::test]
    async fn what_the_kernel_does_not_know_is_no_failure_and_what_it_refuses_ends_its_belief() {
        let bench = Bench::new();
        for harmless in [2, 19, 107] {
            bench.answers.send(Err(io::Error::from_raw_os_error(harmless))).unwrap();
            bench.expiry.expire(vec![name("a")]).await;
            assert!(bench.expiry.works());
        }
        bench.answers.send(Err(io::Error::from_raw_os_error(22))).unwrap();
        bench.expiry.expire(vec![name("a")]).await;
        assert!(!bench.expiry.works());
        bench.answers.send(Ok(())).unwrap();
        bench.expiry.expire(vec![name("a")]).await;
        assert!(!bench.expiry.works(), "what it would not forget, it goes on to believe");
    }

    #[tokio::test]
    async fn while_the_kernel_is_late_nobody_waits_for_it_and_it_is_to_believe_nothing() {
        let bench = Bench::new();
        let waiting = bench.expiry.expire(vec![name("a")]);
        while bench.expiry.state.oldest.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        assert!(bench.expiry.works());
        bench.clock.advance(PATIENCE);
        waiting.await;
        assert!(!bench.expiry.works());
        bench.expiry.tick();
        bench.answers.send(Ok(())).unwrap();
        bench.await_taken(1).await;
        assert!(bench.expiry.works(), "everything was taken back");
    }

    #[tokio::test]
    async fn more_than_can_wait_ends_belief() {
        let bench = Bench::new();
        (0..WAITING_MAX + 2).for_each(|_| drop(bench.expiry.expire(vec![name("a")])));
        assert!(!bench.expiry.works());
    }
}
