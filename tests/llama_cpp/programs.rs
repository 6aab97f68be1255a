//! The graft in C programs, compiled as a user would: linked in, and in front of one that knows nothing of it.

// Static builds cannot be grafted from outside.
#![cfg_attr(not(feature = "llama-cpp-dynamic"), allow(unused_imports))]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ptplus::verify::probe::Probe;

use crate::common::{MODELS, RawAdapter, Tensor, base_gguf, model};
use crate::contexts::converted;
use crate::refusals::File;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn compiler() -> Command {
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.current_dir(ROOT).args(["-std=gnu11", "-O2"]).args(WARNINGS);
    cc.args(["-Iinclude", "-I", env!("PTPLUS_LLAMA_INCLUDE")]);
    cc
}

/// How a program has the graft in it.
const LINKED: &[&str] = if cfg!(feature = "llama-cpp-dynamic") {
    &["-DPTPLUS_LINKED", "csrc/ptplus_graft.c"]
} else {
    &["-DPTPLUS_STATIC", "-Wl,--wrap=ggml_mul_mat", "csrc/ptplus_graft.c"]
};

pub fn compile(source: &str, more: &[&str], output: &Path) {
    let libraries = ["-lllama", "-lggml", "-lggml-cpu", "-lggml-base"];
    let mut cc = compiler();
    cc.arg(source).args(more).arg("-o").arg(output);
    if !more.contains(&"-shared") {
        cc.arg("-L").arg(env!("PTPLUS_LLAMA_LIB"));
        // Static libraries need each other in no fixed order.
        cc.arg("-Wl,--start-group").args(libraries).arg("-Wl,--end-group");
        cc.args(["-lstdc++", "-lm"]);
    }
    cc.args(["-ldl", "-lpthread"]);
    let out = cc.output().expect("a C compiler");
    assert!(out.status.success(), "{cc:?}: {}", String::from_utf8_lossy(&out.stderr));
}

pub type Env<'a> = &'a [(&'a str, &'a OsStr)];

fn command(program: &Path, args: &[&OsStr], env: Env<'_>) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("LD_LIBRARY_PATH", env!("PTPLUS_LLAMA_LIB")).envs(env.iter().copied());
    command
}

pub fn run(program: &Path, args: &[&OsStr], env: Env<'_>) -> Output {
    command(program, args, env).output().unwrap()
}

pub fn said(out: &Output) -> String {
    format!("{:?} {}{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Rows of logits `[T, V]` that a program wrote.
pub fn read(path: &Path) -> Vec<f32> {
    std::fs::read(path).unwrap().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
}

#[test]
fn the_header_is_one_for_c_plus_plus_too() {
    let temp = tempfile::tempdir().unwrap();
    let source = temp.path().join("include.cpp");
    std::fs::write(&source, "#include \"ptplus.h\"\nint main() { return ptplus_supports(\"none\"); }\n").unwrap();
    let mut cxx = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    cxx.current_dir(ROOT).args(["-std=c++17", "-c", "-Iinclude"]).args(WARNINGS);
    let out = cxx.arg(&source).arg("-o").arg(temp.path().join("o")).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
}

#[test]
fn the_c_file_is_small_and_has_no_warnings() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("csrc/ptplus_graft.c")).unwrap();
    assert!(text.lines().count() <= 700, "{} lines", text.lines().count());
    assert!(text.lines().all(|line| line.chars().count() <= 160));
    let temp = tempfile::tempdir().unwrap();
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    cc.current_dir(ROOT).args(["-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Iinclude"]);
    let out = cc.args(WARNINGS).arg("csrc/ptplus_graft.c").arg("-o").arg(temp.path().join("g.so")).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
}

/// Every form of the kernel beside sums in double precision, with and without sanitizers.
#[cfg(feature = "llama-cpp-dynamic")]
#[test]
fn the_kernel_computes_what_double_precision_does_in_every_batch() {
    let temp = tempfile::tempdir().unwrap();
    let kernel = temp.path().join("kernel");
    for sanitizers in [&[][..], &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]] {
        let linked = ["-DPTPLUS_LINKED", "-Wl,--no-as-needed"];
        compile("tests/llama_c/kernel.c", &[&linked, sanitizers].concat(), &kernel);
        let out = run(&kernel, &[], &[]);
        assert!(out.status.success(), "{}", said(&out));
    }
}

