//! Requests that write: drafts that are lent and committed, small contents, removals, the wait for the source, and what
//! the source did not take.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use penstock_engine::{Patch, SetRef, WriteOptions, Writing};
use penstock_types::{Durability, Error, ErrorKind, Posix, Result, TreePath, Version};

use crate::answer::{Answer, Answerer};
use crate::protocol::{Reply, SMALL_WRITE_BYTES_MAX};
use crate::ring::Returned;
use crate::session::Lease;

impl Answerer<'_> {
    /// Whether a file of that path may be written, as far as no source is asked.
    pub fn check_writable(&self, path: &str) -> Result<Reply> {
        self.service.engine.check_writable(&TreePath::parse(path)?)?;
        Ok(Reply::Done)
    }

    /// A file to write into, which becomes the content of `path` when it is committed.
    pub fn create(&self, path: &str, options: WriteOptions, set: Option<&SetRef>) -> Result<Answer> {
        let path = TreePath::parse(path)?;
        self.check_scarcity(&path)?;
        let engine = &self.service.engine;
        let writing = match set {
            Some(set) => self.wait(engine.create_in_set(&path, set, options.exclusive))?,
            None => self.wait(engine.create(&path, options))?,
        };
        self.lend_draft(&path, writing, |lease| Reply::Created { lease })
    }

    /// A file to change, which becomes the content of `path` when it is committed.
    pub fn edit(&self, path: &str, version: &Version, durability: Option<Durability>) -> Result<Answer> {
        let path = TreePath::parse(path)?;
        self.check_scarcity(&path)?;
        let (writing, patch) = self.wait(self.service.engine.edit(&path, version, durability))?;
        self.lend_draft(&path, writing, |lease| Reply::Editing { lease, patch })
    }

    fn lend_draft(&self, path: &TreePath, writing: Writing, reply: impl FnOnce(u64) -> Reply) -> Result<Answer> {
        let descriptor = writing.descriptor();
        self.check_descriptors(path, descriptor.as_raw_fd())?;
        let lease = self.session.lend(Lease::Draft(Arc::new(writing)))?;
        Ok(Answer { reply: reply(lease), descriptor: Some(descriptor), granted: Some(Returned::Lease(lease)) })
    }

    /// Room for the bytes of a draft.
    pub fn grow(&self, lease: u64, to: u64) -> Result<Answer> {
        let Some(writing) = self.session.draft(lease) else { return Ok(Reply::NotLeased.into()) };
        writing.grow(to)?;
        Ok(Reply::Done.into())
    }

    /// A draft as the content of its file. A second request for it finds no lease once the first one succeeded.
    ///
    /// A client that goes is noticed only after the content was staged: it stays so, and is brought to the source.
    pub fn commit(&self, lease: u64, patch: Option<Patch>) -> Result<Answer> {
        let Some(writing) = self.session.draft(lease) else { return Ok(Reply::NotLeased.into()) };
        let entry = match patch {
            Some(patch) => self.wait(writing.commit_patched(patch))?,
            None => self.wait(writing.commit())?,
        };
        self.session.take_back([Returned::Lease(lease)], self.service.clock.monotonic());
        Ok(Reply::Entry(entry).into())
    }

    /// A content that came with the request.
    pub fn write_small(&self, path: &str, data: Bytes, options: WriteOptions, set: Option<&SetRef>) -> Result<Reply> {
        let path = TreePath::parse(path)?;
        if data.len() > SMALL_WRITE_BYTES_MAX {
            let reason = "its content is too large to come with the request";
            return Err(Error::new(ErrorKind::InvalidInput, format!("write {path}"), reason)
                .fact("bytes", data.len())
                .fact("limit", SMALL_WRITE_BYTES_MAX));
        }
        let engine = &self.service.engine;
        Ok(Reply::Entry(match set {
            Some(set) => self.wait(engine.write_small_in_set(&path, data, set, options.exclusive))?,
            None => self.wait(engine.write_small(&path, data, options))?,
        }))
    }

    /// A file that is no more.
    pub fn remove(&self, path: &str) -> Result<Reply> {
        self.wait(self.service.engine.remove(&TreePath::parse(path)?))?;
        Ok(Reply::Done)
    }

    /// A file or directory that has another name.
    pub fn rename(&self, from: &str, to: &str, replace: bool) -> Result<Reply> {
        let (from, to) = (TreePath::parse(from)?, TreePath::parse(to)?);
        self.wait(self.service.engine.rename(&from, &to, replace))?;
        Ok(Reply::Done)
    }

    /// A directory that is there.
    pub fn make_directory(&self, path: &str) -> Result<Reply> {
        self.wait(self.service.engine.make_directory(&TreePath::parse(path)?, Posix::default()))?;
        Ok(Reply::Done)
    }

    /// A directory that is no more.
    pub fn remove_directory(&self, path: &str) -> Result<Reply> {
        self.wait(self.service.engine.remove_directory(&TreePath::parse(path)?))?;
        Ok(Reply::Done)
    }

    /// The wait until the source has what is below a path; given up when the client goes.
    pub fn persist(&self, path: &str, timeout_ms: Option<u64>) -> Result<Reply> {
        let timeout = timeout_ms.map(Duration::from_millis);
        self.wait(self.service.engine.persist(&TreePath::parse(path)?, timeout))?;
        Ok(Reply::Done)
    }

    /// What a change in conflict holds: the client has the descriptor for itself, as long as it likes.
    pub fn conflict_content(&self, path: &str, operation: &str) -> Result<Answer> {
        let path = TreePath::parse(path)?;
        self.check_scarcity(&path)?;
        let descriptor = self.wait(async { self.service.engine.conflict_content(&path, operation) })?;
        Ok(Answer { reply: Reply::Done, descriptor: Some(descriptor), granted: None })
    }
}
