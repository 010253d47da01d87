//! Renaming: the content goes on under another key, seen at once under the new name and no more under the old one. A
//! store cannot rename; it copies what it has, and what it has not got yet is uploaded under its new name. Only what it
//! cannot copy has to be brought here and is uploaded again.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use penstock_stage::{Base, Batch, Change, Draft, Original, Written};
use penstock_types::faults::{Step, under_way};
use penstock_types::{Error, ErrorKind, ObjectAttributes, Result, TreePath};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::entry::EntryKind;
use crate::live::LiveFile;
use crate::open::{OpenOptions, object_id};
use crate::write::copy::can_copy;
use crate::write::{Place, TRIES_MAX, WriteOptions, base_of, taken};

/// Files that one rename of a directory takes along.
const FILES_MAX: usize = 100_000;
/// Bytes that a rename brings here first, of what the source cannot copy; where there are more, copying is for a program that shows how it goes on.
const BROUGHT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Names of a directory that are looked at at once.
const PAGE_NAMES: usize = 1000;

/// One file or directory on its way.
struct Moved {
    from: TreePath,
    to: TreePath,
    kind: EntryKind,
    /// Of a directory: nothing is in it.
    is_empty: bool,
}

impl Engine {
    /// Gives a file or directory another name in the same attachment; takes the place of a file or of an empty
    /// directory that has it, with `replace`. Seen at once by everybody on this node; the source copies what it has
    /// afterwards. What it cannot copy, as it has no ETag, is brought here first, and uploaded under its new name.
    ///
    /// # Errors
    /// `CrossDevice` into another attachment, or when more had to be brought than a rename may wait for; `NotFound`,
    /// `AlreadyExists`, `NotEmpty`, `IsADirectory`, `NotADirectory`, `ReadOnly`, `InvalidInput` for a directory into
    /// itself; what the source or the disk says.
    pub async fn rename(self: &Arc<Self>, from: &TreePath, to: &TreePath, replace: bool) -> Result<()> {
        let _step = under_way(Step::Rename);
        let renamed = self.rename_here(from, to, replace).await;
        renamed.map_err(|error| error.during(format!("rename {from} to {to}")))
    }

    async fn rename_here(self: &Arc<Self>, from: &TreePath, to: &TreePath, replace: bool) -> Result<()> {
        let refuse = |kind, reason: &str| Err(Error::new(kind, format!("rename {from} to {to}"), reason));
        let ((attached, from_inner), (other, to_inner)) = (self.writable_at(from)?, self.writable_at(to)?);
        if !Arc::ptr_eq(&attached, &other) {
            return refuse(ErrorKind::CrossDevice, "they are in different attachments");
        }
        let Some(kind) = self.kind_at(from, (&attached, &from_inner), true).await? else {
            return refuse(ErrorKind::NotFound, "nothing has the first name");
        };
        if from == to {
            return Ok(());
        }
        if to.below(from).is_some() {
            return refuse(ErrorKind::InvalidInput, "a directory cannot be moved into itself");
        }
        // A source that is away keeps nobody from renaming: the upload finds out what was not known.
        match (kind, self.kind_at(to, (&other, &to_inner), !replace).await?) {
            (_, Some(_)) if !replace => return Err(taken(to)),
            (EntryKind::File, Some(EntryKind::Directory)) => {
                return refuse(ErrorKind::IsADirectory, "a directory has the second name");
            }
            (EntryKind::Directory, Some(EntryKind::File)) => {
                return refuse(ErrorKind::NotADirectory, "a file has the second name");
            }
            (EntryKind::Directory, Some(EntryKind::Directory)) => self.remove_directory(to).await?,
            _ => {}
        }
        let moved = match kind {
            EntryKind::File => vec![Moved { from: from.clone(), to: to.clone(), kind, is_empty: false }],
            EntryKind::Directory => self.all_below(&attached, from, to).await?,
        };
        if !attached.view.sets_below(&from_inner).is_empty() {
            return Err(moves_set(from, to));
        }
        self.move_all(&attached, &moved).await?;
        if kind == EntryKind::Directory {
            self.forget_directory(from, &attached);
        }
        Ok(())
    }

