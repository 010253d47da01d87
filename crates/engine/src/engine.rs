//! The engine itself: attachments, names, status.

use std::sync::Arc;
use std::time::Duration;

use penstock_cache::{Cache, CacheParts, CacheUsage};
use penstock_catalog::{Catalog, Item};
use penstock_source::{Probe, SourceParts, credential_scope};
use penstock_stage::{Stage, StageParts, StageStatus};
use penstock_types::{
    AttachmentSpec, Clock, Disk, Error, ErrorKind, ListRequest, Metrics, NodeConfig, Overlay, Priority, Result, Source,
    SourceSpec, TreePath,
};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::ahead::Ahead;
use crate::announce::Watchers;
use crate::attachment::{Attached, AttachmentStatus, Health, SourceOrigin};
use crate::budget::MemoryBudget;
use crate::entry::{Entry, EntryPage};
use crate::live::LiveFiles;
use crate::moved::Moved;
use crate::pins::Pins;
use crate::sets::Sets;
use crate::transfer::Carrier;
use crate::tree::Tree;
use crate::walks::Walks;
use crate::write::{Gone, Lookups, Staged, keep_streaming, keep_uploading};

/// Files that a sample looks at, at most, and how long it waits for them: nothing depends on it but speed.
const SAMPLE_FILES: usize = 1000;
const SAMPLE_PATIENCE: Duration = Duration::from_secs(3);

/// Resolves paths, pins versions, brings bytes, lends them.
pub struct Engine {
    pub(crate) parts: EngineParts,
    pub(crate) tree: Tree,
    pub(crate) cache: Arc<Cache>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) carrier: Arc<Carrier>,
    pub(crate) ahead: Ahead,
    pub(crate) walks: Walks,
    pub(crate) stage: Arc<Stage>,
    pub(crate) lookups: Lookups,
    pub(crate) live: LiveFiles,
    pub(crate) gone: Gone,
    pub(crate) moved: Arc<Moved>,
    pub(crate) sets: Sets,
    pub(crate) watchers: Watchers,
    pub(crate) pins: Pins,
}

/// What an engine is made of.
#[derive(Clone)]
pub struct EngineParts {
    /// Everything that can be set.
    pub config: NodeConfig,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What the cache is kept on.
    pub disk: Arc<dyn Disk>,
    /// Where everything is counted.
    pub metrics: Metrics,
    /// Where transfers run; must have several threads.
    pub runtime: Handle,
    /// Seed of every jitter.
    pub seed: u64,
}

/// Some files of a directory tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Sample {
    /// How many.
    pub files: u64,
    /// Their sizes together.
    pub size_bytes: u64,
}

/// What `status` shows of the engine.
#[derive(Clone, Debug, Serialize)]
pub struct EngineStatus {
    /// Attachments and their health.
    pub attachments: Vec<AttachmentStatus>,
    /// Tiers, bytes, health.
    pub cache: CacheUsage,
    /// What the sources have not got yet.
    pub stage: StageStatus,
    /// Bytes found in the cache ÷ bytes lent or served; `None` before the first read.
    pub hit_ratio: Option<f64>,
    /// The memory budget, bytes.
    pub memory_budget_bytes: u64,
    /// Every metric by name.
    pub metrics: std::collections::BTreeMap<&'static str, i64>,
}

