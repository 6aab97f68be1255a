"""MODEL OUT: a GGUF model without a tokenizer, with one whose tokens are called t0, t1, .. in it, so that a server takes it."""

import sys

import gguf

model = gguf.GGUFReader(sys.argv[1])
architecture = model.fields["general.architecture"].contents()
writer = gguf.GGUFWriter(sys.argv[2], architecture)
for field in model.fields.values():
    if field.name.startswith(("GGUF.", "tokenizer.")) or field.name == "general.architecture":
        continue
    of_array = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of_array)
n = int(next(t for t in model.tensors if t.name == "token_embd.weight").shape[1])
writer.add_tokenizer_model("llama")
writer.add_token_list([f"t{i}" for i in range(n)])
writer.add_token_scores([0.0] * n)
writer.add_token_types([gguf.TokenType.NORMAL] * n)
for tensor in model.tensors:
    writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
    write()
