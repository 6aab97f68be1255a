//! The one error type: a stable code, where the fault lies, what was expected and what was found.
//!
//! Three kinds of failure exist in this crate. Bad input is an [`Error`]. A check that failed is *data* in a
//! report (see [`crate::validate`] and [`mod@crate::verify`]). Our own bug is an assertion.

use std::fmt;
use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure means to the caller; each maps to one exit code of the command-line tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something outside the data: a missing file, a full disk.
    Io,
    /// The command was asked for wrongly.
    Usage,
    /// Corrupt or hostile input, NaN or Inf in an adapter.
    Corrupt,
    /// The adapter does not fit the base; missing or left-over adapter weights.
    Mismatch,
    /// Numbers differ, or the adapter has no effect.
    Differs,
    /// A hash or a signature does not hold.
    Integrity,
    /// Not supported, or undecided between several readings.
    Unsupported,
}

impl ErrorKind {
    /// Every kind, in the order of their exit codes.
    pub const ALL: &'static [ErrorKind] = &[
        ErrorKind::Io,
        ErrorKind::Usage,
        ErrorKind::Corrupt,
        ErrorKind::Mismatch,
        ErrorKind::Differs,
        ErrorKind::Integrity,
        ErrorKind::Unsupported,
    ];

    /// One sentence for people.
    pub fn meaning(self) -> &'static str {
        match self {
            ErrorKind::Io => "Something outside the data: a missing file, a full disk.",
            ErrorKind::Usage => "The command was asked for wrongly.",
            ErrorKind::Corrupt => "Corrupt or hostile input, NaN or Inf in an adapter.",
            ErrorKind::Mismatch => "The adapter does not fit the base; missing or left-over adapter weights.",
            ErrorKind::Differs => "Numbers differ, or the adapter has no effect.",
            ErrorKind::Integrity => "A hash or a signature does not hold.",
            ErrorKind::Unsupported => "Not supported, or undecided between several readings.",
        }
    }

    /// The exit code of the command-line tool.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Io => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Corrupt => 3,
            ErrorKind::Mismatch => 4,
            ErrorKind::Differs => 5,
            ErrorKind::Integrity => 6,
            ErrorKind::Unsupported => 7,
        }
    }

    /// Of several failures the one with the lowest number decides the exit code: 2, 3, 7, 4, 6, 5, then 1.
    pub fn precedence(self) -> u8 {
        match self {
            ErrorKind::Usage => 0,
            ErrorKind::Corrupt => 1,
            ErrorKind::Unsupported => 2,
            ErrorKind::Mismatch => 3,
            ErrorKind::Integrity => 4,
            ErrorKind::Differs => 5,
            ErrorKind::Io => 6,
        }
    }
}

macro_rules! codes {
    ($($variant:ident $slug:literal $kind:ident $text:literal;)*) => {
        /// Every way in which `ptplus` refuses something. The slug is stable; scripts may match on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code { $(#[doc = $text] $variant,)* }

        impl Code {
            /// Every code, in the order of `docs/ERRORS.md`.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];
            /// The stable name printed in brackets at the end of an error line.
            pub fn slug(self) -> &'static str { match self { $(Code::$variant => $slug,)* } }
            /// What kind of failure this is.
            pub fn kind(self) -> ErrorKind { match self { $(Code::$variant => ErrorKind::$kind,)* } }
            /// The exit code of the command-line tool: that of the kind, but 127 and 126 for a program that cannot be started, as
            /// shells and `env` have it.
            pub fn exit_code(self) -> u8 {
                match self {
                    Code::ProgramNotFound => 127,
                    Code::ProgramNotExecutable => 126,
                    _ => self.kind().exit_code(),
                }
            }
            /// One sentence for the reference page.
            pub fn explanation(self) -> &'static str { match self { $(Code::$variant => $text,)* } }
        }
    };
}

