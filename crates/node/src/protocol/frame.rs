//! A frame: `u32` little-endian length of what follows, one byte of protocol version, a postcard body. Pure.

use std::fmt;
use std::ops::Range;

use penstock_types::{Error, ErrorKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::PROTOCOL_VERSION;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 5;

/// Why a frame cannot be taken. The connection it came by is closed.
#[derive(Debug)]
pub enum FrameError {
    /// The other side speaks another version of the protocol.
    Version(u8),
    /// The length is more than the bound, or too small to hold the version.
    Length(usize),
    /// The connection ended inside a frame.
    Truncated,
    /// The body is not a message.
    Body(postcard::Error),
    /// The socket failed.
    Io(std::io::Error),
}

/// What is at the start of some received bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Not all of it; it will be so many bytes in all, as far as is known.
    Incomplete(usize),
    /// All of it: where its body is and where the next frame starts.
    Complete(Range<usize>),
}

/// Looks for a whole frame at the start of `bytes`, whose body has at most `limit` bytes.
pub fn split(bytes: &[u8], limit: usize) -> Result<Frame, FrameError> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(Frame::Incomplete(HEADER_BYTES));
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 || length - 1 > limit {
        return Err(FrameError::Length(length));
    }
    match rest.first() {
        None => return Ok(Frame::Incomplete(4 + length)),
        Some(&version) if version != PROTOCOL_VERSION => return Err(FrameError::Version(version)),
        Some(_) => {}
    }
    if rest.len() < length { Ok(Frame::Incomplete(4 + length)) } else { Ok(Frame::Complete(HEADER_BYTES..4 + length)) }
}

/// Appends a whole frame with `message` in it.
pub fn encode<T: Serialize>(message: &T, output: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = output.len();
    output.extend_from_slice(&[0, 0, 0, 0, PROTOCOL_VERSION]);
    let mut output_all = postcard::to_extend(message, std::mem::take(output)).map_err(FrameError::Body)?;
    let length = output_all.len() - start - 4;
    let header = u32::try_from(length).map_err(|_| FrameError::Length(length))?;
    output_all[start..start + 4].copy_from_slice(&header.to_le_bytes());
    *output = output_all;
    Ok(())
}

/// Reads the message of a body; bytes left over are an error.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::Length(rest.len())),
        Err(error) => Err(FrameError::Body(error)),
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(other) => {
                write!(f, "the other side speaks protocol {other}, this one speaks {PROTOCOL_VERSION}")
            }
            Self::Length(length) => write!(f, "a frame of {length} bytes is out of bounds"),
            Self::Truncated => f.write_str("the connection ended inside a frame"),
            Self::Body(error) => write!(f, "the frame does not hold a message: {error}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl FrameError {
    /// The error a client raises for it.
    pub fn into_error(self, action: &str) -> Error {
        let kind = match &self {
            Self::Version(_) => ErrorKind::Unsupported,
            Self::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock => ErrorKind::Timeout,
            Self::Io(_) | Self::Truncated => ErrorKind::Unavailable,
            Self::Length(_) | Self::Body(_) => ErrorKind::Internal,
        };
        let advice = match kind {
            ErrorKind::Unsupported => {
                "run one version of penstock: stop the node with penstock down and start it again"
            }
            ErrorKind::Timeout => "see whether the node is alive: penstock status",
            ErrorKind::Unavailable => "start the node: penstock up",
            _ => "report it",
        };
        let reason = match &self {
            Self::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock => "the node is silent".to_string(),
            other => other.to_string(),
        };
        Error::new(kind, action, reason).advise(advice)
    }
}

impl From<std::io::Error> for FrameError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for FrameError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Reply, Request};
    use penstock_testkit::corpus;
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_back_as_it_was_sent() {
        let mut bytes = Vec::new();
        let request = Request::Stat { path: "/data/a".into() };
        encode(&request, &mut bytes).unwrap();
        encode(&Request::Ping, &mut bytes).unwrap();
        let Frame::Complete(body) = split(&bytes, REQUEST_BYTES_MAX).unwrap() else { panic!("incomplete") };
        assert_eq!(decode::<Request>(&bytes[body.clone()]).unwrap(), request);
        let Frame::Complete(next) = split(&bytes[body.end..], REQUEST_BYTES_MAX).unwrap() else { panic!("incomplete") };
        assert_eq!(decode::<Request>(&bytes[body.end..][next]).unwrap(), Request::Ping);
    }

    #[test]
    fn another_version_and_an_absurd_length_are_told_apart() {
        assert!(matches!(split(&[2, 0, 0, 0, 9, 1], 100), Err(FrameError::Version(9))));
        assert!(matches!(split(&[0, 0, 0, 0, 1], 100), Err(FrameError::Length(0))));
        assert!(matches!(split(&[0xff; 5], 100), Err(FrameError::Length(_))));
    }

    fn corpus_of(name: &str) -> String {
        format!("{}/corpus/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    /// Whether a body is read as a message that is written as it was read.
    fn reads<T: DeserializeOwned + Serialize>(body: &[u8]) -> bool {
        let mut frame = Vec::new();
        decode::<T>(body).is_ok_and(|message| encode(&message, &mut frame).is_ok() && frame[HEADER_BYTES..] == *body)
    }

    /// A message of every kind in this version of the protocol, and bodies that announce what does not follow.
    #[test]
    fn the_corpus_of_messages_is_read_or_refused_as_it_must_be() {
        corpus::check(corpus_of("requests"), reads::<Request>);
        corpus::check(corpus_of("replies"), reads::<Reply>);
    }

    #[test]
    fn the_corpus_of_frames_is_taken_apart_or_refused_as_it_must_be() {
        corpus::check(corpus_of("frames"), |frame| match split(frame, REQUEST_BYTES_MAX) {
            Ok(Frame::Complete(body)) => decode::<Request>(&frame[body]).is_ok(),
            Ok(Frame::Incomplete(_)) | Err(_) => false,
        });
    }

    #[test]
    fn a_message_that_is_cut_or_has_a_bit_flipped_anywhere_does_no_harm() {
        for name in ["requests", "replies"] {
            for sample in corpus::samples(corpus_of(name)) {
                for at in 0..sample.bytes.len() {
                    let _ = (decode::<Request>(&sample.bytes[..at]), decode::<Reply>(&sample.bytes[..at]));
                    for bit in 0..8 {
                        let mut flipped = sample.bytes.clone();
                        flipped[at] ^= 1 << bit;
                        let _ = (decode::<Request>(&flipped), decode::<Reply>(&flipped));
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = split(&bytes, REPLY_BYTES_MAX);
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Reply>(&bytes);
        }

        #[test]
        fn a_damaged_request_is_an_error_or_another_request(at in 0usize..64, bit in 0u8..8) {
            let mut bytes = Vec::new();
            let request = Request::List { path: "/data/deep/directory".into(), after: Some("name".into()), limit: 7 };
            encode(&request, &mut bytes).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(Frame::Complete(body)) = split(&bytes, REQUEST_BYTES_MAX) {
                let _ = decode::<Request>(&bytes[body]);
            }
        }
    }
}