pub fn ids_of(row: &[u32]) -> Vec<String> {
    row.iter().map(u32::to_string).collect()
}

pub fn as_args(ids: &[String]) -> Vec<&OsStr> {
    ids.iter().map(AsRef::as_ref).collect()
}

/// The positions of a probe that llama.cpp computes: it ignores the window of mistral-swa.
fn compared(name: &str, probe: &Probe) -> Vec<(usize, usize)> {
    let all = probe.positions.iter().copied().enumerate();
    all.filter(|(_, position)| name != "mistral-swa" || *position < 8).collect()
}

#[test]
fn a_c_program_with_the_graft_in_it_agrees_with_pytorch() {
    let temp = tempfile::tempdir().unwrap();
    let (attached, plain) = (temp.path().join("attached"), temp.path().join("plain"));
    compile("tests/llama_c/attached_host.c", LINKED, &attached);
    compile("tests/llama_c/host.c", &[], &plain);
    for name in MODELS {
        let base = base_gguf(name);
        let adapter = converted(&model(name).join("adapter"), &base, temp.path());
        let probe = Probe::open(&model(name).join("probe.safetensors")).unwrap();
        let (found, stock) = (temp.path().join("found"), temp.path().join("stock"));
        for (row, ids) in probe.input_ids.iter().enumerate() {
            let ids = ids_of(ids);
            let args = [&[base.as_os_str(), adapter.as_os_str(), found.as_os_str()], &as_args(&ids)[..]].concat();
            let out = run(&attached, &args, &[]);
            assert!(out.status.success(), "{name}: {}", said(&out));
            let out = run(&plain, &[&[base.as_os_str(), stock.as_os_str()], &as_args(&ids)[..]].concat(), &[]);
            assert!(out.status.success(), "{name}: {}", said(&out));
            let (found, stock) = (read(&found), read(&stock));
            let [on, off, again] = [0, 1, 2].map(|i| &found[i * stock.len()..][..stock.len()]);
            assert!(off == stock && on == again, "{name}: switching off gives stock, and on the same again");
            let compared = compared(name, &probe);
            for (p, position) in &compared {
                let found = &on[position * probe.vocab_size..][..probe.vocab_size];
                let worst = worst(&probe.logits(row, *p), found);
                assert!(worst <= 5e-4, "{name}, row {row}, position {position}: {worst}");
            }
            assert!(!compared.is_empty(), "{name}");
        }
    }
    let adapter = converted(&model("qwen2").join("adapter"), &base_gguf("qwen2"), temp.path());
    let base = base_gguf("qwen3");
    let out = run(&attached, &[base.as_os_str(), adapter.as_os_str(), "/dev/null".as_ref(), "1".as_ref()], &[]);
    assert_eq!(out.status.code(), Some(4), "{}", said(&out));
    assert!(said(&out).contains("general.architecture: expected qwen3"), "{}", said(&out));
}

/// A program that knows nothing of adapters, the graft to start it with, and a fixture.
#[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
struct World {
    temp: tempfile::TempDir,
    host: PathBuf,
    library: PathBuf,
    base: PathBuf,
    adapter: PathBuf,
}

#[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
impl World {
    fn of(name: &str) -> World {
        let temp = tempfile::tempdir().unwrap();
        let (host, library) = (temp.path().join("host"), temp.path().join("libptplus_graft.so"));
        compile("tests/llama_c/host.c", &[], &host);
        std::fs::write(&library, ptplus::graft::library().expect("a C compiler")).unwrap();
        let base = base_gguf(name);
        let adapter = converted(&model(name).join("adapter"), &base, temp.path());
        World { temp, host, library, base, adapter }
    }

