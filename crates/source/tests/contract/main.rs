//! One contract, every implementation. A row is an implementation, a case is a sentence of the contract; what a
//! server is known to get wrong stands in `known.rs`, and a case there that passes fails the row as well.
//!
//! A row whose server is missing prints `SKIPPED row NAME: reason`. With `PENSTOCK_TEST_REQUIRE_ROWS=1` it fails.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod conditions;
mod keys;
mod known;
mod listings;
mod reads;
mod rows;
mod servers;
mod uploads;

use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use penstock_types::{
    ByteRange, ErrorKind, ListPage, ListRequest, ObjectAttributes, ObjectBody, ObjectKey, Precondition, Priority,
    PutRequest, ReadRequest, Result, Source, Version,
};

/// No case waits longer: every source has its own deadline below this.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

type CaseFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;
/// Why a sentence does not hold, or nothing.
type Outcome = std::result::Result<(), String>;

/// A sentence and how it is tried.
struct Case {
    name: &'static str,
    run: fn(Bench) -> CaseFuture,
}

/// Names cases after their functions.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[crate::Case] =
            &[$(crate::Case { name: stringify!($name), run: |bench| Box::pin($name(bench)) },)*];
    };
}
pub(crate) use cases;

/// Fails a case with the reason instead of panicking, so that a row reports all its cases.
macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition { return Err(format!($($reason)+)); }
    };
}
pub(crate) use ensure;

/// What a case works with: a source, and a part of its keys that is the case's own.
#[derive(Clone)]
struct Bench {
    source: Arc<dyn Source>,
    /// Opens the same source anew, as another process would.
    reopen: Arc<dyn Fn() -> Arc<dyn Source> + Send + Sync>,
    prefix: String,
}

fn text<T: std::fmt::Debug>(error: T) -> String {
    format!("{error:?}")
}

/// The kind of a failure; a success is no failure.
fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

impl Bench {
    fn key(&self, name: &str) -> ObjectKey {
        ObjectKey::from(format!("{}{name}", self.prefix).as_str())
    }

    async fn put(&self, name: &str, content: &[u8]) -> std::result::Result<ObjectAttributes, String> {
        self.put_if(name, content, Precondition::None).await.map_err(text)
    }

    async fn put_if(&self, name: &str, content: &[u8], precondition: Precondition) -> Result<ObjectAttributes> {
        let request = PutRequest {
            key: self.key(name),
            body: Bytes::copy_from_slice(content),
            precondition,
            metadata: Vec::new(),
        };
        self.source.put(request).await
    }

    async fn open(&self, key: &ObjectKey, range: ByteRange, version: Option<Version>) -> Result<ObjectBody> {
        let request = ReadRequest { key: key.clone(), range, version, priority: Priority::Foreground };
        self.source.read(request).await
    }

    async fn read(&self, key: &ObjectKey, start: u64, end: u64, version: Option<Version>) -> Result<Bytes> {
        let mut body = self.open(key, ByteRange::new(start, end), version).await?;
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.chunks.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(bytes.freeze())
    }

    async fn content(&self, name: &str, size: usize) -> std::result::Result<Bytes, String> {
        self.read(&self.key(name), 0, size as u64, None).await.map_err(text)
    }

    async fn list(&self, request: ListRequest) -> std::result::Result<ListPage, String> {
        self.source.list(request).await.map_err(text)
    }

    fn below(&self, name: &str) -> ListRequest {
        ListRequest { prefix: self.key(name), limit: 1000, ..ListRequest::default() }
    }

    /// All pages of a listing: keys and prefixes, each in order.
    async fn list_all(&self, mut request: ListRequest) -> std::result::Result<(Vec<String>, Vec<String>), String> {
        const MAX_PAGES: usize = 10_000;
        let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
        for _ in 0..MAX_PAGES {
            let page = self.list(request.clone()).await?;
            let count = page.objects.len() + page.prefixes.len();
            ensure!(count <= request.limit, "a page of {count} entries where {} were asked for", request.limit);
            let short = |key: &ObjectKey| key.to_string().replacen(&self.prefix, "", 1);
            objects.extend(page.objects.iter().map(|object| short(&object.key)));
            prefixes.extend(page.prefixes.iter().map(short));
            match page.continuation {
                Some(continuation) => request.continuation = Some(continuation),
                None => return Ok((objects, prefixes)),
            }
        }
        Err("the listing has no end".to_owned())
    }
}

fn all_cases() -> impl Iterator<Item = &'static Case> {
    [reads::CASES, listings::CASES, conditions::CASES, uploads::CASES, keys::CASES].into_iter().flatten()
}

