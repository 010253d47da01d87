//! Whether a request's conditions hold. Pure.

use std::time::{Duration, SystemTime};

use s3s::dto::{ETag, ETagCondition, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::object::Object;

/// What a request demands of the object that has the key now.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// `If-Match`.
    pub matches: Option<ETagCondition>,
    /// `If-None-Match`.
    pub none_matches: Option<ETagCondition>,
    /// `If-Modified-Since`.
    pub modified_since: Option<Timestamp>,
    /// `If-Unmodified-Since`.
    pub unmodified_since: Option<Timestamp>,
    /// `x-amz-if-match-size`.
    pub size: Option<i64>,
    /// `x-amz-if-match-last-modified-time`.
    pub modified: Option<Timestamp>,
}

impl Conditions {
    /// The two that writes have.
    pub fn of_write(matches: Option<ETagCondition>, none_matches: Option<ETagCondition>) -> Self {
        Self { matches, none_matches, ..Self::default() }
    }

    /// Checks a read of `object`, in the order of RFC 9110.
    ///
    /// # Errors
    /// `PreconditionFailed` (412), or `NotModified` (304) with the headers that it carries.
    pub fn check_read(&self, object: &Object) -> S3Result<()> {
        if self.fails_match(object) {
            return Err(s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold"));
        }
        if self.is_unchanged(object) {
            let mut error = S3Error::new(S3ErrorCode::NotModified);
            if let Ok(value) = etag_of(object).to_http_header() {
                error.set_headers([(http::header::ETAG, value)].into_iter().collect());
            }
            return Err(error);
        }
        Ok(())
    }

    /// Checks the source of a copy: as a read, but there is no 304.
    ///
    /// # Errors
    /// `PreconditionFailed`.
    pub fn check_copy(&self, object: &Object) -> S3Result<()> {
        if self.fails_match(object) || self.is_unchanged(object) {
            return Err(s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold"));
        }
        Ok(())
    }

    /// Checks a write over `current`.
    ///
    /// # Errors
    /// `PreconditionFailed`; `NoSuchKey` where something must match and nothing is there.
    pub fn check_write(&self, current: Option<&Object>) -> S3Result<()> {
        let Some(object) = current else {
            let demands = self.matches.is_some() || self.size.is_some() || self.modified.is_some();
            return if demands { Err(s3_error!(NoSuchKey, "The specified key does not exist.")) } else { Ok(()) };
        };
        let other_size = self.size.is_some_and(|size| u64::try_from(size) != Ok(object.size));
        let other_time = self.modified.as_ref().is_some_and(|time| *time != modified_of(object));
        if self.fails_match(object) || matches(self.none_matches.as_ref(), object) || other_size || other_time {
            return Err(s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold"));
        }
        Ok(())
    }

    fn fails_match(&self, object: &Object) -> bool {
        if self.matches.is_some() {
            return !matches(self.matches.as_ref(), object);
        }
        self.unmodified_since.as_ref().is_some_and(|time| modified_of(object) > *time)
    }

    fn is_unchanged(&self, object: &Object) -> bool {
        if self.none_matches.is_some() {
            return matches(self.none_matches.as_ref(), object);
        }
        self.modified_since.as_ref().is_some_and(|time| modified_of(object) <= *time)
    }
}

fn matches(condition: Option<&ETagCondition>, object: &Object) -> bool {
    match condition {
        None => false,
        Some(ETagCondition::Any) => true,
        Some(ETagCondition::ETag(etag)) => etag.value() == object.etag,
    }
}

/// The ETag as the protocol writes it.
pub fn etag_of(object: &Object) -> ETag {
    ETag::Strong(object.etag.clone())
}

/// The modification time as the protocol writes it.
pub fn modified_of(object: &Object) -> Timestamp {
    timestamp(object.modified_s)
}

/// Seconds since the Unix epoch as the protocol writes them.
pub fn timestamp(seconds: u64) -> Timestamp {
    (SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Object {
        Object { etag: "e1".into(), modified_s: 100, size: 5, ..Object::default() }
    }

    fn etag(text: &str) -> Option<ETagCondition> {
        Some(text.parse().unwrap())
    }

    fn code(result: S3Result<()>) -> String {
        result.map_or_else(|error| error.code().as_str().into(), |()| "ok".into())
    }

    #[test]
    fn a_read_is_refused_when_another_version_is_there_and_skipped_when_nothing_changed() {
        for (matches, none_matches, expected) in [
            ("\"e1\"", None, "ok"),
            ("*", None, "ok"),
            ("\"e2\"", None, "PreconditionFailed"),
            ("\"e1\"", Some("\"e1\""), "NotModified"),
            ("\"e1\"", Some("\"e2\""), "ok"),
        ] {
            let conditions = Conditions::of_write(etag(matches), none_matches.and_then(etag));
            assert_eq!(code(conditions.check_read(&object())), expected, "{matches} {none_matches:?}");
        }
        let since = Conditions { modified_since: Some(timestamp(100)), ..Conditions::default() };
        assert_eq!(code(since.check_read(&object())), "NotModified");
        assert_eq!(code(since.check_copy(&object())), "PreconditionFailed");
        let since = Conditions { unmodified_since: Some(timestamp(99)), ..Conditions::default() };
        assert_eq!(code(since.check_read(&object())), "PreconditionFailed");
    }

    #[test]
    fn a_write_is_refused_when_somebody_else_wrote() {
        let absent = Conditions::of_write(None, etag("*"));
        assert_eq!(code(absent.check_write(None)), "ok");
        assert_eq!(code(absent.check_write(Some(&object()))), "PreconditionFailed");
        let replace = Conditions::of_write(etag("\"e1\""), None);
        assert_eq!(code(replace.check_write(Some(&object()))), "ok");
        assert_eq!(code(replace.check_write(None)), "NoSuchKey");
        let replace = Conditions::of_write(etag("\"e2\""), None);
        assert_eq!(code(replace.check_write(Some(&object()))), "PreconditionFailed");
        let sized = Conditions { size: Some(6), ..Conditions::default() };
        assert_eq!(code(sized.check_write(Some(&object()))), "PreconditionFailed");
    }
}
