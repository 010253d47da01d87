//! What is known of every change, in memory: admitted, waiting, in conflict, settled. The rules of their order are
//! here; nothing here touches a disk. The same rules replay the journal.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use penstock_types::{Durability, Error, ErrorKind, Metrics, Result};

use crate::change::{Base, Change, Ending, OperationId, Phase, Settled, Target, Written, operation_of};
use crate::copies::Copies;
use crate::journal::{Journal, Slot};
use crate::keys::{Key, Shown};
use crate::overlay::Names;
use crate::pins::Pins;
use crate::record::{ChangeRecord, Record, SettledRecord};
use crate::schedule::Schedule;
use crate::status::{Conflicted, Failing, NAMED_MAX, StageStatus};
use crate::stream::EarlyUploads;

/// How much longer, µs, what would be forgotten is kept while its key is being written.
const PINNED_FOR_US: i64 = 60_000_000;

/// What is held back is looked at again after so long.
const HELD_FOR: Duration = Duration::from_millis(100);

/// Every change of the stage.
pub struct Table {
    scopes: HashMap<Arc<str>, Scope>,
    /// Every change that can be found: those that left are here for a while.
    changes: BTreeMap<OperationId, Arc<Change>>,
    pub schedule: Schedule,
    /// What is shown after it was settled, by the moment at which it is forgotten.
    expiring: BTreeMap<(i64, OperationId), (Arc<str>, Bytes)>,
    leaving: VecDeque<Leaving>,
    /// Changes that were refused by a failing disk: their records may be there.
    refused: Vec<Arc<Change>>,
    pins: Pins,
    metrics: Metrics,
    /// Uploads that were begun for drafts.
    pub uploads: EarlyUploads,
    /// What is to be copied in a source.
    pub copies: Copies,
}

/// The keys of one scope.
#[derive(Default)]
struct Scope {
    names: Arc<Names>,
    keys: BTreeMap<Bytes, Key>,
}

/// A change that is over. Its file is given up when the journal says so.
struct Leaving {
    change: Arc<Change>,
    /// Sequence of the record that says so.
    said: u64,
    /// When nothing of it has to be found any more; set once that record is durable.
    until: Option<Duration>,
    /// Its file, and the bytes that it is charged for, are those of the change that it was staged again as.
    inherited: bool,
}

/// What a new change replaces.
pub struct Admission {
    pub base: Base,
    /// An earlier change that was not brought, and never will be.
    pub replaced: Option<Arc<Change>>,
}

impl Admission {
    /// Who waited for what is replaced waits for what replaces it.
    pub fn ending(&self) -> Ending {
        self.replaced.as_ref().map_or_else(Ending::default, |replaced| Ending::clone(replaced.ending()))
    }
}

/// What has left for good.
#[derive(Default)]
pub struct Left {
    /// Bytes of the budget that are free.
    pub freed: u64,
    /// Dropped by the caller, without a lock: that removes their files.
    pub changes: Vec<Arc<Change>>,
}

impl Table {
    pub fn new(seed: u64, pins: Pins, metrics: Metrics) -> Self {
        Self {
            scopes: HashMap::new(),
            changes: BTreeMap::new(),
            schedule: Schedule::new(seed),
            expiring: BTreeMap::new(),
            leaving: VecDeque::new(),
            refused: Vec::new(),
            pins,
            metrics,
            uploads: EarlyUploads::default(),
            copies: Copies::default(),
        }
    }

    pub fn names(&mut self, scope: &str) -> Arc<Names> {
        Arc::clone(&self.scope(scope).names)
    }

