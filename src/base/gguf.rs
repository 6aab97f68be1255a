//! The configuration of a base model from GGUF metadata, with the defaults of llama.cpp's `llama-model.cpp`.

use std::path::Path;

use super::config::{BaseConfig, Biases, Family, Rope, RopeScaling, SizeNames, Sizes, derived_head_dim};
use super::names::{BlockWeight, Weight};
use crate::error::{Code, Error, Result};
use crate::format::StoredTensor;
use crate::format::gguf::{Metadata, Value};
use crate::format::names::shorten;

const NAMES: SizeNames = [
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
];

/// Typed access to the keys of one architecture.
struct Keys<'a> {
    file: &'a Path,
    architecture: &'a str,
    metadata: &'a Metadata,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn invalid(&self, name: &str, message: impl Into<String>) -> Error {
        Error::new(Code::ConfigField, message).file(self.file).field(self.key(name))
    }

    fn unsupported(&self, name: &str, message: impl Into<String>) -> Error {
        Error::new(Code::ConfigUnsupported, message).file(self.file).field(self.key(name))
    }

    fn missing(&self, name: &str) -> Error {
        self.metadata.missing(&self.key(name)).file(self.file)
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        let stated = self.metadata.u32(&self.key(name)).map_err(|e| e.file(self.file))?;
        Ok(stated.map(|n| n as usize))
    }

    fn required_count(&self, name: &str) -> Result<usize> {
        self.count(name)?.ok_or_else(|| self.missing(name))
    }

    /// A count that llama.cpp also takes per layer; only one value for all layers is computed here.
    fn count_of_every_layer(&self, name: &str, n_layers: usize) -> Result<Option<usize>> {
        let key = self.key(name);
        if !matches!(self.metadata.get(&key), Some(Value::Array(_))) {
            return self.count(name);
        }
        let per_layer = self.metadata.u32_array(&key).map_err(|e| e.file(self.file))?.unwrap_or_default();
        if per_layer.len() != n_layers {
            return Err(self.invalid(name, format!("expected {n_layers} entries, found {}", per_layer.len())));
        }
        match per_layer.iter().find(|n| **n != per_layer[0]) {
            Some(other) => Err(self.unsupported(
                name,
                format!("expected the same value in all layers, found {} and {other}", per_layer[0]),
            )),
            None => Ok(Some(per_layer[0] as usize)),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        let stated = self.metadata.f32(&self.key(name)).map_err(|e| e.file(self.file))?;
        match stated {
            Some(x) if !x.is_finite() => Err(self.invalid(name, format!("expected a finite number, found {x}"))),
            _ => Ok(stated.map(f64::from)),
        }
    }

    fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.number(name)? {
            Some(x) if x <= 0.0 => Err(self.invalid(name, format!("expected a number above 0, found {x}"))),
            stated => Ok(stated),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        self.metadata.str(key).map_err(|e| e.file(self.file))
    }
}

