#!/usr/bin/env python3
"""What commands cost on bases of the sizes that people have: random BF16 weights in shards, shapes of real models.

    benches/real_sizes.py FOLDER [--ptplus PROGRAM] [--base qwen2.5-3b|llama2-7b]... [--real BASE ADAPTER]
                          [--only STEP,...] [--pytorch PYTHON] [--llama-bench PROGRAM]

FOLDER needs room for three times the base, and is emptied of what this made. With --real it is a base and an adapter that are
there (a folder, or a GGUF file). Prints for each command wall and processor time and the largest resident memory, anonymous and
shared memory apart from mapped files; beside `convert` and `quantize` of a base `cp` of it with a sync, beside `convert` of a
LoRA (rank 16 on every linear layer, F32) `cp` of that, nine times in turn, and beside `verify` (512 positions in three lanes:
base, adapter, adapter) three forward passes of PyTorch eager with the weights loaded, if PYTHON has torch and transformers, in
float32 or, where that has no room in memory, bfloat16, and three of llama.cpp on the GGUF file, two threads each. Processor
time and memory mean something on a busy machine too; wall time does not.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

BASES = {
    "qwen2.5-3b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    },
    "llama2-7b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    },
}
POSITIONS = 512
SHARD_BYTES = 5_000_000_000

# High bytes of BF16: signs and exponents of numbers between 2^-9 and 2^-5.
HIGH = bytes([0x3B, 0x3C, 0xBB, 0xBC] * 64)


def values(n, generator):
    """n small random numbers in BF16."""
    out = bytearray(2 * n)
    out[0::2] = generator.randbytes(n)
    out[1::2] = generator.randbytes(n).translate(HIGH)
    return out


def tensors(c):
    """Names and shapes of a base's weights, in order."""
    hidden, ffn, d = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["num_attention_heads"]
    kv = c["num_key_value_heads"] * d
    yield "model.embed_tokens.weight", [c["vocab_size"], hidden]
    for i in range(c["num_hidden_layers"]):
        name = f"model.layers.{i}."
        for part, shape in [
            ("input_layernorm", [hidden]),
            ("self_attn.q_proj", [hidden, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, hidden]),
            ("post_attention_layernorm", [hidden]),
            ("mlp.gate_proj", [ffn, hidden]),
            ("mlp.up_proj", [ffn, hidden]),
            ("mlp.down_proj", [hidden, ffn]),
        ]:
            yield name + part + ".weight", shape
            if c["model_type"] == "qwen2" and part.split(".")[-1] in ("q_proj", "k_proj", "v_proj"):
                yield name + part + ".bias", shape[:1]
    yield "model.norm.weight", [hidden]
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", [c["vocab_size"], hidden]


def n_elements(shape):
    n = 1
    for extent in shape:
        n *= extent
    return n


def write_safetensors(path, specs, write_values):
    header, offset = {}, 0
    for name, dtype, shape in specs:
        end = offset + n_elements(shape) * {"BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, shape in specs:
            write_values(file, name, n_elements(shape))


def make_base(folder, config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shards, size = [[]], 0
    for name, shape in tensors(config):
        n_bytes = 2 * n_elements(shape)
        if size + n_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, "BF16", shape))
        size += n_bytes
    index = {}
    for i, specs in enumerate(shards):
        file_name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        index |= {name: file_name for name, _, _ in specs}

        def write_values(file, name, n):
            generator = random.Random(name)
            if "norm" in name:
                file.write(b"\x80\x3f" * n)
                return
            while n > 0:
                part = min(n, 1 << 22)
                file.write(values(part, generator))
                n -= part

        write_safetensors(folder / file_name, specs, write_values)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_signs(file, name, n):
    """n numbers in F32: random signs, 1/1024 in magnitude."""
    bits = random.Random(name).randbytes(n)
    file.write(b"".join(b"\x00\x00\x80\x3a" if b & 1 else b"\x00\x00\x80\xba" for b in bits))


