//! Virtual tokens as the state of a sequence, loaded by the real llama.cpp.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ptplus::base::BaseModel;
use ptplus::format::llama_state::{Cache, Version};
use ptplus::generate::{Candle, Engine};
use ptplus::llama_cpp::engine::LlamaCpp;
use ptplus::llama_cpp::{CacheType, Context, ContextOptions, FlashAttention, Model, Token};
use ptplus::pipeline::read_adapter;
use ptplus::runner::{Device, Lane, StreamOptions, sequence_state, stream};
use ptplus::tensor::DType;
use ptplus::verify::probe::Probe;

use crate::common::{exit, fixtures, json, ptplus, stderr};
use crate::contexts::{Keep, PLAIN, difference, ids, logits};
use crate::programs::{as_args, compile, ids_of, read, run, said};

/// With the base, and how many tokens behind the virtual ones llama.cpp computes as PyTorch does: it ignores mistral's window.
const CASES: [(&str, &str, usize); 8] = [
    ("gemma2-prefix", "models/gemma2", 14),
    ("gemma3-prefix", "models/gemma3", 14),
    ("gemma3-prompt", "models/gemma3", 14),
    ("llama-prefix", "lora/llama-dora", 14),
    ("llama-prompt", "lora/llama-dora", 14),
    ("mistral-prefix", "models/mistral-swa", 3),
    ("qwen2-prefix-projected", "models/qwen2", 14),
    ("qwen3-ptuning", "lora/qwen3-all-linear", 14),
];
const MAX_ABS: f64 = 5e-4;

fn adapter(name: &str) -> PathBuf {
    fixtures().join("prefix").join(name).join("adapter")
}

fn probe(name: &str) -> PathBuf {
    fixtures().join("prefix").join(name).join("probe.safetensors")
}

fn base(base: &str) -> PathBuf {
    fixtures().join(base).join("base")
}

fn state(name: &str, base: &BaseModel, cache: &Cache) -> Vec<u8> {
    let read = read_adapter(&adapter(name), Some(base)).unwrap();
    sequence_state(read.adapter().as_prefix().unwrap(), base, cache, &Device::cpu()).unwrap()
}

fn loaded(base: &Path, folder: &Path) -> Rc<Model> {
    let file = folder.join("base.gguf");
    let out = ptplus(["convert".as_ref(), base.as_os_str(), "-o".as_ref(), file.as_os_str(), "--force".as_ref()]);
    assert_eq!(exit(&out), 0, "{}", stderr(&out));
    Rc::new(Model::load(&file).unwrap())
}

/// Logits of the tokens behind the state.
fn behind(context: &mut Context, state: &[u8], folder: &Path, ids: &[u32]) -> Option<Vec<Vec<f32>>> {
    let file = folder.join("state.bin");
    std::fs::write(&file, state).unwrap();
    context.clear();
    let n = context.restore(&file, 1).ok()?;
    let tokens: Vec<Token> =
        (n..).zip(ids).map(|(position, &id)| Token { id, position, sequence: 1, logits: true }).collect();
    context.decode(&tokens).ok()?;
    Some((0..ids.len()).map(|i| context.logits(i).unwrap().to_vec()).collect())
}

#[test]
fn every_case_agrees_with_pytorch_and_candle() {
    // llama.cpp's GELU is a table, for which a Gemma is off alone.
    for (name, base_name, _) in CASES.into_iter().filter(|(name, ..)| !name.starts_with("gemma")) {
        let args = [OsStr::new("verify").to_owned(), adapter(name).into(), "--base".into(), base(base_name).into()];
        let rest = ["--probe".into(), probe(name).into(), "--engine".into(), "llama.cpp".into()];
        let (code, report) = json(args.into_iter().chain(rest));
        assert_eq!(code, 0, "{name}: {report}");
        for engine in ["candle", "llama.cpp", "llama.cpp_beside_candle"] {
            let found = report["engines"]["metrics"][engine]["max_abs"].as_f64().unwrap();
            assert!(found <= MAX_ABS, "{name}, {engine}: {found}");
        }
    }
}

/// The rows of a probe and their logits, at the first `n` positions.
fn expected(name: &str, n: usize) -> Vec<(Vec<u32>, Vec<Vec<f32>>)> {
    let probe = Probe::open(&probe(name)).unwrap();
    let row = |(row, ids): (usize, &Vec<u32>)| (ids[..n].to_vec(), (0..n).map(|p| probe.logits(row, p)).collect());
    probe.input_ids.iter().enumerate().map(row).collect()
}