impl Engine {
    /// Opens cache and catalog. Reads no tree and asks no source, so it takes the same time full or empty.
    ///
    /// # Errors
    /// `Disk` or `PermissionDenied` where the state directory cannot be used, `InvalidInput` for a cache
    /// directory on a network file system.
    pub fn new(parts: EngineParts) -> Result<Arc<Self>> {
        let config = &parts.config;
        let cache = Cache::open(CacheParts {
            config: config.cache.clone(),
            state_directory: config.state_directory.clone(),
            clock: Arc::clone(&parts.clock),
            metrics: parts.metrics.clone(),
            disk: Arc::clone(&parts.disk),
            seed: parts.seed,
        })?;
        let catalog_path = config.state_directory.join("catalog.redb");
        let catalog = Catalog::open(&catalog_path, Arc::clone(&parts.clock), parts.metrics.clone())?;
        let budget = MemoryBudget::new(config.memory_budget_bytes, parts.metrics.clone());
        let deadline = config.deadlines.foreground();
        let carrier = Carrier::new(parts.runtime.clone(), budget, deadline);
        let ahead = Ahead::new(config.memory_budget_bytes);
        let stage = Stage::open(StageParts {
            config: config.stage.clone(),
            clock: Arc::clone(&parts.clock),
            disk: Arc::clone(&parts.disk),
            metrics: parts.metrics.clone(),
            seed: parts.seed,
        })?;
        let (tree, walks, pins) = (Tree::default(), Walks::default(), Pins::default());
        let (lookups, watchers, runtime) = (Lookups::default(), Watchers::default(), parts.runtime.clone());
        let (live, gone, moved) = (LiveFiles::default(), Gone::default(), Arc::default());
        let engine = Arc::new(Self {
            tree,
            cache,
            catalog,
            carrier,
            ahead,
            walks,
            stage,
            lookups,
            live,
            gone,
            moved,
            sets: Sets::default(),
            watchers,
            pins,
            parts,
        });
        {
            let _entered = runtime.enter();
            engine.recall_posix();
        }
        runtime.spawn(keep_uploading(Arc::downgrade(&engine)));
        runtime.spawn(keep_streaming(Arc::downgrade(&engine)));
        Ok(engine)
    }

    /// Puts a source at a path. With `probe` it is asked first, within the attach deadline, and an answer that
    /// says it cannot work refuses the attachment with cause and fix; nothing is half-attached.
    pub async fn attach(&self, spec: AttachmentSpec, probe: bool) -> Result<AttachmentStatus> {
        let path = TreePath::parse(&spec.path)?;
        self.tree.check_free(&path)?;
        if !spec.prefix.is_empty() && !spec.prefix.ends_with('/') {
            return Err(Error::new(ErrorKind::InvalidInput, format!("attach {path}"), "the prefix does not end in /"));
        }
        let source = self.source(&spec.source)?;
        let deadline = self.parts.config.deadlines.attach();
        let prefix = Attached::prefix(&spec);
        let probe = match probe {
            true => Some(penstock_source::probe(source.as_ref(), &prefix, deadline).await?),
            false => None,
        };
        if probe.is_some() && spec.write.is_some() {
            let tried = tokio::time::timeout(deadline, source.tried(&prefix)).await;
            let tried = tried.unwrap_or_else(|_| {
                let reason = format!("the source took no object within {:.0} s", deadline.as_secs_f64());
                Err(Error::new(ErrorKind::Timeout, "write an object", reason).advise("attach it again later"))
            });
            tried.map_err(|error| error.during(format!("attach {path} writable")))?;
        }
        self.attach_source(spec, source, probe)
    }

    /// Puts a source that is open already at a path.
    pub fn attach_source(
        &self,
        spec: AttachmentSpec,
        source: Arc<dyn Source>,
        probe: Option<Probe>,
    ) -> Result<AttachmentStatus> {
        let attached = self.attached(spec, source, probe)?;
        let status = attached.status();
        self.tree.add(attached)?;
        Ok(status)
    }

    /// A source at a path, not in the tree yet.
    pub(crate) fn attached(
        &self,
        spec: AttachmentSpec,
        source: Arc<dyn Source>,
        probe: Option<Probe>,
    ) -> Result<Arc<Attached>> {
        let path = TreePath::parse(&spec.path)?;
        let scope: Arc<str> = credential_scope(&spec.source).into();
        let overlay: Option<Arc<dyn Overlay>> = Some(Arc::new(Staged::of(&self.stage, &scope)));
        let view = self.catalog.view(&scope, Arc::clone(&source), Attached::prefix(&spec), spec.freshness, overlay);
        let origin = SourceOrigin { source: Arc::clone(&source), moved: Arc::clone(&self.moved) };
        let origins: Vec<Arc<dyn penstock_types::Origin>> = vec![Arc::new(origin)];
        if spec.posix && source.capabilities().metadata {
            view.keep_every_posix();
        }
        let health = Health::new(Arc::clone(&self.parts.clock));
        Ok(Arc::new(Attached { path, scope, view, origins, source, probe, health, spec }))
    }

