//! Contract, sentences 1 and 3, against a plain model: whatever happens in which order, a handle gives the bytes of
//! its version or fails, and an open finds what was there within `freshness`.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use penstock_engine::{BatchItem, Engine, OpenFile, OpenOptions, ReadHint};
use penstock_testkit::oracle;
use penstock_types::{ByteRange, Clock, ErrorKind, Freshness, ObjectKey, Precondition, Priority, PutRequest, Result};
use proptest::prelude::*;

use crate::history::{History, Written};
use crate::world::{Corpus, KIB, Policy, World, path};

const KEYS: &[&str] = &["a", "d/b", "d/c", "d/e/f", "large"];
/// Handles that are open at once at most: the oldest is closed for the next.
const HANDLES_MAX: usize = 4;
/// Opens after which a reader of a quiet source must have got it all.
const PATIENCE: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Overwrite(&'static str, u64),
    Delete(&'static str),
    Pass(u64),
    Open(&'static str),
    Read(prop::sample::Index, u64, u64),
    ReadMany(Vec<&'static str>),
    ReadUntilRight(&'static str),
    Look(&'static str),
    List,
    Preload(&'static str),
    Evict(&'static str),
    Verify(&'static str),
    Restart,
}

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(KEYS)
}

fn step() -> impl Strategy<Value = Step> {
    // Around pages and the size up to which files are fetched whole; the tier holds a few of the large.
    let size = prop_oneof![0u64..300_000, 65_500u64..65_600, 1000 * KIB..1500 * KIB];
    prop_oneof![
        5 => (key(), size).prop_map(|(key, size)| Step::Overwrite(key, size)),
        1 => key().prop_map(Step::Delete),
        3 => (1u64..9).prop_map(Step::Pass),
        5 => key().prop_map(Step::Open),
        6 => (any::<prop::sample::Index>(), 0u64..1500 * KIB, 1u64..400_000).prop_map(|(handle, at, length)| {
            Step::Read(handle, at, length)
        }),
        2 => prop::sample::subsequence(KEYS, 1..=KEYS.len()).prop_map(Step::ReadMany),
        2 => key().prop_map(Step::ReadUntilRight),
        2 => key().prop_map(Step::Look),
        2 => Just(Step::List),
        1 => key().prop_map(Step::Preload),
        1 => key().prop_map(Step::Evict),
        1 => key().prop_map(Step::Verify),
        1 => Just(Step::Restart),
    ]
}

fn freshness() -> impl Strategy<Value = Freshness> {
    prop_oneof![Just(Freshness::Seconds(0.0)), Just(Freshness::Seconds(10.0)), Just(Freshness::Immutable)]
}

/// An engine beside its model.
struct Pair<'a> {
    world: &'a World<'a>,
    /// Away only while it is restarted.
    engine: Option<Arc<Engine>>,
    history: History,
    freshness: Freshness,
    handles: Vec<(&'static str, OpenFile, Written)>,
}

impl Pair<'_> {
    fn wait<T>(&self, question: impl Future<Output = T>) -> T {
        self.world.answered("a step", question)
    }

    fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("it runs")
    }

    fn overwrite(&mut self, key: &'static str, size: u64) {
        let number = self.history.next_number();
        let body = oracle::content(number, 1, 0, size);
        let request =
            PutRequest { key: ObjectKey::from(key), body, precondition: Precondition::None, metadata: Vec::new() };
        let token = self.wait(self.world.corpus.store.put(request)).unwrap().version;
        self.history.note(key, self.world.clock.monotonic(), Some(Written { number, size, token }));
    }

    fn delete(&mut self, key: &'static str) {
        self.wait(self.world.corpus.store.delete(&ObjectKey::from(key), None)).unwrap();
        self.history.note(key, self.world.clock.monotonic(), None);
    }

    /// Sentence 3: what an open, stat or list found was there within freshness.
    fn found(&self, key: &str, token: Option<&penstock_types::Version>) -> Option<Written> {
        let visible = self.history.visible(key, self.world.clock.monotonic(), self.freshness);
        let seen = visible.iter().find(|state| state.map(|written| &written.token) == token);
        let seen = seen.unwrap_or_else(|| panic!("{token:?} of {key} was seen; to be seen were {visible:?}"));
        seen.cloned()
    }

    fn opened(&self, key: &str, opened: Result<OpenFile>) -> Option<(OpenFile, Written)> {
        match opened {
            Ok(file) => {
                let written = self.found(key, Some(&file.attributes().version)).expect("it was found");
                assert_eq!(file.size(), written.size);
                Some((file, written))
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "open of {key}: {error}");
                self.found(key, None);
                None
            }
        }
    }

    fn open(&self, key: &'static str) -> Option<(OpenFile, Written)> {
        let opened = self.wait(self.engine().open(&path(key), OpenOptions::default()));
        self.opened(key, opened)
    }

    /// Sentence 1: the bytes of the version, or `StaleVersion` when it is gone. Says whether all of them came.
    fn read(&self, key: &str, file: &OpenFile, written: &Written, range: ByteRange) -> bool {
        let range = range.intersect(ByteRange::new(0, file.size()));
        let mut descriptor = file.descriptor();
        let mut at = range.start;
        while at < range.end {
            let ready = match self.wait(file.ensure(ByteRange::new(at, range.end), ReadHint::Auto)) {
                Ok(ready) => ready,
                Err(error) => {
                    self.gone(key, written, &error);
                    return false;
                }
            };
            descriptor = ready.descriptor.unwrap_or(descriptor);
            let end = ready.range.end.min(range.end);
            let mut out = vec![0; (end - at) as usize];
            assert_eq!(rustix::io::pread(descriptor.as_fd(), &mut out[..], at).unwrap(), out.len());
            oracle::check(written.number, 1, at, &out).unwrap();
            at = end;
        }
        true
    }

    fn gone(&self, key: &str, written: &Written, error: &penstock_types::Error) {
        assert_eq!(error.kind(), ErrorKind::StaleVersion, "read of {key}: {error}");
        assert_ne!(self.history.current(key), Some(written), "{key} is what it was, and yet: {error}");
    }

    fn read_many(&self, keys: &[&'static str]) {
        let paths: Vec<_> = keys.iter().map(|key| path(key)).collect();
        let opened = self.wait(self.engine().open_many(&paths, Priority::Foreground));
        let pairs = keys.iter().zip(opened).filter_map(|(key, file)| Some((*key, self.opened(key, file)?)));
        let files: Vec<_> = pairs.collect();
        let (mut at, mut items) = (0, Vec::new());
        for (_, (file, _)) in &files {
            items.push(BatchItem { file, range: ByteRange::new(0, file.size()), at });
            at += file.size() as usize;
        }
        let mut out = vec![0; at];
        let results = self.engine().read_batch(&items, &mut out);
        for ((item, (key, (_, written))), result) in items.iter().zip(&files).zip(results) {
            match result {
                Ok(()) => {
                    let bytes = &out[item.at..item.at + item.range.len() as usize];
                    oracle::check(written.number, 1, 0, bytes).unwrap();
                }
                Err(error) => self.gone(key, written, &error),
            }
        }
    }

    /// Who opens again as the error advises gets all of it, or learns that it is not there.
    fn read_until_right(&self, key: &'static str) {
        let done = (0..PATIENCE).any(|_| match self.open(key) {
            Some((file, written)) => self.read(key, &file, &written, ByteRange::new(0, written.size)),
            None => true,
        });
        assert!(done, "{key} was opened {PATIENCE} times while the source stood still");
    }

    fn look(&self, key: &'static str) {
        match self.wait(self.engine().stat(&path(key))) {
            Ok(entry) => {
                let written = self.found(key, entry.version.as_ref()).expect("it was found");
                assert_eq!(entry.size, written.size);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "stat of {key}: {error}");
                self.found(key, None);
            }
        }
    }

    fn list(&self) {
        // What was deleted may have been the last name of its directory.
        let Ok(page) = self.wait(self.engine().list(&path("d"), None, 100)) else {
            ["d/b", "d/c", "d/e/f"].iter().for_each(|key| drop(self.found(key, None)));
            return;
        };
        for key in ["d/b", "d/c"] {
            let entry = page.entries.iter().find(|entry| Some(entry.name.as_str()) == key.strip_prefix("d/"));
            self.found(key, entry.map(|entry| entry.version.as_ref().expect("a file has a version")));
        }
    }

    fn keep_house(&self, key: &'static str, step: &Step) {
        let path = path(key);
        let done = match step {
            Step::Preload(_) => self.wait(self.engine().prefetch(&path, Priority::Background)).map(drop),
            Step::Evict(_) => self.wait(self.engine().evict(&path)).map(drop),
            _ => self.wait(self.engine().verify(&path)).map(|verified| assert_eq!(verified.bad_pages, 0)),
        };
        match done {
            Ok(()) => {}
            // What is open holds its place in the tier.
            Err(error) if error.kind() == ErrorKind::NoSpace && matches!(step, Step::Preload(_)) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{step:?}: {error}");
                self.found(key, None);
            }
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Overwrite(key, size) => self.overwrite(key, *size),
            Step::Delete(key) => self.delete(key),
            Step::Pass(seconds) => self.world.clock.advance(Duration::from_secs(*seconds)),
            Step::Open(key) => {
                if self.handles.len() == HANDLES_MAX {
                    self.handles.remove(0);
                }
                let opened = self.open(key);
                self.handles.extend(opened.map(|(file, written)| (*key, file, written)));
            }
            Step::Read(index, at, length) if !self.handles.is_empty() => {
                let (key, file, written) = &self.handles[index.index(self.handles.len())];
                let at = (*at).min(written.size);
                self.read(key, file, written, ByteRange::new(at, at + length));
            }
            Step::Read(..) => {}
            Step::ReadMany(keys) => self.read_many(keys),
            Step::ReadUntilRight(key) => self.read_until_right(key),
            Step::Look(key) => self.look(key),
            Step::List => self.list(),
            Step::Preload(key) | Step::Evict(key) | Step::Verify(key) => self.keep_house(key, step),
            Step::Restart => self.restart(),
        }
    }

    fn restart(&mut self) {
        self.handles.clear();
        self.world.settle();
        let engine = self.engine.take().expect("it runs");
        self.world.stop(engine);
        self.engine = Some(self.world.start().unwrap());
    }
}

static CASES: AtomicU64 = AtomicU64::new(0);

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(300), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn contract_1_and_3_hold_in_any_order_of_writes_reads_evictions_restarts_and_time(
        freshness in freshness(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        // Stores live as long as the process: each case has its own.
        let corpus = Corpus::new(&format!("model-{}", CASES.fetch_add(1, Ordering::Relaxed)), &[]);
        let world = World::new(&corpus, Policy { freshness, ..Policy::default() }, |_| None);
        let engine = Some(world.start().unwrap());
        let mut pair = Pair { world: &world, engine, history: History::default(), freshness, handles: Vec::new() };
        for step in &steps {
            pair.take(step);
        }
        KEYS.iter().for_each(|key| pair.read_until_right(key));
        pair.handles.clear();
        KEYS.iter().for_each(|key| pair.delete(key));
        world.settle();
        world.stop(pair.engine.take().expect("it runs"));
    }
}