/// A kind of context, and the cache that its state is for.
struct Kind {
    context: ContextOptions,
    cache: Cache,
}

fn kinds() -> [Kind; 5] {
    [
        (CacheType::F32, DType::F32, FlashAttention::Off),
        (CacheType::F32, DType::F32, FlashAttention::On),
        (CacheType::F16, DType::F16, FlashAttention::Off),
        (CacheType::F16, DType::F16, FlashAttention::On),
        (CacheType::Q8_0, DType::Q8_0, FlashAttention::On),
    ]
    .map(|(cache_type, dtype, flash_attention)| Kind {
        context: ContextOptions { cache_type, flash_attention, ..PLAIN },
        cache: Cache {
            flash_attention: flash_attention == FlashAttention::On,
            k_type: dtype,
            v_type: dtype,
            ..Cache::default()
        },
    })
}

/// How many choices of ordinary tokens the plain base is asked behind.
const CHOICES: u32 = 64;

/// Rows behind `n` ordinary tokens, for each of many choices of these.
fn behind_ordinary_tokens(n: usize, rows: &[Vec<u32>], vocab_size: usize) -> Vec<Vec<u32>> {
    let choices = (0..CHOICES).map(|choice| ids(choice + 50, n, vocab_size));
    choices.flat_map(|front| rows.iter().map(move |row| [&front[..], row].concat())).collect()
}

/// What PyTorch would say of these rows: candle's logits of the plain base.
fn exactly(base: &BaseModel, rows: &[Vec<u32>]) -> Vec<Vec<Vec<f32>>> {
    let mut all = Keep(Vec::new());
    let options = StreamOptions { positions: None, device: Device::cpu() };
    stream(base, rows, &[Lane::default()], &options, &mut all).unwrap();
    all.0.chunks(rows[0].len()).map(<[_]>::to_vec).collect()
}

/// Rounding costs what it costs any text: no more than the plain base is off in the same kind of context, at the same tokens, behind as
/// many ordinary ones. Which ones these are changes that figure by three, so it is taken of many choices.
#[test]
fn caches_of_every_kind_are_as_exact_as_the_base_is_in_them() {
    let temp = tempfile::tempdir().unwrap();
    for (name, base_name, n) in CASES {
        let opened = BaseModel::open(&base(base_name)).unwrap();
        let model = loaded(&base(base_name), temp.path());
        let expected = expected(name, n);
        let rows: Vec<Vec<u32>> = expected.iter().map(|(row, _)| row.clone()).collect();
        let n_virtual = read_adapter(&adapter(name), Some(&opened)).unwrap().adapter().as_prefix().unwrap().n_tokens();
        let ordinary = behind_ordinary_tokens(n_virtual, &rows, model.vocab_size());
        let exact = exactly(&opened, &ordinary);
        for kind in kinds() {
            let cache = kind.cache;
            // Rows of the smallest Gemmas are no whole blocks.
            let n_columns = opened.config.head_dim * opened.config.n_kv_heads;
            if cache.k_type.is_quantized() && !n_columns.is_multiple_of(32) {
                continue;
            }
            let mut context = Context::new(&model, &[], &kind.context).unwrap();
            let bytes = state(name, &opened, &cache);
            let mut off = |(row, logits): &(Vec<u32>, Vec<Vec<f32>>)| {
                difference(&behind(&mut context, &bytes, temp.path(), row).unwrap(), logits)
            };
            let found = expected.iter().map(&mut off).fold(0.0, f32::max);
            let mut plain = Context::new(&model, &[], &kind.context).unwrap();
            let of_base: Vec<f32> = (ordinary.iter().zip(&exact))
                .map(|(row, exact)| difference(&logits(&mut plain, row, 128)[n_virtual..], &exact[n_virtual..]))
                .collect();
            let of_base: Vec<f32> =
                of_base.chunks(rows.len()).map(|rows| rows.iter().copied().fold(0.0, f32::max)).collect();
            let (least, most) = of_base.iter().fold((f32::MAX, 0.0_f32), |(l, m), d| (l.min(*d), m.max(*d)));
            let what = format!("{name}, {}, flash attention {}", cache.k_type, cache.flash_attention);
            println!("{what}: {found:.2e}; the plain base behind ordinary tokens {least:.2e} to {most:.2e}");
            let is_exact = cache.k_type == DType::F32 && !cache.flash_attention;
            assert!(!is_exact || name.starts_with("gemma") || most < MAX_ABS as f32, "{what}: {most}");
            let limit = if is_exact { most.max(MAX_ABS as f32) } else { most };
            assert!(found <= limit, "{what}: {found}, limit {limit}");
            // Of another kind or version: refused, in words.
            for other in [
                Cache { flash_attention: !cache.flash_attention, k_type: DType::F16, v_type: DType::F16, ..cache },
                Cache { k_type: DType::BF16, ..cache },
                Cache { n_streams: 2, ..cache },
                Cache { version: Version::V3, ..cache },
            ] {
                assert!(
                    behind(&mut context, &state(name, &opened, &other), temp.path(), &rows[0]).is_none(),
                    "{other:?}"
                );
            }
        }
    }
}

