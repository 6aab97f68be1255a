/*
 * A llama.cpp program that knows nothing of adapters: host MODEL OUT ID... writes the logits of every token, as F32, to OUT.
 *
 *   BESIDE=MODEL   a second model in the same process, made last and decoded last; its logits follow
 *   LORA=FILE      one of llama.cpp's own adapters on the model
 *   CACHE=q8_0|q4_0|f16, else f32; flash attention where it is quantized or FLASH is set
 *   ROUNDS=N       decodes N times, each after a line on stdin but the first
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) level, (void) text, (void) data;
}

struct loaded {
    struct llama_model * model;
    struct llama_context * context;
};

static struct loaded load(const char * path) {
    struct llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    struct loaded l = { llama_model_load_from_file(path, model_params), NULL };
    if (!l.model) exit(1);
    const char * cache = getenv("CACHE") ? getenv("CACHE") : "f32";
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = cache[0] == 'q' || getenv("FLASH") ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = !strcmp(cache, "q8_0") ? GGML_TYPE_Q8_0 : !strcmp(cache, "q4_0") ? GGML_TYPE_Q4_0 : !strcmp(cache, "f16") ? GGML_TYPE_F16 : GGML_TYPE_F32;
    if (!(l.context = llama_init_from_model(l.model, params))) exit(1);
    return l;
}

static void decode(struct loaded l, char ** ids, int n, FILE * out) {
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(l.model));
    llama_memory_clear(llama_get_memory(l.context), true);
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = atoi(ids[i]) % n_vocab;
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    if (llama_decode(l.context, batch) != 0) exit(1);
    for (int i = 0; i < n; i++) fwrite(llama_get_logits_ith(l.context, i), sizeof(float), (size_t) n_vocab, out);
    fflush(out);
    llama_batch_free(batch);
}

int main(int argc, char ** argv) {
    if (argc < 4) return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct loaded loaded[2] = { load(argv[1]) };
    struct llama_adapter_lora * lora = getenv("LORA") ? llama_adapter_lora_init(loaded[0].model, getenv("LORA")) : NULL;
    float one = 1.0f;
    if (getenv("LORA") && (!lora || llama_set_adapters_lora(loaded[0].context, &lora, 1, &one) != 0)) return 1;
    const int n_models = getenv("BESIDE") ? 2 : 1, n_rounds = getenv("ROUNDS") ? atoi(getenv("ROUNDS")) : 1;
    if (n_models == 2) loaded[1] = load(getenv("BESIDE"));
    FILE * out = fopen(argv[2], "wb");
    if (!out) return 1;
    for (int round = 0; round < n_rounds; round++) {
        char line[16];
        if (round > 0 && !fgets(line, sizeof line, stdin)) return 1;
        for (int i = 0; i < n_models; i++) decode(loaded[i], argv + 3, argc - 3, out);
        if (n_rounds > 1) puts("decoded");
        fflush(stdout);
    }
    fclose(out);
    for (int i = 0; i < n_models; i++) {
        llama_free(loaded[i].context);
        llama_model_free(loaded[i].model);
    }
    llama_backend_free();
    return 0;
}
