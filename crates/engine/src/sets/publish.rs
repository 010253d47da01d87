//! Beginning a set, publishing it, and giving it up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use penstock_stage::{Base, Target, Written};
use penstock_types::{
    ByteRange, Durability, Error, ErrorKind, ListRequest, ListedObject, Manifest, ObjectAttributes, ObjectKey,
    Priority, ReadRequest, Result, SetFile, TreePath, is_set_path, manifest_key,
};

use super::{Open, SET_METADATA, SetAt, Waiting, check_id, new_id, sum_of};
use crate::attachment::Attached;
use crate::engine::Engine;
use crate::write::{base_of, is_staged, taken};

/// Files whose checksums are computed at the same time, where nobody did before.
const SUMMED_AT_ONCE: usize = 4;
/// Keys of one page.
const PAGE_KEYS: usize = 1000;

/// What is in the hidden place of a set.
pub(super) type Files = BTreeMap<String, ObjectAttributes>;

impl Engine {
    /// Begins a set: the id of the place that its files are written to.
    ///
    /// # Errors
    /// `AlreadyExists` where something has the name; `ReadOnly`; `InvalidInput` for a name that no set can have; what
    /// the source says when it is asked.
    pub async fn begin_set(self: &Arc<Self>, path: &TreePath) -> Result<String> {
        let begun = async {
            let at = self.set_at(path)?;
            self.check_free(path, &at).await?;
            let id = new_id(self.parts.clock.wall_ms())?;
            let open = Open { is_whole: true, ..Open::default() };
            let mut state = self.sets.state();
            if state.open.len() < super::OPEN_MAX {
                state.open.insert(id.clone(), open);
            }
            Ok(id)
        };
        begun.await.map_err(|error: Error| error.during(format!("commit {path}")))
    }

    async fn check_free(self: &Arc<Self>, path: &TreePath, at: &SetAt) -> Result<()> {
        let inner = path.below(&at.attached.path).unwrap_or_default().to_owned();
        match self.kind_at(path, (&at.attached, &inner), false).await? {
            None => Ok(()),
            Some(_) => Err(taken(path).advise("choose another name, or remove it first: penstock rm -r")),
        }
    }

    /// Makes the files that were written into a set appear, all at once. What is promised is so when this returns.
    ///
    /// # Errors
    /// `AlreadyExists` where something has the name by now; `InvalidInput` where nothing was written; what keeps it
    /// from being durable. At `source`, also why the source has not got it: it goes on being brought there.
    pub async fn publish_set(
        self: &Arc<Self>,
        path: &TreePath,
        id: &str,
        durability: Option<Durability>,
    ) -> Result<()> {
        self.publish_here(path, id, durability).await.map_err(|error| error.during(format!("commit {path}")))
    }

    async fn publish_here(self: &Arc<Self>, path: &TreePath, id: &str, durability: Option<Durability>) -> Result<()> {
        check_id(id)?;
        let at = self.set_at(path)?;
        let durability = durability.unwrap_or(at.attached.writable(path)?.durability);
        self.check_free(path, &at).await?;
        let is_whole = self.sets.state().open.get(id).is_some_and(|open| open.is_whole);
        let found = self.files_of(&at, id, !is_whole).await?;
        check_names(path, &found)?;
        let files = self.summed(&at, id, found).await?;
        let told = if durability == Durability::Source { "source" } else { "local" };
        let manifest = Manifest::new(id, &at.name, self.parts.clock.wall_ms(), told, files);
        let target = at.manifest();
        let base = match self.stage.overlay(&target.scope).at(target.key.as_bytes()).and_then(|laid| laid.attributes) {
            Some(_) => return Err(taken(path)),
            None => Base::Absent,
        };
        let written = Written {
            target,
            base,
            exclusive: true,
            only_onto_base: false,
            durability: Durability::Local,
            modified_ms: manifest.created_ms,
            metadata: vec![(SET_METADATA.to_owned(), id.to_owned())],
        };
        let (me, text) = (Arc::clone(self), Bytes::from(manifest.encode()));
        let change = self.blocking(move || me.stage.commit_small(text, written)).await?;
        {
            let mut state = self.sets.state();
            let pins = state.open.remove(id).map(|open| open.pins).unwrap_or_default();
            let scope = Arc::clone(&at.attached.scope);
            let waiting = || Waiting { scope, data: at.data(id), is_ready: false, pins: Vec::new() };
            state.waiting.entry(change.operation()).or_insert_with(waiting).pins = pins;
        }
        self.gone.revive(path);
        self.set_changed(&at.attached, &at.directory);
        self.announce(path).await;
        if durability == Durability::Source { self.set_in_source(path, &change).await } else { Ok(()) }
    }

