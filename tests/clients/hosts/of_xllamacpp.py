"""xllamacpp by its server class: MODEL PROMPT prints a greedy answer."""

import json
import sys

import xllamacpp

params = xllamacpp.CommonParams()
if hasattr(params.model, "path"):
    params.model.path = sys.argv[1]
else:
    params.model = sys.argv[1]
params.n_ctx = 512
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
asked = {"prompt": sys.argv[2], "temperature": 0, "max_tokens": 32, "n_predict": 32, "cache_prompt": False}
found = []
try:
    answer = server.handle_completions(asked)
except TypeError:  # older ones take JSON and call back
    server.handle_completions(json.dumps(asked), found.append, found.append)
    answer = found[0]
answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
choices = answer.get("choices") or [{"text": answer.get("content", answer)}]
print(choices[0]["text"])
