//! Which base an adapter was made for: a text that is the same for a model's Hugging Face folder and its GGUF file.
//!
//! ```text
//!   ptplus-base/1 config=SHA-256 query=SHA-256 type=BF16        memories beside attention
//!   ptplus-base/3 config=SHA-256 weights=SHA-256 type=BF16      additions to weights
//! ```
//!
//! `config` covers the sizes and constants that both dialects state, `query` the query projections (weight, bias, norm)
//! of the adapted layers, by value and in Hugging Face row order: they are what the adapter's memories were trained
//! against. `weights` covers every matrix that something is added to: small ones whole, of large ones rows at even distances
//! (`digests.rs`), since a model that was trained further differs in all of them. Another element type may have rounded the same weights, so
//! unequal digests prove nothing then, and the answer has three values.

use std::collections::BTreeSet;
use std::fmt;

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::digests::{Key, Sample, known_digest};
use super::{BaseModel, BlockWeight, Dialect, Weight};
use crate::digest::hex;
use crate::error::Result;
use crate::tensor::DType;

/// What a scheme covers beside the configuration, and what its field is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Queries,
    Weights,
}

impl Scheme {
    const ALL: [Scheme; 2] = [Scheme::Queries, Scheme::Weights];

    fn name(self) -> &'static str {
        match self {
            Scheme::Queries => "ptplus-base/1",
            Scheme::Weights => "ptplus-base/3",
        }
    }

    fn field(self) -> &'static str {
        match self {
            Scheme::Queries => "query",
            Scheme::Weights => "weights",
        }
    }

    fn covered(self) -> &'static str {
        match self {
            Scheme::Queries => "query projections",
            Scheme::Weights => "adapted weights",
        }
    }
}

/// What all versions begin with.
const ANY_SCHEME: &str = "ptplus-base/";
const OTHER_CONFIG: &str = "its architecture, sizes or constants are others";

/// What of a base an adapter was trained against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// The queries of these layers.
    Queries(Vec<usize>),
    /// The queries of every layer.
    AllQueries,
    /// These matrices.
    Weights(BTreeSet<Weight>),
}

/// How much of a base is read for a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Sizes and constants: tells another model, never the same one.
    Headers,
    /// What the adapter was trained against too. The query projections of an 8B model in BF16 are 1 GB.
    Weights,
}

/// A fingerprint in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    scheme: Scheme,
    config: String,
    weights: String,
    /// Element types of the weights.
    types: BTreeSet<&'static str>,
}

/// Whether a base is the one that an adapter was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
#[non_exhaustive]
pub enum Identity {
    /// It is, as far as the adapter can see: the weights that it was trained against are the same.
    Same,
    /// Nothing shows that it is not.
    CannotTell(String),
    /// It is not.
    Different(String),
}

impl Fingerprint {
    /// The fingerprint of `base` as an adapter that touches this sees it. Layers and weights that the base has not are left out.
    ///
    /// # Errors
    ///
    /// Those of reading weights.
    pub fn of(base: &BaseModel, touched: &Touched) -> Result<Fingerprint> {
        let (scheme, keys): (_, Vec<(String, Key)>) = match touched {
            Touched::Queries(layers) => {
                let layers = layers.iter().filter(|i| **i < base.config.n_layers);
                (Scheme::Queries, layers.map(|&i| (i.to_string(), Key::Query(i))).collect())
            }
            Touched::AllQueries => {
                (Scheme::Queries, (0..base.config.n_layers).map(|i| (i.to_string(), Key::Query(i))).collect())
            }
            Touched::Weights(weights) => {
                let sample = Sample::of_each(weights.len());
                let named = |&weight: &Weight| {
                    let seen = seen(weight, base);
                    // A head that is tied is the embedding.
                    let stored = base.stored_weight(seen).ok().filter(|w| base.tensor(*w).is_some())?;
                    Some((weight.name(Dialect::HuggingFace), Key::Weight(stored, sample)))
                };
                (Scheme::Weights, weights.iter().filter_map(named).collect())
            }
        };
        let parts: Vec<(DType, String)> =
            keys.par_iter().map(|(_, key)| known_digest(base, *key)).collect::<Result<_>>()?;
        let mut all = Sha256::new();
        for ((name, _), (_, digest)) in keys.iter().zip(&parts) {
            all.update(format!("{name} {digest}\n"));
        }
        Ok(Fingerprint {
            scheme,
            config: config_digest(base),
            weights: hex(&all.finalize()),
            types: parts.iter().map(|(dtype, _)| dtype.name()).collect(),
        })
    }

