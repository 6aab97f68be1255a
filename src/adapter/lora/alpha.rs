//! One alpha for all modules, as GGUF has it: the factor of each is `alpha / r` there, r the columns of its B. What does not
//! come out as that is folded into B.

use super::Module;

/// The factor that llama.cpp computes, in F32. Source: `llama_adapter_lora_weight::get_scale` in llama-adapter.h.
pub fn runtime_factor(alpha: f32, rank: usize) -> f32 {
    if alpha == 0.0 { 1.0 } else { alpha / rank as f32 }
}

/// The alpha by which most modules get their factor without folding; of several the one that the first module states, else the
/// first. Never 0, which is a factor of 1 there.
pub fn common_alpha<'a>(modules: impl Iterator<Item = &'a Module> + Clone) -> f32 {
    let is_possible = |alpha: &f32| alpha.is_normal();
    let stated = modules.clone().next().map(|m| m.scale.alpha as f32).filter(is_possible);
    let computed = modules.clone().map(|m| (m.scale.factor * m.rank() as f64) as f32).filter(is_possible);
    let mut best: Option<(usize, f32)> = None;
    let mut tried: Vec<f32> = Vec::new();
    for alpha in stated.into_iter().chain(computed) {
        if tried.contains(&alpha) {
            continue;
        }
        tried.push(alpha);
        let n = modules.clone().filter(|m| has_factor(m.scale.factor, m.rank(), alpha)).count();
        if best.is_none_or(|(most, _)| n > most) {
            best = Some((n, alpha));
        }
        // A file may have a factor of its own for every module; the best of the first many is right, too.
        if tried.len() == MOST_TRIED {
            break;
        }
    }
    best.map_or(1.0, |(_, alpha)| alpha)
}

/// Most alphas that are compared: a pattern for each kind of layer, and more.
const MOST_TRIED: usize = 256;

/// Whether a module of this rank gets its factor from this alpha, as exactly as F32 has it.
fn has_factor(factor: f64, rank: usize, alpha: f32) -> bool {
    runtime_factor(alpha, rank) == factor as f32
}

/// What B is to be multiplied with for `factor` where the file says `alpha`: 1 where nothing is to be folded.
pub fn fold(factor: f64, rank: usize, alpha: f32) -> f64 {
    match has_factor(factor, rank, alpha) {
        true => 1.0,
        false => factor / f64::from(runtime_factor(alpha, rank)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scale;
    use super::*;
    use crate::tensor::LazyTensor;

    fn module(rank: usize, alpha: f64, factor: f64) -> Module {
        let half = |shape: &[usize]| LazyTensor::from_f32(&vec![0.0; shape.iter().product()], shape);
        let (a, b) = (half(&[rank, 2]), half(&[3, rank]));
        Module { a, b, scale: Scale { alpha, factor }, magnitude: None, bias: None }
    }

    #[test]
    fn as_few_modules_as_possible_are_folded() {
        for (modules, alpha, folds) in [
            // alpha / r everywhere, of different ranks.
            (vec![(8, 16.0, 2.0), (4, 16.0, 4.0)], 16.0, vec![1.0, 1.0]),
            // sqrt(r): another alpha says it.
            (vec![(9, 6.0, 2.0), (9, 6.0, 2.0)], 18.0, vec![1.0, 1.0]),
            // One module has an alpha of its own.
            (vec![(4, 20.0, 5.0), (4, 8.0, 2.0), (4, 8.0, 2.0)], 8.0, vec![2.5, 1.0, 1.0]),
            (vec![(4, 0.0, 0.0), (4, 8.0, 2.0)], 8.0, vec![0.0, 1.0]),
            // An alpha of 0 is a factor of 1 there.
            (vec![(4, 0.0, 0.0)], 1.0, vec![0.0]),
            (vec![(4, -8.0, -2.0)], -8.0, vec![1.0]),
        ] {
            let modules: Vec<Module> = modules.into_iter().map(|(r, a, f)| module(r, a, f)).collect();
            let found = common_alpha(modules.iter());
            assert_eq!(found, alpha);
            let found: Vec<f64> = modules.iter().map(|m| fold(m.scale.factor, m.rank(), alpha)).collect();
            assert_eq!(found, folds);
        }
        assert_eq!(runtime_factor(0.0, 4), 1.0);
    }
}