    /// Waits until the source has a set; gives up when failures have lasted for the foreground deadline.
    async fn set_in_source(&self, path: &TreePath, change: &Arc<penstock_stage::Change>) -> Result<()> {
        let deadline = self.parts.config.deadlines.foreground();
        let mut failing = Duration::ZERO;
        loop {
            match tokio::time::timeout(Duration::from_secs(1), change.done()).await {
                Ok(done) => return done,
                Err(_) => {
                    let failed = self.changes_below(path, penstock_stage::Stage::pending_below)?;
                    let failure = failed.iter().find_map(|(_, change)| change.failure());
                    failing = if failure.is_some() { failing + Duration::from_secs(1) } else { Duration::ZERO };
                    if let Some(failure) = failure.filter(|_| failing >= deadline) {
                        let reason = format!("the source has not taken it: {}", failure.reason());
                        return Err(Error::new(ErrorKind::Timeout, format!("commit {path}"), reason)
                            .advise("it is staged on this node and goes on being uploaded: penstock persist"));
                    }
                }
            }
        }
    }

    /// Gives a set up that was not published: nothing of it stays. One that was published is left alone.
    ///
    /// # Errors
    /// What the disk says; what the source says, where a part of it was written through an earlier node.
    pub async fn discard_set(self: &Arc<Self>, path: &TreePath, id: &str) -> Result<u64> {
        check_id(id)?;
        let at = self.set_at(path)?;
        let laid = self.stage.overlay(&at.attached.scope).at(at.manifest().key.as_bytes());
        // What was begun here and is open here was published nowhere.
        let is_open = self.sets.state().open.get(id).is_some_and(|open| open.is_whole);
        if laid.is_some_and(|laid| laid.attributes.is_some()) || !is_open && self.is_in_source(&at, id).await? {
            return Err(Error::new(ErrorKind::InvalidInput, format!("discard {path}"), "it was published")
                .advise("remove it: penstock rm -r"));
        }
        let open = self.sets.state().open.remove(id);
        let files = self.files_of(&at, id, !open.is_some_and(|open| open.is_whole)).await?;
        let count = files.len() as u64;
        let removals = self.removals(&at, id, &files);
        let me = Arc::clone(self);
        self.blocking(move || me.stage.commit_all(Vec::new(), removals)).await?;
        Ok(count)
    }