    fn grafted<'a>(&'a self, more: Env<'a>) -> Vec<(&'a str, &'a OsStr)> {
        let own = [("LD_PRELOAD", self.library.as_os_str()), ("PTPLUS_ADAPTER_1", self.adapter.as_os_str())];
        [&own[..], more].concat()
    }

    fn logits_of(&self, base: &Path, ids: &[&OsStr], env: Env<'_>) -> Vec<f32> {
        let out_file = self.temp.path().join("logits");
        let out = run(&self.host, &[&[base.as_os_str(), out_file.as_os_str()], ids].concat(), env);
        assert!(out.status.success(), "{env:?} {}", said(&out));
        read(&out_file)
    }

    fn logits(&self, env: Env<'_>) -> Vec<f32> {
        self.logits_of(&self.base, &SOME_IDS.map(OsStr::new), env)
    }

    /// Ends with `code` and one line that holds `part`, before any logits.
    fn assert_ends(&self, env: Env<'_>, code: i32, part: &str) {
        let out_file = self.temp.path().join("none");
        let args = [&[self.base.as_os_str(), out_file.as_os_str()], &SOME_IDS.map(OsStr::new)[..]].concat();
        let out = run(&self.host, &args, env);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{env:?} {}", said(&out));
        let ours: Vec<&str> = text.lines().filter(|l| l.starts_with("ptplus: ")).collect();
        assert!(ours.len() == 1 && ours[0].contains(part), "{env:?} {part}: {text}");
        assert!(std::fs::metadata(&out_file).map_or(0, |m| m.len()) == 0, "{env:?}: logits were written");
    }
}

#[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
const SOME_IDS: [&str; 6] = ["5", "17", "3", "90", "41", "8"];

#[cfg(all(feature = "llama-cpp-dynamic", target_os = "linux"))]
mod preloaded {
    use super::*;

    #[test]
    fn a_program_that_knows_nothing_of_it_agrees_with_pytorch_by_both_kinds_of_operations() {
        for name in MODELS {
            let w = World::of(name);
            let probe = Probe::open(&model(name).join("probe.safetensors")).unwrap();
            for (row, ids) in probe.input_ids.iter().enumerate() {
                let ids = ids_of(ids);
                let own = w.logits_of(&w.base, &as_args(&ids), &w.grafted(&[]));
                let ops = [("PTPLUS_GRAFT_OPS", OsStr::new("ggml"))];
                let by_ggml = w.logits_of(&w.base, &as_args(&ids), &w.grafted(&ops));
                for (p, position) in compared(name, &probe) {
                    for found in [&own, &by_ggml] {
                        let found = &found[position * probe.vocab_size..][..probe.vocab_size];
                        let worst = worst(&probe.logits(row, p), found);
                        assert!(worst <= 5e-4, "{name}, row {row}, position {position}: {worst}");
                    }
                }
            }
        }
    }

    #[test]
    fn with_a_quantized_cache_it_is_off_by_no_more_than_the_plain_base() {
        for name in ["llama-gqa", "qwen2", "qwen3"] {
            let w = World::of(name);
            let probe = Probe::open(&model(name).join("probe.safetensors")).unwrap();
            for cache in ["f16", "q8_0", "q4_0"] {
                let cache = [("CACHE", OsStr::new(cache)), ("FLASH", "1".as_ref())];
                let (mut adapted, mut plain) = (0.0, 0.0);
                for (row, ids) in probe.input_ids.iter().enumerate() {
                    let ids = ids_of(ids);
                    let with = w.logits_of(&w.base, &as_args(&ids), &w.grafted(&cache));
                    let without = w.logits_of(&w.base, &as_args(&ids), &cache);
                    for (p, position) in compared(name, &probe) {
                        let at = position * probe.vocab_size..(position + 1) * probe.vocab_size;
                        adapted = f32::max(adapted, worst(&probe.logits(row, p), &with[at.clone()]));
                        plain = f32::max(plain, worst(&probe.base_logits(row, p).unwrap(), &without[at]));
                    }
                }
                assert!(plain > 1e-5 && adapted <= 1.5 * plain, "{name} {cache:?}: adapted {adapted}, plain {plain}");
            }
        }
    }

