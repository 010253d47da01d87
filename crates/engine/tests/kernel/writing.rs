//! Writing through a mount: what programs do, asked as a kernel asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use penstock_types::{
    Answer, AttributeChange, CreatedNode, ErrorKind, NodeId, NodeWriter, OpenedNode, Posix, Replace, TreePath,
};

use crate::mount::Mount;
use crate::support::{Bench, MIB, Setup};

fn mount(name: &str) -> Mount {
    Mount::of(Bench::start(name, &Setup::default()), "/data", true)
}

fn writer(opened: &OpenedNode) -> &Arc<dyn NodeWriter> {
    opened.writer.as_ref().unwrap()
}

impl Mount {
    fn create(&self, parent: NodeId, name: &str) -> CreatedNode {
        self.wait(self.tree.create(parent, name, Posix::default(), (false, false))).unwrap()
    }

    fn write(&self, opened: &OpenedNode, offset: u64, data: &[u8]) {
        self.wait(writer(opened).write(offset, data)).unwrap();
    }

    fn flush(&self, opened: &OpenedNode) {
        self.wait(writer(opened).flush()).unwrap();
    }

    /// As `close` does it.
    fn close(&self, opened: OpenedNode) {
        self.flush(&opened);
        writer(&opened).close();
    }

    fn put_file(&self, parent: NodeId, name: &str, data: &[u8]) {
        let created = self.create(parent, name);
        self.write(&created.opened, 0, data);
        self.close(created.opened);
    }

    /// Opens for writing as a kernel does, which looks the name up again when it is told that the node is stale.
    fn open_to_write(&self, parent: NodeId, name: &str, truncate: bool) -> OpenedNode {
        let node = self.found(parent, name).node;
        match self.wait(self.tree.open_for_writing(node, truncate)) {
            Err(error) if error.kind() == ErrorKind::StaleVersion => {}
            opened => return opened.unwrap(),
        }
        let node = self.found(parent, name).node;
        self.wait(self.tree.open_for_writing(node, truncate)).unwrap()
    }

    fn all(&self, parent: NodeId, name: &str) -> Vec<u8> {
        let found = self.found(parent, name);
        let opened = self.open(found.node).unwrap();
        self.read(&opened.file, 0, found.size as usize).unwrap()
    }

    fn listed(&self, directory: NodeId) -> Vec<String> {
        let mut names: Vec<String> = self.names(directory).iter().map(|entry| entry.name.to_string()).collect();
        names.sort();
        names
    }

    fn is_there(&self, parent: NodeId, name: &str) -> bool {
        self.look(parent, name).found.is_some()
    }

    fn persist(&self) {
        let all = path("/data");
        let persisted = self.bench.engine.persist(&all, Some(Duration::from_secs(60)));
        self.bench.runtime.block_on(persisted).unwrap();
    }

    fn keys(&self) -> Vec<String> {
        self.bench.keys()
    }
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text).unwrap()
}

#[test]
fn a_file_is_seen_from_its_creation_on_by_the_mount_and_from_its_close_on_by_everybody() {
    let mount = mount("create");
    let stat = |name: &str| mount.bench.runtime.block_on(mount.bench.engine.stat(&path(name)));
    let created = mount.create(NodeId::ROOT, "a");
    assert_eq!(mount.listed(NodeId::ROOT), ["a"]);
    mount.write(&created.opened, 0, b"hello");
    assert_eq!(mount.found(NodeId::ROOT, "a").size, 5);
    assert_eq!(mount.found(NodeId::ROOT, "a").node, created.looked.found.unwrap().node);
    assert_eq!(stat("/data/a").unwrap_err().kind(), ErrorKind::NotFound);
    mount.flush(&created.opened);
    assert_eq!(stat("/data/a").unwrap().size, 5);
    mount.write(&created.opened, 5, b" world");
    assert_eq!(stat("/data/a").unwrap().size, 5, "what was flushed stays as it is");
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"hello world", "the mount sees it grow");
    mount.close(created.opened);
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"hello world");
    assert_eq!(stat("/data/a").unwrap().size, 11);
    mount.persist();
    assert_eq!(mount.bench.object("a"), b"hello world");
}

#[test]
fn a_flush_that_has_nothing_to_flush_costs_nothing() {
    let mount = mount("flush");
    let created = mount.create(NodeId::ROOT, "a");
    mount.write(&created.opened, 0, b"x");
    mount.flush(&created.opened);
    let commits = mount.bench.metrics.stage_commits.get();
    mount.flush(&created.opened);
    mount.close(created.opened);
    assert_eq!(mount.bench.metrics.stage_commits.get(), commits);
}

