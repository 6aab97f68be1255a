//! Every limit on what a file may declare, with its reason. Readers check a declared count or length against its
//! limit and against the bytes really left before they allocate or loop. Those of PyTorch checkpoints have a yardstick
//! of their own and stand in [`pickle::limits`](super::pickle::limits); how large a model or an adapter may be, whatever
//! file it comes from, is said where its sizes are checked (`base::config`, `import::stated`).
//!
//! The aim of the numbers: no file, whatever it says, costs more than 256 MiB or 2 s of processor time, and no model in use comes near
//! any of them, format constants apart.

/// Bytes of a key or of any name that is not a GGUF tensor's. Source: the longest file name on common file systems;
/// GGUF itself allows 65,535 for keys.
pub const NAME_BYTES: usize = 255;

/// Bytes of a GGUF tensor name. Source: `GGML_MAX_NAME` is 64 in ggml.h and counts the final NUL.
pub const GGUF_TENSOR_NAME_BYTES: usize = 63;

/// Dimensions of a GGUF tensor. Source: `GGML_MAX_DIMS` in ggml.h.
pub const GGUF_DIMS: u32 = 4;

/// Largest `general.alignment`, the size of a huge page (2 MiB): nothing gains from more, and each tensor may cost
/// that much padding.
pub const GGUF_ALIGNMENT: u32 = 2 << 20;

/// `general.alignment` where a file does not say. Source: ggml's `GGUF_DEFAULT_ALIGNMENT`.
pub const GGUF_DEFAULT_ALIGNMENT: u32 = 32;

/// Bytes before the data of a GGUF file: metadata and tensor table. The largest vocabularies (262,144 tokens with scores,
/// types and merges) need 15 MB, and some files embed a `tokenizer.json` of 33 MB beside.
pub const GGUF_HEADER_BYTES: usize = 100_000_000;

/// Metadata entries of a GGUF file. Models have 20 to 60.
pub const GGUF_KEYS: u64 = 1 << 16;

/// Elements of an array that is read into a list (layers, heads per layer). Vocabularies stay in the file.
pub const GGUF_LIST: usize = 1 << 16;

/// Bytes of one GGUF string outside arrays. Chat templates have some 10 kB, embedded `tokenizer.json` files 20 MB.
pub const GGUF_STRING_BYTES: u64 = 64 << 20;

/// Bytes of all strings, as JSON has them, and of arrays in the metadata of a GGUF *adapter*, which are kept as JSON for its digest. A base's
/// vocabulary, should a tool copy it along, has some 5 MB.
pub const ADAPTER_METADATA_BYTES: usize = 16 << 20;

/// Array elements in the metadata of a GGUF adapter: as many as values in a JSON document, which is what they become.
pub const ADAPTER_METADATA_ELEMENTS: usize = JSON_VALUES;

/// Tensors of an adapter in GGUF: four in each of 4,096 layers.
pub const ADAPTER_TENSORS: usize = 4 * 4096;

/// Tensors of a GGUF file, and of all shards of a model together. A model of 60 layers with 384 experts of 3
/// matrices, each with a scale, has 138,240 and some of attention; one costs some 600 bytes while a file is read.
pub const TENSORS: u64 = 150_000;

/// Bytes of a safetensors header, padding included. The crate's own limit, `MAX_HEADER_SIZE`, is 100 MB, but reading that
/// costs four times as much; [`SAFETENSORS_TENSORS`] with names of 255 bytes and all metadata fit.
pub const HEADER_BYTES: usize = 48 << 20;

/// Tensors of one safetensors file. The crate spends 1.2 kB on each; single files have some thousands, since large
/// models are sharded.
pub const SAFETENSORS_TENSORS: usize = 1 << 16;

/// Dimensions of a safetensors tensor. PyTorch's own limit for most operations is 64.
pub const SAFETENSORS_DIMS: usize = 64;

/// Dimensions of all tensors of a safetensors file together: 16 each, on average.
pub const SAFETENSORS_ALL_DIMS: usize = 16 * SAFETENSORS_TENSORS;

/// Entries of safetensors' `__metadata__`.
pub const SAFETENSORS_METADATA_KEYS: usize = 1 << 16;

/// Bytes of all keys and values of safetensors' `__metadata__` together. Image models store a preview picture there,
/// some 100 kB; configurations as JSON have a few kB.
pub const SAFETENSORS_METADATA_BYTES: usize = 16 << 20;

/// Bytes of a JSON file. An index of as many tensors as [`TENSORS`] allows, 100 bytes each, has 26 MB.
pub const JSON_BYTES: u64 = 32 << 20;

/// Values in one JSON document, twice the tensors that an index may list.
pub const JSON_VALUES: usize = 1 << 19;