    /// What a change would replace now.
    pub fn admission(&self, written: &Written) -> Result<Admission> {
        let key = self.key(&written.target);
        if written.only_onto_base && key.is_some_and(|key| !key.may_follow(&written.base)) {
            let error =
                Error::new(ErrorKind::StaleVersion, "write", "it was changed after it was opened to be changed");
            return Err(error.advise("open it again, and change what is there now"));
        }
        let Some(newest) = key.and_then(Key::newest) else {
            return Ok(Admission { base: self.resolve(&written.base, key)?, replaced: None });
        };
        if written.exclusive && newest.size().is_some() {
            let error = Error::new(ErrorKind::AlreadyExists, newest.action("write"), "something has that name");
            return Err(error.advise("write with mode wb to replace it"));
        }
        let is_copied = self.copies.is_copied(newest);
        let progress = newest.progress();
        let untouched = progress.phase == Phase::Waiting && !progress.given_out && !is_copied;
        Ok(match untouched && newest.durability() == Durability::Local {
            true => Admission { base: progress.base.clone(), replaced: Some(Arc::clone(newest)) },
            false => Admission { base: Base::Staged(newest.operation()), replaced: None },
        })
    }

    /// Whether the source has the newest content of a key, as far as this node has changed it.
    pub fn is_free(&self, target: &Target) -> bool {
        self.key(target).is_none_or(|key| key.newest().is_none())
    }

    /// After a replay: what no change goes on with is to be aborted.
    pub fn set_uploads_free(&mut self) {
        self.uploads.set_free(self.changes.values().filter(|change| change.phase() != Phase::Over));
    }

    /// What `base` is by now, of a key without changes that wait.
    fn resolve(&self, base: &Base, key: Option<&Key>) -> Result<Base> {
        let staged = match base {
            Base::Staged(operation) => *operation,
            Base::Version(version) => match operation_of(version) {
                Some(operation) => operation,
                None => return Ok(base.clone()),
            },
            Base::Absent | Base::Unconditional => return Ok(base.clone()),
        };
        if let Some(shown) = key.and_then(|key| key.shown.as_ref()) {
            return Ok(shown.record.settled.base());
        }
        match self.changes.get(&staged) {
            Some(change) if change.phase().is_conflict() => Ok(change.base()),
            _ => Err(Error::new(ErrorKind::StaleVersion, "write", "what it replaces is not known any more")
                .advise("open it again")),
        }
    }

    /// Takes a change in whose record is on the way to the disk.
    pub fn admit(&mut self, change: &Arc<Change>) {
        let replaced = change.progress().replaces.clone();
        if let Some(replaced) = replaced.filter(|replaced| replaced.phase() != Phase::Resolving) {
            replaced.progress().phase = Phase::Held;
            self.schedule.remove(replaced.operation());
        }
        self.changes.insert(change.operation(), Arc::clone(change));
        self.copies.add(change);
        self.key_mut(change.target()).admitted.push(Arc::clone(change));
    }

    /// Shows a change whose record is durable.
    pub fn reveal(&mut self, change: &Arc<Change>) {
        let replaced = std::mem::take(&mut change.progress().replaces);
        self.key_mut(change.target()).take(change.operation());
        if let Some(replaced) = replaced {
            self.key_mut(change.target()).take(replaced.operation());
            self.count(&replaced, -1);
            if let Some(stream) = replaced.stream() {
                stream.discard();
            }
            let inherited = replaced.phase() == Phase::Resolving;
            self.leave(&replaced, 0, inherited);
        }
        change.progress().phase = Phase::Waiting;
        if let Some(file) = change.file() {
            file.keep();
        }
        self.key_mut(change.target()).add(change);
        self.count(change, 1);
        self.key_changed(change.target());
    }

    /// Takes back a change whose record is lost.
    pub fn withdraw(&mut self, change: &Arc<Change>) {
        let replaced = std::mem::take(&mut change.progress().replaces);
        self.key_mut(change.target()).take(change.operation());
        self.changes.remove(&change.operation());
        self.copies.remove(change);
        if let Some(stream) = change.stream() {
            stream.discard();
        }
        if let Some(replaced) = replaced.filter(|replaced| replaced.phase() == Phase::Held) {
            replaced.progress().phase = Phase::Waiting;
        }
        self.key_changed(change.target());
        self.refused.push(Arc::clone(change));
    }