    /// Everything below a directory and itself, with where it goes.
    async fn all_below(
        self: &Arc<Self>,
        attached: &Arc<Attached>,
        from: &TreePath,
        to: &TreePath,
    ) -> Result<Vec<Moved>> {
        let too_much = |reason: &str| {
            Error::new(ErrorKind::CrossDevice, format!("rename {from} to {to}"), reason)
                .advise("copy it, and remove it then: mv does")
        };
        let (mut found, mut brought, mut ahead) = (Vec::new(), 0, vec![(from.clone(), to.clone())]);
        while let Some((from, to)) = ahead.pop() {
            let (mut after, before) = (None, found.len() + ahead.len());
            loop {
                let page = self.list(&from, after.as_deref(), PAGE_NAMES).await?;
                for entry in &page.entries {
                    let (from, to) = (from.join(&entry.name), to.join(&entry.name));
                    if entry.kind == EntryKind::Directory {
                        ahead.push((from, to));
                        continue;
                    }
                    brought += if self.is_easy(attached, &from, entry.version.as_ref()) { 0 } else { entry.size };
                    found.push(Moved { from, to, kind: EntryKind::File, is_empty: false });
                }
                after = page.next;
                if found.len() + ahead.len() > FILES_MAX {
                    return Err(too_much("it has too many files for one step"));
                }
                if after.is_none() {
                    break;
                }
            }
            for (path, _) in self.live.names_in(&from) {
                if !found.iter().any(|moved| moved.from == path) {
                    let to = to.join(path.name());
                    found.push(Moved { from: path, to, kind: EntryKind::File, is_empty: false });
                }
            }
            let is_empty = found.len() + ahead.len() == before;
            found.push(Moved { from, to, kind: EntryKind::Directory, is_empty });
        }
        if brought > BROUGHT_BYTES_MAX {
            return Err(too_much("too much of it would have to be fetched").fact("bytes", brought));
        }
        Ok(found)
    }

    /// Whether nothing of a version has to be brought here.
    fn is_easy(&self, attached: &Arc<Attached>, path: &TreePath, version: Option<&penstock_types::Version>) -> bool {
        let Some(version) = version.filter(|version| !can_copy(version)) else { return true };
        let key = path.below(&attached.path).and_then(|inner| attached.view.key_of(inner).ok());
        key.is_some_and(|key| self.is_complete(attached, &object_id(attached, key, version)))
    }

    async fn move_all(self: &Arc<Self>, attached: &Arc<Attached>, moved: &[Moved]) -> Result<()> {
        let mut batch = Batch::default();
        for one in moved {
            if let Some(replaced) = self.live.at(&one.to) {
                drop(replaced.detach(self));
            }
            match (one.kind, self.live.at(&one.from)) {
                (EntryKind::File, Some(live)) => self.move_live(&live, one).await?,
                (EntryKind::File, None) => batch.append(again(|| self.moving(one).boxed()).await?),
                (EntryKind::Directory, _) => self.move_directory(attached, one, &mut batch).await?,
            }
        }
        let now = self.parts.clock.monotonic();
        batch.drafts.iter().for_each(|(_, written)| self.live.settle_first(&written.target, now));
        let me = Arc::clone(self);
        let changes = self.blocking(move || me.stage.commit_batch(batch)).await?;
        for one in moved {
            if one.kind == EntryKind::Directory {
                self.forget_directory(&one.from, attached);
            }
            self.announce(&one.from).await;
            self.announce(&one.to).await;
        }
        for change in &changes {
            self.promised(change).await?;
        }
        Ok(())
    }

    async fn move_directory(self: &Arc<Self>, attached: &Arc<Attached>, one: &Moved, batch: &mut Batch) -> Result<()> {
        let inner_of = |path: &TreePath| path.below(&attached.path).unwrap_or_default().to_owned();
        let (from, to) = (inner_of(&one.from), inner_of(&one.to));
        let base = self.marker_base(attached, &one.from, &from).await?;
        if base != Base::Absent {
            let durability = attached.writable(&one.from)?.durability;
            batch.removals.push((self.marker(&one.from, attached, &from)?, base, durability));
        }
        let said = self.posix_of_directory(attached, &from, "");
        if one.is_empty || !said.is_empty() {
            let (target, base) =
                (self.marker(&one.to, attached, &to)?, self.marker_base(attached, &one.to, &to).await?);
            let draft = tokio::task::block_in_place(|| self.stage.create(&target))?;
            batch.drafts.push((draft, self.marker_written(target, base, attached, &one.to, said)?));
        }
        self.gone.revive(&one.to);
        Ok(())
    }

    /// What gives a file its other name.
    async fn moving(self: &Arc<Self>, one: &Moved) -> Result<Batch> {
        let (from, to) = (
            self.place(&one.from, WriteOptions::default(), true).await?,
            self.place(&one.to, WriteOptions::default(), false).await?,
        );
        let base = self.base_now(&from);
        let mut batch = Batch::default();
        batch.removals.push((from.target.clone(), base.clone(), from.durability));
        if let Some((original, attributes)) = self.copyable(&from, base)? {
            let written = Written { modified_ms: attributes.modified_ms, ..self.written(&to)? };
            batch.copies.push((original, attributes.size, written));
            return Ok(batch);
        }
        let (draft, attributes, metadata) = self.content_of(&from, &to).await?;
        let written = Written { modified_ms: attributes.modified_ms, metadata, ..self.written(&to)? };
        batch.drafts.push((draft, written));
        Ok(batch)
    }

