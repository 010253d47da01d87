//! What the kernel was told and is not so any more is taken back, and nothing else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use penstock_types::{Answer, ErrorKind, Expired, Freshness, KernelExpiry, ListedNode, NodeId, TreePath};

use crate::mount::Mount;
use crate::support::{Bench, Setup, attachment};

/// Notes what is to be taken back from the kernel.
#[derive(Default)]
struct Watch(Mutex<Vec<Expired>>);

impl KernelExpiry for Watch {
    fn expire(&self, expired: Vec<Expired>) -> BoxFuture<'static, ()> {
        self.0.lock().unwrap().extend(expired);
        Box::pin(std::future::ready(()))
    }
}

impl Watch {
    fn of(mount: &Mount) -> Arc<Self> {
        let watch = Arc::new(Self::default());
        let watcher: Weak<Self> = Arc::downgrade(&watch);
        mount.tree.watch(watcher);
        watch
    }

    /// What was taken back since the last time: names with their directory, lists of names without one.
    fn taken(&self) -> BTreeSet<(NodeId, String)> {
        let taken = std::mem::take(&mut *self.0.lock().unwrap());
        let shown = |expired: &Expired| match expired {
            Expired::Name(directory, name) => (*directory, name.to_string()),
            Expired::Names(directory) => (*directory, "/".to_string()),
        };
        let set: BTreeSet<_> = taken.iter().map(shown).collect();
        assert_eq!(set.len(), taken.len(), "once each: {taken:?}");
        set
    }
}

fn set<const COUNT: usize>(taken: [(NodeId, &str); COUNT]) -> BTreeSet<(NodeId, String)> {
    taken.map(|(directory, name)| (directory, name.to_string())).into()
}

impl Mount {
    /// A tree that is believed for an hour, with a second attachment of the same source where nothing is.
    fn beside_another(name: &str) -> Self {
        let setup = Setup { freshness: Freshness::Seconds(3600.0), ..Setup::default() };
        let mount = Self::of(Bench::start(name, &setup), "/data", true);
        let bench = &mount.bench;
        let source = bench.engine.attachments()[0].spec.source.clone();
        let live = attachment("/live", source, Freshness::Seconds(0.0));
        bench.runtime.block_on(bench.engine.attach(live, false)).unwrap();
        mount
    }

    /// Somebody else lists a directory anew, some time later.
    fn list_elsewhere(&self, directory: &str) {
        self.bench.clock.advance(Duration::from_secs(1));
        let path = TreePath::parse(&format!("/live/{directory}")).unwrap();
        let (mut after, runtime) = (None::<String>, &self.bench.runtime);
        loop {
            after = runtime.block_on(self.bench.engine.list(&path, after.as_deref(), 1000)).unwrap().next;
            if after.is_none() {
                return;
            }
        }
    }

    /// As a kernel that reads a directory with attributes and keeps what it read.
    fn read_directory(&self, directory: NodeId) -> Vec<ListedNode> {
        let names = self.names(directory);
        names.iter().for_each(|entry| self.tree.remember(entry));
        names
    }

    fn keeps(&self, directory: NodeId) -> bool {
        self.wait(self.tree.open_directory(directory)).unwrap()
    }

    fn remove(&self, key: &str) {
        self.bench.runtime.block_on(self.bench.outside.delete(&key.into(), None)).unwrap();
    }

    fn announce(&self, path: &str) {
        self.bench.runtime.block_on(self.bench.engine.announce(&TreePath::parse(path).unwrap()));
    }
}

#[test]
fn what_a_newer_listing_shows_otherwise_is_taken_back_and_nothing_else() {
    let mount = Mount::beside_another("newer");
    ["a", "b", "c", "s/x"].iter().for_each(|name| mount.bench.put(&format!("d/{name}"), 1, 1, 100));
    let watch = Watch::of(&mount);
    let directory = mount.found(NodeId::ROOT, "d").node;
    assert_eq!(mount.read_directory(directory).len(), 4);
    let time = mount.wait(mount.tree.attributes(directory)).unwrap().found.unwrap().modified_ms;
    assert!(mount.look(directory, "n").found.is_none());
    for _ in 0..3 {
        mount.tree.review();
        mount.list_elsewhere("d");
        assert!(mount.keeps(directory), "a newer listing says the same");
        let shown = mount.wait(mount.tree.attributes(directory)).unwrap().found.unwrap();
        assert_eq!(shown.modified_ms, time, "the kernel would read it again");
    }
    assert_eq!(watch.taken(), set([]));
    mount.bench.put("d/a", 1, 2, 150);
    mount.bench.put("d/n", 1, 1, 10);
    mount.remove("d/b");
    mount.list_elsewhere("d");
    mount.tree.review();
    let changed = [(directory, "a"), (directory, "b"), (directory, "n"), (directory, "/")];
    assert_eq!(watch.taken(), set(changed));
    assert!(!mount.keeps(directory));
    assert_eq!((mount.found(directory, "a").size, mount.found(directory, "n").size), (150, 10));
    assert!(mount.look(directory, "b").found.is_none());
    assert_eq!(mount.read_directory(directory).len(), 4);
    assert!(mount.keeps(directory));
    let shown = mount.wait(mount.tree.attributes(directory)).unwrap().found.unwrap();
    assert_ne!(shown.modified_ms, time);
    (0..3).for_each(|_| mount.tree.review());
    assert_eq!(watch.taken(), set([]), "it was taken back");
}

