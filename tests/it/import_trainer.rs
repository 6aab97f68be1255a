//! What a trainer leaves behind: a whole model's folder with the memories among its weights, checkpoints with objects of
//! classes beside the tensors, configurations of another or no `peft_type`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{
    RawAdapter, Tensor, distance, exit, import, json, model, ptplus, read_safetensors, stderr, write_checkpoint,
    write_safetensors,
};
use serde_json::Value;

const NAME: &str = "llama-mha";
const STATED: [&str; 5] =
    ["--feature-map=elu", "--query-tap=post_rope", "--query-scale=1", "--memory-scale=1", "--memory-sharing=per_head"];

fn base() -> PathBuf {
    model(NAME).join("base")
}

/// The tensors of the base with the adapter's memories, each named by `rename`.
fn whole(rename: impl Fn(&str) -> String) -> BTreeMap<String, Tensor> {
    let mut tensors = read_safetensors(&base().join("model.safetensors"));
    tensors.extend(RawAdapter::fixture(NAME).tensors.into_iter().map(|(name, t)| (rename(&name), t)));
    tensors
}

/// `model.layers.N.self_attn.memory`
fn in_attention(name: &str) -> String {
    format!("model.{}", name.replace("memory", "self_attn.memory"))
}

/// How a folder's weights are stored.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stored {
    Safetensors,
    Shards,
    Bin,
    BinShards,
}

const STORED: [Stored; 4] = [Stored::Safetensors, Stored::Shards, Stored::Bin, Stored::BinShards];

fn write_weights(folder: &Path, tensors: &BTreeMap<String, Tensor>, stored: Stored) {
    let (stem, ending) = match stored {
        Stored::Safetensors | Stored::Shards => ("model", "safetensors"),
        Stored::Bin | Stored::BinShards => ("pytorch_model", "bin"),
    };
    let write = |file: &str, tensors: &BTreeMap<String, Tensor>| match ending {
        "bin" => write_checkpoint(&folder.join(file), tensors),
        _ => write_safetensors(&folder.join(file), tensors),
    };
    if matches!(stored, Stored::Safetensors | Stored::Bin) {
        return write(&format!("{stem}.{ending}"), tensors);
    }
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let file = format!("{stem}-0000{}-of-00002.{ending}", part + 1);
        let of_part: BTreeMap<String, Tensor> = tensors
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 2 == part)
            .map(|(_, (n, t))| (n.clone(), t.clone()))
            .collect();
        map.extend(of_part.keys().map(|name| (name.clone(), file.clone().into())));
        write(&file, &of_part);
    }
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(folder.join(format!("{stem}.{ending}.index.json")), index.to_string()).unwrap();
}

/// A `checkpoint-NNN` folder with everything that `Trainer` puts beside the weights.
fn checkpoint_folder(outer: &Path, tensors: &BTreeMap<String, Tensor>, stored: Stored) -> PathBuf {
    let folder = outer.join("checkpoint-500");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(base().join("config.json"), folder.join("config.json")).unwrap();
    write_weights(&folder, tensors, stored);
    for beside in ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "optimizer_0.bin", "scaler.pt"]
    {
        std::fs::write(folder.join(beside), b"\x80\x02}.").unwrap();
    }
    std::fs::write(folder.join("trainer_state.json"), b"{}").unwrap();
    folder
}

