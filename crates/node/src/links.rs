//! Local names of cached files: hard links beside the cache, so that other processes can open and map the file by
//! path, with its own name and extension, for as long as the lease lasts, even when the cache drops the object.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_types::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;

/// Directory of links in each tier.
const DIRECTORY: &str = "links";

/// Makes links in the tier that holds the file.
pub struct Links {
    directories: Vec<PathBuf>,
    next: AtomicU64,
}

/// A link; removed when dropped.
pub struct LinkedFile {
    path: PathBuf,
}

impl Links {
    /// Links beside these tiers. What an earlier node left there is removed.
    pub fn new(tiers: impl IntoIterator<Item = PathBuf>) -> Self {
        let directories: Vec<PathBuf> = tiers.into_iter().map(|tier| tier.join(DIRECTORY)).collect();
        for directory in &directories {
            match std::fs::remove_dir_all(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(directory = %directory.display(), %error, "old links were not removed");
                }
                _ => {}
            }
        }
        Self { directories, next: AtomicU64::new(0) }
    }

    /// Links the cached file behind `descriptor` under `name`. `None` when the cache has already dropped it.
    ///
    /// # Errors
    /// `Unsupported` when the file is in no tier: it is too large for the cache, or the cache disk fails.
    pub fn link(&self, descriptor: BorrowedFd<'_>, name: &str) -> Result<Option<LinkedFile>> {
        let through = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        for directory in &self.directories {
            let path = directory.join(number.to_string()).join(name);
            match link_at(&through, &path) {
                Ok(()) => return Ok(Some(LinkedFile { path })),
                Err(Errno::XDEV) => drop(LinkedFile { path }),
                Err(Errno::NOENT) => {
                    drop(LinkedFile { path });
                    return Ok(None);
                }
                Err(error) => {
                    drop(LinkedFile { path });
                    return Err(Error::new(ErrorKind::Disk, format!("name {name:?} locally"), error.to_string())
                        .advise("see penstock doctor"));
                }
            }
        }
        Err(Error::new(ErrorKind::Unsupported, format!("name {name:?} locally"), "the file is not in the cache")
            .advise("it may be larger than the cache: see penstock cache why, or read it with open"))
    }
}

fn link_at(through: &str, path: &Path) -> Result<(), Errno> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    linkat(CWD, through, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

impl LinkedFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LinkedFile {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next start of a node.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_link_outlives_the_original_and_ends_with_its_value() {
        let tier = tempfile::tempdir().unwrap();
        let original = tier.path().join("extent");
        std::fs::write(&original, b"content").unwrap();
        let file = std::fs::File::open(&original).unwrap();
        let links = Links::new([tier.path().to_path_buf()]);
        let link = links.link(file.as_fd(), "a.parquet").unwrap().unwrap();
        std::fs::remove_file(&original).unwrap();
        let path = link.path().to_path_buf();
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        drop(link);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }

    #[test]
    fn a_file_that_is_gone_or_in_memory_is_told_apart() {
        let tier = tempfile::tempdir().unwrap();
        let original = tier.path().join("extent");
        std::fs::write(&original, b"content").unwrap();
        let file = std::fs::File::open(&original).unwrap();
        std::fs::remove_file(&original).unwrap();
        let links = Links::new([tier.path().to_path_buf()]);
        assert!(links.link(file.as_fd(), "a").unwrap().is_none());
    }

    #[test]
    fn what_an_earlier_node_left_is_removed() {
        let tier = tempfile::tempdir().unwrap();
        let old = tier.path().join(DIRECTORY).join("0").join("a");
        std::fs::create_dir_all(old.parent().unwrap()).unwrap();
        std::fs::write(&old, b"old").unwrap();
        Links::new([tier.path().to_path_buf()]);
        assert!(!old.exists());
    }
}
