//! What the remote keeps of an object and of an upload, in memory and, the same, in its journal.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::DataFile;

/// One version of an object.
#[derive(Debug, Default)]
pub struct Object {
    /// Without quotes.
    pub etag: String,
    /// Content length, bytes.
    pub size: u64,
    /// Whole seconds since the Unix epoch, as HTTP headers know it: LIST and HEAD then agree.
    pub modified_s: u64,
    /// Metadata; `None` for most.
    pub extra: Option<Box<Extra>>,
    /// Where the content is, in order.
    pub segments: Vec<Segment>,
}

/// A run of bytes in a data file.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The file.
    pub file: Arc<DataFile>,
    /// First byte in it.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// User metadata and the headers that an object carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extra {
    /// User metadata, names in lower case.
    pub metadata: BTreeMap<String, String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`, without `aws-chunked`.
    pub content_encoding: Option<String>,
    /// `Content-Language`.
    pub content_language: Option<String>,
    /// `Content-Disposition`.
    pub content_disposition: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
}

impl Extra {
    /// `None` where nothing is said.
    pub fn boxed(self) -> Option<Box<Self>> {
        if self == Self::default() { None } else { Some(Box::new(self)) }
    }
}

/// A multipart upload under way.
#[derive(Debug)]
pub struct Upload {
    /// Bucket it is for.
    pub bucket: String,
    /// Key it is for.
    pub key: String,
    /// When it began, seconds since the Unix epoch.
    pub initiated_s: u64,
    /// Metadata of the object to be.
    pub extra: Option<Box<Extra>>,
    /// Parts by number.
    pub parts: BTreeMap<u32, Part>,
}

/// A part that was taken.
#[derive(Clone, Debug)]
pub struct Part {
    /// Hexadecimal MD5 of its content.
    pub etag: String,
    /// Bytes.
    pub size: u64,
    /// When it came.
    pub modified_s: u64,
    /// Where it is.
    pub segments: Vec<Segment>,
}
