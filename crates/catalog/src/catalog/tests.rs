//! A disk that fails under the catalog, one call after the other.

use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use penstock_types::ErrorKind;

use penstock_testkit::ManualClock;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::*;
use crate::Item;
use crate::support::{TestSource, walk};

/// Fails every call from the `n`-th on, as a disk that is full or gone, or only that one; or reads rubbish from then
/// on.
#[derive(Debug)]
struct FailingDisk {
    disk: Arc<InMemoryBackend>,
    rubbish: bool,
    once: bool,
    calls_left: Arc<AtomicI64>,
    failed: Arc<AtomicU64>,
}

impl FailingDisk {
    fn call_but_reads(&self) -> io::Result<()> {
        if self.rubbish { Ok(()) } else { self.call() }
    }

    fn call(&self) -> io::Result<()> {
        let left = self.calls_left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 || (self.once && left < 0) {
            return Ok(());
        }
        self.failed.fetch_add(1, Ordering::SeqCst);
        Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"))
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.call_but_reads()?;
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.call() {
            Err(_) if self.rubbish => out.fill(0xa5),
            called => {
                called?;
                self.disk.read(offset, out)?;
            }
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call_but_reads()?;
        self.disk.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.call_but_reads()?;
        self.disk.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call_but_reads()?;
        self.disk.write(offset, data)
    }
}

#[tokio::test]
async fn reading_goes_on_whenever_the_disk_of_the_catalog_fails() {
    let keys: Vec<String> = (0..3000).map(|n| format!("d{}/{n:05}", n % 3)).collect();
    let (mut calls, mut failures) = (0, 0);
    loop {
        let (calls_left, failed) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::new(AtomicU64::new(0)));
        let backend = FailingDisk {
            disk: Arc::default(),
            rubbish: false,
            once: false,
            calls_left: calls_left.clone(),
            failed: failed.clone(),
        };
        let timeline = Arc::new(Timeline::new(Arc::new(ManualClock::default())));
        let store = Store::on(backend, timeline.now()).unwrap();
        let catalog = Catalog::with(store, timeline, Metrics::default()).unwrap();
        let source = Arc::new(TestSource::default().with(&keys));
        calls_left.store(calls, Ordering::SeqCst);
        let view = catalog.view("scope", source.clone(), "".into(), Freshness::Seconds(60.0), None);
        for _ in 0..2 {
            assert_eq!(walk(&view, "", 1000).await.unwrap().len(), 3003, "after {calls} calls");
            assert!(matches!(view.stat("d1/00001").await, Ok(Item::File { .. })), "after {calls} calls");
            assert!(matches!(view.revalidate("d2/00002").await, Ok(Item::File { .. })), "after {calls} calls");
        }
        catalog.close();
        if failed.load(Ordering::SeqCst) == 0 {
            break;
        }
        failures += 1;
        calls += 1;
    }
    assert!(failures > 20, "only {failures} calls failed");
}

#[tokio::test]
async fn reading_goes_on_whenever_the_file_of_the_catalog_turns_out_to_be_rubbish() {
    let keys: Vec<String> = (0..3000).map(|n| format!("d{}/{n:05}", n % 3)).collect();
    let (mut calls, mut failures) = (0, 0);
    loop {
        let disk = Arc::new(InMemoryBackend::new());
        let open = |calls_left: &Arc<AtomicI64>, failed: &Arc<AtomicU64>| {
            let (calls_left, failed) = (calls_left.clone(), failed.clone());
            let backend = FailingDisk { disk: disk.clone(), rubbish: true, once: false, calls_left, failed };
            let timeline = Arc::new(Timeline::new(Arc::new(ManualClock::default())));
            let store = Store::on(backend, timeline.now()).unwrap();
            Catalog::with(store, timeline, Metrics::default()).unwrap()
        };
        let source = Arc::new(TestSource::default().with(&keys));
        let (calls_left, failed) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::new(AtomicU64::new(0)));
        let written = open(&calls_left, &failed);
        let view = written.view("scope", source.clone(), "".into(), Freshness::Seconds(60.0), None);
        walk(&view, "", 1000).await.unwrap();
        written.close();
        drop((view, written));
        // Nothing of the file is in memory now.
        let catalog = open(&calls_left, &failed);
        calls_left.store(calls, Ordering::SeqCst);
        let view = catalog.view("scope", source.clone(), "".into(), Freshness::Seconds(60.0), None);
        for _ in 0..2 {
            assert!(matches!(view.stat("d1/00001").await, Ok(Item::File { .. })), "after {calls} calls");
            assert_eq!(walk(&view, "", 1000).await.unwrap().len(), 3003, "after {calls} calls");
        }
        catalog.close();
        if failed.load(Ordering::SeqCst) == 0 {
            break;
        }
        failures += 1;
        calls += 1;
    }
    assert!(failures > 5, "only {failures} calls failed");
}