codes! {
    // Input and output
    Io "io" Io "The operating system refused a file operation.";
    NotFound "not-found" Io "A file or folder does not exist.";
    NotAFile "not-a-file" Io "A folder, pipe or device stands where a regular file is needed.";
    Interrupted "interrupted" Io "The command was interrupted; no unfinished output was kept (the tool exits with 130).";
    Usage "usage" Usage "The command line asks for something that makes no sense.";
    OutputExists "output-exists" Usage "The output exists, and --force was not given or may not replace it.";
    OutputIsInput "output-is-input" Usage "The output would replace a file that is being read.";
    OutputPlace "output-place" Usage "The output would break the bundle or the folder that it lies in, or has a name that readers take for something else.";
    UnknownFormat "unknown-format" Unsupported "The file is of no format that ptplus reads.";

    // Names and JSON, any format
    NameInvalid "name-invalid" Corrupt "A name is empty, too long, has control characters, or would leave a folder.";
    NameDuplicate "name-duplicate" Corrupt "A name occurs twice.";
    JsonSyntax "json-syntax" Corrupt "A JSON file cannot be parsed.";
    JsonDuplicateKey "json-duplicate-key" Corrupt "A JSON object has the same key twice.";
    JsonTooLarge "json-too-large" Corrupt "A JSON file is larger or deeper than its limit.";
    ShapeOverflow "shape-overflow" Corrupt "A shape's number of elements or bytes overflows.";
    ShapeBlock "shape-block" Corrupt "The innermost dimension is not a multiple of the type's block length.";
    NonFinite "non-finite" Corrupt "A tensor holds NaN or Inf.";

    // GGUF
    GgufMagic "gguf-magic" Corrupt "The file does not start with GGUF.";
    GgufByteOrder "gguf-byte-order" Unsupported "The file is byte-swapped (big endian).";
    GgufVersion "gguf-version" Unsupported "The GGUF version is neither 2 nor 3.";
    GgufTruncated "gguf-truncated" Corrupt "The file ends inside a structure that it declares.";
    GgufLimit "gguf-limit" Corrupt "A declared count or length is above its limit.";
    GgufString "gguf-string" Corrupt "A string is not UTF-8 or holds NUL.";
    GgufValueType "gguf-value-type" Corrupt "A metadata value has an unknown type, or an array of arrays.";
    GgufBool "gguf-bool" Corrupt "A boolean is neither 0 nor 1.";
    GgufKey "gguf-key" Corrupt "A metadata key has the wrong type or is missing.";
    GgufAlignment "gguf-alignment" Corrupt "general.alignment is not a u32 power of two within bounds.";
    GgufTensorType "gguf-tensor-type" Corrupt "A tensor has an unknown or removed ggml type.";
    GgufDims "gguf-dims" Corrupt "A tensor has too many dimensions, a negative one, or a product that overflows.";
    GgufOffset "gguf-offset" Corrupt "A tensor's offset is not the running padded sum.";
    GgufTrailing "gguf-trailing" Corrupt "Bytes follow the padded end of the data.";
    GgufSplit "gguf-split" Corrupt "The parts of a split GGUF do not fit together.";
    GgufWrite "gguf-write" Unsupported "The data cannot be written as GGUF.";

    // Safetensors
    SafetensorsHeader "safetensors-header" Corrupt "The safetensors header is not valid.";
    SafetensorsIndex "safetensors-index" Corrupt "The index of a sharded model does not fit its files.";
    SafetensorsDtype "safetensors-dtype" Unsupported "A tensor has a type that ptplus does not read.";

    // PyTorch checkpoints
    PickleTruncated "pickle-truncated" Corrupt "A PyTorch checkpoint ends inside a structure that it declares.";
    PickleLimit "pickle-limit" Corrupt "A count, length or depth in a PyTorch checkpoint is above its limit.";
    PickleOpcode "pickle-opcode" Corrupt "A pickle opcode is unknown, or one that no state dict needs.";
    PickleGlobal "pickle-global" Corrupt "A pickle names code that runs programs, or something that is no name; nothing was executed.";
    PickleStructure "pickle-structure" Corrupt "A pickle's operations do not fit together.";
    PickleTensor "pickle-tensor" Corrupt "A tensor in a PyTorch checkpoint cannot be rebuilt from its storage.";
    PickleStorage "pickle-storage" Corrupt "A storage in a PyTorch checkpoint is missing or not of the declared size.";
    PickleArchive "pickle-archive" Corrupt "The zip archive of a PyTorch checkpoint breaks a rule of the format.";
    PickleChecksum "pickle-checksum" Corrupt "The bytes of an archive entry do not have its checksum.";
    PickleUnsupported "pickle-unsupported" Unsupported "A PyTorch checkpoint of a kind that ptplus does not read.";

    // Adapter and base configuration
    ConfigField "config-field" Corrupt "A configuration field is missing, of the wrong type or out of range.";
    ConfigUnsupported "config-unsupported" Unsupported "A configuration asks for something that ptplus does not compute.";
    BaseArchitecture "base-architecture" Unsupported "The base's architecture is not on the list of supported ones.";
    BaseTensor "base-tensor" Corrupt "A tensor of the base is missing or has the wrong shape.";
    AdapterKind "adapter-kind" Unsupported "The file is no adapter of a kind that ptplus reads.";
    AdapterMissing "adapter-missing" Mismatch "An adapter tensor is missing.";
    AdapterLeftOver "adapter-left-over" Mismatch "A tensor belongs to no part of the adapter.";
    AdapterShape "adapter-shape" Mismatch "An adapter tensor has the wrong shape.";
    AdapterMismatch "adapter-mismatch" Mismatch "The adapter does not fit the base.";
    ConventionOpen "convention-open" Unsupported "A convention is stated nowhere; ptplus does not guess.";
    RowOrderUnknown "row-order-unknown" Unsupported "Neither --base nor --arch says the row order of the queries.";

    // Tokenizers
    TokenizerInvalid "tokenizer-invalid" Corrupt "A tokenizer's files contradict themselves or the model.";
    TokenizerUnsupported "tokenizer-unsupported" Unsupported "A tokenizer works in a way that llama.cpp does not follow, or is not known to.";

    // Import
    LayoutSyntax "layout-syntax" Corrupt "A layout file (--layout) is no TOML, larger or deeper than its limit, or takes too many steps to match.";
    LayoutFile "layout-file" Usage "A layout file (--layout) breaks a rule of its format.";
    ConventionContradiction "convention-contradiction" Usage "Two places state different values for the same convention.";
    AdapterDuplicate "adapter-duplicate" Mismatch "Two tensors claim the same place in the adapter.";
    ConventionAmbiguous "convention-ambiguous" Unsupported "Several readings reproduce the probe within its precision; a flag must decide.";
    ConventionNone "convention-none" Differs "No reading of the checkpoint reproduces the probe.";

    // Numbers
    CastOverflow "cast-overflow" Corrupt "A value does not fit the output type.";
    TypeUnfit "type-unfit" Unsupported "A tensor's rows are no whole blocks of the type asked for, and --on-unfit is error.";
    Requantize "requantize" Usage "The tensor is quantized already; quantizing it again needs --allow-requantize.";
    ErrorBound "error-bound" Differs "Quantizing changed the numbers by more than the bound allows.";
    DenominatorZero "denominator-zero" Corrupt "A normaliser's denominator is 0.";
    ProbeInvalid "probe-invalid" Corrupt "The probe lacks a tensor, or one has the wrong type or shape.";
    ProbeMismatch "probe-mismatch" Mismatch "The probe does not fit the base or the adapter.";
    NumbersDiffer "numbers-differ" Differs "The outputs differ by more than the tolerance.";
    NoEffect "no-effect" Differs "The adapter does not change the base's output.";
    NothingCompared "nothing-compared" Unsupported "There was nothing to compare; that is never a pass.";

    // Text
    ChatTemplate "chat-template" Unsupported "The base's chat template is no valid one, refuses the conversation, or asks for too much.";
    ContextFull "context-full" Usage "The prompt is longer than the context.";
    LogitsInvalid "logits-invalid" Differs "The model computed NaN where logits should be.";
    // Bundles, signatures, fingerprints
    BundleManifest "bundle-manifest" Integrity "The manifest of a bundle breaks a rule of its format.";
    BundleChanged "bundle-changed" Integrity "A file does not have the size or the SHA-256 that the manifest states.";
    BundleMissing "bundle-missing" Integrity "A file that belongs to a bundle is not there.";
    BundleExtra "bundle-extra" Integrity "A bundle holds something that its manifest does not list.";
    BundleLink "bundle-link" Integrity "A bundle holds a link, or something else that is no plain file.";
    BundlePath "bundle-path" Integrity "A path in a bundle would leave it, or cannot exist on every system.";
    BundleTar "bundle-tar" Integrity "A tar archive is not byte for byte what `ptplus pack` writes.";
    SignatureMissing "signature-missing" Integrity "A signature is required, and there is none.";
    SignatureInvalid "signature-invalid" Integrity "A signature is damaged, or not one of that key over that manifest.";
    KeyInvalid "key-invalid" Corrupt "A file is no key in minisign's format, and none in PEM of the curve P-256.";
    KeyPassword "key-password" Usage "The password of a secret key is missing or wrong.";
    BaseDiffers "base-differs" Mismatch "The base is not the one that the adapter was made for.";

    // Machines
    EngineUnavailable "engine-unavailable" Unsupported "The engine is not built in, or cannot read this input.";
    DeviceUnavailable "device-unavailable" Unsupported "The device is not built in or not present.";
    Runner "runner" Io "The tensor library failed.";

    // Programs, for `doctor` and `exec`
    Elf "elf" Corrupt "An ELF program ends inside a structure that it declares.";
    ElfKind "elf-kind" Unsupported "The file is no ELF program, or for a processor that ptplus does not know.";
    ProgramNotFound "program-not-found" Io "The program to start does not exist.";
    ProgramNotExecutable "program-not-executable" Io "The program to start cannot be run by this user or on this machine.";
    ProgramUnfit "program-unfit" Unsupported "The program cannot take adapters: nothing can be put in the way of its calls.";
    GraftUnavailable "graft-unavailable" Unsupported "The library that brings adapters into a program is not built in.";
    ControlFile "control-file" Corrupt "A control file is no list of adapters and scales.";
    ControlUnsafe "control-unsafe" Integrity "A control file belongs to somebody else, can be written by others, or is no plain file.";

    // llama.cpp
    LlamaCpp "llama-cpp" Io "llama.cpp failed.";
    LlamaCppAdapter "llama-cpp-adapter" Mismatch "llama.cpp cannot apply the adapter, or did not.";
}