    /// Reads the text form; `None` for one of another version.
    pub fn parse(text: &str) -> Option<Fingerprint> {
        let (name, rest) = text.split_once(' ')?;
        let scheme = Scheme::ALL.into_iter().find(|s| s.name() == name)?;
        let mut fields = rest.split(' ');
        let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        let (config, weights, types) = (field("config")?, field(scheme.field())?, field("type")?);
        let is_digest = |t: &str| t.len() == 64 && t.bytes().all(|b| b.is_ascii_hexdigit());
        let types = types.split(',').map(|t| DType::parse(t).map(DType::name)).collect::<Option<_>>()?;
        let fits = is_digest(config) && is_digest(weights) && fields.next().is_none();
        fits.then(|| Fingerprint { scheme, config: config.into(), weights: weights.into(), types })
    }

    /// Whether `found` is the model that this is the fingerprint of, for an adapter that touches the same.
    pub fn compare(&self, found: &Fingerprint) -> Identity {
        if self.config != found.config {
            return Identity::Different(OTHER_CONFIG.into());
        }
        if self.scheme != found.scheme {
            return Identity::CannotTell("the fingerprints are of different kinds of adapters".into());
        }
        if self.weights == found.weights {
            return Identity::Same;
        }
        let what = self.scheme.covered();
        let is_exact = |types: &BTreeSet<&str>| types.len() == 1 && types.iter().all(|t| !is_rounded(t));
        if self.types == found.types && is_exact(&self.types) {
            let of_layers = if self.scheme == Scheme::Queries { " of the adapted layers" } else { "" };
            return Identity::Different(format!("the {what}{of_layers} have other values"));
        }
        Identity::CannotTell(format!(
            "its {what} are stored as {}, those of the base it was made for as {}: rounding changes values",
            join(&found.types),
            join(&self.types)
        ))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, field) = (self.scheme.name(), self.scheme.field());
        write!(f, "{name} config={} {field}={} type={}", self.config, self.weights, join(&self.types))
    }
}

/// Whether a text is a fingerprint of a version that is known, or of one to come.
pub fn is_well_formed(text: &str) -> bool {
    let is_known = |name: &str| Scheme::ALL.iter().any(|s| s.name() == name);
    let is_other_version = text.starts_with(ANY_SCHEME) && !text.split(' ').next().is_some_and(is_known);
    is_other_version || Fingerprint::parse(text).is_some()
}

/// Whether `base` is the one that the text `stated` is the fingerprint of, for an adapter that touches this.
///
/// # Errors
///
/// Those of reading weights, at [`Depth::Weights`].
pub fn identify(stated: &str, base: &BaseModel, touched: &Touched, depth: Depth) -> Result<Identity> {
    let Some(stated) = Fingerprint::parse(stated) else {
        return Ok(Identity::CannotTell(
            "the adapter's fingerprint is of a kind that this version does not know".into(),
        ));
    };
    if depth == Depth::Weights {
        return Ok(stated.compare(&Fingerprint::of(base, touched)?));
    }
    if config_digest(base) != stated.config {
        return Ok(Identity::Different(OTHER_CONFIG.into()));
    }
    Ok(Identity::CannotTell("only its configuration was compared, and it agrees".into()))
}

