//! Wrong pickles inside right archives: each is refused for its own reason.

use ptplus::error::Code;

use crate::pickle::assembler::*;

pub fn rows(rows: Vec<(&'static str, Vec<u8>, Code)>) -> Vec<(&'static str, Vec<u8>, Code)> {
    rows.into_iter().map(|(name, pickle, code)| (name, archive(&pickle), code)).collect()
}

#[test]
fn a_right_pickle_is_accepted() {
    let checkpoint = read(archive(&good_pickle())).unwrap();
    let expected = vec![("w".to_owned(), "F32", vec![2, 3], elements())];
    assert_eq!(contents(&checkpoint), expected);
}

/// A call of this global that would leave a file behind, in three spellings, and the global alone.
fn calls(module: &str, name: &str, marker: &std::path::Path) -> [Vec<u8>; 4] {
    let argument = format!("touch {}", marker.display());
    [
        Pickle::new().global(module, name).text(&argument).op(b"\x85R").stop(),
        Pickle(vec![0x80, 4]).text(module).text(name).op(b"\x93").text(&argument).op(b"\x85R").stop(),
        Pickle(vec![0x80, 4]).text(module).text(name).op(b"\x93").text(&argument).op(b"\x85\x81").stop(),
        dict_of(|p| p.global(module, name)),
    ]
}

#[test]
fn programs_are_named_and_never_run() {
    let globals = [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("__builtin__", "eval"),
        ("builtins", "print"),
        ("builtins", "open"),
        ("subprocess", "Popen"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("pickle", "loads"),
        ("socket", "create_connection"),
        ("shutil", "rmtree"),
        ("webbrowser", "open"),
        ("types", "CodeType"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch", "EvilStorage"),
        ("torch.FloatStorage", ""),
        ("", ""),
        ("os\u{202e}", "metsys\u{1b}[31m"),
    ];
    let marker = std::env::temp_dir().join(format!("ptplus-pickle-{}", std::process::id()));
    for (module, name) in globals {
        for pickle in calls(module, name, &marker) {
            let e = read(archive(&pickle)).expect_err(name);
            assert_eq!((e.code(), e.kind().exit_code()), (Code::PickleGlobal, 3), "{module}.{name}");
            assert!(e.message().contains(&format!("{module}.{name} ")), "{e}");
            assert!(e.to_string().chars().all(|c| !c.is_control()), "{e:?}");
        }
    }
    assert!(!marker.exists());
}

#[test]
fn classes_outside_the_list_are_named_and_never_built() {
    let globals = [
        ("builtins", "getattr"),
        ("builtins", "Ellipsis"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._tensor", "_rebuild_from_type"),
        ("torch.storage", "TypedStorage"),
        ("torch.jit._pickle", "restore_type_tag"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("argparse", "Namespace"),
        ("copyreg", "_reconstructor"),
        ("collections.OrderedDict", "__init__"),
        ("__main__", "Model"),
    ];
    let marker = std::env::temp_dir().join(format!("ptplus-pickle-class-{}", std::process::id()));
    for (module, name) in globals {
        for pickle in calls(module, name, &marker) {
            let checkpoint = read(archive(&pickle)).unwrap_or_else(|e| panic!("{module}.{name}: {e}"));
            assert_eq!(checkpoint.tensors().count(), 0);
            assert_eq!(
                (checkpoint.objects().n, &checkpoint.objects().classes[..]),
                (1, &[format!("{module}.{name}")][..])
            );
        }
    }
    assert!(!marker.exists());
}

/// What is put into an object, or made by one, is part of it, and its tensors are listed.
#[test]
fn whatever_is_done_to_an_object_stays_inside_of_it() {
    let object = |p: Pickle| p.global("a", "B").op(b")\x81");
    let tensor = |p: Pickle| p.tensor(0, &[6], &[1]);
    type Build<'a> = &'a dyn Fn(Pickle) -> Pickle;
    let cases: [(&str, Build, &[&str]); 9] = [
        ("an argument", &|p| tensor(p.global("a", "B")).op(b"\x85R"), &["w"]),
        ("a state", &|p| tensor(object(p).op(b"}").text("x")).op(b"sb"), &["w.x"]),
        ("a state that is no dictionary", &|p| tensor(object(p)).op(b"b"), &["w"]),
        ("an item", &|p| tensor(object(p)).op(b"a"), &["w"]),
        ("an entry", &|p| tensor(object(p).text("k")).op(b"s"), &["w"]),
        ("entries", &|p| tensor(object(p).op(b"(").text("k")).op(b"u"), &["w"]),
        ("keywords", &|p| tensor(p.global("a", "B").op(b")}").text("k")).op(b"s\x92"), &["w.k"]),
        ("what an object makes", &|p| tensor(object(p)).op(b"\x85R"), &["w"]),
        ("itself", &|p| tensor(object(p).op(b"q\0h\0a(h\0")).op(b"e"), &["w"]),
    ];
    for (what, build, names) in cases {
        let checkpoint = read(archive(&dict_of(build))).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(checkpoint.tensors().count(), 0, "{what}");
        let [object] = &checkpoint.objects().listed[..] else { panic!("{what}: {:?}", checkpoint.objects()) };
        assert_eq!((&*object.name, &*object.subscripts, &*object.class), ("w", "[\"w\"]", "a.B"), "{what}");
        assert_eq!(object.tensors, names, "{what}");
        assert_eq!(object.is_mapping, what == "an entry" || what == "entries", "{what}");
    }
    let as_attribute = |p: Pickle| {
        let p = p.no_hooks().op(b"}").text("x").global("a", "B");
        tensor(p).op(b"\x85Rsb")
    };
    assert_eq!(code("lost in an attribute", archive(&dict_of(as_attribute))), Code::PickleUnsupported);
    let of_class = dict_of(|p| {
        let p =
            p.global("torch._tensor", "_rebuild_from_type_v2").op(b"(").global("torch._utils", "_rebuild_tensor_v2");
        let p = p.global("a", "Sub").op(b"(").storage("FloatStorage", "0", 6).int(0).ints(&[6]).ints(&[1]);
        p.op(b"\x89").no_hooks().op(b"t}tR")
    });
    let found = read(archive(&of_class)).unwrap();
    assert!(found.objects().listed[0].is_numbers, "{:?}", found.objects());
}

#[test]
fn what_is_spelled_as_a_call_and_is_plain_is_read() {
    let call = |module: &str, name: &str, args: &[u8]| dict_of(|p| p.global(module, name).op(args).op(b"R"));
    let text = |s: &str| Pickle(vec![]).text(s).0;
    let latin = |s: &str, codec: &str| [&b"("[..], &text(s), &text(codec), b"t"].concat();
    let bytes = read(archive(&call("_codecs", "encode", &latin("\u{0}ÿ", "latin1")))).unwrap();
    assert_eq!(bytes.root().get("w").unwrap().as_bytes(), Some(&[0, 255][..]));
    for args in [latin("\u{100}", "latin1"), latin("a", "rot13"), text("a")] {
        assert_eq!(code("no Latin-1", archive(&call("_codecs", "encode", &args))), Code::PickleStructure);
    }
    // `defaultdict(list, {...})` and one that is filled afterwards.
    for args in [&b"cbuiltins\nlist\n\x85"[..], b")"] {
        let filled = dict_of(|p| {
            p.global("collections", "defaultdict").op(args).op(b"R").text("k").tensor(0, &[6], &[1]).op(b"s")
        });
        assert_eq!(contents(&read(archive(&filled)).unwrap())[0].0, "w.k");
    }
    assert_eq!(code("of a number", archive(&call("collections", "defaultdict", b"NK\x01\x86"))), Code::PickleStructure);
    let parameter =
        |tail: &[u8]| dict_of(|p| p.global("torch.nn.parameter", "Parameter").tensor(0, &[6], &[1]).op(tail));
    for tail in [&b"\x85R"[..], b"\x88\x86\x81"] {
        assert_eq!(contents(&read(archive(&parameter(tail))).unwrap())[0].3, elements());
    }
}

#[test]
fn globals_on_the_list_do_only_what_they_are_for() {
    let call = |module: &str, name: &str, args: &[u8]| Pickle::new().global(module, name).op(args).op(b"R").stop();
    /// `_rebuild_from_type_v2(function, class, arguments of a right tensor, state)`
    fn of_type(module: &str, function: &str, class_module: &str, class: &str, state: &[u8]) -> Vec<u8> {
        dict_of(|p| {
            let p = p.global("torch._tensor", "_rebuild_from_type_v2").op(b"(").global(module, function);
            let p = p.global(class_module, class).op(b"(").storage("FloatStorage", "0", 6).int(0).ints(&[6]).ints(&[1]);
            p.op(b"\x89").no_hooks().op(b"t").op(state).op(b"tR")
        })
    }
    let rebuilt =
        |module: &str, class: &str, state: &[u8]| of_type("torch._utils", "_rebuild_tensor_v2", module, class, state);
    let parameter = |state: &[u8]| {
        dict_of(|p| {
            let p = p.global("torch._utils", "_rebuild_parameter_with_state").op(b"(").tensor(0, &[6], &[1]);
            p.op(b"\x88").no_hooks().op(state).op(b"tR")
        })
    };
    /// `n` elements of `dtype` in a storage of this class.
    fn typed(class: &str, stored: i32, n: i32, dtype: &str) -> Vec<u8> {
        let module = if class == "UntypedStorage" { "torch.storage" } else { "torch._storage" };
        dict_of(|p| {
            let p = p.global("torch._utils", "_rebuild_tensor_v3").op(b"((").text("storage").global(module, class);
            let p = p.text("0").text("cpu").int(stored).op(b"tQ").int(0).ints(&[n]).ints(&[1]);
            p.op(b"\x89").no_hooks().global("torch", dtype).op(b"tR")
        })
    }
    for right in [rebuilt("torch", "Tensor", b"}"), rebuilt("torch", "Tensor", b"N}\x86"), parameter(b"}K\x01Ns")] {
        assert_eq!(contents(&read(archive(&right)).unwrap())[0].3, elements());
    }
    for (dtype, n, read_as) in [("float32", 6, "F32"), ("complex64", 3, "C64"), ("uint16", 12, "U16")] {
        let found = contents(&read(archive(&typed("UntypedStorage", 24, n, dtype))).unwrap());
        assert_eq!(found, [("w".to_owned(), read_as, vec![n as usize], elements())]);
    }
    // A type of a later PyTorch.
    let later = read(archive(&typed("UntypedStorage", 24, 6, "float7"))).unwrap();
    assert!(contents(&later).is_empty() && later.objects().listed[0].is_numbers, "{:?}", later.objects());
    check_codes(rows(vec![
        ("OrderedDict of a number", call("collections", "OrderedDict", b"K\x01\x85"), Code::PickleStructure),
        ("OrderedDict of short pairs", call("collections", "OrderedDict", b"]]K\x01aa\x85"), Code::PickleStructure),
        ("set of a number", call("builtins", "set", b"K\x01\x85"), Code::PickleStructure),
        ("Size of a list", call("torch", "Size", b"]\x85"), Code::PickleStructure),
        ("device of a number", call("torch", "device", b"K\x01\x85"), Code::PickleStructure),
        ("storage class called", call("torch", "FloatStorage", b"K\x05\x85"), Code::PickleStructure),
        ("parameter of a number", call("torch._utils", "_rebuild_parameter", b"K\x05\x89N\x87"), Code::PickleStructure),
        ("arguments that are a list", call("collections", "OrderedDict", b"]"), Code::PickleStructure),
        ("a constant called", call("torch", "float32", b")"), Code::PickleStructure),
        ("a text called", Pickle::new().text("os.system").op(b")R").stop(), Code::PickleStructure),
        ("a class as a value", dict_of(|p| p.global("torch", "FloatStorage")), Code::PickleStructure),
        ("a function as a value", dict_of(|p| p.global("torch._utils", "_rebuild_tensor_v2")), Code::PickleStructure),
        ("a storage as a value", dict_of(|p| p.storage("FloatStorage", "0", 6)), Code::PickleStructure),
        ("state of a list", dict_of(|p| p.op(b"]}b")), Code::PickleStructure),
        ("state that is no dictionary", dict_of(|p| p.op(b"}]b")), Code::PickleStructure),
        (
            "a tensor in the state of a dictionary",
            dict_of(|p| p.no_hooks().op(b"}").text("_metadata").tensor(0, &[6], &[1]).op(b"sb")),
            Code::PickleStructure,
        ),
        ("quantized numbers", dict_of(|p| p.storage("QInt8Storage", "0", 24)), Code::PickleUnsupported),
        ("a class of tensors as a value", dict_of(|p| p.global("torch", "Tensor")), Code::PickleStructure),
        ("a class of tensors called", call("torch", "Tensor", b")"), Code::PickleStructure),
        ("a tensor rebuilt by no rebuilder", of_type("torch", "Size", "torch", "Tensor", b"}"), Code::PickleStructure),
        ("a tensor rebuilt as a device", rebuilt("torch", "device", b"}"), Code::PickleStructure),
        ("attributes that are a list", rebuilt("torch", "Tensor", b"]"), Code::PickleStructure),
        ("attributes that are three", rebuilt("torch", "Tensor", b"NNN\x87"), Code::PickleStructure),
        ("an attribute that is a class", rebuilt("torch", "Tensor", b"}K\x01ctorch\nTensor\ns"), Code::PickleStructure),
        ("an attribute that is called", rebuilt("torch", "Tensor", b"}K\x01cos\nsystem\ns"), Code::PickleGlobal),
        (
            "a parameter whose attribute is a tensor",
            parameter(&Pickle(vec![]).op(b"}K\x01").tensor(0, &[6], &[1]).op(b"s").0),
            Code::PickleStructure,
        ),
        ("bytes as a type that nobody reads", typed("UntypedStorage", 24, 6, "complex32"), Code::PickleUnsupported),
        ("numbers as bytes", typed("FloatStorage", 6, 6, "float32"), Code::PickleStructure),
        ("bytes as more numbers than there are", typed("UntypedStorage", 24, 7, "float32"), Code::PickleTensor),
        ("as complex numbers more than there are", typed("UntypedStorage", 24, 4, "complex64"), Code::PickleTensor),
    ]));
}

#[test]
fn operations_that_do_not_fit_are_refused() {
    let p = Pickle::new;
    let (wrong, cut) = (Code::PickleStructure, Code::PickleTruncated);
    check_codes(rows(vec![
        ("nothing", Vec::new(), cut),
        ("only PROTO", vec![0x80], cut),
        ("no STOP", p().op(b"}").0, cut),
        ("STOP with nothing", p().stop(), wrong),
        ("STOP with two values", p().op(b"NN").stop(), wrong),
        ("STOP with an open MARK", p().op(b"N(N").stop(), wrong),
        ("bytes after STOP", p().op(b"}.N").0, wrong),
        ("TUPLE without MARK", p().op(b"Nt").stop(), wrong),
        ("TUPLE3 of two", p().op(b"NN\x87").stop(), wrong),
        ("TUPLE1 across a MARK", p().op(b"N(\x85").stop(), wrong),
        ("POP of nothing", p().op(b"0").stop(), wrong),
        ("POP across a MARK", p().op(b"N(0").stop(), wrong),
        ("POP_MARK without MARK", p().op(b"1").stop(), wrong),
        ("DUP of nothing", p().op(b"2").stop(), wrong),
        ("APPEND to a dictionary", p().op(b"}Na").stop(), wrong),
        ("APPEND to nothing", p().op(b"Na").stop(), wrong),
        ("APPENDS to a tuple", p().op(b")(Ne").stop(), wrong),
        ("ADDITEMS to a list", p().op(b"](N\x90").stop(), wrong),
        ("APPENDS to a set", p().op(b"\x8f(Ne").stop(), wrong),
        ("SETITEM on a list", p().op(b"]NNs").stop(), wrong),
        ("SETITEMS of three", p().op(b"}(NNNu").stop(), wrong),
        ("DICT of one", p().op(b"(Nd").stop(), wrong),
        ("a list as key", p().op(b"}]Ns").stop(), wrong),
        ("a set as key", p().op(b"}\x8fNs").stop(), wrong),
        ("a set of protocol 2 as key", p().op(b"}").global("__builtin__", "set").op(b"]\x85RNs").stop(), wrong),
        ("a dictionary as key", p().op(b"}}Ns").stop(), wrong),
        ("REDUCE of nothing", p().op(b"R").stop(), wrong),
        ("REDUCE of None", p().op(b"N)R").stop(), wrong),
        ("BUILD of nothing", p().op(b"b").stop(), wrong),
        ("BINPERSID of nothing", p().op(b"Q").stop(), wrong),
        ("STACK_GLOBAL of numbers", p().op(b"K\x01K\x02\x93").stop(), wrong),
        ("BINGET of what was never put", p().op(b"h\x07").stop(), wrong),
        ("BINPUT of nothing", p().op(b"q\0").stop(), wrong),
        ("MEMOIZE across a MARK", p().op(b"N(\x94").stop(), wrong),
        ("text that is not UTF-8", p().op(b"X\x02\0\0\0\xff\xfe").stop(), wrong),
        ("a Python 2 str that is not UTF-8", p().op(b"U\x02\xff\xfe").stop(), wrong),
        ("text longer than the pickle", p().op(b"X\xff\xff\0\0a").stop(), cut),
        ("text of 2^63 bytes", p().op(b"\x8d\0\0\0\0\0\0\0\x80a").stop(), cut),
        ("text of 2^64 - 1 bytes", p().op(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa").stop(), cut),
        ("bytes of 4 GiB", p().op(b"B\xff\xff\xff\xffa").stop(), cut),
        ("a bytearray of 2^62 bytes", p().op(b"\x96\0\0\0\0\0\0\0\x40a").stop(), cut),
        ("a number of 2 GiB", p().op(b"\x8b\xff\xff\xff\x7fa").stop(), cut),
        ("a number of -1 bytes", p().op(b"\x8b\xff\xff\xff\xffa").stop(), cut),
        ("a number of 65 bytes", p().op(b"\x8a\x41").op(&[1; 65]).stop(), Code::PickleLimit),
        ("a frame longer than the pickle", p().op(b"\x95\xff\0\0\0\0\0\0\0N").stop(), cut),
        ("a frame of 2^64 - 1", p().op(b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN").stop(), cut),
        ("a frame in a frame", p().op(b"\x95\x0a\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0\0N").stop(), wrong),
        ("a frame that ends inside a text", p().op(b"\x95\x06\0\0\0\0\0\0\0X\x02\0\0\0ab").stop(), wrong),
        ("a frame that ends after STOP", p().op(b"\x95\x03\0\0\0\0\0\0\0N.N").0, wrong),
        ("a global without its end", p().op(b"ctorch\nFloat").0, cut),
        ("a global's name of 129 bytes", p().global("torch", &"x".repeat(129)).stop(), Code::PickleLimit),
        ("memo entry 2^32 - 1", p().op(b"Nr\xff\xff\xff\xff").stop(), Code::PickleLimit),
        ("memo entry 1,000,000", p().op(b"Nr\x40\x42\x0f\0").stop(), Code::PickleLimit),
        ("a list in itself", p().op(b"]q\0h\0a").stop(), wrong),
        ("a list in itself, twice removed", p().op(b"]q\0]h\0aa").stop(), wrong),
        ("a dictionary in itself", p().op(b"}q\0K\x01h\0s").stop(), wrong),
        ("a tuple in its own list", p().op(b"]q\0h\0\x85a").stop(), wrong),
        ("a key twice", p().op(b"}").text("a").op(b"N").op(b"s").text("a").op(b"Ns").stop(), Code::NameDuplicate),
        ("a key as number and as truth", p().op(b"}K\x01Ns\x88Ns").stop(), Code::NameDuplicate),
        ("a key of 513 bytes", p().op(b"}").text(&"k".repeat(513)).op(b"Ns").stop(), Code::PickleLimit),
        ("33 levels", p().op(&b"]".repeat(33)).op(&b"a".repeat(32)).stop(), Code::PickleLimit),
        ("1001 marks", p().op(&b"(".repeat(1001)).stop(), Code::PickleLimit),
    ]));
}

/// Lightning's `ModelCheckpoint` keeps scores by the path of the file.
#[test]
fn what_callbacks_keep_is_named_by_paths() {
    let path = format!("/home/somebody/{}/epoch=1.ckpt", "runs/".repeat(60));
    let kept = |top: &str, key: &str| {
        let dicts = Pickle::new().op(b"}").text(top).op(b"}").text("ModelCheckpoint").op(b"}").text(key);
        read(archive(&dicts.tensor(0, &[6], &[1]).op(b"sss").stop()))
    };
    for key in ["/home/a.ckpt", "../a.ckpt", "a/../b.ckpt", "C:\\a.ckpt", "", &path] {
        let read = kept("callbacks", key).unwrap_or_else(|e| panic!("{key:?}: {e}"));
        let name = contents(&read)[0].0.clone();
        assert!(name.starts_with("callbacks.ModelCheckpoint.") && name.len() < 270, "{name}");
        assert_eq!(kept("state_dict", key).unwrap_err().code(), Code::NameInvalid, "{key:?}");
    }
    assert_eq!(kept("callbacks", "a\nb").unwrap_err().code(), Code::NameInvalid);
}

#[test]
fn values_just_inside_the_limits_are_accepted() {
    let p = Pickle::new;
    for (name, pickle) in [
        ("32 levels", p().op(&b"]".repeat(32)).op(&b"a".repeat(31)).stop()),
        ("999,999 in the memo", p().op(b"Nr\x3f\x42\x0f\0").stop()),
        ("a number of 64 bytes", p().op(b"\x8a\x40").op(&[1; 64]).stop()),
        ("a frozen set as key", p().op(b"}(K\x01K\x02\x91Ns").stop()),
        (
            "a frozen set of protocol 2 as key",
            p().op(b"}").global("__builtin__", "frozenset").op(b"]K\x01a\x85RNs").stop(),
        ),
        ("a key of 512 bytes", p().op(b"}").text(&"k".repeat(512)).op(b"Ns").stop()),
        ("no key twice across types", p().op(b"}K\x01Ns").text("1").op(b"NsNNs").stop()),
        ("a Python 2 str", p().op(b"U\x02\xc3\xa4").stop()),
        ("a frame and what follows it", p().op(b"\x95\x01\0\0\0\0\0\0\0NN\x86").stop()),
        ("two frames", p().op(b"\x95\x01\0\0\0\0\0\0\0N\x95\x02\0\0\0\0\0\0\x000").op(b"N").stop()),
        ("POP_MARK", p().op(b"N(NN1").stop()),
        ("DUP", p().op(b"N2\x86").stop()),
        ("a shared list", p().op(b"]q\0h\0\x86").stop()),
    ] {
        read(archive(&pickle)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn every_opcode_is_read_or_refused_by_name() {
    // What each accepted opcode needs is in the tests above; here: no byte is passed over in silence.
    let refused: &[(&[u8], &str)] = &[
        (b"F1.5\n", "FLOAT"),
        (b"I5\n", "INT"),
        (b"L5L\n", "LONG"),
        (b"P5\n", "PERSID"),
        (b"S'a'\n", "STRING"),
        (b"Va\n", "UNICODE"),
        (b"g0\n", "GET"),
        (b"p0\n", "PUT"),
        (b"(ios\nsystem\n", "INST"),
        (b"(ctorch\nSize\no", "OBJ"),
        (b"ctorch\nSize\n)\x81", "NEWOBJ"),
        (b"ctorch\nSize\n)}\x92", "NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\0", "EXT2"),
        (b"\x84\x01\0\0\0", "EXT4"),
        (b"\x97", "NEXT_BUFFER"),
        (b"N\x98", "READONLY_BUFFER"),
    ];
    for (ops, name) in refused {
        let e = read(archive(&Pickle::new().op(ops).stop())).expect_err(name);
        assert_eq!(e.code(), Code::PickleOpcode, "{e}");
        assert!(e.message().contains(&format!("opcode {name} ")), "{e}");
        assert!(e.offset().is_some());
    }
    let known = b"(.012FIJKLMNPQRSTUVXabcd}eghijl]opqrst)uGBC";
    let unknown = (0u8..=255).filter(|b| !known.contains(b) && !(0x80..=0x98).contains(b));
    let mut n = 0;
    for byte in unknown {
        let e = read(archive(&Pickle::new().op(&[byte]).stop())).expect_err("unknown");
        assert_eq!(e.code(), Code::PickleOpcode, "0x{byte:02x}: {e}");
        n += 1;
    }
    assert_eq!(n, 256 - 43 - 25, "CPython 3.12 has 68 opcodes");
    for protocol in [0, 1, 6, 255] {
        assert_eq!(code("protocol", archive(&[0x80, protocol, b'}', b'.'])), Code::PickleOpcode);
    }
    assert_eq!(code("no PROTO", archive(b"}.")), Code::PickleOpcode);
    assert_eq!(code("PROTO twice", archive(b"\x80\x02\x80\x02}.")), Code::PickleOpcode);
}
