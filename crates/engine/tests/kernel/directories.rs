//! Mode, owner and time of directories: kept with the object that keeps an empty one, whatever becomes of it.

use std::sync::Arc;

use bytes::Bytes;
use penstock_engine::{ConflictQuery, WriteOptions};
use penstock_types::{
    AttributeChange, Description, ErrorKind, NodeId, ObjectKey, Posix, Precondition, PutRequest, TreePath,
};

use crate::mount::Mount;
use crate::support::{self, Bench, Setup};

const ROOT: NodeId = NodeId::ROOT;
/// What these mounts show of directories where nobody has said anything.
const SHOWN: Posix = Posix { mode: Some(0o755), uid: Some(7), gid: Some(7), modified_ns: None };
const TIMED: Posix = Posix { mode: None, uid: None, gid: None, modified_ns: Some(1_000_000_000_123_456_789) };

fn mode(mode: u16) -> Posix {
    Posix { mode: Some(mode), ..Posix::default() }
}

impl Mount {
    fn of_directories(name: &str) -> Self {
        Self::of(Bench::start(name, &Setup::default()), "/data", true)
    }

    fn tell(&self, node: NodeId, posix: Posix) -> penstock_types::Result<Posix> {
        let change = AttributeChange { posix, shown_of_directory: SHOWN, ..AttributeChange::default() };
        Ok(self.wait(self.tree.set_attributes(node, change))?.found.unwrap().posix)
    }

    /// Says something of a directory, and what is shown of it then.
    fn tell_of(&self, name: &str, posix: Posix) -> Posix {
        self.tell(self.found(ROOT, name).node, posix).unwrap()
    }

    fn told_of(&self, name: &str) -> Posix {
        self.found(ROOT, name).posix
    }

    fn listed_of(&self, name: &str) -> Posix {
        let listed = self.names(ROOT).into_iter().find(|entry| &*entry.name == name).unwrap();
        listed.looked.found.unwrap().posix
    }

    fn make(&self, name: &str, posix: Posix) -> Posix {
        self.wait(self.tree.make_directory(ROOT, name, posix)).unwrap().found.unwrap().posix
    }

    fn fill(&self, name: &str) {
        let (at, data) = (self.bench.path(name), Bytes::from_static(b"content"));
        let written = self.bench.engine.write_small(&at, data, WriteOptions::default());
        self.bench.runtime.block_on(written).unwrap();
    }

    fn brought(&self) {
        support::persist(&self.bench, "/data").unwrap();
    }

    /// What the source keeps of a directory, past the engine.
    fn marked(&self, key: &str) -> Posix {
        Posix::of(&self.bench.runtime.block_on(self.bench.outside.stat(&ObjectKey::from(key))).unwrap().metadata)
    }

    fn put_outside(&self, key: &str, metadata: Vec<(String, String)>) {
        let request =
            PutRequest { key: ObjectKey::from(key), body: Bytes::new(), precondition: Precondition::None, metadata };
        self.bench.runtime.block_on(self.bench.outside.put(request)).unwrap();
    }

    fn rename_to(&self, from: &str, to: &str) {
        let (from, to) = (self.bench.path(from), self.bench.path(to));
        self.bench.runtime.block_on(self.bench.engine.rename(&from, &to, false)).unwrap();
    }

    fn again(self) -> Self {
        let Self { bench, tree } = self;
        drop(tree);
        Self::of(bench.restart(), "/data", true)
    }

    fn conflicts(&self) -> usize {
        let query = ConflictQuery { below: true, limit: 10, ..ConflictQuery::default() };
        let all = TreePath::parse("/data").unwrap();
        self.bench.runtime.block_on(self.bench.engine.conflicts(&all, &query)).unwrap().conflicts.len()
    }
}

#[test]
fn what_is_said_of_a_directory_without_an_object_makes_one_and_is_there_at_once_and_after_restarts() {
    let mount = Mount::of_directories("directories-made");
    mount.bench.put_bytes("d/a", Bytes::from_static(b"a"));
    let said = mode(0o700).merged(Posix { uid: Some(1000), ..TIMED });
    assert_eq!(mount.tell_of("d", Posix { gid: Some(7), ..said }), said, "the group is what is shown anyway");
    assert_eq!((mount.told_of("d"), mount.listed_of("d")), (said, said));
    let mount = mount.again();
    assert_eq!((mount.told_of("d"), mount.listed_of("d")), (said, said), "before the source has it");
    mount.brought();
    assert_eq!((mount.marked("d/"), mount.told_of("d")), (said, said));
    assert_eq!(mount.bench.keys(), ["d/", "d/a"]);
    let mount = mount.again();
    assert_eq!((mount.told_of("d"), mount.listed_of("d")), (said, said), "after that");
    let entry = mount.bench.runtime.block_on(mount.bench.engine.stat(&mount.bench.path("d"))).unwrap();
    assert_eq!((entry.posix, Some(entry.modified_ms)), (said, said.modified_ms()));
    let walked = mount.bench.runtime.block_on(mount.bench.engine.walk(&TreePath::parse("/data").unwrap(), None, 9));
    assert_eq!(walked.unwrap().entries[0].posix, said);
}

