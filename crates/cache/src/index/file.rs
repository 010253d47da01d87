//! The file of the index, through the same [`Disk`] as every other file.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use crate::disk::{Disk, OpenMode};

/// An open, locked index file.
pub struct IndexFile {
    disk: Arc<dyn Disk>,
    /// Taken away by `close`, which ends the lock.
    file: Mutex<Option<Arc<OwnedFd>>>,
}

impl IndexFile {
    /// Opens the file, making it if it is missing; `WouldBlock` when another process has it.
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> io::Result<Self> {
        let file = disk.open(path, OpenMode::WriteOrCreate)?;
        if !disk.try_lock(file.as_fd())? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Self { disk: Arc::clone(disk), file: Mutex::new(Some(Arc::new(file))) })
    }

    fn file(&self) -> io::Result<Arc<OwnedFd>> {
        let file = self.file.lock().map_err(|_| io::Error::other("the index file is poisoned"))?;
        file.clone().ok_or_else(|| io::Error::other("the index is closed"))
    }
}

impl fmt::Debug for IndexFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IndexFile")
    }
}

impl StorageBackend for IndexFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.facts(self.file()?.as_fd())?.size)
    }

    fn read(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        let file = self.file()?;
        while !out.is_empty() {
            let read = self.disk.read_at(file.as_fd(), offset, out)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            out = &mut out[read..];
            offset += read as u64;
        }
        Ok(())
    }

    fn set_len(&self, size: u64) -> io::Result<()> {
        self.disk.set_size(self.file()?.as_fd(), size)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync_data(self.file()?.as_fd())
    }

    fn write(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        let file = self.file()?;
        while !data.is_empty() {
            let written = self.disk.write_at(file.as_fd(), offset, &[IoSlice::new(data)])?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            data = &data[written..];
            offset += written as u64;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        if let Ok(mut file) = self.file.lock() {
            file.take();
        }
        Ok(())
    }
}
