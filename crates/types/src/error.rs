//! One error type. Its kind follows what the caller can do; its text says doing what, why, what now.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Result with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $errno:literal;)*) => {
        /// What went wrong, by what the caller can do about it. Codes are stable and have a page in the docs.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Every kind, in the order of the reference.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)*];

            /// Stable code, as in logs, JSON output and the docs.
            pub fn code(self) -> &'static str {
                match self { $(ErrorKind::$name => $code,)* }
            }

            /// The errno that a file system gives for it.
            pub fn errno(self) -> i32 {
                match self { $(ErrorKind::$name => $errno,)* }
            }
        }
    };
}

kinds! {
    /// Fix the input: an argument, a URL, a setting that cannot be right.
    InvalidInput = "invalid-input", 22;
    /// Nothing has that name.
    NotFound = "not-found", 2;
    /// Something has that name already.
    AlreadyExists = "already-exists", 17;
    /// A file was asked for and a directory is there.
    IsADirectory = "is-a-directory", 21;
    /// A directory was asked for and a file is there.
    NotADirectory = "not-a-directory", 20;
    /// A directory is to go, and something is in it.
    NotEmpty = "not-empty", 39;
    /// It cannot be moved there in one step: copy it, then remove it.
    CrossDevice = "cross-device", 18;
    /// The credentials are missing, wrong, expired or not entitled.
    PermissionDenied = "permission-denied", 13;
    /// The tree, attachment or file is read-only.
    ReadOnly = "read-only", 30;
    /// The pinned version is gone: open the file again.
    StaleVersion = "stale-version", 116;
    /// A condition on a write did not hold: somebody else changed the object.
    Conflict = "conflict", 116;
    /// The source or node cannot be reached or answers with failures: try later.
    Unavailable = "unavailable", 5;
    /// The deadline passed: try later or raise it.
    Timeout = "timeout", 110;
    /// The source asks for fewer requests; retries within the deadline did not help.
    RateLimited = "rate-limited", 11;
    /// Disk or budget is full: free space.
    NoSpace = "no-space", 28;
    /// Memory, descriptors or connections are used up: wait, or raise the limit.
    ResourceLimit = "resource-limit", 11;
    /// Bytes do not match their checksum or length.
    Corrupt = "corrupt", 5;
    /// Somebody holds it: wait, or stop the holder.
    Busy = "busy", 16;
    /// The source or this build cannot do that.
    Unsupported = "unsupported", 95;
    /// The work was cancelled.
    Cancelled = "cancelled", 125;
    /// The local disk failed.
    Disk = "disk", 5;
    /// A defect of ours: report it.
    Internal = "internal", 5;
}

impl ErrorKind {
    /// What a failed call to a local disk means: full, or failing.
    pub fn of_disk(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Disk,
        }
    }
}

/// An error: doing what to what, why, what now, facts last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Inner {
    kind: ErrorKind,
    action: String,
    reason: String,
    advice: Option<String>,
    facts: Vec<(String, String)>,
    retry_after_ms: Option<u64>,
}

impl Error {
    /// `action` names the operation and its object (`read s3://b/k`), `reason` says why it failed.
    pub fn new(kind: ErrorKind, action: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                action: action.into(),
                reason: reason.into(),
                advice: None,
                facts: Vec::new(),
                retry_after_ms: None,
            }),
        }
    }

    /// Adds what the caller can do now.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.inner.advice = Some(advice.into());
        self
    }

    /// Adds a fact, shown last as `name=value`. Never a secret.
    #[must_use]
    pub fn fact(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.inner.facts.push((name.into(), value.to_string()));
        self
    }

    /// Keeps how long the source asked us to wait.
    #[must_use]
    pub fn retry_after_ms(mut self, delay_ms: u64) -> Self {
        self.inner.retry_after_ms = Some(delay_ms);
        self
    }

    /// The same failure, said of another operation (an outer one that the caller knows by name). Of the operations
    /// inside it only the innermost is told, behind the reason, and that only if it names another object.
    #[must_use]
    pub fn during(mut self, action: impl Into<String>) -> Self {
        let inner_action = std::mem::replace(&mut self.inner.action, action.into());
        let object = inner_action.rsplit(' ').next().unwrap_or_default();
        let is_told = self.inner.reason.ends_with(')') || self.inner.action.contains(object);
        if !is_told {
            self.inner.reason = format!("{} ({inner_action})", self.inner.reason);
        }
        self
    }

    /// The same failure with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.inner.kind = kind;
        self
    }

    /// What the caller can do, as a kind.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The operation and its object.
    pub fn action(&self) -> &str {
        &self.inner.action
    }

    /// Why it failed.
    pub fn reason(&self) -> &str {
        &self.inner.reason
    }

    /// What to do now, where something can be done.
    pub fn advice(&self) -> Option<&str> {
        self.inner.advice.as_deref()
    }

    /// How long the source asked us to wait, where it did.
    pub fn requested_delay_ms(&self) -> Option<u64> {
        self.inner.retry_after_ms
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::RateLimited | ErrorKind::Corrupt)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.inner.action, self.inner.reason)?;
        if let Some(advice) = &self.inner.advice {
            write!(f, "; {advice}")?;
        }
        for (position, (name, value)) in self.inner.facts.iter().enumerate() {
            write!(f, "{}{name}={value}", if position == 0 { " (" } else { " " })?;
        }
        if !self.inner.facts.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_what_why_and_what_now_with_facts_last() {
        let error = Error::new(ErrorKind::StaleVersion, "read s3://b/k", "the object changed")
            .advise("open it again")
            .fact("pinned", "v1");
        assert_eq!(error.to_string(), "read s3://b/k: the object changed; open it again (pinned=v1)");
    }

    #[test]
    fn of_operations_in_one_another_the_outermost_and_the_innermost_are_told_and_no_object_twice() {
        let error = Error::new(ErrorKind::Unavailable, "read s3://b/k", "the connection was reset");
        let told = "open /data/k: the connection was reset (read s3://b/k)";
        assert_eq!(error.clone().during("open /data/k").to_string(), told);
        assert_eq!(error.clone().during("read /data/k").during("open /data/k").to_string(), told);
        assert_eq!(error.during("remove s3://b/k").to_string(), "remove s3://b/k: the connection was reset");
    }

    #[test]
    fn codes_are_unique() {
        let codes: std::collections::HashSet<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }
}
