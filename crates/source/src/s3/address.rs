//! Where a bucket is: endpoint, style, region, and the URIs of its keys.

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use penstock_types::{Error, ErrorKind, ObjectKey, Result};

/// Everything but what RFC 3986 calls unreserved, as the signature wants it.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same, with the separator of keys left as it is.
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// Address of a bucket.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// `http` or `https`.
    scheme: &'static str,
    /// `host[:port]` without a default port, in lower case.
    authority: String,
    bucket: String,
    virtual_host: bool,
    is_aws: bool,
}

impl Address {
    /// Checks the parts of an S3 source.
    pub(crate) fn new(bucket: &str, endpoint: Option<&str>, region: &str, virtual_host: Option<bool>) -> Result<Self> {
        check_bucket(bucket)?;
        check_region(bucket, region)?;
        let (scheme, authority) = match endpoint {
            Some(endpoint) => parse_endpoint(bucket, endpoint)?,
            None => ("https", aws_authority(region)),
        };
        let is_aws = authority.ends_with(".amazonaws.com") || authority.ends_with(".amazonaws.com.cn");
        // A dot in the bucket's name does not match the wildcard of the store's certificate.
        let fits_host = !(scheme == "https" && bucket.contains('.')) && bucket.bytes().all(is_host_byte);
        let virtual_host = virtual_host.unwrap_or(is_aws && fits_host);
        Ok(Self { scheme, authority, bucket: bucket.to_owned(), virtual_host, is_aws })
    }

    /// Service, endpoint and bucket: the same however the bucket is reached. Names of AWS buckets are unique
    /// over its regions.
    pub(crate) fn identity(&self) -> String {
        if self.is_aws {
            let partition = if self.authority.ends_with(".cn") { "aws-cn" } else { "aws" };
            return format!("s3:{partition}/{}", self.bucket);
        }
        format!("s3:{}://{}/{}", self.scheme, self.authority, self.bucket)
    }

    /// Name of the bucket.
    pub(crate) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// `scheme://host[:port]`.
    pub(crate) fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// Whether TLS protects what is sent.
    pub(crate) fn is_https(&self) -> bool {
        self.scheme == "https"
    }

    /// How messages name a key.
    pub(crate) fn describe(&self, key: &ObjectKey) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    /// URI of an object, or of the bucket where the key is empty.
    pub(crate) fn uri(&self, key: &ObjectKey, query: &[(&str, &[u8])]) -> Result<Uri> {
        if key.as_str().is_none() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("address {}", self.describe(key)),
                "keys of S3 are UTF-8",
            ));
        }
        let mut text = String::with_capacity(self.authority.len() + key.as_bytes().len() + 64);
        text.push_str(self.scheme);
        text.push_str("://");
        if self.virtual_host {
            text.push_str(&self.bucket);
            text.push('.');
        }
        text.push_str(&self.authority);
        text.push('/');
        if !self.virtual_host {
            text.push_str(&self.bucket);
            if !key.is_empty() {
                text.push('/');
            }
        }
        text.extend(percent_encode(key.as_bytes(), PATH));
        for (position, (name, value)) in query.iter().enumerate() {
            text.push(if position == 0 { '?' } else { '&' });
            text.push_str(name);
            text.push('=');
            text.extend(percent_encode(value, QUERY));
        }
        text.parse().map_err(|error| {
            Error::new(ErrorKind::InvalidInput, format!("address {}", self.describe(key)), format!("{error}"))
        })
    }

    /// Value of `x-amz-copy-source` for a key.
    pub(crate) fn copy_source(&self, key: &ObjectKey) -> String {
        format!("/{}/{}", self.bucket, percent_encode(key.as_bytes(), PATH))
    }
}

fn aws_authority(region: &str) -> String {
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("s3.{region}.amazonaws.com{suffix}")
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
}

fn check_bucket(bucket: &str) -> Result<()> {
    /// Names up to 255 bytes exist from before the limit of 63.
    const MAX_BUCKET_BYTES: usize = 255;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if bucket.is_empty() || bucket.len() > MAX_BUCKET_BYTES || !bucket.bytes().all(fits) || bucket.starts_with('.') {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("use bucket {bucket:?}"),
            "a bucket's name has letters, digits, '-', '.' and '_' only",
        )
        .advise("write s3://BUCKET/PREFIX"));
    }
    Ok(())
}

/// A region becomes a part of a host and of every signature.
fn check_region(bucket: &str, region: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if region.is_empty() || !region.bytes().all(fits) {
        let action = format!("use the region {region:?} for bucket {bucket}");
        return Err(Error::new(ErrorKind::InvalidInput, action, "a region has letters, digits, '-' and '_' only")
            .advise("name the region of the bucket, such as us-east-1"));
    }
    Ok(())
}