    /// Whether the source has a manifest that tells of these bytes. Asked anew: nothing that is remembered is certain
    /// enough to remove bytes by. A request for each manifest of the name, or of the directory where there is no name.
    pub(super) async fn is_in_source(&self, at: &SetAt, id: &str) -> Result<bool> {
        for manifest in list_objects(&at.attached, ObjectKey::new(manifest_key(&at.directory, &at.name))).await? {
            let found = match at.attached.source.stat(&manifest.key).await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                found => found?,
            };
            if found.metadata.iter().any(|(name, of)| name == SET_METADATA && of == id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The removals of the bytes of a set.
    pub(super) fn removals(&self, at: &SetAt, id: &str, files: &Files) -> Vec<(Target, Base, Durability)> {
        let data = at.data(id);
        let removal = |(path, attributes): (&String, &ObjectAttributes)| {
            let target = at.target([&data[..], path.as_bytes()].concat());
            (target, base_of(&attributes.version), Durability::Local)
        };
        files.iter().map(removal).collect()
    }

    /// What was written into a set; with `ask`, what the source has of it as well.
    pub(super) async fn files_of(&self, at: &SetAt, id: &str, ask: bool) -> Result<Files> {
        let data = at.data(id);
        let mut files = if ask { list_files(&at.attached, &data).await? } else { Files::new() };
        let overlay = self.stage.overlay(&at.attached.scope);
        let mut next = overlay.next(&data, true);
        while let Some((key, laid)) = next.filter(|(key, _)| key.starts_with(&data)) {
            if let Ok(path) = std::str::from_utf8(&key[data.len()..]) {
                match laid.attributes {
                    Some(attributes) => drop(files.insert(path.to_owned(), attributes)),
                    None => drop(files.remove(path)),
                }
            }
            next = overlay.next(&key, false);
        }
        Ok(files)
    }

    /// The files with their checksums.
    async fn summed(&self, at: &SetAt, id: &str, found: Files) -> Result<Vec<SetFile>> {
        let mut sums = match self.sets.state().open.get_mut(id) {
            Some(open) => std::mem::take(&mut open.sums),
            None => BTreeMap::new(),
        };
        let data = at.data(id);
        let found = found.into_iter().map(|(path, attributes)| {
            let known =
                sums.remove(&path).filter(|sum| sum.version == attributes.version || !is_staged(&attributes.version));
            (path, attributes, known)
        });
        let summed = stream::iter(found.collect::<Vec<_>>()).map(async |(path, attributes, known)| {
            let sum = match known {
                Some(known) => known.task.await.ok().and_then(Result::ok),
                None => None,
            };
            let sum = match sum {
                Some(sum) => sum,
                None => self.sum_again(at, &[&data[..], path.as_bytes()].concat(), &attributes).await?,
            };
            let ObjectAttributes { size, modified_ms, version } = attributes;
            Ok(SetFile { path, size, modified_ms, version, crc32c: format!("{sum:08x}") })
        });
        summed.buffered(SUMMED_AT_ONCE).try_collect().await
    }

    /// The checksum of what was written through an earlier node.
    async fn sum_again(&self, at: &SetAt, key: &[u8], attributes: &ObjectAttributes) -> Result<u32> {
        let key = ObjectKey::new(key.to_vec());
        if let Some(change) = self.stage.find(&at.attached.scope, &key, &attributes.version) {
            return self.blocking(move || sum_of(&change)).await;
        }
        if attributes.size == 0 {
            return Ok(0);
        }
        let request = ReadRequest {
            key,
            range: ByteRange::new(0, attributes.size),
            version: Some(attributes.version.clone()),
            priority: Priority::Foreground,
        };
        let chunks = at.attached.source.read(request).await?.chunks;
        chunks.try_fold(0, async |sum, chunk| Ok(crc32c::crc32c_append(sum, &chunk))).await
    }

    /// What is known of the sets of a directory was changed here.
    pub(super) fn set_changed(&self, attached: &Attached, directory: &[u8]) {
        attached.view.sets_changed(&ObjectKey::new(directory.to_vec()));
    }
}

/// What the source has below a prefix.
pub(super) async fn list_files(attached: &Attached, data: &[u8]) -> Result<Files> {
    let objects = list_objects(attached, ObjectKey::new(data.to_vec())).await?.into_iter();
    let files = objects.filter_map(|object| {
        let path = std::str::from_utf8(&object.key.as_bytes()[data.len()..]).ok()?;
        // What is hidden there is no file of a set: a trial of what the store can do, for one.
        is_set_path(path).then(|| (path.to_owned(), object.attributes))
    });
    Ok(files.collect())
}

/// Every object whose key begins with a prefix, asked of the source.
async fn list_objects(attached: &Attached, prefix: ObjectKey) -> Result<Vec<ListedObject>> {
    let mut request = ListRequest { prefix, limit: PAGE_KEYS, ..ListRequest::default() };
    let mut objects = Vec::new();
    loop {
        let page = attached.source.list(request.clone()).await?;
        objects.extend(page.objects);
        request.continuation = page.continuation;
        if request.continuation.is_none() {
            return Ok(objects);
        }
    }
}

fn check_names(path: &TreePath, files: &Files) -> Result<()> {
    let refuse = |reason: String| Err(Error::new(ErrorKind::InvalidInput, format!("commit {path}"), reason));
    if files.is_empty() {
        return refuse("nothing was written into it".into());
    }
    for name in files.keys() {
        let below = format!("{name}/");
        if files.range(below.clone()..).next().is_some_and(|(next, _)| next.starts_with(&below)) {
            return refuse(format!("{name} is a file and a directory"));
        }
    }
    Ok(())
}
