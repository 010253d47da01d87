//! What a name is where something was changed here: what the source said of it, with later changes laid over that.
//! What is remembered of a name is always what the source said; changes are laid over it each time it is asked for.

use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{Freshness, Laid, ObjectKey, Overlay, Result};

use crate::Item;
use crate::keymap::{self, Place, Shape};
use crate::known::{self, Answer, Fact};
use crate::laid_rows::changes_below;
use crate::scan::Sight;
use crate::shadows::directory_of;
use crate::timeline::{LONG_AGO, Moment, is_fresh};
use crate::view::{View, holder};

/// Changes below a name that are looked at to find one that the source has not got: those that it has may be many.
const LOOKS: usize = 64;

/// The changes that bear on one name.
pub(crate) struct Changes {
    overlay: Arc<dyn Overlay>,
    place: Place,
    /// The full key of the place.
    key: Vec<u8>,
    /// What the keys below it begin with.
    below: Vec<u8>,
    /// The change of exactly that key.
    own: Option<Laid>,
    now: Moment,
}

impl Changes {
    /// When the source had the first object below the name that `sent` does not show; now, for one that it has not.
    fn put_below(&self, sent: Moment) -> Option<Moment> {
        let long = |key: &[u8]| !matches!(self.place, Place::Piece(_)) || self.is_in_piece(key);
        let mut below = changes_below(&*self.overlay, &self.below);
        let first = below.find(|(key, laid)| laid.attributes.is_some() && laid.hides(sent) && long(key));
        first.map(|(_, laid)| laid.settled.unwrap_or(self.now))
    }

    /// Whether the source has not got one of the first objects below: then the name is a directory for certain.
    fn holds_unsettled(&self) -> bool {
        let mut below = changes_below(&*self.overlay, &self.below).take(LOOKS);
        let is_name = matches!(self.place, Place::Name(_));
        is_name && below.any(|(_, laid)| laid.attributes.is_some() && laid.settled.is_none())
    }

    /// Whether the source has not got the change of exactly that key.
    fn is_unsettled(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.settled.is_none())
    }

    /// Whether the component of a key that begins with a piece is too long for one name.
    fn is_in_piece(&self, key: &[u8]) -> bool {
        let base = self.key.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let tail = &key[base..];
        let component = tail.split(|&byte| byte == b'/').next().unwrap_or(tail);
        component.len() > self.key.len() - base && keymap::is_long(component, Shape::Plain)
    }

    /// The own change as an answer, where what was asked at `sent` does not count any more.
    fn own_answer(&self, sent: Moment) -> Option<Fact> {
        let laid = self.own.as_ref().filter(|laid| laid.hides(sent))?;
        // A marker stands for the directory that is below it.
        let object = laid.attributes.as_ref().filter(|object| object.size > 0 || !self.key.ends_with(b"/"));
        let answer = object.map_or(Answer::Absent, |attributes| {
            let key = laid.at.clone().unwrap_or_else(|| ObjectKey::new(Bytes::copy_from_slice(&self.key)));
            Answer::Found(Item::File { key, attributes: attributes.clone() })
        });
        Some(Fact { answer, sent: laid.settled.unwrap_or(self.now) })
    }

    /// What a plain name or a piece is, by what the source said of it alone.
    pub(crate) fn over(&self, told: &Fact) -> Fact {
        if told.answer == Answer::Found(Item::Directory) {
            return told.clone();
        }
        if let Some(sent) = self.put_below(told.sent) {
            return Fact { answer: Answer::Found(Item::Directory), sent };
        }
        self.own_answer(told.sent).unwrap_or_else(|| told.clone())
    }

    /// What a reserved name is, by what the source said of it and of the plain name of the same object; `None` where
    /// that does not tell.
    fn beside(&self, plain: Option<&Fact>, told: Option<&Fact>) -> Option<Fact> {
        let is_file = |fact: &&Fact| matches!(fact.answer, Answer::Found(Item::File { .. }));
        let listed = plain.map(|plain| plain.answer == Answer::Found(Item::Directory));
        let directory = self.put_below(plain.map_or(LONG_AGO, |plain| plain.sent)).is_some()
            || listed.or_else(|| told.filter(is_file).map(|_| true))?;
        if !directory {
            return Some(Fact { answer: Answer::Absent, sent: plain.map_or(self.now, |plain| plain.sent) });
        }
        // The answer that shows the object, under whichever name it had.
        let object = match listed {
            Some(false) => plain,
            Some(true) => told,
            None => told.filter(is_file),
        };
        match object {
            Some(object) => Some(self.own_answer(object.sent).unwrap_or_else(|| match object {
                file if is_file(&file) => file.clone(),
                none => Fact { answer: Answer::Absent, sent: none.sent },
            })),
            None => self.own_answer(LONG_AGO),
        }
    }
}

impl View {
    /// The changes made here, where there are any.
    pub(crate) fn overlay(&self) -> Option<&Arc<dyn Overlay>> {
        self.parts.overlay.as_ref().filter(|overlay| !overlay.is_empty())
    }

