//! Compares what the kernel was told of directories with newer listings of them, which somebody else asked for or which
//! a walk brought, and has taken back what differs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use penstock_catalog::{Item, NamedItem};
use penstock_types::{Expired, TreePath, Version};

use crate::entry::{Entry, EntryKind};
use crate::kernel::nodes::{Node, Way};
use crate::kernel::told::NamesDigest;
use crate::kernel::{Mounted, tree_path};

/// Directories that one step looks at: some hundredths of all, so that each has its turn within half a minute, but in
/// this range. A look takes about ten microseconds.
const LOOKS_SHARE: usize = 32;
const LOOKS_MIN: usize = 256;
const LOOKS_MAX: usize = 4096;
/// Directories that are taken from the table at once.
const LOOKS_AT_ONCE: usize = 64;
/// Names that one step compares, and those of one page of them.
const NAMES_MAX: usize = 32 * 1024;
const PAGE_NAMES: usize = 4096;
/// A listing that is believed no longer than this is not compared with: reading on could ask for a new one.
const VALID_MIN: Duration = Duration::from_millis(200);

/// How far the comparing has come.
#[derive(Default)]
pub(super) struct Review {
    /// The directory that was looked at last.
    last: Arc<str>,
    /// A directory of which a part was compared.
    unfinished: Option<Round>,
}

/// What the kernel takes a name for.
#[derive(PartialEq, Eq)]
enum Meaning {
    Nothing,
    Directory,
    File(Version),
}

impl Meaning {
    fn of_node(node: &Node) -> Self {
        node.file.as_ref().map_or(Self::Directory, |file| Self::File(file.version.clone()))
    }

    fn of_item(item: Item) -> Self {
        match item {
            Item::Directory => Self::Directory,
            Item::File { attributes, .. } => Self::File(attributes.version),
        }
    }

    fn of_entry(entry: Option<Entry>) -> Self {
        match entry {
            None => Self::Nothing,
            Some(Entry { kind: EntryKind::File, version: Some(version), .. }) => Self::File(version),
            Some(_) => Self::Directory,
        }
    }
}

/// One directory and the listing that it is compared with.
struct Round {
    directory: Arc<str>,
    path: TreePath,
    listed_ms: i64,
    after: Option<String>,
    /// Names that the kernel believes to know and that have not come up yet.
    believed: HashMap<Arc<str>, Meaning>,
    differing: Vec<(Arc<str>, Meaning)>,
    digest: NamesDigest,
}

impl Round {
    fn see(&mut self, listed: NamedItem) {
        self.digest.add_item(&listed.name, &listed.item);
        if let Some((name, meaning)) = self.believed.remove_entry(listed.name.as_str())
            && meaning != Meaning::of_item(listed.item)
        {
            self.differing.push((name, meaning));
        }
    }
}

impl Mounted {
    /// One step; nothing while another is made.
    pub(super) fn review(&self) {
        let Ok(mut review) = self.review.try_lock() else { return };
        let (mut looks, mut names) = ((self.nodes.told().count() / LOOKS_SHARE).clamp(LOOKS_MIN, LOOKS_MAX), 0);
        while names < NAMES_MAX {
            let unfinished = review.unfinished.take();
            let Some(mut round) = unfinished.or_else(|| self.next_round(&mut review.last, &mut looks)) else { return };
            match self.compare(&mut round) {
                Some(compared) => names += compared,
                // It cannot be read now: its turn comes again.
                None => continue,
            }
            if round.after.is_some() {
                review.unfinished = Some(round);
            } else {
                self.finish(round);
            }
        }
    }

    /// The next directory of which there is a newer listing than it was compared with. A look is taken off for every
    /// directory.
    fn next_round(&self, last: &mut Arc<str>, looks: &mut usize) -> Option<Round> {
        while *looks > 0 {
            let candidates = self.nodes.told().following(last, LOOKS_AT_ONCE.min(*looks));
            if candidates.is_empty() {
                // All were looked at: from the first one on the next time.
                *last = Arc::default();
                return None;
            }
            for (directory, compared_ms) in candidates {
                *looks -= 1;
                *last = Arc::clone(&directory);
                let Ok(path) = tree_path(&directory) else { continue };
                let listed = self.listed_long(&path).filter(|listed_ms| Some(*listed_ms) != compared_ms);
                if let Some(listed_ms) = listed {
                    return Some(self.round(directory, path, listed_ms));
                }
            }
        }
        None
    }

