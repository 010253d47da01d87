//! Many files or ranges in one reply: opened together, read into one arena, lent.

use penstock_engine::{BatchItem, OpenFile};
use penstock_types::{ByteRange, Error, ErrorKind, Priority, Result, TreePath, Version};

use crate::answer::{Answer, Answerer, check_range};
use crate::protocol::{ArenaGrant, ArenaReturn, Reply, Slot};
use crate::ring::Returned;

/// Every item starts at a multiple of this: a cache line, and the widest vector load.
const ALIGNMENT: u64 = 64;

/// How often a batch is opened and read when versions turn out to be gone before any of it was given away.
const RESOLVE_ATTEMPTS: usize = 3;

/// Whether a batch may be tried again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Early,
    Last,
}

/// One thing to read, or why it cannot be.
type Wanted<'a> = Result<(&'a OpenFile, ByteRange)>;

impl Answerer<'_> {
    /// Whole files, as many of the first ones as fit.
    pub fn read_many(&self, paths: &[String], priority: Priority) -> Result<Answer> {
        let paths = &paths[..paths.len().min(self.service.batch_files_max)];
        self.until_resolved(|attempt| {
            let files = self.open_each(paths, priority);
            let wanted = files.iter().map(|file| match file {
                Ok(file) => Ok((file, ByteRange::new(0, file.size()))),
                Err(error) => Err(error.clone()),
            });
            self.batch(wanted.collect(), None, attempt)
        })
    }

    /// Ranges of one file, as many of the first ones as fit. A range is clipped to the file.
    pub fn read_ranges(&self, path: &str, version: Option<Version>, ranges: &[ByteRange]) -> Result<Answer> {
        ranges.iter().try_for_each(|range| check_range(*range))?;
        let path = TreePath::parse(path)?;
        self.until_resolved(|attempt| {
            let file = self.opened(&path, version.clone(), Priority::Foreground)?;
            let clipped = |range: &ByteRange| {
                let start = range.start.min(file.size());
                ByteRange::new(start, range.end.min(file.size()).max(start))
            };
            let pinned = file.attributes().version.clone();
            let attempt = if version.is_some() { Attempt::Last } else { attempt };
            self.batch(ranges.iter().map(|range| Ok((&file, clipped(range)))).collect(), Some(pinned), attempt)
        })
    }

    /// Opens and reads again while a version is gone that nobody has been given a byte of.
    fn until_resolved(&self, read: impl Fn(Attempt) -> Result<Option<Answer>>) -> Result<Answer> {
        for _ in 1..RESOLVE_ATTEMPTS {
            if let Some(answer) = read(Attempt::Early)? {
                return Ok(answer);
            }
        }
        Ok(read(Attempt::Last)?.expect("the last attempt answers, whatever it found"))
    }

    fn open_each(&self, paths: &[String], priority: Priority) -> Vec<Result<OpenFile>> {
        let mut files: Vec<Option<Result<OpenFile>>> = Vec::with_capacity(paths.len());
        let mut missing = Vec::new();
        for path in paths {
            files.push(match TreePath::parse(path) {
                Err(error) => Some(Err(error)),
                Ok(path) => {
                    let cached = self.service.engine.open_cached(&path).map(Ok);
                    if cached.is_none() {
                        missing.push(path);
                    }
                    cached
                }
            });
        }
        let mut opened = Vec::new();
        if !missing.is_empty() {
            let opening = self.wait(async { Ok(self.service.engine.open_many(&missing, priority).await) });
            opened = opening.unwrap_or_else(|error| missing.iter().map(|_| Err(error.clone())).collect());
        }
        let mut opened = opened.into_iter();
        let next = || opened.next().expect("each missing path was opened");
        let mut next = next;
        files.into_iter().map(|file| file.unwrap_or_else(&mut next)).collect()
    }

    /// Reads what is wanted into an arena and lends it; `None` where an early attempt found a version gone.
    fn batch(&self, wanted: Vec<Wanted<'_>>, version: Option<Version>, attempt: Attempt) -> Result<Option<Answer>> {
        let limit = self.service.arenas.arena_bytes_max();
        let (mut slots, end) = lay_out(&wanted, limit);
        let now = || self.service.clock.monotonic();
        if end == 0 {
            let gone = self.session.shelf().take_gone();
            return Ok(Some(Reply::Batch { arena: None, items: slots, gone, version }.into()));
        }
        let mut arena = self.session.shelf().take(end, &self.service.arenas)?;
        let items: Vec<(usize, BatchItem<'_>)> = wanted
            .iter()
            .zip(&slots)
            .enumerate()
            .filter_map(|(position, (wanted, slot))| match (wanted, slot) {
                (Ok((file, range)), Ok(slot)) if slot.len > 0 => {
                    Some((position, BatchItem { file, range: *range, at: as_usize(slot.at) }))
                }
                _ => None,
            })
            .collect();
        let (positions, items): (Vec<usize>, Vec<BatchItem<'_>>) = items.into_iter().unzip();
        let results = self.service.engine.read_batch(&items, arena.bytes_mut(as_usize(end)));
        for (position, result) in positions.into_iter().zip(results) {
            if let Err(error) = result {
                slots[position] = Err(error);
            }
        }
        let mut shelf = self.session.shelf();
        let stale = |slot: &Result<Slot>| slot.as_ref().is_err_and(|error| error.kind() == ErrorKind::StaleVersion);
        if attempt == Attempt::Early && slots.iter().any(stale) {
            shelf.put_back(arena, false, now());
            return Ok(None);
        }
        let gone = shelf.take_gone();
        if !slots.iter().any(|slot| matches!(slot, Ok(slot) if slot.len > 0)) {
            shelf.put_back(arena, false, now());
            return Ok(Some(Reply::Batch { arena: None, items: slots, gone, version }.into()));
        }
        let (id, capacity, descriptor) = (arena.id, arena.capacity(), arena.introduce());
        shelf.lend(arena);
        let arena = Some(ArenaGrant { id, capacity, fresh: descriptor.is_some() });
        let reply = Reply::Batch { arena, items: slots, gone, version };
        // Shared: a client that never read the reply may have mapped an earlier use of it.
        let granted = Some(Returned::Arena(ArenaReturn { id, shared: true }));
        Ok(Some(Answer { reply, descriptor, granted }))
    }
}

/// Where each thing goes, for as many of the first as fit `limit`; and where the last one ends. What is too large
/// for any arena is refused by `ResourceLimit`, which the client takes as a hint to read it by itself.
fn lay_out(wanted: &[Wanted<'_>], limit: u64) -> (Vec<Result<Slot>>, u64) {
    let mut slots = Vec::with_capacity(wanted.len());
    let mut end = 0_u64;
    for one in wanted {
        let range = match one {
            Err(error) => {
                slots.push(Err(error.clone()));
                continue;
            }
            Ok((_, range)) => range,
        };
        if range.len() > limit {
            slots.push(Err(Error::new(ErrorKind::ResourceLimit, "read in a batch", "it is too large for a batch")
                .advise("open it")
                .fact("bytes", range.len())
                .fact("limit", limit)));
            continue;
        }
        let at = end.next_multiple_of(ALIGNMENT);
        if at + range.len() > limit {
            break;
        }
        slots.push(Ok(Slot { at, len: range.len() }));
        end = at + range.len();
    }
    (slots, end)
}

fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("an arena fits the address space")
}