#[test]
fn where_many_small_files_were_made_the_next_is_in_memory_until_it_is_closed_or_grows() {
    let mount = mount("small");
    let drafts = || std::fs::read_dir(mount.bench.config.stage.directory.join("files")).unwrap().count();
    let content = vec![7; 256 * 1024];
    (0..8).for_each(|number| mount.put_file(NodeId::ROOT, &number.to_string(), b"small"));
    let before = drafts();
    let create = |name: &str| match mount.tree.create(NodeId::ROOT, name, Posix::default(), (false, false)) {
        Answer::Now(created) => created.unwrap(),
        Answer::Later(_) => panic!("nothing has to be waited for"),
    };
    let (small, large, cut, allocated) = (create("small"), create("large"), create("cut"), create("allocated"));
    for created in [&small, &large, &cut, &allocated] {
        mount.write(&created.opened, 0, &content);
    }
    assert_eq!(drafts(), before, "they are in memory");
    assert_eq!(mount.all(NodeId::ROOT, "small"), content, "others see it grow");
    mount.flush(&small.opened);
    assert_eq!(drafts(), before, "the journal alone has it");
    mount.write(&small.opened, 0, b"again");
    mount.write(&large.opened, content.len() as u64, b"more");
    let node = cut.looked.found.unwrap().node;
    let change = AttributeChange { size: Some(MIB), ..AttributeChange::default() };
    mount.wait(mount.tree.set_attributes(node, change)).unwrap();
    mount.wait(writer(&allocated.opened).allocate(1, 0, 64 * MIB)).unwrap();
    assert_eq!(drafts(), before + 4, "they go on in files");
    assert_eq!(mount.all(NodeId::ROOT, "large").len(), content.len() + 4);
    [small, large, cut, allocated].into_iter().for_each(|created| mount.close(created.opened));
    let before = drafts();
    let next = mount.create(NodeId::ROOT, "next");
    assert_eq!(drafts(), before + 1, "one was large");
    mount.close(next.opened);
    mount.persist();
    assert_eq!(mount.bench.object("small"), [&b"again"[..], &content[5..]].concat());
    assert_eq!(mount.bench.object("large"), [&content[..], b"more"].concat());
    assert_eq!(mount.bench.object("cut"), [&content[..], &vec![0; MIB as usize - content.len()]].concat());
    assert_eq!(mount.bench.object("allocated"), content);
}

#[test]
fn many_new_files_in_one_directory_are_a_few_questions_to_the_source() {
    let mount = mount("many");
    mount.bench.put_bytes("d/old", Bytes::from_static(b"old"));
    let directory = mount.found(NodeId::ROOT, "d").node;
    let before = mount.bench.metrics.source_requests.get();
    for number in 0..100 {
        assert!(!mount.is_there(directory, &number.to_string()));
        mount.put_file(directory, &number.to_string(), b"new");
    }
    assert!(mount.bench.metrics.source_requests.get() - before < 12);
    assert_eq!(mount.listed(directory).len(), 101);
}

#[test]
fn an_object_is_changed_in_its_middle_and_a_reader_of_the_old_version_keeps_it() {
    let mount = mount("edit");
    mount.bench.put_bytes("a", Bytes::from_static(b"0123456789"));
    let old = mount.open(mount.found(NodeId::ROOT, "a").node).unwrap();
    let opened = mount.open_to_write(NodeId::ROOT, "a", false);
    mount.write(&opened, 3, b"abc");
    mount.write(&opened, 10, b"end");
    mount.close(opened);
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"012abc6789end");
    let lent = old.lent.unwrap();
    let mut bytes = [0; 10];
    rustix::io::pread(&lent, &mut bytes[..], 0).unwrap();
    assert_eq!(&bytes, b"0123456789");
    mount.persist();
    assert_eq!(mount.bench.object("a"), b"012abc6789end");
}

#[test]
fn who_opens_for_writing_and_writes_nothing_changes_nothing() {
    let mount = mount("untouched");
    mount.bench.put("large", 1, 1, 3_000_000);
    mount.bench.put_bytes("small", Bytes::from_static(b"small"));
    for name in ["large", "small"] {
        let before = mount.found(NodeId::ROOT, name).modified_ms;
        let opened = mount.open_to_write(NodeId::ROOT, name, false);
        assert!(!mount.read(&opened.file, 0, 5).unwrap().is_empty());
        mount.close(opened);
        mount.bench.clock.advance(Duration::from_secs(10));
        assert_eq!(mount.found(NodeId::ROOT, name).modified_ms, before);
    }
    assert_eq!(mount.bench.metrics.stage_commits.get(), 0);
}

