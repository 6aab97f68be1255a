/*
 * The graft as a C program uses it: attached_host MODEL ADAPTER OUT ID... writes the logits of every token, as F32, to OUT:
 * with the adapter, with it switched off, with it on again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"
#include "ptplus.h"

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) level, (void) text, (void) data;
}

int main(int argc, char ** argv) {
    if (argc < 5) return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    struct llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) return 1;
    const char * paths[] = { argv[2] };
    struct ptplus * adapters = ptplus_load(argv[1], paths, 1);
    if (!adapters) {
        fprintf(stderr, "load: %s\n", ptplus_error());
        llama_model_free(model);
        return 4;
    }
    const int n = argc - 4, n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    FILE * out = fopen(argv[3], "wb");
    if (!out) return 1;
    int failures = 0;
    if (!ptplus_check(adapters)) {
        fprintf(stderr, "check: expected a complaint before the first graph\n");
        failures++;
    }
    ptplus_activate(adapters);
    struct llama_context * context = llama_init_from_model(model, params);
    if (!context) return 1;
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    const float scales[] = { 1.0f, 0.0f, 1.0f };
    for (int run = 0; run < 3; run++) {
        if (!ptplus_set_scale(adapters, 0, scales[run]) || ptplus_set_scale(adapters, 1, 1.0f)) return 1;
        llama_memory_clear(llama_get_memory(context), true);
        batch.n_tokens = n;
        for (int i = 0; i < n; i++) {
            batch.token[i] = atoi(argv[4 + i]);
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        const int status = llama_decode(context, batch);
        const char * reason = ptplus_check(adapters);
        if (status != 0 || reason) {
            fprintf(stderr, "run %d: status %d, %s\n", run, status, reason ? reason : "no reason");
            failures++;
            break;
        }
        for (int i = 0; i < n; i++) fwrite(llama_get_logits_ith(context, i), sizeof(float), (size_t) n_vocab, out);
    }
    fclose(out);
    llama_batch_free(batch);
    llama_free(context);
    ptplus_free(adapters);
    llama_model_free(model);
    llama_backend_free();
    return failures == 0 ? 0 : 5;
}
