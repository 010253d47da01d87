//! One file that is open for writing.

mod drafting;
mod lending;
mod said;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use penstock_stage::{Change, Draft, Pin, Target, Written};
use penstock_types::{Answer, ByteRange, Error, ErrorKind, Result, TreePath};
use rustix::fs::{FallocateFlags, fallocate, fstat, ftruncate};
use rustix::io::{pread, retry_on_intr};
use tokio::task::block_in_place;

use crate::engine::Engine;
use crate::live::Opening;
use crate::live::adorned::Adorned;
use crate::live::content::{Content, write_at};
use crate::live::expected::InMemory;
use crate::live::under::{Laid, Under};
use crate::write::{EarlySync, Place, begin_sync, taken};

/// Room is taken in steps of so many bytes: writers ask for it seldom.
const ROOM_STEP: u64 = 8 * 1024 * 1024;

/// What all handles of a path that is open for writing share.
pub(crate) struct LiveFile {
    engine: Weak<Engine>,
    number: u64,
    early: EarlySync,
    /// Written to under the shared lock, committed under the other.
    state: RwLock<State>,
}

struct State {
    /// Where it is; `None` once it was removed.
    place: Option<Place>,
    /// The key that it was opened as: who has it open may go on to write when it was removed.
    target: Target,
    content: Content,
    /// The object that it lies over, where not all of its bytes are here.
    under: Option<Under>,
    /// Whether there is anything to commit.
    is_dirty: AtomicBool,
    /// Handles that may write.
    writers: usize,
    /// Those of them whose owner was told to look the name up and has not come yet.
    awaited: usize,
    /// The time of the version that it begins with, milliseconds since the Unix epoch.
    begun_ms: Option<i64>,
    /// What was said of it besides its bytes.
    adorned: Adorned,
    /// Where it was begun in memory, as long as it is there.
    in_memory: Option<InMemory>,
    /// Why a commit failed: who flushes again has to hear it, too.
    failed: Option<Error>,
    /// What it replaces is remembered as long as it is open.
    _pin: Pin,
}

impl State {
    fn has_nothing_to_commit(&self) -> bool {
        self.place.is_none() || !(self.is_changed() || self.adorned.has_news())
    }

    /// Whether it is not as it was committed.
    fn is_changed(&self) -> bool {
        let is_written = || matches!(&self.content, Content::Lent(lent) if lent.is_changed());
        self.is_dirty.load(Ordering::Relaxed) || is_written()
    }
}

