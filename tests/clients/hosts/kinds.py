"""BASE OUT: adapters of the sizes that people train, with made-up values: OUT/prefix-20, OUT/prefix-100 (Prefix-Tuning, PEFT's folders)
and OUT/lora.gguf (r = 16 on all seven projections, F16)."""

import json
import pathlib
import struct
import sys

import gguf
import numpy

base, out = gguf.GGUFReader(sys.argv[1]), pathlib.Path(sys.argv[2])
out.mkdir()
random = numpy.random.default_rng(1)
n_layers, n_heads, width, n_query_heads = (
    base.fields[f"llama.{name}"].contents() for name in ("block_count", "attention.head_count_kv", "embedding_length", "attention.head_count")
)
token_dim = n_heads * width // n_query_heads
for n in (20, 100):
    folder = out / f"prefix-{n}"
    folder.mkdir()
    values = random.standard_normal((n, n_layers * 2 * token_dim)).astype(numpy.float32)
    said = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": n, "num_layers": n_layers}
    said |= {"num_attention_heads": n_heads, "token_dim": token_dim, "num_transformer_submodules": 1}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    header = json.dumps({"prompt_embeddings": {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, values.nbytes]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())

writer = gguf.GGUFWriter(out / "lora.gguf", "llama")
writer.add_string("general.type", "adapter")
writer.add_string("adapter.type", "lora")
writer.add_float32("adapter.lora.alpha", 16.0)
PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
for tensor in base.tensors:
    if tensor.name.split(".")[-2] in PROJECTIONS:
        n_in, n_out = (int(n) for n in tensor.shape)
        for name, shape in (("lora_a", (16, n_in)), ("lora_b", (n_out, 16))):
            writer.add_tensor(f"{tensor.name}.{name}", (random.standard_normal(shape) * 0.02).astype(numpy.float16))
for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
    write()
