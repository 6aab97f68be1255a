//! What is known of a model family, as a row of data. The rows are in `family/`.

use std::fmt;

use super::{Activation, BaseConfig, Biases, Layer, Norms, QueryKeyNorm, Rope};
use crate::base::fields::Fields;
use crate::base::keys::Keys;
use crate::base::row_order::RowOrder;
use crate::error::Result;
use crate::format::gguf::Value;

/// A model family whose forward pass is known here.
#[derive(Clone, Copy)]
pub struct Family(pub(in crate::base) &'static Row);

/// Hands keys of a GGUF file on.
type WriteKeys = fn(&BaseConfig, &mut dyn FnMut(&str, Value)) -> Result<()>;

/// What there is to say of a family.
pub(in crate::base) struct Row {
    /// Its names in Hugging Face's `model_type`, of which the first names the family here.
    pub model_types: &'static [&'static str],
    /// Its name in GGUF's `general.architecture`. Of families that share one, the first in the list reads GGUF files.
    pub gguf_architecture: &'static str,
    /// What stands before `ForCausalLM` in the names of its classes in transformers.
    pub class_stems: &'static [&'static str],
    /// The order in which GGUF files have the rows of query and key. Sources: `permute` in llama.cpp's converter for the
    /// class; `llama_model_rope_type`.
    pub row_order: RowOrder,
    /// What its configuration class assumes for keys that a file leaves out.
    pub defaults: Defaults,
    /// Which norms stand where.
    pub norms: Norms,
    /// The norm of query and key.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// Which projections have a bias.
    pub biases: BiasRules,
    /// Whether query, key and value are one matrix, and gate and up are.
    pub fused_projections: bool,
    /// What the model does to embeddings that do not come from its table, as virtual tokens'.
    pub embeddings_from_elsewhere: GivenEmbeddings,
    /// The key of `config.json` that names the activation, and the one that is computed.
    pub activation: (&'static str, Activation),
    /// The names of a mixture's weights in Hugging Face's files, of a family whose feed-forward networks may be mixtures.
    pub experts: Option<ExpertNames>,
    /// What `config.json` says of the layers, of which there are so many: windows, layers without RoPE, mixtures.
    pub layers: fn(&Fields, Family, usize) -> Result<Vec<Layer>>,
    /// The rotations that `config.json` states, of which `layers` chooses; the numbers are the base of the frequencies where none is
    /// stated, and how many components of a head are rotated.
    pub ropes: fn(&Fields, f64, usize) -> Result<Vec<Rope>>,
    /// What else `config.json` says, into a configuration that has all that is alike in every family.
    pub read_folder: fn(&Fields, &mut BaseConfig) -> Result<()>,
    /// Keys of GGUF files, without the architecture, that `read_gguf` reads and other families refuse.
    pub own_keys: &'static [&'static str],
    /// What else a GGUF file's metadata says, as `read_folder`; the windows of the layers are those of
    /// `attention.sliding_window` in all of them.
    pub read_gguf: fn(&Keys, &mut BaseConfig) -> Result<()>,
    /// Hands on the keys, without the architecture, that a GGUF file of this configuration has beyond those of every family.
    pub write_gguf: WriteKeys,
    /// What llama.cpp does with it.
    pub llama_cpp: LlamaCpp,
}

/// What becomes of embeddings that are handed to a model, where it multiplies those of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenEmbeddings {
    /// Nothing: the table multiplies what is looked up, as `Gemma3TextScaledWordEmbedding` of transformers does.
    AsTheyAre,
    /// They are multiplied like the table's, as in `GraniteModel.forward`.
    Multiplied,
    /// transformers 4 multiplies them and 5 does not.
    DependsOnVersion,
}

