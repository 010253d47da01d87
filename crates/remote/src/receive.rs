//! Taking an object's or a part's content: into a data file, with every checksum that the client sent.

use futures_util::StreamExt;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{S3Result, TrailingHeaders, s3_error};

use crate::data;
use crate::object::Segment;
use crate::store::{Store, internal};

/// What a request says of its content.
#[derive(Default)]
pub struct Promise {
    /// Bytes, where the request says so.
    pub length: Option<i64>,
    /// Base64 of the MD5.
    pub md5: Option<String>,
    /// Checksums in headers.
    pub checksums: Checksum,
    /// Checksums that come behind the body.
    pub trailers: Option<TrailingHeaders>,
    /// Which ones: the header `x-amz-trailer`.
    pub announced: String,
}

/// Content that arrived whole.
pub struct Received {
    /// Hexadecimal MD5.
    pub md5: String,
    /// Bytes.
    pub size: u64,
    /// Where it is.
    pub segments: Vec<Segment>,
}

/// Takes `body` and checks it against what was promised. Writes go to the page cache: they do not wait for a disk.
///
/// # Errors
/// `IncompleteBody` and `BadDigest`; nothing is left behind.
pub async fn receive(store: &Store, body: Option<StreamingBlob>, promise: Promise) -> S3Result<Received> {
    let mut writer = store.writer()?;
    let mut hasher = hasher(&promise);
    if let Some(mut body) = body {
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| s3_error!(IncompleteBody, "the body ended early: {error}"))?;
            hasher.update(&chunk);
            writer.write(&chunk).map_err(internal)?;
        }
    }
    let (file, md5) = writer.finish();
    if promise.length.is_some_and(|length| u64::try_from(length) != Ok(file.size())) {
        return Err(s3_error!(IncompleteBody, "The body has another length than was announced"));
    }
    check(&promise, &hasher.finalize(), md5)?;
    Ok(Received { md5: hexadecimal(&md5), size: file.size(), segments: data::whole(&file) })
}

const TRAILERS: [&str; 5] = [
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    "x-amz-checksum-crc64nvme",
];

fn hasher(promise: &Promise) -> ChecksumHasher {
    let sums = &promise.checksums;
    let trailing = |at: usize| promise.announced.split(',').any(|name| name.trim().eq_ignore_ascii_case(TRAILERS[at]));
    ChecksumHasher {
        crc32: (sums.checksum_crc32.is_some() || trailing(0)).then(Crc32::new),
        crc32c: (sums.checksum_crc32c.is_some() || trailing(1)).then(Crc32c::new),
        sha1: (sums.checksum_sha1.is_some() || trailing(2)).then(Sha1::new),
        sha256: (sums.checksum_sha256.is_some() || trailing(3)).then(Sha256::new),
        crc64nvme: (sums.checksum_crc64nvme.is_some() || trailing(4)).then(Crc64Nvme::new),
    }
}

fn check(promise: &Promise, computed: &Checksum, md5: [u8; 16]) -> S3Result<()> {
    let sent = &promise.checksums;
    let trailing = |name: &str| {
        let read =
            |headers: &http::HeaderMap| headers.get(name).and_then(|value| value.to_str().ok().map(String::from));
        promise.trailers.as_ref().and_then(|trailers| trailers.read(read)).flatten()
    };
    let pairs = [
        (&sent.checksum_crc32, &computed.checksum_crc32),
        (&sent.checksum_crc32c, &computed.checksum_crc32c),
        (&sent.checksum_sha1, &computed.checksum_sha1),
        (&sent.checksum_sha256, &computed.checksum_sha256),
        (&sent.checksum_crc64nvme, &computed.checksum_crc64nvme),
    ];
    for (name, (sent, computed)) in TRAILERS.into_iter().zip(pairs) {
        for expected in [sent.clone(), trailing(name)].into_iter().flatten() {
            if Some(&expected) != computed.as_ref() {
                return Err(s3_error!(BadDigest, "{name} does not match the content"));
            }
        }
    }
    if promise.md5.as_ref().is_some_and(|sent| *sent != base64(&md5)) {
        return Err(s3_error!(BadDigest, "Content-MD5 does not match the content"));
    }
    Ok(())
}

/// Lower-case hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal `text`; `None` where it is none.
pub fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|letter| letter.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| u8::try_from(high << 4 | low).ok());
    if rest.is_empty() { bytes.collect() } else { None }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0_u32, |word, (at, &byte)| word | u32::from(byte) << (16 - 8 * at));
        for at in 0..4 {
            let letter = ALPHABET[(word >> (18 - 6 * at) & 63) as usize] as char;
            text.push(if at <= chunk.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_standard_one() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
