//! phi's activation, in F64 and F32. The runner computes the same functions on tensors; a test holds them together.

use super::named_enum;

named_enum! {
    /// The activation inside phi. `elu` is the one of the paper's experiments.
    FeatureMap {
        /// `x`
        Identity = "identity",
        /// `x` for `x > 0`, else `exp(x) - 1`
        Elu = "elu",
        /// `elu(x) + 1`
        EluPlusOne = "elu_plus_one",
        /// `max(x, 0)`
        Relu = "relu",
        /// `x * sigmoid(x)`
        Silu = "silu",
        /// `x/2 * (1 + erf(x / sqrt 2))`
        Gelu = "gelu",
        /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`
        GeluTanh = "gelu_tanh",
        /// `ln(1 + exp(x))`; `x` for `x > 20`, as PyTorch computes it
        Softplus = "softplus",
        /// `1 / (1 + exp(-x))`
        Sigmoid = "sigmoid",
        /// `tanh(x)`
        Tanh = "tanh",
        /// `exp(x)`
        Exp = "exp",
    }
}

impl FeatureMap {
    /// Whether `act(c * x) = c * act(x)` for every `c >= 0`, so that a query scale is the same as a memory scale.
    pub fn is_homogeneous(self) -> bool {
        matches!(self, FeatureMap::Identity | FeatureMap::Relu)
    }
}