/// Each is a mistake that leaves a file which llama.cpp loads, or one that it refuses.
#[test]
fn wrong_states_are_refused_or_far_off() {
    let temp = tempfile::tempdir().unwrap();
    let (name, base_name, n) = ("llama-prefix", "lora/llama-dora", 14);
    let opened = BaseModel::open(&base(base_name)).unwrap();
    let (c, p) = (&opened.config, 5);
    let model = loaded(&base(base_name), temp.path());
    let (ids, expected) = expected(name, n).remove(0);
    for kind in &kinds()[..4] {
        let Cache { k_type, flash_attention, .. } = kind.cache;
        let right = state(name, &opened, &kind.cache);
        assert!(right == state(name, &opened, &kind.cache), "written twice, it is the same");
        let (width, e) = (c.n_kv_heads * c.head_dim, k_type.block_bytes());
        let (head, cells) = (12 + 4 * p + 8, 12 * p);
        let layers = head + cells + 16;
        let layer_len = 12 + e * width * p;
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(&right, head - 4), word(&right, layers - 12)), (p as u32, c.n_layers as u32));
        assert_eq!(right.len(), layers + 2 * c.n_layers * layer_len);
        // The numbers of some layers' keys or values, in another order.
        let rearranged = |range: std::ops::Range<usize>, order: &dyn Fn(usize) -> usize| {
            let mut wrong = right.clone();
            for layer in range {
                let at = layers + layer * layer_len + 12;
                for i in 0..width * p {
                    let from = at + e * order(i);
                    wrong[at + e * i..][..e].copy_from_slice(&right[from..from + e]);
                }
            }
            wrong
        };
        let d = c.head_dim;
        let in_hugging_face_order = |i: usize| i / d * d + (i % d) % (d / 2) * 2 + (i % d) / (d / 2);
        let transposed = |i: usize| if flash_attention { i % width * p + i / width } else { i % p * width + i / p };
        let with_word = |at: usize, n: u32| [&right[..at], &n.to_le_bytes(), &right[at + 4..]].concat();
        let mut shifted = right.clone();
        for i in 0..p {
            shifted[head + 12 * i..][..4].copy_from_slice(&(i as u32 + 1).to_le_bytes());
        }
        let mut context = Context::new(&model, &[], &kind.context).unwrap();
        let mut off =
            |bytes: &[u8]| behind(&mut context, bytes, temp.path(), &ids).map(|found| difference(&found, &expected));
        // The most that the plain base is off by in this kind is below it, see the test above.
        assert!(off(&right).unwrap() < 1e-2);
        let first_keys = in_hugging_face_order;
        let wrong = [
            ("keys in Hugging Face order", rearranged(0..c.n_layers, &in_hugging_face_order)),
            ("keys of the last layer in Hugging Face order", rearranged(c.n_layers - 1..c.n_layers, &first_keys)),
            ("values transposed or not", rearranged(c.n_layers..2 * c.n_layers, &transposed)),
            ("positions off by one", shifted),
        ];
        for (what, bytes) in wrong {
            // Where a cell is says which queries see it: a position that is taken twice is refused, or seen too late.
            let found = off(&bytes);
            println!("{what}, {k_type}, flash attention {flash_attention}: {found:?}");
            assert!(found.is_none_or(|d| d > 5e-2), "{what}, {k_type}: {found:?}");
        }
        // With the layer's numbers in it, since llama.cpp ends the program where a file is shorter than it says.
        let without_a_layer = with_word(layers - 12, c.n_layers as u32 - 1);
        for (what, bytes) in [
            ("one layer missing", without_a_layer),
            ("keys of another type", with_word(layers, DType::BF16.ggml_id().unwrap())),
            ("values of another type", with_word(layers + c.n_layers * layer_len, DType::BF16.ggml_id().unwrap())),
            ("of another version", with_word(4, 3)),
            ("of another version", with_word(4, 5)),
        ] {
            assert!(off(&bytes).is_none(), "{what}, {k_type}");
        }
    }
}