    /// What was withdrawn: its files may be needed as long as its records may be read.
    pub fn refused(&mut self) -> &mut Vec<Arc<Change>> {
        &mut self.refused
    }

    pub fn find(&self, operation: OperationId) -> Option<Arc<Change>> {
        self.changes.get(&operation).cloned()
    }

    /// Gives out the oldest change that may be; what is `held` is looked at again a while later.
    pub fn next(&mut self, now: Duration, held: impl Fn(&Change) -> bool) -> Option<Arc<Change>> {
        loop {
            let operation = self.schedule.take(now)?;
            let Some(change) = self.changes.get(&operation) else { continue };
            if held(change) || self.waits_for_copy(change) {
                self.schedule.hold(operation, now + HELD_FOR);
                continue;
            }
            let mut progress = change.progress();
            if progress.phase == Phase::Waiting {
                (progress.phase, progress.given_out) = (Phase::Brought, true);
                drop(progress);
                return Some(Arc::clone(change));
            }
        }
    }

    pub fn settle(&mut self, change: &Change, settled: Settled, expires: Option<i64>, journal: &Journal) {
        if !matches!(change.phase(), Phase::Waiting | Phase::Brought) {
            return;
        }
        let (operation, target) = (change.operation(), change.target().clone());
        let record = SettledRecord { operation, target, settled, expires };
        let (said, home) = journal.keep(&Record::Settled(Box::new(record.clone())));
        if change.is_marked() {
            self.uploads.forget(change.marker(), journal);
        }
        self.apply_settled(record, home, said);
    }

    /// The source has a change: the next one replaces what it has now. `said` is the record that tells.
    pub fn apply_settled(&mut self, record: SettledRecord, home: Slot, said: u64) {
        let (operation, target) = (record.operation, record.target.clone());
        let settled = self.changes.get(&operation).cloned();
        self.follow_settled(&record);
        if let Some(change) = &settled {
            self.count(change, -1);
            self.schedule.remove(operation);
            if change.original().is_some() {
                // What it was copied from may go.
                self.schedule.release();
            }
            self.leave(change, said, false);
        }
        if let Some(expires) = record.expires {
            let key = Bytes::copy_from_slice(target.key.as_bytes());
            self.expiring.insert((expires, operation), (Arc::clone(&target.scope), key));
        }
        let key = self.key_mut(&target);
        key.take(operation);
        key.follow(operation, &record.settled.base());
        key.shown = Some(Shown { record, home });
        self.key_changed(&target);
        // Last, so that who waited for it sees it.
        if let Some(change) = settled {
            change.end(Ok(()));
        }
    }

    pub fn conflict(&mut self, change: &Change, error: Error, journal: &Journal) {
        if matches!(change.phase(), Phase::Waiting | Phase::Brought) {
            let operation = change.operation();
            journal.keep(&Record::Conflict { operation, error: error.clone() });
            // What the source got last from here is not what it has: nobody is shown that any more.
            let target = change.target().clone();
            if let Some(shown) = self.key(&target).and_then(|key| key.shown.as_ref()) {
                let operation = shown.record.operation;
                journal.keep(&Record::Outdated { operation, target: target.clone() });
                self.apply_outdated(operation, &target);
            }
            self.apply_conflict(operation, error);
        }
    }

    /// A change is not shown any more over what its source says.
    pub fn apply_outdated(&mut self, operation: OperationId, target: &Target) {
        let key = Bytes::copy_from_slice(target.key.as_bytes());
        self.forget_shown(&target.scope, &key, operation);
    }

    /// A change will not be brought: the next one replaces what it was to replace.
    pub fn apply_conflict(&mut self, operation: OperationId, error: Error) {
        let Some(change) = self.changes.get(&operation).cloned() else { return };
        self.count(&change, -1);
        self.schedule.remove(operation);
        let base = {
            let mut progress = change.progress();
            (progress.phase, progress.failure) = (Phase::Conflict, Some(error.clone()));
            progress.base.clone()
        };
        self.count(&change, 1);
        self.follow_conflict(&change);
        let key = self.key_mut(change.target());
        key.take(operation);
        key.follow(operation, &base);
        self.key_changed(change.target());
        change.end(Err(error));
    }

