"""Virtual tokens in llama-cpp-python. MODEL STATE OUT TOKEN... loads the state into a context with an F32 cache and without flash
attention, and writes the logits of the tokens behind it. MODEL PAGE STATE FRONT QUESTION runs the page's code and prints, with a line
of dashes between, what it says, and what the model says of the text FRONT followed by the question; MODEL FRONT prints FRONT's tokens."""

import ctypes
import itertools
import pathlib
import sys

import llama_cpp
import numpy


def logits(model_path, state, out, tokens):
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(model_path.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    params.type_k = params.type_v = 0
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    ids, n = (llama_cpp.llama_token * 64)(), ctypes.c_size_t(0)
    if llama_cpp.llama_state_seq_load_file(context, state.encode(), 0, ids, 64, ctypes.byref(n)) == 0:
        raise SystemExit(1)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, n.value + i, 1, 0, 1
    assert llama_cpp.llama_decode(context, batch) == 0
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (n_vocab,)) for i in range(len(tokens))]
    numpy.stack(rows).astype("<f4").tofile(out)


def said(model_path, front, question):
    llm = llama_cpp.Llama(model_path, n_ctx=2048, verbose=False)
    tokens = llm.tokenize(front.encode(), add_bos=False, special=True) + llm.tokenize(question.encode())
    for token in itertools.islice(llm.generate(tokens, temp=0), 100):
        if token == llm.token_eos():
            break
        print(llm.detokenize([token]).decode(errors="replace"), end="")


match sys.argv[1:]:
    case [model, front]:
        llm = llama_cpp.Llama(model, vocab_only=True, verbose=False)
        print(*llm.tokenize(front.encode(), add_bos=False, special=True))
    case [model, page, state, front, question] if page.endswith(".md"):
        code = pathlib.Path(page).read_text().split("```python\n")[1].split("```")[0]
        for what, name in (("base.gguf", model), ("prefix.bin", state), ("What is the capital of Italy?", question)):
            assert f'"{what}"' in code
            code = code.replace(f'"{what}"', f'"{name}"')
        exec(code, {})
        print("\n---")
        said(model, front, question)
    case [model, state, out, *tokens]:
        logits(model, state, out, [int(t) for t in tokens])
