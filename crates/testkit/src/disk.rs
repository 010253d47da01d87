//! A disk that misbehaves on demand: each call is recorded, and a rule says which of them go wrong and how.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use penstock_types::{Disk, FileFacts, OpenMode, Space};

/// What a call does instead of succeeding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFault {
    /// It is not carried out and fails with this `errno`.
    Errno(i32),
    /// Half of it is carried out; only reads and writes can be cut so, other calls are carried out.
    Short,
}

impl DiskFault {
    /// `EIO`: the medium fails.
    pub const BROKEN: Self = Self::Errno(5);
    /// `ENOSPC`: the disk is full.
    pub const FULL: Self = Self::Errno(28);

    /// Whether a call of this name can fail so on a real disk.
    pub fn is_possible(self, operation: &str) -> bool {
        match self {
            Self::Short => matches!(operation, "read" | "write"),
            Self::FULL => !matches!(operation, "read" | "facts" | "list" | "lock" | "statfs" | "boot"),
            Self::Errno(_) => true,
        }
    }
}

/// A call that a faulty disk saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskCall {
    /// Number of the call, from 0.
    pub number: u64,
    /// Name of the system call, `create` for an open that makes a file.
    pub operation: &'static str,
    /// The file; for calls on descriptors the one that was opened. Empty where there is none.
    pub path: PathBuf,
}

/// What tests make a machine say of itself.
#[derive(Clone, Debug, Default)]
pub struct Pretence {
    /// The boot of the machine.
    pub boot: Option<String>,
    /// The magic number of every file system.
    pub magic: Option<u64>,
    /// The space of every file system.
    pub space: Option<Space>,
    /// Descriptors that the process may hold.
    pub descriptors: Option<u64>,
}

type Rule = Box<dyn Fn(&DiskCall) -> Option<DiskFault> + Send + Sync>;

/// A disk between a test and the real one.
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: u64,
    log: Option<Vec<DiskCall>>,
    rule: Option<Rule>,
    fired: u64,
    pretence: Pretence,
    paths: HashMap<RawFd, PathBuf>,
}

impl FaultyDisk {
    /// Nothing goes wrong until a rule is set.
    pub fn new(inner: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::default() })
    }

    /// Calls go wrong as `rule` says; it takes the place of the one before.
    pub fn fail(&self, rule: impl Fn(&DiskCall) -> Option<DiskFault> + Send + Sync + 'static) {
        self.state().rule = Some(Box::new(rule));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.state().rule = None;
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Calls so far that went wrong.
    pub fn fired(&self) -> u64 {
        self.state().fired
    }

    /// Keeps every call from now on, and none from before.
    pub fn record(&self) {
        self.state().log = Some(Vec::new());
    }

    /// The calls since `record`, in order.
    pub fn recorded(&self) -> Vec<DiskCall> {
        self.state().log.clone().unwrap_or_default()
    }

    /// Changes what the machine says of itself.
    pub fn pretend(&self, change: impl FnOnce(&mut Pretence)) {
        change(&mut self.state().pretence);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call; says whether it is to be cut short.
    fn check(&self, operation: &'static str, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        let call = DiskCall { number: state.calls, operation, path: path.to_owned() };
        state.calls += 1;
        let fault = state.rule.as_ref().and_then(|rule| rule(&call));
        if let Some(log) = state.log.as_mut() {
            log.push(call);
        }
        match fault {
            None => Ok(false),
            Some(DiskFault::Short) if !DiskFault::Short.is_possible(operation) => Ok(false),
            Some(fault) => {
                state.fired += 1;
                match fault {
                    DiskFault::Short => Ok(true),
                    DiskFault::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }

    fn check_file(&self, operation: &'static str, file: BorrowedFd<'_>) -> io::Result<bool> {
        let path = self.state().paths.get(&file.as_raw_fd()).cloned().unwrap_or_default();
        self.check(operation, &path)
    }
}

impl Disk for FaultyDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.check("mkdir", path)?;
        self.inner.create_directory(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OwnedFd> {
        self.check(if matches!(mode, OpenMode::Create(_)) { "create" } else { "open" }, path)?;
        let file = self.inner.open(path, mode)?;
        // A number is given out again only after its file was closed.
        self.state().paths.insert(file.as_raw_fd(), path.to_owned());
        Ok(file)
    }

    fn read_at(&self, file: BorrowedFd<'_>, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let short = self.check_file("read", file)?;
        let length = if short { out.len().div_ceil(2) } else { out.len() };
        self.inner.read_at(file, offset, &mut out[..length])
    }

    fn write_at(&self, file: BorrowedFd<'_>, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.check_file("write", file)? {
            let first = &parts[0];
            return self.inner.write_at(file, offset, &[IoSlice::new(&first[..first.len().div_ceil(2)])]);
        }
        self.inner.write_at(file, offset, parts)
    }

    fn set_size(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        self.check_file("set_size", file)?;
        self.inner.set_size(file, size)
    }

    fn sync_data(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.check_file("sync", file)?;
        self.inner.sync_data(file)
    }

    fn facts(&self, file: BorrowedFd<'_>) -> io::Result<FileFacts> {
        self.check_file("facts", file)?;
        self.inner.facts(file)
    }

    fn set_permissions(&self, path: &Path, bits: u32) -> io::Result<()> {
        self.check("chmod", path)?;
        self.inner.set_permissions(path, bits)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check("unlink", path)?;
        self.inner.remove(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.check("rmdir", path)?;
        self.inner.remove_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check("rename", from)?;
        self.inner.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check("link", to)?;
        self.inner.link(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.check("sync_directory", path)?;
        self.inner.sync_directory(path)
    }

    fn allocate(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        self.check_file("allocate", file)?;
        self.inner.allocate(file, size)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.check("list", path)?;
        self.inner.list(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.check("space", path)?;
        let pretended = self.state().pretence.space;
        pretended.map_or_else(|| self.inner.space(path), Ok)
    }

    fn filesystem(&self, path: &Path) -> io::Result<u64> {
        self.check("statfs", path)?;
        let pretended = self.state().pretence.magic;
        pretended.map_or_else(|| self.inner.filesystem(path), Ok)
    }

    fn try_lock(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        self.check_file("lock", file)?;
        self.inner.try_lock(file)
    }

    fn is_written(&self, file: BorrowedFd<'_>) -> bool {
        self.inner.is_written(file)
    }

    fn boot_id(&self) -> io::Result<String> {
        self.check("boot", Path::new(""))?;
        let pretended = self.state().pretence.boot.clone();
        pretended.map_or_else(|| self.inner.boot_id(), Ok)
    }

    fn descriptor_limit(&self) -> u64 {
        let pretended = self.state().pretence.descriptors;
        pretended.unwrap_or_else(|| self.inner.descriptor_limit())
    }
}
