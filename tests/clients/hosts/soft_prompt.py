"""BASE OUT TOKEN...: OUT, a prompt tuning of PEFT's whose virtual tokens are the embeddings of these tokens, so that a model must
answer as if it had read them. BASE has its embeddings in F32."""

import json
import pathlib
import struct
import sys

import gguf

base, out, tokens = gguf.GGUFReader(sys.argv[1]), pathlib.Path(sys.argv[2]), [int(t) for t in sys.argv[3:]]
embeddings = next(t for t in base.tensors if t.name == "token_embd.weight").data
assert embeddings.dtype == "float32"
rows = embeddings[tokens]
out.mkdir()
said = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": len(tokens), "token_dim": rows.shape[1]}
(out / "adapter_config.json").write_text(json.dumps(said))
header = json.dumps({"prompt_embeddings": {"dtype": "F32", "shape": list(rows.shape), "data_offsets": [0, rows.nbytes]}}).encode()
(out / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + rows.tobytes())
