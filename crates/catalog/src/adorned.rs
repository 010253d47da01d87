//! What was said of the attributes of object versions that sources have: kept for good, one row a key. Learnt from what
//! was written here and from answers about one object; listings do not tell it.

use std::sync::atomic::Ordering;

use penstock_types::{ErrorKind, ObjectAttributes, ObjectKey, Posix, Result, Version};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use crate::store::Change;
use crate::timeline::Moment;
use crate::writer::Committed;
use crate::{Catalog, View};

/// Versions of which a view remembers in memory that they were asked for.
const ASKED_VERSIONS: usize = 16_384;

#[derive(Serialize, Deserialize)]
struct Row {
    version: Version,
    modified_ms: i64,
    posix: Posix,
}

impl Row {
    fn of(attributes: &ObjectAttributes, posix: Posix) -> Option<Vec<u8>> {
        let row = Self { version: attributes.version.clone(), modified_ms: attributes.modified_ms, posix };
        postcard::to_stdvec(&row).ok()
    }

    /// Whether it says of a version what its source has now: some stores give a version that was copied onto itself the
    /// same name again, and only its time is newer.
    fn is_of(&self, attributes: &ObjectAttributes) -> bool {
        self.version == attributes.version && seconds(self.modified_ms) >= seconds(attributes.modified_ms)
    }
}

/// Times as every answer tells them.
fn seconds(modified_ms: i64) -> i64 {
    modified_ms.div_euclid(1000)
}

fn row_key(scope: u32, key: &ObjectKey) -> Vec<u8> {
    [&scope.to_be_bytes()[..], key.as_bytes()].concat()
}

/// The versions that a view has asked for, where it asks for all that it shows.
pub(crate) struct Asked(Cache<Vec<u8>, ()>);

impl Default for Asked {
    fn default() -> Self {
        Self(Cache::new(ASKED_VERSIONS))
    }
}

fn asked_key(key: &ObjectKey, attributes: &ObjectAttributes) -> Vec<u8> {
    let modified_s = seconds(attributes.modified_ms).to_be_bytes();
    [&modified_s[..], attributes.version.as_str().as_bytes(), b"\0", key.as_bytes()].concat()
}

impl Catalog {
    /// Keeps what was said of a version that a source has, in place of what was said of another one of its key. Seen by
    /// and by; a crash of the process may lose the last second. Needs a tokio runtime.
    pub fn adorn(&self, scope: &str, key: &ObjectKey, attributes: &ObjectAttributes, posix: Posix) {
        if let Some(row) = Row::of(attributes, posix) {
            self.has_adorned.store(true, Ordering::Release);
            drop(self.keep_adorned(self.scope(scope).number, key, Some(row)));
        }
    }

    /// Nothing is said of what a key has any more. As [`Catalog::adorn`].
    pub fn strip(&self, scope: &str, key: &ObjectKey) {
        if self.has_adorned.load(Ordering::Acquire) {
            drop(self.keep_adorned(self.scope(scope).number, key, None));
        }
    }

    /// Whether anything may be known of attributes that were said.
    pub fn knows_adorned(&self) -> bool {
        self.has_adorned.load(Ordering::Acquire)
    }

    fn keep_adorned(&self, scope: u32, key: &ObjectKey, row: Option<Vec<u8>>) -> Committed {
        let key = row_key(scope, key);
        self.writer.submit(&self.writer.store(), vec![Change::Adorned { key, row }])
    }
}

impl View {
    /// What was said of a version of the source; `None` where nothing is known, which is not that nothing was said.
    ///
    /// Cost: nothing where nothing was said of any version; else a look into the store.
    pub fn adorned(&self, key: &ObjectKey, version: &Version) -> Option<Posix> {
        let row = self.row(key).filter(|row| row.version == *version)?;
        Some(row.posix)
    }

    /// From now on it is known of every version that is asked about whether anything was said of it: also that nothing
    /// was is kept. Others are asked for by [`View::ask_posix`].
    pub fn keep_every_posix(&self) {
        self.asked.get_or_init(Asked::default);
    }

