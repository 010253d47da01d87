//! Lays changes made here over the entries of a listing: of a key that both have the later one counts. Everything that
//! reads entries (pages, look-ups, directories of deeper keys, reserved names) follows from that.

use bytes::Bytes;
use penstock_types::{Laid, ObjectAttributes, Overlay, Result};

use crate::scan::{Seen, Sight, Step, Told, scan_listed};
use crate::sets::hide;
use crate::shadows::directory_of;
use crate::timeline::{LONG_AGO, Moment};

/// Visits the entries of a listing and the objects of an overlay, merged, from `from` on. `true` when there were no
/// more.
///
/// Cost: beside that of the listing, a look into the overlay for each of its keys that is passed.
pub(crate) fn scan(
    sight: &Sight,
    overlay: &dyn Overlay,
    from: (&[u8], bool),
    visit: &mut impl FnMut(&Seen<'_>) -> Result<Step>,
) -> Result<bool> {
    merge(sight, overlay, from, true, visit)
}

/// Whether the overlay has an object whose key begins with `directory`, where a listing was asked for at `sent`.
pub(crate) fn puts_below(overlay: &dyn Overlay, directory: &[u8], sent: Moment) -> bool {
    changes_below(overlay, directory).any(|(_, laid)| laid.attributes.is_some() && laid.hides(sent))
}

/// The changes of keys that begin with `directory`, in order.
pub(crate) fn changes_below(overlay: &dyn Overlay, directory: &[u8]) -> impl Iterator<Item = (Bytes, Laid)> {
    let mut last: Option<Bytes> = None;
    std::iter::from_fn(move || {
        let next = last.as_ref().map_or_else(|| overlay.next(directory, true), |last| overlay.next(last, false));
        let (key, laid) = next.filter(|(key, _)| key.starts_with(directory))?;
        last = Some(key.clone());
        Some((key, laid))
    })
}

/// `shapes`: whether to find out which objects lie beside directories.
fn merge(
    sight: &Sight,
    overlay: &dyn Overlay,
    (from, inclusive): (&[u8], bool),
    shapes: bool,
    visit: &mut impl FnMut(&Seen<'_>) -> Result<Step>,
) -> Result<bool> {
    let mut laying = Laying { sight, overlay, next: overlay.next(from, inclusive), shapes, ended: false, held: false };
    let ended = scan_listed(sight, from, inclusive, |row| match laying.visit_before(Some(&row.key), visit)? {
        Step::Next => laying.visit_row(row, visit),
        step => Ok(step),
    })?;
    if ended {
        laying.ended = true;
        let stopped = matches!(laying.visit_before(sight.below.as_deref(), visit)?, Step::Stop);
        return Ok(!stopped || laying.held);
    }
    Ok(laying.held)
}

/// The state of one merge.
struct Laying<'a> {
    sight: &'a Sight,
    overlay: &'a dyn Overlay,
    /// The first change that was not passed yet.
    next: Option<(Bytes, Laid)>,
    shapes: bool,
    /// No row of the listing follows.
    ended: bool,
    /// A listing under way does not tell yet under which name the next object is shown: what is behind it waits too.
    held: bool,
}

impl Laying<'_> {
    /// Visits the objects of the overlay whose key is less than `end` and that the listing does not have.
    fn visit_before(&mut self, end: Option<&[u8]>, visit: &mut impl FnMut(&Seen<'_>) -> Result<Step>) -> Result<Step> {
        while let Some((key, laid)) = self.next.take_if(|(key, _)| end.is_none_or(|end| &key[..] < end)) {
            let step = match laid.attributes.as_ref().filter(|_| laid.hides(self.sight.sent)) {
                Some(attributes) => {
                    // Whatever is listed below the name begins with it, and so does the row that follows.
                    let listed = !self.ended && end.is_some_and(|row| row.starts_with(&key));
                    let Some(beside) = self.shape_of_new(&key, attributes, listed)? else {
                        self.held = true;
                        return Ok(Step::Stop);
                    };
                    visit(&self.seen(key.clone(), &laid, attributes, beside))?
                }
                None => Step::Next,
            };
            match step {
                Step::Next => self.next = self.overlay.next(&key, false),
                Step::Stop => return Ok(Step::Stop),
                Step::Seek(to) => {
                    self.next = self.overlay.next(&to, true);
                    if end.is_some_and(|end| &to[..] > end) {
                        return Ok(Step::Seek(to));
                    }
                }
            }
        }
        Ok(Step::Next)
    }

    /// Visits a row of the listing, or what was made of it here.
    fn visit_row(&mut self, row: &Seen<'_>, visit: &mut impl FnMut(&Seen<'_>) -> Result<Step>) -> Result<Step> {
        let change = self.next.take_if(|(key, _)| *key == row.key);
        let sent = if self.sight.sent == LONG_AGO { LONG_AGO } else { row.sent };
        let step = match &change {
            // A common prefix stands for all that is below it, not for the object of that key.
            Some((key, laid)) if laid.hides(sent) && !row.is_prefix() => match &laid.attributes {
                Some(attributes) => {
                    let beside = self.shape_of_listed(row)?;
                    visit(&self.seen(key.clone(), laid, attributes, beside))?
                }
                None => Step::Next,
            },
            Some(_) => self.visit_listed(row, visit)?,
            // Whatever is below the row's name comes first of what begins with it.
            None if self.next.as_ref().is_some_and(|(key, _)| key.starts_with(&row.key)) => {
                self.visit_listed(row, visit)?
            }
            None => visit(row)?,
        };
        match &step {
            Step::Seek(to) if change.is_some() || self.next.as_ref().is_some_and(|(key, _)| key[..] < to[..]) => {
                self.next = self.overlay.next(to, true);
            }
            Step::Next if change.is_some() => self.next = self.overlay.next(&row.key, false),
            _ => {}
        }
        Ok(step)
    }

    fn visit_listed(&self, row: &Seen<'_>, visit: &mut impl FnMut(&Seen<'_>) -> Result<Step>) -> Result<Step> {
        let beside = self.shape_of_listed(row)?;
        visit(&Seen { key: row.key.clone(), sent: row.sent, beside, told: row.told, at: None })
    }

    fn seen<'b>(&self, key: Bytes, laid: &Laid, attributes: &'b ObjectAttributes, beside: bool) -> Seen<'b> {
        let (sent, at) = (laid.settled.unwrap_or(self.sight.sent), laid.at.clone());
        Seen { key, sent, beside, told: Told::Overlay(attributes), at }
    }

    /// Whether an object that the listing does not have lies beside a directory; `None` while that may still come.
    /// `listed`: whether a row begins with its key.
    fn shape_of_new(&self, key: &[u8], attributes: &ObjectAttributes, listed: bool) -> Result<Option<bool>> {
        if !self.shapes {
            return Ok(Some(false));
        }
        let directory = directory_of(key);
        if puts_below(self.overlay, &directory, self.sight.sent) || (listed && self.holds_any(&directory)?) {
            return Ok(Some(true));
        }
        // A marker is shown under no name of its own: nothing waits for that.
        let marker = attributes.size == 0 && key.ends_with(b"/");
        Ok((marker || self.shows_all_of(key)).then_some(false))
    }

    /// Whether a listed object lies beside a directory, now that changes may have made or emptied that.
    fn shape_of_listed(&self, row: &Seen<'_>) -> Result<bool> {
        if !self.shapes || row.is_prefix() {
            return Ok(row.beside);
        }
        let directory = directory_of(&row.key);
        if changes_below(self.overlay, &directory).next().is_none() || (row.beside && !self.shows_all_of(&row.key)) {
            return Ok(row.beside);
        }
        Ok(puts_below(self.overlay, &directory, self.sight.sent) || self.holds_any(&directory)?)
    }

    /// Whether everything below `key/` can be read.
    fn shows_all_of(&self, key: &[u8]) -> bool {
        self.sight.below.as_ref().is_none_or(|below| below[..] >= [key, b"0"].concat()[..])
    }

    fn holds_any(&self, directory: &[u8]) -> Result<bool> {
        let mut found = false;
        merge(self.sight, self.overlay, (directory, true), false, &mut |seen: &Seen<'_>| {
            if let Some(step) = hide(self.sight, seen)? {
                return Ok(step);
            }
            found = seen.key.starts_with(directory);
            Ok(Step::Stop)
        })?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
