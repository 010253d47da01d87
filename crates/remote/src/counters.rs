//! What was asked of the remote and what it moved.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one remote since it started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            /// Name and value of each, in the order of definition.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// HTTP requests of any kind, refused ones included.
    requests,
    /// Answers with a status of 400 or more.
    refused,
    /// `GetObject`.
    get,
    /// `HeadObject`.
    head,
    /// `ListObjects` and `ListObjectsV2`.
    list,
    /// `PutObject`.
    put,
    /// `CopyObject` and `UploadPartCopy`.
    copy,
    /// `DeleteObject` and `DeleteObjects`.
    delete,
    /// `CreateMultipartUpload`.
    create_upload,
    /// `UploadPart`.
    upload_part,
    /// `ListParts`.
    list_parts,
    /// `CompleteMultipartUpload`.
    complete_upload,
    /// `AbortMultipartUpload`.
    abort_upload,
    /// `ListMultipartUploads`.
    list_uploads,
    /// Requests about buckets.
    bucket,
    /// Bytes of answers' bodies.
    bytes_out,
    /// Bytes of requests' bodies.
    bytes_in,
    /// Connections accepted.
    connections,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
