//! Finding the sets that a name may be in: from the listings that there are, else by one listing of the manifests of a
//! directory, which is believed as long as a name is.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use penstock_types::{
    ByteRange, Error, ErrorKind, Freshness, ListRequest, MANIFEST_BYTES_MAX, Manifest, ObjectAttributes, ObjectKey,
    Priority, ReadRequest, Result, SET_MARK, is_set_name, manifest_key, set_of_manifest,
};

use super::{Known, SetPlace};
use crate::Item;
use crate::ask::KEY_LIMIT;
use crate::keymap::{self, Place};
use crate::known::{Answer, Covering, Fact};
use crate::scan::{Sight, Step, Told, scan_listed};
use crate::store::Kind;
use crate::timeline::{is_fresh, is_fresh_absence};
use crate::view::View;

/// Manifests that are read, and directories that are asked for, at the same time.
const AT_ONCE: usize = 16;
/// How often what is in a directory is asked while it is being changed here.
const ATTEMPTS: usize = 8;
/// Manifests of one page.
const PAGE_KEYS: usize = 1000;

impl View {
    /// The set that a path is in or names, as far as manifests were read.
    pub fn set_holding(&self, path: &str) -> Option<Arc<SetPlace>> {
        let key = self.full_key(path)?;
        self.parts.sets.holding(&key)
    }

    /// The full key of the object that has the bytes of a path: as [`View::key_of`], but for files of sets.
    ///
    /// # Errors
    /// As those of [`View::key_of`].
    pub fn place_of_bytes(&self, path: &str) -> Result<ObjectKey> {
        let known = self.known_of_set(path).map(|fact| fact.answer);
        match known {
            Some(Answer::Found(Item::File { key, .. })) => Ok(key),
            _ => self.key_of(path),
        }
    }

    /// The path that a set is shown at.
    pub fn path_of_set(&self, set: &SetPlace) -> Option<String> {
        let root = set.root.as_bytes();
        self.path_of(&ObjectKey::new(root[..root.len() - 1].to_vec()))
    }

    /// The sets below a path, itself included, whose manifests were read: all of them, after a walk.
    pub fn sets_below(&self, path: &str) -> Vec<Arc<SetPlace>> {
        let Some(key) = self.full_key(path) else { return Vec::new() };
        let prefix = if path.is_empty() { key } else { [&key[..], b"/"].concat() };
        self.parts.sets.below(&prefix)
    }

    /// A set was published or changed in a directory (a key with its `/`) here.
    pub fn sets_changed(&self, directory: &ObjectKey) {
        self.parts.sets.forget(directory.as_bytes());
    }

    /// A set of a directory was removed here.
    pub fn set_removed(&self, directory: &ObjectKey, name: &str) {
        self.parts.sets.remove(directory.as_bytes(), name);
    }

    fn full_key(&self, path: &str) -> Option<Vec<u8>> {
        let attached = self.parts.prefix.as_bytes();
        match keymap::decode(path)? {
            Place::Root => Some(attached.to_vec()),
            Place::Name(key) => Some([attached, &key].concat()),
            Place::Beside(_) | Place::Piece(_) => None,
        }
    }