/// Waits until nobody has the disk open any more, as the lock of a file would.
async fn closed(disk: &Arc<InMemoryBackend>) {
    let wait = async {
        while Arc::strong_count(disk) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("a catalog that is dropped lets go of its disk");
}

/// Two lives of a catalog on one disk. Whatever it fails to keep, what it says is right.
async fn two_lives(disk: &Arc<InMemoryBackend>, calls_left: &Arc<AtomicI64>, failed: &Arc<AtomicU64>) -> Result<()> {
    let keys: Vec<String> = (0..300).map(|n| format!("d{}/{n:05}", n % 3)).collect();
    let source = Arc::new(TestSource::default().with(&keys));
    let clock = Arc::new(ManualClock::default());
    for _ in 0..2 {
        let (calls_left, failed) = (calls_left.clone(), failed.clone());
        let backend = FailingDisk { disk: disk.clone(), rubbish: false, once: true, calls_left, failed };
        let timeline = Arc::new(Timeline::new(clock.clone()));
        let store = Store::on(backend, timeline.now())?;
        let catalog = Catalog::with(store, timeline, Metrics::default())?;
        let view = catalog.view("scope", source.clone(), "".into(), Freshness::Seconds(60.0), None);
        assert!(matches!(view.stat("d0/00000").await, Ok(Item::File { .. })));
        assert_eq!(walk(&view, "", 100).await.unwrap().len(), 303);
        assert!(matches!(view.revalidate("d2/00002").await, Ok(Item::File { .. })));
        assert_eq!(view.stat("d1/none").await.unwrap_err().kind(), ErrorKind::NotFound);
        catalog.forget_scope("another");
        catalog.close();
        drop((view, catalog));
        closed(disk).await;
    }
    Ok(())
}

#[tokio::test]
async fn whichever_call_of_the_disk_fails_once_names_are_right_and_the_file_opens_again() {
    let run = async |calls: i64| {
        let disk = Arc::new(InMemoryBackend::new());
        let (calls_left, failed) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::new(AtomicU64::new(0)));
        // What fails while the file is made leaves a damaged one, which the next start sets aside.
        two_lives(&disk, &calls_left, &failed).await.unwrap();
        calls_left.store(calls, Ordering::SeqCst);
        if let Err(error) = two_lives(&disk, &calls_left, &failed).await {
            assert_eq!(error.kind(), ErrorKind::Disk, "call {calls}: {error}");
        }
        closed(&disk).await;
        let made = calls - calls_left.load(Ordering::SeqCst);
        calls_left.store(i64::MAX, Ordering::SeqCst);
        let again = two_lives(&disk, &calls_left, &failed).await;
        again.unwrap_or_else(|error| panic!("after call {calls} failed: {error}"));
        (made, failed.load(Ordering::SeqCst))
    };
    let (recorded, _) = run(i64::MAX).await;
    for call in 0..recorded {
        let mut met = false;
        // What is committed together differs: a run that made fewer calls is repeated.
        for _ in 0..5 {
            met = met || run(call).await.1 == 1;
        }
        assert!(met, "no run met call {call}");
    }
    assert!(recorded > 50, "{recorded} calls failed once each");
}
