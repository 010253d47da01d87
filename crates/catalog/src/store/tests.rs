use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

fn listing(generation: u64, sent: Moment) -> Listing {
    Listing { generation, sent, epoch: 0, entries: 1 }
}

fn finish(store: &Store, generation: u64) -> Vec<u64> {
    let changes = vec![
        Change::Begin { generation },
        Change::Chunk { generation, first: b"a".to_vec(), row: vec![1] },
        Change::Finish { scope: 1, kind: Kind::Tree, prefix: Vec::new(), listing: listing(generation, 9) },
    ];
    store.apply(changes).unwrap()
}

proptest! {
    #[test]
    fn arbitrary_bytes_as_a_listing_row_are_refused_or_read(row in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = decode_listing(&row);
    }

    #[test]
    fn a_listing_comes_back_from_its_row(generation in any::<u64>(), sent in any::<i64>()) {
        let row = postcard::to_stdvec(&listing(generation, sent)).unwrap();
        prop_assert_eq!(decode_listing(&row), Some(listing(generation, sent)));
    }
}

#[test]
fn a_new_listing_takes_the_place_of_the_old_one_whose_chunks_are_swept() {
    let store = Store::in_memory(0).unwrap();
    assert!(finish(&store, 1).is_empty());
    assert_eq!(finish(&store, 2), [1]);
    assert_eq!(store.loose_generations().unwrap(), [1]);
    assert!(store.sweep(1).unwrap());
    assert!(store.loose_generations().unwrap().is_empty());
    let reader = store.reader().unwrap();
    assert!(reader.chunk_around(1, b"z").unwrap().is_none());
    assert!(reader.chunk_around(2, b"z").unwrap().is_some());
    assert_eq!(reader.listing(1, Kind::Tree, b"").unwrap().unwrap().generation, 2);
    assert_eq!(store.next_generation().unwrap(), 3);
}

#[test]
fn no_generation_is_given_out_again_whatever_order_they_began_in() {
    let store = Store::in_memory(0).unwrap();
    store.apply(vec![Change::Begin { generation: 7 }]).unwrap();
    store.apply(vec![Change::Begin { generation: 5 }]).unwrap();
    assert_eq!(store.next_generation().unwrap(), 8);
}

#[test]
fn forgetting_a_scope_leaves_the_others() {
    let store = Store::in_memory(0).unwrap();
    assert_eq!((store.scope("a").unwrap(), store.scope("b").unwrap(), store.scope("a").unwrap()), (0, 1, 0));
    finish(&store, 1);
    assert!(store.apply(vec![Change::ForgetScope { scope: 0 }]).unwrap().is_empty());
    assert_eq!(store.apply(vec![Change::ForgetScope { scope: 1 }]).unwrap(), [1]);
    assert_eq!(store.reader().unwrap().listing(1, Kind::Tree, b"").unwrap(), None);
}

#[test]
fn a_clock_that_was_turned_back_between_runs_begins_a_new_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let epoch_at = |now| {
        let store = Store::open(&path, now).unwrap();
        store.flush(now + 10).unwrap();
        store.epoch()
    };
    assert_eq!([epoch_at(100), epoch_at(200), epoch_at(150), epoch_at(170)], [0, 0, 1, 1]);
}

#[test]
fn a_damaged_file_is_set_aside_and_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.fill(0xa5),
        |bytes| bytes.truncate(5000),
        |bytes| bytes[..64].fill(0),
        |bytes| {
            let half = bytes.len() / 2;
            bytes[4096..half].fill(0x5a);
        },
    ];
    for damage in damages {
        finish(&Store::open(&path, 0).unwrap(), 1);
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let store = Store::open(&path, 0).unwrap();
        finish(&store, 2);
        assert_eq!(store.reader().unwrap().listing(1, Kind::Tree, b"").unwrap().unwrap().generation, 2);
        assert!(directory.path().join("catalog.redb.damaged").exists());
        std::fs::remove_file(directory.path().join("catalog.redb.damaged")).unwrap();
    }
}

#[test]
fn only_its_owner_can_read_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let _store = Store::open(&path, 0).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_another_process_has_open_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let _held = Store::open(&path, 0).unwrap();
    assert_eq!(Store::open(&path, 0).map(|_| ()).unwrap_err().kind(), ErrorKind::Busy);
    assert!(!directory.path().join("catalog.redb.damaged").exists());
}