#[test]
fn a_model_saved_with_its_memories_is_an_adapter() {
    let temp = tempfile::tempdir().unwrap();
    let reference = RawAdapter::fixture(NAME);
    type Rename = fn(&str) -> String;
    let names: [Rename; 5] = [
        in_attention,
        |n| format!("model.{}", n.replace("memory", "self_attn.prefix_memory")),
        |n| format!("model.{}", n.replace("memory", "self_attn.attn_memory")),
        |n| format!("model.{}", n.replace("memory", "self_attn.prefix.M")),
        |n| n.replace("layers.", "prefix_memories.").replace(".memory", ""),
    ];
    for (i, rename) in names.into_iter().enumerate() {
        let stored = STORED[i % STORED.len()];
        let folder = checkpoint_folder(temp.path(), &whole(rename), stored);
        let out = temp.path().join(format!("out-{i}"));
        let done = import(&folder, &out, Some(&base()), &STATED);
        assert_eq!(exit(&done), 0, "{i} {stored:?}: {}", stderr(&done));
        assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0, "{i}");
    }
    // By every command, and told by `inspect`.
    for stored in STORED {
        let folder = checkpoint_folder(temp.path(), &whole(in_attention), stored);
        let (code, found) = json(["inspect".as_ref(), folder.as_path()]);
        assert_eq!((code, &found["kind"]), (0, &Value::from("adapter")), "{stored:?}");
        assert!(found["notes"].to_string().contains("a model with the adapter's tensors"), "{}", found["notes"]);
        let (folder, base) = (folder.to_str().unwrap().to_owned(), base().to_str().unwrap().to_owned());
        let gguf = temp.path().join(format!("{stored:?}.gguf")).to_str().unwrap().to_owned();
        let q8 = temp.path().join(format!("{stored:?}-q8.gguf")).to_str().unwrap().to_owned();
        let probe = model(NAME).join("probe.safetensors").to_str().unwrap().to_owned();
        for command in [
            &["validate", &folder, "--base", &base][..],
            &["convert", &folder, "-o", &gguf, "--base", &base, "--probe", &probe],
            &["quantize", &folder, "-o", &q8, "q8_0", "--base", &base],
        ] {
            let done = ptplus(command.iter().map(|s| s.to_string()).chain(STATED.map(str::to_owned)));
            assert_eq!(exit(&done), 0, "{command:?}: {}", stderr(&done));
        }
        let done = ptplus(["hash", &folder]);
        assert_eq!(exit(&done), 0, "{}", stderr(&done));
        let batch = temp.path().join(format!("batch-{stored:?}"));
        let outer = temp.path().to_str().unwrap();
        let mut args =
            vec!["convert", "--jobs=1", "--to=gguf", &folder, "-o", batch.to_str().unwrap(), "--base", &base];
        args.extend(STATED);
        let done = ptplus(&args);
        assert_eq!(exit(&done), 0, "{outer}: {}", stderr(&done));
        assert!(batch.join("checkpoint-500.gguf").is_file());
    }
}

#[test]
fn base_weights_of_a_trained_model_must_be_the_base_s() {
    let temp = tempfile::tempdir().unwrap();
    let mut tensors = whole(in_attention);
    tensors.get_mut("model.layers.1.self_attn.o_proj.weight").unwrap().values[0] += 0.5;
    for stored in STORED {
        let folder = checkpoint_folder(temp.path(), &tensors, stored);
        let done = import(&folder, &temp.path().join("out"), Some(&base()), &STATED);
        assert_eq!(exit(&done), 4, "{stored:?}: {}", stderr(&done));
        assert!(stderr(&done).contains("o_proj"), "{}", stderr(&done));
    }
}

#[test]
fn a_trained_model_as_base_says_what_it_is() {
    let temp = tempfile::tempdir().unwrap();
    for stored in STORED {
        let folder = checkpoint_folder(temp.path(), &whole(in_attention), stored);
        let done = ptplus([
            "validate".as_ref(),
            model(NAME).join("adapter").as_os_str(),
            "--base".as_ref(),
            folder.as_os_str(),
        ]);
        assert_eq!(exit(&done), 0, "{}", stderr(&done));
        assert!(
            stderr(&done)
                .contains("has 3 tensors of an adapter among its weights, such as model.layers.0.self_attn.memory"),
            "{}",
            stderr(&done)
        );
    }
}

/// `config.json` has the sizes, and may have the conventions; a flag that says otherwise is refused.
#[test]
fn the_model_s_configuration_speaks_for_its_memories() {
    let temp = tempfile::tempdir().unwrap();
    let folder = checkpoint_folder(temp.path(), &whole(in_attention), Stored::Safetensors);
    let file = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (key, value) in [
        ("feature_map", "elu".into()),
        ("query_tap", "post_rope".into()),
        ("query_scale", 1.into()),
        ("memory_scale", 1.0.into()),
        ("memory_sharing", Value::from("per_head")),
    ] {
        config[key] = value;
    }
    std::fs::write(&file, config.to_string()).unwrap();
    let out = temp.path().join("out.gguf");
    let done =
        ptplus(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), out.as_os_str(), "--arch=llama".as_ref()]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    let done = import(&folder, &temp.path().join("other"), Some(&base()), &["--feature-map=relu"]);
    assert!(exit(&done) == 2 && stderr(&done).contains("as the config.json says"), "{}", stderr(&done));
}

