//! Which objects of the source are still to be copied: what changes one of them comes after its copy, and after the
//! journal has durably said that the source has that.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use penstock_types::{Error, ErrorKind, ObjectKey, Result};

use crate::change::{Base, Change, OperationId, Original, Phase, Target, operation_of};
use crate::record::SettledRecord;
use crate::stage::Stage;
use crate::table::{Admission, Table};

/// Copies of one key, by the change that needed the original first.
type OfOne = BTreeMap<(OperationId, OperationId), Arc<Change>>;

/// Copies that are not over, by the key of their original. Those in conflict are among them.
#[derive(Default)]
pub struct Copies {
    by_original: HashMap<(Arc<str>, ObjectKey), OfOne>,
    /// Copies that are over, with the record that says so.
    over: Vec<(u64, Arc<Change>)>,
}

impl Copies {
    pub fn add(&mut self, change: &Arc<Change>) {
        if let Some((key, place)) = place_of(change) {
            self.by_original.entry(key).or_default().insert(place, Arc::clone(change));
        }
    }

    pub fn remove(&mut self, change: &Change) {
        let Some((key, place)) = place_of(change) else { return };
        if let Some(copies) = self.by_original.get_mut(&key) {
            copies.remove(&place);
            if copies.is_empty() {
                self.by_original.remove(&key);
            }
        }
    }

    /// A copy is over; its original is free when the record `said` is durable.
    pub fn end(&mut self, change: &Arc<Change>, said: u64) {
        if change.original().is_some() {
            self.over.push((said, Arc::clone(change)));
        }
    }

    /// Frees the originals of what is over and durably said to be; whether there were any.
    pub fn free(&mut self, durable: u64) -> bool {
        let (freed, over): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.over).into_iter().partition(|(said, _)| *said <= durable);
        self.over = over;
        freed.iter().for_each(|(_, change)| self.remove(change));
        !freed.is_empty()
    }

    /// The oldest copy that a change has to wait for: it is of the object that the change would replace.
    pub fn before(&self, change: &Change) -> Option<&Arc<Change>> {
        let mut of_it = self.of(change.target())?.iter();
        of_it
            .find(|((since, copy), _)| *since < change.operation() && *copy != change.operation())
            .map(|(_, copy)| copy)
    }

    /// Whether a change of a key was copied, by a change that is not over.
    pub fn is_copied(&self, change: &Change) -> bool {
        self.after(change).next().is_some()
    }

    /// The copies of what a change makes its key hold, as far as the source has not got that.
    pub fn after(&self, change: &Change) -> impl Iterator<Item = &Arc<Change>> {
        self.of_operation(change.target(), change.operation())
    }

    /// As [`Copies::after`], of a change that may be forgotten.
    fn of_operation(&self, target: &Target, operation: OperationId) -> impl Iterator<Item = &Arc<Change>> {
        let copies = self.of(target).into_iter().flat_map(BTreeMap::values);
        let version = operation.version();
        copies.filter(move |copy| copy.original().is_some_and(|original| original.version == version))
    }

    fn of(&self, target: &Target) -> Option<&OfOne> {
        self.by_original.get(&(Arc::clone(&target.scope), target.key.clone()))
    }
}

type Place = ((Arc<str>, ObjectKey), (OperationId, OperationId));

fn place_of(change: &Change) -> Option<Place> {
    let original = change.original()?;
    let since = original.since.unwrap_or(change.operation());
    Some(((Arc::clone(&change.target().scope), original.key), (since, change.operation())))
}

impl Table {
    /// What a change waits for that was committed before it and is neither in its source nor in conflict: the copy of
    /// what it would replace, or what it is a copy of.
    pub fn waits_for_copy(&self, change: &Change) -> bool {
        self.blockers(change).any(|earlier| !self.is_stuck(change, &earlier))
    }

    /// Whether what a change waits for will not be brought by itself: it is in conflict, or waits for that change.
    fn is_stuck(&self, change: &Change, earlier: &Change) -> bool {
        earlier.phase().is_conflict() || self.blockers(earlier).any(|other| other.operation() == change.operation())
    }

    fn blockers(&self, change: &Change) -> impl Iterator<Item = Arc<Change>> {
        let original = change.original().and_then(|original| self.find(operation_of(&original.version)?));
        let original = original.filter(|original| original.phase() != Phase::Over);
        self.copies.before(change).cloned().into_iter().chain(original)
    }