#[test]
fn nobody_but_the_mount_sees_a_file_that_was_emptied_before_it_is_closed() {
    let mount = mount("emptied-file");
    mount.put_file(NodeId::ROOT, "a", b"old");
    let commits = mount.bench.metrics.stage_commits.get();
    let opened = mount.open_to_write(NodeId::ROOT, "a", true);
    mount.write(&opened, 0, b"ne");
    let stat = mount.bench.runtime.block_on(mount.bench.engine.stat(&path("/data/a"))).unwrap();
    assert_eq!((stat.size, mount.bench.metrics.stage_commits.get()), (3, commits));
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"ne");
    // As when the node is killed now.
    let Mount { bench, tree } = mount;
    drop((opened, tree));
    let mount = Mount::of(bench.restart(), "/data", true);
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"old");
}

#[test]
fn truncating_fetches_nothing() {
    let mount = mount("truncate");
    mount.bench.put("a", 1, 1, 3_000_000);
    let opened = mount.open_to_write(NodeId::ROOT, "a", true);
    mount.write(&opened, 0, b"new");
    mount.close(opened);
    assert_eq!(mount.bench.metrics.source_read_requests.get(), 0);
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"new");
    let cut = AttributeChange { size: Some(2), ..AttributeChange::default() };
    let node = mount.found(NodeId::ROOT, "a").node;
    assert_eq!(mount.wait(mount.tree.set_attributes(node, cut)).unwrap().found.unwrap().size, 2);
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"ne");
}

#[test]
fn a_temporary_name_never_shows_in_the_source() {
    let mount = mount("rename");
    mount.put_file(NodeId::ROOT, "old", b"old");
    mount.persist();
    let created = mount.create(NodeId::ROOT, ".tmp1");
    mount.write(&created.opened, 0, b"new content");
    mount.close(created.opened);
    mount.wait(mount.tree.rename((NodeId::ROOT, ".tmp1"), (NodeId::ROOT, "old"), Replace::Yes)).unwrap();
    assert_eq!(mount.all(NodeId::ROOT, "old"), b"new content");
    assert!(!mount.is_there(NodeId::ROOT, ".tmp1"));
    mount.persist();
    assert_eq!(mount.keys(), ["old"]);
    assert_eq!(mount.bench.object("old"), b"new content");
    assert_eq!(mount.bench.metrics.uploads.get(), 2, "the temporary file was never uploaded");
}

#[test]
fn a_node_that_was_renamed_says_stale_when_its_version_is_gone_and_not_that_nothing_is_there() {
    let mount = mount("renamed-node");
    mount.put_file(NodeId::ROOT, "a", b"a");
    let node = mount.found(NodeId::ROOT, "a").node;
    mount.wait(mount.tree.rename((NodeId::ROOT, "a"), (NodeId::ROOT, "b"), Replace::Yes)).unwrap();
    mount.persist();
    let end = Instant::now() + Duration::from_secs(60);
    let refused = loop {
        // What was staged can be found by its version for a while longer.
        match mount.open(node) {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < end, "it is never forgotten"),
        }
        mount.bench.clock.advance(Duration::from_secs(1));
        mount.bench.runtime.block_on(mount.bench.engine.tick());
    };
    assert_eq!(refused.kind(), ErrorKind::StaleVersion);
    assert_eq!(mount.all(NodeId::ROOT, "b"), b"a");
}

#[test]
fn what_is_renamed_while_it_is_open_goes_on_under_its_new_name() {
    let mount = mount("rename-open");
    let created = mount.create(NodeId::ROOT, "a");
    mount.write(&created.opened, 0, b"one");
    mount.wait(mount.tree.rename((NodeId::ROOT, "a"), (NodeId::ROOT, "b"), Replace::No)).unwrap();
    assert_eq!(mount.listed(NodeId::ROOT), ["b"]);
    mount.write(&created.opened, 3, b" two");
    mount.close(created.opened);
    assert_eq!(mount.all(NodeId::ROOT, "b"), b"one two");
    assert!(!mount.is_there(NodeId::ROOT, "a"));
    mount.persist();
    assert_eq!(mount.keys(), ["b"]);
}