    /// Takes the attachment at `path` out of the tree. Open files go on; what is cached stays. Listings that no other
    /// attachment may look at are forgotten.
    pub fn detach(&self, path: &TreePath) -> Result<()> {
        let removed = self.tree.remove(path)?;
        if !self.tree.all().iter().any(|other| other.scope == removed.scope) {
            self.catalog.forget_scope(&removed.scope);
        }
        Ok(())
    }

    /// Asks the source at exactly `path` again what an attach asks first, and tells its health as it is now.
    ///
    /// # Errors
    /// `NotFound` when nothing is attached there; what the source refuses with, within the attach deadline.
    pub async fn probe(&self, path: &TreePath) -> Result<AttachmentStatus> {
        let known = self.tree.find(path).filter(|(attached, _)| attached.path == *path);
        let Some((attached, _)) = known else {
            return Err(Error::new(ErrorKind::NotFound, format!("probe {path}"), "nothing is attached at that path"));
        };
        let deadline = self.parts.config.deadlines.attach();
        let answer =
            penstock_source::probe(attached.source.as_ref(), &Attached::prefix(&attached.spec), deadline).await;
        attached.health.note(&answer);
        Ok(AttachmentStatus { latency_ms: Some(answer?.latency_ms), ..attached.status() })
    }

    /// Number and total size of the first files below `path`, at most a page of a flat listing: what kind of files
    /// they are. One request.
    ///
    /// # Errors
    /// `NotFound` when nothing is attached at or above it; what the source says.
    pub async fn sample(&self, path: &TreePath) -> Result<Sample> {
        let (attached, inner) = self.tree.find(path).ok_or_else(|| nothing_attached(path))?;
        let key = attached.view.key_of(&inner)?;
        let prefix = if inner.is_empty() { key } else { key.join(b"/") };
        let request = ListRequest {
            prefix,
            delimited: false,
            start_after: None,
            continuation: None,
            limit: SAMPLE_FILES,
            priority: Priority::Foreground,
        };
        let listing = tokio::time::timeout(SAMPLE_PATIENCE, attached.source.list(request)).await;
        let page = listing.map_err(|_| {
            Error::new(ErrorKind::Timeout, format!("sample {path}"), "the source did not answer in time")
        })??;
        let size_bytes = page.objects.iter().map(|object| object.attributes.size).sum();
        Ok(Sample { files: page.objects.len() as u64, size_bytes })
    }

