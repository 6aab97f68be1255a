"""BASE OUT: OUT/draft.gguf, the first ten blocks of BASE, and OUT/lora.gguf, a small LoRA on its output projections."""

import pathlib
import sys

import gguf
import numpy

base, out = gguf.GGUFReader(sys.argv[1]), pathlib.Path(sys.argv[2])
out.mkdir()
N_BLOCKS = 10
ARCHITECTURE = "llama"
assert base.fields["general.architecture"].contents() == ARCHITECTURE


def block(name):
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


writer = gguf.GGUFWriter(out / "draft.gguf", ARCHITECTURE)
for field in base.fields.values():
    if field.name.startswith("GGUF.") or field.name == "general.architecture":
        continue
    value = N_BLOCKS if field.name == f"{ARCHITECTURE}.block_count" else field.contents()
    of_array = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, value, field.types[0], sub_type=of_array)
for tensor in base.tensors:
    if block(tensor.name) < N_BLOCKS:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
    write()

random = numpy.random.default_rng(1)
writer = gguf.GGUFWriter(out / "lora.gguf", ARCHITECTURE)
writer.add_string("general.type", "adapter")
writer.add_string("adapter.type", "lora")
writer.add_float32("adapter.lora.alpha", 4.0)
for tensor in base.tensors:
    if tensor.name.endswith("attn_output.weight"):
        n_in, n_out = (int(n) for n in tensor.shape)
        for name, shape in (("lora_a", (4, n_in)), ("lora_b", (n_out, 4))):
            values = random.standard_normal(shape).astype(numpy.float32) * 0.02
            writer.add_tensor(f"{tensor.name}.{name}", values)
for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
    write()
