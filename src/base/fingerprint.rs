//! Which base an adapter was made for: a text that is the same for a model's Hugging Face folder and its GGUF file.
//!
//! ```text
//!   ptplus-base/1 config=SHA-256 query=SHA-256 type=BF16
//! ```
//!
//! `config` covers the sizes and constants that both dialects state, `query` the query projections (weight, bias, norm)
//! of the adapted layers, by value and in Hugging Face row order: they are what the adapter's memories were trained
//! against. Another element type may have rounded the same weights, so unequal digests prove nothing then, and the answer
//! has three values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{BaseModel, BlockWeight, Rows, Weight};
use crate::digest::hex;
use crate::error::Result;
use crate::quant;
use crate::tensor::DType;

const SCHEME: &str = "ptplus-base/1";
/// What all versions begin with.
const ANY_SCHEME: &str = "ptplus-base/";
const OTHER_CONFIG: &str = "its architecture, sizes or constants are others";

/// How much of a base is read for a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Sizes and constants: tells another model, never the same one.
    Headers,
    /// The query projections of the adapted layers too. For an 8B model in BF16 that is 1 GB.
    Weights,
}

/// A fingerprint in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    config: String,
    query: String,
    /// Element types of the query weights.
    types: BTreeSet<&'static str>,
}

/// Whether a base is the one that an adapter was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
#[non_exhaustive]
pub enum Identity {
    /// It is, as far as the adapter can see: the same query projections.
    Same,
    /// Nothing shows that it is not.
    CannotTell(String),
    /// It is not.
    Different(String),
}

impl Fingerprint {
    /// The fingerprint of `base` as an adapter of these layers sees it. Layers that the base has not are left out.
    ///
    /// # Errors
    ///
    /// Those of reading weights.
    pub fn of(base: &BaseModel, layers: impl IntoIterator<Item = usize>) -> Result<Fingerprint> {
        let layers: Vec<usize> = layers.into_iter().filter(|i| *i < base.config.n_layers).collect();
        let parts: Vec<(DType, String)> = layers.par_iter().map(|&i| query_digest(base, i)).collect::<Result<_>>()?;
        let mut query = Sha256::new();
        for (layer, (_, digest)) in layers.iter().zip(&parts) {
            query.update(format!("{layer} {digest}\n"));
        }
        Ok(Fingerprint {
            config: config_digest(base),
            query: hex(&query.finalize()),
            types: parts.iter().map(|(dtype, _)| dtype.name()).collect(),
        })
    }

    /// Reads the text form; `None` for one of another version.
    pub fn parse(text: &str) -> Option<Fingerprint> {
        let mut fields = text.strip_prefix(SCHEME)?.strip_prefix(' ')?.split(' ');
        let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        let (config, query, types) = (field("config")?, field("query")?, field("type")?);
        let is_digest = |t: &str| t.len() == 64 && t.bytes().all(|b| b.is_ascii_hexdigit());
        let types = types.split(',').map(|t| DType::parse(t).map(DType::name)).collect::<Option<_>>()?;
        let fits = is_digest(config) && is_digest(query) && fields.next().is_none();
        fits.then(|| Fingerprint { config: config.into(), query: query.into(), types })
    }

    /// Whether `found` is the model that this is the fingerprint of, for the same layers.
    pub fn compare(&self, found: &Fingerprint) -> Identity {
        if self.config != found.config {
            return Identity::Different(OTHER_CONFIG.into());
        }
        if self.query == found.query {
            return Identity::Same;
        }
        let is_exact = |types: &BTreeSet<&str>| types.len() == 1 && types.iter().all(|t| !is_rounded(t));
        if self.types == found.types && is_exact(&self.types) {
            return Identity::Different("the query projections of the adapted layers have other values".into());
        }
        Identity::CannotTell(format!(
            "its query projections are stored as {}, those of the base it was made for as {}: rounding changes values",
            join(&found.types),
            join(&self.types)
        ))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME} config={} query={} type={}", self.config, self.query, join(&self.types))
    }
}

/// Whether a text is a fingerprint of this version, or of one to come.
pub fn is_well_formed(text: &str) -> bool {
    let is_other_version = text.starts_with(ANY_SCHEME) && text.split(' ').next() != Some(SCHEME);
    is_other_version || Fingerprint::parse(text).is_some()
}

/// Whether `base` is the one that the text `stated` is the fingerprint of, for an adapter of these layers.
///
/// # Errors
///
/// Those of reading weights, at [`Depth::Weights`].
pub fn identify(
    stated: &str,
    base: &BaseModel,
    layers: impl IntoIterator<Item = usize>,
    depth: Depth,
) -> Result<Identity> {
    let Some(stated) = Fingerprint::parse(stated) else {
        return Ok(Identity::CannotTell(
            "the adapter's fingerprint is of a kind that this version does not know".into(),
        ));
    };
    if depth == Depth::Weights {
        return Ok(stated.compare(&Fingerprint::of(base, layers)?));
    }
    if config_digest(base) != stated.config {
        return Ok(Identity::Different(OTHER_CONFIG.into()));
    }
    Ok(Identity::CannotTell("only its configuration was compared, and it agrees".into()))
}

