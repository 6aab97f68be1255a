//! Weights that share a tensor are what they are alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ptplus::adapter::lora::{Lora, Module, Scale};
use ptplus::base::fingerprint::{Fingerprint, Touched};
use ptplus::base::{BaseModel, BlockWeight as W, ExpertMatrix, Weight};
use ptplus::error::{Code, Result};
use ptplus::export::types::OutType;
use ptplus::export::{self, Values};
use ptplus::format::output::{OutputFile, Overwrite};
use ptplus::format::{TensorSpec, gguf};
use ptplus::runner::{Device, Lane, Logits, Model, StreamOptions, stream};
use ptplus::tensor::{DType, LazyTensor};
use ptplus::transform::cast::Overflow;
use serde_json::json;

use super::common::{Collect, Probe, adapter, max_difference};
use crate::common::{MODELS, Tensor, base_gguf, model, read_safetensors, write_safetensors};

/// Writes a GGUF file in which the tensors that end in one of `parts` are one tensor of each block, called `whole`.
fn fused(file: &Path, groups: &[(&str, &[&str])], to: &Path) {
    let source = gguf::open(file).unwrap();
    let mut tensors: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for t in &source.tensors {
        let mut spec = TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() };
        let Some((whole, parts)) = groups.iter().find(|(_, parts)| parts.iter().any(|p| t.name.ends_with(p))) else {
            tensors.push((spec, t.bytes.to_vec()));
            continue;
        };
        let block = t.name.rsplitn(3, '.').nth(2).unwrap();
        if t.name.ends_with(parts[0]) {
            let all: Vec<_> = parts
                .iter()
                .map(|p| source.tensors.iter().find(|o| o.name == format!("{block}.{p}")).unwrap())
                .collect();
            spec.name = format!("{block}.{whole}");
            spec.shape[0] = all.iter().map(|o| o.shape[0]).sum();
            tensors.push((spec, all.iter().flat_map(|o| o.bytes.to_vec()).collect()));
        }
    }
    write(&source.metadata, &tensors, to);
}

pub fn write(metadata: &gguf::Metadata, tensors: &[(TensorSpec, Vec<u8>)], to: &Path) {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let plan = gguf::plan(metadata, &specs).unwrap();
    let mut bytes = plan.header.clone();
    bytes.resize(plan.len_bytes as usize, 0);
    for (planned, (_, data)) in plan.tensors.iter().zip(tensors) {
        bytes[planned.file_offset as usize..][..data.len()].copy_from_slice(data);
    }
    fs::write(to, bytes).unwrap();
}

const QKV: &[(&str, &[&str])] = &[
    ("attn_qkv.weight", &["attn_q.weight", "attn_k.weight", "attn_v.weight"]),
    ("attn_qkv.bias", &["attn_q.bias", "attn_k.bias", "attn_v.bias"]),
];

fn logits(base: &BaseModel, lane: Lane) -> Vec<f32> {
    let mut sink = Collect::default();
    let options = StreamOptions { positions: None, device: Device::cpu() };
    stream(base, &[vec![3, 1, 4, 1, 5, 9, 2, 6]], &[lane], &options, &mut sink).unwrap();
    sink.logits.remove(0)
}

fn lora(base: &BaseModel, weight: Weight) -> Lora {
    let shape = weight.expected_shape(&base.config).unwrap();
    let values = |n: usize, seed: usize| (0..n).map(|i| ((i * 7 + seed) as f32 * 0.37).sin() * 0.3).collect::<Vec<_>>();
    let module = Module {
        a: LazyTensor::from_f32(&values(2 * shape[1], 1), &[2, shape[1]]),
        b: LazyTensor::from_f32(&values(shape[0] * 2, 5), &[shape[0], 2]),
        scale: Scale { alpha: 2.0, factor: 1.0 },
        magnitude: None,
        bias: None,
    };
    Lora {
        config: serde_json::Map::new(),
        modules: [(weight, module)].into(),
        saved: BTreeMap::new(),
        folded: Default::default(),
        key_factor: None,
    }
}

