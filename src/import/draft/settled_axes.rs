//! Orders of axes other than the usual ones, where sizes that are stated leave no other: `[H, L, F, V]` with 7 heads and
//! 2 layers, `[F, (H V)]` with values of 64.

use super::{Draft, Order, StoredPart};
use crate::adapter::plus::StatedLayers;
use crate::adapter::{Part, Slot};
use crate::base::BaseModel;
use crate::import::axes::Axis;
use crate::tensor::LazyTensor;

/// What statements and base say about the lengths of axes, shapes aside.
pub(in crate::import) struct KnownSizes {
    pub n_layers: Option<usize>,
    /// Numbers of heads that a memory may have; empty where nothing says them.
    pub n_heads: Vec<usize>,
    pub features: Option<usize>,
    pub value: Option<usize>,
    pub query: Option<usize>,
}

impl KnownSizes {
    /// Whether an axis may have this length.
    pub fn allows(&self, axis: Axis, len: usize) -> bool {
        let is = |known: Option<usize>| known.is_none_or(|n| n == len);
        match axis {
            Axis::Layer => is(self.n_layers),
            Axis::Head => self.n_heads.is_empty() || self.n_heads.contains(&len),
            Axis::Feature => is(self.features),
            Axis::Value => is(self.value),
            Axis::Query => is(self.query),
        }
    }

    /// The order of `axes` that a tensor of this shape has: as they are, if that fits; else the only one that does. The
    /// matrix of a head stays together, its rows before its columns; `None` where several orders fit, or none.
    pub fn order(&self, axes: &[Axis], shape: &[usize]) -> Option<Vec<Axis>> {
        let fits = |order: &[Axis]| order.iter().zip(shape).all(|(a, n)| self.allows(*a, *n));
        let unsaid = |a: &Axis| match a {
            Axis::Layer => self.n_layers.is_none(),
            Axis::Head => self.n_heads.is_empty(),
            _ => false,
        };
        if axes.len() != shape.len() || axes.iter().any(unsaid) {
            return None;
        }
        if fits(axes) {
            return Some(axes.to_vec());
        }
        let (outer, matrix): (Vec<Axis>, Vec<Axis>) = axes.iter().partition(|a| matches!(a, Axis::Layer | Axis::Head));
        let mut found: Vec<Vec<Axis>> = Vec::new();
        let swapped: Vec<Axis> = outer.iter().rev().copied().collect();
        for outer in [outer, swapped] {
            for at in 0..=outer.len() {
                let order = [&outer[..at], &matrix[..], &outer[at..]].concat();
                if fits(&order) && !found.contains(&order) {
                    found.push(order);
                }
            }
        }
        if found.len() == 1 { found.pop() } else { None }
    }
}

impl Draft {
    pub(super) fn known(&self, base: Option<&BaseModel>) -> KnownSizes {
        let s = &self.stated;
        let has_map = self.parts.iter().any(|p| p.part == Part::FeatureWeight);
        let sizes = s.sizes.or_base(base);
        let by_list = match &s.layers_to_transform {
            Some(StatedLayers::List(list)) => Some(list.len()),
            _ => None,
        };
        let n_heads = match (sizes.heads(), s.conventions.memory_sharing) {
            (Some((n, n_kv)), Some(sharing)) => vec![sharing.n_memories(n, n_kv)],
            (Some((n, n_kv)), None) => vec![n, n_kv, 1],
            (None, _) => Vec::new(),
        };
        KnownSizes {
            n_layers: by_list.or(sizes.n_layers),
            n_heads,
            features: sizes.n_features.or(sizes.head_dim.filter(|_| !has_map)),
            value: sizes.value_head_dim.or(sizes.head_dim),
            query: sizes.head_dim,
        }
    }

    /// Brings parts whose order the sizes settle into the usual one, and finds heads that are flattened into columns.
    pub(super) fn settle_axes(&mut self, base: Option<&BaseModel>) {
        let known = self.known(base);
        for part in &mut self.parts {
            if matches!(part.order, Order::Stated(_)) || Slot::parse_canonical_name(&part.name).is_some() {
                continue;
            }
            let own = Draft::own_axes(part.part, part.layer, part.head);
            let mut transposed = own.clone();
            if let [.., a, b] = &mut transposed[..] {
                std::mem::swap(a, b);
            }
            if matches!(part.order, Order::Open) && known.order(&transposed, part.tensor.shape()) == Some(transposed) {
                continue;
            }
            if let Some(order) = known.order(&own, part.tensor.shape()).filter(|order| *order != own) {
                part.tensor = in_order(part.tensor.clone(), order, &own);
            } else if is_in_columns(part, &own, &known) {
                part.order = Order::Columns;
            }
        }
    }
}

fn in_order(tensor: LazyTensor, mut order: Vec<Axis>, own: &[Axis]) -> LazyTensor {
    let mut t = tensor;
    for (i, axis) in own.iter().enumerate() {
        let at = order.iter().position(|a| a == axis).unwrap_or(i);
        order.swap(i, at);
        t = t.transpose(i, at);
    }
    t
}

/// Whether a memory whose rows are features has its heads side by side, in rows of H times V.
fn is_in_columns(part: &StoredPart, own: &[Axis], known: &KnownSizes) -> bool {
    let shape = part.tensor.shape();
    let is_flat = part.part == Part::Memory && part.head.is_none() && shape.len() + 1 == own.len() && shape.len() >= 2;
    if !is_flat || !matches!(part.order, Order::Canonical) {
        return false;
    }
    let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    known.value.is_some_and(|v| v > 0 && columns > v && columns.is_multiple_of(v)) && known.allows(Axis::Feature, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_settle_an_order_where_one_is_left() {
        use Axis::*;
        let known =
            KnownSizes { n_layers: Some(2), n_heads: vec![7, 1], features: Some(32), value: Some(32), query: Some(32) };
        let memory = [Layer, Head, Feature, Value];
        let order = |axes: &[Axis], shape: &[usize]| known.order(axes, shape);
        assert_eq!(order(&memory, &[2, 7, 32, 32]).unwrap(), memory);
        assert_eq!(order(&memory, &[7, 2, 32, 32]).unwrap(), [Head, Layer, Feature, Value]);
        assert_eq!(order(&memory, &[32, 32, 7, 2]).unwrap(), [Feature, Value, Head, Layer]);
        assert_eq!(order(&memory, &[2, 32, 32, 7]).unwrap(), [Layer, Feature, Value, Head]);
        assert_eq!(order(&memory, &[7, 3, 32, 32]), None);
        assert_eq!(order(&memory, &[7, 32, 2, 32]), None, "rows and columns are neighbours");
        assert_eq!(order(&memory[1..], &[32, 32, 7]).unwrap(), [Feature, Value, Head]);
        assert_eq!(order(&[Layer, Head, Feature], &[7, 2, 32]).unwrap(), [Head, Layer, Feature]);
        assert_eq!(order(&[Layer, Head, Feature], &[2, 32, 7]).unwrap(), [Layer, Feature, Head]);
        let open = KnownSizes { n_heads: vec![], ..known };
        assert_eq!(open.order(&memory, &[7, 2, 32, 32]), None, "nothing says the heads");
        let open = KnownSizes { n_layers: Some(2), n_heads: vec![7], features: None, value: None, query: None };
        assert_eq!(open.order(&memory, &[7, 2, 7, 2]), None, "two orders are left");
    }
}
