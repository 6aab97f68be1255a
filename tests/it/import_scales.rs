//! A probe tells the scales that a checkpoint does not state, whatever numbers they are, or says why it cannot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{RawAdapter, Tensor, exit, import, model, ptplus, read_safetensors, stderr, stdout};
use ptplus::adapter::plus::FeatureMap;
use ptplus::base::BaseModel;
use ptplus::error::{Code, Error};
use ptplus::import::{self, Imported, Opened};
use ptplus::runner::{Device, phi};
use ptplus::search::{self, Settlement};
use ptplus::tensor::LazyTensor;
use ptplus::verify::probe::Probe;
use ptplus::verify::tolerance::Tolerance;
use ptplus::verify::{self};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const CONVENTIONS: [&str; 5] = ["feature_map", "query_tap", "query_scale", "memory_scale", "memory_sharing"];

/// A copy of a probe whose tensors are left out or have other values.
fn changed_probe(from: &Path, to: &Path, change: impl Fn(&str, &[u8]) -> Option<Vec<u8>>) {
    let bytes = std::fs::read(from).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = parsed
        .tensors()
        .into_iter()
        .filter_map(|(n, t)| change(&n, t.data()).map(|b| (n, (t.dtype(), t.shape().to_vec(), b))))
        .collect();
    let views = kept.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(to, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The fixture's function with other scales and nothing stated: what the scales take, memories and feature maps give.
fn rescaled(name: &str, query: f32, memory: f32) -> RawAdapter {
    let mut source = RawAdapter::fixture(name);
    let had = |key: &str| source.config[key].as_f64().unwrap() as f32;
    let (query_factor, memory_factor) = (had("query_scale") / query, had("memory_scale") / memory);
    let times = |t: &Tensor, by: f32| Tensor { values: t.values.iter().map(|v| v * by).collect(), ..t.clone() };
    source.change("memory", |t| times(t, memory_factor));
    source.change("feature.weight", |t| times(t, query_factor));
    let has_map = source.tensors.keys().any(|n| n.ends_with("feature.weight"));
    if query_factor != 1.0 && !has_map {
        let memories = source.tensors.iter().filter(|(n, _)| n.ends_with("memory"));
        let maps = memories.map(|(n, t)| {
            let [h, f, _] = t.shape[..] else { panic!() };
            let one = |i: usize| if i / f % f == i % f { query_factor } else { 0.0 };
            let map = Tensor { shape: vec![h, f, f], values: (0..h * f * f).map(one).collect() };
            (n.replace("memory", "feature.weight"), map)
        });
        source.tensors.extend(maps.collect::<Vec<_>>());
    }
    for key in CONVENTIONS {
        source.config.as_object_mut().unwrap().remove(key);
    }
    source
}

#[test]
fn any_scales_are_found_by_terms_and_by_logits() {
    // Of qwen3: relu with a bias.
    are_found(&[("qwen3", 0.3, -1.7)]);
}

#[test]
#[ignore = "half a minute"]
fn more_scales_are_found_by_terms_and_by_logits() {
    are_found(&[
        ("llama-mha", 2.0, -0.7),
        ("llama-mha", 1.0, 0.5),
        ("llama-mha", 0.3, 1.7),
        ("mistral-swa", 0.37, 3.3),
        ("qwen2", 0.5, 0.1),
        ("qwen3", 0.3, 1.7),
        ("llama-pre-rope", 1.7, 12.0),
    ]);
}

/// Models, and the scales of queries and memories that their adapters are given.
fn are_found(cases: &[(&str, f32, f32)]) {
    let temp = tempfile::tempdir().unwrap();
    for &(name, query, memory) in cases {
        let folder = temp.path().join("open");
        let _ = std::fs::remove_dir_all(&folder);
        rescaled(name, query, memory).write(&folder);
        let probe = model(name).join("probe.safetensors");
        let without_terms = temp.path().join("probe.safetensors");
        changed_probe(&probe, &without_terms, |n, b| (!n.starts_with("term.")).then(|| b.to_vec()));
        for (evidence, probe) in [("term", &probe), ("logits", &without_terms)] {
            let out = temp.path().join("out");
            let base = model(name).join("base");
            let mut args: Vec<&std::ffi::OsStr> =
                vec!["convert".as_ref(), folder.as_ref(), "-o".as_ref(), out.as_ref()];
            args.extend(["--to=safetensors", "--force", "--base"].map(std::ffi::OsStr::new));
            args.extend([base.as_os_str(), "--probe".as_ref(), probe.as_os_str()]);
            let done = ptplus(args);
            assert_eq!(exit(&done), 0, "{name} {query} {memory} {evidence}: {}", stderr(&done));
            let found = RawAdapter::read(&out).config;
            for (key, expected) in [("query_scale", query), ("memory_scale", memory)] {
                let value = found[key].as_f64().unwrap();
                assert!((value - f64::from(expected)).abs() < 1e-6, "{name} {evidence} {key}: {value}, not {expected}");
                let is_simple = [0.25, 0.5, 1.0, 2.0].contains(&expected);
                let fitted = &found["ptplus_conventions"]["fitted"][key];
                assert_eq!(fitted.is_null(), is_simple, "{name} {evidence} {key}: {fitted}");
                assert!(is_simple || fitted["within"].as_f64().unwrap() < 0.01 * value.abs(), "{name} {key}: {fitted}");
            }
            assert_eq!(stdout(&done).contains("fitted, within"), !found["ptplus_conventions"]["fitted"].is_null());
        }
    }
}

/// An adapter of llama-mha's memories that computes something else, and a probe whose terms say so.
struct Synthetic {
    map: FeatureMap,
    query: f64,
    memory: f64,
    normalized: bool,
    /// What the terms of layer 1 are multiplied with.
    odd_layer: f32,
    /// Whether memories are rounded to BF16 (and widened again) after the terms were computed.
    rounded: bool,
    /// What is stated.
    stated: serde_json::Value,
}

impl Synthetic {
    fn new(map: FeatureMap, query: f64, memory: f64) -> Self {
        Synthetic {
            map,
            query,
            memory,
            normalized: false,
            odd_layer: 1.0,
            rounded: false,
            stated: serde_json::json!({}),
        }
    }

    fn settle(&self) -> Result<(Imported, Settlement), Error> {
        let temp = tempfile::tempdir().unwrap();
        let from = model("llama-mha").join("probe.safetensors");
        let base = BaseModel::open(&model("llama-mha").join("base")).unwrap();
        let imported = import::read(&model("llama-mha").join("adapter"), &import::Options::default(), None).unwrap();
        let mut adapter = imported.adapter.as_plus().unwrap().clone();
        adapter.config.conventions.feature_map = self.map;
        (adapter.config.conventions.query_scale, adapter.config.conventions.memory_scale) = (self.query, self.memory);
        // Of one sign, as the activations that are normalised here are: no denominator is near 0.
        let normalizer: Vec<f32> = (0..3 * 32).map(|i| 1.0 + (i % 7) as f32 * 0.1).collect();
        let probe = read_safetensors(&from);
        let mut terms: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (i, layer) in &mut adapter.layers {
            layer.normalizer = self.normalized.then(|| LazyTensor::from_f32(&normalizer, &[3, 32]));
            let q = &probe[&format!("q.{i}")];
            let shape: [usize; 4] = q.shape.clone().try_into().unwrap();
            let term = phi::term_f32(&q.values, shape, &adapter.config, layer, *i).unwrap();
            let by = if *i == 1 { self.odd_layer } else { 1.0 };
            terms.insert(format!("term.{i}"), term.iter().flat_map(|v| (v * by).to_le_bytes()).collect());
        }
        let to = temp.path().join("probe.safetensors");
        changed_probe(&from, &to, |n, b| Some(terms.get(n).cloned().unwrap_or_else(|| b.to_vec())));

        let mut source = RawAdapter::fixture("llama-mha");
        if self.normalized {
            let of_layers = (0..3).map(|i| (format!("layers.{i}.normalizer"), normalizer.clone()));
            source.tensors.extend(of_layers.map(|(n, values)| (n, Tensor { shape: vec![3, 32], values })));
        }
        if self.rounded {
            let round = |v: &f32| half::bf16::from_f32(*v).to_f32();
            source.change("memory", |t| Tensor { values: t.values.iter().map(round).collect(), ..t.clone() });
        }
        for key in CONVENTIONS {
            source.config.as_object_mut().unwrap().remove(key);
        }
        for (key, value) in self.stated.as_object().unwrap() {
            source.config[key] = value.clone();
        }
        let folder: PathBuf = temp.path().join("open");
        source.write(&folder);
        let Opened::Draft(draft) = import::open(&folder, &import::Options::default(), Some(&base)).unwrap() else {
            panic!("a folder")
        };
        let tolerance = self.rounded.then(|| Tolerance::parse("bf16").unwrap());
        let options = verify::Options { device: &Device::cpu(), tolerance, progress: &|_, _| {} };
        search::settle(*draft, &base, &Probe::open(&to).unwrap(), &options)
    }

    fn found(&self) -> (FeatureMap, f64, f64) {
        let what = format!("{} {} {}", self.map, self.query, self.memory);
        let found = self.settle().unwrap_or_else(|e| panic!("{what}: {e} {:?}", e.detail_lines())).0;
        let config = &found.adapter.as_plus().unwrap().config.conventions;
        (config.feature_map, config.query_scale, config.memory_scale)
    }
}

#[test]
fn equal_functions_are_one_and_signs_are_found() {
    use FeatureMap::*;
    let root = 1.0 / 32f64.sqrt();
    are_one(&[
        // A factor of the query is one of the term.
        (Synthetic::new(Identity, -0.5, 1.0), (1.0, -0.5)),
        (Synthetic::new(Relu, root, root), (1.0, 1.0 / 32.0)),
        // The other sign is another function.
        (Synthetic::new(Relu, -0.5, 1.0), (-1.0, 0.5)),
        // It cancels against the denominator's.
        (Synthetic { normalized: true, ..Synthetic::new(Relu, 0.3, 0.8) }, (1.0, 0.8)),
        // Both signs together change nothing.
        (Synthetic::new(Tanh, -0.4, 0.7), (0.4, -0.7)),
        // One of them stated.
        (
            Synthetic { stated: serde_json::json!({ "memory_scale": 3.0 }), ..Synthetic::new(Tanh, -0.7, 3.0) },
            (-0.7, 3.0),
        ),
    ]);
}

#[test]
#[ignore = "seconds"]
fn more_equal_functions_are_one() {
    use FeatureMap::*;
    let root = 1.0 / 32f64.sqrt();
    let stated = |key: &str, value: f64| serde_json::json!({ key: value });
    are_one(&[
        (Synthetic::new(Identity, 0.5, 3.0), (1.0, 1.5)),
        (Synthetic { normalized: true, ..Synthetic::new(EluPlusOne, 0.3, 0.8) }, (0.3, 0.8)),
        (Synthetic { normalized: true, ..Synthetic::new(Exp, 0.5, 1.0) }, (0.5, 1.0)),
        (Synthetic::new(Elu, -0.4, 1.0), (-0.4, 1.0)),
        (Synthetic::new(Softplus, 2.0, root), (2.0, root)),
        (Synthetic::new(Gelu, 32f64.sqrt(), -1.0), (32f64.sqrt(), -1.0)),
        (Synthetic { stated: stated("memory_scale", 3.0), ..Synthetic::new(Relu, 0.7, 3.0) }, (0.7, 3.0)),
        (Synthetic { stated: stated("query_scale", 0.7), ..Synthetic::new(Silu, 0.7, 0.03) }, (0.7, 0.03)),
        (Synthetic { stated: stated("query_scale", 2.0), ..Synthetic::new(Relu, 2.0, 0.5) }, (2.0, 0.5)),
    ]);
}

/// Adapters, and the scales of queries and memories by which what they compute is found.
fn are_one(cases: &[(Synthetic, (f64, f64))]) {
    for (case, expected) in cases {
        let (map, query, memory) = case.found();
        assert_eq!(map, case.map, "{} {}", case.query, case.memory);
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
        assert!(near(query, expected.0) && near(memory, expected.1), "{map}: {query} {memory}, not {expected:?}");
    }
}

#[test]
fn rounded_weights_leave_one_function_or_none() {
    use FeatureMap::*;
    // relu is what gelu(c x) / c, silu(c x) / c and others come to, and identity what tanh(c x) / c comes to.
    are_found_rounded(&[Relu, Identity, Silu]);
    // These two differ by less than BF16 has digits.
    let e = Synthetic { rounded: true, ..Synthetic::new(Gelu, 1.0, 1.0) }.settle().unwrap_err();
    assert_eq!(e.code(), Code::ConventionAmbiguous, "{e}");
    assert!(e.message().contains("--feature-map") && !e.message().contains("--query-scale"), "{e}");
}

#[test]
#[ignore = "seconds"]
fn more_rounded_weights_leave_one_function_or_none() {
    use FeatureMap::*;
    are_found_rounded(&[Elu, Softplus, Exp]);
}

fn are_found_rounded(maps: &[FeatureMap]) {
    for &map in maps {
        let (found, _, memory) = Synthetic { rounded: true, ..Synthetic::new(map, 1.0, 0.5) }.found();
        assert_eq!((found, memory), (map, 0.5));
    }
}

#[test]
fn scales_that_the_probe_leaves_open_are_refused() {
    // As good as linear: a factor of the query is one of the term, and neither is 1.
    let stated = serde_json::json!({ "feature_map": "tanh" });
    let case = Synthetic { rounded: true, stated, ..Synthetic::new(FeatureMap::Tanh, 3e-3, 70.0) };
    let e = case.settle().unwrap_err();
    assert_eq!(e.code(), Code::ConventionAmbiguous, "{e}");
    assert!(e.message().contains("--query-scale") && e.message().contains("--memory-scale"), "{e}");
}

/// A scale that is stated and a little off is near, and no rounding.
#[test]
fn a_wrong_scale_is_not_taken_for_a_rounded_probe() {
    let stated = serde_json::json!({ "memory_scale": 1.6 });
    let e = Synthetic { stated, ..Synthetic::new(FeatureMap::Elu, 0.3, 1.7) }.settle().unwrap_err();
    assert_eq!(e.code(), Code::ConventionNone, "{e}");
    assert!(e.hint_lines().is_empty(), "{:?}", e.hint_lines());
}

#[test]
fn layers_must_ask_for_the_same_scales() {
    let e = Synthetic { odd_layer: 0.5, ..Synthetic::new(FeatureMap::Elu, 1.0, 1.0) }.settle().unwrap_err();
    assert_eq!(e.code(), Code::ConventionNone, "{e}");
    let last = e.detail_lines().last().unwrap();
    assert!(last.contains("layer 0 query_scale 1 memory_scale 1, layer 1 query_scale 1 memory_scale 0.5"), "{last}");
}

/// The factor of a layer and head.
type Expected<'a> = Box<dyn Fn(usize, usize) -> f32 + 'a>;
/// A name, the tensors, the layout file, and what becomes of them.
type GateCase<'a> = (&'a str, Vec<(String, Tensor)>, String, Expected<'a>);

/// A learned factor of the term is multiplied into the memories: a number, one for each layer, head or both; plain, or as a
/// layout file says.
#[test]
fn gates_are_multiplied_into_the_memories() {
    let temp = tempfile::tempdir().unwrap();
    let reference = RawAdapter::fixture("llama-mha");
    let n_layers = reference.tensors.len();
    let heads = reference.tensors.values().next().unwrap().shape[0];
    let (folder, out, layout) = (temp.path().join("in"), temp.path().join("out"), temp.path().join("layout.toml"));
    let tensor = |shape: &[usize], values: &[f32]| Tensor { shape: shape.to_vec(), values: values.to_vec() };
    let factor = |i: usize| 0.5 + i as f32 * 0.25;
    let by_head: Vec<f32> = (0..heads).map(factor).collect();
    let by_layer: Vec<f32> = (0..n_layers).map(factor).collect();
    let by_both: Vec<f32> = (0..n_layers * heads).map(factor).collect();
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let rule = |name: &str, more: &str| format!("[[tensor]]\nname = '{name}'\nrole = \"gate\"\n{more}\n");
    let each = |t: Tensor| -> Vec<(String, Tensor)> {
        (0..n_layers).map(|i| (format!("layers.{i}.gate"), t.clone())).collect()
    };
    let one = |name: &str, t: Tensor| vec![(name.to_owned(), t)];
    let named = r"layers\.(?<layer>[0-9]+)\.gate";
    let cases: Vec<GateCase> = vec![
        ("a scalar of no dimension", one("g", tensor(&[], &[0.5])), rule("g", ""), Box::new(|_, _| 0.5)),
        ("a scalar", each(tensor(&[1], &[0.5])), rule(named, ""), Box::new(|_, _| 0.5)),
        ("heads", each(tensor(&[heads], &by_head)), rule(named, "axes = \"H\""), Box::new(move |_, h| factor(h))),
        (
            "heads, broadcast",
            each(tensor(&[1, heads, 1, 1], &by_head)),
            rule(named, ""),
            Box::new(move |_, h| factor(h)),
        ),
        (
            "layers",
            one("g", tensor(&[n_layers, 1], &by_layer)),
            rule("g", "axes = \"L 1\""),
            Box::new(move |l, _| factor(l)),
        ),
        (
            "both",
            one("g", tensor(&[n_layers, heads], &by_both)),
            rule("g", ""),
            Box::new(move |l, h| factor(l * heads + h)),
        ),
        (
            "heads first",
            one("g", tensor(&[heads, n_layers], &by_both)),
            rule("g", "axes = \"H L\""),
            Box::new(move |l, h| factor(h * n_layers + l)),
        ),
        (
            "sigmoid",
            each(tensor(&[heads], &by_head)),
            rule(named, "activation = \"sigmoid\"\naxes = \"H\""),
            Box::new(move |_, h| sigmoid(factor(h))),
        ),
        ("tanh", each(tensor(&[1], &[0.5])), rule(named, "activation = \"tanh\""), Box::new(|_, _| 0.5_f32.tanh())),
        ("a learned scale by its name", one("memory_scale", tensor(&[], &[0.5])), String::new(), Box::new(|_, _| 0.5)),
    ];
    for (what, gates, text, expected) in cases {
        let mut adapter = reference.clone();
        adapter.tensors.extend(gates);
        let by_name = text.is_empty();
        adapter.config["memory_scale"] =
            if by_name { serde_json::Value::Null } else { reference.config["memory_scale"].clone() };
        adapter.write(&folder);
        std::fs::write(&layout, text).unwrap();
        let more: &[&str] = if by_name { &["--force"] } else { &["--force", "--layout", layout.to_str().unwrap()] };
        let done = import(&folder, &out, Some(&model("llama-mha").join("base")), more);
        assert_eq!(exit(&done), 0, "{what}: {}", stderr(&done));
        assert!(stderr(&done).contains("multiplied into the memories"), "{what}: {}", stderr(&done));
        let found = RawAdapter::read(&out);
        assert_eq!(found.tensors.len(), n_layers, "{what}");
        for (layer, t) in reference.tensors.values().enumerate() {
            let per_head = t.values.len() / heads;
            let folded = &found.tensors[&format!("layers.{layer}.memory")];
            for (i, (a, b)) in folded.values.iter().zip(&t.values).enumerate() {
                let b = b * expected(layer, i / per_head);
                assert!((a - b).abs() <= 1e-6 * b.abs(), "{what}: layer {layer}, element {i}: {a} instead of {b}");
            }
        }
        if by_name {
            assert_eq!(
                (&found.config["memory_scale"], &found.config["ptplus_conventions"]["memory_scale"]),
                (&1.0.into(), &"tensor".into())
            );
        }
    }
    // A gate that no layout file explains may have an activation; a second scale, and a shape that is none, are refused.
    let mut adapter = reference.clone();
    adapter.tensors.insert("layers.0.attn_gate".into(), tensor(&[1], &[0.5]));
    adapter.write(&folder);
    let done = import(&folder, &out, Some(&model("llama-mha").join("base")), &["--force"]);
    assert!(exit(&done) == 4 && stderr(&done).contains("adapter-left-over"), "{}", stderr(&done));
    let mut adapter = reference.clone();
    adapter.config["memory_scale"] = 0.5.into();
    adapter.tensors.insert("memory_scale".into(), tensor(&[], &[0.5]));
    adapter.write(&folder);
    assert_eq!(exit(&import(&folder, &out, Some(&model("llama-mha").join("base")), &["--force"])), 2);
    adapter.config["memory_scale"] = 1.into();
    adapter.tensors.insert("memory_scale".into(), tensor(&[heads + 4], &vec![0.5; heads + 4]));
    adapter.write(&folder);
    let done = import(&folder, &out, Some(&model("llama-mha").join("base")), &["--force"]);
    assert!(exit(&done) == 4 && stderr(&done).contains("memory_scale"), "{}", stderr(&done));
}

#[test]
fn a_wrong_base_is_known_by_logits_before_any_reading_is_tried() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("adapter");
    rescaled("llama-mha", 0.5, 1.0).write(&folder);
    // A probe of logits alone: no reading explains them on another base.
    let probe = temp.path().join("probe.safetensors");
    let is_logits = |name: &str| !name.starts_with("q.") && !name.starts_with("term.");
    changed_probe(&model("llama-mha").join("probe.safetensors"), &probe, |name, bytes| {
        is_logits(name).then(|| bytes.to_vec())
    });
    let base = temp.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::copy(model("llama-mha").join("base/config.json"), base.join("config.json")).unwrap();
    let mut tensors = crate::common::read_safetensors(&model("llama-mha").join("base/model.safetensors"));
    tensors.iter_mut().filter(|(name, _)| name.contains("q_proj")).for_each(|(_, t)| t.values.reverse());
    crate::common::write_safetensors(&base.join("model.safetensors"), &tensors);
    let out = temp.path().join("x.gguf");
    let args = ["convert".as_ref(), folder.as_os_str(), "--base".as_ref(), base.as_os_str(), "--probe".as_ref()];
    let done = ptplus(args.into_iter().chain([probe.as_os_str(), "-o".as_ref(), out.as_os_str()]));
    let said = stderr(&done);
    assert!(exit(&done) == 5 && said.contains("this is not the reference's base"), "{said}");
    assert!(!said.contains("convention"), "{said}");
}