/// llama.cpp takes query, key and value in one tensor for any architecture.
#[test]
fn query_key_and_value_in_one_tensor_are_what_they_are_in_three() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("fused.gguf");
    for name in MODELS {
        let plain = BaseModel::open(&base_gguf(name)).unwrap();
        fused(&plain.path, QKV, &file);
        let base = BaseModel::open(&file).unwrap();
        assert_eq!(base.config, plain.config, "{name}");
        for weight in plain.weights() {
            let (a, b) = (plain.in_hugging_face_order(weight).unwrap(), base.in_hugging_face_order(weight).unwrap());
            assert!(a.shape() == b.shape() && a.to_bytes() == b.to_bytes(), "{name} {weight:?}");
        }
        for touched in [
            Touched::Queries(vec![0, 1]),
            Touched::Weights([W::Query, W::Key, W::Value].map(|w| Weight::Block(1, w)).into()),
        ] {
            let print = |base: &BaseModel| Fingerprint::of(base, &touched).unwrap();
            assert_eq!(print(&base), print(&plain), "{name}");
        }
        assert_eq!(logits(&base, Lane::default()), logits(&plain, Lane::default()), "{name}");
    }
}

#[test]
fn additions_are_merged_where_the_weight_begins_in_its_tensor() {
    let temp = tempfile::tempdir().unwrap();
    let (file, merged) = (temp.path().join("fused.gguf"), temp.path().join("merged.gguf"));
    for name in ["llama-gqa", "qwen2", "qwen3"] {
        fused(&base_gguf(name), QKV, &file);
        let base = BaseModel::open(&file).unwrap();
        for weight in [W::Query, W::Key, W::Value, W::Down].map(|w| Weight::Block(1, w)) {
            let lora = lora(&base, weight);
            let plan =
                export::base::merge(&base, &[(&lora, 1.0)]).unwrap().plan(None, &OutType::Keep.into(), None).unwrap();
            let out = OutputFile::create(&merged, Overwrite::Force, &[]).unwrap();
            export::write_tensors(&plan.plan, Values::Unchecked, &out, Overflow::Error, &|_| ()).unwrap();
            out.commit().unwrap();
            let (found, expected) =
                (logits(&BaseModel::open(&merged).unwrap(), Lane::default()), logits(&base, Lane::of(&lora)));
            assert!(max_difference(&found, &expected) < 5e-5, "{name} {weight:?}");
            assert!(max_difference(&expected, &logits(&base, Lane::default())) > 0.01, "{name} {weight:?}: no effect");
        }
    }
}

#[test]
fn a_weight_that_shares_its_tensor_is_not_replaced_in_a_gguf_file() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("fused.gguf");
    fused(&base_gguf("llama-gqa"), QKV, &file);
    let base = BaseModel::open(&file).unwrap();
    let weight = Weight::Block(0, W::Key);
    let own = base.in_hugging_face_order(weight).unwrap();
    let e = base.with_weights(base.config.clone(), [(weight, own)]).unwrap_err();
    assert_eq!((e.code(), e.field_name()), (Code::ConfigUnsupported, Some("blk.0.attn_qkv.weight")));
}

#[test]
fn a_shared_tensor_is_kept_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("fused.gguf");
    fused(&base_gguf("llama-gqa"), QKV, &file);
    let base = BaseModel::open(&file).unwrap();
    let kept = export::base::plan(&base, None, &OutType::Keep.into(), None).unwrap().plan;
    assert_eq!(kept.tensors.len(), base.tensors().count());
    for ((planned, t), out) in kept.file.tensors.iter().zip(base.tensors_in_file_order()).zip(&kept.tensors) {
        assert_eq!((&planned.name, planned.dtype, &planned.shape), (&t.name, t.dtype, &t.shape));
        assert!(out.source.to_bytes() == *t.bytes, "{}", t.name);
    }
}

/// Families whose weights share tensors, with PyTorch's answers; of the last llama.cpp would compute something else.
const FAMILIES: [&str; 5] = ["phi3", "mixtral", "qwen2-moe", "qwen3-moe", "qwen3-moe-dense-layer"];
const IN_LLAMA_CPP: &[&str] = FAMILIES.split_at(4).0;

pub fn opened(name: &str) -> BaseModel {
    BaseModel::open(&model(name).join("base")).unwrap()
}