    /// A change in conflict is given up.
    pub fn apply_discarded(&mut self, operation: OperationId) {
        let Some(change) = self.changes.get(&operation).filter(|change| change.phase().is_conflict()).cloned() else {
            return;
        };
        self.count(&change, -1);
        self.leave(&change, 0, false);
    }

    /// What a change replaces that is staged again over `base`.
    pub fn base_over(&self, target: &Target, base: &Base) -> Result<Base> {
        let key = self.key(target);
        match key.and_then(Key::newest) {
            Some(newest) => Ok(Base::Staged(newest.operation())),
            None => self.resolve(base, key),
        }
    }

    pub fn fail(&mut self, change: &Change, error: Error, now: Duration) {
        let mut progress = change.progress();
        if progress.phase != Phase::Brought {
            return;
        }
        let asked = error.requested_delay_ms().map(Duration::from_millis);
        progress.phase = Phase::Waiting;
        progress.failures = progress.failures.saturating_add(1);
        progress.failure = Some(error);
        self.schedule.add_failed(change.operation(), progress.failures, asked, now);
    }

    pub fn hurry(&mut self) {
        self.schedule.hurry();
    }

    pub fn pending_below(&self, scope: &str, prefix: &[u8]) -> Vec<Arc<Change>> {
        let Some(scope) = self.scopes.get(scope) else { return Vec::new() };
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        let below = scope.keys.range::<[u8], _>(from).take_while(|(key, _)| key.starts_with(prefix));
        let mut pending: Vec<Arc<Change>> = below.flat_map(|(_, key)| key.waiting.iter().cloned()).collect();
        pending.sort_by_key(|change| change.operation());
        pending
    }

    pub fn conflicts_below(&self, scope: &str, prefix: &[u8]) -> Vec<Arc<Change>> {
        let below = |change: &&Arc<Change>| {
            let target = change.target();
            &*target.scope == scope && target.key.as_bytes().starts_with(prefix) && change.phase().is_conflict()
        };
        self.changes.values().filter(below).cloned().collect()
    }

    /// Forgets what was settled long enough ago, and lets go of what left and is durable.
    pub fn expire(&mut self, moment: i64, now: Duration, grace: Duration, durable: u64) -> Left {
        while let Some((&(expires, operation), _)) = self.expiring.first_key_value()
            && expires <= moment
        {
            let Some((_, (scope, key))) = self.expiring.pop_first() else { break };
            if self.pins.is_pinned(&scope, &key) {
                self.expiring.insert((moment.saturating_add(PINNED_FOR_US), operation), (scope, key));
            } else {
                self.forget_shown(&scope, &key, operation);
            }
        }
        self.free_originals(durable);
        let mut left = Left::default();
        for leaving in &mut self.leaving {
            if leaving.until.is_none() && leaving.said <= durable {
                leaving.until = Some(now + grace);
                left.freed += if leaving.inherited { 0 } else { leaving.change.charge() };
            }
        }
        while self.leaving.front().and_then(|leaving| leaving.until).is_some_and(|until| until <= now) {
            let Some(Leaving { change, inherited, .. }) = self.leaving.pop_front() else { break };
            self.changes.remove(&change.operation());
            if let Some(file) = change.file().filter(|_| !inherited) {
                file.give_up();
            }
            left.changes.push(change);
        }
        left
    }

    /// Lets go of what left while the journal was replayed: its files are dealt with by their names.
    pub fn forget_left(&mut self) {
        for Leaving { change, .. } in self.leaving.drain(..) {
            self.changes.remove(&change.operation());
        }
    }

