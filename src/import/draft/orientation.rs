//! How the axes of a draft's tensors lie: what names, shapes, statements and the base tell, and the ways that are left.

use super::{Draft, Order, StoredPart};
use crate::adapter::Part;
use crate::adapter::plus::{MemorySharing, PartSpec, StatedLayers};
use crate::base::BaseModel;
use crate::import::axes::{Axes, Axis, Sizes};

/// How the axes of parts of open order are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Orientation {
    /// V before F: each head is the transposed matrix, as a linear layer keeps it.
    pub transposed: bool,
    /// Where heads are flattened into an axis: head index innermost.
    pub heads_inner: bool,
}

impl Draft {
    /// The axes that a part is stored with, in canonical order: its own without what the name says.
    pub(super) fn own_axes(part: Part, layer: Option<usize>, head: Option<usize>) -> Vec<Axis> {
        let named = |a: &Axis| match a {
            Axis::Layer => layer.is_some(),
            Axis::Head => head.is_some(),
            _ => false,
        };
        PartSpec::of(part).stacked_axes.iter().copied().filter(|a| !named(a)).collect()
    }

    /// The length of an axis, where the shape alone says it.
    pub(super) fn plain_len(&self, part: &StoredPart, axis: Axis) -> Option<usize> {
        let dims = part.tensor.shape();
        if let Order::Stated(axes) = &part.order {
            return axes.plain_index(axis).and_then(|i| dims.get(i).copied());
        }
        let mut own = part.own_axes();
        if dims.len() + 1 == own.len() && own.contains(&Axis::Head) {
            own.retain(|a| *a != Axis::Head); // flattened, or shared
            let has_heads = if matches!(part.order, Order::Columns) { Axis::Value } else { Axis::Feature };
            if axis == has_heads {
                return None;
            }
        }
        if dims.len() != own.len() {
            return None;
        }
        let index = own.iter().position(|a| *a == axis)?;
        if matches!(part.order, Order::Open) && matches!(axis, Axis::Feature | Axis::Value) {
            // Either of the last two; the same when they are.
            let n = dims.len();
            return (dims[n - 1] == dims[n - 2]).then_some(dims[index]);
        }
        Some(dims[index])
    }

    /// The lengths of axes, as far as statements, base and shapes tell.
    pub(super) fn sizes(&self, sharing: Option<MemorySharing>, base: Option<&BaseModel>) -> Sizes {
        let (s, known) = (&self.stated, self.stated.sizes.or_base(base));
        let first = |part: Option<Part>, axis| {
            self.parts.iter().filter(|p| part.is_none_or(|part| p.part == part)).find_map(|p| self.plain_len(p, axis))
        };
        let has_map = self.parts.iter().any(|p| p.part == Part::FeatureWeight);
        let mut query = known.head_dim.or(first(Some(Part::FeatureWeight), Axis::Query));
        let value = known.value_head_dim.or(first(Some(Part::Memory), Axis::Value)).or(s.sizes.head_dim);
        let n_heads = sharing.and_then(|sharing| match sharing {
            MemorySharing::PerHead => known.n_heads,
            MemorySharing::PerKvHead => known.n_kv_heads,
            MemorySharing::Shared => Some(1),
        });
        // Heads flattened into rows, their number known: the rest is features.
        let by_rows = || {
            let p = self.parts.iter().find(|p| p.part != Part::Memory && p.head.is_none())?;
            let own = p.own_axes();
            let at = own.iter().filter(|a| **a != Axis::Head).position(|a| *a == Axis::Feature)?;
            let rows = *p.tensor.shape().get(at)?;
            (p.tensor.shape().len() + 1 == own.len()).then(|| n_heads.filter(|h| *h > 0).map(|h| rows / h)).flatten()
        };
        let features = known
            .n_features
            .or(first(None, Axis::Feature))
            .or(if has_map { None } else { query.or(value) })
            .or_else(by_rows);
        query = query.or(features.filter(|_| !has_map));
        let n_layers = self.stacked_layers.as_ref().map(Vec::len).or(match &s.layers_to_transform {
            Some(StatedLayers::List(list)) => Some(list.len()),
            _ => known.n_layers,
        });
        let all = [
            (Axis::Layer, n_layers),
            (Axis::Head, n_heads),
            (Axis::Feature, features),
            (Axis::Value, value),
            (Axis::Query, query),
        ];
        all.into_iter().filter_map(|(a, n)| Some((a, n?))).collect()
    }