    /// When the newest listing was asked for, where it is believed long enough to be read.
    fn listed_long(&self, path: &TreePath) -> Option<i64> {
        let (attached, inner) = self.engine.tree.find(path)?;
        attached.view.listed(&inner).filter(|(_, valid)| *valid > VALID_MIN).map(|(listed_ms, _)| listed_ms)
    }

    fn round(&self, directory: Arc<str>, path: TreePath, listed_ms: i64) -> Round {
        let told = self.nodes.told().comparable(&directory, self.now_ms());
        let held = told.held.into_iter().filter_map(|id| self.nodes.get_told(id));
        // What is open for writing is never believed for any time.
        let held = held.filter(|(node, _)| node.file.as_ref().is_none_or(|file| file.way != Way::Live));
        let mut latest: HashMap<Arc<str>, (u64, Meaning)> = HashMap::new();
        for (node, at) in held {
            let known = latest.entry(node.name()).or_insert((at, Meaning::Nothing));
            if known.0 <= at {
                *known = (at, Meaning::of_node(&node));
            }
        }
        let mut believed: HashMap<_, _> = latest.into_iter().map(|(name, (_, meaning))| (name, meaning)).collect();
        for name in told.absent {
            believed.entry(name).or_insert(Meaning::Nothing);
        }
        // Attachments come and go without a listing.
        self.engine.tree.children(&path).iter().for_each(|name| drop(believed.remove(name.as_str())));
        Round {
            directory,
            path,
            listed_ms,
            after: None,
            believed,
            differing: Vec::new(),
            digest: NamesDigest::default(),
        }
    }

    /// Compares a page; how many names that were. `None` when it is not to be had without a request.
    fn compare(&self, round: &mut Round) -> Option<usize> {
        let (attached, inner) = self.engine.tree.find(&round.path)?;
        let _entered = self.engine.parts.runtime.enter();
        let page = attached.view.list(&inner, round.after.as_deref(), PAGE_NAMES).now_or_never()?.ok()?;
        let compared = page.items.len() + 1;
        page.items.into_iter().for_each(|item| round.see(item));
        round.after = page.next;
        Some(compared)
    }

    /// Takes back what differs, once all of a directory was compared.
    fn finish(&self, round: Round) {
        let Round { directory, path, listed_ms, believed, mut differing, digest, .. } = round;
        if self.listed_long(&path) != Some(listed_ms) {
            // A newer one came meanwhile: its turn comes again.
            return;
        }
        differing.extend(believed.into_iter().filter(|(_, meaning)| *meaning != Meaning::Nothing));
        let node = self.directory_node(&path);
        let names = differing.into_iter().filter(|(name, meaning)| !self.was_learnt_since(&path, name, meaning));
        let mut expired: Vec<Expired> = names.map(|(name, _)| Expired::Name(node, name)).collect();
        let told = self.nodes.told();
        if told.names(&directory).is_some_and(|names| names.digest != digest) {
            told.drop_names(&directory);
            self.nodes.show_time(node, None);
            expired.push(Expired::Names(node));
        }
        told.compared(&directory, listed_ms);
        if let Some(done) = self.expire(expired) {
            self.engine.parts.runtime.block_on(done);
        }
    }

    /// Whether what the kernel takes a name for was learnt after the listing was asked for: then that is right.
    fn was_learnt_since(&self, directory: &TreePath, name: &str, meaning: &Meaning) -> bool {
        let listing = self.listing_valid(directory);
        let Some(Ok(known)) = self.engine.known(&directory.join(name)) else { return false };
        known.valid > listing && Meaning::of_entry(known.entry) == *meaning
    }
}
