use super::*;

fn iota(shape: &[usize]) -> LazyTensor {
    let n: usize = shape.iter().product();
    LazyTensor::from_f32(&(0..n).map(|i| i as f32).collect::<Vec<_>>(), shape)
}

fn values(t: &LazyTensor) -> Vec<f32> {
    t.to_bytes().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

#[test]
fn transposing_agrees_with_indexing() {
    for [h, f, v] in [[1, 1, 1], [2, 3, 4], [3, 33, 17], [2, 64, 40]] {
        let t = iota(&[h, f, v]).transpose(1, 2);
        assert_eq!(t.shape(), [h, v, f]);
        let got = values(&t);
        for a in 0..h {
            for b in 0..v {
                for c in 0..f {
                    assert_eq!(got[(a * v + b) * f + c], ((a * f + c) * v + b) as f32);
                }
            }
        }
    }
}

#[test]
fn regrouping_is_the_row_order_of_the_specification_and_has_an_inverse() {
    let d = 8;
    let hf = iota(&[d]);
    let norm = hf.clone().regroup(0, d / 2);
    let got = values(&norm);
    for j in 0..d / 2 {
        for t in 0..2 {
            assert_eq!(got[2 * j + t], (t * d / 2 + j) as f32);
        }
    }
    let back = norm.regroup(0, 2);
    assert_eq!(values(&back), values(&hf));
    assert!(back.stored_bytes().is_some(), "undoing the view leaves the plain tensor");
}

#[test]
fn regrouping_a_transposed_axis_agrees_with_doing_both_on_the_heap() {
    let (h, f, v) = (2, 6, 5);
    let lazy = iota(&[h, f, v]).transpose(1, 2).regroup(2, f / 2);
    let eager = values(&iota(&[h, f, v]));
    let got = values(&lazy);
    for a in 0..h {
        for b in 0..v {
            for j in 0..f / 2 {
                for t in 0..2 {
                    assert_eq!(got[(a * v + b) * f + 2 * j + t], eager[(a * f + t * f / 2 + j) * v + b]);
                }
            }
        }
    }
}

#[test]
fn concatenating_selecting_and_splitting_agree() {
    let whole = iota(&[4, 3, 2]);
    let parts: Vec<_> = (0..4).map(|i| whole.select(i).unsqueeze0()).collect();
    let joined = LazyTensor::concat(parts).unwrap();
    assert_eq!(values(&joined), values(&whole));
    assert_eq!(values(&joined.select(2)), values(&whole.select(2)));
    assert_eq!(values(&joined.narrow(1, 2)), values(&whole.narrow(1, 2)));
    let flat = whole.clone().merge_axes(0);
    assert_eq!(flat.shape(), [12, 2]);
    let back = flat.split_axis(0, 4, 3).unwrap();
    assert_eq!(back.shape(), [4, 3, 2]);
    assert!(back.stored_bytes().is_some());
    assert!(iota(&[12, 2]).split_axis(0, 5, 2).is_err());
}

#[test]
fn splitting_at_a_border_inside_a_sub_axis_copies_rather_than_lies() {
    let t = iota(&[6]).regroup(0, 3); // sub-axes 3 and 2
    let split = t.clone().split_axis(0, 3, 2).unwrap();
    assert_eq!(values(&split), values(&t));
    let t = iota(&[12]).regroup(0, 4); // sub-axes 4 (inner) and 3
    let split = t.clone().split_axis(0, 2, 6).unwrap();
    assert_eq!(values(&split), values(&t));
}

#[test]
fn strided_views_stay_inside_their_storage() {
    let storage: Bytes = vec![0u8; 24 * 4].into();
    assert!(LazyTensor::strided(storage.clone(), DType::F32, &[4, 6], &[6, 1], 0).is_ok());
    assert!(LazyTensor::strided(storage.clone(), DType::F32, &[6, 4], &[1, 6], 0).is_ok());
    assert!(LazyTensor::strided(storage.clone(), DType::F32, &[4, 6], &[6, 1], 1).is_err());
    assert!(LazyTensor::strided(storage.clone(), DType::F32, &[1000], &[0], 23).is_ok(), "expanded scalar");
    assert!(LazyTensor::strided(storage.clone(), DType::F32, &[2], &[usize::MAX], 1).is_err());
    assert!(LazyTensor::strided(storage.clone(), DType::F32, &[0], &[1], 24).is_ok());
    assert!(LazyTensor::strided(storage, DType::F32, &[0], &[1], 25).is_err());
}

#[test]
fn an_empty_tensor_may_have_absurd_dimensions() {
    let t = LazyTensor::new(Vec::new().into(), DType::F32, &[0, 1 << 40, 1 << 40]).unwrap();
    assert_eq!((t.n_elements(), t.len_bytes()), (0, 0));
    assert!(t.to_bytes().is_empty());
}

#[test]
fn bytes_never_slice_outside() {
    let b: Bytes = vec![1u8, 2, 3].into();
    assert_eq!(&*b.slice(1..3).unwrap(), [2, 3]);
    let inner = b.slice(0..2).unwrap();
    assert!(inner.slice(0..3).is_none());
    assert!(inner.slice(usize::MAX..usize::MAX).is_none());
}

#[test]
fn contiguous_views_are_their_stored_bytes_and_others_have_none() {
    let t = iota(&[4, 6]);
    for (view, is_contiguous) in [
        (t.clone(), true),
        (t.narrow(1, 2), true),
        (t.narrow(3, 1).select(0), true),
        (t.clone().split_axis(1, 2, 3).unwrap(), true),
        (t.clone().transpose(0, 1), false),
        (t.clone().regroup(1, 3).narrow(1, 2), false),
        (LazyTensor::concat(vec![t.clone(), t.clone()]).unwrap(), false),
    ] {
        assert_eq!(view.contiguous_bytes(), is_contiguous.then(|| view.to_bytes()).as_deref(), "{:?}", view.shape());
    }
}

#[test]
fn only_blocks_that_a_view_reaches_are_decoded() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static DECODED: AtomicUsize = AtomicUsize::new(0);
    fn decode(dtype: DType, src: &[u8], dst: &mut [f32]) {
        DECODED.fetch_add(dst.len(), Ordering::Relaxed);
        crate::quant::decode(dtype, src, dst);
    }
    let (rows, row_len) = (6, 64);
    let x: Vec<f32> = (0..rows * row_len).map(|i| (i as f32).sin()).collect();
    let mut bytes = vec![0; x.len() / 32 * 34];
    crate::quant::quantize_rows(DType::Q8_0, &x, row_len, &mut bytes);
    let t = LazyTensor::quantized(bytes.into(), DType::Q8_0, &[rows, row_len], decode).unwrap();
    let whole = values(&t);
    for (view, expected, n_decoded) in [
        (t.narrow(2, 3), whole[128..320].to_vec(), 192),
        (t.select(5), whole[320..].to_vec(), 64),
        (t.clone().split_axis(1, 4, 16).unwrap().select(1), whole[64..128].to_vec(), 64),
        (t.clone().split_axis(1, 2, 32).unwrap().merge_axes(0).narrow(1, 1), whole[32..64].to_vec(), 32),
        (
            t.clone().transpose(0, 1).narrow(40, 2),
            (0..2).flat_map(|k| (0..6).map(move |r| r * 64 + 40 + k)).map(|i| whole[i]).collect(),
            352,
        ),
    ] {
        let before = DECODED.load(Ordering::Relaxed);
        assert_eq!(values(&view), expected);
        assert_eq!(DECODED.load(Ordering::Relaxed) - before, n_decoded, "{:?}", view.shape());
    }
}