    /// As [`View::steps`], without directories that are known not to be there: nothing is in them; and without those
    /// that the source has objects in: no set takes their place.
    fn steps_that_are<'a>(&self, key: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a str)> {
        let attached = self.parts.prefix.as_bytes().len();
        let is_there = move |directory: &[u8]| {
            if directory.len() == attached || self.parts.sets.known(directory).is_some() || self.was_written(directory)
            {
                return true;
            }
            // A listing of all that is below shows no directory where there are only hidden keys.
            let is_covered = self.covering(directory).is_ok_and(|covering| !covering.is_empty());
            is_covered || self.is_directory_in_source(&directory[..directory.len() - 1]) != Some(false)
        };
        let steps = self.steps(key).filter(|_| key.len() <= KEY_LIMIT);
        let steps = steps.take_while(move |(directory, _)| is_there(directory));
        // What was removed here a moment ago was a file: a set of that name would be known.
        let was_changed = |key: &[u8]| {
            let laid = self.parts.written.as_ref().and_then(|written| written.at(key));
            laid.is_some_and(|laid| laid.settled.is_none())
        };
        let is_taken = |(directory, name): &(&[u8], &str)| {
            let key = [directory, name.as_bytes()].concat();
            was_changed(&key) || self.is_directory_in_source(&key) == Some(true)
        };
        steps.filter(|step| !is_taken(step)).collect::<Vec<_>>().into_iter()
    }

    /// Whether something was written or removed here below a directory.
    fn was_written(&self, directory: &[u8]) -> bool {
        let first = self.parts.written.as_ref().and_then(|written| written.next(directory, true));
        first.is_some_and(|(key, _)| key.starts_with(directory))
    }

    /// What a path is that is in a set: the set alone says.
    pub(crate) fn known_of_set(&self, path: &str) -> Option<Fact> {
        if self.parts.sets.is_empty() {
            return None;
        }
        let key = self.full_key(path)?;
        let set = self.parts.sets.holding(&key)?;
        let overlay = self.parts.overlay.as_ref()?;
        let is_root = key.len() < set.root.as_bytes().len();
        let below = [&key[..], b"/"].concat();
        let answer = match overlay.at(&key).filter(|laid| !is_root && laid.at.is_some()) {
            Some(laid) => Answer::Found(Item::File { key: laid.at.unwrap_or_default(), attributes: laid.attributes? }),
            None if is_root || overlay.next(&below, true).is_some_and(|(next, _)| next.starts_with(&below)) => {
                Answer::Found(Item::Directory)
            }
            None => Answer::Absent,
        };
        Some(Fact { answer, sent: self.parts.catalog.timeline.now() })
    }

    /// Whether the source has objects below a key, where that is known and fresh.
    fn is_directory_in_source(&self, key: &[u8]) -> Option<bool> {
        let path = self.path_of(&ObjectKey::new(key.to_vec()))?;
        if let Some(fact) = self.known_source(&path) {
            return Some(fact.answer == Answer::Found(Item::Directory));
        }
        let (freshness, now) = (self.parts.freshness, self.parts.catalog.timeline.now());
        let covering = self.covering(&[key, b"/"].concat()).ok()?;
        let shows_some = |one: &Covering| {
            one.kind == Kind::Directory && one.listing.entries > 0 && is_fresh(freshness, one.sight.sent, now)
        };
        covering.iter().any(shows_some).then_some(true)
    }

    /// Whether what is known of sets is all there is to know for what was learnt of a path.
    pub(crate) fn knows_sets(&self, path: &str, fact: &Fact) -> bool {
        if matches!(fact.answer, Answer::Found(_)) && self.parts.sets.is_empty() {
            return true;
        }
        let Some(key) = self.full_key(path) else { return true };
        let set = self.parts.sets.holding(&key);
        match (&fact.answer, set) {
            (_, Some(set)) => self.is_set_known(&set),
            (Answer::Found(_), None) => true,
            (Answer::Absent | Answer::BelowFile, None) => {
                let all_read = |(directory, name): (&[u8], &str)| {
                    self.is_known(directory, false) && self.parts.sets.unread(directory, name).is_none()
                };
                self.parts.sets.met_below(&[&key[..], b"/"].concat()).is_empty()
                    && self.steps_that_are(&key).all(all_read)
            }
        }
    }

    /// Asks again for a set that a path is in, where what is known of it is not fresh; with `ask`, in any case.
    pub(crate) async fn refresh_set(&self, path: &str, ask: bool) -> Result<()> {
        self.read_written(path).await?;
        let Some(set) = self.set_holding(path) else { return Ok(()) };
        let directory = set.directory.as_bytes();
        if !self.is_set_known(&set) || (ask && !self.is_set_written(&set)) {
            self.learn_sets(directory, ask).await?;
            self.read_unread(directory, &set.manifest.name).await?;
        }
        Ok(())
    }

    /// Looks for a set that a path of which the source says nothing is in. Whether one was found.
    ///
    /// Cost: one listing a directory of the path that no listing covers, as often as a name is asked for.
    pub(crate) async fn find_set(&self, path: &str, ask: bool) -> Result<bool> {
        let Some(key) = self.full_key(path) else { return Ok(false) };
        let unknown = self.steps_that_are(&key).filter(|(directory, _)| ask || !self.is_known(directory, false));
        let learnt = stream::iter(unknown.map(|(directory, _)| self.learn_sets(directory, ask)).collect::<Vec<_>>());
        learnt.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        for (directory, name) in self.steps(&key) {
            self.read_unread(directory, name).await?;
        }
        Ok(self.parts.sets.holding(&key).is_some())
    }

    /// Reads the manifests below a path that were met while it was looked for: it is there where they show something.
    pub(crate) async fn read_met_below(&self, path: &str) -> Result<Option<Fact>> {
        let Some(key) = self.full_key(path) else { return Ok(None) };
        let is_read = self.read_met(&[&key[..], b"/"].concat()).await?;
        Ok(if is_read { self.known(path).filter(|fact| matches!(fact.answer, Answer::Found(_))) } else { None })
    }

    /// Reads the manifests below a directory that listings had. Whether there were some.
    pub(crate) async fn read_met(&self, prefix: &[u8]) -> Result<bool> {
        let met = self.parts.sets.met_below(prefix);
        if met.is_empty() {
            return Ok(false);
        }
        let read = stream::iter(met).map(async |(key, attributes)| self.read_manifest(&key, &attributes).await);
        read.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        Ok(true)
    }

    /// Asks again for the sets below a directory, where what is known of them is not fresh.
    pub(crate) async fn refresh_below(&self, prefix: &[u8]) -> Result<()> {
        if self.parts.sets.is_empty() {
            return Ok(());
        }
        let stale = self.parts.sets.below(prefix).into_iter().filter(|set| !self.is_set_known(set));
        let mut directories: Vec<ObjectKey> = stale.map(|set| set.directory.clone()).collect();
        directories.dedup();
        let learnt = stream::iter(directories).map(async |known| self.learn_sets(known.as_bytes(), false).await);
        learnt.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await.map(drop)
    }

    /// Every directory above a key, with the name in it that the key is or is below.
    fn steps<'a>(&self, key: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a str)> {
        let attached = self.parts.prefix.as_bytes().len();
        let starts = (attached..key.len()).filter(move |&at| at == attached || key[at - 1] == b'/');
        starts.filter_map(|start| {
            let rest = &key[start..];
            let name = &rest[..rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len())];
            let name = std::str::from_utf8(name).ok().filter(|name| is_set_name(name))?;
            Some((&key[..start], name))
        })
    }

    /// Reads the manifests above a path that the source has not got: it need not be asked for their sets.
    async fn read_written(&self, path: &str) -> Result<()> {
        let Some(written) = self.parts.written.as_ref().filter(|written| !written.is_empty()) else { return Ok(()) };
        let Some(key) = self.full_key(path) else { return Ok(()) };
        for (directory, name) in self.steps(&key) {
            let manifest = manifest_key(directory, name);
            let Some(attributes) = written.at(&manifest).filter(|laid| laid.settled.is_none()) else { continue };
            let Some(attributes) = attributes.attributes else { continue };
            let shown = self.parts.sets.holding(&[directory, name.as_bytes()].concat());
            if shown.is_none_or(|shown| shown.attributes.version != attributes.version) {
                self.read_manifest(&manifest, &attributes).await?;
            }
        }
        Ok(())
    }

    /// Whether the manifest of a set was written here, as it is shown, and the source has not got it.
    fn is_set_written(&self, set: &SetPlace) -> bool {
        let laid = self.parts.written.as_ref().and_then(|written| written.at(set.key.as_bytes()));
        let own = laid.filter(|laid| laid.settled.is_none()).and_then(|laid| laid.attributes);
        own.is_some_and(|attributes| attributes.version == set.attributes.version)
    }

    fn is_set_known(&self, set: &SetPlace) -> bool {
        self.is_known(set.directory.as_bytes(), true) || self.is_set_written(set)
    }

    fn is_known(&self, directory: &[u8], there: bool) -> bool {
        let (freshness, now) = (self.parts.freshness, self.parts.catalog.timeline.now());
        let Some(sent) = self.parts.sets.known(directory) else { return false };
        let fresh = match there || freshness != Freshness::Immutable {
            true => is_fresh(freshness, sent, now),
            false => is_fresh_absence(freshness, sent, now),
        };
        fresh && !self.parts.scope.distrusts(sent)
    }

    /// Learns which manifests are in a directory; with `ask`, from the source in any case.
    async fn learn_sets(&self, directory: &[u8], ask: bool) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let changes = self.parts.sets.changes();
            let mut known = match self.listed_sets(directory).filter(|_| !ask) {
                Some(known) => known,
                None => self.list_sets(directory).await?,
            };
            self.lay_written(directory, &mut known);
            if self.parts.sets.learn(directory, known, changes) {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Busy, "look for sets", "they are being changed all the time").advise("try again"))
    }

    /// What a fresh listing of a directory says.
    fn listed_sets(&self, directory: &[u8]) -> Option<Known> {
        let (freshness, now) = (self.parts.freshness, self.parts.catalog.timeline.now());
        if freshness == Freshness::Seconds(0.0) {
            return None;
        }
        let fresh = self.covering(directory).ok()?.into_iter().filter(|covering| {
            is_fresh(freshness, covering.sight.sent, now) && !self.parts.scope.distrusts(covering.sight.sent)
        });
        let sight = fresh.max_by_key(|covering| covering.sight.sent)?.sight;
        self.parts.catalog.writer.guard(|| names_in(&sight, directory)).ok()
    }

    async fn list_sets(&self, directory: &[u8]) -> Result<Known> {
        let mut known = Known { sent: self.parts.catalog.timeline.now(), names: BTreeMap::new() };
        let prefix = ObjectKey::new([directory, SET_MARK.as_bytes()].concat());
        if prefix.as_str().is_none() && !self.parts.source.capabilities().binary_keys {
            return Ok(known);
        }
        let mut request = ListRequest { prefix, limit: PAGE_KEYS, delimited: true, ..ListRequest::default() };
        loop {
            let page = match self.parts.source.list(request.clone()).await {
                // Who may not list sees what can be asked for by name, and no set.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(known),
                page => page?,
            };
            for object in page.objects {
                if let Some((_, name)) = set_of_manifest(object.key.as_bytes()) {
                    known.names.insert(name.to_owned(), object.attributes);
                }
            }
            request.continuation = page.continuation;
            if request.continuation.is_none() {
                return Ok(known);
            }
        }
    }

    /// Lays the manifests that were written or removed here over those of the source.
    fn lay_written(&self, directory: &[u8], known: &mut Known) {
        let Some(written) = &self.parts.written else { return };
        let prefix = [directory, SET_MARK.as_bytes()].concat();
        for (key, laid) in crate::laid_rows::changes_below(&**written, &prefix) {
            let Some((_, name)) = set_of_manifest(&key) else { continue };
            if !laid.hides(known.sent) {
                continue;
            }
            match laid.attributes {
                Some(attributes) => drop(known.names.insert(name.to_owned(), attributes)),
                None => drop(known.names.remove(name)),
            }
        }
    }

    async fn read_unread(&self, directory: &[u8], name: &str) -> Result<()> {
        match self.parts.sets.unread(directory, name) {
            Some(attributes) => self.read_manifest(&manifest_key(directory, name), &attributes).await,
            None => Ok(()),
        }
    }

    /// Reads a manifest and shows its set. One that is gone or damaged shows nothing.
    async fn read_manifest(&self, key: &[u8], attributes: &ObjectAttributes) -> Result<()> {
        let Some((directory, name)) = set_of_manifest(key) else { return Ok(()) };
        let read = async {
            let text = match self.parts.overlay.as_ref().and_then(|overlay| overlay.staged(key, &attributes.version)) {
                Some(staged) => staged?,
                None => self.fetch_manifest(key, attributes).await?,
            };
            let manifest = Manifest::decode(&text)?;
            if manifest.name != name {
                return Err(Error::new(ErrorKind::Corrupt, "read the manifest of a set", "it is that of another set"));
            }
            Ok(manifest)
        };
        match read.await {
            Ok(manifest) => self.parts.sets.put(SetPlace::new(directory, key, attributes.clone(), manifest)),
            Err(error) if matches!(error.kind(), ErrorKind::StaleVersion | ErrorKind::NotFound) => {
                self.parts.sets.unmeet(key);
                Box::pin(self.learn_sets(directory, true)).await?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                let key_text = self.parts.source.describe(&ObjectKey::new(key.to_vec()));
                tracing::warn!(code = "set-unreadable", manifest = key_text, %error, "a set is not shown");
                self.parts.sets.break_off(key, &attributes.version);
            }
            Err(error) => {
                self.parts.sets.unmeet(key);
                let action = format!("read the manifest {}", self.parts.source.describe(&ObjectKey::new(key.to_vec())));
                return Err(error.during(action));
            }
        }
        Ok(())
    }

    async fn fetch_manifest(&self, key: &[u8], attributes: &ObjectAttributes) -> Result<Bytes> {
        if attributes.size == 0 || attributes.size > MANIFEST_BYTES_MAX {
            return Err(Error::new(ErrorKind::Corrupt, "read the manifest of a set", "no manifest has that size"));
        }
        let body = self.parts.source.read(ReadRequest {
            key: ObjectKey::new(key.to_vec()),
            range: ByteRange::new(0, attributes.size),
            version: Some(attributes.version.clone()),
            priority: Priority::Foreground,
        });
        let chunks = body.await?.chunks;
        let text = chunks.try_fold(BytesMut::new(), async |mut text, chunk| {
            text.extend_from_slice(&chunk);
            Ok(text)
        });
        Ok(text.await?.freeze())
    }
}

/// The manifests in a directory that a listing shows.
fn names_in(sight: &Sight, directory: &[u8]) -> Result<Known> {
    let prefix = [directory, SET_MARK.as_bytes()].concat();
    let mut known = Known { sent: sight.sent, names: BTreeMap::new() };
    scan_listed(sight, &prefix, true, |seen| {
        if !seen.key.starts_with(&prefix) {
            return Ok(Step::Stop);
        }
        if let (Told::Listing(_), Some((_, name)), Some(attributes)) =
            (seen.told, set_of_manifest(&seen.key), seen.attributes()?)
        {
            known.names.insert(name.to_owned(), attributes);
        }
        Ok(Step::Next)
    })?;
    Ok(known)
}

/// Whether a path has a component that nobody sees.
pub(crate) fn is_hidden(path: &str) -> bool {
    penstock_types::hidden_component(path.as_bytes()).is_some()
}
