//! What is found before anybody asks which conventions a checkpoint has, and how it is said that they are open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::common::{
    RawAdapter, Tensor, distance, exit, import, model, ptplus, read_safetensors, stderr, stdout, write_safetensors,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// llama-mha's adapter with nothing stated, and changed.
fn open_adapter(folder: &Path, change: impl Fn(&mut RawAdapter)) {
    let mut source = RawAdapter::fixture("llama-mha");
    for key in ["feature_map", "query_tap", "query_scale", "memory_scale", "memory_sharing"] {
        source.config.as_object_mut().unwrap().remove(key);
    }
    change(&mut source);
    source.write(folder);
}

fn first_value(source: &mut RawAdapter, value: f32) {
    source.change("layers.1.memory", |t| {
        let mut t = t.clone();
        t.values[5] = value;
        t
    });
}

fn left_over(source: &mut RawAdapter) {
    source.tensors.insert("layers.0.memory.scale".into(), Tensor { shape: vec![1], values: vec![1.0] });
}

/// A copy of llama-mha's probe with other values in its F32 tensors.
fn changed_probe(to: &Path, change: impl Fn(&str, usize, f32) -> f32) {
    let bytes = std::fs::read(model("llama-mha").join("probe.safetensors")).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = parsed
        .tensors()
        .into_iter()
        .map(|(n, t)| {
            let floats = t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            let data = match t.dtype() {
                Dtype::F32 => floats.enumerate().flat_map(|(i, v)| change(&n, i, v).to_le_bytes()).collect(),
                _ => t.data().to_vec(),
            };
            (n, (t.dtype(), t.shape().to_vec(), data))
        })
        .collect();
    let views = tensors.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(to, safetensors::serialize(views, None).unwrap()).unwrap();
}

struct Place {
    temp: tempfile::TempDir,
    base: PathBuf,
    probe: PathBuf,
}

impl Place {
    fn new() -> Place {
        let m = model("llama-mha");
        Place { temp: tempfile::tempdir().unwrap(), base: m.join("base"), probe: m.join("probe.safetensors") }
    }

    fn adapter(&self) -> PathBuf {
        self.temp.path().join("open")
    }

    fn validate(&self) -> Output {
        ptplus(["validate".as_ref(), self.adapter().as_os_str(), "--base".as_ref(), self.base.as_ref()])
    }

    fn convert(&self, probe: Option<&Path>) -> Output {
        let (adapter, out) = (self.adapter(), self.temp.path().join("out.gguf"));
        let mut args: Vec<&std::ffi::OsStr> = vec!["convert".as_ref(), adapter.as_ref(), "-o".as_ref(), out.as_ref()];
        args.extend(["--base".as_ref(), self.base.as_os_str()]);
        args.extend(probe.iter().flat_map(|p| ["--probe".as_ref(), p.as_os_str()]));
        let done = ptplus(args);
        assert_eq!(out.exists(), exit(&done) == 0);
        let _ = std::fs::remove_file(&out);
        done
    }
}