    /// Most bytes that the cache may hold.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.parts.config.cache.tiers.iter().map(|tier| tier.size_bytes).sum()
    }

    /// Every attachment, sorted by path.
    pub fn attachments(&self) -> Vec<AttachmentStatus> {
        self.tree.all().iter().map(|attached| attached.status()).collect()
    }

    /// Everything `status` shows.
    pub fn status(&self) -> EngineStatus {
        let metrics = &self.parts.metrics;
        let read = metrics.read_bytes.get();
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        let hit_ratio = (read > 0).then(|| metrics.cache_hit_bytes.get() as f64 / read as f64);
        EngineStatus {
            attachments: self.attachments(),
            cache: self.cache.usage(),
            stage: self.stage.status(),
            hit_ratio,
            memory_budget_bytes: self.parts.config.memory_budget_bytes,
            metrics: metrics.snapshot().into_iter().collect(),
        }
    }

    /// What is at `path`, where that is known and fresh; never a request.
    pub fn stat_cached(&self, path: &TreePath) -> Option<Result<Entry>> {
        let (attached, inner) = self.tree.find(path)?;
        let known = self.known_whole(&attached, path, attached.view.stat_cached(&inner)?)?;
        let entry = |item| self.entry(&attached, (&inner, ""), path.name(), item);
        Some(known.map(entry).map_err(|error| error.during(format!("stat {path}"))))
    }

    /// What is at `path`. At most one round trip when it is not known or not fresh; one more where it is to be known what
    /// was said of it.
    pub async fn stat(&self, path: &TreePath) -> Result<Entry> {
        let skeleton = || Ok(Entry::directory(path.name()));
        let entry = match self.tree.find(path) {
            Some((_, inner)) if inner.is_empty() => skeleton(),
            Some((attached, inner)) => {
                let found = self.timely(&attached, path, attached.view.stat(&inner)).await;
                let found = self.unless_gone(path, found);
                match self.ask_said(&attached, path, found.iter()).await.and(found) {
                    Err(error) if error.kind() == ErrorKind::NotFound && self.tree.is_directory(path) => skeleton(),
                    found => found.map(|item| self.entry(&attached, (&inner, ""), path.name(), item)),
                }
            }
            None if self.tree.is_directory(path) => skeleton(),
            None => Err(nothing_attached(path)),
        };
        entry.map_err(|error| error.during(format!("stat {path}")))
    }

    /// A page of the names in a directory; attachments below it appear as directories on the first page.
    pub async fn list(self: &Arc<Self>, path: &TreePath, after: Option<&str>, limit: usize) -> Result<EntryPage> {
        let nested = self.tree.children(path);
        let synthetic: Vec<Entry> = match after {
            None => nested.iter().map(|name| Entry::directory(name.as_str())).collect(),
            Some(_) => Vec::new(),
        };
        let Some((attached, inner)) = self.tree.find(path) else {
            if !self.tree.is_directory(path) {
                return Err(nothing_attached(path));
            }
            return Ok(EntryPage { entries: synthetic, next: None });
        };
        if after.is_none() && attached.view.listed(&inner).is_none() {
            self.walks.note_unknown(self, &attached, &inner);
        }
        let listed = self.timely(&attached, path, attached.view.list(&inner, after, limit)).await;
        let page = match listed {
            Err(error) if error.kind() == ErrorKind::NotFound && !nested.is_empty() => Default::default(),
            listed => listed.map_err(|error| error.during(format!("list {path}")))?,
        };
        let items = page.items.iter().map(|named| &named.item);
        self.ask_said(&attached, path, items).await.map_err(|error| error.during(format!("list {path}")))?;
        let own = page.items.into_iter().filter(|item| !nested.contains(&item.name));
        let own = own.map(|item| self.entry(&attached, (&inner, &item.name), item.name.as_str(), item.item));
        let own = own.filter(|entry| !self.is_gone(path, entry));
        let entries = synthetic.into_iter().chain(own).collect();
        Ok(EntryPage { entries, next: page.next })
    }

    /// A page of everything below a directory, parents before what is in them, names relative to `path`.
    pub async fn walk(&self, path: &TreePath, after: Option<&str>, limit: usize) -> Result<EntryPage> {
        let mut segments = Vec::new();
        if let Some((attached, inner)) = self.tree.find(path) {
            segments.push((attached, inner));
        } else if !self.tree.is_directory(path) {
            return Err(nothing_attached(path));
        }
        let nested = self.tree.below(path);
        segments.extend(nested.iter().map(|attached| (Arc::clone(attached), String::new())));
        let (position, inner_after) = parse_cursor(after, segments.len())?;
        let Some((attached, inner)) = segments.get(position) else {
            return Ok(EntryPage::default());
        };
        let base = attached.path.below(path).unwrap_or_default();
        let walked = self.timely(attached, path, attached.view.walk(inner, inner_after, limit)).await;
        let page = match walked {
            Err(error) if error.kind() == ErrorKind::NotFound && !nested.is_empty() => Default::default(),
            walked => walked.map_err(|error| error.during(format!("walk {path}")))?,
        };
        let mut entries = Vec::with_capacity(page.items.len() + 1);
        if inner_after.is_none() && !base.is_empty() {
            let earlier = &segments[..position];
            for directory in directories_above(base, path, earlier) {
                if !self.was_walked(earlier, &path.join(&directory)).await {
                    entries.push(Entry::directory(directory));
                }
            }
        }
        for item in page.items {
            let name = if base.is_empty() { item.name.clone() } else { format!("{base}/{}", item.name) };
            if !is_shadowed(&name, path, attached, &nested) {
                entries.push(self.entry(attached, (inner, &item.name), name, item.item));
            }
        }
        let next = match page.next {
            Some(cursor) => Some(format!("{position}:{cursor}")),
            None if position + 1 < segments.len() => Some(format!("{}:", position + 1)),
            None => None,
        };
        Ok(EntryPage { entries, next })
    }

    /// Whether the walk of an earlier attachment has shown this directory; it is known from there, so nothing is asked.
    async fn was_walked(&self, earlier: &[(Arc<Attached>, String)], directory: &TreePath) -> bool {
        let Some((owner, inner)) = self.tree.find(directory) else { return false };
        earlier.iter().any(|(known, _)| Arc::ptr_eq(known, &owner))
            && matches!(owner.view.stat(&inner).await, Ok(Item::Directory))
    }

    /// Flushes what is only in memory. Open files go on; nothing new is remembered afterwards.
    pub fn close(&self) {
        self.stage.close();
        // Not before: what was written and never flushed stays, and the next start sets it aside.
        self.live.clear();
        self.cache.close();
        self.catalog.close();
    }

    /// Runs a question to an attachment within the foreground deadline and notes what it says of its health.
    pub(crate) async fn timely<T>(
        &self,
        attached: &Attached,
        path: &TreePath,
        question: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let deadline = self.parts.config.deadlines.foreground();
        let answer = tokio::time::timeout(deadline, question).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, format!("look up {path}"), "the source did not answer in time")
                .advise("check the source: penstock doctor")
                .fact("deadline_s", deadline.as_secs_f64()))
        });
        attached.health.note(&answer);
        answer
    }

    /// The source of a spec; attachments of one spec share it, and with it its limits.
    pub(crate) fn source(&self, spec: &SourceSpec) -> Result<Arc<dyn Source>> {
        if let Some(known) = self.tree.all().iter().find(|attached| attached.spec.source == *spec) {
            return Ok(Arc::clone(&known.source));
        }
        let parts = SourceParts {
            config: self.parts.config.source.clone(),
            deadline: self.parts.config.deadlines.foreground(),
            metrics: self.parts.metrics.clone(),
            clock: Arc::clone(&self.parts.clock),
            seed: self.parts.seed,
        };
        Ok(penstock_source::try_conditions(spec, penstock_source::open(spec, &parts)?))
    }
}