/// As how many values more an object counts that is not empty: it costs 400 bytes, however short its text, and a value
/// in a list some 70.
pub const JSON_OBJECT_VALUES: usize = 6;

/// Bytes of one string in JSON, safetensors headers included: messages may quote it, escaped and more than once.
pub const JSON_STRING_BYTES: usize = 16 << 20;

/// Nesting of JSON. Source: serde_json's recursion limit, which this crate leaves on.
pub const JSON_DEPTH: usize = 128;

/// Bytes of `config.json` and `adapter_config.json`. Real ones have a few kB; a long list of modules reaches some more.
pub const CONFIG_BYTES: u64 = 1 << 20;

/// Tokens of a vocabulary: each costs some 200 bytes once text is split by it. The largest in use have 262,144.
pub const VOCABULARY_TOKENS: usize = 1 << 19;

/// Bytes of all tokens of a vocabulary, and of all its pairs: each text is kept five times where text is split. The largest
/// in use have 3 and 9 MB.
pub const VOCABULARY_BYTES: usize = 16 << 20;

/// Pairs that merge into tokens; each costs some 250 bytes. The longest list in use has 514,906.
pub const VOCABULARY_MERGES: usize = 1 << 19;

/// Tokens that a text is searched for before it is split: control and user-defined ones. Each costs a look at all of the
/// text; those in use have up to some 6,500 (Gemma 3).
pub const VOCABULARY_SEARCHED: usize = 1 << 15;

/// Bytes of a chat template; compiled, it costs some 100 times as much. Known ones have 2 to 30 kB.
pub const TEMPLATE_BYTES: usize = 256 << 10;

/// Values in a configuration: real ones have some hundred, and lists of modules or layers some thousands. Configurations are
/// copied several times, so that what [`JSON_VALUES`] allows would be too much.
pub const CONFIG_VALUES: usize = 1 << 16;

/// Bytes of a layout file. A line for every tensor of the largest adapter stays below that.
pub const LAYOUT_BYTES: u64 = 1 << 20;

/// Patterns in a layout file: each is matched with every tensor name. A layout has some ten.
pub const LAYOUT_PATTERNS: usize = 256;

/// Bytes of one pattern in a layout file.
pub const LAYOUT_PATTERN_BYTES: usize = 4096;

/// Bytes of one compiled pattern, and of its matching cache: times [`LAYOUT_PATTERNS`] that is 64 MiB of each. The regex
/// crate's matching time is linear in the former. A pattern of words and `\d+` has some 10 kB, each `\w` another 25.
pub const LAYOUT_COMPILED_BYTES: usize = 256 << 10;

/// Bytes of all tensor names times patterns of a layout file. Ten patterns on the 50,000 names of a large checkpoint,
/// 60 bytes each, are 30 MB, at some 10 ns for a byte.
pub const LAYOUT_WORK_BYTES: usize = 64 << 20;

/// How often all patterns of a layout file together may forget what they know of names, [`LAYOUT_COMPILED_BYTES`] each time,
/// since it outgrew its place: 16 MiB of states, some tenths of a second. Patterns that are meant never do; one that is made
/// for it does within a thousand bytes, and takes a thousand times as long as others.
pub const LAYOUT_FORGOTTEN: usize = 64;

/// Steps for the groups in names that a layout file's patterns match: bytes of the name times states of the pattern, most of
/// which no real pattern visits. 65,536 names of 60 bytes with a pattern of 500 states are as many.
pub const LAYOUT_STEPS: u64 = 1 << 31;

/// Levels of tables and lists in one line of a layout file. Its own lines have two; a constant may be a list of tables.
pub const LAYOUT_DEPTH: usize = 16;

/// Rows times tokens of a probe. 8 rows of 32,768 are more than anybody compares.
pub const PROBE_TOKENS: usize = 1 << 20;

/// Files of a sharded or split model. A model of 2 TB in shards of 4 GB, a usual size, has 500.
pub const SHARDS: usize = 4096;

/// Files of a bundle. What pack writes has six; a folder of shards has some hundred.
pub const BUNDLE_FILES: usize = 1024;

/// Entries of an archive that is unpacked: files, folders, and what other programs write before each.
pub const BUNDLE_ARCHIVED: usize = 4 * BUNDLE_FILES;

/// Files and folders of a bundle's folder, those that are refused included.
pub const BUNDLE_ENTRIES: usize = 2 * BUNDLE_FILES;

/// Folders within folders of a bundle. What pack writes has one.
pub const BUNDLE_DEPTH: usize = 8;

/// Values in a bundle's manifest: sixteen for each of the most tensors of an adapter.
pub const MANIFEST_VALUES: usize = 16 * ADAPTER_TENSORS;

/// Bytes of a bundle's manifest. A line of 100 bytes for each tensor of the deepest models, several per layer, is 100 kB.
pub const MANIFEST_BYTES: usize = 4 << 20;