/// Keys that the dialects hold in different values, rounded, are seen by the queries of their layer.
fn seen(weight: Weight, base: &BaseModel) -> Weight {
    let c = &base.config;
    match weight {
        Weight::Block(i, _) if c.addition_factor(weight, c.gguf_key_factor()) != 1.0 => {
            Weight::Block(i, BlockWeight::Query)
        }
        other => other,
    }
}

/// What both dialects state in the same words. Left out: the vocabulary (files pad it), RoPE scaling (a tensor in GGUF,
/// words in config.json) and the sliding window (llama.cpp's converter drops it).
fn config_digest(base: &BaseModel) -> String {
    let c = &base.config;
    let mut text = serde_json::json!([
        base.gguf_architecture(),
        c.n_layers,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        c.value_head_dim,
        c.hidden_size,
        c.intermediate_size,
        // GGUF keeps both in F32.
        (c.rms_eps as f32).to_bits(),
        (c.ropes[0].theta as f32).to_bits(),
        c.biases.query_key_value,
        c.query_key_norm.is_some(),
    ]);
    if let (Some(e), Some(fields)) = (c.experts, text.as_array_mut()) {
        fields.push(serde_json::json!([e.n_experts, e.n_per_token, e.intermediate_size, e.shared_intermediate_size]));
    }
    hex(&Sha256::digest(text.to_string()))
}

/// Whether values of another type become others in this one: all types but those that training uses as they are.
fn is_rounded(type_name: &str) -> bool {
    DType::parse(type_name).is_none_or(DType::is_quantized)
}

