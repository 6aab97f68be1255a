//! The one place where the row order of q's components is applied and undone; see [`RowOrder`].
//!
//! Which axis moves, the table of parts says. The value axis D_v never does.

use crate::adapter::plus::{self, PARTS, PartSpec, Plus};
use crate::base::RowOrder;
use crate::tensor::LazyTensor;

fn map_layer(layer: &mut plus::Layer, regroup: impl Fn(LazyTensor, usize) -> LazyTensor) {
    let has_feature_map = layer.feature_weight.is_some();
    for spec in &PARTS {
        let (Some(axis), Some(tensor)) = (spec.component_axis(has_feature_map), layer.get_mut(spec.part)) else {
            continue;
        };
        *tensor = regroup(tensor.clone(), axis);
    }
}

/// Hugging Face order to `order`, for a layer in canonical shapes whose component axes are even (validated).
pub fn apply(layer: &mut plus::Layer, order: RowOrder) {
    match order {
        RowOrder::Neox => {}
        RowOrder::Norm => map_layer(layer, components_to_norm),
    }
}

/// `order` back to Hugging Face order.
pub fn undo(layer: &mut plus::Layer, order: RowOrder) {
    match order {
        RowOrder::Neox => {}
        RowOrder::Norm => map_layer(layer, components_to_hugging_face),
    }
}

/// Whether `order` can be applied or undone: every component axis exists and is even.
pub fn fits(layer: &plus::Layer, order: RowOrder) -> bool {
    let has_feature_map = layer.feature_weight.is_some();
    order == RowOrder::Neox
        || layer.tensors().all(|(part, t)| {
            PartSpec::of(part)
                .component_axis(has_feature_map)
                .is_none_or(|axis| t.shape().get(axis).is_some_and(|n| n % 2 == 0 && *n > 0))
        })
}

/// [`apply`] on every layer.
pub fn apply_all(adapter: &mut Plus, order: RowOrder) {
    adapter.layers.values_mut().for_each(|l| apply(l, order));
}

/// The components of a head along `axis`, of an even length, in Hugging Face order to [`RowOrder::Norm`].
pub fn components_to_norm(t: LazyTensor, axis: usize) -> LazyTensor {
    let half = t.shape()[axis] / 2;
    t.regroup(axis, half)
}

/// [`components_to_norm`] undone.
pub fn components_to_hugging_face(t: LazyTensor, axis: usize) -> LazyTensor {
    t.regroup(axis, 2)
}

/// Rows `[H*D, ..]` of heads in Hugging Face order to [`RowOrder::Norm`]. Asserts whole heads of an even length.
pub fn rows_to_norm(t: LazyTensor, head_dim: usize) -> LazyTensor {
    regroup_rows(t, head_dim, head_dim / 2)
}

/// [`rows_to_norm`] undone.
pub fn rows_to_hugging_face(t: LazyTensor, head_dim: usize) -> LazyTensor {
    regroup_rows(t, head_dim, 2)
}

fn regroup_rows(t: LazyTensor, head_dim: usize, inner: usize) -> LazyTensor {
    let n_heads = t.shape()[0] / head_dim;
    t.split_axis(0, n_heads, head_dim).expect("rows are whole heads").regroup(1, inner).merge_axes(0)
}