/// A base with windows of 6 behind nine virtual tokens: one layer that sees all of them, two that see the last.
#[test]
fn wrong_states_of_a_base_with_windows_are_refused_or_far_off() {
    let temp = tempfile::tempdir().unwrap();
    let (name, base_name, n, p, window) = ("gemma3-prefix", "models/gemma3", 14, 9, 6);
    let opened = BaseModel::open(&base(base_name)).unwrap();
    let model = loaded(&base(base_name), temp.path());
    let (ids, expected) = expected(name, n).remove(0);
    let Kind { context, cache } = &kinds()[0];
    let right = state(name, &opened, cache);
    let row = 4 * opened.config.n_kv_heads * opened.config.head_dim;
    let cells = |n_cells: usize, n_layers: usize| 8 + 12 * n_cells + 16 + 2 * n_layers * (12 + row * n_cells);
    let (head, full, windowed) = (12 + 4 * p, cells(p, 1), cells(window, 2));
    assert_eq!(right.len(), head + full + windowed);
    let (start, full, windowed) = (&right[..head], &right[head..head + full], &right[head + full..]);
    // All positions one too early in the cache of the layers with a window.
    let mut early = windowed.to_vec();
    for i in 0..window {
        early[8 + 12 * i..][..4].copy_from_slice(&((p - window + i - 1) as u32).to_le_bytes());
    }
    // Another GGUF file's keys, which are not multiplied.
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(base(base_name).join("config.json")).unwrap()).unwrap();
    config["query_pre_attn_scalar"] = opened.config.head_dim.into();
    std::fs::write(temp.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(base(base_name).join("model.safetensors"), temp.path().join("model.safetensors")).unwrap();
    let unmultiplied = state(name, &BaseModel::open(temp.path()).unwrap(), cache);
    let mut context = Context::new(&model, &[], context).unwrap();
    let mut off =
        |bytes: &[u8]| behind(&mut context, bytes, temp.path(), &ids).map(|found| difference(&found, &expected));
    // llama.cpp's GELU is a table.
    assert!(off(&right).unwrap() < 5e-3);
    for (what, bytes, is_refused) in [
        ("the caches in the other order", [start, windowed, full].concat(), true),
        ("positions in the window off by one", [start, full, &early].concat(), false),
        ("keys as the folder has them", unmultiplied, false),
    ] {
        let found = off(&bytes);
        println!("{what}: {found:?}");
        // llama.cpp may refuse positions that do not go on.
        assert!(found.is_none_or(|d| !is_refused && d > 1e-2), "{what}: {found:?}");
    }
}

#[test]
fn virtual_tokens_are_switched_on_and_off() {
    let base_path = base("lora/llama-dora");
    let opened = BaseModel::open(&base_path).unwrap();
    let adapters: Vec<_> =
        ["llama-prefix", "llama-prompt"].iter().map(|n| read_adapter(&adapter(n), Some(&opened)).unwrap()).collect();
    let mut llama = LlamaCpp::open(&opened, &[&adapters[0], &adapters[1]], 64, 1).unwrap();
    let mut candle = Candle::new(&opened, adapters.clone(), &Device::cpu(), 64).unwrap();
    let tokens = ids(5, 20, opened.config.vocab_size);
    for on in [vec![], vec![(0, 1.0)], vec![(1, 1.0)], vec![], vec![(0, 1.0)]] {
        llama.switch_adapters(&on).unwrap();
        candle.switch_adapters(&on).unwrap();
        // In one piece and in two.
        let found = llama.append(&tokens).unwrap();
        candle.append(&tokens[..7]).unwrap();
        let expected = candle.append(&tokens[7..]).unwrap();
        assert!(difference(&[found], &[expected]) < 2e-2, "{on:?}");
        llama.clear().unwrap();
        candle.clear().unwrap();
    }
    for on in [vec![(0, 0.5)], vec![(0, 1.0), (1, 1.0)]] {
        assert!(llama.switch_adapters(&on).is_err() && candle.switch_adapters(&on).is_err(), "{on:?}");
    }
}

