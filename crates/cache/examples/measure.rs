//! What the calls of the cache cost, beside the system calls that they cannot do without. For whoever changes them:
//! `cargo run -p penstock-cache --example measure`, and with `make DIRECTORY EXTENTS`, then `reopen DIRECTORY EXTENTS`
//! (processes of their own, so that memory is that of the extents) what many extents cost.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "it prints what it measures, and stops where it cannot")]

use std::hint::black_box;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use penstock_cache::{Cache, CacheParts, RealDisk};
use penstock_types::{
    ByteRange, CacheConfig, Metrics, ObjectId, ObjectKey, SourceId, SystemClock, TierConfig, Version,
};

const SMALL: u64 = 112 << 10;
const MIB: u64 = 1 << 20;

fn open(home: &Path) -> Arc<Cache> {
    Cache::open(CacheParts {
        config: CacheConfig {
            tiers: vec![TierConfig { directory: home.join("tier"), size_bytes: 32 << 30 }],
            free_space_floor: 0.0,
            scrub_interval_days: 0.0,
            allow_network_filesystem: false,
        },
        state_directory: home.join("state"),
        clock: Arc::new(SystemClock::default()),
        metrics: Metrics::default(),
        disk: Arc::new(RealDisk),
        seed: 1,
    })
    .unwrap()
}

fn id(object: u64) -> ObjectId {
    ObjectId {
        source: SourceId::from("s3://endpoint.example.org/a-bucket"),
        key: ObjectKey::from(format!("datasets/images/train/n01440764/image-{object:010}.jpg").as_str()),
        version: Version::from("d41d8cd98f00b204e9800998ecf8427e"),
    }
}

fn timed<T>(what: &str, count: u64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    let micros = started.elapsed().as_secs_f64() * 1e6;
    println!("{what:<58} {:>10.2} µs each   {:>9.1} ms in all", micros / count as f64, micros / 1e3);
    result
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn small_files(home: &Path) {
    let data = Bytes::from(vec![7u8; SMALL as usize]);
    std::fs::create_dir_all(home.join("plain")).unwrap();
    timed("1,000 × 112 KiB: open, write, close", 1_000, || {
        for number in 0..1_000 {
            std::fs::write(home.join(format!("plain/{number}")), &data).unwrap();
        }
    });
    timed("1,000 × 112 KiB: crc32c alone", 1_000, || {
        for _ in 0..1_000 {
            black_box(crc32c::crc32c(&data));
        }
    });
    let cache = open(&home.join("small"));
    timed("1,000 × 112 KiB: get_or_create, fill", 1_000, || {
        for object in 0..1_000 {
            cache.get_or_create(&id(object), SMALL).unwrap().fill(0, std::slice::from_ref(&data)).unwrap();
        }
    });
    timed("flush of 1,000 new extents", 1, || cache.flush().unwrap());
    timed("first lend of each", 1_000, || (0..1_000).for_each(|object| drop(cache.get(&id(object)).unwrap().lend())));
    let ids: Vec<_> = (0..1_000).map(id).collect();
    timed("hot get + is_complete + lend + end", 1_000_000, || {
        for round in 0..1_000_000 {
            let extent = cache.get(&ids[round % 1_000]).unwrap();
            assert!(extent.is_complete());
            drop(extent.lend().unwrap());
        }
    });
    let mut out = vec![0; SMALL as usize];
    let lease = cache.get(&ids[0]).unwrap().lend().unwrap();
    timed("112 KiB: pread + crc32c", 10_000, || {
        for _ in 0..10_000 {
            rustix::io::pread(lease.descriptor(), &mut out[..], 0).unwrap();
            black_box(crc32c::crc32c(&out));
        }
    });
    timed("112 KiB: read_verified", 10_000, || {
        (0..10_000).for_each(|_| lease.extent().read_verified(ByteRange::new(0, SMALL), &mut out).unwrap());
    });
    cache.close();
}

fn large_fill(home: &Path) {
    let (data, count) = (Bytes::from(vec![7u8; MIB as usize]), 512);
    let file = std::fs::File::create(home.join("plain/large")).unwrap();
    file.set_len(count * MIB).unwrap();
    timed("512 × 1 MiB: pwrite + crc32c", count, || {
        for number in 0..count {
            rustix::io::pwrite(file.as_fd(), &data, number * MIB).unwrap();
            black_box(crc32c::crc32c(&data));
        }
    });
    let cache = open(&home.join("large"));
    let extent = cache.get_or_create(&id(0), count * MIB).unwrap();
    timed("512 × 1 MiB: fill", count, || {
        (0..count).for_each(|number| extent.fill(number * MIB, std::slice::from_ref(&data)).unwrap());
    });
    cache.close();
}

/// Makes so many extents.
fn make(home: &Path, extents: u64) {
    let (base, data) = (resident(), Bytes::from(vec![7u8; 100]));
    timed("open, empty", 1, || drop(open(&home.join("empty"))));
    let cache = open(home);
    timed("extents made and filled, 100 bytes each", extents, || {
        for object in 0..extents {
            cache.get_or_create(&id(object), 100).unwrap().fill(0, std::slice::from_ref(&data)).unwrap();
            if object % 5_000 == 0 {
                cache.flush().unwrap();
            }
        }
    });
    timed("flush", 1, || cache.flush().unwrap());
    println!("resident with {extents} extents just made: {:+.1} MiB", resident() - base);
    // No close: the next process finds what a kill leaves.
}

/// Opens what an earlier process made.
fn reopen(home: &Path, extents: u64) {
    let base = resident();
    let cache = timed("open, full, as after a kill", 1, || open(home));
    timed("40 flushes that load the eviction queue", 40, || (0..40).for_each(|_| cache.flush().unwrap()));
    println!("resident with the queue loaded: {:+.1} MiB", resident() - base);
    timed("cold get", extents, || {
        for object in 0..extents {
            drop(cache.get(&id(object)).unwrap());
            if object % 20_000 == 0 {
                cache.flush().unwrap();
            }
        }
    });
    println!("resident after every extent was used: {:+.1} MiB", resident() - base);
    cache.close();
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let home = tempfile::tempdir_in(".").unwrap();
    match arguments.get(1..).unwrap_or_default() {
        [step, directory, extents] if step == "make" => make(Path::new(directory), extents.parse().unwrap()),
        [step, directory, extents] if step == "reopen" => reopen(Path::new(directory), extents.parse().unwrap()),
        _ => {
            small_files(home.path());
            large_fill(home.path());
        }
    }
}
