//! A change that was laid over the listings of a source is taken away: what they say of its name may be older than what
//! everybody was shown of it.

use crate::ingest::Ingest;
use crate::keymap::Place;
use crate::known;
use crate::named;
use crate::scope::lock;
use crate::store::{Change, Kind};
use crate::view::{View, holder};

impl View {
    /// Forgets what is known of a path, and every listing that shows its name or a directory above it, also those under
    /// way. Durable when it returns, unless the catalog's disk fails.
    ///
    /// Cost: a look into the store for each directory above, a commit and a sync; whoever lists one of those next asks the
    /// source.
    pub async fn overtaken(&self, path: &str) {
        self.forget(path);
        let Ok(place) = self.place(path) else { return };
        let (Place::Name(key) | Place::Beside(key)) = &place else { return };
        let (scope, writer) = (&self.parts.scope, &self.parts.catalog.writer);
        let directory = holder(self.parts.prefix.as_bytes(), key);
        let under_way = scope.overtake(|ingest| known::ancestors(&directory).any(|above| above == ingest.order.prefix));
        let mut forgotten: Vec<_> =
            under_way.into_iter().map(|ingest| (ingest.store.clone(), ingest.forgetting())).collect();
        let store = writer.store();
        let listings = || {
            let reader = store.reader()?;
            let mut found = Vec::new();
            for (above, kind) in known::ancestors(&directory).flat_map(|it| [(it, Kind::Directory), (it, Kind::Tree)]) {
                found.extend(reader.listing(scope.number, kind, above)?.map(|listing| Change::Forget {
                    scope: scope.number,
                    kind,
                    prefix: above.to_vec(),
                    generation: listing.generation,
                }));
            }
            Ok(found)
        };
        match writer.guard(listings) {
            Ok(found) => forgotten.extend(found.into_iter().map(|change| (store.clone(), change))),
            Err(error) => writer.fail(&error),
        }
        if let Some(key) = named::row_key(scope.number, self.parts.prefix.as_bytes(), &place) {
            forgotten.push((store.clone(), Change::Name { key, row: Vec::new() }));
        }
        if let Err(error) = writer.make_durable(forgotten).await {
            tracing::warn!(%error, "what may be wrong could not be forgotten for good");
        }
    }
}

impl Ingest {
    /// It is not kept, once it is there.
    pub(crate) fn overtake(&self) {
        *lock(&self.overtaken) = true;
    }

    pub(crate) fn is_overtaken(&self) -> bool {
        *lock(&self.overtaken)
    }

    /// What has the catalog forget it, if it is kept.
    pub(crate) fn forgetting(&self) -> Change {
        let (scope, kind, prefix) = (self.order.scope, self.order.kind, self.order.prefix.clone());
        Change::Forget { scope, kind, prefix, generation: self.generation }
    }
}
