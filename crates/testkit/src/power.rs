//! A disk whose power may go at any call: what was not synced is kept apart from what was, and either may be what is
//! left. What was written past it, through a descriptor that it gave out, counts as unsynced until a sync of that file.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use penstock_types::{Disk, FileFacts, OpenMode, Space};

/// What is written at once on the medium, whatever becomes of its surroundings.
const SECTOR: usize = 512;
/// What the kernel writes at once, in any order.
const BLOCK: usize = 4096;

/// What is lost of what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Nothing: the process was killed, the machine went on.
    Nothing,
    /// All of it.
    Everything,
    /// Some names and blocks, as chance has it; one block of each file is torn.
    Some(u64),
}

/// A directory tree below a root. Nothing is really synced, so it is quick.
pub struct PowerLossDisk {
    inner: Arc<dyn Disk>,
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: HashMap<u64, File>,
    directories: BTreeMap<PathBuf, Directory>,
    images: Option<(Arc<AtomicU64>, Vec<Image>)>,
}

struct File {
    /// Keeps content and inode when its last name is gone.
    open: OwnedFd,
    synced: Arc<Vec<u8>>,
}

#[derive(Clone, Default)]
struct Directory {
    synced: BTreeMap<OsString, Entry>,
    /// What was done since, in order.
    pending: Vec<NameChange>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(u64),
    Directory,
}

/// One change of names that a crash leaves done or not done.
#[derive(Clone)]
struct NameChange {
    gone: Option<OsString>,
    new: Option<(OsString, Entry)>,
}

/// The tree as the power could leave it before one call.
pub struct Image {
    /// Name of the call that was about to be made; empty at the end.
    pub operation: &'static str,
    /// What the watched counter said.
    pub mark: u64,
    directories: BTreeMap<PathBuf, Directory>,
    /// Synced and present content of each file.
    contents: HashMap<u64, (Arc<Vec<u8>>, Vec<u8>)>,
}

