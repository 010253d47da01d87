//! Sets: files that appear together. Their bytes lie under hidden keys, and a manifest beside the directory that they
//! are shown as makes them appear.
//!
//! ```text
//! DIR/.penstock-data.<id>/<path>     the bytes of one file, an ordinary object
//! DIR/.penstock-set.<name>           the manifest, put last: from then on DIR/<name>/<path> is there
//! ```

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result, Version};

/// What the component of a key begins with that names a manifest; behind it comes the name of the set.
pub const SET_MARK: &str = ".penstock-set.";
/// What the component of a key begins with below which the bytes of a set are; behind it comes the id of the set.
pub const SET_DATA_MARK: &str = ".penstock-data.";
/// What both begin with.
const HIDDEN_MARK: &[u8] = b".penstock-";
/// Bytes of a manifest that is read: about ten million files.
pub const MANIFEST_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// The format that is written.
const FORMAT: u32 = 1;

/// One file of a set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetFile {
    /// Path in the set.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// Version of the object that has its bytes.
    pub version: Version,
    /// CRC32C of the content, eight hexadecimal digits.
    pub crc32c: String,
}

/// What makes a set appear: its files, sorted by path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of this document.
    #[serde(rename = "penstock_set")]
    pub format: u32,
    /// Names the place of the bytes.
    pub id: String,
    /// Name of the directory that the set is shown as.
    pub name: String,
    /// When it was published, milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// What was promised to who published it: `local` or `source`.
    pub durability: String,
    /// The files, sorted by path.
    pub files: Vec<SetFile>,
    /// CRC32C of this document without the checksum, eight hexadecimal digits.
    #[serde(default)]
    pub crc32c: String,
}

impl Manifest {
    /// A manifest of these files, in any order.
    pub fn new(id: &str, name: &str, created_ms: i64, durability: &str, mut files: Vec<SetFile>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let (id, name, durability) = (id.to_owned(), name.to_owned(), durability.to_owned());
        Self { format: FORMAT, id, name, created_ms, durability, files, crc32c: String::new() }
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The document, with its checksum.
    pub fn encode(&self) -> Vec<u8> {
        let summed = Self { crc32c: self.sum(), ..self.clone() };
        let mut text = serde_json::to_vec_pretty(&summed).expect("a manifest is made of plain values");
        text.push(b'\n');
        text
    }

    /// Reads a document.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged; `Unsupported` when a newer Penstock wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            penstock_set: u32,
        }
        let damaged = |why: String| Error::new(ErrorKind::Corrupt, "read the manifest of a set", why);
        let format: Format = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if format.penstock_set > FORMAT {
            return Err(Error::new(ErrorKind::Unsupported, "read the manifest of a set", "a newer Penstock wrote it")
                .advise("install a newer version"));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if manifest.crc32c != manifest.sum() {
            return Err(damaged("its checksum does not match".into()).fact("says", &manifest.crc32c));
        }
        let is_sorted = manifest.files.windows(2).all(|two| two[0].path < two[1].path);
        if !is_sorted || !manifest.files.iter().all(|file| is_set_path(&file.path)) {
            return Err(damaged("its paths are no paths of a set, or not in order".into()));
        }
        Ok(manifest)
    }

    fn sum(&self) -> String {
        let plain = Self { crc32c: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&plain).expect("a manifest is made of plain values");
        format!("{:08x}", crc32c::crc32c(&text))
    }
}

/// Whether text can be a path in a set: relative, without empty, hidden and dot components.
pub fn is_set_path(path: &str) -> bool {
    !path.is_empty()
        && path
            .split('/')
            .all(|name| !name.is_empty() && name != "." && name != ".." && !name.as_bytes().starts_with(HIDDEN_MARK))
}

/// Whether text can be the name of a set: it comes behind its manifest in the order of keys.
pub fn is_set_name(name: &str) -> bool {
    is_set_path(name) && !name.contains('/') && name > SET_MARK && name.as_bytes()[0] > b'/'
}

