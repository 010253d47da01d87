//! Requests about sets of files.

use penstock_engine::SetRef;
use penstock_types::{Durability, Error, ErrorKind, Result, TreePath};

use crate::answer::{Answerer, json, page_limit};
use crate::protocol::{Reply, Request};

impl Answerer<'_> {
    /// The reply to a request about sets.
    pub fn about_sets(&self, request: Request) -> Result<Reply> {
        match request {
            Request::BeginSet { path } => self.begin_set(&path),
            Request::PublishSet { set, durability } => self.publish_set(&set, durability),
            Request::DiscardSet { set, left_behind } => self.discard_set(&set, left_behind),
            Request::RemoveSet { path } => self.remove_set(&path),
            Request::Sets { path } => self.sets(&path),
            Request::SetFiles { path, after, limit } => self.set_files(&path, after.as_deref(), limit),
            _ => Err(Error::new(ErrorKind::Internal, "answer a client", "the request is out of order")),
        }
    }

    /// A new set: its id.
    fn begin_set(&self, path: &str) -> Result<Reply> {
        Ok(Reply::Json(json(&self.wait(self.service.engine.begin_set(&TreePath::parse(path)?))?)?))
    }

    /// A set that is there.
    fn publish_set(&self, set: &SetRef, durability: Option<Durability>) -> Result<Reply> {
        let path = TreePath::parse(&set.root)?;
        self.wait(self.service.engine.publish_set(&path, &set.id, durability))?;
        Ok(Reply::Done)
    }

    /// A set that never was.
    fn discard_set(&self, set: &SetRef, left_behind: bool) -> Result<Reply> {
        let (path, engine) = (TreePath::parse(&set.root)?, &self.service.engine);
        match left_behind {
            true => self.wait(engine.remove_unpublished(&path, &set.id))?,
            false => self.wait(engine.discard_set(&path, &set.id))?,
        };
        Ok(Reply::Done)
    }

    /// A set that is no more.
    fn remove_set(&self, path: &str) -> Result<Reply> {
        self.wait(self.service.engine.remove_set(&TreePath::parse(path)?))?;
        Ok(Reply::Done)
    }

    /// What sets there are.
    fn sets(&self, path: &str) -> Result<Reply> {
        Ok(Reply::Json(json(&self.wait(self.service.engine.sets(&TreePath::parse(path)?))?)?))
    }

    /// What is in a set.
    fn set_files(&self, path: &str, after: Option<&str>, limit: u32) -> Result<Reply> {
        let path = TreePath::parse(path)?;
        Ok(Reply::Json(json(&self.wait(self.service.engine.set_files(&path, after, page_limit(limit)))?)?))
    }
}
