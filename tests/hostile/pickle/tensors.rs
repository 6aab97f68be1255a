//! What a pickle says of tensors: their storages, shapes, strides, names.

use ptplus::error::Code;

use super::programs::rows;
use crate::pickle::assembler::*;

#[test]
fn tensors_that_cannot_be_rebuilt_are_named() {
    let cases: &[(&str, i32, &[i32], &[i32])] = &[
        ("one row too many", 0, &[3, 3], &[3, 1]),
        ("offset by one", 1, &[2, 3], &[3, 1]),
        ("stride too long", 0, &[2, 3], &[4, 1]),
        ("negative size", 0, &[-2, 3], &[3, 1]),
        ("negative stride", 0, &[2, 3], &[3, -1]),
        ("negative offset", -1, &[2, 3], &[3, 1]),
        ("more sizes than strides", 0, &[2, 3], &[3]),
        ("more strides than sizes", 0, &[6], &[6, 1]),
        ("a product that overflows", 0, &[i32::MAX, i32::MAX, i32::MAX, 4], &[0, 0, 0, 0]),
        ("an empty one whose product overflows", 0, &[0, i32::MAX, i32::MAX, i32::MAX], &[1, 1, 1, 1]),
        ("an empty one outside", 7, &[0], &[1]),
        ("one element expanded to 8 GiB", 0, &[i32::MAX], &[0]),
    ];
    for &(name, offset, shape, strides) in cases {
        let pickle = Pickle::new().op(b"}").text("model").op(b"}").text("w").tensor(offset, shape, strides).op(b"ss");
        let e = read(archive(&pickle.stop())).expect_err(name);
        assert_eq!(e.code(), Code::PickleTensor, "{name}: {e}");
        // What the numbers alone show is noticed before the tensor has a name; then the offset says where.
        let by_name = e.field_name() == Some("model.w");
        assert!(by_name || e.offset().is_some_and(|o| o > 0), "{name}: {e}");
        let known_late = !name.starts_with("negative") && !name.starts_with("more");
        assert_eq!(by_name, known_late, "{name}: {e}");
    }
}

#[test]
fn the_keys_that_lead_to_a_tensor_are_one_name() {
    let below = |outer: &str, inner: &str| {
        let dicts = Pickle::new().op(b"}").text(outer).op(b"}").text(inner).tensor(0, &[6], &[1]).op(b"ss");
        read(archive(&dicts.stop()))
    };
    let longest = below(&"o".repeat(127), &"i".repeat(127)).unwrap();
    assert_eq!(contents(&longest)[0].0.len(), 255);
    for (outer, inner) in [("o".repeat(127), "i".repeat(128)), ("a/".into(), "./b".into())] {
        let e = below(&outer, &inner).unwrap_err();
        assert!(e.code() == Code::NameInvalid && e.offset().is_some_and(|o| o > 0), "{e}");
    }
    // A tensor that was saved by itself has no key.
    let alone = read(archive(&Pickle::new().tensor(0, &[6], &[1]).stop())).unwrap();
    assert_eq!(contents(&alone)[0].0, "");
}

#[test]
fn tensors_at_the_edge_of_their_storage_are_accepted() {
    let cases: &[(i32, &[i32], &[i32])] = &[
        (0, &[6], &[1]),
        (5, &[1], &[1]),
        (5, &[], &[]),
        (6, &[0], &[1]),
        (0, &[0, 7], &[7, 1]),
        (0, &[3, 2], &[1, 3]),
        (0, &[1, 6], &[i32::MAX, 1]),
        (5, &[1000], &[0]),
        (1, &[3], &[2]),
        (0, &[1; 16], &[1; 16]),
    ];
    for &(offset, shape, strides) in cases {
        let pickle = dict_of(|p| p.tensor(offset, shape, strides));
        let checkpoint = read(archive(&pickle)).unwrap_or_else(|e| panic!("{offset} {shape:?} {strides:?}: {e}"));
        let expected: Vec<u8> = indices(offset, shape, strides).flat_map(|i| (i as f32 + 1.0).to_le_bytes()).collect();
        assert_eq!(contents(&checkpoint)[0].3, expected, "{offset} {shape:?} {strides:?}");
    }
}

/// The storage's index of each element, in row-major order.
fn indices(offset: i32, shape: &[i32], strides: &[i32]) -> impl Iterator<Item = i64> {
    let n: i64 = shape.iter().map(|&d| i64::from(d)).product();
    let axes: Vec<(i64, i64)> = shape.iter().zip(strides).map(|(&d, &s)| (d.into(), s.into())).collect();
    (0..n).map(move |mut flat| {
        axes.iter().rev().fold(i64::from(offset), |at, &(len, stride)| {
            let index = flat % len;
            flat /= len;
            at + index * stride
        })
    })
}

