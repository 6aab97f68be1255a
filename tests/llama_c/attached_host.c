/*
 * The drop-in as a C program uses it: attached_host MODEL ADAPTER OUT ID... writes the logits of every token, as F32, to
 * OUT: with the adapter, with it switched off, with it on again. Counts the nodes that its own callback sees.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ptplus_llama.h"

static int n_seen;

static bool count_outputs(struct ggml_tensor * t, bool ask, void * data) {
    (void) data;
    if (ask) return strncmp(t->name, "kqv_out-", 8) == 0;
    n_seen++;
    return true;
}

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
    struct ptplus_llama_adapter * adapter = ptplus_llama_load(argv[2], model);
    if (!adapter) {
        fprintf(stderr, "load: %s\n", ptplus_llama_error());
        llama_model_free(model);
        return 4;
    }
    const int n = argc - 4, n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model)), n_layers = llama_model_n_layer(model);
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.cb_eval = count_outputs;
    struct ptplus_llama * hook = ptplus_llama_attach(&params, adapter);
    if (!hook) {
        fprintf(stderr, "attach: %s\n", ptplus_llama_error());
        return 4;
    }
    struct llama_context * context = llama_init_from_model(model, params);
    if (!context) return 1;
    FILE * out = fopen(argv[3], "wb");
    if (!out) return 1;
    int failures = 0;
    if (!ptplus_llama_check(hook)) {
        fprintf(stderr, "check: expected a complaint before the first decode\n");
        failures++;
    }
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    const float scales[] = { 1.0f, 0.0f, 1.0f };
    for (int run = 0; run < 3; run++) {
        if (!ptplus_llama_set_scale(hook, adapter, scales[run])) return 1;
        llama_memory_clear(llama_get_memory(context), true);
        batch.n_tokens = n;
        for (int i = 0; i < n; i++) {
            batch.token[i] = atoi(argv[4 + i]);
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        n_seen = 0;
        const int status = llama_decode(context, batch);
        const char * reason = ptplus_llama_check(hook);
        if (status != 0 || reason) {
            fprintf(stderr, "run %d: status %d, %s\n", run, status, reason ? reason : "no reason");
            failures++;
            break;
        }
        if (n_seen != n_layers) {
            fprintf(stderr, "run %d: expected %d nodes in the chained callback, found %d\n", run, n_layers, n_seen);
            failures++;
        }
        for (int i = 0; i < n; i++) fwrite(llama_get_logits_ith(context, i), sizeof(float), (size_t) n_vocab, out);
    }
    fclose(out);
    llama_batch_free(batch);
    llama_free(context);
    ptplus_llama_detach(hook);
    ptplus_llama_free(adapter);
    llama_model_free(model);
    llama_backend_free();
    return failures == 0 ? 0 : 5;
}