    /// The changes that bear on a path; `None` when what the source says is all there is to say.
    ///
    /// Cost: one look into the overlay for a path that none bears on.
    pub(crate) fn changes(&self, path: &str) -> Option<Changes> {
        let overlay = self.overlay()?;
        let place = keymap::decode(path)?;
        let attached = self.parts.prefix.as_bytes();
        let key = match &place {
            Place::Root => return None,
            Place::Name(key) | Place::Beside(key) | Place::Piece(key) => [attached, key].concat(),
        };
        let (first, laid) = overlay.next(&key, true).filter(|(first, _)| first.starts_with(&key))?;
        let piece = matches!(place, Place::Piece(_));
        let below = if piece { key.clone() } else { directory_of(&key) };
        let own = (first == key && !piece).then_some(laid);
        let bears = own.is_some()
            || first.starts_with(&below)
            || overlay.next(&below, true).is_some_and(|(next, _)| next.starts_with(&below));
        let now = self.parts.catalog.timeline.now();
        bears.then(|| Changes { overlay: overlay.clone(), place, key, below, own, now })
    }

    /// What is known of a name that changes bear on, and fresh.
    pub(crate) fn known_laid(&self, path: &str, changes: &Changes) -> Option<Fact> {
        if changes.holds_unsettled() {
            return Some(Fact { answer: Answer::Found(Item::Directory), sent: changes.now });
        }
        let is_name = matches!(changes.place, Place::Name(_));
        let directory = |fact: &Fact| fact.answer == Answer::Found(Item::Directory);
        if let Some(told) = self.known_source(path).filter(|told| is_name && !directory(told)) {
            return Some(changes.over(&told));
        }
        // Only a listing can tell that what was removed here has emptied a directory.
        let told = self.told_alone(path, &changes.place);
        let listed = self.listed_laid(changes);
        let newest = listed.filter(|(before, _)| told.as_ref().is_none_or(|told| told.sent <= *before));
        if let Some((_, laid)) = newest {
            return Some(Fact { sent: if changes.is_unsettled() { changes.now } else { laid.sent }, ..laid });
        }
        let laid = match (&changes.place, told) {
            (Place::Beside(key), told) => {
                let plain = self.told_alone(&keymap::encode(key, Shape::Plain), &Place::Name(key.clone()));
                changes.beside(plain.as_ref(), told.as_ref())?
            }
            (_, Some(told)) => return Some(changes.over(&told)),
            (_, None) => changes.over(&Fact { answer: Answer::Absent, sent: LONG_AGO }),
        };
        (changes.is_unsettled() || self.believes(&laid)).then_some(laid)
    }

    /// What is known of a name of which the source has not got the newest change: nothing that it says of it counts.
    pub(crate) fn unsettled(&self, path: &str) -> Option<Fact> {
        let changes = self.changes(path)?;
        (changes.is_unsettled() || changes.holds_unsettled()).then(|| self.known_laid(path, &changes)).flatten()
    }

    /// Lays what was changed here over what the source just said of a path.
    ///
    /// Cost: none, but for a reserved name, whose plain one may have to be asked for.
    pub(crate) async fn lay(self: &Arc<Self>, path: &str, told: Fact) -> Result<Fact> {
        let Some(changes) = self.changes(path) else { return Ok(told) };
        let Place::Beside(key) = &changes.place else { return Ok(changes.over(&told)) };
        let (name, place) = (keymap::encode(key, Shape::Plain), Place::Name(key.clone()));
        let plain = match self.told_alone(&name, &place) {
            Some(plain) => plain,
            None => self.ask(&name, place, self.parts.freshness, 0).await?,
        };
        Ok(changes.beside(Some(&plain), Some(&told)).unwrap_or(told))
    }

    /// What the source said last of this name, as long as that is believed.
    fn told_alone(&self, path: &str, place: &Place) -> Option<Fact> {
        let kept = || Ok(if self.parts.freshness == Freshness::Seconds(0.0) { None } else { self.kept(place) });
        let kept = self.parts.catalog.writer.guard(kept).ok().flatten();
        let doubted = |fact: &Fact| match place {
            Place::Name(key) | Place::Beside(key) => {
                self.parts.scope.doubts(&[self.parts.prefix.as_bytes(), key].concat(), fact.sent)
            }
            Place::Root | Place::Piece(_) => false,
        };
        let kept = kept.filter(|fact| !doubted(fact));
        let known = self.remembered(path).into_iter().chain(kept).filter(|fact| self.believes(fact));
        known.max_by_key(|fact| fact.sent)
    }

    /// What the youngest listing says that is fresh, with the changes laid over it; and how old that is which it says
    /// without them.
    fn listed_laid(&self, changes: &Changes) -> Option<(Moment, Fact)> {
        if self.parts.freshness == Freshness::Seconds(0.0) {
            return None;
        }
        let attached = self.parts.prefix.as_bytes();
        let now = changes.now;
        let covering = self.covering(&holder(&[], &changes.key)).ok()?.into_iter();
        // An empty listing of a directory may be the listing of a file.
        let fresh = covering.filter(|covering| {
            is_fresh(self.parts.freshness, covering.sight.sent, now) && covering.listing.entries > 0
        });
        let newest = fresh.max_by_key(|covering| covering.sight.sent)?;
        let look_up = |sight: &Sight| known::look_up(sight, &changes.place, attached);
        let both = || Ok((look_up(&newest.sight)?, look_up(&self.laid(newest.sight.clone()))?));
        let both = self.parts.catalog.writer.guard(both);
        let (before, laid) = both.inspect_err(|error| self.drop_damaged(&newest, error)).ok()?;
        let believed = self.believes_listing(&laid) && !self.parts.scope.doubts(&changes.key, before.sent);
        believed.then_some((before.sent, laid))
    }
}

#[cfg(test)]
mod tests;
