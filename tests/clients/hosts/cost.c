/* cost MODEL LORA|- STATE|- PASSES: processor time in ms a token on one thread, of a prompt of 256 tokens and of 64 more one by one,
   the least of all passes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "llama.h"

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void decode(struct llama_context * context, struct llama_batch * batch, int first, int n) {
    batch->n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch->token[i] = 1000 + (first + i) * 7919 % 40000;
        batch->pos[i] = first + i;
        batch->n_seq_id[i] = 1;
        batch->seq_id[i][0] = 0;
        batch->logits[i] = i == n - 1;
    }
    if (llama_decode(context, *batch)) exit(1);
    llama_get_logits_ith(context, n - 1);
}

int main(int argc, char ** argv) {
    if (argc != 5) return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    struct llama_context * context = model ? llama_init_from_model(model, params) : NULL;
    if (!context) return 1;
    if (strcmp(argv[2], "-")) {
        struct llama_adapter_lora * lora = llama_adapter_lora_init(model, argv[2]);
        float scale = 1;
        if (!lora || llama_set_adapters_lora(context, &lora, 1, &scale)) return 1;
    }
    struct llama_batch batch = llama_batch_init(256, 0, 1);
    double prompt = 1e9, more = 1e9;
    for (int pass = 0; pass < atoi(argv[4]); pass++) {
        llama_token ids[256];
        size_t n_virtual = 0;
        llama_memory_clear(llama_get_memory(context), true);
        if (strcmp(argv[3], "-") && !llama_state_seq_load_file(context, argv[3], 0, ids, 256, &n_virtual)) return 1;
        double start = now();
        decode(context, &batch, n_virtual, 256);
        double middle = now();
        for (int i = 0; i < 64; i++) decode(context, &batch, n_virtual + 256 + i, 1);
        double end = now();
        if ((middle - start) / 256 < prompt) prompt = (middle - start) / 256;
        if ((end - middle) / 64 < more) more = (end - middle) / 64;
    }
    printf("%.2f %.2f\n", prompt, more);
    return 0;
}