/// The end of the first component of a key that is hidden, and where it begins.
pub fn hidden_component(key: &[u8]) -> Option<(usize, usize)> {
    let mut start = 0;
    loop {
        let rest = &key[start..];
        let length = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
        if rest.first() == Some(&b'.') && rest[..length].starts_with(HIDDEN_MARK) {
            return Some((start, start + length));
        }
        start += length + 1;
        if start > key.len() {
            return None;
        }
    }
}

/// The directory (with its `/`) and the name of the set that a key is the manifest of.
pub fn set_of_manifest(key: &[u8]) -> Option<(&[u8], &str)> {
    let (start, end) = hidden_component(key)?;
    let name = key[start..].strip_prefix(SET_MARK.as_bytes()).filter(|_| end == key.len())?;
    let name = std::str::from_utf8(name).ok().filter(|name| is_set_name(name))?;
    Some((&key[..start], name))
}

/// The directory (with its `/`), the id of the set and the path in it, of a key that has bytes of a set.
pub fn set_of_data(key: &[u8]) -> Option<(&[u8], &str, &[u8])> {
    let (start, end) = hidden_component(key)?;
    let id = key[start..end].strip_prefix(SET_DATA_MARK.as_bytes())?;
    Some((&key[..start], std::str::from_utf8(id).ok()?, key.get(end + 1..)?))
}

/// The key of a manifest in a directory (with its `/`).
pub fn manifest_key(directory: &[u8], name: &str) -> Vec<u8> {
    [directory, SET_MARK.as_bytes(), name.as_bytes()].concat()
}

/// What the keys of the bytes of a set begin with, in a directory (with its `/`).
pub fn data_prefix(directory: &[u8], id: &str) -> Vec<u8> {
    [directory, SET_DATA_MARK.as_bytes(), id.as_bytes(), b"/"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> SetFile {
        SetFile { path: path.into(), size: 3, modified_ms: 7, version: "v".into(), crc32c: "00000000".into() }
    }

    #[test]
    fn a_manifest_comes_back_from_its_document_and_a_damaged_one_is_refused() {
        let manifest = Manifest::new("17", "step-1", 5, "local", vec![file("b"), file("a/c")]);
        let text = manifest.encode();
        let read = Manifest::decode(&text).unwrap();
        assert_eq!((read.id.as_str(), read.size()), ("17", 6));
        assert_eq!(read.files, [file("a/c"), file("b")]);
        let damaged = String::from_utf8(text).unwrap().replace("\"size\": 3", "\"size\": 4");
        assert_eq!(Manifest::decode(damaged.as_bytes()).unwrap_err().kind(), ErrorKind::Corrupt);
        let newer = br#"{"penstock_set": 2}"#;
        assert_eq!(Manifest::decode(newer).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(Manifest::decode(b"{}").unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn hidden_keys_say_what_they_are() {
        assert_eq!(set_of_manifest(b"a/.penstock-set.s"), Some((&b"a/"[..], "s")));
        assert_eq!(set_of_manifest(b".penstock-set.s"), Some((&b""[..], "s")));
        assert_eq!(set_of_manifest(b".penstock-set.s/x"), None);
        assert_eq!(set_of_manifest(b"a/.penstock-set.-s"), None);
        assert_eq!(set_of_data(b"a/.penstock-data.7/x/y"), Some((&b"a/"[..], "7", &b"x/y"[..])));
        assert_eq!(set_of_data(b"a/.penstock-data.7"), None);
        assert_eq!(hidden_component(b"a/b/.penstock-data.7/x"), Some((4, 20)));
        assert_eq!(hidden_component(b"a/x.penstock-data.7/x"), None);
        assert_eq!(manifest_key(b"a/", "s"), b"a/.penstock-set.s");
        assert_eq!(data_prefix(b"", "7"), b".penstock-data.7/");
    }

    #[test]
    fn the_name_of_a_set_comes_behind_its_manifest() {
        for (name, valid) in [("step-1", true), ("1", true), ("_x", true), ("-x", false), (".x", false), ("a/b", false)]
        {
            assert_eq!(is_set_name(name), valid, "{name}");
        }
        assert!(!is_set_path("a/../b") && !is_set_path("/a") && !is_set_path("a//b") && is_set_path("a/.b"));
        assert!(!is_set_path("a/.penstock-set.x"));
    }
}