    /// Whether [`View::ask_posix`] would ask nobody.
    pub fn knows_posix(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> bool {
        let Some(Asked(asked)) = self.asked.get() else { return true };
        asked.get(&asked_key(key, attributes)).is_some() || self.row(key).is_some_and(|row| row.is_of(attributes))
    }

    /// Asks the source what was said of a version that it has, where that is to be known and is not. An object that is
    /// gone, or may not be looked at, says nothing.
    ///
    /// Cost: one request for each version, shared with those who ask at the same moment, and remembered for good.
    ///
    /// # Errors
    /// What the source says.
    pub async fn ask_posix(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> Result<()> {
        let Some(Asked(asked)) = self.asked.get().filter(|_| !self.knows_posix(key, attributes)) else { return Ok(()) };
        let question = async {
            let sent = self.parts.catalog.timeline.now();
            match self.parts.source.stat(key).await {
                Ok(found) => self.take_in(key, &found.attributes, Posix::of(&found.metadata), sent).await,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        };
        asked.get_or_insert_async(&asked_key(key, attributes), question).await
    }

    /// Asks the source for the object that keeps a directory, and keeps what was said of it; `None` where there is none.
    ///
    /// Cost: one request.
    ///
    /// # Errors
    /// What the source says.
    pub async fn ask_marker(&self, key: &ObjectKey) -> Result<Option<ObjectAttributes>> {
        let sent = self.parts.catalog.timeline.now();
        match self.parts.source.stat(key).await {
            Ok(found) => {
                self.take_in(key, &found.attributes, Posix::of(&found.metadata), sent).await;
                Ok(Some(found.attributes))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.row(key).is_some() {
                    self.keep(key, None, sent).await;
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What was said last of the directory that an object keeps; listings do not tell its version. With `since_ms`, where
    /// the object is newer than that.
    ///
    /// Cost: as [`View::adorned`].
    pub fn said_of_marker(&self, key: &ObjectKey, since_ms: Option<i64>) -> Option<Posix> {
        let is_newer = |row: &Row| since_ms.is_none_or(|since_ms| seconds(row.modified_ms) > seconds(since_ms));
        Some(self.row(key).filter(is_newer)?.posix)
    }

    /// Keeps what an answer to a question that was sent then says of attributes, unless they were changed here since. It
    /// is seen when this returns.
    pub(crate) async fn take_in(&self, key: &ObjectKey, found: &ObjectAttributes, posix: Posix, sent: Moment) {
        let (catalog, keeps_all) = (&self.parts.catalog, self.asked.get().is_some());
        if posix.is_empty() && !keeps_all && !catalog.knows_adorned() {
            return;
        }
        let is_news = match self.row(key) {
            Some(known) if known.version == found.version => known.posix != posix || keeps_all && !known.is_of(found),
            Some(_) => true,
            None => keeps_all || !posix.is_empty(),
        };
        if is_news {
            self.keep(key, Row::of(found, posix).filter(|_| keeps_all || !posix.is_empty()), sent).await;
        }
    }

    /// Keeps a row, or that there is none, by an answer to a question that was sent then, unless the key was changed here
    /// since.
    async fn keep(&self, key: &ObjectKey, row: Option<Vec<u8>>, sent: Moment) {
        let laid = self.parts.written.as_ref().and_then(|written| written.at(key.as_bytes()));
        if laid.is_some_and(|laid| laid.hides(sent)) {
            return;
        }
        let catalog = &self.parts.catalog;
        if row.is_some() {
            catalog.has_adorned.store(true, Ordering::Release);
        }
        if let Err(error) = catalog.keep_adorned(self.parts.scope.number, key, row).wait().await {
            tracing::debug!(%error, "what was said of an object is not kept");
        }
    }

    fn row(&self, key: &ObjectKey) -> Option<Row> {
        let catalog = &self.parts.catalog;
        if !catalog.knows_adorned() {
            return None;
        }
        let key = row_key(self.parts.scope.number, key);
        let row = catalog.writer.guard(|| catalog.writer.store().adorned(&key)).ok().flatten()?;
        postcard::from_bytes(&row).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::{Bench, MINUTE, TestSource};

    const SAID: Posix = Posix { mode: Some(0o755), uid: None, gid: None, modified_ns: None };

    fn bench() -> (Bench, ObjectKey, ObjectAttributes) {
        let found = ObjectAttributes { size: 1, modified_ms: 1_000, version: "v1".into() };
        (Bench::new(TestSource::default(), MINUTE), ObjectKey::from("a"), found)
    }

    #[tokio::test]
    async fn what_was_asked_before_the_source_had_a_change_of_ours_is_not_taken_in() {
        let (bench, key, found) = bench();
        bench.written.put("a", 1, Some(100));
        bench.view.take_in(&key, &found, SAID, 100).await;
        assert_eq!(bench.view.adorned(&key, &found.version), None);
        bench.view.take_in(&key, &found, SAID, 101).await;
        assert_eq!(bench.view.adorned(&key, &found.version), Some(SAID));
        bench.view.take_in(&key, &found, Posix::default(), 102).await;
        assert_eq!(bench.view.adorned(&key, &found.version), None, "somebody took it away");
    }

    #[tokio::test]
    async fn an_answer_about_the_object_of_a_directory_ends_what_was_said_of_an_earlier_one() {
        let (bench, _, found) = bench();
        let (view, key) = (&bench.view, ObjectKey::from("d/"));
        view.take_in(&key, &found, SAID, 100).await;
        let said = |since_ms| view.said_of_marker(&key, since_ms);
        assert_eq!((said(None), said(Some(999)), said(Some(1_999))), (Some(SAID), Some(SAID), None));
        bench.source.store("d/", 0);
        let asked = view.ask_marker(&key).await.unwrap();
        assert_eq!((asked, said(None)), (Some(bench.source.attributes("d/")), None));
        view.take_in(&key, &found, SAID, 100).await;
        bench.source.remove("d/");
        assert_eq!((view.ask_marker(&key).await.unwrap(), said(None)), (None, None));
    }

    #[tokio::test]
    async fn that_nothing_was_said_is_known_of_a_version_as_long_as_its_time_is_the_same() {
        let (bench, key, found) = bench();
        bench.view.keep_every_posix();
        assert!(!bench.view.knows_posix(&key, &found));
        bench.view.take_in(&key, &found, Posix::default(), 100).await;
        let later = |modified_ms| ObjectAttributes { modified_ms, ..found.clone() };
        let known = [1_000, 1_999, 2_000].map(|modified_ms| bench.view.knows_posix(&key, &later(modified_ms)));
        assert_eq!(known, [true, true, false], "a store may give a copy onto itself the same version");
        let other = ObjectAttributes { version: "v2".into(), ..found };
        assert!(!bench.view.knows_posix(&key, &other));
    }
}
