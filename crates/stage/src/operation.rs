//! The name of a change.

use std::fmt;
use std::str::FromStr;

use penstock_types::{Error, ErrorKind, Result, Version};
use serde::{Deserialize, Serialize};

/// Begins the version of what is staged; behind it comes the operation.
const STAGED: &str = "staged-";

/// Names one change across nodes, starts and tries, so that a repeated upload is known for what it is. Sorted by age
/// on one node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct OperationId {
    /// Number of its record in the journal.
    pub(crate) sequence: u64,
    /// Start of the node in which it was committed.
    pub(crate) epoch: u64,
    /// The node.
    pub(crate) node: u64,
}

impl OperationId {
    /// The version that the change has while it is staged: `staged-<operation>`.
    pub fn version(&self) -> Version {
        Version(format!("{STAGED}{self}").into())
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}-{:x}", self.node, self.epoch, self.sequence)
    }
}

impl FromStr for OperationId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = || {
            let mut parts = text.splitn(3, '-').map(|part| u64::from_str_radix(part, 16).ok());
            let (node, epoch, sequence) = (parts.next()??, parts.next()??, parts.next()??);
            Some(Self { sequence, epoch, node }).filter(|operation| operation.to_string() == text)
        };
        let invalid = || Error::new(ErrorKind::InvalidInput, format!("read operation {text:?}"), "it is none");
        parsed().ok_or_else(invalid)
    }
}

/// The operation behind a `staged-…` version; `None` for a version of a source.
pub fn operation_of(version: &Version) -> Option<OperationId> {
    version.as_str().strip_prefix(STAGED)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staged_version_names_its_operation_and_no_other_text_does() {
        let operation = OperationId { sequence: 7, epoch: 2, node: 0xabc };
        assert_eq!(operation.version().as_str(), "staged-0000000000000abc-2-7");
        assert_eq!(operation_of(&operation.version()), Some(operation));
        for other in ["", "staged-", "staged-abc-2-7", "0000000000000abc-2-7", "staged-0000000000000abc-2-7-1"] {
            assert_eq!(operation_of(&Version::from(other)), None, "{other}");
        }
    }
}
