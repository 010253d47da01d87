//! Sets laid over what was changed here, and the keys that nobody sees.

use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{Laid, ObjectAttributes, Overlay, Result, SetFile, Version, hidden_component, set_of_manifest};

use super::{SetPlace, Sets};
use crate::scan::{Seen, Sight, Step};

/// What begins the version of what the source has not got.
const STAGED: &str = "staged-";

/// The sets of a scope, over what was changed here, without the hidden keys.
pub(crate) struct Layered {
    written: Option<Arc<dyn Overlay>>,
    sets: Arc<Sets>,
}

impl Layered {
    pub(crate) fn new(written: Option<Arc<dyn Overlay>>, sets: Arc<Sets>) -> Arc<Self> {
        Arc::new(Self { written, sets })
    }

    /// A file of a set as it is now: what the source has not got, or got lately, tells of itself.
    fn laid(&self, set: &SetPlace, file: &SetFile) -> Laid {
        let key = set.data.join(file.path.as_bytes());
        let told = ObjectAttributes { size: file.size, modified_ms: file.modified_ms, version: file.version.clone() };
        let newer = || self.written.as_ref()?.at(key.as_bytes())?.attributes;
        let is_staged = told.version.as_str().starts_with(STAGED);
        let attributes = if is_staged { newer().unwrap_or(told) } else { told };
        Laid { attributes: Some(attributes), settled: None, at: Some(key) }
    }

    /// The first change that is no hidden key; manifests that are passed are met.
    fn next_written(&self, from: &[u8], inclusive: bool) -> Option<(Bytes, Laid)> {
        let written = self.written.as_ref()?;
        let mut next = written.next(from, inclusive)?;
        while let Some((_, end)) = hidden_component(&next.0) {
            if let Some(attributes) = next.1.attributes.as_ref().filter(|_| set_of_manifest(&next.0).is_some()) {
                self.sets.meet(&next.0, attributes, i64::MAX);
            }
            next = match next.0.get(end) {
                Some(_) => written.next(&[&next.0[..end], b"0"].concat(), true)?,
                None => written.next(&next.0, false)?,
            };
        }
        Some(next)
    }
}

impl Overlay for Layered {
    fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.written.as_ref().is_none_or(|written| written.is_empty())
    }

    fn at(&self, key: &[u8]) -> Option<Laid> {
        let set = self.sets.holding(key).filter(|set| key.len() > set.root.as_bytes().len());
        if let Some(set) = &set
            && let Some(file) = set.file(&key[set.root.as_bytes().len()..])
        {
            return Some(self.laid(set, file));
        }
        self.written.as_ref()?.at(key)
    }

    fn next(&self, from: &[u8], inclusive: bool) -> Option<(Bytes, Laid)> {
        let of_set = self.sets.next(from, inclusive, |key, set, file| (key, self.laid(set, file)));
        match (of_set, self.next_written(from, inclusive)) {
            // What a set says goes before what was changed under the same name earlier.
            (Some(of_set), Some(written)) => Some(if of_set.0 <= written.0 { of_set } else { written }),
            (of_set, written) => of_set.or(written),
        }
    }

    fn met_manifest(&self, key: &[u8], attributes: &ObjectAttributes, sent: i64) {
        let written = self.written.as_ref().and_then(|written| written.at(key));
        if written.is_none_or(|laid| !laid.hides(sent)) {
            self.sets.meet(key, attributes, sent);
        }
    }

    fn staged(&self, key: &[u8], version: &Version) -> Option<Result<Bytes>> {
        self.written.as_ref()?.staged(key, version)
    }
}

/// What to do at an entry that nobody sees; `None` for all others. Manifests are met.
pub(crate) fn hide(sight: &Sight, seen: &Seen<'_>) -> Result<Option<Step>> {
    let Some((_, end)) = hidden_component(&seen.key) else { return Ok(None) };
    if end < seen.key.len() {
        return Ok(Some(Step::Seek([&seen.key[..end], b"0"].concat())));
    }
    if let Some(overlay) = &sight.overlay
        && let Some(attributes) = seen.attributes()?
        && set_of_manifest(&seen.key).is_some()
    {
        overlay.met_manifest(&seen.key, &attributes, seen.sent);
    }
    Ok(Some(Step::Next))
}
