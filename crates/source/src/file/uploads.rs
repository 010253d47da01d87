//! Multipart uploads in a directory: each is a hidden directory with its key and its parts, and outlives the process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use penstock_types::{
    CompletedPart, CopiedRange, Error, ErrorKind, ObjectAttributes, ObjectKey, PartInfo, Precondition, Result,
    UploadId, UploadInfo,
};

use super::publish::{Draft, hidden_directory, io_error};
use super::root::{Root, attributes_of, error_of, path_of};
use crate::check;

/// Upload directories begin with it.
const UPLOAD_PREFIX: &str = "upload-";
/// File with the key and the metadata of an upload.
const HEAD: &str = "head";
/// A key and its metadata are a few kilobytes.
const MAX_HEAD_BYTES: u64 = 1 << 20;

static SERIAL: AtomicU64 = AtomicU64::new(0);

pub(super) fn begin(root: &Root, action: &str, key: &ObjectKey, metadata: &[(String, String)]) -> Result<UploadId> {
    if path_of(key).is_none() {
        return Err(Error::new(ErrorKind::InvalidInput, action, "no file can have that name"));
    }
    let hidden = hidden_directory(root, action)?;
    let unlike = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let id = format!("{:x}-{unlike:x}-{:x}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
    let name = format!("{UPLOAD_PREFIX}{id}");
    rustix::fs::mkdirat(&hidden, name.as_str(), Mode::RWXU).map_err(|errno| error_of(action, errno))?;
    let directory = open_upload(&hidden, &name).map_err(|errno| error_of(action, errno))?;
    let mut head = create(&directory, HEAD).map_err(|errno| error_of(action, errno))?;
    head.write_all(&encode_head(key, metadata)).map_err(|error| io_error(action, &error))?;
    head.sync_all().map_err(|error| io_error(action, &error))?;
    Ok(UploadId(id))
}

pub(super) fn put_part(
    root: &Root,
    action: &str,
    (key, upload): (&ObjectKey, &UploadId),
    number: u32,
    body: &[u8],
) -> Result<PartInfo> {
    store_part(root, action, (key, upload), number, &mut &*body)
}

/// A part of bytes of another file, which is the same after that as before.
pub(super) fn copy_part(
    root: &Root,
    action: &str,
    (key, upload): (&ObjectKey, &UploadId),
    number: u32,
    copied: &CopiedRange,
) -> Result<PartInfo> {
    let gone = || Error::new(ErrorKind::Conflict, action, "the object is gone");
    let opened = root.open_object(action, &copied.from, OFlags::RDONLY);
    let (from, attributes) = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound && copied.from_version.is_some() => return Err(gone()),
        opened => opened?,
    };
    if let Some(version) = &copied.from_version {
        check::precondition(action, &Precondition::Version(version.clone()), Some(&attributes.version))?;
    }
    check::range(action, copied.range, attributes.size)?;
    let mut from = File::from(from);
    from.seek(SeekFrom::Start(copied.range.start)).map_err(|error| io_error(action, &error))?;
    let part = store_part(root, action, (key, upload), number, &mut (&from).take(copied.range.len()))?;
    let stat = rustix::fs::fstat(&from).map_err(|errno| error_of(action, errno))?;
    if part.size != copied.range.len() || attributes_of(&stat).as_ref() != Some(&attributes) {
        return Err(Error::new(ErrorKind::Conflict, action, "the object changed while it was copied"));
    }
    Ok(part)
}

fn store_part(
    root: &Root,
    action: &str,
    (key, upload): (&ObjectKey, &UploadId),
    number: u32,
    body: &mut impl Read,
) -> Result<PartInfo> {
    check::part_number(action, number)?;
    let (directory, _) = find(root, action, key, upload)?;
    let failed = |errno| error_of(action, errno);
    let draft = format!("draft-{number}-{:x}", SERIAL.fetch_add(1, Ordering::Relaxed));
    let mut file = create(&directory, &draft).map_err(failed)?;
    let written = std::io::copy(body, &mut file).and_then(|_| file.sync_data());
    if let Err(error) = written {
        let _ = rustix::fs::unlinkat(&directory, draft.as_str(), AtFlags::empty());
        return Err(io_error(action, &error));
    }
    rustix::fs::renameat(&directory, draft.as_str(), &directory, part_name(number)).map_err(failed)?;
    part_info(&directory, number).map_err(failed)
}

pub(super) fn list_parts(root: &Root, action: &str, key: &ObjectKey, upload: &UploadId) -> Result<Vec<PartInfo>> {
    let (directory, _) = find(root, action, key, upload)?;
    let mut parts = Vec::new();
    let failed = |errno| error_of(action, errno);
    for entry in rustix::fs::Dir::read_from(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let number = entry.file_name().to_str().ok().and_then(|name| name.strip_prefix("part-")?.parse().ok());
        if let Some(number) = number {
            parts.push(part_info(&directory, number).map_err(failed)?);
        }
    }
    parts.sort_by_key(|part| part.number);
    Ok(parts)
}

pub(super) fn complete(
    root: &Root,
    action: &str,
    (key, upload): (&ObjectKey, &UploadId),
    parts: &[CompletedPart],
    condition: &Precondition,
) -> Result<ObjectAttributes> {
    check::parts_ascend(action, parts)?;
    let (directory, metadata) = find(root, action, key, upload)?;
    let mut draft = Draft::new(root, action)?;
    for part in parts {
        let stored = part_info(&directory, part.number);
        if stored.is_err() || stored.is_ok_and(|stored| stored.etag != part.etag) {
            return Err(check::no_such_part(action, part.number));
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&directory, part_name(part.number), flags, Mode::empty());
        let mut file = File::from(fd.map_err(|errno| error_of(action, errno))?);
        std::io::copy(&mut file, &mut draft.file).map_err(|error| io_error(action, &error))?;
    }
    draft.describe(action, &metadata)?;
    let attributes = draft.publish(root, action, key, condition)?;
    // The object is there: what fails now leaves an upload that can still be aborted.
    let _ = remove(root, action, upload);
    Ok(attributes)
}