/// A refusal: code, place, expectation, finding and cause.
///
/// `Display` prints one line: `FILE: FIELD: offset N: MESSAGE [CODE]`, control characters escaped.
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    file: Option<PathBuf>,
    field: Option<String>,
    offset: Option<u64>,
    message: String,
    details: Vec<String>,
    hints: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error; `message` says what was expected and what was found.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            code,
            file: None,
            field: None,
            offset: None,
            message: shortened(message.into(), MESSAGE_CHARS),
            details: Vec::new(),
            hints: Vec::new(),
            source: None,
        }))
    }

    /// An operating system error on `path`.
    pub fn io(path: &Path, what: &str, e: std::io::Error) -> Self {
        let code = if e.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::Io };
        Error::new(code, format!("{what}: {e}")).file(path).caused_by(e)
    }

    /// Names the file, unless an inner call already did.
    pub fn file(mut self, path: &Path) -> Self {
        self.0.file.get_or_insert_with(|| path.to_owned());
        self
    }

    /// Of a file below `from`, where it grew until it got its name, says the place below `to`, where it was to be.
    #[cfg(feature = "runner")]
    pub(crate) fn moved(mut self, from: &Path, to: &Path) -> Self {
        let below = self.0.file.as_deref().and_then(|file| file.strip_prefix(from).ok());
        if let Some(place) = below.map(|rest| to.join(rest)) {
            self.0.file = Some(place);
        }
        self
    }

    /// Names the field or tensor, unless an inner call already did.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.0.field.get_or_insert_with(|| shortened(field.into(), FIELD_CHARS));
        self
    }

    /// The byte offset in the file, unless an inner call already gave one.
    pub fn at(mut self, file_offset: u64) -> Self {
        self.0.offset.get_or_insert(file_offset);
        self
    }

    /// Lines that belong below the error's own, such as a table.
    pub fn details(mut self, lines: Vec<String>) -> Self {
        self.0.details = lines;
        self
    }

    /// See [`details`](Self::details).
    pub fn detail_lines(&self) -> &[String] {
        &self.0.details
    }

    /// Lines about what may be meant or the matter.
    pub fn hints(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.0.hints.extend(lines);
        self
    }

    /// See [`hints`](Self::hints).
    pub fn hint_lines(&self) -> &[String] {
        &self.0.hints
    }

    /// Keeps the cause, printed with `-v`.
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.code.kind()
    }

    /// The message without place and code.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file that the error is about.
    pub fn path(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// The field or tensor that the error is about.
    pub fn field_name(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The byte offset that the error is about.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.0;
        if let Some(p) = &e.file {
            write!(f, "{}: ", escape(&p.to_string_lossy()))?;
        }
        if let Some(field) = &e.field {
            write!(f, "{}: ", escape(field))?;
        }
        if let Some(o) = e.offset {
            write!(f, "offset {o}: ")?;
        }
        write!(f, "{} [{}]", escape(&e.message), e.code.slug())
    }
}