#[test]
fn an_object_that_is_there_is_copied_onto_itself_with_all_that_others_said_of_it() {
    let mount = Mount::of_directories("directories-copied");
    let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let description = Description { metadata: pair("author", "they"), headers: pair("content-type", "text/plain") };
    let (key, source) = (ObjectKey::from("d/"), Arc::clone(&mount.bench.outside));
    mount.bench.runtime.block_on(async {
        let upload = source.begin_upload(&key, description).await.unwrap();
        let part = source.put_part(&key, &upload, 1, Bytes::new()).await.unwrap();
        let parts = [penstock_types::CompletedPart { number: 1, etag: part.etag }];
        source.complete_upload(&key, &upload, &parts, Precondition::None).await.unwrap();
    });
    mount.tell_of("d", mode(0o700));
    mount.tell_of("d", TIMED);
    let said = mode(0o700).merged(TIMED);
    assert_eq!(mount.told_of("d"), said);
    mount.brought();
    let kept = mount.bench.runtime.block_on(source.stat(&key)).unwrap();
    assert_eq!((Posix::of(&kept.metadata), mount.told_of("d")), (said, said));
    assert!(kept.metadata.contains(&("author".to_owned(), "they".to_owned())), "{:?}", kept.metadata);
    assert_eq!(kept.headers, pair("content-type", "text/plain"));
    let metrics = &mount.bench.metrics;
    assert_eq!((metrics.copies.get(), metrics.uploads.get()), (1, 0), "the second was joined to the first");
    mount.tell_of("d", mode(0o750));
    mount.brought();
    assert_eq!(mount.marked("d/"), mode(0o750).merged(TIMED), "no time but what was said");
}

#[test]
fn a_directory_has_the_mode_that_it_is_made_with_and_what_is_said_before_its_upload_goes_with_it() {
    let mount = Mount::of_directories("directories-mode");
    assert_eq!((mount.make("d", mode(0o700)), mount.make("e", Posix::default())), (mode(0o700), Posix::default()));
    mount.tell_of("d", TIMED);
    let said = mode(0o700).merged(TIMED);
    let mount = mount.again();
    assert_eq!((mount.told_of("d"), mount.told_of("e")), (said, Posix::default()));
    mount.brought();
    assert_eq!((mount.marked("d/"), mount.marked("e/")), (said, Posix::default()));
    assert_eq!(mount.told_of("d"), said);
}

#[test]
fn what_is_shown_already_is_not_said_again() {
    let mount = Mount::of_directories("directories-same");
    mount.bench.put_bytes("d/a", Bytes::from_static(b"a"));
    mount.tell_of("d", SHOWN);
    assert_eq!(mount.bench.engine.status().stage.files, 0);
    mount.tell_of("d", mode(0o700));
    mount.brought();
    let before = mount.bench.metrics.source_requests.get();
    mount.tell_of("d", mode(0o700));
    mount.brought();
    assert_eq!(mount.bench.metrics.source_requests.get(), before);
}

#[test]
fn a_rename_takes_it_along_full_or_empty_and_what_was_removed_does_not_come_back() {
    let mount = Mount::of_directories("directories-renamed");
    mount.make("full", mode(0o700));
    mount.make("empty", mode(0o711));
    mount.fill("full/deep/a");
    mount.tell(mount.found(mount.found(ROOT, "full").node, "deep").node, mode(0o750)).unwrap();
    mount.tell_of("full", TIMED);
    mount.brought();
    let said = mode(0o700).merged(TIMED);
    mount.rename_to("full", "moved");
    mount.rename_to("empty", "bare");
    let deep = |mount: &Mount| mount.found(mount.found(ROOT, "moved").node, "deep").posix;
    assert_eq!((mount.told_of("moved"), mount.told_of("bare"), deep(&mount)), (said, mode(0o711), mode(0o750)));
    mount.brought();
    assert_eq!((mount.told_of("moved"), mount.told_of("bare"), deep(&mount)), (said, mode(0o711), mode(0o750)));
    assert_eq!(
        (mount.marked("moved/"), mount.marked("bare/"), mount.marked("moved/deep/")),
        (said, mode(0o711), mode(0o750))
    );
    assert_eq!(mount.bench.keys(), ["bare/", "moved/", "moved/deep/", "moved/deep/a"]);

    let remove = |mount: &Mount, name: &str| {
        mount.bench.runtime.block_on(mount.bench.engine.remove_directory(&mount.bench.path(name))).unwrap();
    };
    remove(&mount, "bare");
    assert_eq!(mount.make("bare", Posix::default()), Posix::default(), "before the source has heard of it");
    mount.make("empty", Posix::default());
    mount.brought();
    assert_eq!((mount.told_of("bare"), mount.told_of("empty")), (Posix::default(), Posix::default()));
    assert_eq!((mount.marked("bare/"), mount.marked("empty/")), (Posix::default(), Posix::default()));
    mount.tell_of("bare", mode(0o700));
    mount.brought();
    remove(&mount, "bare");
    mount.brought();
    assert_eq!(mount.make("bare", Posix::default()), Posix::default(), "after that");
    let mount = mount.again();
    assert_eq!((mount.told_of("bare"), mount.told_of("moved")), (Posix::default(), said));
}

