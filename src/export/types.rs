//! Which type each output tensor gets: the one owner of that decision.

use std::fmt;

use regex::Regex;

pub use super::mix::Mix;
use crate::adapter::{Adapter, Slot};
use crate::error::{Code, Error, Result};
use crate::quant;
use crate::tensor::{DType, LazyTensor};
use crate::transform::cast;
use crate::validate::Validated;

/// The type asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutType {
    /// Each tensor as it is; on the way back to safetensors, as the first source had it where that loses nothing.
    Keep,
    /// This type for M and W; for a base model, what llama.cpp means by the type's name.
    As(DType),
    /// One of llama.cpp's mixes for base models.
    Mix(Mix),
}

impl OutType {
    /// A writable type by name, in any case, or by ggml's number; a mix by name; or `keep`.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`].
    pub fn parse(text: &str) -> Result<OutType> {
        if text.eq_ignore_ascii_case("keep") {
            return Ok(OutType::Keep);
        }
        match Mix::parse(text) {
            Some(mix) => Ok(OutType::Mix(mix)),
            None => parse_dtype(text).map(OutType::As).map_err(|e| {
                // Q2_K is a type too.
                let mixes: Vec<_> = Mix::ALL.iter().filter(|m| **m != Mix::Q2_K).map(|m| m.name()).collect();
                Error::new(e.code(), format!("{}; a base model also takes {}", e.message(), mixes.join(" ")))
            }),
        }
    }
}

/// The name as the command line takes it, in lower case.
impl fmt::Display for OutType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OutType::Keep => f.write_str("keep"),
            OutType::As(dtype) => f.write_str(&dtype.name().to_lowercase()),
            OutType::Mix(mix) => f.write_str(&mix.name().to_lowercase()),
        }
    }
}

/// The two output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One GGUF file.
    Gguf,
    /// A canonical folder.
    Safetensors,
}

/// What to do with a tensor whose rows are no whole blocks of the type asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnfit {
    /// The type that llama.cpp would take.
    #[default]
    Fallback,
    /// Refuse.
    Error,
    /// Leave the tensor in the type that it has.
    Keep,
}

/// A type for the tensors whose output name matches.
#[derive(Debug, Clone)]
pub struct Override {
    pattern: Regex,
    dtype: DType,
}

/// `REGEX=TYPE`
impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.dtype.name().to_lowercase())
    }
}

impl Override {
    /// Parses `REGEX=TYPE`.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`].
    pub fn parse(text: &str) -> Result<Override> {
        let wrong = |message: String| Error::new(Code::Usage, message).field("--tensor-type");
        let (pattern, dtype) =
            text.rsplit_once('=').ok_or_else(|| wrong(format!("expected REGEX=TYPE, found {text:?}")))?;
        let pattern = Regex::new(pattern).map_err(|e| {
            // The lines before the last point at the place in the pattern.
            let text = e.to_string();
            let reason = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default();
            let reason = reason.trim().trim_start_matches("error: ");
            wrong(format!("expected a regular expression, found {pattern:?}: {reason}"))
        })?;
        Ok(Override { pattern, dtype: parse_dtype(dtype).map_err(|e| e.field("--tensor-type"))? })
    }

    /// For the tensor of exactly this name.
    pub fn exact(name: &str, dtype: DType) -> Override {
        let pattern = Regex::new(&format!("^{}$", regex::escape(name))).expect("an escaped name is an expression");
        Override { pattern, dtype }
    }
}

/// Everything that decides the types of an output.
#[derive(Debug, Clone)]
pub struct TypeRules {
    /// For tensors that no override matches.
    pub default: OutType,
    /// The first that matches decides.
    pub overrides: Vec<Override>,
    /// Rows that are no whole blocks.
    pub on_unfit: OnUnfit,
    /// Whether blocks may be decoded and quantized again, which loses twice.
    pub allow_requantize: bool,
}

impl From<OutType> for TypeRules {
    fn from(default: OutType) -> Self {
        TypeRules { default, overrides: Vec::new(), on_unfit: OnUnfit::default(), allow_requantize: false }
    }
}

/// The types that can be written, largest first.
pub fn writable() -> impl Iterator<Item = DType> {
    [DType::F32, DType::F16, DType::BF16].into_iter().chain(quant::BLOCK_FORMATS.iter().copied())
}

/// A writable type by name, in any case, or by ggml's number.
///
/// # Errors
///
/// [`Code::Usage`].
pub fn parse_dtype(text: &str) -> Result<DType> {
    DType::parse(text).filter(|d| quant::can_quantize(*d)).ok_or_else(|| {
        let names: Vec<_> = writable().map(DType::name).collect();
        Error::new(Code::Usage, format!("expected a type that ptplus writes ({}), found {text:?}", names.join(" ")))
    })
}

