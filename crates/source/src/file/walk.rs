//! Listing a directory in key order: depth first, each directory read once and sorted as its keys sort.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use penstock_types::{ListPage, ListRequest, ListedObject, ObjectKey, Result};

use super::root::{HIDDEN, Root, error_of};
use crate::check;

/// Walks that wait for their next page.
const MAX_PARKED: usize = 16;
/// Names that all parked walks hold together; about 40 bytes each.
const MAX_PARKED_NAMES: usize = 2_000_000;
/// Most entries of one page.
const MAX_PAGE: usize = 1000;

/// Where a listing stands.
struct Walk {
    frames: Vec<Frame>,
    delimited: bool,
}

/// A directory on the way: its names, sorted, and how far they are listed.
struct Frame {
    /// Keys of its entries begin with this.
    prefix: Vec<u8>,
    names: Names,
    next: usize,
    /// Closed while the walk is parked.
    directory: Option<OwnedFd>,
}

/// What of a directory belongs to a listing.
struct Scope<'a> {
    /// Names begin with it.
    rest: &'a [u8],
    /// Keys are greater.
    start_after: Option<&'a ObjectKey>,
    /// Directories are entries themselves.
    delimited: bool,
}

/// Names in one buffer: a directory of a million files is a million names.
#[derive(Default)]
struct Names {
    text: Vec<u8>,
    /// Start and end in `text`, and whether it is a directory (its text then ends with `/`).
    spans: Vec<(u32, u32, bool)>,
}

impl Names {
    fn get(&self, index: usize) -> Option<(&[u8], bool)> {
        let (start, end, is_directory) = *self.spans.get(index)?;
        Some((&self.text[start as usize..end as usize], is_directory))
    }
}

/// Walks between two pages of a listing, so that a page does not read its directories again. What is not here any
/// more is walked again from its last key.
#[derive(Default)]
pub(super) struct Parked {
    walks: Mutex<(u64, VecDeque<(u64, Walk)>)>,
}

impl Parked {
    fn park(&self, walk: Walk) -> u64 {
        let mut guard = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, walks) = &mut *guard;
        *next += 1;
        let ticket = *next;
        walks.push_back((ticket, walk));
        let names = |walks: &VecDeque<(u64, Walk)>| walks.iter().map(|(_, walk)| walk.names()).sum::<usize>();
        while walks.len() > MAX_PARKED || (walks.len() > 1 && names(walks) > MAX_PARKED_NAMES) {
            walks.pop_front();
        }
        ticket
    }

    fn take(&self, ticket: u64) -> Option<Walk> {
        let mut guard = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        let position = guard.1.iter().position(|(other, _)| *other == ticket)?;
        guard.1.remove(position).map(|(_, walk)| walk)
    }
}

/// One page of a listing. Blocks on the file system.
pub(super) fn page(root: &Root, parked: &Parked, request: &ListRequest) -> Result<ListPage> {
    let action = format!("list {}", root.describe(&request.prefix));
    check::limit(&action, request.limit)?;
    let failed = |errno| error_of(&action, errno);
    let resumed = request.continuation.as_deref().map(parse_continuation);
    let start_after = resumed.as_ref().map(|(_, key)| key.clone()).or(request.start_after.clone());
    let walk = match resumed.and_then(|(ticket, _)| parked.take(ticket)) {
        Some(walk) => Some(walk),
        None => Walk::begin(root, request, start_after.as_ref()).map_err(failed)?,
    };
    let Some(mut walk) = walk else { return Ok(ListPage::default()) };
    let mut page = ListPage::default();
    if request.delimited && start_after.is_none() {
        page.objects.extend(walk.marker(&request.prefix));
    }
    let limit = request.limit.min(MAX_PAGE);
    let mut last = None;
    while page.objects.len() + page.prefixes.len() < limit {
        match walk.next(root, start_after.as_ref()).map_err(failed)? {
            None => return Ok(page),
            Some(Found::Object(object)) => {
                last = Some(object.key.clone());
                page.objects.push(object);
            }
            Some(Found::Prefix(prefix)) => {
                last = Some(prefix.clone());
                page.prefixes.push(prefix);
            }
        }
    }
    if let Some(last) = last
        && walk.has_more()
    {
        walk.frames.iter_mut().for_each(|frame| frame.directory = None);
        page.continuation = Some(format!("{}.{}", parked.park(walk), check::encode_token(&last)));
    }
    Ok(page)
}

fn parse_continuation(token: &str) -> (u64, ObjectKey) {
    let (ticket, key) = token.split_once('.').unwrap_or(("0", token));
    (ticket.parse().unwrap_or(0), check::decode_token(key))
}

enum Found {
    Object(ListedObject),
    Prefix(ObjectKey),
}