impl PowerLossDisk {
    /// Everything that is at or below `root` counts as synced.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn new(inner: Arc<dyn Disk>, root: &Path) -> Arc<Self> {
        let disk = Self { inner, root: root.to_owned(), state: Mutex::default() };
        disk.load(root);
        Arc::new(disk)
    }

    /// Keeps the tree as it is before every call that changes it, with what `mark` says at that moment.
    pub fn keep_images(&self, mark: Arc<AtomicU64>) {
        self.state().images = Some((mark, Vec::new()));
    }

    /// The trees since `keep_images`, and the present one.
    pub fn take_images(&self) -> Vec<Image> {
        self.note("");
        self.state().images.take().map(|(_, images)| images).unwrap_or_default()
    }

    fn load(&self, directory: &Path) {
        let mut found = Directory::default();
        for name in self.inner.list(directory).expect("a directory of the test can be read") {
            let path = directory.join(&name);
            let entry = if path.is_dir() {
                self.load(&path);
                Entry::Directory
            } else {
                let file = self.inner.open(&path, OpenMode::Read).expect("a file of the test can be read");
                let synced = Arc::new(content(&*self.inner, file.as_fd()));
                let inode = self.inode(file.as_fd());
                self.state().files.insert(inode, File { open: file, synced });
                Entry::File(inode)
            };
            found.synced.insert(name, entry);
        }
        self.state().directories.insert(directory.to_owned(), found);
    }

    /// Keeps an image, if images are kept.
    fn note(&self, operation: &'static str) {
        let mut state = self.state();
        let State { files, directories, images } = &mut *state;
        let Some((mark, images)) = images else { return };
        let contents = files
            .iter()
            .map(|(inode, file)| (*inode, (Arc::clone(&file.synced), content(&*self.inner, file.open.as_fd()))))
            .collect();
        let mark = mark.load(Ordering::SeqCst);
        images.push(Image { operation, mark, directories: directories.clone(), contents });
    }

    fn change_names(&self, directory: &Path, change: NameChange) {
        if let Some(found) = self.state().directories.get_mut(directory) {
            found.pending.push(change);
        }
    }

    fn add_file(&self, path: &Path, file: BorrowedFd<'_>) -> io::Result<()> {
        let inode = self.inode(file);
        let open = self.inner.open(path, OpenMode::Read)?;
        self.state().files.entry(inode).or_insert_with(|| File { open, synced: Arc::default() });
        self.add_name(path, Entry::File(inode));
        Ok(())
    }

    fn add_name(&self, path: &Path, entry: Entry) {
        let (directory, name) = split(path);
        self.change_names(directory, NameChange { gone: None, new: Some((name.to_owned(), entry)) });
    }

    fn entry(&self, path: &Path) -> Option<Entry> {
        let (directory, name) = split(path);
        self.state().directories.get(directory)?.live().get(name).copied()
    }

    fn inode(&self, file: BorrowedFd<'_>) -> u64 {
        self.inner.facts(file).expect("an open file has facts").inode
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory {
    fn live(&self) -> BTreeMap<OsString, Entry> {
        self.after(|| true)
    }

    /// Its names when some of what was pending was done.
    fn after(&self, mut done: impl FnMut() -> bool) -> BTreeMap<OsString, Entry> {
        let mut names = self.synced.clone();
        for change in self.pending.iter().filter(|_| done()) {
            if let Some(gone) = &change.gone {
                names.remove(gone);
            }
            names.extend(change.new.clone());
        }
        names
    }
}

impl Image {
    /// Writes what a loss of power leaves to `root`, which is an empty directory.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn restore(&self, from: &Path, root: &Path, loss: Loss) {
        let mut chance = fastrand::Rng::with_seed(match loss {
            Loss::Some(seed) => seed,
            Loss::Nothing | Loss::Everything => 0,
        });
        let mut written: HashMap<u64, PathBuf> = HashMap::new();
        self.restore_directory(from, root, loss, &mut chance, &mut written);
    }

    fn restore_directory(
        &self,
        from: &Path,
        to: &Path,
        loss: Loss,
        chance: &mut fastrand::Rng,
        written: &mut HashMap<u64, PathBuf>,
    ) {
        let Some(directory) = self.directories.get(from) else { return };
        let names = directory.after(|| match loss {
            Loss::Nothing => true,
            Loss::Everything => false,
            Loss::Some(_) => chance.bool(),
        });
        for (name, entry) in names {
            let path = to.join(&name);
            match entry {
                Entry::Directory => {
                    std::fs::create_dir(&path).expect("a directory of the test can be made");
                    self.restore_directory(&from.join(&name), &path, loss, chance, written);
                }
                Entry::File(inode) => {
                    if let Some(first) = written.get(&inode) {
                        std::fs::hard_link(first, &path).expect("a file of the test can be linked");
                        continue;
                    }
                    let (synced, live) = &self.contents[&inode];
                    let left = match loss {
                        Loss::Nothing => live.clone(),
                        Loss::Everything => synced.to_vec(),
                        Loss::Some(_) => mixed(synced, live, chance),
                    };
                    std::fs::write(&path, left).expect("a file of the test can be written");
                    written.insert(inode, path);
                }
            }
        }
    }
}

/// Blocks of either, one of them torn; a block that was never written there is zeros.
fn mixed(synced: &[u8], live: &[u8], chance: &mut fastrand::Rng) -> Vec<u8> {
    let mut left = if chance.bool() { live.to_vec() } else { synced.to_vec() };
    let other = if left == live { synced } else { live };
    let starts: Vec<usize> = (0..left.len()).step_by(BLOCK).collect();
    for start in &starts {
        if chance.bool() {
            replace(&mut left, other, *start, start + BLOCK);
        }
    }
    if let Some(start) = chance.choice(&starts) {
        let end = start + SECTOR * chance.usize(1..BLOCK / SECTOR);
        let torn_from = if chance.bool() { synced } else { live };
        replace(&mut left, torn_from, *start, end);
    }
    left
}