/// The line of `Display`, then details, hints and causes, one a line: what a program that ends with this error prints.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        for line in &self.0.details {
            write!(f, "\n  {}", escape(line))?;
        }
        for line in &self.0.hints {
            write!(f, "\nhint: {}", escape(line))?;
        }
        let mut cause = std::error::Error::source(self);
        while let Some(c) = cause {
            write!(f, "\ncaused by: {}", escape(&c.to_string()))?;
            cause = c.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// Characters of a message: it may quote a file, which can hold a text of any length.
const MESSAGE_CHARS: usize = 2_000;
/// Characters of a field's name; names of tensors and keys have at most 255 bytes, but a field may be a path of them.
const FIELD_CHARS: usize = 600;

fn shortened(mut text: String, max_chars: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(max_chars) {
        text.truncate(end);
        text.push_str("...");
        text.shrink_to_fit();
    }
    text
}

/// Characters that show nothing, or reorder what is shown: Unicode's `Default_Ignorable_Code_Point` (17.0), separators of
/// lines, marks of annotations, and the blank of Braille.
pub(crate) fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Text from a file, made safe for a terminal: control characters, line breaks and the invisible characters that
/// reorder a line (bidirectional overrides) become escapes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_hidden(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_lists_every_code() {
        let rows: Vec<String> =
            Code::ALL.iter().map(|c| format!("| `{}` | {} | {} |", c.slug(), c.exit_code(), c.explanation())).collect();
        let page = format!(
            "# Errors\n\nEvery refusal ends with one of these codes in brackets; with `--json` it is `error.code`. Codes are stable.\n\n\
             | code | exit | meaning |\n|---|---|---|\n{}\n",
            rows.join("\n")
        );
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ERRORS.md");
        if std::env::var_os("PTPLUS_WRITE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap() == page,
            "docs/ERRORS.md is out of date: run the tests once with PTPLUS_WRITE_DOCS=1"
        );
    }

    #[test]
    fn slugs_are_unique() {
        let mut slugs: Vec<_> = Code::ALL.iter().map(|c| c.slug()).collect();
        slugs.sort();
        let n = slugs.len();
        slugs.dedup();
        assert_eq!(slugs.len(), n);
    }

    #[test]
    fn debugging_shows_details_and_causes_too() {
        let e = Error::io(Path::new("x"), "cannot open", std::io::Error::other("y")).details(vec!["a\nb".into()]);
        assert_eq!(format!("{:?}", e.hints(["c".into()])), "x: cannot open: y [io]\n  a\\nb\nhint: c\ncaused by: y");
    }

    #[test]
    fn an_error_is_one_line_whatever_the_file_says() {
        let e = Error::new(Code::GgufKey, "found \"a\nb\u{1b}[31m\"").file(Path::new("x\ny")).field("k\u{202e}").at(7);
        let line = e.to_string();
        assert_eq!(line, "x\\ny: k\\u{202e}: offset 7: found \"a\\nb\\u{1b}[31m\" [gguf-key]");
        let e = Error::new(Code::GgufKey, "é".repeat(MESSAGE_CHARS + 1)).field("k".repeat(1 << 20));
        assert_eq!(e.to_string().chars().count(), MESSAGE_CHARS + FIELD_CHARS + "...: ... [gguf-key]".len());
    }
}
