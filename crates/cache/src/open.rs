//! Opening a cache: its directories, their identity, the index. Nothing is scanned.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_types::{Disk, Error, ErrorKind, OpenMode, Result, TierConfig};

use crate::cache::{CacheParts, Opened};
use crate::care::Care;
use crate::flush::Stored;
use crate::index::{Facts, Index, TierRow, text_hash};
use crate::tier::{Tier, TierParts, disk_error};

/// File of a tier that holds its identity and, while a node has it, its lock.
const IDENTITY: &str = "penstock-tier";
/// Begins the names of directories whose files are removed in the background.
pub const TRASH: &str = "removed-";
/// Slot of a tier that could not be opened: no record names it.
const NO_SLOT: u32 = u32::MAX;

/// Network file systems by the magic of `statfs`: their caching and locking would make ours useless or wrong.
const NETWORK_FILE_SYSTEMS: &[(u64, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "kAFS"),
    (0x7375_7245, "Coda"),
    (0x564c, "NCP"),
    (0x4750_4653, "GPFS"),
    (0xaad7_aaea, "PanFS"),
    (0x1983_0326, "BeeGFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x786f_4256, "vboxsf"),
];

/// Opens index and tiers.
pub fn open(parts: CacheParts) -> Result<Opened> {
    if parts.config.tiers.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "open the cache", "it has no tier").advise("configure one"));
    }
    let state = &parts.state_directory;
    create_all(&*parts.disk, state).map_err(|error| disk_error("make", state, &error))?;
    let path = state.join("cache.redb");
    let (index, facts) = Index::open(&parts.disk, &path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => busy(&path),
        _ => disk_error("open", &path, &error),
    })?;
    let boot = parts.disk.boot_id().map_or_else(
        |error| {
            tracing::warn!(%error, "the boot of the machine is unknown: every extent without a durable mark is verified");
            text_hash(&format!("{:?}", parts.clock.wall_ms()))
        },
        |boot| text_hash(&boot),
    );
    let mut facts = facts.unwrap_or_default();
    let mut care = Care::new(facts.clean_below..facts.number_limit);
    let (mut tiers, mut locks) = (Vec::new(), Vec::new());
    for config in &parts.config.tiers {
        let tier = match open_tier(&parts, config, &mut facts, &mut care.trash) {
            Ok((tier, lock)) => {
                locks.push(lock);
                tier
            }
            Err(Unopened::Refused(error)) => return Err(error),
            Err(Unopened::Failed(error)) => {
                tracing::error!(code = "cache-tier-offline", tier = %config.directory.display(), %error);
                parts.metrics.cache_disk_errors.inc();
                care.complete_view = false;
                offline(&parts, config, &error)
            }
        };
        tiers.push(Arc::new(tier));
    }
    facts.number_limit = facts.number_limit.max(1);
    Ok(Opened { tiers, index: Arc::new(index), locks, boot, stored: Stored { facts }, care, parts })
}

enum Unopened {
    /// The configuration is wrong.
    Refused(Error),
    /// The disk failed.
    Failed(io::Error),
}

impl From<io::Error> for Unopened {
    fn from(error: io::Error) -> Self {
        Unopened::Failed(error)
    }
}

