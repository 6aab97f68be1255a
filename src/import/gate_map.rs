//! What a stored gate means.

crate::named::named_enum! {
    /// What a training code computes of a stored gate before it multiplies with it.
    GateMap {
        /// Nothing.
        Identity = "identity",
        /// `1 / (1 + exp(-x))`
        Sigmoid = "sigmoid",
        /// `tanh(x)`
        Tanh = "tanh",
        /// `exp(x)`
        Exp = "exp",
    }
}

impl GateMap {
    pub fn of(self, x: f64) -> f64 {
        match self {
            GateMap::Identity => x,
            GateMap::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            GateMap::Tanh => x.tanh(),
            GateMap::Exp => x.exp(),
        }
    }
}
