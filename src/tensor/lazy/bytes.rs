//! Bytes that many tensors share.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// What [`Bytes`] are part of.
pub trait Backing: AsRef<[u8]> + Send + Sync {
    /// The bytes of `range` are not needed for a while; they stay valid, and reading them again may take longer.
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }
}

impl Backing for Vec<u8> {}

/// A shared range of immutable bytes: part of a memory map or of a heap buffer.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Backing>,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: Arc<dyn Backing>) -> Self {
        let range = 0..(*owner).as_ref().len();
        Bytes { owner, range }
    }

    /// Says that these bytes are not needed for a while: the pages of a memory map leave this process.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }

    /// The sub-range `range`, relative to this one; `None` when it reaches outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (start <= end && end <= self.range.end).then(|| Bytes { owner: self.owner.clone(), range: start..end })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Self {
        Bytes::new(Arc::new(v))
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}
