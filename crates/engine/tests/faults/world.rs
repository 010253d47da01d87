//! What a run happens in: a store of known files behind a faulty source, a home on a faulty disk, engines on both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use penstock_engine::{Engine, EngineParts, RealDisk};
use penstock_source::{SourceParts, decorate};
use penstock_testkit::{Fault, FaultyDisk, FaultySource, ManualClock, SourceCall, oracle};
use penstock_types::{
    AttachmentSpec, CacheConfig, DeadlineConfig, ErrorKind, Freshness, Metrics, NodeConfig, ObjectKey, Precondition,
    PutRequest, Result, Source, SourceConfig, SourceSpec, StageConfig, TierConfig, TreePath,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const KIB: u64 = 1024;

/// Waits of this length end a test: whatever is awaited takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files that never change, and the runtime of everything that reads them.
pub struct Corpus {
    pub runtime: Runtime,
    pub files: BTreeMap<&'static str, Bytes>,
    pub store: Arc<dyn Source>,
    spec: SourceSpec,
}

impl Corpus {
    /// Stores the files under `name`, which no other corpus of the process has.
    pub fn new(name: &str, sizes: &[(&'static str, u64)]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let spec = SourceSpec::Memory { name: name.to_owned() };
        let parts = source_parts(&Policy::default(), Metrics::default(), Arc::default());
        let store = penstock_source::open(&spec, &parts).unwrap();
        let content = |(number, (name, size)): (usize, &(&'static str, u64))| {
            (*name, oracle::content(number as u64, 1, 0, *size))
        };
        let files: BTreeMap<_, _> = sizes.iter().enumerate().map(content).collect();
        for (name, body) in &files {
            let (key, body) = (ObjectKey::from(*name), body.clone());
            let request = PutRequest { key, body, precondition: Precondition::None, metadata: Vec::new() };
            runtime.block_on(store.put(request)).unwrap();
        }
        Self { runtime, files, store, spec }
    }
}

/// How patient, large and credulous the engine is.
#[derive(Clone)]
pub struct Policy {
    pub attempts: u32,
    pub deadline: Duration,
    pub tier_bytes: u64,
    pub memory_bytes: u64,
    pub freshness: Freshness,
}

impl Default for Policy {
    fn default() -> Self {
        let deadline = Duration::from_secs(30);
        let freshness = Freshness::Seconds(60.0);
        Self { attempts: 3, deadline, tier_bytes: 4096 * KIB, memory_bytes: 16 * 1024 * KIB, freshness }
    }
}

/// A home, its disk and its source.
pub struct World<'a> {
    pub corpus: &'a Corpus,
    pub disk: Arc<FaultyDisk>,
    pub faulty: Arc<FaultySource>,
    pub clock: Arc<ManualClock>,
    pub metrics: Metrics,
    /// Kinds that whoever reads, lists or looks may get; any other ends the test.
    pub readers_get: &'static [ErrorKind],
    /// Kinds that starts and jobs may get.
    pub jobs_get: &'static [ErrorKind],
    source: Arc<dyn Source>,
    policy: Policy,
    home: TempDir,
}

impl<'a> World<'a> {
    /// An empty home; calls of the source go wrong as `plan` says.
    pub fn new(
        corpus: &'a Corpus,
        policy: Policy,
        plan: impl Fn(&SourceCall) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let home = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let (clock, metrics) = (Arc::new(ManualClock::default()), Metrics::default());
        let faulty = FaultySource::new(Arc::clone(&corpus.store), plan);
        let parts = source_parts(&policy, metrics.clone(), Arc::clone(&clock));
        let source = decorate(Arc::clone(&faulty) as Arc<dyn Source>, &parts);
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        Self { corpus, disk, faulty, clock, metrics, readers_get: &[], jobs_get: &[], source, policy, home }
    }

    /// An engine on the home with the files at `/data`.
    pub fn start(&self) -> Result<Arc<Engine>> {
        let config = self.config();
        std::fs::create_dir_all(&config.state_directory).unwrap();
        let engine = Engine::new(EngineParts {
            config,
            clock: Arc::clone(&self.clock) as _,
            disk: Arc::clone(&self.disk) as _,
            metrics: self.metrics.clone(),
            runtime: self.corpus.runtime.handle().clone(),
            seed: 1,
        })?;
        let spec = AttachmentSpec {
            id: "data".into(),
            path: "/data".into(),
            source: self.corpus.spec.clone(),
            prefix: String::new(),
            freshness: self.policy.freshness,
            write: None,
            posix: false,
        };
        engine.attach_source(spec, Arc::clone(&self.source), None)?;
        Ok(engine)
    }

    /// Ends an engine, and waits until nothing of it holds the home.
    pub fn stop(&self, engine: Arc<Engine>) {
        engine.close();
        let gone = Arc::downgrade(&engine);
        drop(engine);
        self.eventually("the engine is gone", || gone.strong_count() == 0);
        let catalog = std::fs::File::open(self.home.path().join("state/catalog.redb")).unwrap();
        self.eventually("the catalog is closed", || catalog.try_lock().is_ok());
    }

    /// What a reader got, where it is not an error of a permitted kind.
    pub fn reader<T>(&self, result: Result<T>) -> Option<T> {
        permitted(result, self.readers_get)
    }

    /// What a job got, where it is not an error of a permitted kind.
    pub fn job<T>(&self, result: Result<T>) -> Option<T> {
        permitted(result, self.jobs_get)
    }

    /// Waits until `condition` holds.
    pub fn eventually(&self, what: &str, condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        self.answered(what, wait);
    }

    /// What a question is answered; one that never is ends the test.
    pub fn answered<T>(&self, what: &str, question: impl Future<Output = T>) -> T {
        let answer = self.corpus.runtime.block_on(async { tokio::time::timeout(PATIENCE, question).await });
        answer.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}; {:?}", self.metrics.snapshot()))
    }

    /// Waits until nothing is under way and nothing is held.
    pub fn settle(&self) {
        let metrics = &self.metrics;
        self.eventually("no request is under way and no memory held", || {
            metrics.source_in_flight.get() == 0 && metrics.memory_used_bytes.get() == 0
        });
        self.eventually("no lease is held", || metrics.leases.get() == 0);
    }

    fn config(&self) -> NodeConfig {
        let home = self.home.path();
        let tier = TierConfig { directory: home.join("cache"), size_bytes: self.policy.tier_bytes };
        let deadline_s = self.policy.deadline.as_secs_f64();
        NodeConfig {
            state_directory: home.join("state"),
            data_socket: home.join("data.sock"),
            cache: CacheConfig {
                tiers: vec![tier],
                free_space_floor: 0.0,
                scrub_interval_days: 1.0,
                allow_network_filesystem: false,
            },
            stage: StageConfig {
                directory: home.join("stage"),
                size_bytes: self.policy.tier_bytes,
                recovery_days: 7.0,
                recovery_bytes: 1 << 30,
            },
            memory_budget_bytes: self.policy.memory_bytes,
            deadlines: DeadlineConfig { foreground_s: deadline_s, attach_s: deadline_s },
            source: source_config(&self.policy),
            metrics_port: None,
            max_connections: 16,
        }
    }
}

/// A path of the files.
pub fn path(name: &str) -> TreePath {
    TreePath::parse(&format!("/data/{name}")).unwrap()
}

fn permitted<T>(result: Result<T>, kinds: &[ErrorKind]) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    assert!(kinds.contains(&error.kind()), "{:?}: {error}", error.kind());
    assert!(!error.action().is_empty() && !error.reason().is_empty(), "{error:?}");
    None
}

fn source_config(policy: &Policy) -> SourceConfig {
    SourceConfig {
        max_requests: 64,
        max_attempts: policy.attempts,
        max_bytes_per_s: None,
        max_upload_bytes_per_s: None,
    }
}

fn source_parts(policy: &Policy, metrics: Metrics, clock: Arc<ManualClock>) -> SourceParts {
    SourceParts { config: source_config(policy), deadline: policy.deadline, metrics, clock, seed: 2 }
}
