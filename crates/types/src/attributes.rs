//! What is known of an object. The same for one version however it was learnt (LIST, HEAD, written here).

use serde::{Deserialize, Serialize};

use crate::Version;

/// Attributes of one object version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectAttributes {
    /// Content length, bytes.
    pub size: u64,
    /// Last modification, milliseconds since the Unix epoch; whole seconds where a source's HEAD knows no better.
    pub modified_ms: i64,
    /// Token of this content.
    pub version: Version,
}

/// Attributes and the user metadata that only a stat returns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStat {
    /// Size, time and version.
    pub attributes: ObjectAttributes,
    /// User metadata, names in lower case, sorted by name.
    pub metadata: Vec<(String, String)>,
    /// Other headers that the source keeps with it, such as `content-type`; names in lower case, sorted by name.
    pub headers: Vec<(String, String)>,
}