/// What Hugging Face's files call the weights of a mixture of experts, within a block.
pub(in crate::base) struct ExpertNames {
    pub router: &'static str,
    /// What holds the experts, by their numbers.
    pub experts: &'static str,
    /// An expert's gate, up and down projection.
    pub matrices: [&'static str; 3],
}

impl ExpertNames {
    /// Those of most families, and of what transformers 5 has in memory.
    pub const QWEN: ExpertNames =
        ExpertNames { router: "mlp.gate", experts: "mlp.experts", matrices: ["gate_proj", "up_proj", "down_proj"] };
}

/// What a configuration class assumes for keys that a file leaves out. Source: the family's `configuration_*.py` in transformers.
pub(in crate::base) struct Defaults {
    pub n_layers: usize,
    pub n_heads: usize,
    /// `None`: as many as heads.
    pub n_kv_heads: Option<usize>,
    /// `None`: hidden size over heads.
    pub head_dim: Option<usize>,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub context_length: usize,
    pub rms_eps: f64,
    pub rope_theta: f64,
    pub tied_embeddings: bool,
}

/// Whether a family's projections have a bias.
pub(in crate::base) enum BiasRule {
    Never,
    Always,
    /// If this key of `config.json` says so; absent means no.
    Stated(&'static str),
}

/// [`BiasRule`]s for the groups of [`Biases`].
pub(in crate::base) struct BiasRules {
    pub query_key_value: BiasRule,
    pub attention_output: BiasRule,
    pub feed_forward: BiasRule,
}

/// The tensors of divisors of RoPE's frequencies that llama.cpp reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeTensors {
    /// None: its graph passes none to RoPE.
    None,
    /// Those of long and of short sequences where `rope.scaling.type` is `longrope`, else one for all.
    ByType,
    /// Those of long and of short sequences, whatever the type.
    LongAndShort,
}

/// What llama.cpp, of the release that this build has, does with a family. Sources: `src/models/*.cpp`, `llama-quant.cpp`.
pub struct LlamaCpp {
    /// The biases that it loads; a file with another is refused.
    pub biases: Biases,
    /// Where it has the output head from.
    pub head: Head,
    /// What it multiplies scores with, where no key says that and it is not `1/sqrt(D)`. Where the model does otherwise, the
    /// difference is multiplied into the keys of a GGUF file.
    pub attention_scale: Option<fn(&BaseConfig) -> f64>,
    /// Whether it takes a head's length to be hidden size over heads, whatever the file says.
    pub derives_head_dim: bool,
    /// Whether it applies a sliding window that the file states.
    pub applies_windows: bool,
    /// Which divisors of RoPE's frequencies it reads.
    pub rope_tensors: RopeTensors,
    /// Whether its recipe of K-quants takes the model for a "70B", whose value projections are small.
    pub is_70b: fn(&BaseConfig) -> bool,
}

/// Where llama.cpp has the output head from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The file's, or the token embedding where the file has none.
    Either,
    /// The file's.
    Own,
    /// The token embedding.
    Embedding,
}

impl Row {
    /// Whether a part of each head may be rotated, which its GGUF files state then.
    pub fn rotates_in_part(&self) -> bool {
        self.own_keys.contains(&Row::ROTARY_DIM)
    }

    /// The key that says how much.
    pub const ROTARY_DIM: &'static str = "rope.dimension_count";
}

impl Family {
    /// The name in Hugging Face's `model_type`, without aliases.
    pub fn model_type(self) -> &'static str {
        self.0.model_types[0]
    }

    /// The name in GGUF's `general.architecture`. Mistral is `llama` there.
    pub fn gguf_architecture(self) -> &'static str {
        self.0.gguf_architecture
    }

    /// What the model does to embeddings that do not come from its table.
    pub fn embeddings_from_elsewhere(self) -> GivenEmbeddings {
        self.0.embeddings_from_elsewhere
    }

    /// The order of query and key rows in GGUF files.
    pub fn row_order(self) -> RowOrder {
        self.0.row_order
    }

    /// Whether GGUF files of the family can hold key projections multiplied, see [`BaseConfig::gguf_key_factor`].
    pub fn multiplies_keys(self) -> bool {
        self.0.llama_cpp.attention_scale.is_some() && self.0.query_key_norm.is_none()
    }

    /// Whether its norms stand before attention and before the feed-forward network, with the weights that multiply.
    pub fn has_plain_norms(self) -> bool {
        self.0.norms == super::Norms::BEFORE
    }

    /// What llama.cpp does with the family.
    pub fn llama_cpp(self) -> &'static LlamaCpp {
        &self.0.llama_cpp
    }

    /// Hands on the keys of a GGUF file, without the architecture, that only this family's have.
    ///
    /// # Errors
    ///
    /// [`ConfigUnsupported`](crate::error::Code::ConfigUnsupported) for what GGUF or llama.cpp has no place for.
    pub fn own_gguf_keys(self, config: &BaseConfig, put: &mut dyn FnMut(&str, Value)) -> Result<()> {
        (self.0.write_gguf)(config, put)
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.model_type() == other.model_type()
    }
}

impl Eq for Family {}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}