    fn forget_shown(&mut self, scope: &str, key: &Bytes, operation: OperationId) {
        let Some(scope) = self.scopes.get_mut(scope) else { return };
        let Some(found) = scope.keys.get_mut(key) else { return };
        if found.shown.as_ref().is_some_and(|shown| shown.record.operation == operation) {
            found.shown = None;
            scope.names.lay(key, found.laid());
            if found.is_empty() {
                scope.keys.remove(key);
            }
        }
    }

    /// Changes whose newest record is in a file of the journal, those that are leaving included.
    pub fn at_home_in(&self, segment: u64) -> Vec<Arc<Change>> {
        let at_home = |change: &&Arc<Change>| segment_of(&change.progress().home) == Some(segment);
        self.changes.values().filter(at_home).cloned().collect()
    }

    /// Says again, at the end of the journal, all that a file of it is needed for. The files of changes are synced.
    /// Not, and `false`, while the record that ends one of them is on its way: said again behind that, it would come
    /// back with the next start.
    pub fn restate(&mut self, segment: u64, journal: &Journal) -> bool {
        let at_home = self.at_home_in(segment);
        if at_home.iter().any(|change| change.phase().is_ending()) {
            return false;
        }
        for change in at_home {
            let (_, home) = journal.keep(&ChangeRecord::of(&change, false));
            change.progress().home = home;
        }
        self.uploads.restate(|home| segment_of(home) == Some(segment), journal);
        for key in self.scopes.values_mut().flat_map(|scope| scope.keys.values_mut()) {
            if let Some(shown) = key.shown.as_mut().filter(|shown| segment_of(&shown.home) == Some(segment)) {
                (_, shown.home) = journal.keep(&Record::Settled(Box::new(shown.record.clone())));
            }
        }
        true
    }

    /// About how many bytes of the journal are needed.
    pub fn needed_bytes(&self) -> u64 {
        /// More than a record takes, but for a long key or much metadata.
        const RECORD_BYTES: usize = 512;
        const PART_BYTES: usize = 64;
        let parts = |change: &Arc<Change>| change.progress().upload.as_ref().map_or(0, |(_, parts)| parts.len());
        let changes: usize = self.changes.values().map(|change| RECORD_BYTES + PART_BYTES * parts(change)).sum();
        (changes + RECORD_BYTES * (self.expiring.len() + self.uploads.len())) as u64
    }

    /// When the oldest change was committed that its source has not got, without those in conflict.
    pub fn oldest_ms(&self) -> Option<i64> {
        let waits = |change: &&Arc<Change>| matches!(change.phase(), Phase::Waiting | Phase::Brought | Phase::Held);
        self.changes.values().find(waits).map(|change| change.committed_ms())
    }

    pub fn status(&self) -> StageStatus {
        let mut status = StageStatus::default();
        for change in self.changes.values() {
            let progress = change.progress();
            let (attachment, key) = (change.target().attachment.to_string(), change.target().key.to_string());
            let said = progress.failure.as_ref().map(|error| (error.kind().code().to_owned(), error.to_string()));
            match progress.phase {
                Phase::Waiting | Phase::Brought | Phase::Held => {
                    status.files += 1;
                    status.bytes += change.charge();
                    status.oldest_ms = status.oldest_ms.or(Some(change.committed_ms()));
                    let Some((code, reason)) = said.filter(|_| status.failures.len() < NAMED_MAX) else { continue };
                    status.failures.push(Failing { attachment, key, tries: progress.failures, code, reason });
                }
                Phase::Conflict | Phase::Resolving => {
                    status.conflicts += 1;
                    status.conflict_bytes += change.charge();
                    let Some((code, reason)) = said.filter(|_| status.conflicted.len() < NAMED_MAX) else { continue };
                    let (operation, committed_ms) = (change.operation().to_string(), change.committed_ms());
                    let size = change.size();
                    status.conflicted.push(Conflicted { operation, attachment, key, size, committed_ms, code, reason });
                }
                Phase::Admitted | Phase::Over => {}
            }
        }
        status
    }

