//! Bringing ranges of one object version into its store: single-flight, in pieces, from the first origin that
//! has them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use penstock_cache::Extent;
use penstock_types::{ByteRange, Error, ErrorKind, ObjectBody, ObjectId, Origin, PAGE_SIZE, Priority, Result};
use rustix::io::pread;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::budget::{MemoryBudget, MemoryHold};
use crate::courtesy::Courtesy;
use crate::pattern::Plan;
use crate::scratch::Scratch;

/// Bytes gathered before they are written, at offsets that are multiples of it: a system call and a wake-up per so
/// many. The kernel then keeps them in large folios, which are read an eighth faster than those of small writes.
const FILL_BYTES: u64 = 1024 * 1024;
/// From a slow source whole pages are written after so long: who waits for them gets on.
const FILL_AFTER: Duration = Duration::from_millis(200);
/// Requests that one transfer has under way at once.
const FLIGHTS_MAX: usize = 32;
/// Rounds of asking again for pages that vanished (dropped as damaged) while they were waited for.
const ROUNDS_MAX: usize = 3;

/// Where the bytes of a transfer go.
#[derive(Clone)]
pub enum Store {
    /// An extent file of the cache.
    Cached(Arc<Extent>),
    /// A window in memory.
    Scratch(Arc<Scratch>),
    /// A file of the stage: all of it is there.
    Staged(Arc<StagedFile>),
}

/// What was written here and is read before the source has it.
pub struct StagedFile {
    /// Read-only.
    pub descriptor: Arc<OwnedFd>,
    /// Bytes.
    pub size: u64,
}

impl StagedFile {
    /// Fills `out` with the bytes of `range`, which is inside the file.
    pub fn read(&self, range: ByteRange, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let read =
                rustix::io::retry_on_intr(|| pread(&self.descriptor, &mut out[done..], range.start + done as u64));
            let failed = |reason: String| Error::new(ErrorKind::Disk, "read a staged file", reason);
            match read.map_err(|error| failed(error.to_string()))? {
                0 => return Err(failed("it is shorter than it was when it was closed".to_owned())),
                length => done += length,
            }
        }
        Ok(())
    }
}

impl Store {
    /// Whether every byte is there to stay.
    pub fn is_complete(&self) -> bool {
        match self {
            Store::Cached(extent) => extent.is_complete(),
            Store::Scratch(_) => false,
            Store::Staged(_) => true,
        }
    }

    /// Contiguous present bytes from `offset`.
    pub fn present_run(&self, offset: u64) -> ByteRange {
        match self {
            Store::Cached(extent) => extent.present_run(offset),
            Store::Scratch(scratch) => scratch.present_run(offset),
            Store::Staged(file) => ByteRange::new(offset, file.size.max(offset)),
        }
    }

    /// Absent page runs that `range` touches.
    pub fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        match self {
            Store::Cached(extent) => extent.missing(range),
            Store::Scratch(scratch) => scratch.missing(range),
            Store::Staged(_) => Vec::new(),
        }
    }

    /// What of `range` is kept when it arrives.
    fn kept(&self, range: ByteRange) -> ByteRange {
        match self {
            Store::Cached(_) | Store::Staged(_) => range,
            Store::Scratch(scratch) => scratch.kept(range),
        }
    }

    fn fill(&self, offset: u64, data: &[Bytes], held: &Arc<MemoryHold>) -> Result<()> {
        match self {
            Store::Cached(extent) => extent.fill(offset, data),
            Store::Scratch(scratch) => scratch.fill(offset, data, held),
            Store::Staged(_) => Err(Error::new(ErrorKind::Internal, "fill a staged file", "it is whole already")),
        }
    }

    /// The store's own descriptor; extents lend theirs.
    pub fn own_descriptor(&self) -> Option<Arc<OwnedFd>> {
        match self {
            Store::Cached(_) => None,
            Store::Scratch(scratch) => Some(scratch.descriptor()),
            Store::Staged(file) => Some(Arc::clone(&file.descriptor)),
        }
    }
}

