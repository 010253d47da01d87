//! What one attachment sees.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use penstock_types::{Error, ErrorKind, Freshness, ListRequest, ObjectKey, Result, Source};

use crate::keymap::{self, Place, Shape};
use crate::{Catalog, Item, ItemPage, NamedItem};

pub(crate) struct ViewParts {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) scope: Arc<str>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) prefix: ObjectKey,
    pub(crate) freshness: Freshness,
}

/// The tree below one prefix of one source, as paths. `""` is its root.
pub struct View {
    parts: ViewParts,
    known: Mutex<HashMap<String, Item>>,
}

impl View {
    pub(crate) fn new(parts: ViewParts) -> Arc<Self> {
        Arc::new(Self { parts, known: Mutex::default() })
    }

    /// What is known of a path and fresh enough, without a request; `None` when that has to be asked.
    pub fn stat_cached(&self, path: &str) -> Option<Result<Item>> {
        if self.parts.freshness == Freshness::Seconds(0.0) {
            return None;
        }
        let _ = (&self.parts.scope, &self.parts.catalog.clock, &self.parts.catalog.metrics);
        self.known.lock().expect("no panic under this lock").get(path).cloned().map(Ok)
    }

    /// What a path names.
    ///
    /// # Errors
    /// `NotFound`, and what the source says.
    pub async fn stat(&self, path: &str) -> Result<Item> {
        match self.stat_cached(path) {
            Some(known) => known,
            None => self.revalidate(path).await,
        }
    }

    /// Asks the source what a path names, whatever is known.
    ///
    /// # Errors
    /// As [`View::stat`].
    pub async fn revalidate(&self, path: &str) -> Result<Item> {
        let place = self.place(path)?;
        let item = match &place {
            Place::Root => Item::Directory,
            Place::Name(key) | Place::Beside(key) => {
                let key = self.parts.prefix.join(key);
                let below = ListRequest { prefix: key.join(b"/"), limit: 1, ..ListRequest::default() };
                let (object, below) =
                    futures_util::future::join(self.parts.source.stat(&key), self.parts.source.list(below)).await;
                let directory = !below?.objects.is_empty();
                match (object, matches!(place, Place::Beside(_))) {
                    (_, false) if directory => Item::Directory,
                    (Ok(object), beside) if directory == beside => Item::File { key, attributes: object.attributes },
                    (Err(error), _) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => return Err(self.not_found(path)),
                }
            }
            Place::Piece(_) => return Err(self.not_found(path)),
        };
        self.known.lock().expect("no panic under this lock").insert(path.into(), item.clone());
        Ok(item)
    }

    /// The names of a directory, in an order that stays the same.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, and what the source says.
    pub async fn list(&self, path: &str, after: Option<&str>, limit: usize) -> Result<ItemPage> {
        let items = self.collect(path, true).await?;
        Ok(page(items, after, limit))
    }

    /// Everything below a directory, parents before children; names are paths below it.
    ///
    /// # Errors
    /// As [`View::list`].
    pub async fn walk(&self, path: &str, after: Option<&str>, limit: usize) -> Result<ItemPage> {
        let items = self.collect(path, false).await?;
        Ok(page(items, after, limit))
    }

    /// Forgets what is known of a path: it turned out to be wrong.
    pub fn forget(&self, path: &str) {
        self.known.lock().expect("no panic under this lock").remove(path);
    }

    /// The full key that a path stands for.
    ///
    /// # Errors
    /// `NotFound` for a path that no key has.
    pub fn key_of(&self, path: &str) -> Result<ObjectKey> {
        match self.place(path)? {
            Place::Root => Ok(self.parts.prefix.clone()),
            Place::Name(key) | Place::Beside(key) => Ok(self.parts.prefix.join(&key)),
            Place::Piece(_) => Err(self.not_found(path)),
        }
    }

    /// The next files of the same directory in listing order, from what is known; empty when that is nothing.
    pub fn following(&self, path: &str, count: usize) -> Vec<NamedItem> {
        let _ = (path, count);
        Vec::new()
    }

    fn place(&self, path: &str) -> Result<Place> {
        keymap::decode(path).ok_or_else(|| self.not_found(path))
    }

    fn not_found(&self, path: &str) -> Error {
        Error::new(ErrorKind::NotFound, format!("look up {path}"), "nothing has that name")
            .fact("source", self.parts.source.describe(&self.parts.prefix))
    }

    async fn collect(&self, path: &str, delimited: bool) -> Result<Vec<NamedItem>> {
        let directory = self.place(path)?.directory_prefix().ok_or_else(|| self.not_found(path))?;
        let prefix = self.parts.prefix.join(&directory);
        let mut request = ListRequest { prefix: prefix.clone(), delimited, limit: 1000, ..ListRequest::default() };
        let mut items: HashMap<String, Item> = HashMap::new();
        loop {
            let listed = self.parts.source.list(request.clone()).await?;
            for key in listed.prefixes {
                let name = &key.as_bytes()[prefix.as_bytes().len()..key.as_bytes().len() - 1];
                items.insert(keymap::encode(name, Shape::Plain), Item::Directory);
            }
            for object in listed.objects {
                let name = keymap::encode(&object.key.as_bytes()[prefix.as_bytes().len()..], Shape::Plain);
                for (slash, _) in name.match_indices('/') {
                    items.insert(name[..slash].into(), Item::Directory);
                }
                if !(object.attributes.size == 0 && object.key.as_bytes().ends_with(b"/")) {
                    items.insert(name, Item::File { key: object.key, attributes: object.attributes });
                }
            }
            request.continuation = listed.continuation;
            if request.continuation.is_none() {
                break;
            }
        }
        let mut items: Vec<_> = items.into_iter().map(|(name, item)| NamedItem { name, item }).collect();
        items.sort_by(|a, b| a.name.cmp(&b.name));
        let mut known = self.known.lock().expect("no panic under this lock");
        for item in &items {
            let full = if path.is_empty() { item.name.clone() } else { format!("{path}/{}", item.name) };
            known.insert(full, item.item.clone());
        }
        Ok(items)
    }
}

fn page(items: Vec<NamedItem>, after: Option<&str>, limit: usize) -> ItemPage {
    let mut rest = items.into_iter().filter(|item| after.is_none_or(|after| item.name.as_str() > after));
    let items: Vec<_> = rest.by_ref().take(limit).collect();
    let next = rest.next().and_then(|_| items.last().map(|item| item.name.clone()));
    ItemPage { items, next }
}
