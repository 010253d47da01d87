//! Mode, owner and time of files that another home has given them: what is known of them here, and what asking costs.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use penstock_engine::WriteOptions;
use penstock_types::{AttributeChange, NodeId, ObjectKey, Posix, TreePath};

use crate::mount::Mount;
use crate::support::{self, Bench, Setup};

const ROOT: NodeId = NodeId::ROOT;
const PAST_FRESHNESS: Duration = Duration::from_secs(61);

fn mode(mode: u16) -> Posix {
    Posix { mode: Some(mode), ..Posix::default() }
}

impl Mount {
    /// A home whose source gets a script with a mode, and other files of which nobody says anything.
    fn of_scripts(name: &str, others: usize) -> Self {
        let mount = Self::of(Bench::start(name, &Setup::default()), "/data", true);
        mount.bring("script", b"#!/bin/sh");
        mount.allow("script", 0o755);
        (0..others).for_each(|number| mount.bring(&format!("other-{number}"), b"other"));
        mount
    }

    /// A new home over the same source.
    fn elsewhere(&self, posix: bool) -> Self {
        Self::of(self.bench.elsewhere(posix), "/data", true)
    }

    fn bring(&self, name: &str, data: &'static [u8]) {
        let (at, data) = (self.bench.path(name), Bytes::from_static(data));
        let written = self.bench.engine.write_small(&at, data, WriteOptions::default());
        self.bench.runtime.block_on(written).unwrap();
        support::persist(&self.bench, "/data").unwrap();
    }

    fn allow(&self, name: &str, bits: u16) {
        let change =
            AttributeChange { size: None, posix: mode(bits), shown: mode(0o644), ..AttributeChange::default() };
        let node = self.found(ROOT, name).node;
        self.wait(self.tree.set_attributes(node, change)).unwrap();
        support::persist(&self.bench, "/data").unwrap();
    }

    fn mode_of(&self, name: &str) -> Option<u16> {
        self.found(ROOT, name).posix.mode
    }

    /// Names and modes of the root, as `ls -l` gets them.
    fn modes(&self) -> Vec<(String, Option<u16>)> {
        let names = self.names(ROOT).into_iter();
        names.map(|entry| (entry.name.to_string(), entry.looked.found.unwrap().posix.mode)).collect()
    }

    fn stored(&self, name: &str) -> Posix {
        let key = ObjectKey::from(name);
        Posix::of(&self.bench.runtime.block_on(self.bench.outside.stat(&key)).unwrap().metadata)
    }

    fn requests(&self) -> u64 {
        self.bench.metrics.source_requests.get()
    }

    fn looks(&self) -> u64 {
        self.bench.metrics.source_stat_requests.get()
    }
}

#[test]
fn without_the_option_a_listing_asks_nothing_of_single_files_and_shows_no_modes() {
    let there = Mount::of_scripts("elsewhere-listed", 3);
    let here = there.elsewhere(false);
    assert!(here.modes().iter().all(|(_, mode)| mode.is_none()));
    assert_eq!((here.modes().len(), here.looks(), here.requests()), (4, 0, 1));
}

#[test]
fn an_answer_about_one_file_brings_its_mode_at_no_further_request_and_it_stays() {
    let there = Mount::of_scripts("elsewhere-looked", 1);
    let here = there.elsewhere(false);
    let cost = |name: &str| {
        let before = here.requests();
        here.bench.runtime.block_on(here.bench.engine.stat(&here.bench.path(name))).unwrap();
        here.requests() - before
    };
    let plain = cost("other-0");
    assert_eq!((cost("script"), plain), (2, 2), "a HEAD, and a LIST of what may be below the name");
    assert_eq!((here.mode_of("script"), here.mode_of("other-0")), (Some(0o755), None));
    let before = here.requests();
    assert_eq!(here.modes(), [("other-0".to_owned(), None), ("script".to_owned(), Some(0o755))]);
    assert_eq!(here.requests() - before, 1, "the listing");
    let Mount { bench, tree } = here;
    drop(tree);
    let here = Mount::of(bench.restart(), "/data", true);
    assert_eq!(here.mode_of("script"), Some(0o755), "after a restart");
    here.bring("script", b"#!/bin/true");
    assert_eq!((here.stored("script"), here.mode_of("script")), (mode(0o755), Some(0o755)), "a new content keeps it");
}

#[test]
fn with_the_option_each_version_is_asked_for_once_whoever_asks_and_also_over_a_restart() {
    let there = Mount::of_scripts("elsewhere-asked", 99);
    let here = there.elsewhere(true);
    let mut shown: Vec<(String, Option<u16>)> = (0..99).map(|number| (format!("other-{number}"), None)).collect();
    shown.push(("script".to_owned(), Some(0o755)));
    shown.sort();
    assert_eq!(here.modes(), shown);
    assert_eq!(here.looks(), 100);
    assert_eq!((here.modes(), here.mode_of("script"), here.mode_of("other-7")), (shown.clone(), Some(0o755), None));
    here.bench.clock.advance(PAST_FRESHNESS);
    assert_eq!(here.modes(), shown);
    assert_eq!(here.looks(), 100, "a newer listing has the same versions");

    there.allow("other-7", 0o600);
    there.allow("script", 0o700);
    here.bench.clock.advance(PAST_FRESHNESS);
    let changed = shown.iter().map(|(name, mode)| match name.as_str() {
        "other-7" => (name.clone(), Some(0o600)),
        "script" => (name.clone(), Some(0o700)),
        _ => (name.clone(), *mode),
    });
    let changed: Vec<_> = changed.collect();
    assert_eq!(here.modes(), changed);
    assert_eq!(here.looks(), 102, "two new versions");

    let Mount { bench, tree } = here;
    drop(tree);
    let here = Mount::of(bench.restart(), "/data", true);
    let before = here.looks();
    assert_eq!((here.modes(), here.looks()), (changed, before), "after a restart");
}

#[test]
fn with_the_option_a_lookup_shows_the_mode_and_many_at_once_ask_once() {
    let there = Mount::of_scripts("elsewhere-once", 1);
    let here = there.elsewhere(true);
    let (engine, at) = (&here.bench.engine, here.bench.path("script"));
    // From a walk, names are known and what was said of them is not.
    here.bench.runtime.block_on(engine.walk(&TreePath::parse("/data").unwrap(), None, 100)).unwrap();
    assert_eq!(here.looks(), 0);
    let entries = here.bench.runtime.block_on(join_all((0..20).map(|_| engine.stat(&at))));
    assert!(entries.iter().all(|entry| entry.as_ref().unwrap().posix.mode == Some(0o755)));
    assert_eq!((here.mode_of("script"), here.looks()), (Some(0o755), 1));
}

#[test]
fn with_the_option_what_is_written_here_is_not_asked_for_and_a_new_content_keeps_the_mode() {
    let there = Mount::of_scripts("elsewhere-written", 0);
    let here = there.elsewhere(true);
    here.bring("new", b"new");
    let before = here.looks();
    here.bench.clock.advance(PAST_FRESHNESS);
    assert_eq!(here.modes(), [("new".to_owned(), None), ("script".to_owned(), Some(0o755))]);
    assert_eq!(here.looks() - before, 1, "for the script");
    here.bring("script", b"#!/bin/true");
    assert_eq!((here.stored("script"), here.mode_of("script")), (mode(0o755), Some(0o755)));
}