/// What every transfer of an engine needs.
pub struct Carrier {
    pub runtime: Handle,
    pub budget: MemoryBudget,
    /// What parts of uploads may have of the budget, who wait for a source that may be slow.
    pub uploads: MemoryBudget,
    pub deadline: Duration,
    pub courtesy: Courtesy,
    transfers: Mutex<HashMap<ObjectId, Weak<Transfer>>>,
}

impl Carrier {
    pub fn new(runtime: Handle, budget: MemoryBudget, deadline: Duration) -> Arc<Self> {
        // Half of what moving data may hold: readers who come find the other half free.
        let courtesy = Courtesy::new(budget.bytes() / 2);
        let uploads = budget.half();
        Arc::new(Self { runtime, budget, uploads, deadline, courtesy, transfers: Mutex::default() })
    }

    /// The one transfer that fills `extent`; made when nobody fills it yet.
    pub fn transfer_into(self: &Arc<Self>, extent: &Arc<Extent>, origins: &[Arc<dyn Origin>]) -> Arc<Transfer> {
        let mut transfers = self.transfers.lock().expect("no panic while transfers are looked up");
        if let Some(transfer) = transfers.get(extent.id()).and_then(Weak::upgrade)
            && matches!(&transfer.store, Store::Cached(known) if Arc::ptr_eq(known, extent))
        {
            return transfer;
        }
        let transfer = self.transfer(extent.id().clone(), Store::Cached(Arc::clone(extent)), origins);
        transfers.insert(extent.id().clone(), Arc::downgrade(&transfer));
        transfer
    }

    /// A transfer into a store that nobody else fills.
    pub fn transfer(self: &Arc<Self>, object: ObjectId, store: Store, origins: &[Arc<dyn Origin>]) -> Arc<Transfer> {
        let (carrier, origins) = (Arc::clone(self), origins.to_vec());
        Arc::new(Transfer { object, store, origins, carrier, flights: Mutex::default(), progress: Notify::new() })
    }
}

/// The filling of one store with one object version.
pub struct Transfer {
    object: ObjectId,
    pub store: Store,
    origins: Vec<Arc<dyn Origin>>,
    carrier: Arc<Carrier>,
    flights: Mutex<Flights>,
    progress: Notify,
}

#[derive(Default)]
struct Flights {
    under_way: Vec<Arc<Flight>>,
    /// What the last reader who asked wants, as long as it is there: the next request follows whenever one has ended.
    ahead: Weak<Ahead>,
}

/// What a reader wants under way while it reads on.
#[derive(Debug)]
pub struct Ahead {
    pub plan: Plan,
    pub priority: Priority,
}

/// One request under way.
struct Flight {
    range: ByteRange,
    priority: Priority,
    begun: Instant,
    /// Whether it waits for memory where none is free; otherwise it is not flown then.
    patient: bool,
    waits_for_memory: AtomicBool,
    started: AtomicBool,
    ended: OnceLock<Option<Error>>,
}

/// How a flight ended that did not fail.
enum Fetched {
    All,
    /// There was no memory for it.
    Nothing,
}

impl Flight {
    fn new(range: ByteRange, priority: Priority, patient: bool) -> Arc<Self> {
        let (waits_for_memory, started, ended) = Default::default();
        let begun = Instant::now();
        Arc::new(Self { range, priority, begun, patient, waits_for_memory, started, ended })
    }

    fn failure(&self) -> Option<&Error> {
        self.ended.get().and_then(Option::as_ref)
    }

    /// Its failure, where that is an answer to who came at `came`. What began earlier had a deadline of its own, and
    /// met the source as it was then.
    fn failure_since(&self, came: Instant) -> Option<&Error> {
        let of_then =
            |error: &&Error| self.begun < came && (error.is_transient() || error.kind() == ErrorKind::ResourceLimit);
        self.failure().filter(|error| !of_then(error))
    }

    /// Whether somebody who waits with `priority` may rely on it: a queued background request could wait long.
    fn serves(&self, priority: Priority) -> bool {
        self.priority >= priority || self.started.load(Ordering::Relaxed)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut transfers = self.carrier.transfers.lock().expect("no panic while transfers are looked up");
        if transfers.get(&self.object).is_some_and(|known| known.strong_count() == 0) {
            transfers.remove(&self.object);
        }
    }
}

