//! What the source did not take is kept, told of and settled, either way.

#![allow(clippy::unwrap_used, reason = "these are tests, their support included")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use penstock_engine::{Conflict, ConflictQuery, EntryKind, InSource, Keep, WriteOptions};
use penstock_testkit::{Fault, FaultySource, catches};
use penstock_types::{ErrorKind, Freshness, ObjectKey, Result, TreePath};
use support::{Bench, Setup, eventually, persist, read};

fn path(text: &str) -> TreePath {
    TreePath::parse(text).unwrap()
}

fn write(bench: &Bench, at: &str, data: &'static [u8]) {
    let data = Bytes::from_static(data);
    bench.runtime.block_on(bench.engine.write_small(&path(at), data, WriteOptions::default())).unwrap();
}

/// Bytes of an object of the source; `None` where there is none.
fn size_in_source(bench: &Bench, key: &str) -> Option<u64> {
    let found = bench.runtime.block_on(bench.outside.stat(&ObjectKey::from(key)));
    found.ok().map(|found| found.attributes.size)
}

fn conflicts(bench: &Bench, at: &str) -> Vec<Conflict> {
    let query = ConflictQuery { below: true, look: true, after: None, limit: 1000 };
    let page = bench.runtime.block_on(bench.engine.conflicts(&path(at), &query)).unwrap();
    assert_eq!(page.next, None);
    page.conflicts
}

fn resolve(bench: &Bench, at: &str, keep: Keep) -> Result<Conflict> {
    let operation = conflicts(bench, at).pop().map(|last| last.operation).unwrap_or_default();
    resolve_one(bench, at, &operation, keep)
}

fn resolve_one(bench: &Bench, at: &str, operation: &str, keep: Keep) -> Result<Conflict> {
    bench.runtime.block_on(bench.engine.resolve_conflict(&path(at), operation, keep))
}

fn content(bench: &Bench, conflict: &Conflict) -> Result<Vec<u8>> {
    let file =
        bench.runtime.block_on(async { bench.engine.conflict_content(&path(&conflict.path), &conflict.operation) })?;
    let file = File::from(file.try_clone().unwrap());
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Ok(bytes)
}