/// A callback may save the memories beside the model.
#[test]
fn memories_beside_a_model_are_found() {
    let temp = tempfile::tempdir().unwrap();
    let folder =
        checkpoint_folder(temp.path(), &read_safetensors(&base().join("model.safetensors")), Stored::Safetensors);
    let done = ptplus(["inspect".as_ref(), folder.as_os_str()]);
    assert_eq!(exit(&done), 0);
    assert!(crate::common::stdout(&done).contains("base"), "{}", crate::common::stdout(&done));
    write_checkpoint(&folder.join("memories.pt"), &RawAdapter::fixture(NAME).tensors);
    let out = temp.path().join("out");
    let done = import(&folder, &out, Some(&base()), &STATED);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &RawAdapter::fixture(NAME)), 0.0);
}

/// transformers reads `pytorch_model.bin` where there are no safetensors.
#[test]
fn a_base_may_be_pytorch_checkpoints() {
    let temp = tempfile::tempdir().unwrap();
    let tensors = read_safetensors(&base().join("model.safetensors"));
    let adapter = model(NAME).join("adapter");
    for stored in [Stored::Bin, Stored::BinShards] {
        let folder = checkpoint_folder(temp.path(), &tensors, stored);
        let probe = model(NAME).join("probe.safetensors");
        let done = ptplus([
            "verify".as_ref(),
            adapter.as_os_str(),
            "--base".as_ref(),
            folder.as_os_str(),
            "--probe".as_ref(),
            probe.as_os_str(),
        ]);
        assert_eq!(exit(&done), 0, "{stored:?}: {}", stderr(&done));
        let (out, same) = (temp.path().join("base.gguf"), temp.path().join("same.gguf"));
        for (base, out) in [(&folder, &out), (&base(), &same)] {
            let done =
                ptplus(["convert".as_ref(), base.as_os_str(), "-o".as_ref(), out.as_os_str(), "--force".as_ref()]);
            assert_eq!(exit(&done), 0, "{stored:?}: {}", stderr(&done));
        }
        let digests = |file: &Path| json(["hash".as_ref(), file]).1["tensors"].clone();
        assert_eq!(digests(&out), digests(&same));
    }
    // A changed byte of a weight is noticed by its checksum, as PyTorch does.
    let folder = checkpoint_folder(temp.path(), &tensors, Stored::Bin);
    let file = folder.join("pytorch_model.bin");
    let mut bytes = std::fs::read(&file).unwrap();
    let weight = tensors["model.layers.0.mlp.up_proj.weight"].bytes();
    let at = bytes.windows(64).position(|w| w == &weight[..64]).unwrap();
    bytes[at + 1] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let done = ptplus(["convert".as_ref(), folder.as_os_str(), "-o".as_ref(), temp.path().join("b.gguf").as_os_str()]);
    assert!(exit(&done) == 3 && stderr(&done).contains("pickle-checksum"), "{}", stderr(&done));
    // A shard that is not there.
    let folder = checkpoint_folder(temp.path(), &tensors, Stored::BinShards);
    std::fs::remove_file(folder.join("pytorch_model-00001-of-00002.bin")).unwrap();
    let done = ptplus(["validate".as_ref(), adapter.as_os_str(), "--base".as_ref(), folder.as_os_str()]);
    assert!(exit(&done) == 3 && stderr(&done).contains("00001-of-00002.bin"), "{}", stderr(&done));
}

