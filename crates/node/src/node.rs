//! The node: parts put together, started, drained, stopped.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use penstock_engine::{
    AttachmentStatus, Engine, EngineParts, EngineStatus, Kept, Pruned, RealDisk, Sample, SnapshotFacts, WrittenCount,
};
use penstock_fuse::Surroundings;
use penstock_types::{AttachmentSpec, Clock, Error, ErrorKind, Metrics, NodeConfig, Result, SystemClock, TreePath};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::allocator::{give_free_memory_back, give_large_buffers_back};
use crate::answer::Service;
use crate::arena::ArenaBudget;
use crate::links::Links;
use crate::listener::DataSocket;
use crate::metrics_http;
use crate::mounts::{MountParts, MountSpec, MountStatus, Mounts};
use crate::protocol::BATCH_PATHS_MAX;
use crate::session::ClientStatus;

/// Time between two rounds of housekeeping.
const TICK: Duration = Duration::from_secs(1);
/// Threads that run transfers: they wait more than they compute.
const WORKERS_MAX: usize = 8;
/// Threads for blocking file calls.
const BLOCKING_THREADS_MAX: usize = 64;
/// Files opened for one batch, where the limit of open files admits it.
const BATCH_FILES_MAX: usize = 1024;
/// Descriptors that are left when files are refused, so that connections, batches and the control API go on; a
/// sixteenth where few are allowed.
const RESERVED_DESCRIPTORS: usize = 128;
/// What a drain leaves for the runtime to end its tasks.
const RUNTIME_GRACE: Duration = Duration::from_millis(500);

/// A running node.
pub struct Node {
    engine: Arc<Engine>,
    socket: Arc<DataSocket>,
    mounts: Arc<Mounts>,
    metrics_address: Option<SocketAddr>,
    clock: Arc<dyn Clock>,
    started: Duration,
    /// Of fills and batches together.
    memory_budget_bytes: u64,
    runtime: Mutex<Option<Runtime>>,
}

/// What `status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Process id.
    pub pid: u32,
    /// Version of the core.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Loopback port of Prometheus text.
    pub metrics_port: Option<u16>,
    /// Who is connected.
    pub clients: Vec<ClientStatus>,
    /// Attachments, cache, metrics.
    #[serde(flatten)]
    pub engine: EngineStatus,
}

impl Node {
    /// Starts a node: runtime, engine, housekeeping, `data.sock`, metrics. The caller holds the home's lock, so
    /// whatever is at the socket's path was left by a dead node.
    ///
    /// # Errors
    /// What keeps one of the parts from starting; nothing is left running.
    pub fn start(config: NodeConfig) -> Result<Self> {
        give_large_buffers_back();
        let files = raise_file_limit();
        let runtime = runtime()?;
        let metrics = Metrics::default();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let tiers: Vec<PathBuf> = config.cache.tiers.iter().map(|tier| tier.directory.clone()).collect();
        let arenas = ArenaBudget::new(config.memory_budget_bytes, metrics.clone());
        let mut granted = config.clone();
        granted.memory_budget_bytes -= arenas.limit();
        // Every request under way has a connection, which is a descriptor.
        granted.source.max_requests = granted.source.max_requests.min(files / 8).max(1);
        let engine = Engine::new(EngineParts {
            config: granted,
            clock: Arc::clone(&clock),
            disk: Arc::new(RealDisk),
            metrics: metrics.clone(),
            runtime: runtime.handle().clone(),
            seed: random_seed()?,
        })?;
        let metrics_address = config.metrics_port.map(|port| serve_metrics(port, &runtime, &metrics)).transpose()?;
        let (mounted, frozen) = (Arc::clone(&engine), Arc::clone(&engine));
        let mounts = Mounts::new(MountParts {
            trees: Box::new(move |base, lending| mounted.kernel_tree(base, lending)),
            snapshots: Box::new(move |spec, image| frozen.open_snapshot(&spec.document, image)),
            surroundings: Surroundings {
                metrics: metrics.clone(),
                runtime: runtime.handle().clone(),
                clock: Arc::clone(&clock),
            },
            tier: config.cache.tiers.first().cloned().expect("the cache began with it"),
            deadline: config.deadlines.foreground(),
            files_max: files,
        });
        let service = Arc::new(Service {
            engine: Arc::clone(&engine),
            runtime: runtime.handle().clone(),
            clock: Arc::clone(&clock),
            metrics,
            arenas,
            links: Links::new(tiers),
            scarce: AtomicBool::new(false),
            lent_below: files - RESERVED_DESCRIPTORS.min(files / 16),
            batch_files_max: BATCH_FILES_MAX.min(files / 4).clamp(1, BATCH_PATHS_MAX),
        });
        let socket = DataSocket::bind(&config.data_socket, service, config.max_connections)?;
        let accepting = Arc::clone(&socket);
        std::thread::Builder::new().name("accept".into()).spawn(move || accepting.accept()).map_err(|error| {
            Error::new(ErrorKind::ResourceLimit, "start the node", error.to_string()).advise("raise the thread limit")
        })?;
        runtime.spawn(keep_engine(Arc::clone(&engine)));
        runtime.spawn(keep_clients(Arc::clone(&socket)));
        runtime.spawn(keep_mounts(Arc::clone(&mounts)));
        let started = clock.monotonic();
        tracing::info!(socket = %config.data_socket.display(), open_files = files, "node started");
        let (runtime, memory_budget_bytes) = (Mutex::new(Some(runtime)), config.memory_budget_bytes);
        Ok(Self { engine, socket, mounts, metrics_address, clock, started, memory_budget_bytes, runtime })
    }

