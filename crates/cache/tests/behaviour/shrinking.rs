//! A cache that is told to become smaller.

use std::sync::Arc;

use crate::support::{Home, MIB, cached, id};

#[test]
fn shrinking_evicts_until_the_target_is_met_and_no_further() {
    let home = Home::new(8 * MIB);
    let cache = home.open();
    for object in 0..8 {
        cached(&cache, object, MIB).unwrap();
    }
    assert_eq!(cache.shrink(8 * MIB).unwrap(), 0);
    assert_eq!(cache.shrink(3 * MIB).unwrap(), 5 * MIB);
    assert_eq!(cache.usage().tiers[0].used_bytes, 3 * MIB);
    assert_eq!(cache.entries(None, 100).len(), 3);
}

#[test]
fn shrinking_takes_from_the_slowest_tier_first() {
    let home = Home::with_tiers(&[2 * MIB, 4 * MIB]);
    let cache = home.open();
    for object in 0..6 {
        cached(&cache, object, MIB).unwrap();
    }
    cache.shrink(2 * MIB).unwrap();
    let used: Vec<u64> = cache.usage().tiers.iter().map(|tier| tier.used_bytes).collect();
    assert_eq!(used, [2 * MIB, 0]);
}

#[test]
fn what_is_pinned_or_lent_stays_though_the_target_is_missed_for_it() {
    let home = Home::new(8 * MIB);
    let cache = home.open();
    for object in 0..4 {
        cached(&cache, object, MIB).unwrap();
    }
    let pinned = id(1);
    cache.set_pins(Arc::new(move |object| *object == pinned));
    let lease = cache.get(&id(2)).unwrap().lend().unwrap();
    assert_eq!(cache.shrink(0).unwrap(), 2 * MIB);
    assert_eq!(cache.usage().tiers[0].used_bytes, 2 * MIB);
    drop(lease);
    assert_eq!(cache.shrink(0).unwrap(), MIB);
}

#[test]
fn a_restarted_cache_shrinks_what_it_has_not_looked_at_yet() {
    let home = Home::new(8 * MIB);
    {
        let cache = home.open();
        for object in 0..6 {
            cached(&cache, object, MIB).unwrap();
        }
        cache.close();
    }
    let cache = home.open();
    assert_eq!(cache.shrink(MIB).unwrap(), 5 * MIB);
}