    /// The order of a part's axes under a reading, with their lengths.
    pub(super) fn stored_axes(part: &StoredPart, o: Orientation, known: &Sizes) -> Option<(Axes, Sizes)> {
        let dims = part.tensor.shape();
        // The number of heads is a result wherever the number of features is known: a wrong one is then a finding.
        let solve = |axes: Axes| {
            let mut without: Sizes = known.clone();
            without.remove(&Axis::Head);
            let sizes = axes.solve(dims, &without).or_else(|| axes.solve(dims, known))?;
            Some((axes, sizes))
        };
        if let Order::Stated(axes) = &part.order {
            return solve(axes.clone());
        }
        let mut own = part.own_axes();
        let n = own.len();
        let is_open = matches!(part.order, Order::Open) && n >= 2;
        if is_open && o.transposed {
            own.swap(n - 1, n - 2);
        }
        if dims.len() == n {
            return solve(Axes::new(own.into_iter().map(|a| vec![a]).collect()));
        }
        if dims.len() + 1 != n || !own.contains(&Axis::Head) {
            return None;
        }
        own.retain(|a| *a != Axis::Head);
        let grouped = |axis: Axis| if o.heads_inner { vec![axis, Axis::Head] } else { vec![Axis::Head, axis] };
        let group_at = |at: usize| {
            Axes::new(own.iter().enumerate().map(|(i, a)| if i == at { grouped(*a) } else { vec![*a] }).collect())
        };
        if matches!(part.order, Order::Columns) {
            return solve(group_at(own.len() - 1));
        }
        if !is_open {
            return solve(group_at(own.iter().position(|a| *a == Axis::Feature)?));
        }
        // Of the two matrix axes the one that is too long has the heads in it.
        let (outer, inner) = (own.len() - 2, own.len() - 1);
        let fits = |at: usize| known.get(&own[at]) == Some(&dims[at]);
        if fits(inner) {
            solve(group_at(outer))
        } else if fits(outer) {
            solve(group_at(inner))
        } else {
            None
        }
    }

    /// The ways to read the axes that shapes allow, each different from the others. One, where nothing is open.
    pub(in super::super) fn orientations(
        &self,
        sharing: Option<MemorySharing>,
        base: Option<&BaseModel>,
    ) -> Vec<Orientation> {
        let known = self.sizes(sharing, base);
        let is_open = |p: &&StoredPart| matches!(p.order, Order::Open | Order::Columns);
        let open: Vec<&StoredPart> = self.parts.iter().filter(is_open).collect();
        let mut seen: Vec<Vec<Axes>> = Vec::new();
        let mut out = Vec::new();
        for (transposed, heads_inner) in [(false, false), (true, false), (false, true), (true, true)] {
            if self.transpose_memory.is_some_and(|t| t != transposed) {
                continue;
            }
            let o = Orientation { transposed, heads_inner };
            let read = open.iter().map(|p| {
                let (axes, sizes) = Self::stored_axes(p, o, &known)?;
                let fits = [Axis::Feature, Axis::Value]
                    .iter()
                    .all(|a| sizes.get(a).is_none_or(|n| known.get(a).is_none_or(|k| k == n)));
                // With one head, or one entry of the other axis, the order inside a group does not matter.
                fits.then(|| axes.without_ones(&sizes))
            });
            let Some(read) = read.collect::<Option<Vec<Axes>>>() else { continue };
            if !seen.contains(&read) {
                seen.push(read);
                out.push(o);
            }
        }
        out
    }
}
