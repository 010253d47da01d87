//! The XML of S3, read strictly: what is not the document that was asked for is `Corrupt`.

use bytes::Bytes;
use percent_encoding::percent_decode;
use quick_xml::Reader;
use quick_xml::events::Event;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use penstock_types::{Error, ErrorKind, ObjectKey, Result};

/// Most bytes of an answer in XML: a page of 1,000 keys of 1,024 bytes, each byte encoded as three, fits four times.
pub(crate) const MAX_XML_BYTES: usize = 16 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListBucketResult {
    #[serde(default)]
    pub contents: Vec<Contents>,
    #[serde(default)]
    pub common_prefixes: Vec<CommonPrefix>,
    #[serde(default)]
    pub is_truncated: bool,
    pub next_continuation_token: Option<String>,
    pub encoding_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Contents {
    #[serde(default)]
    pub key: String,
    pub last_modified: String,
    #[serde(rename = "ETag")]
    pub etag: Option<String>,
    pub size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CommonPrefix {
    #[serde(default)]
    pub prefix: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct InitiateMultipartUploadResult {
    pub upload_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct WrittenResult {
    #[serde(rename = "ETag")]
    pub etag: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListPartsResult {
    #[serde(default, rename = "Part")]
    pub parts: Vec<Part>,
    #[serde(default)]
    pub is_truncated: bool,
    pub next_part_number_marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Part {
    pub part_number: u32,
    pub size: u64,
    #[serde(rename = "ETag")]
    pub etag: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListMultipartUploadsResult {
    #[serde(default, rename = "Upload")]
    pub uploads: Vec<Upload>,
    #[serde(default)]
    pub is_truncated: bool,
    pub next_key_marker: Option<String>,
    pub next_upload_id_marker: Option<String>,
    pub encoding_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Upload {
    #[serde(default)]
    pub key: String,
    pub upload_id: String,
}

/// What a store says when it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ErrorDocument {
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub message: String,
    pub region: Option<String>,
    pub request_id: Option<String>,
}

/// Name of the outermost element, without its namespace; `None` where it is no XML.
pub(crate) fn root_name(text: &[u8]) -> Option<String> {
    let mut reader = Reader::from_reader(text);
    loop {
        match reader.read_event().ok()? {
            Event::Start(element) | Event::Empty(element) => {
                return Some(element.local_name().as_ref().to_owned());
            }
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::DocType(_) => {}
            Event::Text(text) if text.trim().is_empty() => {}
            _ => return None,
        }
    }
}

/// Reads the document `root`; anything else is `Corrupt`.
pub(crate) fn parse<T: DeserializeOwned>(action: &str, root: &str, body: &Bytes) -> Result<T> {
    let corrupt = |reason: String| {
        Error::new(ErrorKind::Corrupt, action, reason).advise("check that the endpoint is an S3 store and no web page")
    };
    // While a store still works on a request it may send spaces to keep the connection open.
    let body = body.trim_ascii_start();
    match root_name(body) {
        Some(name) if name == root => {}
        Some(name) => return Err(corrupt(format!("the answer is a <{name}> instead of a <{root}>"))),
        None => return Err(corrupt(format!("the answer is not XML where a <{root}> was expected"))),
    }
    let text = std::str::from_utf8(body).map_err(|_| corrupt("the answer is not UTF-8".to_owned()))?;
    quick_xml::de::from_str(text).map_err(|error| corrupt(format!("the <{root}> cannot be read: {error}")))
}

/// The error document in a body; `None` where the body is something else.
pub(crate) fn parse_error(body: &[u8]) -> Option<ErrorDocument> {
    if root_name(body)? != "Error" {
        return None;
    }
    quick_xml::de::from_str(std::str::from_utf8(body.trim_ascii_start()).ok()?).ok()
}

/// A key as the document gives it: percent-encoded where it says so, with `+` for a space.
pub(crate) fn decode_key(text: &str, encoding: Option<&str>) -> ObjectKey {
    if encoding != Some("url") {
        return ObjectKey::from(text);
    }
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return ObjectKey::new(percent_decode(spaced.as_bytes()).collect::<Vec<u8>>());
    }
    ObjectKey::new(percent_decode(text.as_bytes()).collect::<Vec<u8>>())
}

/// Text between tags or in an attribute.
pub(crate) fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_listing_is_read_with_and_without_entries() {
        let body = Bytes::from_static(
            br#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Name>b</Name><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
            <NextContinuationToken>t=</NextContinuationToken>
            <Contents><Key>a+b%2F1</Key><LastModified>2024-01-02T03:04:05.678Z</LastModified><ETag>&quot;e1&quot;</ETag>
            <Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>
            <CommonPrefixes><Prefix>p%2F</Prefix></CommonPrefixes></ListBucketResult>"#,
        );
        let page: ListBucketResult = parse("list", "ListBucketResult", &body).unwrap();
        assert_eq!(decode_key(&page.contents[0].key, page.encoding_type.as_deref()), ObjectKey::from("a b/1"));
        assert_eq!(page.contents[0].etag.as_deref(), Some("\"e1\""));
        assert!(page.is_truncated && page.common_prefixes.len() == 1);
        let empty = Bytes::from_static(b"<ListBucketResult/>");
        assert!(parse::<ListBucketResult>("list", "ListBucketResult", &empty).unwrap().contents.is_empty());
    }

    #[test]
    fn other_documents_are_corrupt() {
        for body in ["<html><body>log in</body></html>", "hello", "", "<ListBucketResult><Contents>", "{\"a\":1}"] {
            let error = parse::<ListBucketResult>("list", "ListBucketResult", &Bytes::from(body)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{body}");
        }
    }

    #[test]
    fn spaces_that_keep_a_connection_open_are_passed_over() {
        let error = parse_error(b"  \n <?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>").unwrap();
        assert_eq!(error.code, "InternalError");
        let body = Bytes::from_static(b"   <?xml version=\"1.0\"?><R><ETag>\"e\"</ETag></R>");
        assert_eq!(parse::<WrittenResult>("complete", "R", &body).unwrap().etag, "\"e\"");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..512)) {
            let body = Bytes::from(body);
            let _ = parse::<ListBucketResult>("list", "ListBucketResult", &body);
            let _ = parse_error(&body);
        }
    }

    /// Documents of stores, and what came in their place.
    #[test]
    fn the_corpus_of_documents_is_read_or_refused_as_it_must_be() {
        let corpus = |name: &str| format!("{}/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        penstock_testkit::corpus::check(corpus("listings"), |body| {
            let body = Bytes::copy_from_slice(body);
            parse::<ListBucketResult>("list", "ListBucketResult", &body).is_ok()
        });
        penstock_testkit::corpus::check(corpus("errors"), |body| parse_error(body).is_some());
    }
}
