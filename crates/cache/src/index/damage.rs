//! Rows that are wrong though the database is whole: of another format, or damaged before they were written.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use penstock_types::{
    CacheConfig, Metrics, ObjectId, ObjectKey, PAGE_SIZE, SourceId, SystemClock, TierConfig, Version,
};
use redb::ReadableTable;

use super::*;
use crate::{Cache, CacheParts, RealDisk};

fn parts(home: &Path) -> CacheParts {
    CacheParts {
        config: CacheConfig {
            tiers: vec![TierConfig { directory: home.join("tier"), size_bytes: 1 << 24 }],
            free_space_floor: 0.0,
            scrub_interval_days: 0.0,
            allow_network_filesystem: false,
        },
        state_directory: home.join("state"),
        clock: Arc::new(SystemClock::default()),
        metrics: Metrics::default(),
        disk: Arc::new(RealDisk),
        seed: 0,
    }
}

fn id(object: u64) -> ObjectId {
    let key = ObjectKey::from(object.to_string().as_str());
    ObjectId { source: SourceId::from("test"), key, version: Version::from("1") }
}

fn cached(home: &Path, objects: u64) {
    let cache = Cache::open(parts(home)).unwrap();
    for object in 0..objects {
        let extent = cache.get_or_create(&id(object), PAGE_SIZE).unwrap();
        extent.fill(0, &[Bytes::from(vec![object as u8; PAGE_SIZE as usize])]).unwrap();
    }
    cache.close();
}

fn change(home: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let backend = IndexFile::open(&disk, &home.join("state/cache.redb")).unwrap();
    let database = redb::Builder::new().create_with_backend(backend).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

#[test]
fn an_index_of_another_format_is_set_aside() {
    let home = tempfile::tempdir().unwrap();
    cached(home.path(), 2);
    change(home.path(), |transaction| {
        let mut table = transaction.open_table(FACTS).unwrap();
        let mut row = table.get(THE_FACTS).unwrap().unwrap().value().to_vec();
        row[0] = record::ROW_FORMAT - 1;
        table.insert(THE_FACTS, &row[..]).unwrap();
    });
    let cache = Cache::open(parts(home.path())).unwrap();
    assert!(cache.get(&id(1)).is_none());
    assert!(home.path().join("state/cache.redb.damaged").exists());
    assert!(cache.usage().index_healthy);
}

#[test]
fn a_damaged_row_costs_its_extent_and_no_other_and_the_accounts_are_put_right() {
    let home = tempfile::tempdir().unwrap();
    cached(home.path(), 8);
    change(home.path(), |transaction| {
        let mut table = transaction.open_table(EXTENTS).unwrap();
        let number = table.iter().unwrap().nth(2).unwrap().unwrap().0.value();
        let mut row = table.get(number).unwrap().unwrap().value().to_vec();
        row[20] ^= 1;
        table.insert(number, &row[..]).unwrap();
    });
    let cache = Cache::open(parts(home.path())).unwrap();
    let found: Vec<u64> = (0..8).filter(|object| cache.get(&id(*object)).is_some()).collect();
    assert_eq!(found, [0, 1, 3, 4, 5, 6, 7]);
    (0..3).for_each(|_| cache.flush().unwrap());
    assert_eq!((cache.usage().tiers[0].used_bytes, cache.usage().extents), (7 * PAGE_SIZE, 7));
}

#[test]
fn a_damaged_stripe_takes_its_pages_with_it() {
    let home = tempfile::tempdir().unwrap();
    cached(home.path(), 2);
    change(home.path(), |transaction| {
        let mut table = transaction.open_table(STRIPES).unwrap();
        let key = table.iter().unwrap().next().unwrap().unwrap().0.value();
        table.insert(key, &[record::ROW_FORMAT, 1, 2, 3, 4, 5][..]).unwrap();
    });
    let cache = Cache::open(parts(home.path())).unwrap();
    let mut out = vec![0; PAGE_SIZE as usize];
    let whole = penstock_types::ByteRange::new(0, PAGE_SIZE);
    let extent = cache.get(&id(0)).unwrap();
    assert!(extent.read_verified(whole, &mut out).is_err());
    assert!(!extent.is_complete());
    extent.fill(0, &[Bytes::from(vec![0; PAGE_SIZE as usize])]).unwrap();
    extent.read_verified(whole, &mut out).unwrap();
    cache.get(&id(1)).unwrap().read_verified(whole, &mut out).unwrap();
}

#[test]
fn the_hash_of_an_object_keeps_its_parts_apart() {
    let of = |source: &str, key: &str, version: &str| {
        object_hash(&ObjectId {
            source: SourceId::from(source),
            key: ObjectKey::from(key),
            version: Version::from(version),
        })
    };
    assert_ne!(of("ab", "c", "d"), of("a", "bc", "d"));
    assert_ne!(of("a", "b", "cd"), of("a", "bc", "d"));
    // The index is persistent: the hash must never change.
    assert_eq!(of("s3://bucket", "key", "etag"), 3_779_171_877_178_461_381);
}
