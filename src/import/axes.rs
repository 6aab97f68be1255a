//! In which order a stored tensor keeps its axes: `"L H F V"`, `"H V F"`, `"(H F) V"`.

use std::collections::BTreeMap;

pub use crate::adapter::plus::Axis;
use crate::error::{Code, Error, Result};
use crate::tensor::LazyTensor;

/// Lengths of axes.
pub type Sizes = BTreeMap<Axis, usize>;

/// The axes of a stored tensor, outermost first; several axes in one group are one stored dimension, none a dimension of
/// length 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axes(Vec<Vec<Axis>>);

impl Axes {
    /// Reads `"L H F V"`, `"(H F) V"`, `"H 1 F"`.
    ///
    /// # Errors
    ///
    /// [`Code::LayoutFile`].
    pub fn parse(text: &str) -> Result<Axes> {
        let wrong = |why: &str| {
            Error::new(
                Code::LayoutFile,
                format!("expected axes such as \"L H F V\" or \"(H F) V\", found {text:?}: {why}"),
            )
        };
        let mut groups: Vec<Vec<Axis>> = Vec::new();
        let mut open: Option<Vec<Axis>> = None;
        let mut seen = Vec::new();
        for c in text.chars().filter(|c| !c.is_whitespace() && *c != ',') {
            match (c, &mut open) {
                ('(', None) => open = Some(Vec::new()),
                (')', Some(_)) => groups.extend(open.take().filter(|g| !g.is_empty())),
                ('1', None) => groups.push(Vec::new()),
                (c, group) => {
                    let (axis, ..) = Axis::ALL
                        .iter()
                        .find(|(_, l, _)| *l == c)
                        .ok_or_else(|| wrong("axes are L, H, F, V, D and 1"))?;
                    if seen.contains(axis) {
                        return Err(wrong("an axis occurs twice"));
                    }
                    seen.push(*axis);
                    match group {
                        Some(g) => g.push(*axis),
                        None => groups.push(vec![*axis]),
                    }
                }
            }
        }
        if open.is_some() || groups.is_empty() {
            return Err(wrong("a bracket is not closed, or there are none"));
        }
        Ok(Axes(groups))
    }

    /// One group for each stored dimension.
    pub fn new(groups: Vec<Vec<Axis>>) -> Axes {
        Axes(groups)
    }

    /// Every axis, in stored order.
    pub fn axes(&self) -> impl Iterator<Item = Axis> {
        self.0.iter().flatten().copied()
    }

    /// Number of stored dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The stored dimension that is this axis alone.
    pub fn plain_index(&self, axis: Axis) -> Option<usize> {
        self.0.iter().position(|g| g[..] == [axis])
    }

    /// Without axes of length 1, whose place makes no difference.
    pub fn without_ones(&self, sizes: &Sizes) -> Axes {
        let long = |g: &Vec<Axis>| g.iter().copied().filter(|a| sizes.get(a) != Some(&1)).collect::<Vec<_>>();
        Axes(self.0.iter().map(long).filter(|g| !g.is_empty()).collect())
    }

    /// The last two stored dimensions exchanged.
    pub fn transposed(mut self) -> Axes {
        let n = self.0.len();
        if n >= 2 {
            self.0.swap(n - 1, n - 2);
        }
        self
    }

    /// The length of every axis of a tensor of this shape. An axis that is a dimension of its own has the length found;
    /// `known` is asked about the axes of a group, of which one may be unknown. `None` where that does not come out even.
    pub fn solve(&self, shape: &[usize], known: &Sizes) -> Option<Sizes> {
        let holds_one = |(group, n): (&Vec<Axis>, &usize)| !group.is_empty() || *n == 1;
        if shape.len() != self.rank() || !self.0.iter().zip(shape).all(holds_one) {
            return None;
        }
        let mut sizes: Sizes = self
            .0
            .iter()
            .zip(shape)
            .filter_map(|(g, n)| if let [axis] = g[..] { Some((axis, *n)) } else { None })
            .collect();
        for (group, &n) in self.0.iter().zip(shape).filter(|(g, _)| g.len() > 1) {
            let mut rest = n;
            let mut unknown = None;
            for axis in group {
                match known.get(axis) {
                    Some(&len) if len > 0 && rest.is_multiple_of(len) => {
                        rest /= len;
                        sizes.insert(*axis, len);
                    }
                    Some(_) => return None,
                    None if unknown.is_some() => return None,
                    None => unknown = Some(*axis),
                }
            }
            match unknown {
                Some(axis) => {
                    sizes.insert(axis, rest);
                }
                None if rest != 1 => return None,
                None => {}
            }
            // An empty dimension divides by anything; what is known need not go together with it.
            group.iter().rev().try_fold(1_usize, |n, axis| n.checked_mul(sizes[axis]))?;
        }
        Some(sizes)
    }

    /// The tensor in canonical order `[L, H', F, V or D]`, with axes of length 1 for a layer or a head that it does not
    /// have. `sizes` comes from [`solve`](Self::solve) for the tensor's shape.
    pub fn apply(&self, t: LazyTensor, sizes: &Sizes) -> Result<LazyTensor> {
        let mut t = t;
        let mut order: Vec<Axis> = Vec::new();
        for group in &self.0 {
            if group.is_empty() {
                t = t.squeeze(order.len());
            }
            for (i, axis) in group.iter().enumerate() {
                let inner: usize = group[i + 1..].iter().map(|a| sizes[a]).product();
                if i + 1 < group.len() {
                    t = t.split_axis(order.len(), sizes[axis], inner)?;
                }
                order.push(*axis);
            }
        }
        for missing in [Axis::Head, Axis::Layer] {
            if !order.contains(&missing) {
                t = t.unsqueeze0();
                order.insert(0, missing);
            }
        }
        // Selection sort: ranks are at most 5.
        for i in 0..order.len() {
            let least = (i..order.len()).min_by_key(|k| order[*k]).expect("not empty");
            order.swap(i, least);
            t = t.transpose(i, least);
        }
        Ok(t)
    }
}