#[test]
fn views_of_any_shape_are_handed_over_in_order_and_parts() {
    const MOST: usize = 4 << 20;
    let stored: Vec<f32> = (0..700_000).map(|i| i as f32).collect();
    let bytes = LazyTensor::from_f32(&stored, &[stored.len()]).to_bytes();
    let view = |shape: &[usize], strides: &[usize]| {
        LazyTensor::strided(bytes.clone().into(), DType::F32, shape, strides, 0).unwrap()
    };
    let rows = |n: usize| view(&[n, 700_000], &[0, 1]);
    for t in [
        view(&[1, 3, 700_000], &[0, 0, 1]),
        view(&[700_000, 3], &[1, 0]),
        view(&[1, 2, 1, 1_100_000], &[1, 7, 1, 0]),
        view(&[2, 0, 3], &[1, 1, 1]),
        view(&[], &[]),
        LazyTensor::concat(vec![rows(2), rows(1)]).unwrap(),
        LazyTensor::concat(vec![rows(1), view(&[0, 700_000], &[0, 1])]).unwrap(),
    ] {
        let (mut found, mut largest) = (Vec::new(), 0);
        t.for_each_part(MOST, &mut |part: &[u8]| {
            largest = largest.max(part.len());
            found.extend_from_slice(part);
        });
        assert!(found == t.to_bytes() && largest <= MOST, "{:?}", t.shape());
    }
}