#[test]
fn files_that_come_and_go_in_a_directory_change_nothing_of_what_was_said() {
    let mount = Mount::of_directories("directories-files");
    mount.fill("d/a");
    mount.tell_of("d", mode(0o700).merged(TIMED));
    mount.brought();
    mount.fill("d/b");
    let directory = mount.found(ROOT, "d").node;
    for name in ["a", "b"] {
        mount.wait(mount.tree.remove(directory, name)).unwrap();
    }
    mount.brought();
    let said = mode(0o700).merged(TIMED);
    assert_eq!((mount.told_of("d"), mount.marked("d/")), (said, said));
    assert_eq!(mount.bench.keys(), ["d/"]);
}

#[test]
fn what_somebody_else_made_or_removed_meanwhile_is_no_conflict_of_directories() {
    let mount = Mount::of_directories("directories-others");
    mount.bench.put_bytes("made/a", Bytes::from_static(b"a"));
    mount.bench.put_bytes("changed/a", Bytes::from_static(b"a"));
    mount.put_outside("changed/", Vec::new());
    mount.put_outside("removed/", Vec::new());
    for name in ["made", "changed", "removed"] {
        mount.tell_of(name, mode(0o700));
    }
    let theirs = Posix { uid: Some(9), ..Posix::default() };
    mount.put_outside("made/", theirs.metadata());
    mount.put_outside("changed/", theirs.metadata());
    mount.bench.runtime.block_on(mount.bench.outside.delete(&ObjectKey::from("removed/"), None)).unwrap();
    mount.brought();
    assert_eq!(mount.conflicts(), 0);
    let both = mode(0o700).merged(theirs);
    assert_eq!((mount.marked("made/"), mount.marked("changed/")), (both, both));
    assert_eq!((mount.told_of("made"), mount.told_of("changed")), (both, both));
    assert_eq!((mount.marked("removed/"), mount.told_of("removed")), (mode(0o700), mode(0o700)));
}

#[test]
fn what_cannot_be_kept_is_refused_but_of_where_something_is_attached_passed_over() {
    let mount = Mount::of_directories("directories-refused");
    assert_eq!(mount.tell(ROOT, mode(0o700)).unwrap(), Posix::default());
    assert!(mount.bench.keys().is_empty());
    mount.bench.put_bytes("strange/", Bytes::from_static(b"content"));
    mount.bench.put_bytes("strange/a", Bytes::from_static(b"a"));
    let strange = mount.found(ROOT, "strange").node;
    assert_eq!(mount.tell(strange, mode(0o700)).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(mount.bench.object("strange/"), b"content");
    mount.bench.put_bytes("gone/a", Bytes::from_static(b"a"));
    let gone = mount.found(ROOT, "gone").node;
    mount.wait(mount.tree.remove(gone, "a")).unwrap();
    mount.bench.runtime.block_on(mount.bench.engine.remove_directory(&mount.bench.path("gone"))).unwrap();
    assert_eq!(mount.tell(gone, mode(0o700)).unwrap_err().kind(), ErrorKind::NotFound);

    let read_only = Setup { read_only: true, ..Setup::default() };
    let mount = Mount::of(Bench::start("directories-read-only", &read_only), "/data", true);
    mount.bench.put_bytes("d/a", Bytes::from_static(b"a"));
    let directory = mount.found(ROOT, "d").node;
    assert_eq!(mount.tell(directory, SHOWN).unwrap(), Posix::default(), "it is so already");
    assert_eq!(mount.tell(directory, mode(0o700)).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn nobody_is_asked_to_show_a_directory_and_an_answer_about_its_object_tells_another_home() {
    let there = Mount::of_directories("directories-elsewhere");
    for number in 0..20 {
        there.bench.put_bytes(&format!("d{number}/a"), Bytes::from_static(b"a"));
    }
    there.tell_of("d3", mode(0o700).merged(TIMED));
    there.brought();
    let here = Mount::of(there.bench.elsewhere(false), "/data", true);
    assert_eq!(here.names(ROOT).len(), 20);
    for number in 0..20 {
        assert_eq!(here.told_of(&format!("d{number}")), Posix::default());
    }
    let metrics = &here.bench.metrics;
    assert_eq!((metrics.source_stat_requests.get(), metrics.source_requests.get()), (0, 1), "the listing");
    here.tell_of("d3", Posix { uid: Some(9), ..Posix::default() });
    let both = Posix { uid: Some(9), ..mode(0o700).merged(TIMED) };
    assert_eq!(here.told_of("d3"), both);
    here.brought();
    assert_eq!((here.told_of("d3"), here.marked("d3/")), (both, both));
    let looks = metrics.source_stat_requests.get();
    assert_eq!(here.names(ROOT).len(), 20);
    assert_eq!((here.listed_of("d3"), here.listed_of("d4")), (both, Posix::default()));
    assert_eq!(metrics.source_stat_requests.get(), looks, "also where something was said of one");
}
