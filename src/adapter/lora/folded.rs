//! One LoRA beside another that has factors folded into its B: the same computation in the same form.

use super::{Lora, Module};
use crate::quant;
use crate::tensor::LazyTensor;

impl Lora {
    /// This LoRA with the factors folded into B that `other` has there, where that gives `other`'s factors; for comparisons, since
    /// the products lie on the heap.
    pub fn folded_like(&self, other: &Lora) -> Lora {
        let mut out = self.clone();
        for (weight, &ratio) in other.folded.iter().filter(|(weight, _)| !self.folded.contains_key(weight)) {
            let (Some(module), Some(theirs)) = (out.modules.get_mut(weight), other.modules.get(weight)) else {
                continue;
            };
            let factor = theirs.scale.factor;
            // What was multiplied with 0 is 0 whatever the factor.
            let is_it = if ratio == 0.0 {
                module.scale.factor == 0.0
            } else {
                (module.scale.factor / ratio) as f32 == factor as f32
            };
            if is_it {
                *module = Module { b: multiplied(&module.b, ratio), scale: theirs.scale, ..module.clone() };
                out.folded.insert(*weight, ratio);
            }
        }
        out
    }
}

/// As files are written: in F32, each product rounded once.
fn multiplied(t: &LazyTensor, ratio: f64) -> LazyTensor {
    let mut values = vec![0f32; t.n_elements()];
    quant::decode(t.dtype(), &t.to_bytes(), &mut values);
    values.iter_mut().for_each(|v| *v = (f64::from(*v) * ratio) as f32);
    LazyTensor::from_f32(&values, t.shape())
}