    /// Puts a source into the tree. Blocks for the probe.
    pub fn attach(&self, spec: AttachmentSpec, probe: bool) -> Result<AttachmentStatus> {
        self.handle()?.block_on(self.engine.attach(spec, probe))
    }

    /// Takes an attachment out of the tree.
    pub fn detach(&self, path: &str) -> Result<()> {
        self.engine.detach(&TreePath::parse(path)?)
    }

    /// Asks the source at exactly `path` whether it answers. Blocks for the answer.
    pub fn probe(&self, path: &str) -> Result<AttachmentStatus> {
        self.handle()?.block_on(self.engine.probe(&TreePath::parse(path)?))
    }

    /// Number and bytes of the first files below `path`. Blocks for one request.
    pub fn sample(&self, path: &str) -> Result<Sample> {
        self.handle()?.block_on(self.engine.sample(&TreePath::parse(path)?))
    }

    /// Freezes what is below `path` into a document. Blocks until the source was listed.
    pub fn create_snapshot(&self, path: &str, name: &str, file: &Path) -> Result<SnapshotFacts> {
        self.handle()?.block_on(self.engine.create_snapshot(&TreePath::parse(path)?, name, file))
    }

    /// Every attachment.
    pub fn attachments(&self) -> Vec<AttachmentStatus> {
        self.engine.attachments()
    }

    /// Keeps these paths, and what is below them, in the cache; `kept` with the reason of each. See
    /// [`Engine::set_pins`].
    pub fn set_pins(&self, paths: &[String], kept: Vec<(String, String, bool)>, decided: Option<u64>) -> Result<()> {
        let pins: Result<Vec<TreePath>> = paths.iter().map(|path| TreePath::parse(path)).collect();
        let parsed = |(path, reason, is_listed): (String, String, bool)| {
            Ok(Kept { path: TreePath::parse(&path)?, reason, is_listed })
        };
        let kept: Result<Vec<Kept>> = kept.into_iter().map(parsed).collect();
        self.engine.set_pins(pins?, kept?, decided);
        Ok(())
    }

    /// What was written so far.
    pub fn written(&self) -> WrittenCount {
        self.engine.written_so_far()
    }

    /// Evicts until at most `target_bytes` are cached; what is pinned or in use stays.
    pub fn prune(&self, target_bytes: u64) -> Result<Pruned> {
        self.engine.prune(target_bytes)
    }

    /// Serves a kernel mount from now on. `device` is `/dev/fuse`, mounted already; it is closed when this fails.
    pub fn serve_mount(&self, device: OwnedFd, spec: MountSpec) -> Result<MountStatus> {
        self.handle()?;
        self.mounts.serve(device, spec)
    }

    /// Every mount that is served.
    pub fn mounts(&self) -> Vec<MountStatus> {
        self.mounts.list()
    }

    /// Forgets a mount whose kernel side is gone; ends the connection of one whose is not.
    pub fn end_mount(&self, id: u64) -> Result<()> {
        self.mounts.end(id)
    }

    /// Everything `status` shows.
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: (self.clock.monotonic() - self.started).as_secs_f64(),
            metrics_port: self.metrics_port(),
            clients: self.socket.clients(),
            engine: EngineStatus { memory_budget_bytes: self.memory_budget_bytes, ..self.engine.status() },
        }
    }

    /// Port of Prometheus text on the loopback address; `None` when none is served.
    pub fn metrics_port(&self) -> Option<u16> {
        self.metrics_address.map(|address| address.port())
    }

    /// Takes no more clients, lets requests under way finish within `timeout`, ends mounts that are left, flushes,
    /// stops. Later calls do nothing.
    pub fn drain(&self, timeout: Duration) {
        let Some(runtime) = self.runtime().take() else { return };
        self.socket.stop(Instant::now() + timeout);
        self.mounts.close();
        self.engine.close();
        runtime.shutdown_timeout(RUNTIME_GRACE);
        tracing::info!("node drained");
    }

    fn handle(&self) -> Result<tokio::runtime::Handle> {
        let handle = self.runtime().as_ref().map(|runtime| runtime.handle().clone());
        handle.ok_or_else(|| Error::new(ErrorKind::Unavailable, "ask the node", "it is stopping"))
    }

    fn runtime(&self) -> std::sync::MutexGuard<'_, Option<Runtime>> {
        self.runtime.lock().expect("no panic while the runtime is looked at")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.drain(Duration::ZERO);
    }
}

async fn keep_engine(engine: Arc<Engine>) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        engine.tick().await;
        // A panic in it would be one of the allocator itself.
        let _ = tokio::task::spawn_blocking(give_free_memory_back).await;
    }
}

/// Apart from the engine's: a slow disk must not keep signs of life from clients.
async fn keep_clients(socket: Arc<DataSocket>) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        socket.tick();
    }
}

/// Apart from both: what it watches over may be what keeps them.
async fn keep_mounts(mounts: Arc<Mounts>) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        mounts.tick();
    }
}

fn serve_metrics(port: u16, runtime: &Runtime, metrics: &Metrics) -> Result<SocketAddr> {
    let (serving, address) = runtime.block_on(metrics_http::serve(port, metrics))?;
    runtime.spawn(serving);
    Ok(address)
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

fn runtime() -> Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, WORKERS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("penstock")
        .enable_all()
        .build()
        .map_err(|error| {
            Error::new(ErrorKind::ResourceLimit, "start the node", error.to_string()).advise("raise the thread limit")
        })
}

/// Raises the soft limit of open files to the hard one; returns it.
fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files was not raised");
        }
    }
    usize::try_from(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)).unwrap_or(usize::MAX)
}

fn random_seed() -> Result<u64> {
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::new(ErrorKind::Internal, "start the node", error.to_string()))?;
    Ok(u64::from_le_bytes(seed))
}
