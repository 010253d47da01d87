//! Telling the kernels of changes: what a mount of the tree was told of a path is taken back before a change of it is
//! acknowledged.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use futures_util::future::join_all;
use penstock_types::{ObjectKey, TreePath};

use crate::attachment::Attached;
use crate::engine::Engine;
use crate::kernel::Mounted;

/// The mounts that show the tree, as long as they do.
#[derive(Default)]
pub(crate) struct Watchers(Mutex<Vec<Weak<Mounted>>>);

impl Watchers {
    /// Adds a mount; those that are gone are forgotten.
    pub(crate) fn add(&self, mounted: &Arc<Mounted>) {
        let mut known = self.known();
        known.retain(|known| known.strong_count() > 0);
        known.push(Arc::downgrade(mounted));
    }

    fn all(&self) -> Vec<Arc<Mounted>> {
        self.known().iter().filter_map(Weak::upgrade).collect()
    }

    fn known(&self) -> MutexGuard<'_, Vec<Weak<Mounted>>> {
        self.0.lock().expect("no panic while mounts are listed")
    }
}

impl Engine {
    /// What is at `path` has changed: returns when the kernel of every mount that may have been told otherwise, there or
    /// wherever else the same object is shown, has let go of that, or believes nothing any more. About a second at most;
    /// nothing where no mount was told of the directory.
    pub async fn announce(&self, path: &TreePath) {
        let mounted = self.watchers.all();
        if mounted.is_empty() {
            return;
        }
        let places = self.places_of(path);
        let told = mounted.iter().flat_map(|mounted| places.iter().filter_map(|place| mounted.announce(place)));
        join_all(told.collect::<Vec<_>>()).await;
    }

    /// Every path at which the object of a path is shown; the path itself is the first.
    fn places_of(&self, path: &TreePath) -> Vec<TreePath> {
        let mut places = vec![path.clone()];
        let Some((changed, inner)) = self.tree.find(path) else { return places };
        let Ok(key) = changed.view.key_of(&inner) else { return places };
        for other in self.tree.all().iter().filter(|other| other.scope == changed.scope) {
            if !Arc::ptr_eq(other, &changed)
                && let Some(place) = place_in(other, (&changed, &inner), &key)
                && self.tree.find(&place).is_some_and(|(owner, _)| Arc::ptr_eq(&owner, other))
            {
                places.push(place);
            }
        }
        places
    }
}

/// The path in an attachment of the key of a path of another one.
fn place_in(attached: &Attached, (known, inner): (&Attached, &str), key: &ObjectKey) -> Option<TreePath> {
    let inner = match attached.spec.prefix == known.spec.prefix {
        true => inner,
        // Most keys are paths as they are; that this one is shows below.
        false => key.as_str()?.strip_prefix(attached.spec.prefix.as_str())?,
    };
    let place = TreePath::parse(&format!("{}/{inner}", attached.path)).ok()?;
    let inner = place.below(&attached.path)?;
    (attached.view.key_of(inner).ok()? == *key).then_some(place)
}
