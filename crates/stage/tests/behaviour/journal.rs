//! The journal stays short, and what is alive in it stays.

use penstock_stage::Base;
use penstock_types::Version;

use crate::support::*;

#[test]
fn the_journal_stays_short_while_ten_thousand_changes_come_and_go() {
    let bench = Bench::default();
    let stage = bench.open();
    let kept: Vec<_> = (0..3).map(|number| (format!("kept {number}"), content(number, 1_000))).collect();
    kept.iter().for_each(|(key, data)| drop(put(&stage, key, data)));
    let conflicting = put_large(&stage, "conflict", &content(9, 5_000));
    let held: Vec<_> = (0..4).map(|_| stage.next().unwrap()).collect();
    stage.conflict(&conflicting, conflict());
    for round in 0..1_000 {
        for number in 0..9 {
            put(&stage, &format!("{round}/{number}"), &content(number, 100));
        }
        remove(&stage, &format!("{round}/gone"), Base::Version(Version::from("v")));
        while bring(&stage, "v1", i64::from(round)).is_some() {}
        stage.expire(i64::from(round) + 2_000_000);
        assert!(bench.segments().len() <= bench.bounds.segments_max + 1, "round {round}");
    }
    assert!(bench.segments().len() <= bench.bounds.segments_kept);
    assert_eq!((bench.files().len(), stage.status().files), (4, 3));
    assert_eq!(bench.metrics.stage_commits.get(), 10_004);
    let journal_bytes: u64 =
        paths_in(&bench.root().join("journal")).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(bench.metrics.journal_bytes.get(), journal_bytes.cast_signed());
    drop(held);
    stage.close();
    let stage = bench.open();
    assert!(kept.iter().all(|(key, data)| seen(&stage, key).unwrap() == *data));
    assert_eq!(stage.status().conflicted[0].operation, conflicting.operation().to_string());
    assert_eq!(bytes_of(&stage.find(SCOPE, &"conflict".into(), &conflicting.version()).unwrap()), content(9, 5_000));
}

#[test]
fn what_is_said_again_at_the_end_of_the_journal_is_all_that_was_known() {
    let bench = Bench::default();
    let stage = bench.open();
    put(&stage, "a", &content(1, 2_000));
    let first = stage.next().unwrap();
    put(&stage, "a", &content(2, 2_000));
    stage.upload_begun(&first, &penstock_types::UploadId("u".into()));
    put(&stage, "settled", &content(3, 10));
    let settled = stage.next().unwrap();
    stage.settle(&settled, stored("v1", 10, 100), Some(1_000));
    // So many that every file of the journal until now is let go of.
    for number in 0..40 {
        put(&stage, &format!("f{number}"), &content(number, 10_000));
        stage.expire(0);
    }
    assert!(bench.segments()[0].file_name().unwrap().to_str().unwrap() > "0000000000000002");
    assert!(first.is_synced());
    let after = bench.after_a_kill();
    let stage = after.open();
    assert_eq!(seen(&stage, "a").unwrap(), content(2, 2_000));
    let again = stage.next().unwrap();
    assert_eq!(
        (again.operation(), again.upload()),
        (first.operation(), Some((penstock_types::UploadId("u".into()), vec![])))
    );
    assert_eq!((bytes_of(&again), again.base()), (content(1, 2_000).to_vec(), Base::Absent));
    assert_eq!(stage.pending_below(SCOPE, b"a")[1].base(), Base::Staged(first.operation()));
    assert_eq!(laid(&stage, "settled").unwrap().settled, Some(100));
    stage.settle(&again, stored("v9", 10, 100), Some(0));
    assert_eq!(stage.pending_below(SCOPE, b"a")[0].base(), Base::Version(Version::from("v9")));
    for number in 0..40 {
        assert_eq!(seen(&stage, &format!("f{number}")).unwrap(), content(number, 10_000));
    }
}

#[test]
fn commits_shorten_the_journal_themselves_where_nobody_keeps_house() {
    let bench = Bench::default();
    let stage = bench.open();
    for number in 0..100 {
        put(&stage, &format!("f{number}"), &content(number, 10_000));
        assert!(bench.segments().len() <= bench.bounds.segments_max + 1);
    }
    let stage = {
        stage.close();
        bench.open()
    };
    assert!((0..100).all(|number| seen(&stage, &format!("f{number}")).unwrap() == content(number, 10_000)));
}

#[test]
fn files_of_the_journal_are_made_ahead_where_many_are_needed_and_used_again() {
    let spares = |bench: &Bench| paths_in(&bench.root().join("journal")).len() - bench.segments().len();
    let counted = |bench: &Bench| {
        let there = paths_in(&bench.root().join("journal"));
        let bytes: u64 = there.iter().map(|path| path.metadata().unwrap().len()).sum();
        assert_eq!(bench.metrics.journal_bytes.get(), bytes.cast_signed());
    };
    let bench = Bench::default();
    let stage = bench.open();
    put(&stage, "a", &content(1, 100));
    assert!(!stage.wants_preparation(), "who writes little needs none");
    put(&stage, "b", &content(2, 10_000));
    assert!(stage.wants_preparation());
    stage.prepare();
    assert_eq!((stage.wants_preparation(), spares(&bench)), (false, 2));
    counted(&bench);
    put(&stage, "c", &content(3, 40_000));
    put(&stage, "d", &content(4, 40_000));
    assert_eq!((bench.segments().len(), spares(&bench), stage.wants_preparation()), (2, 1, true));
    // What is let go of is used again, and no more of it is kept than there is use for.
    for number in 0..60 {
        put(&stage, &format!("e{number}"), &content(number, 40_000));
        bring(&stage, "v1", 0).unwrap();
        stage.expire(0);
        counted(&bench);
    }
    assert!((2..=8).contains(&spares(&bench)), "{} spares", spares(&bench));
    put(&stage, "last", &content(5, 40_000));
    let after = bench.after_a_kill();
    let stage = after.open();
    counted(&after);
    assert_eq!(seen(&stage, "last").unwrap(), content(5, 40_000));
}
