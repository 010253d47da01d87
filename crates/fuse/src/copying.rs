//! Copies between open files: the bytes go from cache or stage to the stage, and not through the program that wants them
//! copied.

use std::sync::Arc;

use fuser::{Errno, ReplyWrite};
use futures_util::FutureExt;
use penstock_types::{Answer, ByteRange, NodeFile, NodeWriter, Result};

use crate::service::Service;

/// Most bytes of one call; who asks for more is told how many they were, and asks again. Less than what a deadline allows.
const COPY_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes that are held in memory meanwhile.
const STEP: u64 = 1024 * 1024;

/// A place in an open file.
#[derive(Clone, Copy)]
pub struct At {
    pub handle: u64,
    pub offset: u64,
}

/// Copies up to `length` bytes from one file to another, or to another place of the same one.
pub fn copy(service: &Arc<Service>, from: At, to: At, length: u64, reply: ReplyWrite) {
    let (source, target) = (service.files.get(from.handle), service.files.get(to.handle));
    let (Some(source), Some(target)) = (source, target.filter(|target| target.writing.is_some())) else {
        // The kernel does it by itself.
        return reply.error(Errno::EOPNOTSUPP);
    };
    let length = length.min(COPY_BYTES_MAX);
    let range = |at: At| at.offset.checked_add(length).map(|end| ByteRange::new(at.offset, end));
    let (Some(range), Some(goes)) = (range(from), range(to)) else { return reply.error(Errno::EINVAL) };
    if source.node == target.node && !range.intersect(goes).is_empty() {
        return reply.error(Errno::EINVAL);
    }
    let node = source.node;
    let copying = async move {
        let Some(writing) = &target.writing else { return Ok(0) };
        copied(source.file(), writing.writer(), range, to.offset).await
    };
    service.change("copy_file_range", Answer::Later(copying.boxed()), move |service, copied| match copied {
        Ok(copied) => {
            service.surroundings.metrics.kernel_copied_bytes.inc_by(copied);
            reply.written(u32::try_from(copied).expect("a call copies less"));
        }
        Err(errno) => {
            if errno == Errno::ESTALE {
                service.expire(node);
            }
            reply.error(errno);
        }
    });
}

/// Copies up to the end of the file; how many bytes. What was copied before a failure is copied.
async fn copied(from: &Arc<dyn NodeFile>, to: &Arc<dyn NodeWriter>, range: ByteRange, mut at: u64) -> Result<u64> {
    let mut next = range.start;
    while next < range.end {
        let step = ByteRange::new(next, range.end.min(next + STEP));
        match copied_step(from, to, step, at).await {
            Ok(0) => break,
            Ok(count) => (next, at) = (next + count, at + count),
            Err(_) if next > range.start => break,
            Err(error) => return Err(error),
        }
    }
    Ok(next - range.start)
}

async fn copied_step(from: &Arc<dyn NodeFile>, to: &Arc<dyn NodeWriter>, step: ByteRange, at: u64) -> Result<u64> {
    let mut bytes = vec![0; usize::try_from(step.len()).expect("a step fits memory")];
    match from.read_now(step.start, &mut bytes)? {
        Some(count) => bytes.truncate(count),
        None => bytes = Arc::clone(from).bring(step).await?,
    }
    if bytes.is_empty() {
        return Ok(0);
    }
    match to.write(at, &bytes) {
        Answer::Now(written) => written?,
        Answer::Later(written) => written.await?,
    }
    Ok(bytes.len() as u64)
}