impl LiveFile {
    /// Opens a path for writing: as it is, or empty with `truncate`. Counts a writer, for whom [`LiveFile::release`]
    /// is to be called.
    ///
    /// # Errors
    /// As [`Engine::create`]; what keeps the old content from being read.
    pub(crate) async fn open(
        engine: &Arc<Engine>,
        path: &TreePath,
        opening: Opening,
        truncate: bool,
    ) -> Result<Arc<Self>> {
        loop {
            if let Some(known) = engine.live.at(path)
                && known.join()
            {
                if opening == Opening::New(true) {
                    known.leave();
                    return Err(taken(path));
                }
                if truncate {
                    block_in_place(|| known.set_size(0)).inspect_err(|_| known.leave())?;
                }
                return Ok(known);
            }
            let room = engine.live.expected.room(engine.parts.clock.monotonic());
            let how = (truncate, room.is_some());
            let (place, (content, under), begun_ms) = engine.content_for(path, opening, how).await?;
            let in_memory = room.filter(|_| content.is_in_memory());
            let (target, laid) = (place.target.clone(), place.laid.clone());
            let adorned = Adorned::begin(engine.posix_at(&place, &place.base), begun_ms.is_some(), &content);
            let mut is_ours = false;
            let made = |number| {
                is_ours = true;
                let (_pin, target) = (engine.stage.remember(&place.target), place.target.clone());
                let (place, is_dirty) = (Some(place), AtomicBool::new(begun_ms.is_none()));
                let (writers, awaited, failed) = (0, 0, None);
                let state = State {
                    place,
                    target,
                    content,
                    under,
                    is_dirty,
                    writers,
                    awaited,
                    begun_ms,
                    adorned,
                    in_memory,
                    failed,
                    _pin,
                };
                let (engine, early, state) = (Arc::downgrade(engine), EarlySync::default(), RwLock::new(state));
                Arc::new(Self { engine, number, early, state })
            };
            let file = engine.live.add(path, &target, made);
            // Somebody may have opened it meanwhile, and may have changed and closed it: then it is as they left it.
            let is_current = engine.stage.overlay(&target.scope).at(target.key.as_bytes()) == laid;
            if is_ours && is_current && file.join() {
                return Ok(file);
            }
            file.retire(engine);
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Where it is; `None` once it was removed.
    pub(crate) fn path(&self) -> Option<TreePath> {
        self.read_state().place.as_ref().map(|place| place.path.clone())
    }

    /// Bytes, and when it was written last, milliseconds since the Unix epoch.
    fn facts_of(&self, state: &State) -> Result<(u64, i64)> {
        let facts = fstat(state.content.descriptor()).map_err(|error| self.failed("look at", error))?;
        #[allow(clippy::cast_possible_wrap, reason = "nanoseconds are less than a thousand million")]
        let written_ms = facts.st_mtime * 1000 + facts.st_mtime_nsec as i64 / 1_000_000;
        let begun_ms = state.begun_ms.filter(|_| !state.is_changed());
        let given_ms = state.adorned.said(&state.content).modified_ms();
        let modified_ms = given_ms.or(begun_ms).unwrap_or(written_ms);
        let size = state.under.as_ref().and_then(Under::unwritten);
        Ok((size.unwrap_or_else(|| u64::try_from(facts.st_size).unwrap_or(0)), modified_ms))
    }

    /// How it is read where it lies over an object. Waits where a commit is under way.
    ///
    /// # Errors
    /// `Disk`.
    pub(crate) fn laid(&self) -> Result<Option<Laid>> {
        self.laid_of(&self.read_state())
    }

    /// As [`LiveFile::laid`], without waiting: `None` where it would have to.
    pub(crate) fn laid_now(&self) -> Option<Result<Option<Laid>>> {
        Some(self.laid_of(&*self.state.try_read().ok()?))
    }

    fn laid_of(&self, state: &State) -> Result<Option<Laid>> {
        let Some(under) = state.under.clone() else { return Ok(None) };
        let (size, _) = self.facts_of(state)?;
        Ok(Some(Laid { descriptor: Arc::clone(state.content.descriptor()), under, size }))
    }

    /// The object that it lies over is gone: goes on with what has taken its place; whether anything has.
    ///
    /// # Errors
    /// What keeps that from being opened.
    pub(crate) async fn renew(&self, laid: Laid) -> Result<Option<Laid>> {
        let engine = self.engine()?;
        let target = self.read_state().target.clone();
        let renewed = laid.renewed(&engine, &target).await?;
        if let (Some(renewed), Some(under)) = (&renewed, &mut self.write_state().under) {
            under.go_on(&renewed.under);
        }
        Ok(renewed)
    }

    /// Reads up to the end of the file; how many bytes. Waits where a commit is under way.
    ///
    /// # Errors
    /// `Disk`.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let descriptor = Arc::clone(self.read_state().content.descriptor());
        self.read_from(&descriptor, offset, out)
    }

    /// As [`LiveFile::read`], without waiting: `None` where it would have to.
    pub(crate) fn read_now(&self, offset: u64, out: &mut [u8]) -> Option<Result<usize>> {
        let descriptor = Arc::clone(self.state.try_read().ok()?.content.descriptor());
        Some(self.read_from(&descriptor, offset, out))
    }

    fn read_from(&self, descriptor: &OwnedFd, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < out.len() {
            let read = retry_on_intr(|| pread(descriptor, &mut out[done..], offset + done as u64));
            match read.map_err(|error| self.failed("read", error))? {
                0 => break,
                length => done += length,
            }
        }
        Ok(done)
    }

    /// Writes at once where that needs no waiting.
    pub(crate) fn write(self: &Arc<Self>, offset: u64, data: &[u8]) -> Answer<()> {
        if let Some(written) = self.write_now(offset, data) {
            return Answer::Now(written);
        }
        let data = data.to_vec();
        let range = ByteRange::new(offset, offset + data.len() as u64);
        self.later(move |file| file.change(range, |to, draft| file.write_all(to, draft, range, &data)))
    }

    fn write_now(&self, offset: u64, data: &[u8]) -> Option<Result<()>> {
        let state = self.state.try_read().ok()?;
        let (descriptor, draft) = state.content.writable()?;
        let range = ByteRange::new(offset, offset + data.len() as u64);
        let has_room = |draft: &Draft| {
            let step = if draft.is_in_memory() { Draft::IN_MEMORY_MAX } else { ROOM_STEP };
            draft.may_end(range.end) && draft.try_grow(draft.room_for(range).next_multiple_of(step))
        };
        if state.failed.is_some() || !draft.is_none_or(has_room) {
            return None;
        }
        state.is_dirty.store(true, Ordering::Relaxed);
        state.adorned.note_written();
        let written = self.write_all(descriptor, draft, range, data);
        self.begin_sync(descriptor, range.end);
        Some(written)
    }

    /// Has the disk begin with what lies below `end`, once that is much.
    fn begin_sync(&self, descriptor: &Arc<OwnedFd>, end: u64) {
        if let Some(range) = self.early.due(end) {
            let descriptor = Arc::clone(descriptor);
            let begin = move || begin_sync(&descriptor, range);
            self.engine().ok().map(|engine| engine.parts.runtime.spawn_blocking(begin));
        }
    }

    fn write_all(&self, descriptor: &OwnedFd, draft: Option<&Draft>, range: ByteRange, data: &[u8]) -> Result<()> {
        write_at(descriptor, range.start, data).map_err(|error| self.failed("write", error))?;
        draft.into_iter().for_each(|draft| draft.note_written(range));
        Ok(())
    }

    /// Calls `fallocate` with the kernel's own mode.
    pub(crate) fn allocate(self: &Arc<Self>, mode: i32, offset: u64, length: u64) -> Answer<()> {
        self.later(move |file| {
            file.leave_memory()?;
            let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
            let range = ByteRange::new(offset, offset.saturating_add(length));
            let grown = if mode.contains(FallocateFlags::KEEP_SIZE) { ByteRange::default() } else { range };
            file.change(grown, |to, draft| {
                let over = draft.filter(|draft| draft.over().is_some());
                let allocated = match over {
                    // What lies over an object takes room when it is written.
                    Some(_) if (mode - FallocateFlags::KEEP_SIZE).is_empty() => grow_to(to, grown.end),
                    Some(_) if !mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) => {
                        Err(rustix::io::Errno::OPNOTSUPP)
                    }
                    _ => retry_on_intr(|| fallocate(to, mode, offset, length)),
                };
                if let (Some(draft), Ok(()), false) = (over, &allocated, (mode - FallocateFlags::KEEP_SIZE).is_empty())
                {
                    draft.note_written(range);
                }
                allocated.map_err(|error| match error {
                    rustix::io::Errno::OPNOTSUPP => {
                        Error::new(ErrorKind::Unsupported, file.action("allocate"), error.to_string())
                    }
                    error => file.failed("allocate", error),
                })
            })
        })
    }

