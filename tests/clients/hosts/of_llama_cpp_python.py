"""llama-cpp-python by its `Llama` class: MODEL OUT TOKEN... writes logits; MODEL PROMPT prints a greedy answer."""

import sys

from llama_cpp import Llama

if len(sys.argv) > 3:
    tokens = [int(t) for t in sys.argv[3:]]
    llama = Llama(sys.argv[1], n_ctx=256, logits_all=True, type_k=0, type_v=0, flash_attn=False, n_threads=1, n_threads_batch=1, verbose=False)
    llama.eval(tokens)
    llama.scores[: len(tokens)].astype("<f4").tofile(sys.argv[2])
else:
    llama = Llama(sys.argv[1], n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    print(llama.create_completion(sys.argv[2], temperature=0, max_tokens=32)["choices"][0]["text"])
