/*
 * A llama.cpp program that knows nothing of adapters: plain_host MODEL OUT ID... writes the logits of every token, as
 * F32, to OUT.
 */
#include <stdio.h>
#include <stdlib.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) level, (void) text, (void) data;
}

int main(int argc, char ** argv) {
    if (argc < 4) return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    struct llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) return 1;
    const int n = argc - 3, n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    struct llama_context * context = llama_init_from_model(model, params);
    if (!context) {
        fprintf(stderr, "no context\n");
        llama_model_free(model);
        return 1;
    }
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = atoi(argv[3 + i]);
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    const int status = llama_decode(context, batch);
    FILE * out = fopen(argv[2], "wb");
    if (!out) return 1;
    for (int i = 0; status == 0 && i < n; i++) fwrite(llama_get_logits_ith(context, i), sizeof(float), (size_t) n_vocab, out);
    fclose(out);
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    llama_backend_free();
    return status == 0 ? 0 : 1;
}