pub fn exported(base: &BaseModel, out_type: OutType, file: &Path) -> Result<BaseModel> {
    let plan = export::base::plan(base, None, &out_type.into(), None)?.plan;
    let out = OutputFile::create(file, Overwrite::Force, &[])?;
    export::write_tensors(&plan, Values::Unchecked, &out, Overflow::Error, &|_| ())?;
    out.commit()?;
    BaseModel::open(file)
}

/// The largest difference to PyTorch's logits, with the adapter and without.
pub fn against_pytorch(base: &BaseModel, name: &str) -> f64 {
    against(base, name, "probe.safetensors")
}

fn against(base: &BaseModel, name: &str, probe: &str) -> f64 {
    let probe = Probe::open(&model(name).join(probe));
    let adapter = adapter(&model(name).join("adapter"));
    let mut sink = Collect::default();
    let options = StreamOptions { positions: None, device: Device::cpu() };
    stream(base, &probe.input_ids(), &[Lane::of(&adapter), Lane::default()], &options, &mut sink).unwrap();
    let mut worst = 0.0f64;
    for (found, name) in sink.logits.iter().zip(["logits", "base_logits"]) {
        worst = worst.max(max_difference(found, &probe.get(name).unwrap().1));
    }
    for ((_, layer), (q, term)) in &sink.layers {
        for (found, what) in [(q, "q"), (term, "term")] {
            worst = worst.max(max_difference(found, &probe.get(&format!("{what}.{layer}")).unwrap().1));
        }
    }
    worst
}

#[test]
fn fused_and_stacked_families_give_pytorchs_answer_from_a_folder_and_from_gguf() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("base.gguf");
    for name in FAMILIES {
        let base = opened(name);
        let d = against_pytorch(&base, name);
        assert!(d <= 2e-5, "{name}: {d:.1e}");
        if IN_LLAMA_CPP.contains(&name) {
            let gguf = exported(&base, OutType::Keep, &file).unwrap();
            let d = against_pytorch(&gguf, name);
            assert!(d <= 2e-5, "{name} from GGUF: {d:.1e}");
            for touched in
                [Touched::Queries(vec![0]), Touched::Weights(base.weights().filter(|w| w.is_linear()).collect())]
            {
                let (a, b) = (Fingerprint::of(&base, &touched).unwrap(), Fingerprint::of(&gguf, &touched).unwrap());
                assert_eq!(a, b, "{name}");
            }
            // Written again it is the same file.
            let bytes = fs::read(&file).unwrap();
            exported(&gguf, OutType::Keep, &temp.path().join("again.gguf")).unwrap();
            assert!(fs::read(temp.path().join("again.gguf")).unwrap() == bytes, "{name}");
        } else {
            let e = exported(&base, OutType::Keep, &file).unwrap_err();
            assert_eq!(e.code(), Code::ConfigUnsupported, "{name}: {e}");
        }
    }
}

#[test]
fn positions_one_by_one_choose_the_experts_that_they_choose_together() {
    for name in FAMILIES {
        let probe = Probe::open(&model(name).join("probe.safetensors"));
        let model = Model::load(&opened(name), &Device::cpu()).unwrap();
        let (ids, expected) = (probe.input_ids(), probe.get("base_logits").unwrap().1);
        let mut cache = model.new_cache(ids[0].len());
        let vocab_size = model.base().config.vocab_size;
        for p in 0..ids[0].len() {
            let step: Vec<Vec<u32>> = ids.iter().map(|row| vec![row[p]]).collect();
            let found = model.forward(&mut cache, &step, Logits::Last).unwrap();
            for (b, found) in found.chunks(vocab_size).enumerate() {
                let at = (b * ids[0].len() + p) * vocab_size;
                assert!(max_difference(found, &expected[at..at + vocab_size]) < 2e-5, "{name} at {p}");
            }
        }
    }
}

