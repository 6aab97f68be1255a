//! The table of element types: block length, block size and ids in both file formats.
//!
//! ggml's quantized types store `block_len` elements in `block_bytes` bytes; plain types have blocks of one element.
//! Source of ids and sizes: `enum ggml_type` in ggml.h and the block structs in ggml-common.h; the sizes of the
//! formats that [this crate](crate) implements are asserted against its constants there.

use std::fmt;

macro_rules! dtypes {
    ($($variant:ident $name:literal len $len:literal bytes $bytes:literal ggml $ggml:expr, safetensors $st:expr;)*) => {
        /// Type of a tensor's elements.
        #[allow(missing_docs, non_camel_case_types)] // the names are the documentation
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DType { $($variant,)* }

        impl DType {
            /// Every type, in the order of the table.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];
            /// Upper-case name, as ggml and safetensors print it.
            pub const fn name(self) -> &'static str { match self { $(DType::$variant => $name,)* } }
            /// Elements in one block; 1 for plain types.
            pub const fn block_len(self) -> usize { match self { $(DType::$variant => $len,)* } }
            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize { match self { $(DType::$variant => $bytes,)* } }
            /// The number in GGUF files, if ggml has the type.
            pub const fn ggml_id(self) -> Option<u32> { match self { $(DType::$variant => $ggml,)* } }
            /// The name in safetensors headers, if that format has the type.
            pub const fn safetensors_name(self) -> Option<&'static str> { match self { $(DType::$variant => $st,)* } }
        }
    };
}

dtypes! {
    F32     "F32"     len 1   bytes 4   ggml Some(0),  safetensors Some("F32");
    F16     "F16"     len 1   bytes 2   ggml Some(1),  safetensors Some("F16");
    Q4_0    "Q4_0"    len 32  bytes 18  ggml Some(2),  safetensors None;
    Q4_1    "Q4_1"    len 32  bytes 20  ggml Some(3),  safetensors None;
    Q5_0    "Q5_0"    len 32  bytes 22  ggml Some(6),  safetensors None;
    Q5_1    "Q5_1"    len 32  bytes 24  ggml Some(7),  safetensors None;
    Q8_0    "Q8_0"    len 32  bytes 34  ggml Some(8),  safetensors None;
    Q8_1    "Q8_1"    len 32  bytes 36  ggml Some(9),  safetensors None;
    Q2_K    "Q2_K"    len 256 bytes 84  ggml Some(10), safetensors None;
    Q3_K    "Q3_K"    len 256 bytes 110 ggml Some(11), safetensors None;
    Q4_K    "Q4_K"    len 256 bytes 144 ggml Some(12), safetensors None;
    Q5_K    "Q5_K"    len 256 bytes 176 ggml Some(13), safetensors None;
    Q6_K    "Q6_K"    len 256 bytes 210 ggml Some(14), safetensors None;
    Q8_K    "Q8_K"    len 256 bytes 292 ggml Some(15), safetensors None;
    IQ2_XXS "IQ2_XXS" len 256 bytes 66  ggml Some(16), safetensors None;
    IQ2_XS  "IQ2_XS"  len 256 bytes 74  ggml Some(17), safetensors None;
    IQ3_XXS "IQ3_XXS" len 256 bytes 98  ggml Some(18), safetensors None;
    IQ1_S   "IQ1_S"   len 256 bytes 50  ggml Some(19), safetensors None;
    IQ4_NL  "IQ4_NL"  len 32  bytes 18  ggml Some(20), safetensors None;
    IQ3_S   "IQ3_S"   len 256 bytes 110 ggml Some(21), safetensors None;
    IQ2_S   "IQ2_S"   len 256 bytes 82  ggml Some(22), safetensors None;
    IQ4_XS  "IQ4_XS"  len 256 bytes 136 ggml Some(23), safetensors None;
    I8      "I8"      len 1   bytes 1   ggml Some(24), safetensors Some("I8");
    I16     "I16"     len 1   bytes 2   ggml Some(25), safetensors Some("I16");
    I32     "I32"     len 1   bytes 4   ggml Some(26), safetensors Some("I32");
    I64     "I64"     len 1   bytes 8   ggml Some(27), safetensors Some("I64");
    F64     "F64"     len 1   bytes 8   ggml Some(28), safetensors Some("F64");
    IQ1_M   "IQ1_M"   len 256 bytes 56  ggml Some(29), safetensors None;
    BF16    "BF16"    len 1   bytes 2   ggml Some(30), safetensors Some("BF16");
    TQ1_0   "TQ1_0"   len 256 bytes 54  ggml Some(34), safetensors None;
    TQ2_0   "TQ2_0"   len 256 bytes 66  ggml Some(35), safetensors None;
    MXFP4   "MXFP4"   len 32  bytes 17  ggml Some(39), safetensors None;
    NVFP4   "NVFP4"   len 64  bytes 36  ggml Some(40), safetensors None;
    Q1_0    "Q1_0"    len 128 bytes 18  ggml Some(41), safetensors None;
    Q2_0    "Q2_0"    len 64  bytes 18  ggml Some(42), safetensors None;
    BOOL    "BOOL"    len 1   bytes 1   ggml None,     safetensors Some("BOOL");
    U8      "U8"      len 1   bytes 1   ggml None,     safetensors Some("U8");
    U16     "U16"     len 1   bytes 2   ggml None,     safetensors Some("U16");
    U32     "U32"     len 1   bytes 4   ggml None,     safetensors Some("U32");
    U64     "U64"     len 1   bytes 8   ggml None,     safetensors Some("U64");
    F8_E4M3 "F8_E4M3" len 1   bytes 1   ggml None,     safetensors Some("F8_E4M3");
    F8_E5M2 "F8_E5M2" len 1   bytes 1   ggml None,     safetensors Some("F8_E5M2");
    F8_E8M0 "F8_E8M0" len 1   bytes 1   ggml None,     safetensors Some("F8_E8M0");
    F8_E4M3FNUZ "F8_E4M3FNUZ" len 1 bytes 1 ggml None, safetensors Some("F8_E4M3FNUZ");
    F8_E5M2FNUZ "F8_E5M2FNUZ" len 1 bytes 1 ggml None, safetensors Some("F8_E5M2FNUZ");
    C64     "C64"     len 1   bytes 8   ggml None,     safetensors Some("C64");
    C128    "C128"    len 1   bytes 16  ggml None,     safetensors None;
}