#[test]
fn a_name_that_was_learnt_after_a_listing_is_not_taken_back_for_it() {
    let mount = Mount::beside_another("younger");
    mount.bench.put("d/a", 1, 1, 100);
    mount.list_elsewhere("d");
    mount.bench.put("d/a", 1, 2, 200);
    mount.bench.clock.advance(Duration::from_secs(1));
    let watch = Watch::of(&mount);
    let directory = mount.found(NodeId::ROOT, "d").node;
    let first = mount.found(directory, "a");
    assert_eq!(mount.open(first.node).err().unwrap().kind(), ErrorKind::StaleVersion);
    assert_eq!(mount.found(directory, "a").size, 200);
    mount.tree.review();
    assert_eq!(watch.taken(), set([]));
}

#[test]
fn a_large_directory_is_compared_in_steps_and_whatever_differs_is_found() {
    let mount = Mount::beside_another("steps");
    for number in 0..9_000 {
        mount.bench.put_bytes(&format!("d/{number:05}"), "x".into());
    }
    let watch = Watch::of(&mount);
    let directory = mount.found(NodeId::ROOT, "d").node;
    assert_eq!(mount.read_directory(directory).len(), 9_000);
    mount.remove("d/00007");
    mount.bench.put_bytes("d/08999", "yy".into());
    mount.list_elsewhere("d");
    mount.tree.review();
    assert!(watch.taken().is_superset(&set([(directory, "00007"), (directory, "08999")])));
}

#[test]
fn a_change_that_is_announced_is_taken_back_wherever_a_mount_was_told_otherwise() {
    let mount = Mount::beside_another("announced");
    ["d/a", "d/b", "e/f"].iter().for_each(|key| mount.bench.put(key, 1, 1, 100));
    let other = mount.bench.engine.kernel_tree(&TreePath::root(), true);
    let watch = Watch::of(&mount);
    mount.announce("/data/d/a");
    assert_eq!(watch.taken(), set([]), "nobody was told of it");
    let directory = mount.found(NodeId::ROOT, "d").node;
    mount.read_directory(directory);
    assert!(mount.keeps(directory));
    mount.announce("/data/d/a");
    assert_eq!(watch.taken(), set([(directory, "a"), (directory, "/")]));
    assert!(!mount.keeps(directory));
    mount.announce("/live/d/b");
    assert_eq!(watch.taken(), set([(directory, "b"), (directory, "/")]), "it is the same object");
    mount.announce("/data/e/f");
    assert_eq!(watch.taken(), set([(NodeId::ROOT, "e"), (NodeId::ROOT, "/")]), "what it lies in may be new");
    assert!(mount.look(NodeId::ROOT, "new").found.is_none());
    mount.announce("/data/new/x/y");
    assert_eq!(watch.taken(), set([(NodeId::ROOT, "new"), (NodeId::ROOT, "/")]), "it was not there");
    drop(other);
    mount.announce("/elsewhere");
    assert_eq!(watch.taken(), set([]));
}

#[test]
fn what_was_looked_up_before_a_change_and_is_told_after_it_is_not_believed() {
    let mount = Mount::beside_another("between");
    mount.bench.put("a", 1, 1, 100);
    for (name, found) in [("a", true), ("none", false)] {
        let Answer::Later(asked) = mount.tree.lookup(NodeId::ROOT, name) else { panic!("nothing is known yet") };
        mount.announce(&format!("/data/{name}"));
        let looked = mount.bench.runtime.block_on(asked).unwrap();
        assert_eq!((looked.found.is_some(), looked.name_valid), (found, Duration::ZERO), "{name}");
    }
    assert!(mount.look(NodeId::ROOT, "a").name_valid > Duration::ZERO);
}

#[test]
fn names_are_kept_and_believed_though_a_walk_ahead_lists_them_anew() {
    let mount = Mount::beside_another("walk");
    (0..600).for_each(|number| mount.bench.put(&format!("t/{:03}/{number:04}", number / 6), number, 1, 10));
    let watch = Watch::of(&mount);
    let tree = mount.found(NodeId::ROOT, "t").node;
    let directories: Vec<NodeId> =
        mount.read_directory(tree).iter().map(|entry| entry.looked.found.unwrap().node).collect();
    for directory in &directories {
        let names = mount.read_directory(*directory);
        assert_eq!(names.len(), 6);
        assert!(names.iter().all(|entry| entry.looked.name_valid > Duration::from_secs(3500)));
        mount.bench.clock.advance(Duration::from_millis(5));
    }
    let begun = std::time::Instant::now();
    while mount.bench.engine.stat_cached(&mount.bench.path("t/099/0599")).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the tree is not walked");
        std::thread::sleep(Duration::from_millis(10));
    }
    let requests = mount.bench.metrics.source_requests.get();
    (0..3).for_each(|_| mount.tree.review());
    assert!(directories.iter().all(|directory| mount.keeps(*directory)));
    assert_eq!((watch.taken(), mount.bench.metrics.source_requests.get()), (set([]), requests));
}