/// Runs every case on a row and compares with what is known of it.
fn run(row: &str, bench: &Bench, runtime: &tokio::runtime::Runtime) {
    let mut wrong = Vec::new();
    let mut known_failures = 0;
    for (number, case) in all_cases().enumerate() {
        let bench = Bench { prefix: format!("case{number:02}/"), ..bench.clone() };
        let outcome = runtime.block_on(async {
            match tokio::time::timeout(CASE_TIMEOUT, (case.run)(bench)).await {
                Ok(outcome) => outcome,
                Err(_) => Err("it does not end".to_owned()),
            }
        });
        if known::races(row, case.name) {
            continue;
        }
        match (outcome, known::reason(row, case.name)) {
            (Ok(()), None) => {}
            (Err(_), Some(_)) => known_failures += 1,
            (Err(reason), None) => wrong.push(format!("{}: {reason}", case.name)),
            (Ok(()), Some(reason)) => {
                wrong.push(format!(
                    "{}: passes, though the table says it does not ({reason}): remove the line",
                    case.name
                ));
            }
        }
    }
    announce(&format!("row {row}: {} cases, {known_failures} known failures", all_cases().count()));
    assert!(wrong.is_empty(), "row {row}:\n  {}", wrong.join("\n  "));
}

/// Past the test harness's capture: a skipped row must be seen even when everything passes.
fn announce(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("stderr is open");
}

fn row(name: &str, start: impl FnOnce(&tokio::runtime::Runtime) -> std::result::Result<rows::Row, String>) {
    with_row(name, start, |bench, runtime| run(name, bench, runtime));
}

fn with_row(
    name: &str,
    start: impl FnOnce(&tokio::runtime::Runtime) -> std::result::Result<rows::Row, String>,
    run: impl FnOnce(&Bench, &tokio::runtime::Runtime),
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match start(&runtime) {
        Ok(row) => run(&row.bench, &runtime),
        Err(reason) => {
            announce(&format!("SKIPPED row {name}: {reason}"));
            let required = std::env::var_os("PENSTOCK_TEST_REQUIRE_ROWS").is_some();
            assert!(!required, "row {name} is required and cannot run: {reason}");
        }
    }
}

#[test]
fn memory_keeps_the_contract() {
    row("memory", |_| rows::memory());
}

#[test]
fn a_directory_keeps_the_contract() {
    row("file", |_| rows::file());
}

#[test]
fn the_simulated_remote_keeps_the_contract() {
    row("remote", |_| rows::remote());
}

#[test]
fn moto_keeps_the_contract() {
    row("moto", rows::moto);
}

#[test]
fn versitygw_keeps_the_contract() {
    row("versitygw", |_| rows::versitygw());
}

#[test]
fn files_beside_versitygw_are_weak_versions_and_what_is_put_through_it_is_exact() {
    let files: [(&str, &[u8]); 2] = [("by/hand", b"placed by hand"), ("by/other", b"1")];
    with_row(
        "versitygw with files beside it",
        |_| rows::versitygw_with(&files),
        |bench, runtime| {
            runtime.block_on(weak_and_exact(bench)).unwrap();
        },
    );
}

async fn weak_and_exact(bench: &Bench) -> Outcome {
    ensure!(!bench.source.observed().weak_versions, "nothing was asked yet");
    bench.put("by/put", b"exact").await?;
    let page = bench.list(bench.below("by/")).await?;
    let attributes: Vec<_> = page.objects.iter().map(|object| object.attributes.clone()).collect();
    ensure!(attributes.len() == 3, "three are listed: {page:?}");
    ensure!(bench.source.observed().weak_versions, "weak versions are noticed");
    let key = bench.key("by/hand");
    let stat = bench.source.stat(&key).await.map_err(text)?.attributes;
    ensure!(stat == attributes[0], "a stat gives {stat:?}, the listing {:?}", attributes[0]);
    let version = Some(stat.version.clone());
    let content = bench.read(&key, 7, 14, version.clone()).await.map_err(text)?;
    ensure!(content == "by hand", "it is read by its version: {content:?}");
    let replace = bench.put_if("by/hand", b"new", Precondition::Version(stat.version)).await;
    ensure!(kind(replace) == Some(ErrorKind::Conflict), "it cannot be replaced on condition");
    bench.put("by/hand", b"another content").await?;
    let stale = bench.read(&key, 7, 14, version).await;
    ensure!(kind(stale) == Some(ErrorKind::StaleVersion), "its version is gone");
    let exact = bench.read(&bench.key("by/put"), 0, 5, Some(attributes[2].version.clone())).await.map_err(text)?;
    ensure!(exact == "exact", "what was put is read by its ETag: {exact:?}");
    Ok(())
}

#[test]
fn the_table_of_known_failures_names_only_rows_and_cases_that_exist() {
    for (row, case, _) in known::TABLE.iter().chain(known::RACES) {
        assert!(all_cases().any(|known| known.name == *case), "no case {case}");
        assert!(["memory", "file", "remote", "moto", "versitygw"].contains(row), "no row {row}");
    }
}