impl Walk {
    /// Stands before the first entry below the prefix; `None` where no key can begin with it.
    fn begin(root: &Root, request: &ListRequest, start_after: Option<&ObjectKey>) -> Result<Option<Self>, Errno> {
        let prefix = request.prefix.as_bytes();
        let base_length = prefix.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (base, rest) = prefix.split_at(base_length);
        let directory = base.strip_suffix(b"/").unwrap_or(base);
        if !base.is_empty() && super::root::path_of(&ObjectKey::new(directory.to_vec())).is_none() {
            return Ok(None);
        }
        let frame = match Frame::read(root, base.to_vec(), &Scope { rest, start_after, delimited: request.delimited }) {
            Ok(frame) => frame,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        Ok(Some(Self { frames: vec![frame], delimited: request.delimited }))
    }

    fn next(&mut self, root: &Root, start_after: Option<&ObjectKey>) -> Result<Option<Found>, Errno> {
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(None) };
            let Some((name, is_directory)) = frame.names.get(frame.next) else {
                self.frames.pop();
                continue;
            };
            let key = [&frame.prefix[..], name].concat();
            frame.next += 1;
            if is_directory && self.delimited {
                return Ok(Some(Found::Prefix(ObjectKey::new(key))));
            }
            if is_directory {
                match Frame::read(root, key, &Scope { rest: b"", start_after, delimited: false }) {
                    Ok(frame) => self.frames.push(frame),
                    // It went away, or it is not for us: a listing shows what there is to see.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => {}
                    Err(errno) => return Err(errno),
                }
                continue;
            }
            let name = name.to_vec();
            let attributes = frame.attributes(root, &name)?;
            if let Some(attributes) = attributes {
                return Ok(Some(Found::Object(ListedObject { key: ObjectKey::new(key), attributes })));
            }
        }
    }

    /// What stands for the directory that is listed where it is empty, so that it is there for who asks for it as it
    /// is for who lists its parent. It can be listed, not read.
    fn marker(&self, prefix: &ObjectKey) -> Option<ListedObject> {
        let [Frame { names, directory: Some(directory), .. }] = &self.frames[..] else { return None };
        if !names.spans.is_empty() || !prefix.as_bytes().ends_with(b"/") {
            return None;
        }
        let attributes = super::root::marker_attributes(directory)?;
        Some(ListedObject { key: prefix.clone(), attributes })
    }

    /// Whether anything may follow; a page may still come out empty.
    fn has_more(&self) -> bool {
        self.frames.iter().any(|frame| frame.next < frame.names.spans.len())
    }

    fn names(&self) -> usize {
        self.frames.iter().map(|frame| frame.names.spans.len()).sum()
    }
}

impl Frame {
    /// Reads a directory: the names that begin with `rest` and hold keys behind `start_after`.
    fn read(root: &Root, prefix: Vec<u8>, scope: &Scope<'_>) -> Result<Self, Errno> {
        let directory = root.open_directory(prefix.strip_suffix(b"/").unwrap_or(&prefix))?;
        let mut names = Names::default();
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || (prefix.is_empty() && name == HIDDEN.as_bytes()) {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Directory => true,
                FileType::RegularFile | FileType::Symlink => false,
                FileType::Unknown => match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                    Err(_) => continue,
                },
                _ => continue,
            };
            names.add(&prefix, name, is_directory, scope);
        }
        let Names { text, spans } = &mut names;
        spans.sort_unstable_by(|a, b| text[a.0 as usize..a.1 as usize].cmp(&text[b.0 as usize..b.1 as usize]));
        Ok(Self { prefix, names, next: 0, directory: Some(directory) })
    }

    fn attributes(&mut self, root: &Root, name: &[u8]) -> Result<Option<penstock_types::ObjectAttributes>, Errno> {
        if self.directory.is_none() {
            self.directory = match root.open_directory(self.prefix.strip_suffix(b"/").unwrap_or(&self.prefix)) {
                Ok(directory) => Some(directory),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(errno) => return Err(errno),
            };
        }
        Ok(self.directory.as_ref().and_then(|directory| root.entry_attributes(directory, &self.prefix, name)))
    }
}

impl Names {
    /// Adds a name unless everything under it lies outside of the listing.
    fn add(&mut self, prefix: &[u8], name: &[u8], is_directory: bool, scope: &Scope<'_>) {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        if is_directory {
            self.text.push(b'/');
        }
        let entry = &self.text[start..];
        let passed = scope.start_after.is_some_and(|after| {
            // Compared piece by piece: there may be a million of them.
            let after = after.as_bytes();
            match after.strip_prefix(prefix) {
                Some(after) => {
                    // A directory on the way to the start key still holds keys behind it; as a prefix it is passed.
                    let on_the_way = is_directory && !scope.delimited && after.starts_with(entry);
                    entry <= after && !on_the_way
                }
                None => prefix < after,
            }
        });
        let fits = u32::try_from(self.text.len()).ok();
        match fits {
            Some(end) if entry.starts_with(scope.rest) && !passed => self.spans.push((start as u32, end, is_directory)),
            _ => self.text.truncate(start),
        }
    }
}