impl DType {
    /// The type with this number in GGUF files. `None` for unknown and for removed numbers (4, 5, 31-33, 36-38).
    pub fn from_ggml_id(id: u32) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| d.ggml_id() == Some(id))
    }

    /// The type with this name in safetensors headers.
    pub fn from_safetensors_name(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| d.safetensors_name() == Some(name))
    }

    /// The type with this name, in any case, or with this ggml number.
    pub fn parse(text: &str) -> Option<DType> {
        match text.parse::<u32>() {
            Ok(id) => DType::from_ggml_id(id),
            Err(_) => DType::ALL.iter().copied().find(|d| d.name().eq_ignore_ascii_case(text)),
        }
    }

    /// Whether elements come in blocks of more than one, with shared scales.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Orders float and quantized types from coarse to fine: by bits per element, and BF16, whose mantissa is shorter,
    /// before F16.
    pub fn fineness(self) -> (usize, bool) {
        const ELEMENTS: usize = 256; // a multiple of every block length
        (ELEMENTS / self.block_len() * self.block_bytes(), self != DType::BF16)
    }

    /// Integers and truth values: what no gradient is taken of.
    pub fn is_countable(self) -> bool {
        matches!(
            self,
            DType::I8
                | DType::I16
                | DType::I32
                | DType::I64
                | DType::U8
                | DType::U16
                | DType::U32
                | DType::U64
                | DType::BOOL
        )
    }

    /// F64, F32, F16 or BF16.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }
}

/// The coarsest of several types; F32 of none.
pub fn coarsest(dtypes: impl Iterator<Item = DType>) -> DType {
    dtypes.min_by_key(|d| d.fineness()).unwrap_or(DType::F32)
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
