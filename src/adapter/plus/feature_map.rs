//! phi's activation. Its definitions, with what happens near 0 and in the tails, are in docs/METHOD.md; the runner computes
//! them.

use crate::named::named_enum;

named_enum! {
    /// The activation inside phi. `elu` is the one of the paper's experiments.
    FeatureMap {
        /// `x`
        Identity = "identity",
        /// `x` for `x > 0`, else `exp(x) - 1`
        Elu = "elu",
        /// `x + 1` for `x > 0`, else `exp(x)`
        EluPlusOne = "elu_plus_one",
        /// `max(x, 0)`
        Relu = "relu",
        /// `x * sigmoid(x)`
        Silu = "silu",
        /// `x/2 * (1 + erf(x / sqrt 2))`
        Gelu = "gelu",
        /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`
        GeluTanh = "gelu_tanh",
        /// `ln(1 + exp(x))`
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

    /// Whether `act(-x) = -act(x)`, so that the signs of both scales change nothing together.
    pub fn is_odd(self) -> bool {
        matches!(self, FeatureMap::Identity | FeatureMap::Tanh)
    }
}
