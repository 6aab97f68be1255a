//! Feed-forward networks: one for every position, or a mixture from which a router chooses.
//!
//! ```text
//!   p = softmax(router x)              over all experts
//!   y = sum of p_e expert_e(x)         over the k largest p, which some families divide by their sum
//!     + sigmoid(gate x) shared(x)      where the family has an expert for every position
//! ```

use std::sync::OnceLock;

use candle_core::{Result as CandleResult, Tensor};

use super::additions::Addition;
use super::device::Device;
use super::kernels::activation::sigmoid;
use super::kernels::swiglu::gated;
use super::kernels::top_k::top_k;
use super::linear::{Linear, Workspace};
use crate::base::{Activation, BaseModel, BlockWeight as W, ExpertMatrix, Experts, Rows, Weight};
use crate::error::Result;

/// What a block computes after attention.
pub(super) enum FeedForward {
    /// One network.
    Dense(Network),
    /// A choice for each position.
    Mixture(Box<Mixture>),
}

/// `down(activation(gate x) * up x)`
pub(super) struct Network {
    gate_up: Linear,
    activation: Activation,
    down: Linear,
}

/// Experts, and what chooses them.
pub(super) struct Mixture {
    sizes: Experts,
    activation: Activation,
    device: Device,
    router: Linear,
    experts: Vec<Expert>,
    shared: Option<Shared>,
}

/// The expert that every position gets, as much of it as its gate says.
struct Shared {
    network: Network,
    gate: Linear,
}

/// An expert that is made ready when a position gets it: of many experts, few are read.
struct Expert {
    /// Gate and up.
    gate_up: Vec<Rows>,
    down: Vec<Rows>,
    ready: OnceLock<Network>,
}

/// What adapters add to a network.
#[derive(Default)]
pub(super) struct NetworkEffects {
    pub gate_up: Vec<Addition>,
    pub down: Vec<Addition>,
}

/// What adapters add to what a block computes after attention.
#[derive(Default)]
pub(super) struct FeedForwardEffects {
    /// The one network, or the expert that every position gets.
    pub network: NetworkEffects,
    pub shared_gate: Vec<Addition>,
}

impl FeedForward {
    /// Loads that of block `index`.
    ///
    /// # Errors
    ///
    /// Those of [`Linear::load`].
    pub fn load(base: &BaseModel, index: usize, device: &Device) -> Result<Self> {
        let c = &base.config;
        let linear = |weights: &[W], biases: &[W]| {
            let named = |ws: &[W]| ws.iter().map(|w| Weight::Block(index, *w)).collect::<Vec<_>>();
            Linear::load(base, &named(weights), &named(biases), device)
        };
        let network = |gate_up: [W; 2], down: W, biases: [&[W]; 2]| -> Result<Network> {
            let activation = c.activation;
            Ok(Network { gate_up: linear(&gate_up, biases[0])?, activation, down: linear(&[down], biases[1])? })
        };
        let Some(&sizes) = c.experts_of(index) else {
            let biases: [&[W]; 2] =
                if c.biases.feed_forward { [&[W::GateBias, W::UpBias], &[W::DownBias]] } else { [&[], &[]] };
            return Ok(FeedForward::Dense(network([W::Gate, W::Up], W::Down, biases)?));
        };
        let rows = |expert: usize, matrices: &[ExpertMatrix]| -> Result<Vec<Rows>> {
            matrices.iter().map(|m| base.rows(Weight::Block(index, W::Expert(expert, *m)))).collect()
        };
        let expert = |i: usize| -> Result<Expert> {
            Ok(Expert {
                gate_up: rows(i, &[ExpertMatrix::Gate, ExpertMatrix::Up])?,
                down: rows(i, &[ExpertMatrix::Down])?,
                ready: OnceLock::new(),
            })
        };
        let shared = match sizes.shared_intermediate_size {
            Some(_) => Some(Shared {
                network: network([W::SharedGate, W::SharedUp], W::SharedDown, [&[], &[]])?,
                gate: linear(&[W::SharedExpertGate], &[])?,
            }),
            None => None,
        };
        Ok(FeedForward::Mixture(Box::new(Mixture {
            sizes,
            activation: c.activation,
            device: device.clone(),
            router: linear(&[W::Router], &[])?,
            experts: (0..sizes.n_experts).map(expert).collect::<Result<_>>()?,
            shared,
        })))
    }