#[test]
fn the_first_name_of_what_is_renamed_goes_from_the_source_though_the_file_stays_open() {
    let mount = mount("rename-object");
    mount.bench.put_bytes("a", Bytes::from_static(b"old"));
    let old_ms = mount.found(NodeId::ROOT, "a").modified_ms;
    let opened = mount.open_to_write(NodeId::ROOT, "a", false);
    mount.write(&opened, 3, b" new");
    mount.wait(mount.tree.rename((NodeId::ROOT, "a"), (NodeId::ROOT, "b"), Replace::Yes)).unwrap();
    assert!(mount.found(NodeId::ROOT, "b").modified_ms > old_ms, "it was written just now");
    let end = Instant::now() + Duration::from_secs(60);
    while !mount.keys().is_empty() {
        assert!(Instant::now() < end, "{:?}", mount.keys());
        mount.bench.clock.advance(Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(10));
    }
    mount.close(opened);
    mount.persist();
    assert_eq!(mount.bench.object("b"), b"old new");
}

#[test]
fn a_file_that_is_removed_while_it_is_open_stays_readable_and_writable_and_never_comes_back() {
    let mount = mount("unlink");
    mount.put_file(NodeId::ROOT, "other", b"1");
    let created = mount.create(NodeId::ROOT, "a");
    mount.write(&created.opened, 0, b"one");
    mount.flush(&created.opened);
    mount.wait(mount.tree.remove(NodeId::ROOT, "a")).unwrap();
    mount.write(&created.opened, 3, b" two");
    assert_eq!(mount.read(&created.opened.file, 0, 100).unwrap(), b"one two");
    mount.close(created.opened);
    assert!(!mount.is_there(NodeId::ROOT, "a"));
    mount.persist();
    assert_eq!(mount.keys(), ["other"]);
    let missing = mount.wait(mount.tree.remove(NodeId::ROOT, "a")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn exclusive_creation_and_renames_without_replacing_find_what_is_open() {
    let mount = mount("exclusive");
    let created = mount.create(NodeId::ROOT, "a");
    let taken = mount.wait(mount.tree.create(NodeId::ROOT, "a", Posix::default(), (true, false))).err().unwrap();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    mount.put_file(NodeId::ROOT, "b", b"b");
    let taken = mount.wait(mount.tree.rename((NodeId::ROOT, "b"), (NodeId::ROOT, "a"), Replace::No)).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    mount.close(created.opened);
    let taken = mount.wait(mount.tree.create(NodeId::ROOT, "a", Posix::default(), (true, false))).err().unwrap();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn directories_are_made_survive_being_empty_and_are_removed_when_they_are() {
    let mount = mount("directories");
    let made = mount.wait(mount.tree.make_directory(NodeId::ROOT, "d", Posix::default())).unwrap().found.unwrap();
    assert!(made.is_directory);
    let taken = mount.wait(mount.tree.make_directory(NodeId::ROOT, "d", Posix::default())).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    assert_eq!(mount.listed(NodeId::ROOT), ["d"]);
    mount.put_file(made.node, "f", b"f");
    let full = mount.wait(mount.tree.remove_directory(NodeId::ROOT, "d")).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NotEmpty);
    mount.wait(mount.tree.remove(made.node, "f")).unwrap();
    assert_eq!(mount.listed(NodeId::ROOT), ["d"], "it stays though it is empty");
    mount.persist();
    assert_eq!(mount.keys(), ["d/"]);
    mount.wait(mount.tree.remove_directory(NodeId::ROOT, "d")).unwrap();
    assert!(!mount.is_there(NodeId::ROOT, "d"));
    assert!(mount.listed(NodeId::ROOT).is_empty());
    mount.persist();
    assert!(!mount.is_there(NodeId::ROOT, "d"));
    assert!(mount.keys().is_empty());
    mount.wait(mount.tree.make_directory(NodeId::ROOT, "d", Posix::default())).unwrap();
    assert_eq!(mount.listed(NodeId::ROOT), ["d"]);
    mount.wait(mount.tree.remove_directory(NodeId::ROOT, "d")).unwrap();
    mount.put_file(NodeId::ROOT, "d", b"a file now");
    assert_eq!(mount.all(NodeId::ROOT, "d"), b"a file now");
}

#[test]
fn the_directory_of_a_source_stays_when_its_last_file_is_removed() {
    let mount = mount("emptied");
    mount.bench.put_bytes("d/f", Bytes::from_static(b"f"));
    let directory = mount.found(NodeId::ROOT, "d").node;
    mount.wait(mount.tree.remove(directory, "f")).unwrap();
    assert!(mount.is_there(NodeId::ROOT, "d"));
    assert!(mount.listed(directory).is_empty());
    mount.persist();
    assert_eq!(mount.keys(), ["d/"]);
}

#[test]
fn a_directory_is_renamed_with_all_that_is_below_and_the_kernel_goes_on_with_its_nodes() {
    let mount = mount("rename-directory");
    mount.bench.put_bytes("from/cold", Bytes::from_static(b"cold"));
    let from = mount.found(NodeId::ROOT, "from").node;
    mount.put_file(from, "staged", b"staged");
    let deep = mount.wait(mount.tree.make_directory(from, "deep", Posix::default())).unwrap().found.unwrap().node;
    mount.wait(mount.tree.make_directory(from, "empty", Posix::default())).unwrap();
    let open = mount.create(deep, "open");
    mount.write(&open.opened, 0, b"o");
    mount.wait(mount.tree.rename((NodeId::ROOT, "from"), (NodeId::ROOT, "to"), Replace::Yes)).unwrap();
    assert_eq!(mount.listed(NodeId::ROOT), ["to"]);
    assert_eq!(mount.all(from, "cold"), b"cold", "who holds the directory finds what is in it");
    let to = mount.found(NodeId::ROOT, "to").node;
    assert_eq!(mount.listed(to), ["cold", "deep", "empty", "staged"]);
    mount.write(&open.opened, 1, b"pen");
    mount.close(open.opened);
    let deep = mount.found(to, "deep").node;
    assert_eq!(mount.all(deep, "open"), b"open");
    assert_eq!(mount.all(to, "staged"), b"staged");
    mount.persist();
    assert_eq!(mount.keys(), ["to/cold", "to/deep/open", "to/empty/", "to/staged"]);
}

fn given_time(modified_ms: i64) -> AttributeChange {
    let posix = Posix { modified_ns: Some(modified_ms * 1_000_000), ..Posix::default() };
    AttributeChange { posix, ..AttributeChange::default() }
}

#[test]
fn a_time_that_is_given_is_shown_while_the_source_has_not_got_the_file() {
    let mount = mount("times");
    let created = mount.create(NodeId::ROOT, "a");
    mount.write(&created.opened, 0, b"x");
    let node = created.looked.found.unwrap().node;
    let given = given_time(1_000_000_000_000);
    mount.wait(mount.tree.set_attributes(node, given)).unwrap();
    mount.close(created.opened);
    assert_eq!(mount.found(NodeId::ROOT, "a").posix, given.posix);
    let later = given_time(1_100_000_000_000);
    mount.wait(mount.tree.set_attributes(mount.found(NodeId::ROOT, "a").node, later)).unwrap();
    assert_eq!(mount.found(NodeId::ROOT, "a").posix, later.posix);
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"x");
}

#[test]
fn what_was_never_flushed_is_set_aside_when_the_node_ends_and_what_was_is_there() {
    let mount = mount("ended");
    mount.put_file(NodeId::ROOT, "a", b"closed");
    let created = mount.create(NodeId::ROOT, "b");
    mount.write(&created.opened, 0, b"never closed");
    let Mount { bench, tree } = mount;
    drop((created, tree));
    let mount = Mount::of(bench.restart(), "/data", true);
    assert_eq!(mount.listed(NodeId::ROOT), ["a"]);
    assert_eq!(mount.all(NodeId::ROOT, "a"), b"closed");
    let recovered = mount.bench.engine.status().stage.recovered;
    let kept: Vec<Vec<u8>> = recovered.iter().map(|file| std::fs::read(&file.path).unwrap()).collect();
    assert_eq!(kept, [b"never closed"]);
}

#[test]
fn a_mount_of_a_read_only_attachment_changes_nothing() {
    let bench = Bench::start("read-only", &Setup { read_only: true, ..Setup::default() });
    bench.put_bytes("a", Bytes::from_static(b"a"));
    let mount = Mount::of(bench, "/data", true);
    assert!(!mount.tree.is_writable());
    let node = mount.found(NodeId::ROOT, "a").node;
    for error in [
        mount.wait(mount.tree.open_for_writing(node, true)).err(),
        mount.wait(mount.tree.create(NodeId::ROOT, "b", Posix::default(), (false, false))).err(),
        mount.wait(mount.tree.remove(NodeId::ROOT, "a")).err(),
        mount.wait(mount.tree.make_directory(NodeId::ROOT, "d", Posix::default())).err(),
        mount.wait(mount.tree.rename((NodeId::ROOT, "a"), (NodeId::ROOT, "b"), Replace::Yes)).err(),
    ] {
        assert_eq!(error.unwrap().kind(), ErrorKind::ReadOnly);
    }
    assert_eq!(mount.keys(), ["a"]);
}