/// What a tensor was given.
pub(super) struct Choice {
    /// The type to write.
    pub dtype: DType,
    /// The type that was asked for, where the rows are no whole blocks of it.
    pub unfit: Option<DType>,
}

/// The overrides of one output, and which of them decided anything.
pub(super) struct Overrides<'a> {
    list: &'a [Override],
    used: Vec<bool>,
}

impl<'a> Overrides<'a> {
    pub fn new(rules: &'a TypeRules) -> Self {
        Overrides { list: &rules.overrides, used: vec![false; rules.overrides.len()] }
    }

    /// The type for the tensor of this name, if an override decides it.
    pub fn find(&mut self, name: &str) -> Option<DType> {
        let i = self.list.iter().position(|o| o.pattern.is_match(name))?;
        self.used[i] = true;
        Some(self.list[i].dtype)
    }

    /// # Errors
    ///
    /// [`Code::Usage`] for an override that decided nothing: a misspelt name must not pass silently. `what` and
    /// `why` say which tensors there are to decide.
    pub fn finish(self, what: &str, why: &str) -> Result<()> {
        match self.used.iter().position(|used| !used) {
            None => Ok(()),
            Some(i) => {
                let pattern = self.list[i].pattern.as_str();
                let message =
                    format!("expected {what} whose type {pattern:?} decides, found none (the first match wins; {why})");
                Err(Error::new(Code::Usage, message).field("--tensor-type"))
            }
        }
    }
}

/// `asked`, or where the rows are no whole blocks of it, what the rules take instead. `name` and `tensor` are the
/// output's; `kept` is the type that keeping the tensor as it is would give it.
///
/// # Errors
///
/// [`Code::TypeUnfit`] and [`Code::Requantize`], as the rules say.
pub(super) fn fitted(
    rules: &TypeRules,
    asked: DType,
    kept: impl FnOnce() -> DType,
    name: &str,
    tensor: &LazyTensor,
) -> Result<Choice> {
    let mut choice = Choice { dtype: asked, unfit: None };
    let row_len = tensor.shape().last().copied().unwrap_or(1);
    let stays = |dtype: DType| dtype == tensor.stored_dtype() && tensor.stored_bytes().is_some();
    if !stays(asked) && !row_len.is_multiple_of(asked.block_len()) {
        choice.unfit = Some(asked);
        choice.dtype = match rules.on_unfit {
            OnUnfit::Fallback => fallback(asked, row_len),
            OnUnfit::Keep => kept(),
            OnUnfit::Error => {
                let message = format!(
                    "expected rows of whole blocks of {asked} ({} elements), found rows of {row_len}",
                    asked.block_len()
                );
                return Err(Error::new(Code::TypeUnfit, message).field(name));
            }
        };
    }
    let is_requantized = choice.dtype.is_quantized() && tensor.stored_dtype().is_quantized() && !stays(choice.dtype);
    if is_requantized && !rules.allow_requantize {
        let message = format!(
            "expected a plain float tensor to quantize, found {} blocks; --allow-requantize loses twice",
            tensor.stored_dtype()
        );
        return Err(Error::new(Code::Requantize, message).field(name));
    }
    Ok(choice)
}

/// Applies [`TypeRules`] to the tensors of one adapter.
pub(super) struct Chooser<'a> {
    source: &'a Validated,
    rules: &'a TypeRules,
    format: Format,
    overrides: Overrides<'a>,
}

impl<'a> Chooser<'a> {
    /// # Errors
    ///
    /// [`Code::Usage`] for block types in safetensors, which has none, and for mixes.
    pub fn new(source: &'a Validated, rules: &'a TypeRules, format: Format) -> Result<Self> {
        let default = match rules.default {
            OutType::As(dtype) => Some(("--outtype", dtype)),
            OutType::Keep => None,
            OutType::Mix(mix) => {
                let message = format!("expected a type, since mixes are for base models, found {mix}");
                return Err(Error::new(Code::Usage, message).field("--outtype"));
            }
        };
        let overrides = rules.overrides.iter().map(|o| ("--tensor-type", o.dtype));
        if format == Format::Safetensors
            && let Some((flag, dtype)) = default.into_iter().chain(overrides).find(|(_, d)| d.is_quantized())
        {
            return Err(Error::new(
                Code::Usage,
                format!("expected F32, F16 or BF16 for safetensors, which has no block formats, found {dtype}; quantized adapters are GGUF"),
            )
            .field(flag));
        }
        Ok(Chooser { source, rules, format, overrides: Overrides::new(rules) })
    }

