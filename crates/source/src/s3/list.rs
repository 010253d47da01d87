//! Listings by ListObjectsV2, checked: in order, below the prefix, each key once.

use ::http::Method;

use penstock_types::{Error, ErrorKind, ListPage, ListRequest, ListedObject, ObjectAttributes, ObjectKey, Result};

use super::version::{version_of, weak_version};
use super::{Call, Purpose, S3, xml};
use crate::check;

/// No store gives more on one page.
const MAX_PAGE: usize = 1000;

impl S3 {
    pub(super) async fn list_objects(&self, request: ListRequest) -> Result<ListPage> {
        let action = self.action("list", &request.prefix);
        check::limit(&action, request.limit)?;
        if request.prefix.as_str().is_none() {
            return Err(Error::new(ErrorKind::InvalidInput, action, "keys of S3 are UTF-8"));
        }
        let limit = request.limit.min(MAX_PAGE).to_string();
        let mut query: Vec<(&str, &[u8])> = Vec::with_capacity(7);
        if let Some(token) = &request.continuation {
            query.push(("continuation-token", token.as_bytes()));
        }
        if request.delimited {
            query.push(("delimiter", b"/"));
        }
        query.push(("encoding-type", b"url"));
        query.push(("list-type", b"2"));
        query.push(("max-keys", limit.as_bytes()));
        query.push(("prefix", request.prefix.as_bytes()));
        if let (Some(start), None) = (&request.start_after, &request.continuation) {
            query.push(("start-after", utf8_part(start)));
        }
        let call = Call::new(Method::GET, self.address.uri(&ObjectKey::default(), &query)?);
        let (result, _) = self.document(&action, Purpose::Plain, "ListBucketResult", call).await?;
        let page = page(&action, &request, result)?;
        page.objects.iter().for_each(|object| self.notice_version(&object.attributes.version));
        Ok(page)
    }
}

/// A start key may be any bytes, its parameter only text. The text before the first other byte is no greater; what
/// lies between is dropped from the page.
fn utf8_part(start: &ObjectKey) -> &[u8] {
    start.as_bytes().utf8_chunks().next().map_or(&[], |chunk| chunk.valid().as_bytes())
}

fn page(action: &str, request: &ListRequest, result: xml::ListBucketResult) -> Result<ListPage> {
    let corrupt = |reason: &str| Error::new(ErrorKind::Corrupt, action, reason);
    let encoding = result.encoding_type.as_deref();
    let mut objects = Vec::with_capacity(result.contents.len());
    for entry in result.contents {
        let modified_ms = listed_ms(&entry.last_modified).ok_or_else(|| {
            corrupt("a LastModified cannot be read").fact("value", entry.last_modified.escape_default())
        })?;
        let version = entry.etag.as_deref().and_then(version_of);
        objects.push(ListedObject {
            key: xml::decode_key(&entry.key, encoding),
            attributes: ObjectAttributes {
                size: entry.size,
                modified_ms,
                version: version.unwrap_or_else(|| weak_version(modified_ms, entry.size)),
            },
        });
    }
    let prefixes: Vec<ObjectKey> =
        result.common_prefixes.iter().map(|entry| xml::decode_key(&entry.prefix, encoding)).collect();
    check_order(action, &request.prefix, objects.iter().map(|object| &object.key))?;
    check_order(action, &request.prefix, prefixes.iter())?;
    let continuation = match (result.is_truncated, result.next_continuation_token) {
        (false, _) => None,
        (true, Some(token)) if !token.is_empty() && request.continuation.as_ref() != Some(&token) => Some(token),
        (true, _) => return Err(corrupt("the page says that more follows, but not how to go on")),
    };
    let mut page = ListPage { objects, prefixes, continuation };
    if let Some(start) = &request.start_after {
        // Stores differ in whether a prefix that the start key lies in counts as being behind it. Here it does not.
        page.prefixes.retain(|prefix| prefix > start);
        page.objects.retain(|object| object.key > *start);
    }
    Ok(page)
}

/// Keys ascend and lie below the prefix.
fn check_order<'a>(action: &str, prefix: &ObjectKey, keys: impl Iterator<Item = &'a ObjectKey>) -> Result<()> {
    let mut last: Option<&ObjectKey> = None;
    for key in keys {
        if !key.as_bytes().starts_with(prefix.as_bytes()) {
            return Err(
                Error::new(ErrorKind::Corrupt, action, "a key is listed that is not below the prefix").fact("key", key)
            );
        }
        if last.is_some_and(|last| last >= key) {
            return Err(Error::new(ErrorKind::Corrupt, action, "the listing is not in key order").fact("key", key));
        }
        last = Some(key);
    }
    Ok(())
}

/// Whole seconds, as HEAD knows them.
fn listed_ms(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    time.as_second().checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(keys: &[&str], truncated: bool, token: Option<&str>) -> xml::ListBucketResult {
        xml::ListBucketResult {
            contents: keys
                .iter()
                .map(|key| xml::Contents {
                    key: (*key).to_owned(),
                    last_modified: "2024-01-02T03:04:05.678Z".to_owned(),
                    etag: Some("\"e\"".to_owned()),
                    size: 1,
                })
                .collect(),
            common_prefixes: Vec::new(),
            is_truncated: truncated,
            next_continuation_token: token.map(str::to_owned),
            encoding_type: None,
        }
    }

    fn below(prefix: &str) -> ListRequest {
        ListRequest { prefix: prefix.into(), limit: 10, ..ListRequest::default() }
    }

    #[test]
    fn a_page_has_whole_seconds_and_versions_without_quotes() {
        let page = page("list", &below("a"), result(&["a1", "a2"], false, None)).unwrap();
        assert_eq!(page.objects[0].attributes.modified_ms, 1_704_164_645_000);
        assert_eq!(page.objects[0].attributes.version.as_str(), "e");
        assert_eq!(page.continuation, None);
    }

    #[test]
    fn a_start_key_that_is_no_text_is_asked_for_by_the_text_before_it() {
        assert_eq!(utf8_part(&ObjectKey::new(b"a/\xc3\xbd\xff".to_vec())), "a/\u{fd}".as_bytes());
        assert_eq!(utf8_part(&ObjectKey::new(b"\xff".to_vec())), b"");
        let start_after = Some(ObjectKey::new(b"a\xff".to_vec()));
        let request = ListRequest { start_after, ..below("") };
        let page = page("list", &request, result(&["ab", "b"], false, None)).unwrap();
        assert_eq!(page.objects.len(), 1, "only what lies behind the bytes themselves");
    }

    #[test]
    fn a_page_that_contradicts_itself_is_corrupt() {
        for (request, result) in [
            (below("a"), result(&["b"], false, None)),
            (below(""), result(&["b", "a"], false, None)),
            (below(""), result(&["a", "a"], false, None)),
            (below(""), result(&["a"], true, None)),
        ] {
            assert_eq!(page("list", &request, result).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let again = ListRequest { continuation: Some("t".to_owned()), ..below("") };
        assert_eq!(page("list", &again, result(&["a"], true, Some("t"))).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