#[test]
fn axis_0_is_repeated_without_a_copy() {
    let t = LazyTensor::from_f32(&[1.0, 2.0, 3.0, 4.0], &[2, 2]).repeat0(3);
    assert_eq!((t.shape(), t.is_one_view()), (&[6, 2][..], true));
    assert_eq!(t.to_bytes(), LazyTensor::from_f32(&[1.0, 2.0, 3.0, 4.0].repeat(3), &[6, 2]).to_bytes());
}

#[test]
fn rows_of_a_regrouped_axis_stay_where_they_are() {
    let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let grouped = LazyTensor::from_f32(&values, &[12, 2]).regroup(0, 3);
    let repeated = LazyTensor::from_f32(&values[..8], &[4, 2]).repeat0(3);
    for t in [grouped.clone(), repeated, grouped.regroup(0, 2)] {
        let whole = t.to_bytes();
        for start in 0..=12 {
            for len in 0..=12 - start {
                let part = t.narrow(start, len);
                assert_eq!(part.to_bytes(), whole[start * 8..][..len * 8], "{start} {len}");
                assert!(part.parts.iter().all(|p| std::ptr::eq(&p.bytes[0], &t.parts[0].bytes[0])), "a copy");
                assert_eq!(
                    part.narrow(len / 2, len - len / 2).to_bytes(),
                    whole[(start + len / 2) * 8..(start + len) * 8]
                );
            }
            if start < 12 {
                assert_eq!(t.select(start).to_bytes(), whole[start * 8..][..8]);
            }
        }
    }
}

/// Every type that a file may say, in every kind of view that one may ask for.
#[test]
fn views_of_elements_of_every_size_are_gathered() {
    for &dtype in DType::ALL.iter().filter(|d| !d.is_quantized()) {
        let size = dtype.block_bytes();
        // Element i has the bytes i, i + 100, i, i, ...
        let element = |i: usize| (0..size).map(|k| if k == 1 { i as u8 + 100 } else { i as u8 }).collect::<Vec<u8>>();
        let storage: Vec<u8> = (0..24).flat_map(element).collect();
        for (shape, strides, offset) in [
            (vec![2, 3, 4], vec![12, 4, 1], 0),
            (vec![4, 3, 2], vec![1, 4, 12], 0),
            (vec![3, 2], vec![2, 12], 5),
            (vec![2, 3], vec![0, 7], 1),
            (vec![], vec![], 23),
            (vec![0, 3], vec![3, 1], 0),
        ] {
            let t = LazyTensor::strided(storage.clone().into(), dtype, &shape, &strides, offset).unwrap();
            let expected: Vec<u8> = (0..t.n_elements())
                .flat_map(|flat| {
                    let at: usize = t.index_of(flat).iter().zip(&strides).map(|(i, s)| i * s).sum();
                    element(offset + at)
                })
                .collect();
            assert_eq!(t.to_bytes(), expected, "{dtype} {shape:?} {strides:?}");
            let mut parts = Vec::new();
            t.for_each_part(size, &mut |bytes| parts.extend_from_slice(bytes));
            assert_eq!(parts, expected, "{dtype} {shape:?} {strides:?} in parts");
        }
    }
}