    /// The type of one tensor, given in the output's axes and under its output name. b and N stay F32 in GGUF, and are
    /// not narrowed elsewhere.
    ///
    /// # Errors
    ///
    /// [`Code::TypeUnfit`] and [`Code::Requantize`], as the rules say.
    pub fn choose(&mut self, slot: Slot, name: &str, tensor: &LazyTensor) -> Result<Choice> {
        let asked = match (slot.part.stays_f32(), self.rules.default) {
            (false, default) => self.overrides.find(name).map_or(default, OutType::As),
            (true, OutType::Keep) if self.format == Format::Safetensors => OutType::Keep,
            (true, _) => OutType::As(DType::F32),
        };
        let kept = || self.kept(slot, tensor);
        let asked = if let OutType::As(dtype) = asked { dtype } else { kept() };
        fitted(self.rules, asked, kept, name, tensor)
    }

    /// Whether the tensor of this output name is left in the type that it has.
    pub fn keeps(&self, name: &str) -> bool {
        self.rules.default == OutType::Keep && !self.rules.overrides.iter().any(|o| o.pattern.is_match(name))
    }

    /// # Errors
    ///
    /// [`Code::Usage`] for an override that decided nothing.
    pub fn finish(self) -> Result<()> {
        match self.source.adapter() {
            Adapter::Plus(_) => self.overrides.finish("a memory or feature map", "biases and normalisers stay F32"),
            Adapter::Lora(_) | Adapter::Prefix(_) => self.overrides.finish("a tensor", "names are the output's"),
        }
    }

    fn kept(&self, slot: Slot, tensor: &LazyTensor) -> DType {
        let plain = match tensor.stored_dtype() {
            d @ (DType::F32 | DType::F16 | DType::BF16) => d,
            _ => DType::F32, // F64 has no place in either output; blocks decode to F32
        };
        match self.format {
            Format::Gguf if tensor.stored_dtype().is_quantized() => tensor.stored_dtype(),
            Format::Gguf => plain,
            Format::Safetensors => {
                let recorded = self.source.origin.recorded_dtypes.get(&slot.canonical_name()).copied();
                match recorded {
                    Some(dtype @ (DType::F32 | DType::F16 | DType::BF16))
                        if dtype == plain || cast::is_lossless(tensor.dtype(), &tensor.to_bytes(), dtype) =>
                    {
                        dtype
                    }
                    _ => plain,
                }
            }
        }
    }
}

/// What llama.cpp takes instead for rows of this length. Source: `llama_tensor_get_type` in llama-quant.cpp.
fn fallback(dtype: DType, row_len: usize) -> DType {
    let narrow = match dtype {
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => DType::F16,
    };
    if row_len.is_multiple_of(narrow.block_len()) { narrow } else { DType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallbacks_are_those_of_the_specification() {
        use DType::*;
        for (dtype, expected) in [
            (Q2_K, Q4_0),
            (Q3_K, Q4_0),
            (Q4_K, Q5_0),
            (Q5_K, Q5_1),
            (Q6_K, Q8_0),
            (Q8_0, F16),
            (Q5_0, F16),
            (Q5_1, F16),
            (Q4_0, F16),
            (Q4_1, F16),
        ] {
            assert_eq!(fallback(dtype, if dtype.block_len() == 256 { 64 } else { 40 }), expected, "{dtype}");
            assert_eq!(fallback(dtype, 40), F16, "{dtype}: neither 256 nor 32 divides 40");
        }
    }

    #[test]
    fn types_are_known_by_name_in_any_case_and_by_number() {
        for (text, expected) in [
            ("q4_k", DType::Q4_K),
            ("Q4_K", DType::Q4_K),
            ("12", DType::Q4_K),
            ("bf16", DType::BF16),
            ("0", DType::F32),
        ] {
            assert_eq!(parse_dtype(text).unwrap(), expected, "{text}");
        }
        // Types that exist and are not written, removed numbers, and nonsense.
        for text in ["f64", "i8", "q8_1", "q8_k", "iq4_nl", "4", "5", "99", "", "q4"] {
            assert_eq!(parse_dtype(text).unwrap_err().code(), Code::Usage, "{text}");
        }
        for text in ["memory", "(=q8_0", "memory=", "memory=q9"] {
            assert_eq!(Override::parse(text).unwrap_err().code(), Code::Usage, "{text}");
        }
        assert_eq!(Override::parse("a=b=q8_0").unwrap().pattern.as_str(), "a=b");
    }
}