    /// What a file is copied from in the source, where all of it is there or will be by an earlier copy.
    pub(super) fn copyable(&self, from: &Place, base: Base) -> Result<Option<(Original, ObjectAttributes)>> {
        let attributes = match &base {
            Base::Version(version) if can_copy(version) => from.found.clone(),
            Base::Staged(operation) => {
                let change = self.stage.find(&from.target.scope, &from.target.key, &operation.version());
                change.filter(|change| change.original().is_some()).and_then(|change| change.attributes())
            }
            _ => None,
        };
        let Some(attributes) = attributes else { return Ok(None) };
        if base_of(&attributes.version) != base {
            return Err(changed(&from.path));
        }
        let (key, version) = (from.target.key.clone(), attributes.version.clone());
        let original = Original { key, version, since: None };
        Ok(Some((original, attributes)))
    }

    /// The content of a file as a draft of another key: another name of it where it is staged, a copy where it is not.
    pub(super) async fn content_of(
        self: &Arc<Self>,
        from: &Place,
        to: &Place,
    ) -> Result<(Draft, ObjectAttributes, Vec<(String, String)>)> {
        let file = self.open(&from.path, OpenOptions::default()).await?;
        let attributes = file.attributes().clone();
        if base_of(&attributes.version) != self.base_now(from) {
            return Err(changed(&from.path));
        }
        let staged = self.stage.find(&from.target.scope, &from.target.key, &attributes.version);
        let metadata = staged.as_ref().map(|change| change.metadata().to_vec()).unwrap_or_default();
        let linked = |change: &Arc<Change>| self.stage.link(&to.target, change).ok();
        let draft = match staged.as_ref().and_then(|change| tokio::task::block_in_place(|| linked(change))) {
            Some(draft) => draft,
            None => {
                if !file.is_complete() && attributes.size > BROUGHT_BYTES_MAX {
                    let reason = "it would have to be fetched from the source first";
                    return Err(Error::new(ErrorKind::CrossDevice, format!("rename {}", from.path), reason)
                        .advise("copy it, and remove it then: mv does")
                        .fact("bytes", attributes.size));
                }
                let draft = tokio::task::block_in_place(|| self.stage.create_reserved(&to.target))?;
                self.copy_open(file, &draft).await?;
                draft
            }
        };
        Ok((draft, attributes, metadata))
    }

    /// A file that is open for writing is flushed straight to its new name, and goes on there.
    async fn move_live(self: &Arc<Self>, live: &Arc<LiveFile>, one: &Moved) -> Result<()> {
        let (from, mut to) = (
            self.place(&one.from, WriteOptions::default(), false).await?,
            self.place(&one.to, WriteOptions::default(), false).await?,
        );
        let (me, file, paths) = (Arc::clone(self), Arc::clone(live), (one.from.clone(), one.to.clone()));
        let targets = (from.target.clone(), to.target.clone());
        self.live.settle_first(&targets.1, self.parts.clock.monotonic());
        let change = self
            .blocking(move || {
                let (_, modified_ms, posix) = file.shown()?;
                let place = to.clone();
                file.hand_over(&place, |draft, committed| {
                    let draft = match draft {
                        Some(draft) => draft,
                        None => me.draft_again(&from, &to.target, committed)?,
                    };
                    let written = Written { modified_ms, metadata: posix.metadata(), ..me.written(&to)? };
                    let base = me.base_now(&from);
                    let removal = (base != Base::Absent).then(|| (from.target.clone(), base, from.durability));
                    let mut changes = me.stage.commit_all(vec![(draft, written)], removal.into_iter().collect())?;
                    let change = changes.swap_remove(0);
                    me.note_own(&mut to, &change);
                    Ok((to, change))
                })
            })
            .await?;
        let now = self.parts.clock.monotonic();
        self.live.rename(live, (&paths.0, &paths.1), (&targets.0, &targets.1), now);
        self.promised(&change).await
    }
}

/// Does once more what met a file in the moment in which it became something else: what is written here does so when its
/// upload ends, under a version of its source.
pub(super) async fn again<'a, T>(mut attempt: impl FnMut() -> BoxFuture<'a, Result<T>>) -> Result<T> {
    for _ in 1..TRIES_MAX {
        match attempt().await {
            Err(error) if error.kind() == ErrorKind::Busy => {}
            done => return done,
        }
    }
    attempt().await
}

fn changed(path: &TreePath) -> Error {
    Error::new(ErrorKind::Busy, format!("rename {path}"), "it was changed just now").advise("try again")
}

fn moves_set(from: &TreePath, to: &TreePath) -> Error {
    let reason = "a set of files is there, which cannot be moved";
    Error::new(ErrorKind::Unsupported, format!("rename {from} to {to}"), reason)
        .advise("restore it elsewhere and commit it again: penstock ckpt restore")
}
