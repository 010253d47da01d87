//! What callers pass back: cursors of listings, which may be anything.

use penstock_types::ErrorKind;
use proptest::prelude::*;

use crate::world::{Corpus, Policy, World, path};

proptest! {
    #[test]
    fn any_text_as_a_cursor_is_refused_or_goes_on(
        texts in prop::collection::vec("\\PC{0,20}|[0-9]{0,3}:[0-9a-f]{1,17}[=+][0-9,]{0,5}:[a-z%@/]{0,9}", 30),
    ) {
        let corpus = Corpus::new("cursors", &[("a", 10), ("d/b", 10), ("d/c", 10)]);
        let world = World::new(&corpus, Policy::default(), |_| None);
        let engine = world.start().unwrap();
        for text in &texts {
            let listed = world.answered("a page", engine.list(&path(""), Some(text), 2));
            let walked = world.answered("a page", engine.walk(&path(""), Some(text), 2));
            for answer in [listed, walked] {
                match answer {
                    Ok(page) => assert!(page.entries.len() <= 2, "{page:?}"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}"),
                }
            }
        }
        world.stop(engine);
    }
}