impl Transfer {
    /// Starts what `ahead` wants and waits until all of `need` is present, at most the carrier's deadline.
    /// At the deadline a part of `need` from its start is enough; nothing at all is `Timeout`.
    pub async fn ensure(self: &Arc<Self>, need: ByteRange, ahead: &Arc<Ahead>) -> Result<()> {
        let is_waited = ahead.priority == Priority::Foreground && !self.store.missing(need).is_empty();
        let _waiting = is_waited.then(|| self.carrier.courtesy.wait());
        let mut met = None;
        let wait = self.wait_for(need, ahead, &mut met);
        match tokio::time::timeout(self.carrier.deadline, wait).await {
            Ok(result) => result,
            Err(_) if !self.store.present_run(need.start).is_empty() => Ok(()),
            Err(_) if self.waits_for_memory(need) => Err(self.carrier.budget.in_use(need.len())),
            Err(_) => Err(self.late(need, met)),
        }
    }

    /// Keeps in `met` the last failure that was no answer: for who waits no longer.
    async fn wait_for(self: &Arc<Self>, need: ByteRange, ahead: &Arc<Ahead>, met: &mut Option<Error>) -> Result<()> {
        let came = Instant::now();
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let flights = {
                let mut flights = self.flights();
                flights.ahead = Arc::downgrade(ahead);
                if let Store::Scratch(scratch) = &self.store {
                    scratch.move_to(need.start);
                }
                self.launch(&mut flights, ahead, need)
            };
            loop {
                let mut notified = std::pin::pin!(self.progress.notified());
                notified.as_mut().enable();
                if self.store.missing(need).is_empty() {
                    return Ok(());
                }
                if let Some(error) = flights.iter().find_map(|flight| flight.failure_since(came)) {
                    return Err(error.clone());
                }
                if let Some(error) = flights.iter().find_map(|flight| flight.failure()) {
                    // Asked for again, once for all who wait: what is launched now begins after they came.
                    *met = Some(error.clone());
                    break;
                }
                if flights.iter().all(|flight| flight.ended.get().is_some()) {
                    if self.is_scratch() && !self.store.present_run(need.start).is_empty() {
                        // There was no memory for the rest: it comes when this part has been read.
                        return Ok(());
                    }
                    rounds += 1;
                    break;
                }
                notified.await;
            }
        }
        Err(Error::new(ErrorKind::Corrupt, self.action(need), "its pages were dropped as often as they were fetched")
            .advise("check the cache disk: penstock doctor"))
    }

    /// Starts the missing pieces of the plan that nobody fetches yet, those of `need` before the rest, and returns
    /// every flight that brings some of `need`.
    fn launch(self: &Arc<Self>, flights: &mut Flights, ahead: &Ahead, need: ByteRange) -> Vec<Arc<Flight>> {
        let Ahead { plan, priority } = *ahead;
        let under_way = &mut flights.under_way;
        under_way.retain(|flight| flight.ended.get().is_none());
        let pieces = self.pieces(plan, under_way, priority).into_iter();
        // Whole pieces also where only a part is needed: a page and its neighbour are one request.
        let (needed, rest): (Vec<_>, Vec<_>) = pieces.partition(|piece| !piece.intersect(need).is_empty());
        let free = FLIGHTS_MAX.saturating_sub(under_way.len() + needed.len());
        // What the plan's end cuts short waits until the plan moves on.
        let rest =
            rest.into_iter().filter(|piece| piece.end < plan.want.end || piece.end == plan.piece_end(piece.start));
        for (position, range) in needed.into_iter().chain(rest.take(free)).enumerate() {
            // Who holds memory until it is read must not wait for more: the readers would wait for each other.
            let patient =
                !self.is_scratch() || (position == 0 && range.contains(ByteRange::new(need.start, need.start + 1)));
            let flight = Flight::new(range, priority, patient);
            under_way.push(Arc::clone(&flight));
            self.carrier.runtime.spawn(Arc::clone(self).fly(flight));
        }
        under_way.iter().filter(|flight| !flight.range.intersect(need).is_empty()).cloned().collect()
    }

    /// What of the plan is neither present nor under way, cut into requests.
    fn pieces(&self, plan: Plan, under_way: &[Arc<Flight>], priority: Priority) -> Vec<ByteRange> {
        let mut pieces = Vec::new();
        for mut run in self.store.missing(self.store.kept(plan.want)) {
            while !run.is_empty() {
                let busy = under_way.iter().filter(|flight| flight.serves(priority));
                let next_busy = busy.map(|flight| flight.range.intersect(run)).filter(|meet| !meet.is_empty());
                let next_busy = next_busy.min_by_key(|meet| meet.start);
                let free_end = next_busy.map_or(run.end, |meet| meet.start).min(plan.piece_end(run.start));
                if free_end > run.start {
                    pieces.push(ByteRange::new(run.start, free_end));
                    run.start = free_end;
                } else {
                    run.start = next_busy.map_or(run.end, |meet| meet.end);
                }
            }
        }
        pieces
    }

    async fn fly(self: Arc<Self>, flight: Arc<Flight>) {
        let result = self.fetch(&flight).await;
        let well = matches!(result, Ok(Fetched::All));
        let error = result.err().map(|error| match error.kind() {
            // The object went away: so did the version that was pinned.
            ErrorKind::NotFound => error.with_kind(ErrorKind::StaleVersion),
            _ => error,
        });
        let _ = flight.ended.set(error);
        {
            let mut flights = self.flights();
            flights.under_way.retain(|other| !Arc::ptr_eq(other, &flight));
            // A source that fails is asked again by who waits, not by who may come.
            if let Some(ahead) = flights.ahead.upgrade().filter(|_| well) {
                self.launch(&mut flights, &ahead, ByteRange::new(0, 0));
            }
        }
        self.progress.notify_waiters();
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().expect("no panic while flights are noted")
    }

    async fn fetch(&self, flight: &Flight) -> Result<Fetched> {
        let range = flight.range;
        let Some(held) = self.memory(flight).await? else { return Ok(Fetched::Nothing) };
        let held = Arc::new(held);
        let answer = self.read_origins(range, flight.priority);
        let answer = tokio::time::timeout(self.carrier.deadline, answer).await;
        let mut body = answer.map_err(|_| self.late(range, None))??;
        flight.started.store(true, Ordering::Relaxed);
        let mut gathered = Gathered { offset: range.start, chunks: Vec::new(), bytes: 0 };
        let mut filled = Instant::now();
        while let Some(chunk) =
            tokio::time::timeout(self.carrier.deadline, body.chunks.next()).await.map_err(|_| self.late(range, None))?
        {
            gathered.push(chunk?);
            let unit = if filled.elapsed() < FILL_AFTER { FILL_BYTES } else { PAGE_SIZE };
            if gathered.end() / unit > gathered.offset / unit {
                self.store_gathered(gathered.take(range.end, unit), &held)?;
                filled = Instant::now();
            }
        }
        self.store_gathered(gathered.take(range.end, PAGE_SIZE), &held)?;
        if gathered.offset == range.end {
            return Ok(Fetched::All);
        }
        Err(Error::new(ErrorKind::Corrupt, self.action(range), "the answer ended early").fact("at", gathered.offset))
    }

    /// The memory that a flight needs; `None` where it does not wait for it.
    async fn memory(&self, flight: &Flight) -> Result<Option<MemoryHold>> {
        let Carrier { budget, deadline, .. } = &*self.carrier;
        let len = flight.range.len();
        let bytes = if self.is_scratch() { len } else { len.min(2 * FILL_BYTES) };
        let free = budget.try_hold(bytes);
        if free.is_some() || !flight.patient {
            return Ok(free);
        }
        flight.waits_for_memory.store(true, Ordering::Relaxed);
        if let Store::Scratch(scratch) = &self.store {
            // Whoever waits holds nothing, so that memory comes free whatever the others do.
            scratch.keep_only(flight.range);
        }
        let held = budget.hold(bytes, *deadline).await?;
        flight.waits_for_memory.store(false, Ordering::Relaxed);
        if let Store::Scratch(scratch) = &self.store {
            scratch.move_to(flight.range.start);
        }
        Ok(Some(held))
    }

    fn is_scratch(&self) -> bool {
        matches!(self.store, Store::Scratch(_))
    }

    fn waits_for_memory(&self, need: ByteRange) -> bool {
        let flights = self.flights();
        let mut needed = flights.under_way.iter().filter(|flight| !flight.range.intersect(need).is_empty());
        needed.any(|flight| flight.waits_for_memory.load(Ordering::Relaxed))
    }

    fn store_gathered(&self, (offset, chunks): (u64, Vec<Bytes>), held: &Arc<MemoryHold>) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        tokio::task::block_in_place(|| self.store.fill(offset, &chunks, held))?;
        self.progress.notify_waiters();
        Ok(())
    }

    async fn read_origins(&self, range: ByteRange, priority: Priority) -> Result<ObjectBody> {
        let mut failure = None;
        for origin in &self.origins {
            match origin.read(&self.object, range, priority).await {
                Ok(body) => return Ok(body),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| Error::new(ErrorKind::Internal, self.action(range), "it has no origin")))
    }

    fn action(&self, range: ByteRange) -> String {
        format!("fetch bytes {}..{} of {}", range.start, range.end, self.object.key)
    }

    fn late(&self, range: ByteRange, met: Option<Error>) -> Error {
        let before = met.map(|met| format!("; before that: {}", met.reason())).unwrap_or_default();
        let reason = format!("the source did not deliver within the deadline{before}");
        Error::new(ErrorKind::Timeout, self.action(range), reason)
            .advise("check the source: penstock doctor; or raise deadlines.foreground")
            .fact("deadline_s", self.carrier.deadline.as_secs_f64())
    }
}

