//! Snapshots: a path frozen into a document, and the document as something a kernel can read: an image of names whose
//! bytes lie in virtual data devices.

mod content;
mod device;
mod files;
mod part;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use penstock_catalog::{Item, NamedItem, Snapshot, SnapshotFacts, SnapshotWriter};
use penstock_image::{Allocator, Image, ImageWriter, Settings};
use penstock_types::{AttachmentSpec, Error, ErrorKind, Result, TreePath};

use crate::attachment::Attached;
use crate::engine::{Engine, nothing_attached};
pub use content::Frozen;

/// Names of one page of the walk that is frozen.
const PAGE_NAMES: usize = 8192;
/// Nothing of a snapshot ever changes.
const FOREVER: Duration = Duration::from_secs(86_400);

/// The image of a snapshot: where it is kept, and what it says of everything in it.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// File of the image.
    pub file: PathBuf,
    /// User and group of everything.
    pub owner: (u32, u32),
    /// Permissions of files.
    pub file_mode: u32,
    /// Permissions of directories.
    pub directory_mode: u32,
}

impl Engine {
    /// Freezes what is below `path` now into a document: the source is listed anew. Nothing is fetched, and nothing is
    /// left of it when it fails.
    ///
    /// Cost: about one request per 1,000 files, many at once.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`; `Unsupported` where another attachment lies below; `Busy` while something written
    /// below is not in the source; `NoSpace`, `Disk`; what the source says.
    pub async fn create_snapshot(self: &Arc<Self>, path: &TreePath, name: &str, file: &Path) -> Result<SnapshotFacts> {
        let (attached, inner) = self.tree.find(path).ok_or_else(|| nothing_attached(path))?;
        if let Some(nested) = self.tree.below(path).first() {
            let reason = format!("{} is attached below it, and a snapshot is of one attachment", nested.path);
            return Err(Error::new(ErrorKind::Unsupported, format!("freeze {path}"), reason)
                .advise(format!("make one snapshot of {} and one of each directory beside it", nested.path)));
        }
        self.check_persisted(path)?;
        let key = attached.view.key_of(&inner)?;
        let prefix = if inner.is_empty() { key } else { key.join(b"/") };
        let facts = SnapshotFacts {
            name: name.into(),
            path: path.to_string(),
            created_ms: self.parts.clock.wall_ms(),
            prefix: prefix.as_bytes().to_vec(),
            attachment: serde_json::to_string(&attached.spec)
                .map_err(|error| Error::new(ErrorKind::Internal, format!("freeze {path}"), error.to_string()))?,
            files: 0,
            size_bytes: 0,
        };
        attached.view.distrust();
        let made = New::begin(file)?;
        let mut writer = SnapshotWriter::new(made.writer()?, facts)?;
        let mut after = None;
        loop {
            let page = attached.view.walk_source(&inner, after.as_deref(), PAGE_NAMES);
            let page = self.timely(&attached, path, page).await;
            let page = page.map_err(|error| error.during(format!("freeze {path}")))?;
            page.items.iter().try_for_each(|item| refuse_set(path, item).and_then(|()| writer.push(item)))?;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let (out, facts) = writer.finish()?;
        made.finish(out)?;
        Ok(facts)
    }

    /// Opens a snapshot for the kernel and makes its image, unless that is there already.
    ///
    /// Cost: reads the whole document, a second for a million files; asks no source.
    ///
    /// # Errors
    /// `Corrupt`, `NotFound` for the document; `InvalidInput` for names that no image can hold; `NoSpace`, `Disk`.
    pub fn open_snapshot(self: &Arc<Self>, document: &Path, image: &ImageOptions) -> Result<Arc<Frozen>> {
        let snapshot = Snapshot::open(document)?;
        let facts = snapshot.facts();
        let action = || format!("open snapshot {}", facts.name);
        let attached = self.attached_by(attachment_of(facts)?)?;
        let uuid = identity(&snapshot, image);
        let known =
            File::open(&image.file).is_ok_and(|file| Image::new(file).uuid().is_ok_and(|own| own == Some(uuid)));
        let made = if known { None } else { Some(New::begin(&image.file)?) };
        let settings = Settings {
            owner: image.owner,
            file_mode: image.file_mode,
            directory_mode: image.directory_mode,
            built_ms: facts.created_ms,
            uuid,
            label: String::new(),
        };
        let mut writer = made.as_ref().map(|made| ImageWriter::new(made.writer()?, &settings)).transpose()?;
        let (mut allocator, mut starts) = (Allocator::default(), Vec::with_capacity(snapshot.rows()));
        let mut devices = Vec::new();
        for row in 0..snapshot.rows() {
            starts.push(allocator);
            for entry in snapshot.row(row)? {
                let Some(attributes) = entry.attributes else {
                    writer.iter_mut().try_for_each(|writer| writer.directory(&entry.path, facts.created_ms))?;
                    continue;
                };
                let place = allocator.place(attributes.size)?;
                devices.resize(usize::from(allocator.devices()), 0);
                if let Some(device) = devices.last_mut() {
                    *device = allocator.end().offset;
                }
                if let Some(writer) = &mut writer {
                    let placed = writer.file(&entry.path, attributes.size, attributes.modified_ms)?;
                    if placed != place && attributes.size > 0 {
                        let reason = format!("{} lies at {placed:?} and should at {place:?}", entry.path);
                        return Err(Error::new(ErrorKind::Internal, action(), reason).advise("report it"));
                    }
                }
            }
        }
        if let (Some(writer), Some(made)) = (writer, made) {
            made.finish(writer.finish()?.out)?;
        }
        let unread = |error: std::io::Error| Error::new(ErrorKind::Disk, action(), error.to_string());
        let image = Image::new(File::open(&image.file).map_err(unread)?);
        Frozen::new(Arc::clone(self), attached, (snapshot, image), starts, devices)
    }

    /// The attachment of a document, whether it is in the tree now or not.
    fn attached_by(&self, spec: AttachmentSpec) -> Result<Arc<Attached>> {
        let same = |known: &&Arc<Attached>| known.spec.source == spec.source && known.spec.prefix == spec.prefix;
        if let Some(known) = self.tree.all().iter().find(same) {
            return Ok(Arc::clone(known));
        }
        let source = self.source(&spec.source)?;
        self.attached(spec, source, None)
    }
}

/// The attachment that a snapshot was made from.
///
/// # Errors
/// `Corrupt` when the document does not say it in words of ours.
pub fn attachment_of(facts: &SnapshotFacts) -> Result<AttachmentSpec> {
    serde_json::from_str(&facts.attachment).map_err(|error| {
        let action = format!("read snapshot {}", facts.name);
        Error::new(ErrorKind::Corrupt, action, format!("its source: {error}"))
    })
}

/// The identity of an image: the same document shown in the same way gives the same one.
fn identity(snapshot: &Snapshot, image: &ImageOptions) -> [u8; 16] {
    let shown = format!("{:?} {:o} {:o}", image.owner, image.file_mode, image.directory_mode);
    let parts = [
        snapshot.identity().to_le_bytes(),
        crc32c::crc32c(shown.as_bytes()).to_le_bytes(),
        u32::try_from(snapshot.facts().files & 0xffff_ffff).unwrap_or_default().to_le_bytes(),
        u32::try_from(snapshot.facts().created_ms & 0xffff_ffff).unwrap_or_default().to_le_bytes(),
    ];
    parts.concat().try_into().expect("four times four bytes")
}

/// A file that appears whole or not at all.
struct New<'a> {
    wanted: &'a Path,
    path: PathBuf,
}

