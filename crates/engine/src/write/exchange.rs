//! Exchanging the names of two files. A store can do neither at once: one of both is copied there, and the other, whose bytes
//! are here or are brought, is uploaded behind.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use penstock_stage::{Batch, Change, Written};
use penstock_types::faults::{Step, under_way};
use penstock_types::{Error, ErrorKind, Result, TreePath};

use super::rename::again;
use super::{Place, WriteOptions};
use crate::engine::Engine;
use crate::entry::EntryKind;

/// How long a file that was just closed may be on its way out.
const CLOSING_WITHIN: Duration = Duration::from_secs(3);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Engine {
    /// Gives each of two files of one attachment the name of the other, at once for everybody on this node; a crash leaves
    /// both as they were, or both exchanged. What the source cannot copy is brought here first: the smaller one, where
    /// both are there alone.
    ///
    /// # Errors
    /// `CrossDevice` for different attachments, or where more had to be brought than a rename may wait for; `NotFound`;
    /// `Unsupported` for a directory; `Busy` for a file that is open for writing, or was changed just now; `ReadOnly`; what
    /// the source or the disk says.
    pub async fn exchange(self: &Arc<Self>, one: &TreePath, other: &TreePath) -> Result<()> {
        let _step = under_way(Step::Rename);
        let exchanged = self.exchange_here(one, other).await;
        exchanged.map_err(|error| error.during(format!("exchange {one} and {other}")))
    }

    async fn exchange_here(self: &Arc<Self>, one: &TreePath, other: &TreePath) -> Result<()> {
        let refuse = |kind, reason: &str| Err(Error::new(kind, format!("exchange {one} and {other}"), reason));
        let (place, second) = (self.writable_at(one)?, self.writable_at(other)?);
        if !Arc::ptr_eq(&place.0, &second.0) {
            return refuse(ErrorKind::CrossDevice, "they are in different attachments");
        }
        for (path, (attached, inner)) in [(one, &place), (other, &second)] {
            match self.kind_at(path, (attached, inner), true).await? {
                None => return refuse(ErrorKind::NotFound, "nothing has one of the names"),
                Some(EntryKind::Directory) => return refuse(ErrorKind::Unsupported, "one is a directory"),
                Some(EntryKind::File) => self.until_closed(path).await?,
            }
        }
        if one == other {
            return Ok(());
        }
        let changes = again(|| self.exchange_once(one, other).boxed()).await?;
        self.announce(one).await;
        self.announce(other).await;
        for change in &changes {
            self.promised(change).await?;
        }
        Ok(())
    }

    async fn exchange_once(self: &Arc<Self>, one: &TreePath, other: &TreePath) -> Result<Vec<Arc<Change>>> {
        let batch = self.exchanging(one, other).await?;
        let me = Arc::clone(self);
        self.blocking(move || me.stage.commit_batch(batch)).await.map_err(|error| match error.kind() {
            ErrorKind::StaleVersion => error.with_kind(ErrorKind::Busy),
            _ => error,
        })
    }

    /// What puts the content of each in the place of the other, and of nothing else.
    async fn exchanging(self: &Arc<Self>, one: &TreePath, other: &TreePath) -> Result<Batch> {
        let one = self.place(one, WriteOptions::default(), true).await?;
        let other = self.place(other, WriteOptions::default(), true).await?;
        let mut copy_of_one = self.copyable(&one, self.base_now(&one))?;
        let mut copy_of_other = self.copyable(&other, self.base_now(&other))?;
        if let (Some((_, first)), Some((_, second))) = (&copy_of_one, &copy_of_other) {
            // Each is the original of a copy that takes the place of the other: of one, the bytes have to be here.
            if first.size < second.size { copy_of_one = None } else { copy_of_other = None }
        }
        let mut batch = Batch { indivisible: true, ..Batch::default() };
        for (from, to, copy) in [(&one, &other, copy_of_one), (&other, &one, copy_of_other)] {
            match copy {
                Some((original, attributes)) => {
                    let written = Written { modified_ms: attributes.modified_ms, ..self.written_over(to)? };
                    batch.copies.push((original, attributes.size, written));
                }
                None => {
                    let (draft, attributes, metadata) = self.content_of(from, to).await?;
                    let modified_ms = attributes.modified_ms;
                    batch.drafts.push((draft, Written { modified_ms, metadata, ..self.written_over(to)? }));
                }
            }
        }
        Ok(batch)
    }

    fn written_over(&self, to: &Place) -> Result<Written> {
        Ok(Written { only_onto_base: true, ..self.written(to)? })
    }

    /// Waits for who has just closed a file that was open for writing.
    async fn until_closed(&self, path: &TreePath) -> Result<()> {
        let closed = async {
            while self.live.at(path).is_some() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(CLOSING_WITHIN, closed).await.map_err(|_| {
            Error::new(ErrorKind::Busy, format!("exchange {path}"), "it is open for writing").advise("close it first")
        })
    }
}