#[test]
fn everything_that_is_wrong_is_found_while_conventions_are_open() {
    let place = Place::new();
    let with_probe = || place.convert(Some(&place.probe));
    open_adapter(&place.adapter(), |_| {});
    let done = place.validate();
    assert_eq!(exit(&done), 7);
    // The base and the shapes say the sharing.
    let keys = ["feature_map", "query_tap", "query_scale", "memory_scale"];
    assert!(keys.iter().all(|k| stdout(&done).contains(&format!("  {k}: expected a value (--"))), "{}", stdout(&done));
    assert!(stdout(&done).contains("4 findings"), "{}", stdout(&done));
    assert_eq!((exit(&place.convert(None)), exit(&with_probe())), (7, 0));

    // NaN is graver than what is open, in every command and with a probe as well.
    open_adapter(&place.adapter(), |s| {
        first_value(s, f32::NAN);
        left_over(s);
    });
    let done = place.validate();
    assert_eq!(exit(&done), 3);
    for code in ["[non-finite]", "[adapter-left-over]", "[convention-open]"] {
        assert!(stdout(&done).contains(code), "{}", stdout(&done));
    }
    for done in [place.convert(None), with_probe()] {
        assert_eq!(exit(&done), 3, "{}", stderr(&done));
        assert!(
            stderr(&done).contains("layers.1.memory") && stderr(&done).contains("[non-finite]"),
            "{}",
            stderr(&done)
        );
    }

    // What is left over is less grave than what is open, and a probe changes nothing about it.
    open_adapter(&place.adapter(), left_over);
    assert_eq!(exit(&place.validate()), 7);
    let done = place.convert(None);
    assert_eq!(exit(&done), 7);
    assert!(stderr(&done).contains("`ptplus validate` shows 1 more findings"), "{}", stderr(&done));
    let done = with_probe();
    assert_eq!(exit(&done), 4, "{}", stderr(&done));
    assert!(stderr(&done).contains("layers.0.memory.scale"), "{}", stderr(&done));

    // Sizes of another base, weights beside that are not the base's, no layer of the first kind.
    type Change = fn(&mut RawAdapter);
    let cases: [(&str, Change); 4] = [
        ("num_layers", |s| {
            s.config["num_layers"] = 7.into();
            s.config["layers_to_transform"] = serde_json::json!([0, 1, 2]);
        }),
        ("base_model_type", |s| s.config["base_model_type"] = "qwen3".into()),
        ("layers.2.memory", |s| s.config["layers_to_transform"] = serde_json::json!([0, 1])),
        ("model.norm.weight", |s| {
            s.tensors.insert("model.norm.weight".into(), Tensor { shape: vec![96], values: vec![9.0; 96] });
        }),
    ];
    for (named, change) in cases {
        open_adapter(&place.adapter(), change);
        let done = place.validate();
        assert_eq!(exit(&done), 7, "{named}");
        assert!(stdout(&done).contains(&format!("  {named}: ")), "{named}: {}", stdout(&done));
        let done = with_probe();
        assert_eq!(exit(&done), 4, "{named}: {}", stderr(&done));
        assert!(stderr(&done).contains(named), "{named}: {}", stderr(&done));
    }
}

#[test]
fn sizes_may_be_open_as_well() {
    let place = Place::new();
    open_adapter(&place.adapter(), |s| {
        for key in ["num_attention_heads", "num_key_value_heads", "num_layers", "head_dim", "num_features"] {
            s.config.as_object_mut().unwrap().remove(key);
        }
        first_value(s, f32::INFINITY);
    });
    let done = ptplus(["validate".as_ref(), place.adapter().as_os_str()]);
    assert_eq!(exit(&done), 3, "{}", stderr(&done));
    for line in ["layers.1.memory: expected finite values", "num_layers: expected a value (--base BASE)"] {
        assert!(stdout(&done).contains(line), "{}", stdout(&done));
    }
}

#[test]
fn the_message_is_a_list_with_one_flag_a_line() {
    let place = Place::new();
    open_adapter(&place.adapter(), |_| {});
    let text = stderr(&place.convert(None));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert!(
        lines[0].ends_with(
            "4 conventions are stated nowhere, and ptplus does not guess; what settles it: [convention-open]"
        )
    );
    assert!(lines[1..].iter().all(|l| l.matches("--").count() >= 1 && l.starts_with("  ")), "{text}");
    assert_eq!(lines[1], "  feature_map     --feature-map MAP");
    assert!(lines[5].contains("--probe PROBE --base BASE"), "{text}");
}

#[test]
fn a_wrong_base_is_known_by_itself_before_any_reading_is_tried() {
    let place = Place::new();
    open_adapter(&place.adapter(), |_| {});
    // The same sizes, other weights.
    let base = place.temp.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::copy(place.base.join("config.json"), base.join("config.json")).unwrap();
    let mut tensors = read_safetensors(&place.base.join("model.safetensors"));
    for (name, t) in &mut tensors {
        if name.contains("q_proj") {
            t.values.reverse();
        }
    }
    write_safetensors(&base.join("model.safetensors"), &tensors);
    let other = Place { base, ..Place::new() };
    open_adapter(&other.adapter(), |_| {});
    let done = other.convert(Some(&place.probe));
    assert_eq!(exit(&done), 5, "{}", stderr(&done));
    assert!(stderr(&done).contains("this is not the reference's base"), "{}", stderr(&done));
    assert!(!stderr(&done).contains("convention"), "{}", stderr(&done));
}

