//! Which type each matrix of a base model gets: the rules of llama.cpp's `llama_tensor_get_type` (llama-quant.cpp in
//! llama-cpp-sys-2 0.1.161) for the supported families, without an importance matrix.

use crate::base::{BaseModel, BlockWeight, ExpertMatrix, Weight};
use crate::export::types::{Mix, OutType};
use crate::tensor::DType;

/// The types for the matrices of one model.
pub(super) struct Recipe {
    dtype: DType,
    mix: Option<Mix>,
    n_layers: usize,
    /// Query heads per key/value head.
    n_group: usize,
    /// Whether llama.cpp takes the model for a "70B", whose value projections are small.
    is_70b: bool,
    tied_embeddings: bool,
    n_experts: usize,
}

impl Recipe {
    /// `None` where the types are kept.
    pub fn new(out_type: OutType, base: &BaseModel) -> Option<Recipe> {
        let (dtype, mix) = match out_type {
            OutType::Keep => return None,
            OutType::As(dtype) => (dtype, Mix::of_type(dtype)),
            OutType::Mix(mix) => (mix.dtype(), Some(mix)),
        };
        let c = &base.config;
        Some(Recipe {
            dtype,
            mix,
            n_layers: c.n_layers,
            n_group: c.n_heads / c.n_kv_heads,
            is_70b: (c.family.llama_cpp().is_70b)(c),
            tied_embeddings: c.tied_embeddings,
            n_experts: c.experts.map_or(0, |e| e.n_experts),
        })
    }

    /// `general.file_type` of the output.
    pub fn file_type(&self) -> u32 {
        self.mix.map_or(super::file_type::of(self.dtype), Mix::file_type)
    }

    /// The type for a tensor whose last matrix is `weight`, with rows of `row_len`, before it is seen whether the rows are whole
    /// blocks. Query, key and value in one get what the value gets.
    pub fn dtype(&self, weight: Weight, row_len: usize) -> DType {
        use BlockWeight::{AttentionOutput, Down, Expert, Key, QueryKeyValue, SharedDown, Value};
        if !self.dtype.is_quantized() {
            return self.dtype;
        }
        match weight {
            Weight::Output => self.output(row_len),
            Weight::TokenEmbedding if self.tied_embeddings => self.output(row_len),
            Weight::Block(i, Value | QueryKeyValue) => self.value(i),
            Weight::Block(i, Down | SharedDown | Expert(_, ExpertMatrix::Down)) => self.down(i),
            Weight::Block(_, Key) if self.has_8_experts() => DType::Q8_0,
            Weight::Block(_, AttentionOutput) if self.has_8_experts() => match self.mix {
                Some(Mix::Q2_K | Mix::Q3_K_S | Mix::Q3_K_M | Mix::Q4_K_S | Mix::Q4_K_M) => DType::Q5_K,
                _ => self.dtype,
            },
            Weight::Block(_, AttentionOutput) => match self.mix {
                Some(Mix::Q2_K) => DType::Q3_K,
                Some(Mix::Q3_K_M) => DType::Q4_K,
                Some(Mix::Q3_K_L) => DType::Q5_K,
                _ => self.dtype,
            },
            _ => self.dtype,
        }
    }

    fn output(&self, row_len: usize) -> DType {
        let fits = row_len.is_multiple_of(self.dtype.block_len());
        if !fits || self.dtype == DType::Q8_0 { DType::Q8_0 } else { DType::Q6_K }
    }

    /// Attention is small in Mixtral 8x7B, and llama.cpp gives it more bits in every model of so many experts.
    fn has_8_experts(&self) -> bool {
        self.n_experts == 8
    }

    fn value(&self, layer: usize) -> DType {
        if self.has_8_experts() {
            return DType::Q8_0;
        }
        let dtype = match self.mix {
            Some(Mix::Q2_K) if self.n_group >= 4 => DType::Q4_K,
            Some(Mix::Q2_K) => DType::Q3_K,
            Some(Mix::Q3_K_M) if layer < 2 => DType::Q5_K,
            Some(Mix::Q3_K_M) => DType::Q4_K,
            Some(Mix::Q3_K_L) => DType::Q5_K,
            Some(Mix::Q4_K_M | Mix::Q5_K_M) if self.gets_more_bits(layer) => DType::Q6_K,
            Some(Mix::Q4_K_S) if layer < 4 => DType::Q5_K,
            _ => self.dtype,
        };
        if self.is_70b && matches!(dtype, DType::Q3_K | DType::Q4_K) { DType::Q5_K } else { dtype }
    }

    fn down(&self, layer: usize) -> DType {
        match self.mix {
            Some(Mix::Q2_K) => DType::Q3_K,
            Some(Mix::Q3_K_M) if layer < self.n_layers / 16 => DType::Q5_K,
            Some(Mix::Q3_K_M) => DType::Q4_K,
            Some(Mix::Q3_K_L) => DType::Q5_K,
            Some(Mix::Q4_K_M | Mix::Q5_K_M) if self.gets_more_bits(layer) => DType::Q6_K,
            Some(Mix::Q4_K_S) if layer < self.n_layers / 8 => DType::Q5_K,
            _ => self.dtype,
        }
    }