pub(super) fn abort(root: &Root, action: &str, key: &ObjectKey, upload: &UploadId) -> Result<()> {
    match find(root, action, key, upload) {
        Ok(_) => remove(root, action, upload),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn list(root: &Root, action: &str, prefix: &ObjectKey) -> Result<Vec<UploadInfo>> {
    let failed = |errno| error_of(action, errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let hidden = match rustix::fs::openat(&root.fd, super::root::HIDDEN, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut uploads = Vec::new();
    for entry in rustix::fs::Dir::read_from(&hidden).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(name) = entry.file_name().to_str().ok().filter(|name| name.starts_with(UPLOAD_PREFIX)) else {
            continue;
        };
        // One that is just being begun or removed has no head.
        let Ok(directory) = open_upload(&hidden, name) else { continue };
        if let Some((key, _)) = read_head(&directory)
            && key.as_bytes().starts_with(prefix.as_bytes())
        {
            uploads.push(UploadInfo { key, id: UploadId(name[UPLOAD_PREFIX.len()..].to_owned()) });
        }
    }
    uploads.sort_by(|a, b| (&a.key, &a.id.0).cmp(&(&b.key, &b.id.0)));
    Ok(uploads)
}

/// The directory of an upload of that key, and its metadata.
fn find(root: &Root, action: &str, key: &ObjectKey, upload: &UploadId) -> Result<(OwnedFd, Vec<(String, String)>)> {
    let missing = || Error::new(ErrorKind::NotFound, action, "there is no such upload: it was completed or aborted");
    // An id comes from outside: nothing but what ids of ours are made of may name a directory.
    if upload.0.is_empty() || !upload.0.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err(missing());
    }
    let hidden = hidden_directory(root, action)?;
    let directory = match open_upload(&hidden, &format!("{UPLOAD_PREFIX}{}", upload.0)) {
        Err(Errno::NOENT) => return Err(missing()),
        other => other.map_err(|errno| error_of(action, errno))?,
    };
    match read_head(&directory) {
        Some((of, metadata)) if of == *key => Ok((directory, metadata)),
        _ => Err(missing()),
    }
}

fn remove(root: &Root, action: &str, upload: &UploadId) -> Result<()> {
    let failed = |errno| error_of(action, errno);
    let hidden = hidden_directory(root, action)?;
    let name = format!("{UPLOAD_PREFIX}{}", upload.0);
    let directory = open_upload(&hidden, &name).map_err(failed)?;
    // The head goes first: without it the upload is no more, whatever happens to the rest.
    let _ = rustix::fs::unlinkat(&directory, HEAD, AtFlags::empty());
    for entry in rustix::fs::Dir::read_from(&directory).map_err(failed)?.flatten() {
        let _ = rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty());
    }
    rustix::fs::unlinkat(&hidden, name.as_str(), AtFlags::REMOVEDIR).map_err(failed)
}

fn open_upload(hidden: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(hidden, name, flags, Mode::empty())
}

fn create(directory: &OwnedFd, name: &str) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

fn part_name(number: u32) -> String {
    format!("part-{number}")
}

fn part_info(directory: &OwnedFd, number: u32) -> Result<PartInfo, Errno> {
    let stat = rustix::fs::statat(directory, part_name(number), AtFlags::SYMLINK_NOFOLLOW)?;
    let attributes = attributes_of(&stat).ok_or(Errno::NOENT)?;
    Ok(PartInfo { number, size: attributes.size, etag: attributes.version.to_string() })
}

/// Length-prefixed texts: key, then name and value of each entry.
fn encode_head(key: &ObjectKey, metadata: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let texts = metadata.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
    for text in std::iter::once(key.as_bytes()).chain(texts) {
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text);
    }
    bytes
}

fn decode_head(mut bytes: &[u8]) -> Option<(ObjectKey, Vec<(String, String)>)> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        texts.push(rest.get(..length)?.to_vec());
        bytes = &rest[length..];
    }
    let mut texts = texts.into_iter();
    let key = ObjectKey::new(texts.next()?);
    let mut metadata = Vec::new();
    while let Some(name) = texts.next() {
        metadata.push((String::from_utf8(name).ok()?, String::from_utf8(texts.next()?).ok()?));
    }
    Some((key, metadata))
}

fn read_head(directory: &OwnedFd) -> Option<(ObjectKey, Vec<(String, String)>)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::openat(directory, HEAD, flags, Mode::empty()).ok()?);
    let mut bytes = Vec::new();
    file.take(MAX_HEAD_BYTES).read_to_end(&mut bytes).ok()?;
    decode_head(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_head_comes_back_as_it_was(key in proptest::collection::vec(any::<u8>(), 1..64), metadata in proptest::collection::vec(("[a-z]{1,8}", ".{0,16}"), 0..4)) {
            let key = ObjectKey::new(key);
            prop_assert_eq!(decode_head(&encode_head(&key, &metadata)), Some((key, metadata)));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode_head(&bytes);
        }
    }

    /// Heads as they are kept, and heads that announce what does not follow.
    #[test]
    fn the_corpus_of_heads_is_read_or_refused_as_it_must_be() {
        penstock_testkit::corpus::check(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/heads"), |bytes| {
            decode_head(bytes).is_some_and(|(key, metadata)| encode_head(&key, &metadata) == bytes)
        });
    }
}
