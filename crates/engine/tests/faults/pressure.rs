//! Memory that is short: back-pressure, not failure.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use penstock_engine::ReadHint;
use penstock_types::ByteRange;

use crate::door::read_as_a_door;
use crate::world::{Corpus, KIB, Policy, World};

#[test]
fn readers_of_what_cannot_be_cached_share_a_budget_that_is_too_small_for_all_their_windows() {
    let corpus = Arc::new(Corpus::new("pressure", &[("large", 24 * 1024 * KIB)]));
    let policy = Policy { memory_bytes: 16 * 1024 * KIB, deadline: Duration::from_secs(6), ..Policy::default() };
    let world = World::new(&corpus, policy, |_| None);
    let engine = world.start().unwrap();
    let readers = (0..48).map(|_| {
        let stretches: Vec<_> = (0..12).map(|n| ByteRange::new(n * 2048 * KIB, (n + 1) * 2048 * KIB)).collect();
        let (corpus, engine) = (Arc::clone(&corpus), Arc::clone(&engine));
        // Tasks of their own, so that they really meet.
        let read = async move { read_as_a_door(&corpus, &engine, "large", &stretches, ReadHint::Auto).await };
        world.corpus.runtime.spawn(read)
    });
    for answer in world.answered("every reader", join_all(readers)) {
        answer.unwrap().unwrap();
    }
    world.settle();
    world.stop(engine);
}
