//! Every metric of a node, defined once. Counters are plain atomics; encoding is `prometheus-client`'s.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

macro_rules! metrics {
    (counters { $($(#[doc = $cdoc:literal])* $counter:ident;)* } gauges { $($(#[doc = $gdoc:literal])* $gauge:ident;)* }) => {
        /// Counters and gauges of one node. Clones share the values.
        #[derive(Clone, Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $cdoc])* pub $counter: Counter<u64, AtomicU64>,)*
            $($(#[doc = $gdoc])* pub $gauge: Gauge,)*
        }

        impl Metrics {
            /// A registry that shows these values under `penstock_…`.
            pub fn registry(&self) -> Registry {
                let mut registry = Registry::with_prefix("penstock");
                $(registry.register(stringify!($counter), concat!($($cdoc),*).trim(), self.$counter.clone());)*
                $(registry.register(stringify!($gauge), concat!($($gdoc),*).trim(), self.$gauge.clone());)*
                registry
            }

            /// Name and value of every metric, in the order of definition.
            pub fn snapshot(&self) -> Vec<(&'static str, i64)> {
                vec![
                    $((stringify!($counter), i64::try_from(self.$counter.get()).unwrap_or(i64::MAX)),)*
                    $((stringify!($gauge), self.$gauge.get()),)*
                ]
            }
        }
    };
}

metrics! {
    counters {
        /// Requests sent to sources, retries included
        source_requests;
        /// Listing requests sent to sources
        source_list_requests;
        /// Stat requests sent to sources
        source_stat_requests;
        /// Read requests sent to sources
        source_read_requests;
        /// Requests that were sent again after a transient failure
        source_retries;
        /// Requests that sources answered with 429 or 503
        source_throttled;
        /// Requests that failed for good
        source_failures;
        /// Bytes of object content received from sources
        source_bytes;
        /// Bytes of content asked for by readers
        read_bytes;
        /// Bytes of content that were in the cache when a reader asked
        cache_hit_bytes;
        /// Opens answered from the cache alone, without a request
        open_hits;
        /// Opens in all
        opens;
        /// Bytes written into extent files
        cache_fill_bytes;
        /// Bytes evicted from the cache
        cache_evicted_bytes;
        /// Extents evicted from the cache
        cache_evicted_extents;
        /// Pages whose checksum did not match; dropped and fetched again
        cache_corrupt_pages;
        /// Failed operations on the cache disk
        cache_disk_errors;
        /// Bytes served without caching, for lack of space or a working disk
        uncached_bytes;
        /// Pages checked by the scrub
        scrub_pages;
        /// Pages checked before they were lent after an unclean boot
        verified_pages;
        /// Catalog answers that needed no request
        catalog_hits;
        /// Catalog answers that needed a request
        catalog_misses;
        /// Files fetched ahead because a directory was read in order
        prefetched_files;
        /// Requests of clients served on the data socket
        client_requests;
        /// Versions found gone after bytes of them had been delivered
        stale_versions;
        /// Requests of the kernel to mounts, of every kind
        kernel_requests;
        /// Names that the kernel looked up in mounts
        kernel_lookups;
        /// Files that the kernel opened in mounts
        kernel_opens;
        /// Opens of files in mounts that the kernel reads by itself from then on
        kernel_lent_opens;
        /// Files that the kernel was given to read by itself: once for all opens of a file that is kept ready
        kernel_lent_files;
        /// Reads of file content that mounts answered
        kernel_reads;
        /// Reads of file content that mounts had to wait for
        kernel_late_reads;
        /// Writes of file content that mounts were asked for
        kernel_writes;
        /// Bytes of file content that mounts took
        kernel_written_bytes;
        /// Bytes that mounts copied from file to file, without passing through a program
        kernel_copied_bytes;
        /// Names, and lists of names, that mounts took back from the kernel because they had changed
        kernel_expirations;
        /// Changes (files and removals) that were acknowledged by the stage
        stage_commits;
        /// Writes that waited because the stage was filling up or full
        stage_waits;
        /// Milliseconds that they waited, together
        stage_wait_ms;
        /// Syncs of the journal; changes that are committed at the same moment share one
        journal_syncs;
        /// Failed operations on the disk of the stage
        stage_disk_errors;
        /// Objects brought into sources
        uploads;
        /// Bytes brought into sources
        upload_bytes;
        /// Objects that sources copied themselves, for renames
        copies;
        /// Bytes of those
        copy_bytes;
        /// Bytes of files sent into sources while they were still being written
        stream_bytes;
        /// Bytes of those sent again, because the file had changed by its end
        stream_bytes_again;
        /// Uploads that failed and are tried again
        upload_failures;
        /// Uploads that would have replaced a version that was not seen when they were written
        conflicts;
    }
    gauges {
        /// Requests under way at sources
        source_in_flight;
        /// Bytes in extent files
        cache_bytes;
        /// Extents in the cache
        cache_extents;
        /// Bytes that are unlinked but still lent
        cache_lent_unlinked_bytes;
        /// Leases that are held
        leases;
        /// Connected clients
        clients;
        /// Bytes of the memory budget in use
        memory_used_bytes;
        /// Changes (files and removals) that their source has not got yet
        stage_files;
        /// Bytes of the files that their source has not got yet
        stage_bytes;
        /// Bytes of the stage in use: what waits, what is being written, what is in conflict
        stage_used_bytes;
        /// Writes that wait now because the stage is filling up or full
        stage_waiting;
        /// 1 while the stage fills up and writers are slowed down, 2 while somebody finds no room in it, otherwise 0
        stage_pressure;
        /// Seconds since the oldest change was committed that its source has not got yet; 0 where there is none
        stage_oldest_s;
        /// Changes that are in conflict with what the source has
        stage_conflicts;
        /// Bytes of the files of the journal
        journal_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_shows_every_metric_of_the_snapshot() {
        let metrics = Metrics::default();
        metrics.source_bytes.inc_by(7);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
        for (name, _) in metrics.snapshot() {
            assert!(text.contains(&format!("penstock_{name}")), "{name} is missing in:\n{text}");
        }
        assert!(text.contains("penstock_source_bytes_total 7"));
    }
}