/// Chunks that wait to be written as whole pages.
struct Gathered {
    offset: u64,
    chunks: Vec<Bytes>,
    bytes: usize,
}

impl Gathered {
    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push(chunk);
    }

    /// Where the gathered bytes end.
    fn end(&self) -> u64 {
        self.offset + self.bytes as u64
    }

    /// What is gathered up to the last multiple of `unit`, or everything once `end` is reached, and where it belongs.
    fn take(&mut self, end: u64, unit: u64) -> (u64, Vec<Bytes>) {
        let until = if self.end() == end { end } else { self.end() / unit * unit };
        let take = usize::try_from(until.saturating_sub(self.offset)).expect("what is gathered fits memory");
        let offset = self.offset;
        let mut taken = Vec::with_capacity(self.chunks.len());
        let mut left = take;
        let mut rest = Vec::new();
        for mut chunk in self.chunks.drain(..) {
            if left > 0 {
                let head = chunk.split_to(left.min(chunk.len()));
                left -= head.len();
                taken.push(head);
            }
            if !chunk.is_empty() {
                rest.push(chunk);
            }
        }
        self.chunks = rest;
        self.bytes -= take;
        self.offset += take as u64;
        (offset, taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gathered_chunks_come_out_up_to_multiples_of_a_fill_in_order(
            sizes in proptest::collection::vec(1usize..400_000, 1..30),
            start in 0..4 * FILL_BYTES / PAGE_SIZE,
        ) {
            let (total, start): (usize, u64) = (sizes.iter().sum(), start * PAGE_SIZE);
            let content: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
            let mut gathered = Gathered { offset: start, chunks: Vec::new(), bytes: 0 };
            let (mut at, mut out) = (0, Vec::new());
            for size in sizes {
                gathered.push(Bytes::copy_from_slice(&content[at..at + size]));
                at += size;
                let (offset, chunks) = gathered.take(start + total as u64, FILL_BYTES);
                prop_assert_eq!(offset, start + out.len() as u64);
                let bytes: usize = chunks.iter().map(Bytes::len).sum();
                prop_assert!(bytes == 0 || (offset + bytes as u64).is_multiple_of(FILL_BYTES) || at == total);
                prop_assert!((gathered.bytes as u64) < FILL_BYTES);
                chunks.iter().for_each(|chunk| out.extend_from_slice(chunk));
            }
            prop_assert_eq!(out, content);
        }
    }
}
