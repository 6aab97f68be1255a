//! llama.cpp's mixes of k-quants, by name.

use std::fmt;

use crate::tensor::DType;

macro_rules! mixes {
    ($($variant:ident $name:literal $dtype:ident $file_type:literal;)*) => {
        /// llama.cpp's mixes of k-quants for base models: small, medium and large.
        #[allow(missing_docs, non_camel_case_types)] // the names are the documentation
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mix { $($variant,)* }

        impl Mix {
            /// Every mix.
            pub const ALL: &'static [Mix] = &[$(Mix::$variant,)*];
            /// llama.cpp's name.
            pub fn name(self) -> &'static str { match self { $(Mix::$variant => $name,)* } }
            /// The type that most matrices get.
            pub fn dtype(self) -> DType { match self { $(Mix::$variant => DType::$dtype,)* } }
            /// The number in `general.file_type`. Source: `enum llama_ftype` in llama.h.
            pub fn file_type(self) -> u32 { match self { $(Mix::$variant => $file_type,)* } }
        }
    };
}

mixes! {
    Q2_K "Q2_K" Q2_K 10;
    Q3_K_S "Q3_K_S" Q3_K 11;
    Q3_K_M "Q3_K_M" Q3_K 12;
    Q3_K_L "Q3_K_L" Q3_K 13;
    Q4_K_S "Q4_K_S" Q4_K 14;
    Q4_K_M "Q4_K_M" Q4_K 15;
    Q5_K_S "Q5_K_S" Q5_K 16;
    Q5_K_M "Q5_K_M" Q5_K 17;
}

impl Mix {
    /// The mix of this name, in any case; `Q2_K` is also a type and is read as that.
    pub fn parse(text: &str) -> Option<Mix> {
        Mix::ALL.iter().copied().find(|m| *m != Mix::Q2_K && m.name().eq_ignore_ascii_case(text))
    }

    /// What `llama-quantize` makes of a type's name: the medium mix, where there are several.
    pub(super) fn of_type(dtype: DType) -> Option<Mix> {
        match dtype {
            DType::Q2_K => Some(Mix::Q2_K),
            DType::Q3_K => Some(Mix::Q3_K_M),
            DType::Q4_K => Some(Mix::Q4_K_M),
            DType::Q5_K => Some(Mix::Q5_K_M),
            _ => None,
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