def make_adapter(folder, config):
    """Small memories in every layer."""
    folder.mkdir()
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    d = config["hidden_size"] // heads

    specs = [(f"layers.{i}.memory", "F32", [heads, d, d]) for i in range(layers)]
    write_safetensors(folder / "adapter_model.safetensors", specs, write_signs)
    stated = {
        "peft_type": "PREFIX_TUNING_PLUS",
        "feature_map": "elu",
        "query_tap": "post_rope",
        "query_scale": 1.0,
        "memory_scale": 1.0,
        "memory_sharing": "per_head",
        "num_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": config["num_key_value_heads"],
        "head_dim": d,
        "num_features": d,
        "layers_to_transform": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(stated))


def make_lora(folder, config):
    """What PEFT saves of a LoRA of rank 16 on every linear layer."""
    folder.mkdir()
    specs, targets = [], set()
    for name, shape in tensors(config):
        if name.endswith("_proj.weight"):
            module = "base_model.model." + name.removesuffix(".weight")
            targets.add(module.rsplit(".", 1)[1])
            specs.append((module + ".lora_A.weight", "F32", [16, shape[1]]))
            specs.append((module + ".lora_B.weight", "F32", [shape[0], 16]))
    write_safetensors(folder / "adapter_model.safetensors", specs, write_signs)
    stated = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": sorted(targets), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(stated))


def measure(what, command, shows_output=False):
    """Runs a command to its end, and prints what it took. Returns wall time in seconds."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.set_blocking(child.stdout.fileno(), False)
    anonymous, resident, output = 0, 0, b""
    while True:
        output += child.stdout.read() or b""
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            sizes = [int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem") if name in fields]
            anonymous = max(anonymous, sum(sizes))
            # The kernel's own peak: what `wait4` reports has the memory of this process, before the other program began.
            resident = max(resident, int(fields.get("VmHWM", "0").split()[0]))
        except (OSError, ValueError):
            pass
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.005)
    wall = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {child.returncode}:\n{output.decode(errors='replace')}")
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{what:<34} {wall:9.3f} s  {cpu:9.3f} s of processor  "
        f"{anonymous / 1024:8.0f} MiB of its own  {resident / 1024:8.0f} MiB resident",
        flush=True,
    )
    if shows_output:
        print(output.decode(errors="replace"), end="", flush=True)
    return wall


# Arguments: base, positions, type. The first pass is not counted.
PYTORCH = """
import os, sys, time, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(2)
path, n, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
where = {"gguf_file": os.path.basename(path)} if path.endswith(".gguf") else {}
folder = os.path.dirname(path) if where else path
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **where).eval()
ids = torch.arange(n).reshape(1, -1) * 7919 % model.config.vocab_size
with torch.no_grad():
    model(ids)
    start, cpu = time.monotonic(), time.process_time()
    for _ in range(3):
        model(ids)
    wall, cpu = time.monotonic() - start, time.process_time() - cpu
    print(f"  PyTorch {sys.argv[3]}, weights loaded, three passes: {wall:.1f} s, {cpu:.1f} s of processor", flush=True)
