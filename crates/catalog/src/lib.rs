//! The catalog: attributes and listings of sources, kept. Owns what is known of names, for how long it is believed,
//! and the mapping between keys and paths; reads no content but the manifests of sets, and never decides what is cached.

mod adorned;
mod ask;
mod catalog;
mod chunk;
mod cursor;
mod driver;
mod flights;
mod hot;
mod ingest;
mod keymap;
mod known;
mod laid_names;
mod laid_rows;
mod named;
mod overtaken;
mod pages;
mod present;
mod ranges;
mod scan;
mod scope;
mod sets;
mod shadows;
mod snapshot;
mod split;
mod store;
mod timeline;
mod view;
mod writer;

pub use catalog::Catalog;
pub use sets::SetPlace;
pub use snapshot::{Change, Snapshot, SnapshotEntry, SnapshotFacts, SnapshotWriter};
pub use view::View;

use penstock_types::{ObjectAttributes, ObjectKey};

/// What a path names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// Keys below it exist, or a marker says so.
    Directory,
    /// An object.
    File {
        /// Its full key in the source.
        key: ObjectKey,
        /// Size, time and version.
        attributes: ObjectAttributes,
    },
}

/// An item of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedItem {
    /// One component in a list; the path below the listed directory in a walk.
    pub name: String,
    /// What it is.
    pub item: Item,
}

/// A part of a listing, in an order that stays the same.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ItemPage {
    /// The items.
    pub items: Vec<NamedItem>,
    /// Where to go on: pass it as `after`. `None` on the last page. Opaque.
    pub next: Option<String>,
}

#[cfg(test)]
extern crate self as penstock_catalog;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