/// The lines of the page, in a program that reads MODEL OUT TOKEN... and writes the logits of every token.
fn program_of_the_page(change: &dyn Fn(&str) -> String) -> String {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/howto/virtual-tokens.md")).unwrap();
    let lines = page.split("```c\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(lines.lines().count() <= 16, "about ten lines");
    format!(
        "#include <stdio.h>\n#include <stdlib.h>\n#include \"llama.h\"\n\
         int main(int argc, char ** argv) {{\n\
         llama_backend_init();\n\
         struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());\n\
         struct llama_batch batch = llama_batch_init(argc - 3, 0, 1);\n\
         for (int i = 0; i < argc - 3; i++) {{\n\
             batch.token[i] = atoi(argv[3 + i]);\n\
             batch.n_seq_id[i] = 1;\n\
             batch.seq_id[i][0] = 0;\n\
             batch.logits[i] = 1;\n\
         }}\n\
         batch.n_tokens = argc - 3;\n\
         {}\n\
         const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));\n\
         FILE * out = fopen(argv[2], \"wb\");\n\
         for (int i = 0; i < batch.n_tokens; i++) fwrite(llama_get_logits_ith(ctx, i), sizeof(float), n_vocab, out);\n\
         fclose(out);\n\
         return 0;\n}}\n",
        change(lines)
    )
}

/// As it stands there, and for a context with an F32 cache and without flash attention, where the figure is an exact one.
#[test]
fn the_c_code_of_the_page_computes_what_pytorch_computes() {
    let temp = tempfile::tempdir().unwrap();
    let fused = "params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;";
    let exact =
        "params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; params.type_k = params.type_v = GGML_TYPE_F32;";
    let exact_flags = ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"];
    for (what, setting, flags, limit) in
        [("as-it-stands", fused, &[][..], 1e-2), ("exact", exact, &exact_flags, MAX_ABS as f32)]
    {
        let text = program_of_the_page(&|lines| {
            assert!(lines.contains(fused));
            lines.replace(fused, setting).replace("\"prefix.bin\"", "getenv(\"STATE\")")
        });
        let (source, program) = (temp.path().join(format!("{what}.c")), temp.path().join(what));
        std::fs::write(&source, text).unwrap();
        compile(source.to_str().unwrap(), &[], &program);
        for (name, base_name, n) in CASES {
            let (base_file, file, found) =
                (temp.path().join("base.gguf"), temp.path().join("state.bin"), temp.path().join("found"));
            loaded(&base(base_name), temp.path());
            let state = |more: &[&str]| {
                let (adapter, base) = (adapter(name), base(base_name));
                let args =
                    ["convert".as_ref(), adapter.as_os_str(), "--base".as_ref(), base.as_os_str(), "--force".as_ref()];
                let rest = ["-o".as_ref(), file.as_os_str(), "--to".as_ref(), "llama-state".as_ref()];
                let out = ptplus(args.into_iter().chain(rest).chain(flags.iter().chain(more).map(AsRef::as_ref)));
                assert_eq!(exit(&out), 0, "{}", stderr(&out));
            };
            let (ids, expected) = expected(name, n).remove(0);
            let ids = ids_of(&ids);
            let args = [&[base_file.as_os_str(), found.as_os_str()], &as_args(&ids)[..]].concat();
            state(&[]);
            let out = run(&program, &args, &[("STATE", file.as_os_str())]);
            assert!(out.status.success(), "{name}: {}", said(&out));
            let rows: Vec<Vec<f32>> = read(&found).chunks(expected[0].len()).map(<[f32]>::to_vec).collect();
            let worst = difference(&rows, &expected);
            println!("{name}, {what}: max |dlogit| {worst:.2e}");
            let limit = if name.starts_with("gemma") { 1e-2 } else { limit };
            assert!(worst <= limit, "{name}, {what}: {worst}");
            // Of another version: refused, and the log names it.
            state(&["--state-version", "3"]);
            let out = run(&program, &args, &[("STATE", file.as_os_str())]);
            assert_eq!(out.status.code(), Some(1), "{}", said(&out));
            assert!(
                said(&out).contains("unknown (magic, version) for sequence state file: 67677371, 00000003"),
                "{}",
                said(&out)
            );
        }
    }
}
