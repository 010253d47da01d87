//! Writing through `data.sock`: what a client asks, what it holds, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use penstock_node::protocol::{
    FrameReader, FrameWriter, REPLY_BYTES_MAX, Received, Reply, Request, SMALL_WRITE_BYTES_MAX, SessionKey, decode,
};
use penstock_node::{Entry, Node, NodeStatus};
use penstock_types::{
    AttachmentId, AttachmentSpec, CacheConfig, DeadlineConfig, Durability, Error, ErrorKind, Freshness, NodeConfig,
    Priority, SourceConfig, SourceSpec, StageConfig, TierConfig, WriteSpec,
};
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;
/// Whatever a test waits for comes within this.
const PATIENCE: Duration = Duration::from_secs(30);

struct Bench {
    node: Node,
    home: TempDir,
}

impl Bench {
    /// A node with `/runs` to write and `/fixed` to read only.
    fn start() -> Self {
        let home = TempDir::with_prefix("penstock-node-").unwrap();
        let node = Node::start(config(home.path())).unwrap();
        for (path, write) in [("/runs", Some(Durability::Local)), ("/fixed", None)] {
            let spec = AttachmentSpec {
                id: AttachmentId(path.into()),
                path: path.into(),
                // Of this test alone: all tests of a process see the memory of a name.
                source: SourceSpec::Memory { name: format!("{path} of {}", home.path().display()) },
                prefix: String::new(),
                freshness: Freshness::Seconds(60.0),
                write: write.map(|durability| WriteSpec { durability, single_writer: false }),
                posix: false,
            };
            node.attach(spec, true).unwrap();
        }
        Self { node, home }
    }

    fn client(&self) -> Client {
        Client::connect(self.home.path(), None)
    }