/// `config.json` of phi3 with these fields, beside its weights.
fn phi3_with(folder: &Path, fields: &[(&str, serde_json::Value)]) -> Result<BaseModel> {
    let text = fs::read(model("phi3").join("base/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for (name, value) in fields {
        config[name] = value.clone();
    }
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::copy(model("phi3").join("base/model.safetensors"), folder.join("model.safetensors")).unwrap();
    BaseModel::open(folder)
}

/// As transformers 4 and 5 state it, and as GGUF does.
#[test]
fn half_of_each_head_is_rotated_where_the_configuration_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let theta = 10_000.0;
    for fields in [
        vec![("rope_parameters", json!(null)), ("rope_theta", json!(theta)), ("partial_rotary_factor", json!(0.5))],
        vec![("rope_parameters", json!({"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}))],
    ] {
        let base = phi3_with(temp.path(), &fields).unwrap();
        assert!(against(&base, "phi3", "probe-half-rotated.safetensors") <= 2e-5);
        assert!(against_pytorch(&base, "phi3") > 1e-2, "the whole head is another model");
        let gguf = exported(&base, OutType::Keep, &temp.path().join("base.gguf")).unwrap();
        assert!(against(&gguf, "phi3", "probe-half-rotated.safetensors") <= 2e-5);
    }
    for factor in [0.0, 1.5, 0.55, 0.2] {
        let e = phi3_with(temp.path(), &[("rope_parameters", json!(null)), ("partial_rotary_factor", json!(factor))]);
        let e = e.map(|base| base.config.rotary_dim);
        match factor {
            0.55 => assert_eq!(e.unwrap(), 8, "rounded down, as in Python"),
            _ => assert_eq!(e.unwrap_err().code(), Code::ConfigField, "{factor}"),
        }
    }
}

/// Phi-3's repositories have the code that transformers took over.
#[test]
fn code_of_the_family_s_own_name_is_what_transformers_has() {
    let temp = tempfile::tempdir().unwrap();
    let with = |class: &str| {
        let map = json!({"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": class});
        phi3_with(temp.path(), &[("auto_map", map)])
    };
    for class in ["modeling_phi3.Phi3ForCausalLM", "microsoft/Phi-3-mini-4k-instruct--modeling_phi3.Phi3ForCausalLM"] {
        assert!(with(class).is_ok(), "{class}");
    }
    for class in
        ["modeling_phi3.Phi3VForCausalLM", "modeling_other.Phi3ForCausalLM", "Phi3ForCausalLM", "modeling_phi3.Other"]
    {
        assert_eq!(with(class).unwrap_err().code(), Code::ConfigUnsupported, "{class}");
    }
}

fn values(base: &BaseModel, weight: Weight) -> Vec<f32> {
    base.rows(weight).unwrap().to_f32()
}

/// The base with these values in some weights.
fn changed(base: &BaseModel, weights: Vec<(Weight, Vec<f32>)>) -> BaseModel {
    let weights = weights.into_iter().map(|(weight, values)| {
        let shape = weight.expected_shape(&base.config).unwrap();
        (weight, LazyTensor::from_f32(&values, &shape))
    });
    base.with_weights(base.config.clone(), weights).unwrap()
}

#[test]
fn what_is_computed_or_stored_otherwise_is_seen() {
    let block = |w: W| Weight::Block(0, w);
    let mut mutations: Vec<(&str, &str, BaseModel)> = Vec::new();
    for (name, what) in
        [("mixtral", "not renormalised"), ("qwen3-moe", "not renormalised"), ("qwen2-moe", "renormalised")]
    {
        let base = opened(name);
        let mut config = base.config.clone();
        config.experts.as_mut().unwrap().renormalise ^= true;
        mutations.push((name, what, base.with_weights(config, []).unwrap()));
        let mut config = base.config.clone();
        config.experts.as_mut().unwrap().n_per_token -= 1;
        mutations.push((name, "one expert less", base.with_weights(config, []).unwrap()));
        let (gate, up) = (block(W::Expert(0, ExpertMatrix::Gate)), block(W::Expert(0, ExpertMatrix::Up)));
        let swapped = vec![(gate, values(&base, up)), (up, values(&base, gate))];
        mutations.push((name, "gate and up of an expert swapped", changed(&base, swapped)));
    }
    let base = opened("qwen2-moe");
    let shared = block(W::SharedExpertGate);
    let n = values(&base, shared).len();
    mutations.push(("qwen2-moe", "the shared expert's gate left out", changed(&base, vec![(shared, vec![0.0; n])])));
    let base = opened("phi3");
    let (fused, hidden) = (block(W::QueryKeyValue), base.config.hidden_size);
    let mut rows = values(&base, fused);
    rows.rotate_left(base.config.head_dim * hidden);
    mutations.push(("phi3", "query, key and value at other rows", changed(&base, vec![(fused, rows)])));
    let mut rows = values(&base, block(W::GateUp));
    rows.rotate_left(base.config.intermediate_size * hidden);
    mutations.push(("phi3", "gate and up swapped", changed(&base, vec![(block(W::GateUp), rows)])));
    for (name, what, base) in mutations {
        let d = against_pytorch(&base, name);
        assert!(d > 1e-2, "{name}, {what}: {d:.1e}");
    }
}

/// transformers 5 saves what it has in memory with `save_original_format=False`; llama.cpp's first files had an expert in a tensor.
#[test]
fn experts_are_read_from_stacks_and_from_tensors_of_their_own() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["mixtral", "qwen2-moe", "qwen3-moe"] {
        let base = opened(name);
        let e = base.config.experts.unwrap();
        let folder = temp.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::copy(base.path.join("config.json"), folder.join("config.json")).unwrap();
        let mut tensors = read_safetensors(&base.path.join("model.safetensors"));
        tensors.retain(|name, _| !name.contains(".experts.") && !name.contains("block_sparse_moe"));
        let stack = |matrices: &[ExpertMatrix]| -> Vec<f32> {
            let all = (0..e.n_experts).flat_map(|i| matrices.iter().map(move |m| Weight::Block(0, W::Expert(i, *m))));
            all.flat_map(|w| values(&base, w)).collect()
        };
        let (hidden, inner) = (base.config.hidden_size, e.intermediate_size);
        for (suffix, shape, values) in [
            ("gate.weight", vec![e.n_experts, hidden], values(&base, Weight::Block(0, W::Router))),
            (
                "experts.gate_up_proj",
                vec![e.n_experts, 2 * inner, hidden],
                stack(&[ExpertMatrix::Gate, ExpertMatrix::Up]),
            ),
            ("experts.down_proj", vec![e.n_experts, hidden, inner], stack(&[ExpertMatrix::Down])),
        ] {
            tensors.insert(format!("model.layers.0.mlp.{suffix}"), Tensor { shape, values });
        }
        write_safetensors(&folder.join("model.safetensors"), &tensors);
        let stacked = BaseModel::open(&folder).unwrap();
        assert!(against_pytorch(&stacked, name) <= 2e-5, "{name}, stacked");
        let file = temp.path().join("stacked.gguf");
        let gguf = exported(&stacked, OutType::Keep, &file).unwrap();
        assert!(against_pytorch(&gguf, name) <= 2e-5, "{name}, stacked, then GGUF");

        let apart = temp.path().join("apart.gguf");
        let groups = |matrix: &str| -> (String, Vec<String>) {
            (
                format!("ffn_{matrix}_exps.weight"),
                (0..e.n_experts).map(|i| format!("ffn_{matrix}.{i}.weight")).collect(),
            )
        };
        split(&file, &["gate", "up", "down"].map(groups), &apart);
        assert!(against_pytorch(&BaseModel::open(&apart).unwrap(), name) <= 2e-5, "{name}, experts apart in GGUF");
    }
}

/// Writes a GGUF file in which the tensors of these names are several, cut along their first axis.
fn split(file: &Path, groups: &[(String, Vec<String>)], to: &Path) {
    let source = gguf::open(file).unwrap();
    let mut tensors: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for t in &source.tensors {
        match groups.iter().find(|(whole, _)| t.name.ends_with(whole)) {
            None => {
                let spec = TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() };
                tensors.push((spec, t.bytes.to_vec()));
            }
            Some((whole, parts)) => {
                for (name, bytes) in parts.iter().zip(t.bytes.chunks_exact(t.bytes.len() / parts.len())) {
                    let name = t.name.replace(whole, name);
                    tensors.push((TensorSpec { name, dtype: t.dtype, shape: t.shape[1..].to_vec() }, bytes.to_vec()));
                }
            }
        }
    }
    write(&source.metadata, &tensors, to);
}

/// Of three experts a position takes one, and only that one's values reach the logits.
#[test]
fn an_expert_that_no_position_takes_is_not_read() {
    let base = opened("qwen3-moe-dense-layer");
    let mut n_read = 0;
    for i in 0..3 {
        let down = Weight::Block(1, W::Expert(i, ExpertMatrix::Down));
        let n = values(&base, down).len();
        let spoilt = changed(&base, vec![(down, vec![f32::NAN; n])]);
        let mut sink = Collect::default();
        let options = StreamOptions { positions: None, device: Device::cpu() };
        stream(&spoilt, &[vec![7]], &[Lane::default()], &options, &mut sink).unwrap();
        n_read += usize::from(sink.logits[0].iter().any(|x| x.is_nan()));
    }
    assert_eq!(n_read, 1);
}

#[test]
fn experts_are_quantized_as_matrices_and_routers_are_not() {
    let temp = tempfile::tempdir().unwrap();
    for name in IN_LLAMA_CPP {
        let gguf = exported(&opened(name), OutType::As(DType::Q8_0), &temp.path().join("q8.gguf")).unwrap();
        for t in gguf.tensors() {
            let is_matrix = t.shape.len() > 1 && !t.name.contains("ffn_gate_inp");
            // Rows of 32 are whole blocks, those of an expert's down projection are not.
            let expected = match t.shape.last() {
                _ if !is_matrix => DType::F32,
                Some(n) if n % 32 == 0 => DType::Q8_0,
                _ => DType::F16,
            };
            assert_eq!(t.dtype, expected, "{name} {}", t.name);
        }
        let d = against_pytorch(&gguf, name);
        assert!(d > 1e-5 && d < 0.2, "{name}: {d:.1e}");
    }
}

#[test]
fn impossible_mixtures_are_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    for (name, field, value, code) in [
        ("mixtral", "num_local_experts", json!(0), Code::ConfigField),
        ("mixtral", "num_local_experts", json!(1_000_000), Code::ConfigField),
        ("mixtral", "num_local_experts", json!(4), Code::BaseTensor),
        ("mixtral", "num_local_experts", json!(6), Code::BaseTensor),
        ("mixtral", "num_experts_per_tok", json!(0), Code::ConfigField),
        ("mixtral", "num_experts_per_tok", json!(6), Code::ConfigField),
        ("mixtral", "num_experts", json!(4), Code::ConfigField),
        ("qwen2-moe", "moe_intermediate_size", json!(0), Code::ConfigField),
        ("qwen2-moe", "shared_expert_intermediate_size", json!(0), Code::ConfigField),
        ("qwen2-moe", "decoder_sparse_step", json!(0), Code::ConfigField),
        ("qwen2-moe", "mlp_only_layers", json!(["0"]), Code::ConfigField),
        ("qwen2-moe", "norm_topk_prob", json!("no"), Code::ConfigField),
        ("qwen3-moe", "moe_intermediate_size", json!(1_u64 << 40), Code::ConfigField),
        ("qwen3-moe", "mlp_only_layers", json!([0]), Code::BaseTensor),
        ("phi3", "num_key_value_heads", json!(2), Code::BaseTensor),
        ("phi3", "intermediate_size", json!(25), Code::BaseTensor),
    ] {
        let folder = model(name).join("base");
        let text = fs::read(folder.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        config[field] = value;
        fs::write(temp.path().join("config.json"), config.to_string()).unwrap();
        fs::copy(folder.join("model.safetensors"), temp.path().join("model.safetensors")).unwrap();
        let e = BaseModel::open(temp.path()).expect_err(field);
        assert_eq!(e.code(), code, "{name} {field}: {e}");
    }
}

/// Phi-3's first files with long texts.
#[test]
fn su_is_longrope() {
    let temp = tempfile::tempdir().unwrap();
    let scaling = |kind: &str| {
        let factors = json!([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]);
        let rope = json!({"type": kind, "short_factor": factors, "long_factor": factors});
        let fields = [("rope_parameters", json!(null)), ("rope_scaling", rope), ("rope_theta", json!(10_000.0))];
        phi3_with(temp.path(), &fields).unwrap().config.ropes
    };
    assert_eq!(scaling("su"), scaling("longrope"));
}
