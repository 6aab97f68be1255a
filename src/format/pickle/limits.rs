//! A limit on everything that a checkpoint declares. Each is checked before anything is allocated for it.
//!
//! The yardstick is the largest checkpoint that anybody trains an adapter with: a mixture of experts with 128 experts
//! in 60 layers, three matrices each, optimizer state (two moments) included, is about 70,000 tensors. Together the
//! limits keep the reader's own memory below 200 MiB whatever a file says (a value is 16 bytes, a container 32).

/// Entries of the zip archive: the yardstick's storages and a few dozen entries of bookkeeping.
pub const MAX_ARCHIVE_ENTRIES: u64 = 100_000;

/// Bytes of the zip directory: [`MAX_ARCHIVE_ENTRIES`] of 46 bytes, a name of 255 and a zip64 field of 28 fit twice.
pub const MAX_DIRECTORY_BYTES: u64 = 64 << 20;

/// Bytes of `byteorder`, `version` and the like, which hold one word.
pub const MAX_WORD_BYTES: usize = 64;

/// Bytes of the pickled object. The yardstick takes 17 MB: about 250 bytes for each tensor.
pub const MAX_PICKLE_BYTES: usize = 32 << 20;

/// Opcodes in one pickle. A tensor takes about 30, the yardstick 2.1 million.
pub const MAX_OPCODES: usize = 4_000_000;

/// Values on the stack. Python's pickler writes containers in batches of 1,000, only a tuple goes there as a whole.
pub const MAX_STACK: usize = 1_000_000;

/// Marks open at once; each is one more level of nesting, and Python's own pickler stops at a recursion of 1,000.
pub const MAX_MARKS: usize = 1_000;

/// Memo entries. Python numbers them consecutively, about six for each tensor.
pub const MAX_MEMO: usize = 1_000_000;

/// Lists, tuples, sets and dictionaries. A tensor takes five while it is being rebuilt.
pub const MAX_CONTAINERS: usize = 1_000_000;

/// Values put into containers, each counted as often as it is put into one; as many as opcodes.
pub const MAX_CONTAINED: usize = MAX_OPCODES;

/// Arguments of a constructor; `_rebuild_tensor_v2` takes seven.
pub const MAX_ARGUMENTS: usize = 8;

/// Bytes of a dictionary's key. Names have up to 255; this bounds the work of looking for keys that occur twice.
pub const MAX_KEY_BYTES: usize = 512;

/// Tensors, and how often they may be referred to: as in any format, twice the yardstick.
pub const MAX_TENSORS: usize = crate::format::limits::TENSORS as usize;

/// Dimensions of a tensor. PyTorch allows 64; no weight has more than 5.
pub const MAX_DIMS: usize = 16;

/// Bytes of a tensor that is larger than its storage, because it repeats elements (`expand`). One memory shared between
/// the heads of a layer by `expand` has some 2 MB.
pub const MAX_REPEATED_BYTES: usize = 64 << 20;

/// How many times the bytes of all storages the tensors may have together. A model under two names with tied embeddings
/// has not quite three times.
pub const MAX_SHARING: usize = 4;

/// Bytes that tensors may have beyond that: 130 layers of one memory each, shared between the heads by `expand`, have
/// 260 MB. Hashing and writing take as long as tensors are large, and 60,000 of them may share one storage.
pub const MAX_SHARED_BYTES: usize = 320 << 20;

/// Containers inside one another. A training checkpoint has about 6 levels.
pub const MAX_DEPTH: usize = 32;

/// Values when every shared reference is written out: what a walk over the tree visits. Doubling a list 30 times in
/// the memo takes 100 bytes and makes 2^30 of them.
pub const MAX_EXPANDED: u64 = 4_000_000;

/// Bytes of a number beyond 64 bits. A Mersenne Twister state is stored as a tuple; nothing needs more than a hash.
pub const MAX_BIG_INT_BYTES: usize = 64;

/// Bytes of a global's module or name; PyTorch's and NumPy's have up to 60.
pub const MAX_GLOBAL_BYTES: usize = 128;

/// Different names of classes and functions that are not on the list. A training code's configuration has some tens.
pub const MAX_FOREIGN: usize = 10_000;

/// Bytes that the names of tensors in objects may take together. Those of a whole model with 70,000 tensors take 7 MB.
pub const MAX_HIDDEN_BYTES: usize = 16 << 20;
