"""llama-cpp-cffi by its own raw API: MODEL OUT TOKEN... writes logits; MODEL PROMPT prints a greedy answer."""

import os
import sys

os.environ.setdefault("LLAMA_CPP_BACKEND", "cpu")
try:
    from llama.llama_cpp import ffi, lib
except ImportError:
    from llama._llama_cpp_cpu import ffi, lib


def has(name):
    return hasattr(lib, name)


def opened(model_path, n_context):
    if has("llama_backend_init"):
        lib.llama_backend_init()
    load = lib.llama_model_load_from_file if has("llama_model_load_from_file") else lib.llama_load_model_from_file
    model = load(model_path.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = n_context
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0
    init = lib.llama_init_from_model if has("llama_init_from_model") else lib.llama_new_context_with_model
    context = init(model, params)
    assert model != ffi.NULL and context != ffi.NULL
    return model, context


def decode(context, tokens, first):
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, 1
        batch.seq_id[i][0] = 0
    assert lib.llama_decode(context, batch) == 0


def main():
    model, context = opened(sys.argv[1], 256)
    vocab = lib.llama_model_get_vocab(model) if has("llama_model_get_vocab") else model
    n_vocab = lib.llama_vocab_n_tokens(vocab) if has("llama_vocab_n_tokens") else lib.llama_n_vocab(vocab)
    if len(sys.argv) > 3:
        tokens = [int(t) for t in sys.argv[3:]]
        decode(context, tokens, 0)
        with open(sys.argv[2], "wb") as out:
            for i in range(len(tokens)):
                out.write(bytes(ffi.buffer(lib.llama_get_logits_ith(context, i), 4 * n_vocab)))
        return
    prompt = sys.argv[2].encode()
    room = ffi.new("int32_t[]", 256)
    n = lib.llama_tokenize(vocab, prompt, len(prompt), room, 256, False, True)
    tokens, text, n_past = list(room[0:n]), b"", 0
    end = lib.llama_vocab_eos(vocab) if has("llama_vocab_eos") else lib.llama_token_eos(model)
    piece = ffi.new("char[]", 256)
    for _ in range(32):
        decode(context, tokens, n_past)
        logits = lib.llama_get_logits_ith(context, len(tokens) - 1)
        n_past += len(tokens)
        best = max(range(n_vocab), key=lambda i: logits[i])
        if best == end:
            break
        text += bytes(ffi.buffer(piece, lib.llama_token_to_piece(vocab, best, piece, 256, 0, False)))
        tokens = [best]
    print(text.decode())


main()
# Its own destructors abort when the interpreter ends.
sys.stdout.flush()
os._exit(0)