fn open_tier(
    parts: &CacheParts,
    config: &TierConfig,
    facts: &mut Facts,
    trash: &mut Vec<PathBuf>,
) -> Result<(Tier, OwnedFd), Unopened> {
    let (disk, directory) = (&*parts.disk, &config.directory);
    create_all(disk, directory)?;
    refuse_network(parts, directory)?;
    let marker = disk.open(&directory.join(IDENTITY), OpenMode::WriteOrCreate)?;
    if !disk.try_lock(marker.as_fd())? {
        return Err(Unopened::Refused(busy(directory)));
    }
    let identity = read_identity(disk, &marker)?;
    let known = facts.tiers.iter().find(|row| Some(row.identity) == identity).copied();
    let extents = directory.join("extents");
    let row = match known {
        Some(row) => row,
        None => {
            set_aside(parts, &extents)?;
            let slot = facts.tiers.iter().map(|row| row.slot + 1).max().unwrap_or(0);
            let row = TierRow { slot, identity: new_identity(parts, directory), bytes: 0 };
            write_identity(disk, &marker, row.identity)?;
            facts.tiers.push(row);
            row
        }
    };
    disk.create_directory(&extents)?;
    let names = disk.list(directory)?;
    trash.extend(
        names
            .iter()
            .filter(|name| name.as_encoded_bytes().starts_with(TRASH.as_bytes()))
            .map(|name| directory.join(name)),
    );
    let tier = TierParts {
        slot: row.slot,
        directory: directory.clone(),
        size_bytes: config.size_bytes,
        floor: parts.config.free_space_floor,
        offline: None,
        used: row.bytes,
    };
    Ok((Tier::new(tier, parts), marker))
}

fn offline(parts: &CacheParts, config: &TierConfig, error: &io::Error) -> Tier {
    let tier = TierParts {
        slot: NO_SLOT,
        directory: config.directory.clone(),
        size_bytes: config.size_bytes,
        floor: parts.config.free_space_floor,
        offline: Some(format!("{error} (open {})", config.directory.display())),
        used: 0,
    };
    Tier::new(tier, parts)
}

fn refuse_network(parts: &CacheParts, directory: &Path) -> Result<(), Unopened> {
    let magic = parts.disk.filesystem(directory)?;
    match NETWORK_FILE_SYSTEMS.iter().find(|(known, _)| *known == magic) {
        Some((_, name)) if !parts.config.allow_network_filesystem => {
            let action = format!("open cache {}", directory.display());
            let reason = format!("it is on a network file system ({name})");
            let error = Error::new(ErrorKind::InvalidInput, action, reason);
            Err(Unopened::Refused(error.advise("choose a local directory, or set allow_network_filesystem")))
        }
        _ => Ok(()),
    }
}

/// The identity of a tier: 16 hexadecimal digits. Anything else is none.
fn read_identity(disk: &dyn Disk, marker: &OwnedFd) -> io::Result<Option<u64>> {
    let mut text = [0; 17];
    let read = disk.read_at(marker.as_fd(), 0, &mut text)?;
    let digits = text[..read].strip_suffix(b"\n").filter(|digits| digits.len() == 16);
    Ok(digits.and_then(|digits| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()))
}

fn write_identity(disk: &dyn Disk, marker: &OwnedFd, identity: u64) -> io::Result<()> {
    let text = format!("{identity:016x}\n");
    let written = disk.write_at(marker.as_fd(), 0, &[IoSlice::new(text.as_bytes())])?;
    if written != text.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    disk.sync_data(marker.as_fd())
}

/// Unlike any other: made of where, when and by whom the tier is begun.
fn new_identity(parts: &CacheParts, directory: &Path) -> u64 {
    let when = (parts.clock.wall_ms(), parts.clock.monotonic());
    let chance = fastrand::Rng::new().u64(..);
    text_hash(&format!("{directory:?} {when:?} {} {} {chance}", parts.seed, std::process::id()))
}

/// Moves extent files that no index knows out of the way; they are removed in the background.
fn set_aside(parts: &CacheParts, extents: &Path) -> io::Result<()> {
    let aside = extents.with_file_name(format!("{TRASH}{:016x}", new_identity(parts, extents)));
    match parts.disk.rename(extents, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory and what is missing above it.
fn create_all(disk: &dyn Disk, directory: &Path) -> io::Result<()> {
    match disk.create_directory(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = directory.parent().ok_or(error)?;
            create_all(disk, parent)?;
            disk.create_directory(directory)
        }
        other => other,
    }
}

fn busy(path: &Path) -> Error {
    Error::new(ErrorKind::Busy, format!("open cache {}", path.display()), "another node uses it")
        .advise("stop that node, or use another home")
}