    #[test]
    fn without_a_memory_or_adapter_it_is_stock_bit_for_bit() {
        let mut w = World::of("qwen2");
        let mut raw = RawAdapter::fixture("qwen2");
        raw.change("memory", |t| Tensor { shape: t.shape.clone(), values: vec![0.0; t.values.len()] });
        raw.write(&w.temp.path().join("zero"));
        for options in [&[][..], &[("FLASH", OsStr::new("1"))], &[("CACHE", OsStr::new("q8_0"))]] {
            let stock = w.logits(options);
            let preload = [options, &[("LD_PRELOAD", w.library.as_os_str())]].concat();
            assert!(w.logits(&preload) == stock, "{options:?}: no adapter");
            assert!(w.logits(&w.grafted(options)) != stock, "{options:?}: the adapter does nothing");
            let off = [options, &[("PTPLUS_SCALE_1", OsStr::new("0"))]].concat();
            assert!(w.logits(&w.grafted(&off)) == stock, "{options:?}: scale 0");
        }
        let (stock, flash) = (w.logits(&[]), w.logits(&[("FLASH", "1".as_ref())]));
        w.adapter = converted(&w.temp.path().join("zero"), &w.base, w.temp.path());
        assert!(
            w.logits(&w.grafted(&[])) == stock && w.logits(&w.grafted(&[("FLASH", "1".as_ref())])) == flash,
            "M = 0"
        );
        let ops = [("PTPLUS_GRAFT_OPS", OsStr::new("ggml"))];
        assert!(w.logits(&w.grafted(&ops)) == stock, "M = 0, by ggml's operations");
    }

    #[test]
    fn scales_are_factors_and_terms_add_up() {
        let w = World::of("llama-gqa");
        let (stock, on) = (w.logits(&[]), w.logits(&w.grafted(&[])));
        let half = ("PTPLUS_SCALE_1", OsStr::new("0.5"));
        let halved = w.logits(&w.grafted(&[half]));
        assert!(halved != stock && halved != on);
        let twice = [half, ("PTPLUS_ADAPTER_2", w.adapter.as_os_str()), ("PTPLUS_SCALE_2", "0.5".as_ref())];
        assert!(worst(&w.logits(&w.grafted(&twice)), &on) < 1e-4, "two halves make a whole");
        let cancelled = [("PTPLUS_ADAPTER_2", w.adapter.as_os_str()), ("PTPLUS_SCALE_2", "-1".as_ref())];
        assert!(worst(&w.logits(&w.grafted(&cancelled)), &stock) < 1e-4, "one less one is none");
        // Whatever numbers look like where the program runs.
        assert!(w.logits(&w.grafted(&[half, ("LC_ALL", "de_DE.UTF-8".as_ref())])) == halved);
    }

    #[test]
    fn another_model_beside_it_stays_as_it_is() {
        let w = World::of("llama-gqa");
        let (alone, on) = (w.logits(&[]), w.logits(&w.grafted(&[])));
        for other in ["qwen3", "llama-mha", "mistral-swa", "llama-pre-rope"] {
            let other = base_gguf(other);
            let both = w.logits(&w.grafted(&[("BESIDE", other.as_os_str())]));
            assert!(both[..on.len()] == on, "{other:?} beside");
            assert!(both[on.len()..] == w.logits_of(&other, &SOME_IDS.map(OsStr::new), &[]), "{other:?} has the term");
        }
        // The same file again is the same model.
        let both = w.logits(&w.grafted(&[("BESIDE", w.base.as_os_str())]));
        assert!(both[..on.len()] == on && both[on.len()..] == on && on != alone);
        let copy = w.temp.path().join("copy.gguf");
        std::fs::copy(&w.base, &copy).unwrap();
        w.assert_ends(&w.grafted(&[("BESIDE", copy.as_os_str())]), 4, "the adapters fit two models");
        // A smaller model of the same widths, as a draft may be.
        let mut pruned = File::read(&w.base);
        let n_layers = pruned.tensors.iter().filter(|(s, _)| s.name.ends_with("attn_output.weight")).count();
        pruned.set("llama.block_count", ptplus::format::gguf::Value::U32(n_layers as u32 - 1));
        pruned.tensors.retain(|(s, _)| !s.name.starts_with(&format!("blk.{}.", n_layers - 1)));
        pruned.write(&copy);
        let both = w.logits(&w.grafted(&[("BESIDE", copy.as_os_str())]));
        assert!(both[on.len()..] == w.logits_of(&copy, &SOME_IDS.map(OsStr::new), &[]), "a draft of the same widths");
    }