/// Never repeats the endpoint's text in an error: somebody may have put a password into it.
fn parse_endpoint(bucket: &str, endpoint: &str) -> Result<(&'static str, String)> {
    let invalid = |reason: &str| {
        Error::new(ErrorKind::InvalidInput, format!("use the endpoint of bucket {bucket}"), reason)
            .advise("write it as http(s)://HOST[:PORT]")
    };
    let uri: Uri = endpoint.trim_end_matches('/').parse().map_err(|_| invalid("it is not a URL"))?;
    let scheme = match uri.scheme_str() {
        Some("http") => "http",
        Some("https") => "https",
        _ => return Err(invalid("it does not begin with http:// or https://")),
    };
    let authority = uri.authority().ok_or_else(|| invalid("it names no host"))?;
    if authority.as_str().contains('@') {
        return Err(invalid("it contains a user name or password")
            .advise("give credentials by reference: env, profile:NAME, file:PATH, chain or anonymous"));
    }
    if authority.host().is_empty() || (uri.path() != "/" && !uri.path().is_empty()) || uri.query().is_some() {
        return Err(invalid("it has more or less than a host and a port"));
    }
    let default_port = if scheme == "https" { 443 } else { 80 };
    let host = authority.host().to_ascii_lowercase();
    match authority.port_u16() {
        Some(port) if port != default_port => Ok((scheme, format!("{host}:{port}"))),
        _ => Ok((scheme, host)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uri(address: &Address, key: &str) -> String {
        address.uri(&ObjectKey::from(key), &[]).unwrap().to_string()
    }

    #[test]
    fn aws_buckets_are_in_the_host_name_and_others_in_the_path() {
        let aws = Address::new("logs", None, "eu-west-1", None).unwrap();
        assert_eq!(uri(&aws, "a/b c"), "https://logs.s3.eu-west-1.amazonaws.com/a/b%20c");
        let dotted = Address::new("my.logs", None, "eu-west-1", None).unwrap();
        assert_eq!(uri(&dotted, "a"), "https://s3.eu-west-1.amazonaws.com/my.logs/a");
        let own = Address::new("logs", Some("http://127.0.0.1:9000/"), "us-east-1", None).unwrap();
        assert_eq!(uri(&own, "a"), "http://127.0.0.1:9000/logs/a");
        let forced = Address::new("logs", Some("http://store:9000"), "us-east-1", Some(true)).unwrap();
        assert_eq!(uri(&forced, "a"), "http://logs.store:9000/a");
    }

    #[test]
    fn odd_keys_reach_the_wire_as_they_are() {
        let address = Address::new("b", Some("http://h"), "us-east-1", None).unwrap();
        assert_eq!(uri(&address, "e/../f//g/./h/"), "http://h/b/e/../f//g/./h/");
        assert_eq!(uri(&address, "/lead"), "http://h/b//lead");
        assert_eq!(uri(&address, "ü+?#%\u{1}"), "http://h/b/%C3%BC%2B%3F%23%25%01");
    }

    #[test]
    fn the_identity_is_one_for_every_way_to_the_bucket() {
        let by = |endpoint, style| Address::new("b", endpoint, "us-east-1", style).unwrap().identity();
        assert_eq!(by(Some("http://H:80"), Some(true)), by(Some("http://h/"), None));
        assert_eq!(by(None, None), by(Some("https://s3.eu-west-1.amazonaws.com"), Some(false)));
        assert_ne!(by(Some("http://h"), None), by(Some("https://h"), None));
    }

    #[test]
    fn an_endpoint_with_a_password_is_refused_without_repeating_it() {
        let error = Address::new("b", Some("https://user:hunter2@h"), "r", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        for bad in ["h", "ftp://h", "http://", "http://h/path", "http://h?x=1"] {
            assert!(Address::new("b", Some(bad), "r", None).is_err(), "{bad}");
        }
        assert!(Address::new("a/b", None, "r", None).is_err());
    }

    #[test]
    fn a_region_that_would_lead_to_another_host_is_refused() {
        for bad in ["", "#", "x.evil/", "a@b", "us east"] {
            assert_eq!(Address::new("b", None, bad, None).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
        assert!(Address::new("b", None, "eu-west-1", None).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_an_address_that_names_its_keys_and_keeps_no_password(
            bucket in "[a-z0-9._-]{0,12}|\\PC{0,12}",
            endpoint in proptest::option::of("https?://[a-z0-9.:@/?\\[\\]-]{0,20}|\\PC{0,20}"),
            region in "[a-z0-9-]{0,12}|\\PC{0,12}",
            virtual_host in any::<Option<bool>>(),
            key in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(address) = Address::new(&bucket, endpoint.as_deref(), &region, virtual_host) {
                prop_assert!(!address.identity().contains('@') || endpoint.is_none());
                if let Ok(uri) = address.uri(&ObjectKey::new(key), &[("prefix", b"a b/c")]) {
                    prop_assert!(uri.authority().is_some() && uri.query().is_some());
                }
            }
        }
    }
}