fn join(types: &BTreeSet<&'static str>) -> String {
    types.iter().copied().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base_gguf::base_gguf;
    use crate::tensor::LazyTensor;
    use std::path::PathBuf;

    fn model(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name)
    }

    fn of(path: PathBuf, layers: &[usize]) -> Fingerprint {
        Fingerprint::of(&BaseModel::open(&path).unwrap(), &Touched::Queries(layers.to_vec())).unwrap()
    }

    #[test]
    fn a_folder_and_its_gguf_are_the_same_base_and_other_models_are_not() {
        let names = ["llama-mha", "llama-gqa", "qwen2", "qwen3", "mistral-swa", "qwen3-pre-rope", "llama-pre-rope"];
        let prints: Vec<Fingerprint> = names
            .iter()
            .map(|name| {
                let (folder, gguf) = (of(model(name).join("base"), &[0, 1]), of(base_gguf(name), &[0, 1]));
                assert_eq!(folder, gguf, "{name}");
                assert_eq!(Fingerprint::parse(&folder.to_string()).unwrap(), folder, "{name}");
                folder
            })
            .collect();
        for (i, a) in prints.iter().enumerate() {
            for (j, b) in prints.iter().enumerate() {
                let same = a.compare(b) == Identity::Same;
                assert_eq!(same, i == j, "{} and {}: {:?}", names[i], names[j], a.compare(b));
            }
        }
    }

    #[test]
    fn every_stated_size_counts() {
        let base = BaseModel::open(&model("llama-gqa").join("base")).unwrap();
        let changes: [fn(&mut crate::base::BaseConfig); 11] = [
            |c| c.n_layers += 1,
            |c| c.n_heads *= 2,
            |c| c.n_kv_heads *= 2,
            |c| c.head_dim += 2,
            |c| c.value_head_dim += 2,
            |c| c.hidden_size += 1,
            |c| c.intermediate_size += 1,
            |c| c.rms_eps *= 2.0,
            |c| c.ropes[0].theta *= 2.0,
            |c| c.biases.query_key_value ^= true,
            |c| c.query_key_norm = Some(crate::base::QueryKeyNorm::PerHead),
        ];
        let mut digests: BTreeSet<String> = [config_digest(&base)].into();
        for change in changes {
            let mut other = base.clone();
            change(&mut other.config);
            digests.insert(config_digest(&other));
        }
        assert_eq!(digests.len(), 1 + changes.len());
    }

    #[test]
    fn layers_count() {
        assert_ne!(of(model("llama-mha").join("base"), &[0]), of(model("llama-mha").join("base"), &[1]));
    }

    #[test]
    fn rounded_values_cannot_be_told() {
        let print = |weights: &str, dtype: DType| Fingerprint {
            scheme: Scheme::Queries,
            config: "0".repeat(64),
            weights: weights.repeat(64),
            types: [dtype.name()].into(),
        };
        let compare = |a: (&str, DType), b: (&str, DType)| print(a.0, a.1).compare(&print(b.0, b.1));
        use DType::{BF16, F32, Q8_0};
        assert_eq!(compare(("a", BF16), ("a", F32)), Identity::Same);
        assert!(matches!(compare(("a", BF16), ("b", BF16)), Identity::Different(_)));
        assert!(matches!(compare(("a", F32), ("b", BF16)), Identity::CannotTell(_)));
        assert!(matches!(compare(("a", F32), ("b", Q8_0)), Identity::CannotTell(_)));
        assert!(matches!(compare(("a", Q8_0), ("b", Q8_0)), Identity::CannotTell(_)));
    }

    fn of_weights(base: &BaseModel, weights: &[Weight]) -> Fingerprint {
        Fingerprint::of(base, &Touched::Weights(weights.iter().copied().collect())).unwrap()
    }

    #[test]
    fn every_adapted_weight_counts_and_no_other() {
        for name in ["llama-gqa", "llama-mha", "qwen3"] {
            let base = BaseModel::open(&model(name).join("base")).unwrap();
            let gguf = BaseModel::open(&base_gguf(name)).unwrap();
            for weight in base.weights().filter(|w| base.tensor(*w).is_some_and(|t| t.shape.len() == 2)) {
                let print = of_weights(&base, &[weight]);
                assert_eq!(print, of_weights(&gguf, &[weight]), "{name} {weight:?}");
                assert_eq!(Fingerprint::parse(&print.to_string()).unwrap(), print);
                // Its last value, which a sample of rows must see as well.
                let mut values = base.rows(weight).unwrap().to_f32();
                *values.last_mut().unwrap() += 0.25;
                let changed = LazyTensor::from_f32(&values, &base.tensor(weight).unwrap().shape);
                let other = base.with_weights(base.config.clone(), [(weight, changed)]).unwrap();
                let found = print.compare(&of_weights(&other, &[weight]));
                assert!(matches!(found, Identity::Different(_)), "{name} {weight:?}: {found:?}");
                let neighbour = Weight::Block(0, BlockWeight::Query);
                if weight != neighbour {
                    assert_eq!(of_weights(&other, &[neighbour]), of_weights(&base, &[neighbour]));
                }
            }
        }
    }

    #[test]
    fn of_large_weights_some_rows_count() {
        let base = BaseModel::open(&model("llama-mha").join("base")).unwrap();
        let mut config = base.config.clone();
        config.vocab_size = Sample::MOST_VALUES / config.hidden_size + 100;
        let shape = [config.vocab_size, config.hidden_size];
        let print = |row: usize| {
            let mut values = vec![1f32; shape[0] * shape[1]];
            values[row * shape[1]] = 2.0;
            let t = LazyTensor::from_f32(&values, &shape);
            let both = [(Weight::TokenEmbedding, t.clone()), (Weight::Output, t)];
            of_weights(&base.with_weights(config.clone(), both).unwrap(), &[Weight::TokenEmbedding]).to_string()
        };
        assert_ne!(print(0), print(shape[0] - 1));
        assert_eq!(print(1), print(2), "rows between those that are read");
    }

    #[test]
    fn other_texts_are_no_fingerprint() {
        let good = of(model("llama-mha").join("base"), &[0]).to_string();
        for bad in [
            "",
            "ptplus-base/2 config=",
            &good.replace("base/1", "base/3"),
            &good.replace("query", "weights"),
            &good[1..],
            &good[..good.len() - 1],
            &format!("{good} x=1"),
        ] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }
}