    #[test]
    fn a_lora_beside_it_computes_what_a_merged_base_does() {
        let w = World::of("llama-gqa");
        let base = File::read(&w.base);
        let name = "blk.0.attn_output.weight";
        let (spec, data) = base.tensors.iter().find(|(s, _)| s.name == name).unwrap();
        let [n_out, n_in] = spec.shape[..] else { panic!("a matrix") };
        let rank = 2;
        let noise = |n: usize, seed: u32| -> Vec<f32> {
            let value =
                |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 24) as f32 - 0.5;
            (0..n as u32).map(value).collect()
        };
        let (a, b) = (noise(rank * n_in, 1), noise(n_out * rank, 2));
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let mut weight: Vec<f32> = data.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
        for (i, row) in weight.chunks_mut(n_in).enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                *value += (0..rank).map(|r| b[i * rank + r] * a[r * n_in + j]).sum::<f32>();
            }
        }
        let merged = w.temp.path().join("merged.gguf");
        let mut file = File::read(&w.base);
        file.tensor(name).1 = bytes(&weight);
        file.write(&merged);
        let lora = w.temp.path().join("lora.gguf");
        let mut file = File { metadata: Default::default(), tensors: Vec::new() };
        let text = |t: &str| ptplus::format::gguf::Value::String(t.into());
        file.set("general.type", text("adapter"));
        file.set("general.architecture", text("llama"));
        file.set("adapter.type", text("lora"));
        file.set("adapter.lora.alpha", ptplus::format::gguf::Value::F32(rank as f32));
        for (suffix, shape, values) in [("lora_a", vec![rank, n_in], &a), ("lora_b", vec![n_out, rank], &b)] {
            let spec = ptplus::format::TensorSpec { name: format!("{name}.{suffix}"), dtype: spec.dtype, shape };
            file.tensors.push((spec, bytes(values)));
        }
        file.write(&lora);
        let ids = SOME_IDS.map(OsStr::new);
        let expected = w.logits_of(&merged, &ids, &w.grafted(&[]));
        let found = w.logits(&w.grafted(&[("LORA", lora.as_os_str())]));
        assert!(worst(&found, &expected) < 1e-4, "{}", worst(&found, &expected));
        let without = w.logits(&w.grafted(&[]));
        assert!(worst(&found, &without) > 0.05, "the LoRA does something");
    }

    #[test]
    fn scales_change_while_the_program_runs() {
        let w = World::of("llama-gqa");
        let control = w.temp.path().join("control");
        let out_file = w.temp.path().join("rounds");
        let (stock, on) = (w.logits(&[]), w.logits(&w.grafted(&[])));
        let half = w.logits(&w.grafted(&[("PTPLUS_SCALE_1", "0.5".as_ref())]));
        let name = w.adapter.file_stem().unwrap().to_str().unwrap();
        let write = |text: &str| {
            let next = w.temp.path().join("next");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(&next, &control).unwrap();
        };
        // What is written before each round, and what it gives; a bad file changes nothing.
        let by_name = format!("# switched\n{name} 0\n");
        let rounds: [(&str, &Vec<f32>, bool); 8] = [
            ("", &on, false),
            (&by_name, &stock, false),
            ("1 0.5\n", &half, false),
            ("other 1\n", &half, true),
            ("1 1,0\n", &half, true),
            ("1 1\n1\n", &half, true),
            (&format!("{name} 1\n{}", "#".repeat(5000)), &half, true),
            ("1 1", &on, false),
        ];
        let env = [("PTPLUS_CONTROL", control.as_os_str()), ("ROUNDS", "8".as_ref())];
        let args = [&[w.base.as_os_str(), out_file.as_os_str()], &SOME_IDS.map(OsStr::new)[..]].concat();
        let mut child = command(&w.host, &args, &w.grafted(&env))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        for (i, (text, _, _)) in rounds.iter().enumerate() {
            if i > 0 {
                write(text);
                stdin.write_all(b"\n").unwrap();
            }
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert_eq!(line, "decoded\n", "round {i}");
        }
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", said(&out));
        let found = read(&out_file);
        for (i, (text, expected, _)) in rounds.iter().enumerate() {
            assert!(found[i * on.len()..][..on.len()] == expected[..], "round {i}, {text:.40}");
        }
        let n_bad = rounds.iter().filter(|(_, _, bad)| *bad).count();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(text.lines().filter(|l| l.starts_with("ptplus: ")).count(), n_bad, "{text}");
    }

    #[test]
    fn a_control_file_of_others_is_not_followed() {
        use std::os::unix::fs::PermissionsExt;
        let w = World::of("llama-gqa");
        let on = w.logits(&w.grafted(&[]));
        let control = w.temp.path().join("control");
        std::fs::write(&control, "1 0\n").unwrap();
        let env = [("PTPLUS_CONTROL", control.as_os_str())];
        assert!(w.logits(&w.grafted(&env)) == w.logits(&[]));
        std::fs::set_permissions(&control, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(w.logits(&w.grafted(&env)) == on, "writable by others");
        std::fs::set_permissions(&control, std::fs::Permissions::from_mode(0o600)).unwrap();
        let link = w.temp.path().join("link");
        std::os::unix::fs::symlink(&control, &link).unwrap();
        assert!(w.logits(&w.grafted(&[("PTPLUS_CONTROL", link.as_os_str())])) == on, "a link");
        assert!(w.logits(&w.grafted(&[("PTPLUS_CONTROL", w.temp.path().as_os_str())])) == on, "a folder");
    }

    #[test]
    fn what_is_not_as_expected_ends_the_program_with_one_line() {
        let w = World::of("llama-gqa");
        let other = World::of("qwen2");
        let broken = w.temp.path().join("broken.gguf");
        let bytes = std::fs::read(&w.adapter).unwrap();
        std::fs::write(&broken, &bytes[..bytes.len() - 64]).unwrap();
        let with = |adapter: &Path| {
            [("LD_PRELOAD", w.library.as_os_str()), ("PTPLUS_ADAPTER_1", adapter.as_os_str())]
                .map(|(k, v)| (k, v.to_owned()))
        };
        for (adapter, code, part) in [
            (broken.as_path(), 3, "the file ends before this tensor does"),
            (&other.adapter, 4, "general.architecture: expected llama"),
            (&w.base, 7, "general.type: expected adapter"),
            (Path::new("/nowhere.gguf"), 1, "cannot be read"),
            (w.temp.path(), 1, "cannot be read"),
        ] {
            let env = with(adapter);
            let env: Vec<_> = env.iter().map(|(k, v)| (*k, v.as_os_str())).collect();
            w.assert_ends(&env, code, part);
        }
        for (more, part) in [
            (("PTPLUS_SCALE_1", "0.5x"), "expected a number"),
            (("PTPLUS_SCALE_1", "nan"), "expected a number"),
            (("PTPLUS_ADAPTER_3", "/x"), "numbered without a gap"),
            (("PTPLUS_ADAPTER_17", "/x"), "numbered without a gap"),
        ] {
            w.assert_ends(&w.grafted(&[(more.0, OsStr::new(more.1))]), 2, part);
        }
    }

    /// The functions in one of the C file's lists.
    fn functions(list: &str) -> Vec<String> {
        let text = std::fs::read_to_string(Path::new(ROOT).join("csrc/ptplus_graft.c")).unwrap();
        let list = text.split(&format!("#define {list}(X)")).nth(1).unwrap();
        let lines = list.lines().skip(1).scan(true, |more, line| {
            let is_part = std::mem::replace(more, line.ends_with('\\'));
            is_part.then_some(line)
        });
        let words = lines.flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
        words
            .filter(|n| ["ggml_", "gguf_i", "gguf_f", "gguf_g", "dequant"].iter().any(|p| n.starts_with(p)))
            .map(str::to_owned)
            .collect()
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_llama_cpp_that_lacks_or_lays_out_anything_differently_is_refused() {
        let w = World::of("llama-gqa");
        let (faults, around) = (w.temp.path().join("faults.so"), w.temp.path().join("around.so"));
        let shared = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wno-pedantic"];
        compile("tests/llama_c/faults.c", &shared, &faults);
        compile("tests/llama_c/faults.c", &[&shared[..], &["-DAROUND"]].concat(), &around);
        let behind = format!("{} {}", w.library.display(), faults.display());
        let with = |more: (&'static str, &str)| -> Vec<(&'static str, std::ffi::OsString)> {
            let own = [("LD_PRELOAD", behind.clone().into()), ("PTPLUS_ADAPTER_1", w.adapter.clone().into())];
            own.into_iter().chain([(more.0, more.1.into())]).collect()
        };
        let assert_ends = |more: (&'static str, &str), code, part: &str| {
            let env = with(more);
            w.assert_ends(&env.iter().map(|(k, v)| (*k, v.as_os_str())).collect::<Vec<_>>(), code, part);
        };
        let functions = functions("NEEDED");
        assert!(functions.len() > 50, "{functions:?}");
        for name in &functions {
            assert_ends(("MISSING", name), 7, name);
        }
        for field in ["ne", "nb", "src", "type", "op", "source"] {
            assert_ends(("SPOIL", field), 7, "the layout of this llama.cpp's tensors");
        }
        let full = [("PTPLUS_GRAFT_OPS", OsStr::new("ggml")), ("FULL", "1".as_ref()), ("LD_PRELOAD", behind.as_ref())];
        w.assert_ends(&w.grafted(&full), 1, "layer 0: out of memory on");
        assert_ends(("FULL", "aligned"), 1, "layer 0: out of memory on");
        let ahead = format!("{} {}", around.display(), w.library.display());
        let env = [("LD_PRELOAD", OsStr::new(&ahead)), ("PTPLUS_ADAPTER_1", w.adapter.as_os_str())];
        w.assert_ends(&env, 7, "applied in no layer");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_llama_cpp_that_cannot_decode_a_type_multiplies_it_by_itself_and_one_without_memory_is_refused() {
        let mut w = World::of("qwen3");
        let faults = w.temp.path().join("faults.so");
        compile("tests/llama_c/faults.c", &["-shared", "-fPIC", "-fvisibility=hidden", "-Wno-pedantic"], &faults);
        let behind = format!("{} {}", w.library.display(), faults.display());
        for (outtype, decoder) in [
            ("f16", "ggml_fp16_to_fp32_row"),
            ("bf16", "ggml_bf16_to_fp32_row"),
            ("q8_0", "dequantize_row_q8_0"),
            ("q5_0", "dequantize_row_q5_0"),
            ("q5_1", "dequantize_row_q5_1"),
            ("q4_0", "dequantize_row_q4_0"),
            ("q4_1", "dequantize_row_q4_1"),
        ] {
            assert!(functions("OPTIONAL").iter().any(|name| name == decoder));
            w.adapter = w.temp.path().join("typed.gguf");
            let (adapter, out) = (model("qwen3").join("adapter"), w.adapter.as_os_str());
            let made = crate::common::ptplus([
                OsStr::new("convert"),
                adapter.as_os_str(),
                "--base".as_ref(),
                w.base.as_os_str(),
                "--outtype".as_ref(),
                outtype.as_ref(),
                "--force".as_ref(),
                "-o".as_ref(),
                out,
            ]);
            assert_eq!(crate::common::exit(&made), 0, "{}", crate::common::stderr(&made));
            let exact = w.logits(&w.grafted(&[]));
            let by_ggml = w.logits(&w.grafted(&[("PTPLUS_GRAFT_OPS", "ggml".as_ref())]));
            assert!(worst(&exact, &by_ggml) < 5e-6 * worst(&exact, &vec![0.0; exact.len()]).max(1.0), "{outtype}");
            let rounded = w.logits(&w.grafted(&[("LD_PRELOAD", behind.as_ref()), ("MISSING", decoder.as_ref())]));
            // What ggml's product rounds phi to.
            assert!(
                worst(&exact, &rounded) > 0.0 && worst(&exact, &rounded) < 0.1,
                "{outtype}: {}",
                worst(&exact, &rounded)
            );
            let memory = File::read(&w.adapter);
            let n: usize = memory
                .tensors
                .iter()
                .find(|(s, _)| s.name.ends_with("memory.weight"))
                .unwrap()
                .0
                .shape
                .iter()
                .product();
            let full = (4 * n).to_string();
            w.assert_ends(&w.grafted(&[("LD_PRELOAD", behind.as_ref()), ("FULL", full.as_ref())]), 1, "out of memory");
        }
    }
}