/// What both dialects state in the same words. Left out: the vocabulary (files pad it), RoPE scaling (a tensor in GGUF,
/// words in config.json) and the sliding window (llama.cpp's converter drops it).
fn config_digest(base: &BaseModel) -> String {
    let c = &base.config;
    let text = serde_json::json!([
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
        (c.rope.theta as f32).to_bits(),
        c.biases.query_key_value,
        c.query_key_norm,
    ]);
    hex(&Sha256::digest(text.to_string()))
}

/// [`read_query`] of layers that were asked for, shared by the clones of a base.
pub(super) type Digests = Arc<Mutex<BTreeMap<usize, (DType, String)>>>;

fn query_digest(base: &BaseModel, layer: usize) -> Result<(DType, String)> {
    let known = || base.query_digests.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known().get(&layer) {
        return Ok(found.clone());
    }
    let found = read_query(base, layer)?;
    known().insert(layer, found.clone());
    Ok(found)
}

/// Type and digest of what makes a layer's queries from hidden states.
fn read_query(base: &BaseModel, layer: usize) -> Result<(DType, String)> {
    let rows = base.rows(Weight::Block(layer, BlockWeight::Query))?;
    let mut all = Sha256::new();
    all.update(weight_digest(&rows));
    for part in [BlockWeight::QueryBias, BlockWeight::QueryNorm] {
        let weight = Weight::Block(layer, part);
        if base.tensor(weight).is_some() {
            let mut halves = Halves::default();
            halves.add(&base.vector(weight)?);
            all.update(halves.digest());
        }
    }
    if let Some(t) = base.tensor(Weight::Block(layer, BlockWeight::Query)) {
        t.bytes.release();
    }
    Ok((rows.dtype(), hex(&all.finalize())))
}

fn weight_digest(rows: &Rows) -> Vec<u8> {
    let mut halves = Halves::default();
    if rows.dtype() == DType::BF16 {
        // Upper halves already, and nothing else.
        (0..rows.n_rows()).for_each(|row| halves.upper.update(rows.encoded(row)));
        return halves.digest();
    }
    let mut values = vec![0f32; rows.row_len()];
    for row in 0..rows.n_rows() {
        quant::decode(rows.dtype(), rows.encoded(row), &mut values);
        halves.add(&values);
    }
    halves.digest()
}

/// A digest of F32 values: of the upper halves of their bits, and of the lower ones if any is not zero. Values of BF16 are
/// upper halves, so they are hashed as they lie in the file, at half the cost, and a copy of them widened to F32 has the
/// same digest.
#[derive(Default)]
struct Halves {
    upper: Sha256,
    lower: Sha256,
    has_lower: bool,
    bytes: Vec<u8>,
}

impl Halves {
    fn add(&mut self, values: &[f32]) {
        let split = |bytes: &mut Vec<u8>, shift: u32| {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| ((v.to_bits() >> shift) as u16).to_le_bytes()));
        };
        split(&mut self.bytes, 16);
        self.upper.update(&self.bytes);
        split(&mut self.bytes, 0);
        self.lower.update(&self.bytes);
        self.has_lower |= self.bytes.iter().any(|b| *b != 0);
    }

    fn digest(self) -> Vec<u8> {
        let mut out = self.upper.finalize().to_vec();
        if self.has_lower {
            out.extend_from_slice(&self.lower.finalize());
        }
        out
    }
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
    use std::path::PathBuf;

    fn model(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name)
    }

    fn of(path: PathBuf, layers: &[usize]) -> Fingerprint {
        Fingerprint::of(&BaseModel::open(&path).unwrap(), layers.iter().copied()).unwrap()
    }

    #[test]
    fn a_folder_and_its_gguf_are_the_same_base_and_other_models_are_not() {
        let names = ["llama-mha", "llama-gqa", "qwen2", "qwen3", "mistral-swa", "qwen3-pre-rope", "llama-pre-rope"];
        let prints: Vec<Fingerprint> = names
            .iter()
            .map(|name| {
                let (folder, gguf) =
                    (of(model(name).join("base"), &[0, 1]), of(model(name).join("base.gguf"), &[0, 1]));
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
            |c| c.rope.theta *= 2.0,
            |c| c.biases.query_key_value ^= true,
            |c| c.query_key_norm ^= true,
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
    fn widened_bf16_is_the_same_and_rounded_values_cannot_be_told() {
        let rounded: Vec<f32> = [1.5f32, -0.1, 3.0e-9].iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        let mut widened = Halves::default();
        widened.add(&rounded);
        let mut stored = Halves::default();
        stored.upper.update(rounded.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(widened.digest(), stored.digest());

        let print = |query: &str, dtype: DType| Fingerprint {
            config: "0".repeat(64),
            query: query.repeat(64),
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

    #[test]
    fn other_texts_are_no_fingerprint() {
        let good = of(model("llama-mha").join("base"), &[0]).to_string();
        for bad in ["", "ptplus-base/2 config=", &good[1..], &good[..good.len() - 1], &format!("{good} x=1")] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }
}
