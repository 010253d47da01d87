//! Where the engine can get a range of a pinned object from: today the source, tomorrow a peer first.

use async_trait::async_trait;

use crate::{ByteRange, ObjectBody, ObjectId, Priority, Result};

/// One place to get bytes of an object version from. The engine asks its origins in order.
#[async_trait]
pub trait Origin: Send + Sync + 'static {
    /// Name in metrics and logs: `source`, `peer`.
    fn name(&self) -> &'static str;

    /// Exactly `range` of exactly `object`, or an error.
    async fn read(&self, object: &ObjectId, range: ByteRange, priority: Priority) -> Result<ObjectBody>;
}