    /// Ends every wait.
    pub fn end_all(&self) {
        for change in self.changes.values() {
            let error = Error::new(ErrorKind::Cancelled, change.action("bring"), "the node is being stopped");
            change.end(Err(error.advise("it is staged, and goes on after the next start")));
        }
    }

    /// Takes in a change that the journal tells of, in place of what it told before.
    pub fn restore(&mut self, change: &Arc<Change>, replaced: Option<OperationId>) {
        for operation in replaced.into_iter().chain([change.operation()]) {
            if let Some(known) = self.changes.remove(&operation) {
                self.key_mut(known.target()).take(operation);
                self.copies.remove(&known);
                if known.phase() != Phase::Over {
                    self.count(&known, -1);
                }
            }
        }
        self.changes.insert(change.operation(), Arc::clone(change));
        self.copies.add(change);
        self.count(change, 1);
        if change.phase() == Phase::Waiting {
            self.key_mut(change.target()).add(change);
        }
        self.key_changed(change.target());
    }

    /// Every change that is known, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Change>> {
        self.changes.values()
    }

    /// A change is over; `said` is the record that tells, 0 where that is durable.
    fn leave(&mut self, change: &Arc<Change>, said: u64, inherited: bool) {
        change.progress().phase = Phase::Over;
        match said {
            0 => self.copies.remove(change),
            said => self.copies.end(change, said),
        }
        self.leaving.push_back(Leaving { change: Arc::clone(change), said, until: None, inherited });
    }

    /// Brings the schedule and the overlay up to date with a key.
    fn key_changed(&mut self, target: &Target) {
        let Some(scope) = self.scopes.get_mut(&target.scope) else { return };
        let name = Bytes::copy_from_slice(target.key.as_bytes());
        let Some(key) = scope.keys.get(&name) else { return };
        if let Some(first) = key.waiting.first() {
            let mut earlier = key.admitted.iter().filter(|change| change.operation() < first.operation());
            let progress = first.progress();
            // One that failed has been given a time of its own.
            if progress.phase == Phase::Waiting && progress.failures == 0 && earlier.next().is_none() {
                self.schedule.add(first.operation());
            }
        }
        scope.names.lay(&name, key.laid());
        if key.is_empty() {
            scope.keys.remove(&name);
        }
    }

    /// Counts a change in or out, as what it is now.
    fn count(&self, change: &Change, by: i64) {
        match change.phase() {
            Phase::Conflict | Phase::Resolving => drop(self.metrics.stage_conflicts.inc_by(by)),
            _ => {
                self.metrics.stage_files.inc_by(by);
                self.metrics.stage_bytes.inc_by(by * change.charge().cast_signed());
            }
        }
    }

    /// What the source got last of a key, while listings may not show it.
    pub fn shown(&self, target: &Target) -> Option<&SettledRecord> {
        self.key(target)?.shown.as_ref().map(|shown| &shown.record)
    }

    /// All that sources got last, while listings may not show it.
    pub fn all_shown(&self) -> impl Iterator<Item = &SettledRecord> {
        let keys = self.scopes.values().flat_map(|scope| scope.keys.values());
        keys.filter_map(|key| Some(&key.shown.as_ref()?.record))
    }

    fn key(&self, target: &Target) -> Option<&Key> {
        self.scopes.get(&target.scope)?.keys.get(target.key.as_bytes())
    }

    fn key_mut(&mut self, target: &Target) -> &mut Key {
        let name = Bytes::copy_from_slice(target.key.as_bytes());
        self.scope(&target.scope).keys.entry(name).or_default()
    }

    fn scope(&mut self, scope: &str) -> &mut Scope {
        if !self.scopes.contains_key(scope) {
            self.scopes.insert(scope.into(), Scope::default());
        }
        self.scopes.get_mut(scope).expect("it was put there if it was missing")
    }
}

fn segment_of(home: &Slot) -> Option<u64> {
    home.lock().expect("no panic while a place is held").map(|place| place.segment)
}