    /// Cuts or grows it. Blocks.
    ///
    /// # Errors
    /// As for writing.
    pub(crate) fn set_size(&self, size: u64) -> Result<()> {
        let engine = self.engine()?;
        let mut state = self.write_state();
        if size == 0 && matches!(state.content, Content::Committed(_)) {
            // Nothing of what was there is needed.
            (state.content, state.under) = (Content::Draft(engine.stage.create(&state.target)?), None);
        }
        drop(state);
        self.change(ByteRange::new(size, size), |to, draft| {
            ftruncate(to, size).map_err(|error| self.failed("cut", error))?;
            draft.into_iter().for_each(|draft| draft.note_size(size));
            Ok(())
        })
    }

    /// Changes the draft, which is made of what was committed where there is none, and which has room for `range`.
    fn change(&self, range: ByteRange, change: impl Fn(&OwnedFd, Option<&Draft>) -> Result<()>) -> Result<()> {
        loop {
            {
                let state = self.read_state();
                if let Some(failed) = &state.failed {
                    return Err(failed.clone());
                }
                if let Some((descriptor, draft)) = state.content.writable()
                    && draft.is_none_or(|draft| draft.may_end(range.end))
                {
                    draft.map_or(Ok(()), |draft| draft.grow(draft.room_for(range)))?;
                    state.is_dirty.store(true, Ordering::Relaxed);
                    state.adorned.note_written();
                    return change(descriptor, draft);
                }
            }
            self.make_draft()?;
        }
    }

