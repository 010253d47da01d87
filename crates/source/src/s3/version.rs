//! Versions as a store's answers have them: the ETag; where an object has none, the weak one of its time and size.

use ::http::{HeaderMap, header};

use penstock_types::{Error, ErrorKind, ObjectAttributes, Result, Version};

/// A space ends what could be an ETag, so that nobody's ETag looks like a weak version.
const WEAK: &str = "weak ";

/// The version in an ETag: without its quotes; one that the store calls weak stays whole.
pub(super) fn version_of(etag: &str) -> Option<Version> {
    let etag = etag.trim();
    let bare = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(etag);
    (!bare.is_empty()).then(|| Version::from(bare))
}

/// The version that came with an answer, where one came.
pub(super) fn version_among(headers: &HeaderMap) -> Option<Version> {
    headers.get(header::ETAG).and_then(|etag| version_of(etag.to_str().ok()?))
}

/// The version that came with an answer; an answer without one is `Corrupt`.
pub(super) fn version_in(action: &str, headers: &HeaderMap) -> Result<Version> {
    version_among(headers).ok_or_else(|| Error::new(ErrorKind::Corrupt, action, "the answer has no ETag"))
}

/// The version of an object without an ETag, by what a listing and every answer say of it alike: whole seconds.
pub(super) fn weak_version(modified_ms: i64, size: u64) -> Version {
    Version::from(format!("{WEAK}{}-{size}", modified_ms.div_euclid(1000)).as_str())
}

/// The same of an object as it is now, whether it has an ETag or not.
pub(crate) fn weak_version_now(attributes: &ObjectAttributes) -> Version {
    weak_version(attributes.modified_ms, attributes.size)
}

/// Whether a version is only time and size.
pub fn is_weak(version: &Version) -> bool {
    version.as_str().starts_with(WEAK)
}

/// The ETag of a version, as conditions want it.
pub(super) fn quoted(version: &Version) -> String {
    if version.as_str().starts_with("W/") { version.to_string() } else { format!("\"{version}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_without_an_etag_has_one_weak_version_however_it_is_learnt() {
        assert_eq!(weak_version(1_704_164_645_678, 10), weak_version(1_704_164_645_000, 10));
        assert_ne!(weak_version(1_704_164_645_000, 10), weak_version(1_704_164_646_000, 10));
        assert_ne!(weak_version(1_704_164_645_000, 10), weak_version(1_704_164_645_000, 11));
        assert!(is_weak(&weak_version(-1, 0)));
    }

    #[test]
    fn no_etag_is_a_weak_version() {
        assert_eq!(version_of("\"\""), None);
        assert!(!is_weak(&version_of("W/\"e\"").unwrap()));
        assert!(!is_weak(&version_of("\"weak\"").unwrap()));
        assert_eq!(quoted(&Version::from("e")), "\"e\"");
        assert_eq!(quoted(&Version::from("W/\"e\"")), "W/\"e\"");
    }
}