impl std::fmt::Display for Axes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let group = |g: &Vec<Axis>| {
            let letters: Vec<String> = g.iter().map(|a| a.letter().to_string()).collect();
            match g.len() {
                0 => "1".into(),
                1 => letters.concat(),
                _ => format!("({})", letters.join(" ")),
            }
        };
        f.write_str(&self.0.iter().map(group).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(t: &LazyTensor) -> Vec<f32> {
        t.to_bytes().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    /// Element `[l, h, f, v]` of the canonical tensor, for lengths 2, 3, 4 and 5.
    fn element(l: usize, h: usize, f: usize, v: usize) -> f32 {
        (l * 1000 + h * 100 + f * 10 + v) as f32
    }

    #[test]
    fn an_empty_dimension_does_not_make_sizes_go_together() {
        let axes = Axes::parse("(H F V)").unwrap();
        let known = |f: usize, v: usize| [(Axis::Feature, f), (Axis::Value, v)].into_iter().collect::<Sizes>();
        assert_eq!(axes.solve(&[0], &known(1 << 20, 1 << 63)), None);
        assert_eq!(axes.solve(&[0], &known(4, 5)).unwrap()[&Axis::Head], 0);
    }

    #[test]
    fn every_order_and_grouping_comes_out_canonical() {
        let len = |a: Axis| match a {
            Axis::Layer => 2,
            Axis::Head => 3,
            Axis::Feature => 4,
            Axis::Value => 5,
            Axis::Query => unreachable!(),
        };
        let known: Sizes = [(Axis::Feature, 4), (Axis::Value, 5)].into_iter().collect();
        for text in [
            "L H F V",
            "L H V F",
            "V F H L",
            "L (H F) V",
            "L (F H) V",
            "L V (H F)",
            "(L H F) V",
            "L F (H V)",
            "(L H F V)",
            "1 L H F V",
            "L 1 H V 1 F 1",
            "(L H) 1 F V",
        ] {
            let axes = Axes::parse(text).unwrap();
            assert_eq!(axes.to_string(), text);
            let order: Vec<Axis> = axes.axes().collect();
            let shape: Vec<usize> = axes.0.iter().map(|g| g.iter().map(|a| len(*a)).product()).collect();
            // What a writer with this layout stores.
            let mut stored = Vec::new();
            let lens: Vec<usize> = order.iter().map(|a| len(*a)).collect();
            for flat in 0..lens.iter().product() {
                let mut rest = flat;
                let mut index = std::collections::BTreeMap::new();
                for (a, n) in order.iter().zip(&lens).rev() {
                    index.insert(*a, rest % n);
                    rest /= n;
                }
                stored.push(element(
                    index[&Axis::Layer],
                    index[&Axis::Head],
                    index[&Axis::Feature],
                    index[&Axis::Value],
                ));
            }
            let mut known = known.clone();
            if text.starts_with("(L") {
                known.insert(Axis::Layer, 2);
            }
            let sizes = axes.solve(&shape, &known).unwrap_or_else(|| panic!("{text}"));
            let t = axes.apply(LazyTensor::from_f32(&stored, &shape), &sizes).unwrap();
            assert_eq!(t.shape(), [2, 3, 4, 5], "{text}");
            let got = values(&t);
            for l in 0..2 {
                for h in 0..3 {
                    for f in 0..4 {
                        for v in 0..5 {
                            assert_eq!(got[((l * 3 + h) * 4 + f) * 5 + v], element(l, h, f, v), "{text}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn missing_layers_and_heads_become_axes_of_one() {
        let axes = Axes::parse("V F").unwrap();
        let sizes = axes.solve(&[2, 3], &Sizes::new()).unwrap();
        let t = axes.apply(LazyTensor::from_f32(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[2, 3]), &sizes).unwrap();
        assert_eq!(t.shape(), [1, 1, 3, 2]);
        assert_eq!(values(&t), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn nonsense_is_refused_and_uneven_groups_do_not_solve() {
        for text in ["", "()", "X", "H H", "(H F", "H F)", "((H) F)", "(1 H)"] {
            assert_eq!(Axes::parse(text).unwrap_err().code(), Code::LayoutFile, "{text}");
        }
        let axes = Axes::parse("(H F) V").unwrap();
        let known: Sizes = [(Axis::Feature, 4)].into_iter().collect();
        assert!(axes.solve(&[12, 5], &known).is_some());
        assert!(axes.solve(&[13, 5], &known).is_none());
        assert!(axes.solve(&[12, 5], &Sizes::new()).is_none(), "two unknowns in one group");
        assert!(axes.solve(&[12], &known).is_none());
        let axes = Axes::parse("H 1 V").unwrap();
        assert!(axes.solve(&[3, 1, 5], &known).is_some());
        assert!(axes.solve(&[3, 2, 5], &known).is_none(), "a dimension of length 1 that is not");
    }
}
