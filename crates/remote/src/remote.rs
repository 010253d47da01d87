//! Starting, filling and stopping a remote.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use penstock_types::{Clock, Error, ErrorKind, Result, SystemClock};
use s3s::S3Error;
use s3s::service::S3ServiceBuilder;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::{Domain, Keys, Rules};
use crate::conditions::Conditions;
use crate::counters::Counters;
use crate::data;
use crate::object::Object;
use crate::pace::Link;
use crate::receive::hexadecimal;
use crate::server::{self, Shared};
use crate::service::Service;
use crate::store::Store;

/// Smallest part but the last, as S3 has it.
const MINIMUM_PART_BYTES: u64 = 5 * 1024 * 1024;
/// Threads that serve.
const WORKER_THREADS: usize = 2;
/// How long a stop waits for what is under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Keys per record of the journal when many are put at once.
const KEYS_PER_RECORD: usize = 10_000;

/// What a remote is like. Rates and the delay say what to simulate; 0 is no limit.
#[derive(Clone)]
pub struct RemoteConfig {
    /// The directory it owns; made when missing, taken over when it is a remote's.
    pub root: PathBuf,
    /// Port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// From the end of a request to the first byte of its answer.
    pub first_byte: Duration,
    /// Bytes per second of each connection, in each direction.
    pub connection_rate: u64,
    /// Bytes per second of all connections, in each direction.
    pub total_rate: u64,
    /// Access key and secret that signatures are checked with; with `None` nobody can sign.
    pub credentials: Option<(String, String)>,
    /// Whether unsigned requests pass. They always do without `credentials`.
    pub anonymous: bool,
    /// The region that signatures must name; `None` takes any.
    pub region: Option<String>,
    /// The session token that signed requests must bring.
    pub session_token: Option<String>,
    /// Buckets are also served as `BUCKET.DOMAIN`, on any port.
    pub domain: Option<String>,
    /// Smallest part of an upload but the last.
    pub minimum_part_bytes: u64,
    /// Gives modification times.
    pub clock: Arc<dyn Clock>,
}

impl RemoteConfig {
    /// Over `root`: a free port, no delay, no limits, anonymous.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            port: 0,
            first_byte: Duration::ZERO,
            connection_rate: 0,
            total_rate: 0,
            credentials: None,
            anonymous: false,
            region: None,
            session_token: None,
            domain: None,
            minimum_part_bytes: MINIMUM_PART_BYTES,
            clock: Arc::new(SystemClock::default()),
        }
    }

    /// The slow store of the demo and the benchmarks: 30 ms to the first byte, 60 MB/s per connection, 400 MB/s
    /// in all.
    #[must_use]
    pub fn slow(mut self) -> Self {
        self.first_byte = Duration::from_millis(30);
        self.connection_rate = 60_000_000;
        self.total_rate = 400_000_000;
        self
    }
}