    /// `x` `[N, hidden]` to the same shape; `n_rows` rows belong to each sequence.
    pub fn forward(
        &self,
        x: &Tensor,
        effects: &FeedForwardEffects,
        n_rows: usize,
        workspace: &mut Workspace,
    ) -> CandleResult<Tensor> {
        match self {
            FeedForward::Dense(network) => network.forward(x, &effects.network, n_rows, workspace),
            FeedForward::Mixture(mixture) => mixture.forward(x, effects, n_rows, workspace),
        }
    }
}

impl Network {
    fn forward(
        &self,
        x: &Tensor,
        effects: &NetworkEffects,
        n_rows: usize,
        workspace: &mut Workspace,
    ) -> CandleResult<Tensor> {
        let inner = gated(&self.gate_up.forward(x, &effects.gate_up, n_rows, workspace)?, self.activation)?;
        self.down.forward(&inner, &effects.down, n_rows, workspace)
    }
}

impl Mixture {
    fn forward(
        &self,
        x: &Tensor,
        effects: &FeedForwardEffects,
        n_rows: usize,
        workspace: &mut Workspace,
    ) -> CandleResult<Tensor> {
        let (n, hidden) = x.dims2()?;
        let logits: Vec<f32> = self.router.forward(x, &[], n_rows, workspace)?.flatten_all()?.to_vec1()?;
        let mut sum = vec![0f32; n * hidden];
        for (expert, positions) in self.experts.iter().zip(self.chosen(&logits)) {
            if positions.is_empty() {
                continue;
            }
            let index: Vec<u32> = positions.iter().map(|(row, _)| *row as u32).collect();
            let index = Tensor::from_vec(index, positions.len(), x.device())?;
            let network = expert.network(self.activation, &self.device)?;
            let y = network.forward(&x.index_select(&index, 0)?, &NetworkEffects::default(), n_rows, workspace)?;
            let y: Vec<f32> = y.flatten_all()?.to_vec1()?;
            for ((row, weight), y) in positions.iter().zip(y.chunks_exact(hidden)) {
                sum[row * hidden..][..hidden].iter_mut().zip(y).for_each(|(sum, y)| *sum += weight * y);
            }
        }
        let sum = Tensor::from_vec(sum, (n, hidden), x.device())?;
        let Some(shared) = &self.shared else { return Ok(sum) };
        let gate: Vec<f32> =
            shared.gate.forward(x, &effects.shared_gate, n_rows, workspace)?.flatten_all()?.to_vec1()?;
        let gate = Tensor::from_vec(gate.into_iter().map(sigmoid).collect::<Vec<_>>(), (n, 1), x.device())?;
        sum + shared.network.forward(x, &effects.network, n_rows, workspace)?.broadcast_mul(&gate)?
    }

    /// For each expert the rows that get it, each with its weight, given the router's logits `[N, E]`.
    fn chosen(&self, logits: &[f32]) -> Vec<Vec<(usize, f32)>> {
        let mut chosen = vec![Vec::new(); self.sizes.n_experts];
        for (row, logits) in logits.chunks_exact(self.sizes.n_experts).enumerate() {
            let p = softmax(logits);
            let best = top_k(&p, self.sizes.n_per_token);
            let sum: f32 = if self.sizes.renormalise { best.iter().map(|e| p[*e]).sum() } else { 1.0 };
            best.into_iter().for_each(|e| chosen[e].push((row, p[e] / sum)));
        }
        chosen
    }
}

impl Expert {
    fn network(&self, activation: Activation, device: &Device) -> CandleResult<&Network> {
        if let Some(network) = self.ready.get() {
            return Ok(network);
        }
        let (gate_up, down) = (self.gate_up.clone(), self.down.clone());
        let network = Network { gate_up: Linear::of(gate_up, device)?, activation, down: Linear::of(down, device)? };
        Ok(self.ready.get_or_init(|| network))
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}