    /// Commits what was written since the last time; `None` where there is nothing to commit. Blocks.
    ///
    /// # Errors
    /// What keeps it from being durable, also when it is asked again.
    pub(crate) fn commit(&self) -> Result<Option<(TreePath, Arc<Change>)>> {
        let mut state = self.write_state();
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        if state.has_nothing_to_commit() {
            return Ok(None);
        }
        let committed = match self.commit_posix(&mut state) {
            Ok(None) => self.commit_content(&mut state),
            committed => committed,
        };
        state.is_dirty.store(false, Ordering::Relaxed);
        committed.inspect_err(|error| state.failed = Some(error.clone()))
    }

    /// Commits a copy where what was committed could still be written to; `None` where it could not. Blocks.
    ///
    /// # Errors
    /// What keeps it from being copied; what was committed stays so.
    pub(crate) fn part(&self) -> Result<Option<(TreePath, Arc<Change>)>> {
        let mut state = self.write_state();
        if !state.content.is_shared() || state.failed.is_some() {
            return Ok(None);
        }
        self.commit_content(&mut state)
    }

    fn commit_content(&self, state: &mut State) -> Result<Option<(TreePath, Arc<Change>)>> {
        let engine = self.engine()?;
        let (size, modified_ms) = self.facts_of(state)?;
        let posix = state.adorned.said(&state.content);
        let State { place, content, under, .. } = state;
        let Some(place) = place else { return Ok(None) };
        if let Some(under) = under {
            under.complete(&engine, content, (&place.target, size))?;
        }
        let committed = content.take(&engine, place).and_then(|draft| {
            if content.is_shared() {
                engine.live.begin_settling(self.number, place);
            }
            let written = Written { modified_ms, metadata: posix.metadata(), ..engine.written(place)? };
            engine.stage.commit_all(vec![(draft, written)], Vec::new())
        });
        let change = committed.map(|mut committed| committed.remove(0)).map_err(|error| {
            engine.live.note_failed(self.number);
            error.during(format!("write {}", place.path))
        })?;
        let now = engine.parts.clock.monotonic();
        engine.live.note_committed(self.number, change.operation(), content.is_shared(), now);
        engine.note_own(place, &change);
        *under = under.take().and_then(|under| under.committed(&change));
        let path = place.path.clone();
        if state.begun_ms.replace(modified_ms).is_none() {
            engine.live.expected.note(size, now);
        }
        state.adorned.committed();
        Ok(Some((path, change)))
    }

    /// Takes the draft out to be committed elsewhere by `commit`, which says at which place it goes on; what was
    /// committed already is handed over as its descriptor. Blocks.
    pub(crate) fn hand_over(
        &self,
        to: &Place,
        commit: impl FnOnce(Option<Draft>, &Arc<OwnedFd>) -> Result<(Place, Arc<Change>)>,
    ) -> Result<Arc<Change>> {
        let engine = self.engine()?;
        let mut state = self.write_state();
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        let (size, modified_ms) = self.facts_of(&state)?;
        let State { content, under, target, .. } = &mut *state;
        if let Some(under) = under {
            under.complete(&engine, content, (target, size))?;
        }
        let descriptor = Arc::clone(content.descriptor());
        let draft = match content {
            Content::Lent(lent) if lent.is_changed() => Some(lent.take(&engine, target)?),
            Content::Lent(_) | Content::Committed(_) => None,
            Content::Draft(_) => match std::mem::replace(content, Content::Committed(Arc::clone(&descriptor))) {
                Content::Draft(draft) => Some(draft),
                _ => None,
            },
        };
        let is_shared = content.is_shared();
        if is_shared {
            engine.live.begin_settling(self.number, to);
        }
        let (place, change) = commit(draft, &descriptor).inspect_err(|error| {
            engine.live.note_failed(self.number);
            state.failed = Some(error.clone());
        })?;
        let now = engine.parts.clock.monotonic();
        engine.live.note_committed(self.number, change.operation(), is_shared, now);
        (state.place, *state.is_dirty.get_mut()) = (Some(place), false);
        state.under = state.under.take().and_then(|under| under.committed(&change));
        state.begun_ms = Some(modified_ms);
        state.adorned.committed();
        Ok(change)
    }