#[test]
fn a_probe_in_half_precision_is_told_from_a_wrong_base() {
    let place = Place::new();
    let probe = place.temp.path().join("probe.safetensors");
    let noise = |i: usize| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.04;
    let is_logits = |n: &str| n.ends_with("logits");
    type Change<'a> = &'a dyn Fn(&str, usize, f32) -> f32;
    let cases: [(&str, Change<'_>); 3] = [
        ("computed in BF16", &|_, _, v| half::bf16::from_f32(v).to_f32()),
        ("computed in F16", &|_, _, v| half::f16::from_f32(v).to_f32()),
        // The head in F32 after layers in BF16.
        ("rounding explains a difference of this size", &|n, i, v| if is_logits(n) { v + noise(i) } else { v }),
    ];
    for (said, change) in cases {
        changed_probe(&probe, change);
        let adapter = model("llama-mha").join("adapter");
        let args = ["verify".as_ref(), adapter.as_os_str(), "--base".as_ref(), place.base.as_ref(), "--probe".as_ref()];
        let done = ptplus(args.into_iter().chain([probe.as_os_str()]));
        assert_eq!(exit(&done), 5, "{said}: {}", stdout(&done));
        let stated = stdout(&done);
        open_adapter(&place.adapter(), |_| {});
        let done = place.convert(Some(&probe));
        assert_eq!(exit(&done), 5, "{said}: {}", stderr(&done));
        for text in [stated, stderr(&done)] {
            assert!(text.contains(said) && text.contains("model.float()"), "{said}: {text}");
            assert!(!text.contains("this is not the reference's base"), "{said}: {text}");
        }
    }
    // Without the base's logits, no reading fits.
    changed_probe(&probe, |_, _, v| half::bf16::from_f32(v).to_f32());
    let bytes = std::fs::read(&probe).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = parsed.tensors().into_iter().filter(|(n, _)| n != "base_logits");
    let without = place.temp.path().join("without.safetensors");
    std::fs::write(&without, safetensors::serialize(kept, None).unwrap()).unwrap();
    let done = place.convert(Some(&without));
    assert_eq!(exit(&done), 5, "{}", stderr(&done));
    assert!(stderr(&done).contains("[convention-none]"), "{}", stderr(&done));
    assert!(stderr(&done).contains("hint: the probe was computed in BF16"), "{}", stderr(&done));
}

#[test]
fn what_flags_state_holds_for_the_other_adapter_too_where_it_is_silent() {
    let place = Place::new();
    let folders = [place.temp.path().join("one"), place.temp.path().join("other")];
    open_adapter(&folders[0], |_| ());
    open_adapter(&folders[1], |_| ());
    let stated = RawAdapter::fixture("llama-mha").config;
    let canonical = model("llama-mha").join("adapter");
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    let flags: Vec<String> = ["feature_map", "query_tap", "query_scale", "memory_scale", "memory_sharing"]
        .into_iter()
        .flat_map(|key| {
            let value = stated[key].as_str().map_or_else(|| stated[key].to_string(), str::to_owned);
            [format!("--{}", key.replace('_', "-")), value]
        })
        .collect();
    for (one, other) in [(&folders[0], &folders[1]), (&folders[0], &canonical), (&canonical, &folders[1])] {
        for base in [vec![], vec!["--base".to_owned(), text(&place.base)]] {
            let mut args = vec!["verify".to_owned(), text(one), "--against".into(), text(other)];
            args.extend(base.iter().cloned());
            let without = ptplus(&args);
            assert_eq!(exit(&without), 7, "{}", stderr(&without));
            args.extend(flags.iter().cloned());
            let with = ptplus(&args);
            assert_eq!(exit(&with), 0, "{args:?}: {}", stderr(&with));
        }
    }
}

/// Three memories for three heads are one for each: nobody need say it. The order of axes that sizes settle neither.
#[test]
fn what_base_and_shapes_settle_need_not_be_stated() {
    let temp = tempfile::tempdir().unwrap();
    for (name, sharing) in
        [("llama-mha", "per_head"), ("llama-gqa", "per_head"), ("qwen2", ""), ("qwen3", ""), ("mistral-swa", "")]
    {
        let reference = RawAdapter::fixture(name);
        let mut adapter = reference.clone();
        let stated = adapter.config.as_object_mut().unwrap().remove("memory_sharing").unwrap();
        let (folder, out) = (temp.path().join("in"), temp.path().join("out"));
        adapter.write(&folder);
        let done = import(&folder, &out, Some(&model(name).join("base")), &["--force"]);
        assert_eq!(exit(&done), 0, "{name}: {}", stderr(&done));
        let found = RawAdapter::read(&out);
        assert_eq!(found.config["memory_sharing"], stated, "{name}");
        assert!(sharing.is_empty() || stated == sharing, "{name}");
        assert_eq!(found.config["ptplus_conventions"]["memory_sharing"], "shapes", "{name}");
        assert_eq!(distance(&found, &reference), 0.0, "{name}");
    }
}

#[test]
fn another_number_of_memories_is_called_by_its_sharing() {
    let temp = tempfile::tempdir().unwrap();
    let name = "llama-gqa";
    let mut adapter = RawAdapter::fixture(name);
    let (heads, kv_heads) = (
        adapter.config["num_attention_heads"].as_u64().unwrap(),
        adapter.config["num_key_value_heads"].as_u64().unwrap(),
    );
    assert!(heads > kv_heads && kv_heads > 1);
    adapter.config["memory_sharing"] = "per_head".into();
    let first = |t: &Tensor, n: usize| {
        let mut shape = t.shape.clone();
        let len = t.values.len() / shape[0];
        shape[0] = n;
        Tensor { shape, values: t.values[..n * len].to_vec() }
    };
    for (n, says) in [(kv_heads as usize, "per_kv_head"), (1, "shared")] {
        for with_sizes in [true, false] {
            let mut adapter = adapter.clone();
            adapter.change("", |t| first(t, n));
            if !with_sizes {
                for key in ["num_attention_heads", "num_key_value_heads"] {
                    adapter.config.as_object_mut().unwrap().remove(key);
                }
            }
            let folder = temp.path().join("in");
            adapter.write(&folder);
            let done = ptplus([
                "validate".as_ref(),
                folder.as_os_str(),
                "--base".as_ref(),
                model(name).join("base").as_os_str(),
            ]);
            let text = stdout(&done) + &stderr(&done);
            assert_eq!(exit(&done), 4, "{text}");
            assert!(text.contains(&format!("which is memory_sharing {says}")), "{text}");
        }
    }
}

/// A stack `[H, L, F, V]`, and heads side by side in rows, as sizes say them.
#[test]
fn axes_that_sizes_settle_are_read() {
    let temp = tempfile::tempdir().unwrap();
    let reference = RawAdapter::fixture("llama-gqa");
    let base = model("llama-gqa").join("base");
    let layers: Vec<&Tensor> = reference.tensors.values().collect();
    let [h, f, v] = layers[0].shape[..] else { panic!() };
    assert_ne!(layers.len(), h);
    let (folder, out) = (temp.path().join("in"), temp.path().join("out"));
    let run = |tensors: BTreeMap<String, Tensor>, more: &[&str]| {
        RawAdapter { config: reference.config.clone(), tensors }.write(&folder);
        import(&folder, &out, Some(&base), &[&["--force"], more].concat())
    };
    let all: Vec<f32> =
        (0..h).flat_map(|head| layers.iter().flat_map(move |t| t.values[head * f * v..][..f * v].to_vec())).collect();
    let stack = Tensor { shape: vec![h, layers.len(), f, v], values: all };
    let done = run([("prefix_memory".to_owned(), stack)].into(), &[]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0);
    // F (H V): row by row the heads.
    let columns = |t: &Tensor| {
        let values = (0..f)
            .flat_map(|row| (0..h).flat_map(move |head| t.values[(head * f + row) * v..][..v].to_vec()))
            .collect();
        Tensor { shape: vec![f, h * v], values }
    };
    let flat = || {
        reference
            .tensors
            .iter()
            .map(|(n, t)| (n.replace("memory", "prefix_memory"), columns(t)))
            .collect::<BTreeMap<_, _>>()
    };
    let done = run(flat(), &[]);
    assert!(exit(&done) == 7 && stderr(&done).contains("flattening_order  --layout"), "{}", stderr(&done));
    let probe = model("llama-gqa").join("probe.safetensors");
    let done = run(flat(), &["--probe", probe.to_str().unwrap()]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0);
    // The draft of a layout suggests it, and it is read.
    let draft = ptplus(["inspect", folder.to_str().unwrap(), "--suggest-layout"]);
    assert!(stdout(&draft).contains("axes = \"F (H V)\""), "{}", stdout(&draft));
    let layout = temp.path().join("layout.toml");
    std::fs::write(&layout, draft.stdout).unwrap();
    let done = run(flat(), &["--layout", layout.to_str().unwrap()]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0);
}