#[test]
fn objects_in_place_of_tensors_are_refused_with_the_lines_that_help() {
    let objects = crate::common::fixtures().join("pickle/objects");
    for (file, line) in [
        ("a-module-2.pt", "torch.save(checkpoint.state_dict(), \"state_dict.pt\")"),
        ("a-module-inside-4.pt", "torch.save(checkpoint[\"model\"].state_dict(), \"state_dict.pt\")"),
        (
            "arrays-2.pt",
            "torch.save({k: torch.as_tensor(v) for k, v in checkpoint[\"model\"].items()}, \"state_dict.pt\")",
        ),
        // Some parts are plain, and without the others the adapter would be another.
        (
            "partly-2.pt",
            "torch.save({k: torch.as_tensor(v) for k, v in checkpoint[\"model\"].items()}, \"state_dict.pt\")",
        ),
        ("partly-inside-4.pt", "torch.save(vars(checkpoint[\"more\"]), \"state_dict.pt\")"),
        ("nothing-else-4.pt", "torch.save(vars(checkpoint), \"state_dict.pt\")"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let done = import(&objects.join(file), &out.path().join("out"), Some(&base()), &[]);
        assert_eq!(exit(&done), 7, "{file}: {}", stderr(&done));
        for text in [line, &format!("torch.load(\"{file}\"")] {
            assert!(stderr(&done).contains(text), "{file}: {text}: {}", stderr(&done));
        }
        let done = ptplus(["inspect".as_ref(), objects.join(file).as_os_str()]);
        assert!(
            (exit(&done) == 0 && (stderr(&done) + &crate::common::stdout(&done)).contains("not read"))
                || (exit(&done) == 7 && file.starts_with("partly") && stderr(&done).contains(line)),
            "{file}"
        );
    }
    let done = ptplus(["inspect".as_ref(), objects.join("beside-namespace-2.pt").as_os_str()]);
    assert!(
        exit(&done) == 0 && (crate::common::stdout(&done) + &stderr(&done)).contains("argparse.Namespace"),
        "{}",
        crate::common::stdout(&done)
    );
}

#[test]
fn a_foreign_peft_type_or_none_is_a_checkpoint_like_any_other() {
    let temp = tempfile::tempdir().unwrap();
    let reference = RawAdapter::fixture(NAME);
    for kind in [None, Some("PREFIX_MEMORY_TUNING"), Some("LORA"), Some("PREFIX_TUNING")] {
        let mut adapter = reference.clone();
        let config = adapter.config.as_object_mut().unwrap();
        match kind {
            Some(kind) => drop(config.insert("peft_type".into(), kind.into())),
            None => drop(config.remove("peft_type")),
        }
        if kind == Some("PREFIX_TUNING") {
            // PEFT counts the heads of keys, and virtual tokens.
            config.extend([("num_attention_heads".into(), 1.into()), ("num_virtual_tokens".into(), 8.into())]);
        }
        let (folder, out) = (temp.path().join("in"), temp.path().join("out"));
        adapter.write(&folder);
        let done = import(&folder, &out, Some(&base()), &["--force"]);
        assert_eq!(exit(&done), 0, "{kind:?}: {}", stderr(&done));
        let found = RawAdapter::read(&out);
        assert_eq!(distance(&found, &reference), 0.0);
        assert_eq!(found.config["peft_type"], "PREFIX_TUNING_PLUS", "{kind:?}");
        assert_eq!(found.config["num_attention_heads"], reference.config["num_attention_heads"], "{kind:?}");
    }
    // What is something else by its tensors, too, is called that.
    for (kind, tensor) in [("IA3", "self_attn.k_proj.ia3_l"), ("LN_TUNING", "input_layernorm.ln_tuning_layers.weight")]
    {
        let mut other = reference.clone();
        other.config["peft_type"] = kind.into();
        other.tensors = other.tensors.into_iter().map(|(n, t)| (n.replace("memory", tensor), t)).collect();
        let folder = temp.path().join("other");
        other.write(&folder);
        let done = import(&folder, &temp.path().join("x"), Some(&base()), &[]);
        let expected = format!("peft_type \"{kind}\"");
        assert!(exit(&done) == 7 && stderr(&done).contains(&expected), "{}", stderr(&done));
    }
}

/// PEFT keeps a module that it trains twice; the copy is the adapter's.
#[test]
fn of_a_module_that_peft_saved_twice_the_trained_copy_counts() {
    let temp = tempfile::tempdir().unwrap();
    let reference = RawAdapter::fixture(NAME);
    let mut adapter = reference.clone();
    adapter.tensors.clear();
    for (name, t) in &reference.tensors {
        let inside = |copy: &str| {
            format!("base_model.model.model.{}", name.replace("memory", &format!("self_attn.prefix.{copy}memory")))
        };
        adapter.tensors.insert(inside("modules_to_save.default."), t.clone());
        let zeros = Tensor { shape: t.shape.clone(), values: vec![0.0; t.values.len()] };
        adapter.tensors.insert(inside("original_module."), zeros);
    }
    adapter.config["modules_to_save"] = vec!["prefix"].into();
    let (folder, out) = (temp.path().join("in"), temp.path().join("out"));
    adapter.write(&folder);
    let done = import(&folder, &out, Some(&base()), &[]);
    assert_eq!(exit(&done), 0, "{}", stderr(&done));
    assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0);
    // A module of the base is none of the adapter's.
    adapter.config["modules_to_save"] = vec!["prefix", "lm_head"].into();
    adapter.write(&folder);
    let done = import(&folder, &out, Some(&base()), &["--force"]);
    assert!(exit(&done) == 7 && stderr(&done).contains("lm_head"), "{}", stderr(&done));
}