pub(crate) fn nothing_attached(path: &TreePath) -> Error {
    let top = path.as_str().split('/').nth(1).unwrap_or_default();
    Error::new(ErrorKind::NotFound, format!("look up {path}"), "nothing is attached at or above it")
        .advise(format!("penstock attach s3://bucket/prefix /{top}"))
}

/// `3:rest` is the fourth segment from `rest` on; an empty rest is its start.
fn parse_cursor(after: Option<&str>, segments: usize) -> Result<(usize, Option<&str>)> {
    let Some(text) = after else { return Ok((0, None)) };
    let parsed = text.split_once(':').and_then(|(position, rest)| Some((position.parse().ok()?, rest)));
    let (position, rest): (usize, &str) = parsed.filter(|(position, _)| *position < segments).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "go on with a walk", "the cursor is not one that a walk returned")
            .advise("begin again without one")
    })?;
    Ok((position, (!rest.is_empty()).then_some(rest)))
}

/// The directories from the walked path down to `base` that no earlier segment has announced.
fn directories_above<'a>(
    base: &'a str,
    path: &'a TreePath,
    earlier: &'a [(Arc<Attached>, String)],
) -> impl Iterator<Item = String> + 'a {
    let ends = base.match_indices('/').map(|(end, _)| end).chain([base.len()]);
    ends.map(|end| base[..end].to_string()).filter(move |directory| {
        let whole = path.join(directory);
        let announced =
            |known: &Arc<Attached>| *known.path.as_str() == *whole.as_str() || known.path.below(&whole).is_some();
        !earlier.iter().any(|(known, _)| announced(known))
    })
}

/// Whether another attachment covers what `owner` has under that name.
fn is_shadowed(name: &str, path: &TreePath, owner: &Arc<Attached>, nested: &[Arc<Attached>]) -> bool {
    let whole = path.join(name);
    nested.iter().any(|other| {
        !Arc::ptr_eq(other, owner) && owner.path.below(&other.path).is_none() && whole.below(&other.path).is_some()
    })
}
