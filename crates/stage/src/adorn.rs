//! Changes of attributes alone: what the key holds goes on, as a copy of itself with other metadata. None of its bytes are
//! looked at.

use std::sync::Arc;

use penstock_types::{Error, ErrorKind, ObjectAttributes, Posix, Result, Version};

use crate::change::{Base, Change, Original, Target, Written, operation_of};
use crate::new::New;
use crate::record::SettledRecord;
use crate::stage::Stage;
use crate::table::{Admission, Table};

impl Stage {
    /// Says something anew of the file of `size` bytes that a key holds, which is what the base names. Where a change of
    /// the key waits that is a copy, it is joined to that. Blocks.
    ///
    /// # Errors
    /// `Busy` when the key holds something else by now, or a staged file: that is committed again; `Disk`; `Cancelled`
    /// when the stage is closed.
    /// Cost: one sync of the journal, shared with those who commit at the same moment.
    pub fn adorn(&self, written: Written, size: u64, posix: Posix) -> Result<Arc<Change>> {
        let action = format!("change attributes of {}", written.target.key);
        let committed = self.check_open().and_then(|()| self.take_in_one(written, New::Same(size, posix)));
        committed.map_err(|error| error.during(action))
    }

    /// What was said of a version that a source got lately from here; `None` where nothing is known of it here.
    pub fn settled_posix(&self, target: &Target, version: &Version) -> Option<Posix> {
        let table = self.table();
        let settled = &table.shown(target)?.settled;
        settled.attributes().is_some_and(|attributes| attributes.version == *version).then(|| settled.posix())
    }

    /// What was said of versions that sources got lately: target, attributes, and what that was.
    pub fn settled_adorned(&self) -> Vec<(Target, ObjectAttributes, Posix)> {
        let table = self.table();
        let adorned = |record: &SettledRecord| {
            let posix = record.settled.posix();
            let attributes = record.settled.attributes().filter(|_| !posix.is_empty())?;
            Some((record.target.clone(), attributes.clone(), posix))
        };
        table.all_shown().filter_map(adorned).collect()
    }

    /// The version that a change has in its source, which got it lately and nothing of the key since.
    pub fn settled_version(&self, target: &Target, staged: &Version) -> Option<Version> {
        let operation = operation_of(staged)?;
        let table = self.table();
        let record = table.shown(target).filter(|record| record.operation == operation)?;
        record.settled.attributes().map(|attributes| attributes.version.clone())
    }
}

impl Table {
    /// As [`Table::admission`], of a change of attributes alone: what is on its way already is not begun again for them.
    pub fn admission_of_same(&self, written: &Written) -> Result<Admission> {
        let admission = self.admission(written)?;
        match &admission.replaced {
            Some(newest) if !newest.is_copy() && newest.upload().is_some() => {
                Ok(Admission { base: Base::Staged(newest.operation()), replaced: None })
            }
            _ => Ok(admission),
        }
    }

    /// What a key holds already, as the copy of which something is said anew.
    pub fn admit_same(&self, written: &Written, admission: &Admission, size: u64, posix: Posix) -> Result<New> {
        let changed =
            || Error::new(ErrorKind::Busy, "change attributes", "it was changed just now").advise("try again");
        let key = written.target.key.clone();
        let original = |version| Original { key: key.clone(), version, since: None };
        let meant = match &written.base {
            Base::Staged(operation) => Some(*operation),
            _ => None,
        };
        if let Some(replaced) = &admission.replaced {
            // It takes the place of a copy that was not begun.
            let is_meant = meant == Some(replaced.operation()) && replaced.is_copy();
            let known = replaced.original().filter(|_| is_meant).ok_or_else(changed)?;
            let since = known.since.or(Some(replaced.operation()));
            let (size, known) = (replaced.size().unwrap_or(size), Original { since, ..known });
            return Ok(New::Adorned(known, size, replaced.posix().merged(posix)));
        }
        match &admission.base {
            Base::Version(version) => {
                let is_meant = match meant {
                    None => written.base == admission.base,
                    Some(operation) => self.shown(&written.target).is_some_and(|shown| shown.operation == operation),
                };
                is_meant.then(|| New::Adorned(original(version.clone()), size, posix)).ok_or_else(changed)
            }
            Base::Staged(operation) => {
                let known = self.find(*operation).filter(|change| change.size() == Some(size));
                let known = known.filter(|_| meant == Some(*operation)).ok_or_else(changed)?;
                Ok(New::Adorned(original(known.version()), size, posix))
            }
            Base::Absent | Base::Unconditional => Err(changed()),
        }
    }
}
