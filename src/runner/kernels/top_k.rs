//! The largest values of a row, and which of equal ones.
//!
//! Which of several equal values `torch.topk` returns on the CPU follows from the algorithms of the C++ library that it is built
//! with. A router whose weights are 0, as Qwen's are before training, gives all experts the same value, so the choice is
//! the model's output there. Sources: PyTorch's `TopKImpl.h`; libstdc++'s `bits/stl_algo.h` and `bits/stl_heap.h`
//! (`std::nth_element`, `std::partial_sort`).

/// The indices of the `k` largest of `values`, in any order. Asserts that there are so many.
pub fn top_k(values: &[f32], k: usize) -> Vec<usize> {
    assert!(k <= values.len());
    let mut queue: Vec<usize> = (0..values.len()).collect();
    if k > 0 && k < queue.len() {
        let rows = Selection { values, queue: &mut queue };
        if k * 64 <= values.len() { rows.heap_select(0, k, values.len()) } else { rows.nth_element(k - 1) }
    }
    queue.truncate(k);
    queue
}

struct Selection<'a> {
    values: &'a [f32],
    /// Indices into `values`.
    queue: &'a mut [usize],
}

impl Selection<'_> {
    /// Whether what is at `a` comes before what is at `b`.
    fn before(&self, a: usize, b: usize) -> bool {
        self.is_larger(self.queue[a], self.queue[b])
    }

    /// NaN is the largest.
    fn is_larger(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.values[a], self.values[b]);
        (a.is_nan() && !b.is_nan()) || a > b
    }

    /// `std::nth_element`: everything up to `nth` is at least as large as everything behind.
    fn nth_element(mut self, nth: usize) {
        let (mut first, mut last) = (0, self.queue.len());
        let mut depth = 2 * last.ilog2();
        while last - first > 3 {
            if depth == 0 {
                self.heap_select(first, nth + 1, last);
                return;
            }
            depth -= 1;
            let cut = self.partition_around_pivot(first, last);
            if cut <= nth { first = cut } else { last = cut }
        }
        self.insertion_sort(first, last);
    }

    fn partition_around_pivot(&mut self, first: usize, last: usize) -> usize {
        self.move_median_to_first(first, first + 1, first + (last - first) / 2, last - 1);
        let (mut low, mut high) = (first + 1, last);
        loop {
            while self.before(low, first) {
                low += 1;
            }
            high -= 1;
            while self.before(first, high) {
                high -= 1;
            }
            if low >= high {
                return low;
            }
            self.queue.swap(low, high);
            low += 1;
        }
    }

    fn move_median_to_first(&mut self, to: usize, a: usize, b: usize, c: usize) {
        let median = match (self.before(a, b), self.before(b, c), self.before(a, c)) {
            (true, true, _) => b,
            (true, false, true) => c,
            (true, false, false) => a,
            (false, _, true) => a,
            (false, true, false) => c,
            (false, false, false) => b,
        };
        self.queue.swap(to, median);
    }

    fn insertion_sort(&mut self, first: usize, last: usize) {
        for i in first + 1..last {
            let mut at = i;
            while at > first && self.before(at, at - 1) {
                self.queue.swap(at, at - 1);
                at -= 1;
            }
        }
    }

    /// `std::partial_sort` without its last step: the largest come before `middle`.
    fn heap_select(mut self, first: usize, middle: usize, last: usize) {
        let len = middle - first;
        for parent in (0..len / 2).rev() {
            let value = self.queue[first + parent];
            self.adjust_heap(first, parent, len, value);
        }
        for i in middle..last {
            if self.before(i, first) {
                // The heap's top, which is its smallest, is exchanged.
                let value = self.queue[i];
                self.queue[i] = self.queue[first];
                self.adjust_heap(first, 0, len, value);
            }
        }
    }

    /// Puts `value` into the hole of a heap whose top is the smallest.
    fn adjust_heap(&mut self, first: usize, top: usize, len: usize, value: usize) {
        let (mut hole, mut child) = (top, top);
        while child < (len - 1) / 2 {
            child = 2 * (child + 1);
            if self.before(first + child, first + child - 1) {
                child -= 1;
            }
            self.queue[first + hole] = self.queue[first + child];
            hole = child;
        }
        if len.is_multiple_of(2) && child == (len - 2) / 2 {
            child = 2 * (child + 1);
            self.queue[first + hole] = self.queue[first + child - 1];
            hole = child - 1;
        }
        while hole > top {
            let parent = (hole - 1) / 2;
            if !self.is_larger(self.queue[first + parent], value) {
                break;
            }
            self.queue[first + hole] = self.queue[first + parent];
            hole = parent;
        }
        self.queue[first + hole] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_chosen_as_pytorch_chooses_them() {
        // n, k and how the values repeat; the set that torch.topk of PyTorch 2.15 gives.
        let cases: &[(usize, usize, usize, usize, &[usize])] = &[
            (4, 1, 1, 1, &[2]),
            (4, 2, 1, 1, &[2, 3]),
            (4, 3, 1, 1, &[0, 2, 3]),
            (7, 2, 1, 1, &[4, 5]),
            (8, 2, 1, 1, &[5, 6]),
            (8, 4, 3, 5, &[1, 5, 6, 7]),
            (16, 8, 1, 1, &[8, 9, 10, 11, 12, 13, 14, 15]),
            (60, 4, 1, 1, &[38, 39, 40, 41]),
            (60, 4, 9, 7, &[6, 11, 22, 49]),
            (60, 8, 3, 11, &[19, 23, 24, 28, 32, 33, 37, 41]),
            (64, 1, 4, 3, &[1]),
            (128, 2, 1, 1, &[0, 1]),
            (128, 3, 1, 1, &[84, 85, 86]),
            (128, 8, 5, 13, &[55, 58, 61, 67, 70, 73, 76, 79]),
            (512, 8, 2, 3, &[1, 4, 7, 10, 13, 16, 19, 22]),
            (512, 10, 7, 5, &[72, 80, 181, 185, 198, 202, 206, 387, 391, 471]),
            (5, 5, 2, 1, &[0, 1, 2, 3, 4]),
        ];
        for &(n, k, period, factor, expected) in cases {
            let values: Vec<f32> = (0..n).map(|i| ((i * factor + i / 3) % period) as f32).collect();
            let mut found = top_k(&values, k);
            found.sort_unstable();
            assert_eq!(found, expected, "{k} of {n}");
        }
    }

    #[test]
    fn the_largest_come_first_whatever_their_order() {
        for n in [1, 2, 5, 64, 200] {
            // A permutation.
            let values: Vec<f32> = (0..n).map(|i| ((i * 83 + 7) % n) as f32).collect();
            for k in [0, 1, 2, 3, n / 2, n].into_iter().filter(|k| *k <= n) {
                let found = top_k(&values, k);
                assert!(
                    found.len() == k && found.iter().all(|i| values[*i] >= (n - k) as f32),
                    "{k} of {n}: {found:?}"
                );
            }
        }
    }
}
