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
