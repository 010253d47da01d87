//! A real engine over a temporary directory and a memory source that the test can change from outside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use penstock_engine::{BatchItem, Engine, EngineParts, OpenOptions, RealDisk};
use penstock_source::SourceParts;
use penstock_testkit::{ManualClock, oracle};
use penstock_types::{
    AttachmentSpec, ByteRange, CacheConfig, DeadlineConfig, Durability, ErrorKind, Freshness, ListRequest, Metrics,
    NodeConfig, ObjectKey, Precondition, Priority, PutRequest, ReadRequest, Result, Source, SourceConfig, SourceSpec,
    StageConfig, TierConfig, TreePath, WriteSpec,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const MIB: u64 = 1024 * 1024;
/// What comes, comes in this time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Engine, outside hand on its source, and what holds them up.
pub struct Bench {
    pub engine: Arc<Engine>,
    pub outside: Arc<dyn Source>,
    pub metrics: Metrics,
    pub clock: Arc<ManualClock>,
    pub runtime: Runtime,
    pub home: TempDir,
    pub config: NodeConfig,
}

/// Settings that tests vary.
pub struct Setup {
    pub cache_bytes: u64,
    pub memory_bytes: u64,
    pub freshness: Freshness,
    pub deadline_s: f64,
    pub read_only: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let freshness = Freshness::Seconds(60.0);
        Self { cache_bytes: 1 << 30, memory_bytes: 64 * MIB, freshness, deadline_s: 10.0, read_only: false }
    }
}

impl Bench {
    /// An engine with the memory source `name` attached at `/data`.
    pub fn start(name: &str, setup: &Setup) -> Self {
        let home = TempDir::with_prefix("penstock-engine-").unwrap();
        let config = NodeConfig {
            state_directory: home.path().join("state"),
            data_socket: home.path().join("data.sock"),
            cache: CacheConfig {
                tiers: vec![TierConfig { directory: home.path().join("cache"), size_bytes: setup.cache_bytes }],
                free_space_floor: 0.01,
                scrub_interval_days: 0.0,
                allow_network_filesystem: false,
            },
            stage: StageConfig {
                directory: home.path().join("stage"),
                size_bytes: 1 << 30,
                recovery_days: 7.0,
                recovery_bytes: 1 << 30,
            },
            memory_budget_bytes: setup.memory_bytes,
            deadlines: DeadlineConfig { foreground_s: setup.deadline_s, attach_s: 5.0 },
            source: SourceConfig {
                max_requests: 64,
                max_attempts: 3,
                max_bytes_per_s: None,
                max_upload_bytes_per_s: None,
            },
            metrics_port: None,
            max_connections: 16,
        };
        std::fs::create_dir_all(&config.state_directory).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let spec = SourceSpec::Memory { name: format!("{name}-{}", home.path().display()) };
        let clock = Arc::new(ManualClock::default());
        let outside = outside(&spec, &config, &clock);
        let metrics = Metrics::default();
        let engine = engine(&config, &metrics, &clock, &runtime);
        let mut attachment = attachment("/data", spec, setup.freshness);
        attachment.write.take_if(|_| setup.read_only);
        runtime.block_on(engine.attach(attachment, true)).unwrap();
        Self { engine, outside, metrics, clock, runtime, home, config }
    }

    /// The source of `/data`.
    pub fn source_spec(&self) -> SourceSpec {
        self.engine.attachments()[0].spec.source.clone()
    }

    /// Ends the engine and starts another on the same home, with `/data` attached.
    pub fn restart(self) -> Self {
        let Self { engine: ended, outside, metrics, clock, runtime, home, config } = self;
        let data = ended.attachments().remove(0).spec;
        ended.close();
        let gone = Arc::downgrade(&ended);
        drop(ended);
        let catalog = std::fs::File::open(config.state_directory.join("catalog.redb")).unwrap();
        while gone.strong_count() > 0 || catalog.try_lock().is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(catalog);
        let engine = engine(&config, &metrics, &clock, &runtime);
        runtime.block_on(engine.attach(data, true)).unwrap();
        Self { engine, outside, metrics, clock, runtime, home, config }
    }

