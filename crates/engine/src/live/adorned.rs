//! What was said of a live file besides its bytes.

use std::sync::atomic::{AtomicBool, Ordering};

use penstock_types::Posix;

use crate::live::content::Content;
use crate::live::lent::Mark;

/// Mode, owner and time, and what of them is not committed.
pub(super) struct Adorned {
    said: Posix,
    news: Posix,
    /// Nothing was written since somebody gave it a time.
    is_timed: AtomicBool,
    /// What tells that of a file which a kernel writes by itself.
    mark: Option<Mark>,
}

impl Adorned {
    /// As it is of the version that a file begins with; the time is that of its content, if that is kept.
    pub(super) fn begin(said: Posix, is_kept: bool, content: &Content) -> Self {
        let said = if is_kept { said } else { said.without_time() };
        describe(said, content);
        let is_timed = AtomicBool::new(said.modified_ns.is_some());
        Self { said, news: Posix::default(), is_timed, mark: None }
    }

    /// Says something anew, of what `content` holds by now.
    pub(super) fn say(&mut self, posix: Posix, content: &Content) {
        (self.said, self.news) = (self.said.merged(posix), self.news.merged(posix));
        describe(self.said, content);
        if posix.modified_ns.is_some() {
            *self.is_timed.get_mut() = true;
            self.mark = mark_of(content);
        }
    }

    /// It was written: it has the time of that.
    pub(super) fn note_written(&self) {
        self.is_timed.store(false, Ordering::Relaxed);
    }

    /// What was said, as far as it still is so.
    pub(super) fn said(&self, content: &Content) -> Posix {
        let is_timed = self.is_timed.load(Ordering::Relaxed) && self.mark == mark_of(content);
        if is_timed { self.said } else { self.said.without_time() }
    }

    /// Whether something was said that is not committed.
    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// What that is.
    pub(super) fn news(&self) -> Posix {
        self.news
    }

    /// Everything that was said is committed.
    pub(super) fn committed(&mut self) {
        self.news = Posix::default();
    }
}

/// Has an upload that is begun while it is written say so; its time is known at the end.
fn describe(said: Posix, content: &Content) {
    if let Some((_, Some(draft))) = content.writable() {
        draft.describe(said.without_time());
    }
}

fn mark_of(content: &Content) -> Option<Mark> {
    matches!(content, Content::Lent(_)).then(|| Mark::of(content.descriptor()).ok()).flatten()
}