/// A running remote, on threads of its own. Dropping it stops it; the directory stays.
pub struct Remote {
    address: SocketAddr,
    counters: Arc<Counters>,
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Remote {
    /// Opens the directory, binds 127.0.0.1 and serves. Once it returns, requests are answered.
    ///
    /// # Errors
    /// `Unavailable` when the port is taken, `Busy` when the directory is, `Corrupt` when the directory is not a remote's or lost files, `Disk`.
    pub fn start(config: RemoteConfig) -> Result<Self> {
        let action = format!("start the simulated remote in {}", config.root.display());
        let store = Arc::new(Store::open(&config.root).map_err(|error| disk_error(&action, &error))?);
        let counters = Arc::new(Counters::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, config.port)).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        let (listener, address) = listener.map_err(|error| {
            Error::new(ErrorKind::Unavailable, &action, error.to_string())
                .advise("take another port, or 0 for a free one")
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .thread_name("remote")
            .enable_all()
            .build()
            .map_err(|error| Error::new(ErrorKind::ResourceLimit, &action, error.to_string()))?;
        let shared = Arc::new(shared(&config, &store, &counters));
        let (stop, stopped) = watch::channel(false);
        let body = move || {
            runtime.block_on(async {
                match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => server::serve(listener, shared, stopped).await,
                    Err(error) => tracing::error!(%error, "listen"),
                }
            });
            runtime.shutdown_timeout(STOP_TIMEOUT);
        };
        let thread = std::thread::Builder::new().name("remote".into()).spawn(body);
        let thread = thread.map_err(|error| Error::new(ErrorKind::ResourceLimit, &action, error.to_string()))?;
        Ok(Self { address, counters, store, clock: config.clock, stop, thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT`, for path-style requests.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port it serves on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What was asked and moved since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Makes a bucket; one that is there is left as it is.
    ///
    /// # Errors
    /// `Disk`.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        let made = self.store.create_bucket(bucket).map(|_| ());
        made.map_err(|error| store_error(format!("make bucket {bucket}"), &error))
    }

    /// Stores an object without HTTP and without delay, as a PUT would; makes the bucket when it is missing.
    ///
    /// # Errors
    /// `InvalidInput` for a key that the protocol does not admit, `Disk`.
    pub fn put_object(&self, bucket: &str, key: &str, content: &[u8]) -> Result<()> {
        let action = || format!("store s3://{bucket}/{key}");
        check_key(key, &action)?;
        self.create_bucket(bucket)?;
        let stored = self.object(content).and_then(|object| {
            self.store.put(bucket, key, object, &Conditions::default())?;
            Ok(())
        });
        stored.map_err(|error| store_error(action(), &error))
    }

    /// Gives every key the same small object; its content is stored once. A million keys take a few seconds.
    ///
    /// # Errors
    /// As [`Self::put_object`]; the keys before the wrong one are stored.
    pub fn put_synthetic(&self, bucket: &str, keys: impl IntoIterator<Item = String>, content: &[u8]) -> Result<()> {
        let action = || format!("store many objects in s3://{bucket}");
        self.create_bucket(bucket)?;
        let object = Arc::new(self.object(content).map_err(|error| store_error(action(), &error))?);
        let put = |batch: &mut Vec<String>| {
            let stored = self.store.put_many(bucket, std::mem::take(batch), &object);
            stored.map_err(|error| store_error(action(), &error))
        };
        let mut batch = Vec::with_capacity(KEYS_PER_RECORD);
        for key in keys {
            check_key(&key, &action)?;
            batch.push(key);
            if batch.len() == KEYS_PER_RECORD {
                put(&mut batch)?;
            }
        }
        if batch.is_empty() { Ok(()) } else { put(&mut batch) }
    }

    /// Stops serving: connections are cut; port and directory are free when this returns, and nothing may be put any
    /// more. Does nothing the second time.
    pub fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                tracing::error!("the remote's thread panicked");
            }
            self.store.close();
        }
    }

    fn object(&self, content: &[u8]) -> Result<Object, S3Error> {
        let mut writer = self.store.writer()?;
        writer.write(content).map_err(S3Error::internal_error)?;
        let (file, md5) = writer.finish();
        Ok(Object {
            etag: hexadecimal(&md5),
            size: file.size(),
            modified_s: u64::try_from(self.clock.wall_ms() / 1000).unwrap_or(0),
            extra: None,
            segments: data::whole(&file),
        })
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.stop();
    }
}

fn shared(config: &RemoteConfig, store: &Arc<Store>, counters: &Arc<Counters>) -> Shared {
    let service = Service {
        store: store.clone(),
        counters: counters.clone(),
        clock: config.clock.clone(),
        minimum_part_bytes: config.minimum_part_bytes,
    };
    let mut builder = S3ServiceBuilder::new(service);
    if let Some((access_key, secret_key)) = &config.credentials {
        builder.set_auth(Keys::new(access_key, secret_key));
        let (region, session_token) = (config.region.clone(), config.session_token.clone());
        builder.set_access(Rules { anonymous: config.anonymous, region, session_token });
    }
    if let Some(domain) = &config.domain {
        builder.set_host(Domain(domain.clone()));
    }
    let now = Instant::now();
    Shared {
        service: builder.build(),
        counters: counters.clone(),
        first_byte: config.first_byte,
        connection_rate: config.connection_rate,
        out: Arc::new(Link::new(config.total_rate, now)),
        into: Arc::new(Link::new(config.total_rate, now)),
    }
}

fn check_key(key: &str, action: &dyn Fn() -> String) -> Result<()> {
    if key.is_empty() || !s3s::path::check_key(key) {
        return Err(Error::new(ErrorKind::InvalidInput, action(), "a key has 1 to 1,024 bytes"));
    }
    Ok(())
}

fn disk_error(action: &str, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        return Error::new(ErrorKind::Busy, action, "another remote serves this directory").advise("stop it first");
    }
    let kind = match error.kind() {
        io::ErrorKind::InvalidData => ErrorKind::Corrupt,
        _ => ErrorKind::Disk,
    };
    Error::new(kind, action, error.to_string()).advise("give an empty directory on a disk that works")
}

fn store_error(action: String, error: &S3Error) -> Error {
    Error::new(ErrorKind::Disk, action, error.to_string())
}