fn replace(content: &mut [u8], by: &[u8], start: usize, end: usize) {
    for (at, byte) in content.iter_mut().enumerate().take(end).skip(start) {
        *byte = by.get(at).copied().unwrap_or(0);
    }
}

fn content(disk: &dyn Disk, file: BorrowedFd<'_>) -> Vec<u8> {
    let size = disk.facts(file).expect("an open file has facts").size;
    let mut content = vec![0; usize::try_from(size).expect("test data fits memory")];
    let mut done = 0;
    while done < content.len() {
        match disk.read_at(file, done as u64, &mut content[done..]).expect("an open file can be read") {
            0 => break,
            read => done += read,
        }
    }
    content.truncate(done);
    content
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default())
}

impl Disk for PowerLossDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.note("mkdir");
        self.inner.create_directory(path)?;
        if path.starts_with(&self.root) && path != self.root && self.entry(path).is_none() {
            self.add_name(path, Entry::Directory);
            self.state().directories.entry(path.to_owned()).or_default();
        }
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<OwnedFd> {
        if matches!(mode, OpenMode::Create(_) | OpenMode::WriteOrCreate) {
            self.note("create");
        }
        let file = self.inner.open(path, mode)?;
        if self.entry(path).is_none() {
            self.add_file(path, file.as_fd())?;
        }
        Ok(file)
    }

    fn read_at(&self, file: BorrowedFd<'_>, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(file, offset, out)
    }

    fn write_at(&self, file: BorrowedFd<'_>, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.note("write");
        self.inner.write_at(file, offset, parts)
    }

    fn set_size(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        self.note("set_size");
        self.inner.set_size(file, size)
    }

    fn sync_data(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.note("sync");
        let (inode, synced) = (self.inode(file), Arc::new(content(&*self.inner, file)));
        if let Some(known) = self.state().files.get_mut(&inode) {
            known.synced = synced;
        }
        Ok(())
    }

    fn facts(&self, file: BorrowedFd<'_>) -> io::Result<FileFacts> {
        self.inner.facts(file)
    }

    fn set_permissions(&self, path: &Path, bits: u32) -> io::Result<()> {
        self.inner.set_permissions(path, bits)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note("unlink");
        self.inner.remove(path)?;
        let (directory, name) = split(path);
        self.change_names(directory, NameChange { gone: Some(name.to_owned()), new: None });
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.note("rmdir");
        self.inner.remove_directory(path)?;
        let (directory, name) = split(path);
        self.change_names(directory, NameChange { gone: Some(name.to_owned()), new: None });
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note("rename");
        let entry = self.entry(from);
        self.inner.rename(from, to)?;
        let ((old_directory, old), (new_directory, new)) = (split(from), split(to));
        let new = entry.map(|entry| (new.to_owned(), entry));
        if old_directory == new_directory {
            self.change_names(old_directory, NameChange { gone: Some(old.to_owned()), new });
        } else {
            self.change_names(new_directory, NameChange { gone: None, new });
            self.change_names(old_directory, NameChange { gone: Some(old.to_owned()), new: None });
        }
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note("link");
        self.inner.link(from, to)?;
        if let Some(entry) = self.entry(from) {
            self.add_name(to, entry);
        }
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.note("sync_directory");
        if let Some(directory) = self.state().directories.get_mut(path) {
            directory.synced = directory.live();
            directory.pending.clear();
        }
        Ok(())
    }

    fn allocate(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        self.note("allocate");
        self.inner.allocate(file, size)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.inner.list(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.inner.space(path)
    }

    fn filesystem(&self, path: &Path) -> io::Result<u64> {
        self.inner.filesystem(path)
    }

    fn try_lock(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        self.inner.try_lock(file)
    }

    fn is_written(&self, file: BorrowedFd<'_>) -> bool {
        self.inner.is_written(file)
    }

    fn boot_id(&self) -> io::Result<String> {
        self.inner.boot_id()
    }

    fn descriptor_limit(&self) -> u64 {
        self.inner.descriptor_limit()
    }
}