/// Reads the configuration; `tensor` finds a tensor of the file by name.
///
/// Errors: [`Code::BaseArchitecture`] for an architecture that is not on the list, [`Code::ConfigUnsupported`] for
/// what is not computed here, [`Code::ConfigField`] and [`Code::GgufKey`] for what is wrong in itself.
pub(super) fn parse<'t>(
    file: &Path,
    metadata: &Metadata,
    tensor: impl Fn(&str) -> Option<&'t StoredTensor>,
) -> Result<BaseConfig> {
    let architecture = metadata.str("general.architecture").map_err(|e| e.file(file))?;
    let family = family(file, architecture)?;
    let keys = Keys { file, architecture: family.gguf_architecture(), metadata };
    if let Some(kind) = keys.text("general.type")?.filter(|t| *t != "model") {
        return Err(Error::new(Code::BaseArchitecture, format!("expected a model, found {:?}", shorten(kind)))
            .file(file)
            .field("general.type"));
    }
    refuse_what_changes_the_computation(&keys)?;

    let n_layers = keys.required_count("block_count")?;
    let hidden_size = keys.required_count("embedding_length")?;
    let required =
        |name| -> Result<usize> { keys.count_of_every_layer(name, n_layers)?.ok_or_else(|| keys.missing(name)) };
    let n_heads = required("attention.head_count")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(d) => d,
        None => derived_head_dim(hidden_size, n_heads).map_err(|message| keys.invalid("embedding_length", message))?,
    };
    let sizes = Sizes {
        n_layers,
        n_heads,
        n_kv_heads: keys.count_of_every_layer("attention.head_count_kv", n_layers)?.unwrap_or(n_heads),
        head_dim,
        hidden_size,
        intermediate_size: required("feed_forward_length")?,
        vocab_size: vocab_size(&keys, &tensor)?,
    };
    sizes.check(&NAMES).map_err(|(name, message)| keys.invalid(name, message))?;
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = keys.count(name)?.filter(|&n| n != head_dim) {
            return Err(keys.unsupported(name, format!("expected the head length {head_dim}, found {found}")));
        }
    }
    let rms_eps = match keys.number("attention.layer_norm_rms_epsilon")? {
        Some(eps) if (0.0..1.0).contains(&eps) => eps,
        Some(eps) => {
            let message = format!("expected a number of at least 0 and below 1, found {eps}");
            return Err(keys.invalid("attention.layer_norm_rms_epsilon", message));
        }
        None => return Err(keys.missing("attention.layer_norm_rms_epsilon")),
    };
    let window = match keys.count("attention.sliding_window")? {
        // llama.cpp's way to say "none"
        Some(0) | None => None,
        window => window,
    };
    let has = |weight: BlockWeight| tensor(&Weight::Block(0, weight).gguf_name()).is_some();
    Ok(BaseConfig {
        family,
        model_type: None,
        n_layers,
        n_heads,
        n_kv_heads: sizes.n_kv_heads,
        head_dim,
        value_head_dim: head_dim,
        hidden_size,
        intermediate_size: sizes.intermediate_size,
        vocab_size: sizes.vocab_size,
        context_length: keys.count("context_length")?,
        rms_eps,
        rope: rope(&keys, tensor(&Weight::RopeFactors.gguf_name()).is_some())?,
        sliding_windows: vec![window; n_layers],
        tied_embeddings: tensor(&Weight::Output.gguf_name()).is_none(),
        // No key says so: llama.cpp looks whether the tensors are there. Every layer is then held to what the first has.
        biases: Biases {
            query_key_value: family == Family::Qwen2 || has(BlockWeight::QueryBias),
            attention_output: has(BlockWeight::AttentionOutputBias),
            feed_forward: has(BlockWeight::GateBias),
        },
        query_key_norm: family == Family::Qwen3,
    })
}

fn family(file: &Path, architecture: Option<&str>) -> Result<Family> {
    architecture.and_then(Family::from_gguf_architecture).ok_or_else(|| {
        let found = architecture.map_or("no such key".to_owned(), |a| format!("{:?}", shorten(a)));
        Error::new(Code::BaseArchitecture, format!("expected one of llama, qwen2, qwen3, found {found}"))
            .file(file)
            .field("general.architecture")
    })
}

fn refuse_what_changes_the_computation(keys: &Keys) -> Result<()> {
    if let Some(n) = keys.count("expert_count")?.filter(|&n| n > 0) {
        return Err(keys.unsupported("expert_count", format!("expected no mixture of experts, found {n}")));
    }
    for (name, neutral) in [
        ("rope.scaling.attn_factor", 1.0),
        ("attention.clamp_kqv", 0.0),
        ("attention.max_alibi_bias", 0.0),
        ("attn_logit_softcapping", 0.0),
        ("final_logit_softcapping", 0.0),
        ("logit_scale", 1.0),
        ("embedding_scale", 1.0),
        ("residual_scale", 1.0),
    ] {
        if let Some(x) = keys.number(name)?.filter(|&x| x != neutral && x != 0.0) {
            return Err(keys.unsupported(name, format!("expected {neutral}, found {x}")));
        }
    }
    if keys.metadata.bool(&keys.key("attention.causal"))? == Some(false) {
        return Err(keys.unsupported("attention.causal", "expected causal attention, found false"));
    }
    for name in ["attention.sliding_window_pattern", "rope.dimension_sections"] {
        if keys.metadata.get(&keys.key(name)).is_some() {
            return Err(keys.unsupported(name, "expected no such key: this is not computed here"));
        }
    }
    Ok(())
}

