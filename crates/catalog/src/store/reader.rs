//! What is read from the tables.

use std::ops::Bound;

use penstock_types::Result;
use redb::{ReadOnlyTable, ReadableTable};

use super::{Bytes, Kind, Listing, chunk_key, decode_listing, disk, listing_key};

type Row<'a> = redb::AccessGuard<'a, Bytes>;

/// A view of the tables at one moment.
pub(crate) struct Reader {
    pub(super) listings: ReadOnlyTable<Bytes, Bytes>,
    pub(super) chunks: ReadOnlyTable<Bytes, Bytes>,
    pub(super) place: String,
}

impl Reader {
    /// A complete listing, if there is one.
    pub(crate) fn listing(&self, scope: u32, kind: Kind, prefix: &[u8]) -> Result<Option<Listing>> {
        let row = self.listings.get(listing_key(scope, kind, prefix).as_slice());
        let row = row.map_err(|error| disk(&self.place, &error))?;
        Ok(row.and_then(|row| decode_listing(row.value())))
    }

    /// The chunk that holds `key` if any does: the last one that begins at or before it.
    pub(crate) fn chunk_around(&self, generation: u64, key: &[u8]) -> Result<Option<Row<'_>>> {
        let (low, high) = (chunk_key(generation, b""), chunk_key(generation, key));
        let mut rows = ReadableTable::range(&self.chunks, low.as_slice()..=high.as_slice())
            .map_err(|error| disk(&self.place, &error))?;
        let row = rows.next_back().transpose().map_err(|error| disk(&self.place, &error))?;
        Ok(row.map(|(_, row)| row))
    }

    /// The first keys of the chunks of a generation that begin at or after `key`, in order.
    pub(crate) fn first_keys_from<'a>(
        &'a self,
        generation: u64,
        key: &[u8],
    ) -> Result<impl Iterator<Item = Result<Vec<u8>>> + use<'a>> {
        let (low, high) = (chunk_key(generation, key), chunk_key(generation + 1, b""));
        let rows = ReadableTable::range(&self.chunks, low.as_slice()..high.as_slice())
            .map_err(|error| disk(&self.place, &error))?;
        Ok(rows.map(|row| row.map(|(key, _)| key.value()[8..].to_vec()).map_err(|error| disk(&self.place, &error))))
    }

    /// The chunks that begin after `key`, in order.
    pub(crate) fn chunks_after<'a>(
        &'a self,
        generation: u64,
        key: &[u8],
    ) -> Result<impl Iterator<Item = Result<Row<'a>>> + use<'a>> {
        let (low, high) = (chunk_key(generation, key), chunk_key(generation + 1, b""));
        let bounds = (Bound::Excluded(low.as_slice()), Bound::Excluded(high.as_slice()));
        let rows = ReadableTable::range::<&[u8]>(&self.chunks, bounds).map_err(|error| disk(&self.place, &error))?;
        Ok(rows.map(|row| row.map(|(_, row)| row).map_err(|error| disk(&self.place, &error))))
    }
}