    /// Its path is another file's or nobody's from now on: nothing of it is committed any more.
    pub(crate) fn detach(&self, engine: &Engine) -> Option<Place> {
        let place = self.write_state().place.take()?;
        engine.live.remove(&place.path, self.number, &place.target, engine.parts.clock.monotonic());
        Some(place)
    }

    /// Takes a detaching back.
    pub(crate) fn reattach(self: &Arc<Self>, engine: &Engine, place: Place) {
        let (paths, targets) = ((&place.path, &place.path), (&place.target, &place.target));
        engine.live.rename(self, paths, targets, engine.parts.clock.monotonic());
        self.write_state().place = Some(place);
    }

    /// Counts a handle that may write; not where the file is on its way out.
    fn join(&self) -> bool {
        let mut state = self.write_state();
        let is_there = state.place.is_some();
        state.writers += usize::from(is_there);
        is_there
    }

    fn leave(&self) {
        self.write_state().writers -= 1;
    }

    /// Who was told to look the name up again is waited for; it holds a handle meanwhile.
    pub(crate) fn await_opener(&self) {
        self.write_state().awaited += 1;
    }

    /// Somebody came who may be the one that is waited for, or nobody will: gives the handle that was held for them
    /// back, where there is one. Nobody has written by it, so that nothing is committed. Blocks.
    pub(crate) fn end_waiting(&self, engine: &Engine) {
        let mut state = self.write_state();
        if state.awaited > 0 {
            state.awaited -= 1;
            state.writers -= 1;
            drop(state);
            self.retire(engine);
        }
    }

    /// A handle is gone. The last one commits what is left, and gives the path free. Blocks where something is left.
    pub(crate) fn release(&self) {
        let Ok(engine) = self.engine() else { return };
        self.leave();
        if let Err(error) = self.commit() {
            tracing::error!(code = error.kind().code(), %error, "what was written is lost: it was never flushed");
        }
        self.retire(&engine);
    }

    /// Whether the last handle could be closed without waiting.
    pub(crate) fn is_committed(&self) -> bool {
        self.read_state().has_nothing_to_commit()
    }

    /// Whether a flush has nothing to do and nothing to say, where that is known without waiting.
    pub(crate) fn is_flushed(&self) -> bool {
        self.state.try_read().is_ok_and(|state| state.has_nothing_to_commit() && state.failed.is_none())
    }

    /// Gives the path free where nobody writes any more.
    fn retire(&self, engine: &Engine) {
        let mut state = self.write_state();
        if state.writers > 0 {
            return;
        }
        engine.live.note_closed(self.number);
        if let Some(place) = state.place.take() {
            drop(state);
            engine.live.remove(&place.path, self.number, &place.target, engine.parts.clock.monotonic());
        }
    }

    fn later<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
    ) -> Answer<T> {
        let me = Arc::clone(self);
        Answer::Later(Box::pin(async move { block_in_place(|| work(&me)) }))
    }

    fn engine(&self) -> Result<Arc<Engine>> {
        let gone = || Error::new(ErrorKind::Cancelled, self.action("write"), "the node is being stopped");
        self.engine.upgrade().ok_or_else(gone)
    }

    fn failed(&self, verb: &str, error: rustix::io::Errno) -> Error {
        let kind = ErrorKind::of_disk(&error.into());
        Error::new(kind, self.action(verb), error.to_string()).advise("check the disk of the stage")
    }

    /// The lock may be held.
    fn action(&self, verb: &str) -> String {
        let path =
            self.state.try_read().ok().and_then(|state| state.place.as_ref().map(|place| place.path.to_string()));
        format!("{verb} {}", path.as_deref().unwrap_or("an open file"))
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a file at least so large.
fn grow_to(file: &OwnedFd, size: u64) -> rustix::io::Result<()> {
    let now = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    if size > now { ftruncate(file, size) } else { Ok(()) }
}

impl fmt::Debug for LiveFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveFile").field("number", &self.number).finish_non_exhaustive()
    }
}
