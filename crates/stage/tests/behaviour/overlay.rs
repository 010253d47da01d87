//! What changes lay over the names of a source.

use bytes::Bytes;
use penstock_stage::{Base, Settled};
use penstock_types::Laid;

use crate::support::*;

#[test]
fn the_overlay_of_a_scope_is_one_live_value_and_shows_nothing_of_others() {
    let (_bench, stage) = alone();
    let (overlay, other) = (stage.overlay(SCOPE), stage.overlay("other"));
    assert!(overlay.is_empty() && other.is_empty());
    put(&stage, "a", &content(1, 10));
    let elsewhere = penstock_stage::Written { target: target_in("other", "a"), ..written("a") };
    let second = stage.commit_small(content(2, 20), elsewhere).unwrap();
    assert_eq!(overlay.at(b"a").unwrap().attributes.unwrap().size, 10);
    assert_eq!(other.at(b"a").unwrap().attributes, second.attributes());
    assert_eq!((overlay.at(b"b"), stage.overlay("third").is_empty()), (None, true));
    stage.settle(&stage.next().unwrap(), Settled::Removed { moment: 0 }, Some(0));
    stage.expire(0);
    assert!(overlay.is_empty() && !other.is_empty());
}

#[test]
fn what_waits_hides_whatever_the_source_says_and_what_was_settled_what_it_said_before() {
    let (_bench, stage) = alone();
    let change = put(&stage, "a", &content(1, 10));
    let staged = laid(&stage, "a").unwrap();
    assert_eq!(staged, Laid { attributes: change.attributes(), settled: None, at: None });
    assert!(staged.hides(i64::MAX));
    let given = stage.next().unwrap();
    stage.settle(&given, stored("v1", 10, 500), Some(1_000));
    let settled = laid(&stage, "a").unwrap();
    assert_eq!(settled.attributes.as_ref().unwrap().version.as_str(), "v1");
    assert!(settled.hides(500) && !settled.hides(501));
}

#[test]
fn what_was_settled_leaves_when_its_time_is_over_also_after_a_restart() {
    let bench = Bench::default();
    let stage = bench.open();
    for key in ["a", "b", "for ever"] {
        put(&stage, key, &content(1, 10));
    }
    let settle = |forget_after: Option<i64>| {
        let change = stage.next().unwrap();
        stage.settle(&change, stored("v1", 10, 500), forget_after);
    };
    [Some(1_000), Some(5_000), None].into_iter().for_each(settle);
    stage.expire(1_499);
    assert!(laid(&stage, "a").is_some());
    let copy = bench.after_a_kill();
    for stage in [stage, copy.open()] {
        assert_eq!(laid(&stage, "a").unwrap().settled, Some(500));
        stage.expire(1_500);
        assert_eq!((laid(&stage, "a"), laid(&stage, "b").is_some()), (None, true));
        stage.expire(i64::MAX);
        assert_eq!((laid(&stage, "b"), laid(&stage, "for ever").is_some()), (None, true));
    }
}

#[test]
fn a_removal_shows_nothing_until_something_is_created_there() {
    let (_bench, stage) = alone();
    remove(&stage, "a", Base::Unconditional);
    let removal = stage.next().unwrap();
    assert_eq!(laid(&stage, "a"), Some(Laid { attributes: None, settled: None, at: None }));
    put(&stage, "a", &content(1, 10));
    assert_eq!(seen(&stage, "a").unwrap(), content(1, 10));
    stage.settle(&removal, Settled::Removed { moment: 1 }, Some(10));
    assert_eq!(seen(&stage, "a").unwrap(), content(1, 10));
    remove(&stage, "a", Base::Unconditional);
    let removal = stage.next().unwrap();
    stage.settle(&removal, Settled::Removed { moment: 2 }, Some(10));
    assert_eq!(laid(&stage, "a"), Some(Laid { attributes: None, settled: Some(2), at: None }));
}

#[test]
fn the_next_change_is_found_from_any_key_on() {
    let (_bench, stage) = alone();
    for key in ["b", "d/x", "d/y"] {
        put(&stage, key, &content(1, 10));
    }
    let overlay = stage.overlay(SCOPE);
    let next = |from: &str, inclusive| overlay.next(from.as_bytes(), inclusive).map(|(key, _)| key);
    assert_eq!(next("", true), Some(Bytes::from("b")));
    assert_eq!(next("b", true), Some(Bytes::from("b")));
    assert_eq!(next("b", false), Some(Bytes::from("d/x")));
    assert_eq!(next("d/x0", true), Some(Bytes::from("d/y")));
    assert_eq!(next("d/y", false), None);
}