/// Writes `mine` over what somebody else has put there meanwhile.
fn collide(bench: &Bench, key: &str, mine: &'static [u8], theirs: &'static [u8]) {
    bench.put_bytes(key, Bytes::from_static(b"before"));
    assert_eq!(read(bench, &format!("/data/{key}")).unwrap(), b"before");
    let at = format!("/data/{key}");
    bench.put_bytes(key, Bytes::from_static(theirs));
    write(bench, &at, mine);
    assert_eq!(persist(bench, &at).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(read(bench, &at).unwrap(), theirs);
}

/// A second attachment of the bench's source, at `/faulty`, of which one kind of request fails while `fails` is set.
fn attach_faulty(bench: &Bench, operation: &'static str) -> Arc<AtomicBool> {
    let fails = Arc::new(AtomicBool::new(true));
    let asked = Mutex::new(Arc::clone(&fails));
    let source = FaultySource::new(Arc::clone(&bench.outside), move |call| {
        let fails = asked.lock().unwrap().load(Ordering::Relaxed);
        (fails && call.operation == operation).then_some(Fault::Fail(ErrorKind::Unavailable))
    });
    let spec = support::attachment("/faulty", bench.source_spec(), Freshness::Seconds(60.0));
    bench.engine.attach_source(spec, source as _, None).unwrap();
    fails
}

fn has_no_conflict(bench: &Bench) {
    assert_eq!(conflicts(bench, "/"), []);
    let status = bench.engine.status().stage;
    assert_eq!((status.conflicts, status.conflict_bytes), (0, 0));
    persist(bench, "/").unwrap();
}

#[test]
fn a_conflict_says_what_is_kept_and_what_the_source_has_now() {
    let bench = Bench::start("ls", &Setup::default());
    collide(&bench, "dir/a", b"mine!", b"theirs");
    collide(&bench, "dir/b", b"mine of b", b"theirs");
    bench.runtime.block_on(bench.outside.delete(&ObjectKey::from("dir/b"), None)).unwrap();
    for at in ["/", "/data", "/data/dir"] {
        let found = conflicts(&bench, at);
        let told: Vec<_> = found.iter().map(|it| (it.path.as_str(), it.size, it.code.as_str())).collect();
        assert_eq!(told, [("/data/dir/a", Some(5), "conflict"), ("/data/dir/b", Some(9), "conflict")]);
        assert!(matches!(found[0].source, Some(InSource::File { size: 6, .. })), "{found:?}");
        assert_eq!(found[1].source, Some(InSource::Nothing));
        assert_eq!(content(&bench, &found[0]).unwrap(), b"mine!");
    }
    assert_eq!(conflicts(&bench, "/data/other"), []);
    // A page of one each.
    let mut query = ConflictQuery { below: true, look: false, after: None, limit: 1 };
    let mut paths = Vec::new();
    loop {
        let page = bench.runtime.block_on(bench.engine.conflicts(&path("/data"), &query)).unwrap();
        paths.extend(page.conflicts.into_iter().map(|conflict| (conflict.path, conflict.source)));
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    assert_eq!(paths, [("/data/dir/a".to_owned(), None), ("/data/dir/b".to_owned(), None)]);
}

#[test]
fn ours_is_kept_over_what_the_source_has_now() {
    let bench = Bench::start("mine", &Setup::default());
    collide(&bench, "a", b"mine!", b"theirs");
    let settled = resolve(&bench, "/data/a", Keep::Mine).unwrap();
    assert!(matches!(settled.source, Some(InSource::File { size: 6, .. })), "{settled:?}");
    assert_eq!(read(&bench, "/data/a").unwrap(), b"mine!");
    has_no_conflict(&bench);
    assert_eq!(size_in_source(&bench, "a"), Some(5));

    // Also where somebody has removed it.
    collide(&bench, "b", b"mine of b", b"theirs");
    bench.runtime.block_on(bench.outside.delete(&ObjectKey::from("b"), None)).unwrap();
    assert_eq!(resolve(&bench, "/data/b", Keep::Mine).unwrap().source, Some(InSource::Nothing));
    has_no_conflict(&bench);
    assert_eq!(size_in_source(&bench, "b"), Some(9));
    assert_eq!(bench.metrics.conflicts.get(), 2);
}

#[test]
fn what_somebody_changes_after_ours_was_kept_is_a_conflict_again() {
    let bench = Bench::start("again", &Setup::default());
    collide(&bench, "a", b"mine!", b"theirs");
    let fails = attach_faulty(&bench, "put");
    // The uploads go through the attachment by which it was written.
    bench.engine.detach(&path("/data")).unwrap();
    resolve(&bench, "/faulty/a", Keep::Mine).unwrap();
    bench.put_bytes("a", Bytes::from_static(b"theirs once more"));
    fails.store(false, Ordering::Relaxed);
    assert_eq!(persist(&bench, "/faulty").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(size_in_source(&bench, "a"), Some(16));
    let found = conflicts(&bench, "/faulty");
    assert_eq!((found.len(), content(&bench, &found[0]).unwrap()), (1, b"mine!".to_vec()));
}

#[test]
fn theirs_is_kept_and_ours_given_up() {
    let bench = Bench::start("theirs", &Setup::default());
    collide(&bench, "a", b"mine!", b"theirs");
    let given_up = resolve(&bench, "/data/a", Keep::Theirs).unwrap();
    assert_eq!((given_up.size, given_up.source), (Some(5), None));
    has_no_conflict(&bench);
    assert_eq!(read(&bench, "/data/a").unwrap(), b"theirs");
    let again = resolve_one(&bench, "/data/a", &given_up.operation, Keep::Mine).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);
}

#[test]
fn a_removal_in_conflict_removes_what_is_there_now_or_nothing() {
    for (keep, left) in [(Keep::Mine, None), (Keep::Theirs, Some(6))] {
        let bench = Bench::start("removal", &Setup::default());
        bench.put_bytes("a", Bytes::from_static(b"before"));
        assert_eq!(read(&bench, "/data/a").unwrap(), b"before");
        bench.put_bytes("a", Bytes::from_static(b"theirs"));
        bench.runtime.block_on(bench.engine.remove(&path("/data/a"))).unwrap();
        assert_eq!(persist(&bench, "/data").unwrap_err().kind(), ErrorKind::Conflict);
        let found = conflicts(&bench, "/data").remove(0);
        assert_eq!(found.size, None);
        assert_eq!(content(&bench, &found).unwrap_err().kind(), ErrorKind::InvalidInput);
        resolve(&bench, "/data/a", keep).unwrap();
        has_no_conflict(&bench);
        assert_eq!(size_in_source(&bench, "a"), left);
        assert_eq!(read(&bench, "/data/a").is_ok(), left.is_some());
    }
}

#[test]
fn after_a_conflict_the_tree_shows_what_the_source_has_also_over_what_was_brought_from_here() {
    let bench = Bench::start("shown", &Setup::default());
    write(&bench, "/data/a", b"brought");
    persist(&bench, "/data").unwrap();
    assert_eq!(read(&bench, "/data/a").unwrap(), b"brought");
    bench.put_bytes("a", Bytes::from_static(b"theirs"));
    write(&bench, "/data/a", b"mine");
    assert_eq!(persist(&bench, "/data").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(read(&bench, "/data/a").unwrap(), b"theirs");
    let bench = bench.restart();
    assert_eq!(read(&bench, "/data/a").unwrap(), b"theirs");
    write(&bench, "/data/a", b"after theirs");
    eventually("it is replaced", || size_in_source(&bench, "a") == Some(12));
}

#[test]
fn of_several_conflicts_of_a_path_any_one_is_kept() {
    let bench = Bench::start("several", &Setup::default());
    collide(&bench, "a", b"first", b"theirs");
    let known = bench.runtime.block_on(bench.engine.stat(&path("/data/a"))).unwrap();
    assert_eq!(known.size, 6);
    bench.put_bytes("a", Bytes::from_static(b"their second"));
    write(&bench, "/data/a", b"second");
    eventually("the second one is in conflict", || conflicts(&bench, "/data/a").len() == 2);
    let found = conflicts(&bench, "/data/a");
    assert_eq!(found.iter().map(|it| content(&bench, it).unwrap()).collect::<Vec<_>>(), [&b"first"[..], b"second"]);
    resolve_one(&bench, "/data/a", &found[0].operation, Keep::Mine).unwrap();
    assert_eq!(read(&bench, "/data/a").unwrap(), b"first");
    assert_eq!(conflicts(&bench, "/data/a").len(), 1);
    resolve(&bench, "/data/a", Keep::Theirs).unwrap();
    has_no_conflict(&bench);
    assert_eq!(size_in_source(&bench, "a"), Some(5));
}

#[test]
fn what_was_settled_stays_so_after_a_restart() {
    let bench = Bench::start("restart", &Setup::default());
    collide(&bench, "a", b"mine!", b"theirs");
    collide(&bench, "b", b"mine of b", b"theirs");
    let _fails = attach_faulty(&bench, "put");
    bench.engine.detach(&path("/data")).unwrap();
    resolve(&bench, "/faulty/a", Keep::Mine).unwrap();
    resolve(&bench, "/faulty/b", Keep::Theirs).unwrap();
    let bench = bench.restart();
    assert_eq!(bench.engine.status().stage.conflicts, 0);
    assert_eq!(read(&bench, "/faulty/a").unwrap(), b"mine!");
    has_no_conflict(&bench);
    assert_eq!((size_in_source(&bench, "a"), size_in_source(&bench, "b")), (Some(5), Some(6)));
}

#[test]
fn what_cannot_be_settled_says_why_and_keeps_both() {
    let bench = Bench::start("refused", &Setup { deadline_s: 1.0, ..Setup::default() });
    collide(&bench, "dir/a", b"mine!", b"theirs");
    let operation = conflicts(&bench, "/data").remove(0).operation;
    let refused = |at: &str, keep| resolve_one(&bench, at, &operation, keep).unwrap_err();
    assert_eq!(refused("/data/b", Keep::Mine).kind(), ErrorKind::NotFound);
    let directory = refused("/data/dir", Keep::Theirs);
    assert_eq!(directory.kind(), ErrorKind::NotFound);
    assert!(directory.to_string().contains("penstock conflicts ls /data/dir"), "{directory}");
    let nowhere = refused("/other/a", Keep::Mine);
    assert!(nowhere.to_string().contains("penstock attach"), "{nowhere}");
    assert_eq!(resolve_one(&bench, "/data/dir/a", "none", Keep::Mine).unwrap_err().kind(), ErrorKind::InvalidInput);

    let mut spec = support::attachment("/reading", bench.source_spec(), Freshness::Seconds(60.0));
    spec.write = None;
    bench.runtime.block_on(bench.engine.attach(spec, false)).unwrap();
    assert_eq!(refused("/reading/dir/a", Keep::Mine).kind(), ErrorKind::ReadOnly);

    let fails = attach_faulty(&bench, "stat");
    let away = refused("/faulty/dir/a", Keep::Mine);
    assert_eq!(away.kind(), ErrorKind::Unavailable, "{away}");
    assert!(away.to_string().contains("both contents are kept"), "{away}");
    let query = ConflictQuery { below: false, look: true, after: None, limit: 10 };
    let page = bench.runtime.block_on(bench.engine.conflicts(&path("/faulty/dir/a"), &query)).unwrap();
    assert_eq!(page.conflicts.len(), 1);

    assert_eq!(bench.engine.status().stage.conflicts, 1);
    fails.store(false, Ordering::Relaxed);
    resolve_one(&bench, "/faulty/dir/a", &operation, Keep::Mine).unwrap();
    has_no_conflict(&bench);
    assert_eq!(size_in_source(&bench, "dir/a"), Some(5));
}

#[test]
fn an_upload_without_a_condition_is_noticed() {
    catches("a_conflict_says_what_is_kept_and_what_the_source_has_now", "condition");
}

#[test]
fn after_a_conflict_listings_say_what_the_source_has_also_those_from_before_the_file_was_there() {
    let bench = Bench::start("listed", &Setup { freshness: Freshness::Seconds(3600.0), ..Setup::default() });
    let listed = |bench: &Bench| -> Vec<(String, u64)> {
        let page = bench.runtime.block_on(bench.engine.walk(&path("/data"), None, 100)).unwrap();
        let files = page.entries.into_iter().filter(|entry| entry.kind == EntryKind::File);
        files.map(|entry| (entry.name, entry.size)).collect()
    };
    bench.put_bytes("z", Bytes::from_static(b"z"));
    assert_eq!(listed(&bench), [("z".into(), 1)]);
    // Not in that listing.
    write(&bench, "/data/dir/a", b"brought");
    persist(&bench, "/data").unwrap();
    bench.put_bytes("dir/a", Bytes::from_static(b"theirs"));
    write(&bench, "/data/dir/a", b"mine");
    assert_eq!(persist(&bench, "/data").unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(listed(&bench), [("dir/a".into(), 6), ("z".into(), 1)]);
    let page = bench.runtime.block_on(bench.engine.list(&path("/data"), None, 100)).unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["dir", "z"]);
    let bench = bench.restart();
    assert_eq!(listed(&bench), [("dir/a".into(), 6), ("z".into(), 1)]);
}