"""


def fits_in_float32(n_bytes):
    """Whether BF16 weights of this size have room in memory in float32, with a fifth to spare."""
    return 2 * n_bytes < 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def llama_bench(program, gguf):
    """Three passes of llama.cpp over the same number of positions, after one that is not counted."""
    command = [program, "-m", str(gguf), "-p", str(POSITIONS), "-n", "0", "-t", "2", "-r", "3", "-o", "json"]
    rows = json.loads(subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout)
    print(f"  llama.cpp {rows[0]['model_type']}, three passes: {sum(rows[0]['samples_ns']) / 1e9:.1f} s", flush=True)


def bench(name, config, folder, arguments):
    base, adapter, lora = folder / "base", folder / "adapter", folder / "lora"
    make_base(base, config)
    make_adapter(adapter, config)
    make_lora(lora, config)
    measure_all(name, base, adapter, lora, folder, arguments)


def measure_all(name, base, adapter, lora, folder, arguments):
    program, is_wanted = arguments.ptplus, lambda step: not arguments.only or step in arguments.only
    shards = list(base.glob("*.safetensors")) if base.is_dir() else [base]
    n_bytes = sum(f.stat().st_size for f in shards)
    print(f"{name}: {n_bytes / 1e9:.2f} GB in {len(shards)} files")

    def ptplus(what, *words):
        return measure(f"  {what}", [program, *map(str, words)])

    def cp(source=base):
        copy = folder / "copy"
        script = f"cp -r --reflink=never {source} {copy} && sync -d $(find {copy} -type f)"
        wall = measure("  cp --reflink=never, sync", ["sh", "-c", script])
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
        return wall

    if is_wanted("inspect"):
        ptplus("inspect base", "inspect", base)
    if is_wanted("validate"):
        ptplus("validate", "validate", adapter, "--base", base)
    if is_wanted("convert"):
        cp(adapter)
        ptplus("convert adapter", "convert", adapter, "-o", folder / "adapter.gguf", "--base", base)
        ptplus("quantize adapter, q8_0", "quantize", adapter, "-o", folder / "q8_0.gguf", "q8_0", "--base", base)
    if is_wanted("exec"):
        ptplus("exec --print-env", "exec", "--adapter", adapter, "--base", base, "--print-env")
    if lora and is_wanted("lora"):
        def converting():
            output = folder / "lora.gguf"
            wall = ptplus("convert lora", "convert", lora, "-o", output, "--base", base)
            output.unlink()
            return wall

        turns = [(cp(lora), converting()) for _ in range(9)]
        copied, converted = map(statistics.median, zip(*turns))
        print(f"  medians: cp {copied:.3f} s, convert lora {converted:.3f} s, ratio {copied / converted:.2f}")
    gguf = base if base.suffix == ".gguf" else folder / "base.gguf"
    if is_wanted("base"):
        if gguf == base:
            cp()
            ptplus("convert base, f16", "convert", base, "-o", folder / "f16.gguf", "--outtype", "f16")
            (folder / "f16.gguf").unlink()
        else:
            turns = []
            for _ in range(3):
                gguf.unlink(missing_ok=True)
                turns.append((cp(), ptplus("convert base", "convert", base, "-o", gguf)))
            copied, converted = map(statistics.median, zip(*turns))
            print(f"  medians: cp {copied:.1f} s, convert base {converted:.1f} s, ratio {copied / converted:.2f}")
    if is_wanted("quantize"):
        for dtype in ("q8_0", "q4_k"):
            options = ["--allow-requantize"] if gguf == base else []
            ptplus(f"quantize base, {dtype}", "quantize", base, "-o", folder / "quantized.gguf", dtype, *options)
            (folder / "quantized.gguf").unlink()
    rows = ["--rows", "1", "--length", POSITIONS]
    if is_wanted("verify"):
        ptplus(f"verify, {POSITIONS} positions, 3 lanes", "verify", adapter, "--base", base, "--against", adapter, *rows)
        if arguments.pytorch:
            dtype = "float32" if fits_in_float32(n_bytes) else "bfloat16"
            command = [arguments.pytorch, "-c", PYTORCH, str(base), str(POSITIONS), dtype]
            measure("  PyTorch, loading and four passes", command, shows_output=True)
        if arguments.llama_bench and gguf.exists():
            llama_bench(arguments.llama_bench, gguf)
    if is_wanted("pack"):
        ptplus("pack", "pack", adapter, "-o", folder / "bundle", "--base", base)
        shutil.rmtree(folder / "bundle")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ptplus", default=Path(__file__).parents[1] / "target/release/ptplus")
    parser.add_argument("--base", action="append", choices=list(BASES))
    parser.add_argument("--only", type=lambda text: text.split(","), help="inspect, validate, convert, exec, lora, base, quantize, verify, pack")
    parser.add_argument("--real", nargs=2, type=Path, metavar=("BASE", "ADAPTER"), help="these instead of random ones")
    parser.add_argument("--pytorch", help="a Python that has torch and transformers")
    parser.add_argument("--llama-bench", help="the program of llama.cpp; needs the step base, which makes its file")
    arguments = parser.parse_args()
    for path in arguments.real or []:
        if not path.exists():
            parser.error(f"--real: {path} is not there")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in ["real"] if arguments.real else arguments.base or BASES:
        folder = arguments.folder / f"ptplus-{name}"
        folder.mkdir(parents=True)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        try:
            if arguments.real:
                base, adapter = (path.absolute() for path in arguments.real)
                measure_all(base.name, base, adapter, None, folder, arguments)
            else:
                bench(name, BASES[name], folder, arguments)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