fn vocab_size<'t>(keys: &Keys, tensor: &impl Fn(&str) -> Option<&'t StoredTensor>) -> Result<usize> {
    let name = Weight::TokenEmbedding.gguf_name();
    let embedding = tensor(&name)
        .ok_or_else(|| Error::new(Code::BaseTensor, "expected a tensor, found none").file(keys.file).field(&name))?;
    let rows = embedding.shape.first().copied().unwrap_or(0);
    match keys.count("vocab_size")? {
        Some(stated) if stated != rows => {
            Err(keys.invalid("vocab_size", format!("expected {rows}, the rows of {name}, found {stated}")))
        }
        _ => Ok(rows),
    }
}

fn rope(keys: &Keys, has_factors: bool) -> Result<Rope> {
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let key = keys.key("rope.scaling.type");
    let kind = keys.text(&key)?.unwrap_or("linear");
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    let linear = match (kind, factor) {
        ("none", _) => None,
        ("linear", Some(factor)) if factor < 0.0 => {
            return Err(keys.invalid("rope.scaling.factor", format!("expected at least 0, found {factor}")));
        }
        // 0 is llama.cpp's way to say "no scaling"
        ("linear", factor) => factor.filter(|&f| f != 0.0 && f != 1.0),
        (other, _) => {
            let message = format!("expected none or linear, found {:?}", shorten(other));
            return Err(keys.unsupported("rope.scaling.type", message));
        }
    };
    let scaling = match (linear, has_factors) {
        (None, false) => RopeScaling::None,
        (Some(factor), false) => RopeScaling::Linear { factor },
        // llama.cpp reads the tensor for `llama` only
        (None, true) if keys.architecture == "llama" => RopeScaling::Factors,
        _ => {
            let name = Weight::RopeFactors.gguf_name();
            return Err(Error::new(
                Code::ConfigUnsupported,
                "expected either this tensor on a llama, or linear scaling",
            )
            .file(keys.file)
            .field(name));
        }
    };
    Ok(Rope { theta, scaling })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::format::gguf::Array;
    use crate::tensor::DType;

    fn keys(architecture: &str) -> Metadata {
        let mut m = Metadata::new();
        m.insert("general.architecture", Value::String(architecture.into()));
        for (name, n) in [
            ("block_count", 2),
            ("embedding_length", 64),
            ("feed_forward_length", 96),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
        ] {
            m.insert(format!("{architecture}.{name}"), Value::U32(n));
        }
        m.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        m
    }

    fn tensor(name: &str, shape: &[usize]) -> StoredTensor {
        StoredTensor {
            name: name.into(),
            dtype: DType::F32,
            shape: shape.to_vec(),
            file: Arc::from(Path::new("x.gguf")),
            file_offset: 0,
            bytes: vec![].into(),
        }
    }

    fn parsed(metadata: &Metadata, names: &[&str]) -> Result<BaseConfig> {
        let mut tensors = vec![tensor("token_embd.weight", &[50, 64])];
        tensors.extend(names.iter().map(|n| tensor(n, &[8])));
        parse(Path::new("x.gguf"), metadata, |name| tensors.iter().find(|t| t.name == name))
    }

    fn changed(changes: &[(&str, Option<Value>)], names: &[&str]) -> Result<BaseConfig> {
        let mut m = keys("llama");
        for (name, value) in changes {
            match value {
                Some(value) => m.insert(*name, value.clone()),
                None => drop(m.remove(name)),
            }
        }
        parsed(&m, names)
    }

    #[test]
    fn absent_keys_take_llama_cpps_defaults() {
        let c = changed(&[("llama.attention.head_count_kv", None)], &[]).unwrap();
        assert_eq!((c.head_dim, c.n_kv_heads, c.vocab_size), (16, 4, 50));
        assert_eq!(c.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
        assert_eq!((c.tied_embeddings, c.sliding_windows), (true, vec![None, None]));
        assert!(!changed(&[], &["output.weight"]).unwrap().tied_embeddings);
        assert_eq!(changed(&[("llama.attention.key_length", Some(Value::U32(32)))], &[]).unwrap().head_dim, 32);
    }

    #[test]
    fn rope_scaling_is_read_as_llama_cpp_reads_it() {
        let f = |x: f32| Some(Value::F32(x));
        let s = |x: &str| Some(Value::String(x.into()));
        for (changes, names, expected) in [
            (vec![("llama.rope.scaling.factor", f(4.0))], vec![], RopeScaling::Linear { factor: 4.0 }),
            (vec![("llama.rope.scale_linear", f(2.0))], vec![], RopeScaling::Linear { factor: 2.0 }),
            (
                vec![("llama.rope.scaling.type", s("none")), ("llama.rope.scaling.factor", f(4.0))],
                vec![],
                RopeScaling::None,
            ),
            (vec![("llama.rope.scaling.factor", f(0.0))], vec![], RopeScaling::None),
            (vec![], vec!["rope_freqs.weight"], RopeScaling::Factors),
        ] {
            assert_eq!(changed(&changes, &names).unwrap().rope.scaling, expected, "{changes:?}");
        }
    }

    #[test]
    fn counts_per_layer_are_accepted_when_they_agree() {
        let list = |n: &[u32]| Some(Value::Array(Array::from_u32(n)));
        let key = "llama.attention.head_count_kv";
        assert_eq!(changed(&[(key, list(&[2, 2]))], &[]).unwrap().n_kv_heads, 2);
        assert_eq!(changed(&[(key, list(&[2, 4]))], &[]).unwrap_err().code(), Code::ConfigUnsupported);
        assert_eq!(changed(&[(key, list(&[2]))], &[]).unwrap_err().code(), Code::ConfigField);
        assert_eq!(changed(&[(key, list(&[]))], &[]).unwrap_err().code(), Code::ConfigField);
    }

    #[test]
    fn what_is_wrong_or_not_computed_is_refused_with_its_key() {
        use Code::{BaseArchitecture as A, ConfigField as F, ConfigUnsupported as U, GgufKey as K};
        let n = |n: u32| Some(Value::U32(n));
        let f = |x: f32| Some(Value::F32(x));
        let s = |x: &str| Some(Value::String(x.into()));
        for (key, value, code) in [
            ("general.architecture", s("llama4"), A),
            ("general.architecture", None, A),
            ("general.type", s("adapter"), A),
            ("llama.block_count", None, K),
            ("llama.block_count", s("2"), K),
            ("llama.block_count", n(0), F),
            ("llama.block_count", n(u32::MAX), F),
            ("llama.attention.head_count_kv", n(3), F),
            ("llama.attention.key_length", n(15), F),
            ("llama.attention.value_length", n(8), U),
            ("llama.rope.dimension_count", n(8), U),
            ("llama.attention.layer_norm_rms_epsilon", None, K),
            ("llama.attention.layer_norm_rms_epsilon", f(f32::NAN), F),
            ("llama.rope.freq_base", f(0.0), F),
            ("llama.rope.scaling.type", s("yarn"), U),
            ("llama.rope.scaling.factor", f(-1.0), F),
            ("llama.expert_count", n(8), U),
            ("llama.vocab_size", n(51), F),
            ("llama.logit_scale", f(0.5), U),
        ] {
            let e = changed(&[(key, value.clone())], &[]).unwrap_err();
            assert_eq!((e.code(), e.field_name()), (code, Some(key)), "{value:?}: {e}");
        }
        let e = parsed(&keys("qwen2"), &["rope_freqs.weight"]).unwrap_err();
        assert_eq!((e.code(), e.field_name()), (U, Some("rope_freqs.weight")));
        let both = changed(&[("llama.rope.scaling.factor", f(2.0))], &["rope_freqs.weight"]);
        assert_eq!(both.unwrap_err().code(), U);
    }
}