#[test]
fn arguments_of_a_tensor_are_checked_one_by_one() {
    let rebuild = |args: &dyn Fn(Pickle) -> Pickle| {
        dict_of(|p| args(p.global("torch._utils", "_rebuild_tensor_v2").op(b"(")).op(b"tR"))
    };
    let storage = |p: Pickle| p.storage("FloatStorage", "0", 6);
    let right = |p: Pickle| storage(p).int(0).ints(&[6]).ints(&[1]).op(b"\x89").no_hooks();
    let wrong = Code::PickleStructure;
    let mut table = vec![
        ("none", rebuild(&|p| p), wrong),
        ("only a storage", rebuild(&|p| storage(p)), wrong),
        ("one short", rebuild(&|p| storage(p).int(0).ints(&[6]).ints(&[1]).op(b"\x89")), wrong),
        ("no storage", rebuild(&|p| p.int(0).int(0).ints(&[6]).ints(&[1]).op(b"\x89").no_hooks()), wrong),
        ("sizes in a list", rebuild(&|p| storage(p).int(0).op(b"]").ints(&[1]).op(b"\x89").no_hooks()), wrong),
        (
            "sizes that are texts",
            rebuild(&|p| storage(p).int(0).text("6").op(b"\x85").ints(&[1]).op(b"\x89").no_hooks()),
            wrong,
        ),
        (
            "a float as offset",
            rebuild(&|p| storage(p).op(b"G\0\0\0\0\0\0\0\0").ints(&[6]).ints(&[1]).op(b"\x89").no_hooks()),
            wrong,
        ),
        ("a number as requires_grad", rebuild(&|p| storage(p).int(0).ints(&[6]).ints(&[1]).int(0).no_hooks()), wrong),
        ("hooks", rebuild(&|p| storage(p).int(0).ints(&[6]).ints(&[1]).op(b"\x89").op(b"}K\x01K\x02s")), wrong),
        ("one too many", rebuild(&|p| right(p).op(b"}").int(1)), Code::PickleTensor),
        ("negated", rebuild(&|p| right(p).op(b"}").text("neg").op(b"\x88s")), Code::PickleTensor),
        ("far too many", rebuild(&|p| (0..20).fold(right(p), |p, _| p.int(1))), Code::PickleLimit),
        ("17 dimensions", dict_of(|p| p.tensor(0, &[1; 17], &[1; 17])), Code::PickleLimit),
    ];
    let of =
        |what: &str| Pickle::new().op(b"(").text(what).global("torch", "FloatStorage").text("0").text("cpu").int(6);
    for (name, id, code) in [
        ("a persistent id that is a text", Pickle::new().text("storage").op(b"Q"), wrong),
        ("a short one", Pickle::new().text("storage").op(b"\x85Q"), wrong),
        ("of a module", of("module").op(b"tQ"), wrong),
        (
            "with a class by name",
            Pickle::new().op(b"(").text("storage").text("FloatStorage").text("0").text("cpu").int(6).op(b"tQ"),
            wrong,
        ),
        (
            "with a number as key",
            Pickle::new().op(b"(").text("storage").global("torch", "FloatStorage").int(0).text("cpu").int(6).op(b"tQ"),
            wrong,
        ),
        ("of a legacy file", of("storage").op(b"NtQ"), wrong),
        ("with a view", of("storage").ints(&[1, 2, 3]).op(b"tQ"), wrong),
        ("with a negative size", Pickle::new().storage("FloatStorage", "0", -6), Code::PickleStorage),
        ("with a long key", Pickle::new().storage("FloatStorage", &"0".repeat(256), 6), Code::PickleLimit),
    ] {
        table.push((name, id.stop(), code));
    }
    for (name, class, key, n) in [
        ("missing", "FloatStorage", "1", 6),
        ("a path", "FloatStorage", "../version", 6),
        ("another size", "FloatStorage", "0", 5),
        ("another element type", "DoubleStorage", "0", 6),
    ] {
        let pickle = dict_of(|p| {
            let p = p.global("torch._utils", "_rebuild_tensor_v2").op(b"(").storage(class, key, n);
            p.int(0).ints(&[1]).ints(&[1]).op(b"\x89").no_hooks().op(b"tR")
        });
        table.push((name, pickle, Code::PickleStorage));
    }
    let twice = dict_of(|p| p.op(b"(").tensor(0, &[6], &[1]).storage("IntStorage", "0", 6).op(b"t"));
    table.push(("one storage of two types", twice, Code::PickleStorage));
    check_codes(rows(table));
}

#[test]
fn names_of_tensors_obey_the_rule_for_names() {
    let long = "n".repeat(256);
    for name in ["", "a\0b", "a\nb", "../up", "a/../b", "/root", "\\root", "C:\\x", &long] {
        let named = Pickle::new().op(b"}").text(name).tensor(0, &[6], &[1]).op(b"s").stop();
        assert_eq!(code(name, archive(&named)), Code::NameInvalid, "{name:?}");
        let outer = Pickle::new().op(b"}").text(name).op(b"}").text("w").tensor(0, &[6], &[1]).op(b"ss").stop();
        assert_eq!(code(name, archive(&outer)), Code::NameInvalid, "{name:?} outside");
        let plain = Pickle::new().op(b"}").text(name).op(b"Ns").stop();
        assert!(read(archive(&plain)).is_ok(), "a key that leads to no tensor is data: {name:?}");
    }
    let longest = "n".repeat(255);
    for name in [&longest, "тензор", "a b", "a..b", "base_model.model.layers.0.M"] {
        let named = Pickle::new().op(b"}").text(name).tensor(0, &[6], &[1]).op(b"s").stop();
        assert!(read(archive(&named)).is_ok(), "{name:?}");
    }
}