impl<'a> New<'a> {
    fn begin(wanted: &'a Path) -> Result<Self> {
        let mut path = wanted.as_os_str().to_owned();
        path.push(".new");
        let new = Self { wanted, path: path.into() };
        File::create(&new.path).map_err(|error| new.failed(&error))?;
        Ok(new)
    }

    fn writer(&self) -> Result<BufWriter<File>> {
        let file = File::options().write(true).open(&self.path).map_err(|error| self.failed(&error))?;
        Ok(BufWriter::with_capacity(1 << 20, file))
    }

    fn finish(self, mut out: BufWriter<File>) -> Result<()> {
        let finished = out.flush().and_then(|()| out.get_ref().sync_all());
        finished.and_then(|()| std::fs::rename(&self.path, self.wanted)).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        let kind = ErrorKind::of_disk(error);
        Error::new(kind, format!("write {}", self.wanted.display()), error.to_string()).advise("free space")
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        // Not there any more where it was finished.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The files of a set are under other keys than their names, which a snapshot cannot say.
fn refuse_set(path: &TreePath, item: &NamedItem) -> Result<()> {
    match &item.item {
        Item::File { key, .. } if penstock_types::set_of_data(key.as_bytes()).is_some() => {
            let reason = format!("{} is part of a set of files, which no snapshot can hold", item.name);
            Err(Error::new(ErrorKind::Unsupported, format!("freeze {path}"), reason)
                .advise("freeze a path without sets: they never change by themselves"))
        }
        _ => Ok(()),
    }
}