    /// The first and the last eighth of the layers, and every third between.
    fn gets_more_bits(&self, layer: usize) -> bool {
        let n = self.n_layers;
        layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(out_type: OutType, n_layers: usize, n_group: usize) -> Recipe {
        let (dtype, mix) = match out_type {
            OutType::As(dtype) => (dtype, Mix::of_type(dtype)),
            OutType::Mix(mix) => (mix.dtype(), Some(mix)),
            OutType::Keep => unreachable!(),
        };
        Recipe { dtype, mix, n_layers, n_group, is_70b: false, tied_embeddings: true, n_experts: 0 }
    }

    /// Layers in which `weight` has `dtype`.
    fn layers(r: &Recipe, weight: BlockWeight, dtype: DType) -> Vec<usize> {
        (0..r.n_layers).filter(|i| r.dtype(Weight::Block(*i, weight), 1536) == dtype).collect()
    }

    #[test]
    fn mixes_bump_the_layers_that_llama_cpp_bumps() {
        use BlockWeight::{AttentionOutput, Down, Query, QueryKeyValue, Value};
        let many = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29];
        let all: Vec<usize> = (0..30).collect();
        for (out_type, weight, dtype, expected) in [
            (OutType::As(DType::Q4_K), Value, DType::Q6_K, &many[..]),
            (OutType::Mix(Mix::Q4_K_M), Down, DType::Q6_K, &many),
            (OutType::Mix(Mix::Q4_K_M), QueryKeyValue, DType::Q6_K, &many),
            (OutType::As(DType::Q5_K), Down, DType::Q6_K, &many),
            (OutType::Mix(Mix::Q4_K_S), Value, DType::Q5_K, &[0, 1, 2, 3]),
            (OutType::Mix(Mix::Q4_K_S), Down, DType::Q5_K, &[0, 1, 2]),
            (OutType::As(DType::Q3_K), Value, DType::Q5_K, &[0, 1]),
            (OutType::As(DType::Q3_K), Down, DType::Q5_K, &[0]),
            (OutType::As(DType::Q3_K), AttentionOutput, DType::Q4_K, &all),
            (OutType::Mix(Mix::Q3_K_L), Value, DType::Q5_K, &all),
            (OutType::Mix(Mix::Q3_K_S), Down, DType::Q3_K, &all),
            (OutType::As(DType::Q2_K), Value, DType::Q3_K, &all),
            (OutType::As(DType::Q4_0), Down, DType::Q4_0, &all),
            (OutType::As(DType::Q4_K), Query, DType::Q4_K, &all),
        ] {
            assert_eq!(layers(&recipe(out_type, 30, 3), weight, dtype), expected, "{out_type:?} {weight:?} {dtype}");
        }
        let many_groups = recipe(OutType::As(DType::Q2_K), 30, 4);
        assert_eq!(layers(&many_groups, Value, DType::Q4_K), all);
        let large = Recipe { is_70b: true, ..recipe(OutType::Mix(Mix::Q3_K_S), 80, 8) };
        assert_eq!(layers(&large, Value, DType::Q5_K).len(), 80);
    }

    #[test]
    fn attention_gets_more_bits_beside_8_experts_and_experts_what_a_network_gets() {
        use BlockWeight::{AttentionOutput, Expert, Key, Query, SharedDown, Value};
        let (gate, down) = (Expert(7, ExpertMatrix::Gate), Expert(7, ExpertMatrix::Down));
        let all: Vec<usize> = (0..32).collect();
        let more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
        for (n_experts, out_type, weight, dtype, expected) in [
            (8, OutType::Mix(Mix::Q4_K_M), Value, DType::Q8_0, &all[..]),
            (8, OutType::Mix(Mix::Q4_K_M), Key, DType::Q8_0, &all),
            (8, OutType::As(DType::Q4_0), Key, DType::Q8_0, &all),
            (8, OutType::Mix(Mix::Q4_K_M), AttentionOutput, DType::Q5_K, &all),
            (8, OutType::Mix(Mix::Q3_K_L), AttentionOutput, DType::Q3_K, &all),
            (8, OutType::Mix(Mix::Q4_K_M), Query, DType::Q4_K, &all),
            (8, OutType::Mix(Mix::Q4_K_M), gate, DType::Q4_K, &all),
            (8, OutType::Mix(Mix::Q4_K_M), down, DType::Q6_K, &more),
            (60, OutType::Mix(Mix::Q4_K_M), SharedDown, DType::Q6_K, &more),
            (60, OutType::Mix(Mix::Q4_K_M), Key, DType::Q4_K, &all),
            (60, OutType::Mix(Mix::Q4_K_M), Value, DType::Q6_K, &more),
        ] {
            let recipe = Recipe { n_experts, ..recipe(out_type, 32, 4) };
            let found: Vec<usize> =
                (0..32).filter(|i| recipe.dtype(Weight::Block(*i, weight), 1536) == dtype).collect();
            assert_eq!(found, expected, "{n_experts} experts, {out_type:?} {weight:?} {dtype}");
        }
    }

    #[test]
    fn the_head_or_what_stands_for_it_gets_six_bits_or_eight() {
        for (dtype, row_len, expected) in [
            (DType::Q4_0, 576, DType::Q6_K), // whole blocks of Q4_0, if not of Q6_K, which is seen later
            (DType::Q4_K, 576, DType::Q8_0),
            (DType::Q4_K, 2048, DType::Q6_K),
            (DType::Q8_0, 2048, DType::Q8_0),
            (DType::F16, 2048, DType::F16),
        ] {
            let tied = recipe(OutType::As(dtype), 30, 3);
            assert_eq!(tied.dtype(Weight::TokenEmbedding, row_len), expected, "{dtype}");
            let untied = Recipe { tied_embeddings: false, ..tied };
            assert_eq!(untied.dtype(Weight::Output, row_len), expected, "{dtype}");
            assert_eq!(untied.dtype(Weight::TokenEmbedding, row_len), dtype);
        }
    }
}