    fn until(&self, what: &str, condition: impl Fn(NodeStatus) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self.node.status()) {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn config(home: &Path) -> NodeConfig {
    std::fs::create_dir_all(home.join("state")).unwrap();
    NodeConfig {
        state_directory: home.join("state"),
        data_socket: home.join("data.sock"),
        cache: CacheConfig {
            tiers: vec![TierConfig { directory: home.join("cache"), size_bytes: 256 * MIB }],
            free_space_floor: 0.0,
            scrub_interval_days: 0.0,
            allow_network_filesystem: true,
        },
        stage: StageConfig {
            directory: home.join("stage"),
            size_bytes: 256 * MIB,
            recovery_days: 7.0,
            recovery_bytes: 32 * MIB,
        },
        memory_budget_bytes: 64 * MIB,
        deadlines: DeadlineConfig { foreground_s: 10.0, attach_s: 5.0 },
        source: SourceConfig { max_requests: 16, max_attempts: 2, max_bytes_per_s: None, max_upload_bytes_per_s: None },
        metrics_port: None,
        max_connections: 16,
    }
}

struct Client {
    socket: UnixStream,
    reader: FrameReader,
    writer: FrameWriter,
    session: SessionKey,
}

impl Client {
    fn connect(home: &Path, session: Option<SessionKey>) -> Self {
        let socket = UnixStream::connect(home.join("data.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let key = SessionKey { id: 0, secret: [0; 16] };
        let mut client =
            Self { socket, reader: FrameReader::new(REPLY_BYTES_MAX), writer: FrameWriter::default(), session: key };
        let Reply::Welcome(welcome) = client.ask(&Request::Hello { client: "test".into(), session }) else {
            panic!("not welcomed")
        };
        client.reader.take_descriptor();
        client.session = welcome.session;
        client
    }

    fn send(&mut self, request: &Request) {
        self.writer.push(request).unwrap();
        self.writer.flush(self.socket.as_fd(), None).unwrap();
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        loop {
            let received = self.reader.receive(self.socket.as_fd(), || Ok(())).unwrap();
            let Received::Frame(frame) = received else { panic!("the node closed the connection") };
            match decode(self.reader.body(&frame)).unwrap() {
                Reply::Working => {}
                reply => return reply,
            }
        }
    }

    fn create(&mut self, path: &str) -> (u64, OwnedFd) {
        match self.ask(&Request::Create { path: path.into(), exclusive: false, durability: None, set: None }) {
            Reply::Created { lease } => (lease, self.reader.take_descriptor().unwrap()),
            reply => panic!("{reply:?}"),
        }
    }

    fn write_small(&mut self, path: &str, data: &[u8], exclusive: bool) -> Result<Entry, Error> {
        let data = Bytes::copy_from_slice(data);
        entry(self.ask(&Request::WriteSmall { path: path.into(), data, exclusive, durability: None, set: None }))
    }

    fn stat(&mut self, path: &str) -> Result<Entry, Error> {
        entry(self.ask(&Request::Stat { path: path.into() }))
    }

    fn read(&mut self, path: &str) -> Vec<u8> {
        let reply = self.ask(&Request::Open { path: path.into(), version: None, priority: Priority::Foreground });
        let Reply::Opened(opened) = reply else { panic!("{reply:?}") };
        assert!(opened.complete, "what was written here is all here");
        let file = self.reader.take_descriptor().unwrap();
        let mut content = vec![0; usize::try_from(opened.size).unwrap()];
        assert_eq!(rustix::io::pread(&file, &mut content, 0).unwrap(), content.len());
        content
    }
}

fn entry(reply: Reply) -> Result<Entry, Error> {
    match reply {
        Reply::Entry(entry) => Ok(entry),
        Reply::Failed(error) => Err(error),
        reply => panic!("{reply:?}"),
    }
}

fn kind_of(outcome: Result<Entry, Error>) -> ErrorKind {
    outcome.expect_err("it is refused").kind()
}

#[test]
fn a_draft_is_seen_by_nobody_until_it_is_committed_and_by_everybody_then() {
    let bench = Bench::start();
    let (mut writer, mut reader) = (bench.client(), bench.client());
    let (lease, file) = writer.create("/runs/a.pt");
    assert_eq!(writer.ask(&Request::Grow { lease, to: 2 * MIB }), Reply::Done);
    let content: Vec<u8> = (0..u8::MAX).cycle().take(2 * MIB as usize).collect();
    rustix::io::pwrite(&file, &content, 0).unwrap();
    assert_eq!(kind_of(reader.stat("/runs/a.pt")), ErrorKind::NotFound);
    let committed = entry(writer.ask(&Request::Commit { lease })).unwrap();
    assert_eq!((committed.name.as_str(), committed.size), ("a.pt", 2 * MIB));
    // The source may have it by now, and its version in place of the staged one.
    let seen = reader.stat("/runs/a.pt").unwrap();
    assert_eq!((seen.name, seen.size), (committed.name, committed.size));
    assert!(reader.read("/runs/a.pt") == content);
    let persisted = reader.ask(&Request::Persist { path: "/runs".into(), timeout_ms: Some(30_000) });
    assert_eq!(persisted, Reply::Done);
    assert!(reader.read("/runs/a.pt") == content);
}

#[test]
fn a_commit_that_succeeded_ends_its_lease_for_every_connection_of_the_session() {
    let bench = Bench::start();
    let mut first = bench.client();
    let mut second = Client::connect(bench.home.path(), Some(first.session));
    assert_eq!(second.session, first.session);
    let (lease, file) = first.create("/runs/a");
    rustix::io::pwrite(&file, b"once", 0).unwrap();
    entry(first.ask(&Request::Commit { lease })).unwrap();
    for client in [&mut first, &mut second] {
        assert_eq!(client.ask(&Request::Commit { lease }), Reply::NotLeased);
        assert_eq!(client.ask(&Request::Grow { lease, to: 9 }), Reply::NotLeased);
    }
    assert_eq!(second.read("/runs/a"), b"once");
}

#[test]
fn a_lease_means_nothing_to_another_session() {
    let bench = Bench::start();
    let (mut owner, mut other) = (bench.client(), bench.client());
    let (lease, file) = owner.create("/runs/a");
    rustix::io::pwrite(&file, b"half", 0).unwrap();
    assert_eq!(other.ask(&Request::Commit { lease }), Reply::NotLeased);
    other.send(&Request::Release { leases: vec![lease], arenas: Vec::new() });
    assert_eq!(other.ask(&Request::Ping), Reply::Pong(env!("CARGO_PKG_VERSION").into()));
    entry(owner.ask(&Request::Commit { lease })).unwrap();
}

#[test]
fn a_draft_that_is_released_or_whose_session_ends_is_discarded_with_its_space() {
    let bench = Bench::start();
    let mut client = bench.client();
    let (released, file) = client.create("/runs/released");
    assert_eq!(client.ask(&Request::Grow { lease: released, to: 8 * MIB }), Reply::Done);
    rustix::io::pwrite(&file, b"never", 0).unwrap();
    assert!(bench.node.status().engine.stage.used_bytes >= 8 * MIB);
    client.send(&Request::Release { leases: vec![released], arenas: Vec::new() });
    assert_eq!(client.ask(&Request::Commit { lease: released }), Reply::NotLeased);
    bench.until("its space is free", |status| status.engine.stage.used_bytes == 0);
    let (left, file) = client.create("/runs/left");
    assert_eq!(client.ask(&Request::Grow { lease: left, to: 8 * MIB }), Reply::Done);
    rustix::io::pwrite(&file, b"never", 0).unwrap();
    drop(client);
    bench.until("the space of a client that is gone is free", |status| status.engine.stage.used_bytes == 0);
    let mut reader = bench.client();
    assert_eq!(kind_of(reader.stat("/runs/released")), ErrorKind::NotFound);
    assert_eq!(kind_of(reader.stat("/runs/left")), ErrorKind::NotFound);
}

#[test]
fn a_draft_whose_reply_nobody_read_is_taken_back_when_the_connection_ends() {
    let bench = Bench::start();
    let keeper = bench.client();
    let mut vanishing = Client::connect(bench.home.path(), Some(keeper.session));
    vanishing.send(&Request::Create { path: "/runs/a".into(), exclusive: false, durability: None, set: None });
    bench.until("it is lent", |status| status.clients.iter().any(|client| client.leases == 1));
    drop(vanishing);
    bench.until("it is taken back", |status| status.clients.iter().all(|client| client.leases == 0));
    assert_eq!(bench.node.status().clients.len(), 1, "the session goes on");
}

#[test]
fn a_small_content_is_written_in_one_request_and_read_back_at_once() {
    let bench = Bench::start();
    let mut client = bench.client();
    let largest = vec![7; SMALL_WRITE_BYTES_MAX];
    for content in [&b""[..], b"small", &largest] {
        let written = client.write_small("/runs/deep/er/file", content, false).unwrap();
        assert_eq!(written.size, content.len() as u64);
        assert!(client.read("/runs/deep/er/file") == content);
    }
    let larger = vec![7; SMALL_WRITE_BYTES_MAX + 1];
    assert_eq!(kind_of(client.write_small("/runs/larger", &larger, false)), ErrorKind::InvalidInput);
    assert_eq!(kind_of(client.stat("/runs/larger")), ErrorKind::NotFound);
}

#[test]
fn what_may_not_be_written_is_refused_with_its_kind() {
    let bench = Bench::start();
    let mut client = bench.client();
    client.write_small("/runs/taken", b"1", false).unwrap();
    assert_eq!(kind_of(client.write_small("/runs/taken", b"2", true)), ErrorKind::AlreadyExists);
    assert_eq!(kind_of(client.write_small("/fixed/a", b"2", false)), ErrorKind::ReadOnly);
    assert_eq!(kind_of(client.write_small("/runs", b"2", false)), ErrorKind::IsADirectory);
    assert_eq!(kind_of(client.write_small("/nowhere/a", b"2", false)), ErrorKind::NotFound);
    assert_eq!(kind_of(client.write_small("relative", b"2", false)), ErrorKind::InvalidInput);
    let create = Request::Create { path: "/fixed/a".into(), exclusive: false, durability: None, set: None };
    assert_eq!(kind_of(entry(client.ask(&create))), ErrorKind::ReadOnly);
    assert_eq!(client.read("/runs/taken"), b"1");
}

#[test]
fn a_removed_file_is_gone_at_once_and_one_that_is_not_there_is_not_found() {
    let bench = Bench::start();
    let mut client = bench.client();
    client.write_small("/runs/a", b"1", false).unwrap();
    let remove = Request::Remove { path: "/runs/a".into() };
    assert_eq!(client.ask(&remove), Reply::Done);
    assert_eq!(kind_of(client.stat("/runs/a")), ErrorKind::NotFound);
    assert_eq!(kind_of(entry(client.ask(&remove))), ErrorKind::NotFound);
}