    /// A new home over the same source, at `/data`; with `posix` it shows what was said of every file.
    pub fn elsewhere(&self, posix: bool) -> Self {
        let home = TempDir::with_prefix("penstock-engine-").unwrap();
        let mut config = self.config.clone();
        config.state_directory = home.path().join("state");
        config.data_socket = home.path().join("data.sock");
        config.cache.tiers[0].directory = home.path().join("cache");
        config.stage.directory = home.path().join("stage");
        std::fs::create_dir_all(&config.state_directory).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (clock, metrics) = (Arc::clone(&self.clock), Metrics::default());
        let engine = engine(&config, &metrics, &clock, &runtime);
        let spec = AttachmentSpec { posix, ..self.engine.attachments().remove(0).spec };
        runtime.block_on(engine.attach(spec, false)).unwrap();
        let outside = Arc::clone(&self.outside);
        Self { engine, outside, metrics, clock, runtime, home, config }
    }

    /// Stores `version` of object number `object` under `key`, from outside.
    pub fn put(&self, key: &str, object: u64, version: u64, size: u64) {
        self.put_bytes(key, oracle::content(object, version, 0, size));
    }

    pub fn put_bytes(&self, key: &str, body: Bytes) {
        let request =
            PutRequest { key: ObjectKey::from(key), body, precondition: Precondition::None, metadata: Vec::new() };
        self.runtime.block_on(self.outside.put(request)).unwrap();
    }

    /// Every key of the source, asked past the engine.
    pub fn keys(&self) -> Vec<String> {
        let request = ListRequest {
            prefix: ObjectKey::default(),
            delimited: false,
            start_after: None,
            continuation: None,
            limit: 1000,
            priority: Priority::Foreground,
        };
        let page = self.runtime.block_on(self.outside.list(request)).unwrap();
        page.objects.iter().map(|object| object.key.to_string()).collect()
    }

    /// The content of an object, asked past the engine.
    pub fn object(&self, key: &str) -> Vec<u8> {
        self.runtime.block_on(async {
            let key = ObjectKey::from(key);
            let range = ByteRange::new(0, self.outside.stat(&key).await.unwrap().attributes.size);
            let request = ReadRequest { key, range, version: None, priority: Priority::Foreground };
            let chunks = self.outside.read(request).await.unwrap().chunks;
            chunks.map(|chunk| chunk.unwrap().to_vec()).concat().await
        })
    }

    pub fn path(&self, name: &str) -> TreePath {
        TreePath::parse(&format!("/data/{name}")).unwrap()
    }
}

pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Time stands still in these tests: each call has what waits after a failure tried again.
pub fn persist(bench: &Bench, at: &str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let persisted = bench
            .runtime
            .block_on(bench.engine.persist(&TreePath::parse(at).unwrap(), Some(Duration::from_millis(100))));
        match persisted {
            Err(error) if error.kind() == ErrorKind::Timeout && Instant::now() < end => {}
            persisted => return persisted,
        }
    }
}

pub fn read(bench: &Bench, at: &str) -> Result<Vec<u8>> {
    let file = bench.runtime.block_on(bench.engine.open(&TreePath::parse(at).unwrap(), OpenOptions::default()))?;
    let mut out = vec![0; file.size() as usize];
    let item = BatchItem { file: &file, range: ByteRange::new(0, file.size()), at: 0 };
    bench.engine.read_batch(&[item], &mut out).remove(0)?;
    Ok(out)
}

pub fn attachment(path: &str, source: SourceSpec, freshness: Freshness) -> AttachmentSpec {
    let write = Some(WriteSpec { durability: Durability::Local, single_writer: false });
    AttachmentSpec { id: path.into(), path: path.into(), source, prefix: String::new(), freshness, write, posix: false }
}

pub fn engine(config: &NodeConfig, metrics: &Metrics, clock: &Arc<ManualClock>, runtime: &Runtime) -> Arc<Engine> {
    let parts = EngineParts {
        config: config.clone(),
        clock: Arc::clone(clock) as _,
        disk: Arc::new(RealDisk),
        metrics: metrics.clone(),
        runtime: runtime.handle().clone(),
        seed: 1,
    };
    Engine::new(parts).unwrap()
}

fn outside(spec: &SourceSpec, config: &NodeConfig, clock: &Arc<ManualClock>) -> Arc<dyn Source> {
    let parts = SourceParts {
        config: config.source.clone(),
        deadline: config.deadlines.foreground(),
        metrics: Metrics::default(),
        clock: Arc::clone(clock) as _,
        seed: 2,
    };
    penstock_source::open(spec, &parts).unwrap()
}