/// A layout file may leave something out, or state a constant, and say nothing of tensors: the rules know the rest.
#[test]
fn a_layout_file_may_say_one_thing_alone() {
    let temp = tempfile::tempdir().unwrap();
    let reference = RawAdapter::fixture(NAME);
    let mut adapter = reference.clone();
    for (name, t) in &reference.tensors {
        adapter.tensors.insert(format!("state_dict_ema.{name}"), t.clone());
    }
    let tap = adapter.config.as_object_mut().unwrap().remove("query_tap").unwrap();
    let (folder, out, layout) = (temp.path().join("in"), temp.path().join("out"), temp.path().join("layout.toml"));
    adapter.write(&folder);
    let ignore = "[[ignore]]\nname = 'state_dict_ema\\..*'\nreason = \"averages\"\n";
    let constants = format!("[constants]\nquery_tap = {tap}\n");
    let run = |text: &str, more: &[&str]| {
        std::fs::write(&layout, text).unwrap();
        import(&folder, &out, Some(&base()), &[&["--force", "--layout", layout.to_str().unwrap()], more].concat())
    };
    assert_eq!(exit(&run(ignore, &[])), 7);
    assert_eq!(exit(&run(&constants, &[])), 4, "the averages are second memories");
    for done in [run(ignore, &["--query-tap=post_rope"]), run(&(constants.clone() + ignore), &[])] {
        assert_eq!(exit(&done), 0, "{}", stderr(&done));
        assert_eq!(distance(&RawAdapter::read(&out), &reference), 0.0);
    }
    assert_eq!(exit(&run("", &[])), 2);
}

#[test]
fn of_two_copies_a_hint_says_how_to_choose_one() {
    let temp = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let source = RawAdapter::fixture("llama-gqa");
    for (kept, average) in [("model", "ema"), ("state_dict", "model_ema"), ("net", "ema_model.module")] {
        let file = temp.path().join("both.safetensors");
        let tensors = source.tensors.iter().flat_map(|(name, t)| {
            let averaged = Tensor { values: t.values.iter().map(|v| v * 0.5).collect(), ..t.clone() };
            [(format!("{kept}.{name}"), t.clone()), (format!("{average}.{name}"), averaged)]
        });
        crate::common::write_safetensors(&file, &tensors.collect());
        let args = |more: &[&str]| {
            let mut args =
                vec!["validate".to_owned(), text(&file), "--base".into(), text(&model("llama-gqa").join("base"))];
            for (flag, key) in [("--feature-map", "feature_map"), ("--query-tap", "query_tap")] {
                args.extend([flag.to_owned(), source.config[key].as_str().unwrap().to_owned()]);
            }
            for (flag, key) in [("--query-scale", "query_scale"), ("--memory-scale", "memory_scale")] {
                args.extend([flag.to_owned(), source.config[key].to_string()]);
            }
            args.extend(more.iter().map(|s| (*s).to_owned()));
            args
        };
        let out = ptplus(args(&[]));
        let said = format!("{}{}", stderr(&out), crate::common::stdout(&out));
        let pattern = format!("{}\\..*", average.replace('.', "\\."));
        assert!(exit(&out) == 4 && said.contains(&format!("`name = '{pattern}'`")), "{said}");
        let layout = temp.path().join("layout.toml");
        std::fs::write(&layout, format!("[[ignore]]\nname = '{pattern}'\nreason = 'an average'\n")).unwrap();
        let out = ptplus(args(&["--layout", &text(&layout)]));
        assert_eq!(exit(&out), 0, "{}{}", stderr(&out), crate::common::stdout(&out));
    }
}