    /// Frees the originals of copies that are durably said to be over: what waited for one of them may be brought. Whether
    /// there were any.
    pub fn free_originals(&mut self, durable: u64) -> bool {
        let freed = self.copies.free(durable);
        if freed {
            self.schedule.release();
        }
        freed
    }

    /// What a copy of `original` that is committed now is made of.
    pub fn admit_original(&self, target: &Target, original: Original) -> Result<Original> {
        let Some(operation) = operation_of(&original.version) else { return Ok(original) };
        let known = self.find(operation).map(|change| change.phase());
        if known.is_some_and(|phase| phase != Phase::Over && !phase.is_conflict()) {
            return Ok(original);
        }
        let place = Target { key: original.key.clone(), ..target.clone() };
        let settled = self.shown(&place).filter(|record| record.operation == operation);
        let version = settled.and_then(|record| Some(record.settled.attributes()?.version.clone()));
        let changed = || Error::new(ErrorKind::Busy, format!("copy {}", original.key), "it was changed just now");
        Ok(Original { version: version.ok_or_else(|| changed().advise("try again"))?, ..original })
    }

    /// What a file that is committed now lies over. Where that is a change that will not be brought, as this one takes its
    /// place, it is what that lay over; the bytes of that are its own as well.
    pub fn admit_patched(&self, target: &Target, original: Original, admission: &Admission) -> Result<Original> {
        let is_of = |change: &Arc<Change>| change.target().key == original.key && change.version() == original.version;
        let replaced = admission.replaced.as_ref().filter(|replaced| is_of(replaced));
        let original = match replaced.and_then(|replaced| Some((replaced.original()?, replaced.operation()))) {
            Some((under, since)) => return Ok(Original { since: under.since.or(Some(since)), ..under }),
            None => self.admit_original(target, original)?,
        };
        let is_base = match &admission.base {
            Base::Version(version) => *version == original.version,
            Base::Staged(operation) => operation.version() == original.version,
            Base::Absent | Base::Unconditional => false,
        };
        if original.key == target.key && !is_base {
            let reason = "it was replaced while it was changed in part, and the rest of it is gone";
            return Err(Error::new(ErrorKind::StaleVersion, format!("write {}", target.key), reason)
                .advise("open it again and write it anew"));
        }
        Ok(original)
    }

    /// What was to be copied from a change is copied from what its source has of that by now. After a start the journal may
    /// tell that without the change, where it was made shorter meanwhile.
    pub fn follow_settled(&self, record: &SettledRecord) {
        let Some(attributes) = record.settled.attributes() else { return };
        for copy in self.copies.of_operation(&record.target, record.operation).cloned().collect::<Vec<_>>() {
            let followed = copy.original().map(|known| Original { version: attributes.version.clone(), ..known });
            copy.progress().copied = followed;
        }
    }

    /// What was to be copied from a copy that will not be made by itself is copied from what that was to be made of.
    pub fn follow_conflict(&mut self, change: &Change) {
        let Some(original) = change.original() else { return };
        let since = original.since.or(Some(change.operation()));
        // The bytes of a patch are those of the next patch over it as well, but no copy has them: that waits.
        let has_all = |copy: &&Arc<Change>| change.patch().is_none() || copy.patch().is_some();
        for copy in self.copies.after(change).filter(has_all).cloned().collect::<Vec<_>>() {
            self.copies.remove(&copy);
            copy.progress().copied = Some(Original { since, ..original.clone() });
            self.copies.add(&copy);
        }
    }
}

impl Stage {
    /// Makes it durable that copies are in their source, so that what replaces or removes their originals may be given
    /// out. Blocks; shared with those who sync at the same moment.
    ///
    /// # Errors
    /// `Disk`: the next [`Stage::expire`] tries again.
    pub fn free_originals(&self) -> Result<()> {
        let synced = self.journal.sync();
        let durable = self.journal.durable();
        if self.table().free_originals(durable) {
            self.wake.notify_waiters();
        }
        synced
    }

    /// What a change that was given out comes after and that will not be brought by itself: a copy of what it would
    /// replace, or what it is a copy of, that is in conflict, or waits for it.
    pub fn blocked_by(&self, change: &Change) -> Option<Arc<Change>> {
        let table = self.table();
        table.blockers(change).find(|earlier| table.is_stuck(change, earlier))
    }
}
