/*
 * The drop-in from the inside: every way of computing a term against a plain one in double, and what the callback does
 * with graphs that are not as they should be. Prints what failed; exits with the number of failures.
 */
#include "../../csrc/ptplus_llama.c"

static int n_failures;

#define EXPECT(condition, ...)                                             \
    do {                                                                   \
        if (!(condition)) {                                                \
            n_failures++;                                                  \
            printf("line %d: %s: ", __LINE__, #condition);                 \
            printf(__VA_ARGS__);                                           \
            printf("\n");                                                  \
        }                                                                  \
    } while (0)

static uint64_t state = 1;

/* Uniform in -1 .. 1: Marsaglia's xorshift. */
static float noise(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float) ((double) (state >> 11) / (double) (1ull << 52)) - 1.0f;
}

static float * noises(int64_t n, float size) {
    float * x = malloc((size_t) n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = size * noise();
    return x;
}

static double act(enum map map, double x) {
    switch (map) {
    case IDENTITY: return x;
    case ELU: return x > 0 ? x : expm1(x);
    case ELU_PLUS_ONE: return x > 0 ? x + 1 : exp(x);
    case RELU: return x > 0 ? x : 0;
    case SILU: return x / (1 + exp(-x));
    case GELU: return 0.5 * x * (1 + erf(x / sqrt(2)));
    case GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case SOFTPLUS: return x > 20 ? x : log1p(exp(x));
    case SIGMOID: return 1 / (1 + exp(-x));
    case TANH: return tanh(x);
    case EXP: return exp(x);
    default: return NAN;
    }
}

/* The tensors of a layer as the file has them, row after row. */
struct plain {
    float * memory, * weight, * bias, * normalizer; /* [H', D_v, F] [H', F, D] [H', F] [H', F] */
};

static struct plain fill(struct ptplus_llama_adapter * a, struct layer * l, bool weight, bool bias, bool normalizer) {
    const int64_t h = a->n_memories, f = a->n_features;
    struct plain p = {
        .memory = noises(h * a->value_length * f, 1.0f),
        .weight = weight ? noises(h * f * a->key_length, 0.5f) : NULL,
        .bias = bias ? noises(h * f, 0.5f) : NULL,
        .normalizer = normalizer ? noises(h * f, 1.0f) : NULL,
    };
    for (int64_t i = 0; normalizer && i < h * f; i++) p.normalizer[i] = 1.5f + p.normalizer[i];
    const float * from[] = { p.memory, p.weight, p.bias, p.normalizer };
    float ** to[] = { &l->memory, &l->weight, &l->bias, &l->normalizer };
    const int64_t len[] = { h * a->value_length * f, h * f * a->key_length, h * f, h * f };
    for (int i = 0; i < 4; i++) {
        if (!from[i]) continue;
        *to[i] = malloc((size_t) len[i] * sizeof(float));
        memcpy(*to[i], from[i], (size_t) len[i] * sizeof(float));
    }
    transpose(&l->memory, h, a->value_length, f);
    transpose(&l->weight, h, f, a->key_length);
    transpose(&l->bias, h, f, 1);
    return p;
}

static void free_plain(struct plain * p) {
    free(p->memory);
    free(p->weight);
    free(p->bias);
    free(p->normalizer);
}

static double term(const struct ptplus_llama_adapter * a, const struct plain * p, const float * q, int64_t head, int64_t column) {
    const int64_t m = head / (a->n_heads / a->n_memories), f = a->n_features;
    double sum = 0, denominator = 0;
    for (int64_t i = 0; i < f; i++) {
        double x = p->bias ? p->bias[m * f + i] : 0;
        if (p->weight) {
            for (int64_t d = 0; d < a->key_length; d++) x += (double) p->weight[(m * f + i) * a->key_length + d] * a->query_scale * q[d];
        } else {
            x += (double) a->query_scale * q[i];
        }
        const double phi = act(a->map, x);
        sum += phi * p->memory[(m * a->value_length + column) * f + i];
        if (p->normalizer) denominator += phi * p->normalizer[m * f + i];
    }
    return a->memory_scale * (p->normalizer ? sum / denominator : sum);
}

static void terms_are_what_the_formula_says(void) {
    unit_fn units[3] = { unit_plain, best_unit(), best_unit() };
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) units[1] = unit_avx2;
#endif
    static const struct { int64_t d, f, values, heads, memories, tokens; bool weight, bias, normalizer; } shapes[] = {
        { 64, 64, 64, 4, 4, 1, false, false, false }, { 32, 32, 32, 3, 3, 70, false, false, true },
        { 20, 20, 12, 4, 2, 5, true, true, false },  { 16, 40, 16, 6, 1, 33, true, true, true },
        { 8, 3, 5, 2, 2, 4, true, false, false },     { 64, 96, 64, 2, 1, 37, true, true, false },
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int map = 0; map < N_MAPS; map++) {
            for (int u = 0; u < 6; u++) {
                struct layer layer = { 0 };
                struct ptplus_llama_adapter a = {
                    .n_layers = 1, .n_heads = shapes[s].heads, .key_length = shapes[s].d, .value_length = shapes[s].values,
                    .n_features = shapes[s].f, .n_memories = shapes[s].memories, .features_padded = padded(shapes[s].f),
                    .values_padded = padded(shapes[s].values), .map = (enum map) map, .query_scale = 0.7f, .memory_scale = 1.3f, .layers = &layer,
                };
                const bool positive = map == ELU_PLUS_ONE || map == SOFTPLUS || map == SIGMOID || map == EXP;
                struct plain p = fill(&a, &layer, shapes[s].weight, shapes[s].bias, shapes[s].normalizer && positive);
                const int64_t t = shapes[s].tokens;
                float * q = noises(t * a.n_heads * a.key_length, 4.0f), * out = noises(t * a.n_heads * a.value_length, 1.0f);
                float * before = malloc((size_t) (t * a.n_heads * a.value_length) * sizeof(float));
                memcpy(before, out, (size_t) (t * a.n_heads * a.value_length) * sizeof(float));
                struct ptplus_llama * hook = calloc(1, sizeof *hook);
                const int n_threads = u < 3 ? 1 : 3;
                hook->n_threads = hook->n_threads_batch = n_threads;
                hook->pool.unit = units[u % 3];
                pthread_mutex_init(&hook->pool.lock, NULL);
                pthread_cond_init(&hook->pool.wake, NULL);
                pthread_cond_init(&hook->pool.done, NULL);
                EXPECT(reserve_scratch(hook, &a), "memory");
                struct job job = { .adapter = &a, .layer = &layer, .scale = 0.5f, .q = q, .out = out, .n_tokens = t, .n_blocks = (t + BLOCK - 1) / BLOCK };
                run(&hook->pool, &job, n_threads);
                double worst = 0, size = 0;
                for (int64_t token = 0; token < t; token++) {
                    for (int64_t head = 0; head < a.n_heads; head++) {
                        for (int64_t v = 0; v < a.value_length; v++) {
                            const int64_t i = (token * a.n_heads + head) * a.value_length + v;
                            const double expected = before[i] + 0.5 * term(&a, &p, q + (token * a.n_heads + head) * a.key_length, head, v);
                            worst = fmax(worst, fabs(expected - out[i]));
                            size = fmax(size, fabs(expected));
                        }
                    }
                }
                EXPECT(worst <= 4e-6 * fmax(size, 1), "shape %zu, %s, %d threads: %g of %g", s, MAPS[map], n_threads, worst, size);
                EXPECT(job.zero == 0, "a denominator of 0");
                ptplus_llama_detach(hook);
                free(q);
                free(out);
                free(before);
                free_plain(&p);
                free(layer.memory);
                free(layer.weight);
                free(layer.bias);
                free(layer.normalizer);
            }
        }
    }
}

static void activations_keep_their_ends(void) {
    float x[] = { 0.0f, -0.0f, 1e-8f, -1e-8f, 88.0f, 88.72f, 100.0f, -50.0f, -87.0f, -200.0f, 20.5f, INFINITY, -INFINITY };
    for (int map = 0; map < N_MAPS; map++) {
        float y[sizeof x / sizeof *x];
        memcpy(y, x, sizeof x);
        activate((enum map) map, y, sizeof x / sizeof *x);
        for (size_t i = 0; i < sizeof x / sizeof *x; i++) {
            const double expected = act((enum map) map, x[i]);
            const bool infinite = fabs(expected) > 3.4e38;
            const bool undefined = isnan(expected);
            EXPECT(undefined || (infinite ? isinf(y[i]) : fabs(y[i] - expected) <= 1e-6 * fmax(1, fabs(expected))), "%s(%g) = %g, expected %g", MAPS[map], x[i], y[i], expected);
        }
        float nan = NAN;
        activate((enum map) map, &nan, 1);
        EXPECT(isnan(nan), "%s(NaN) = %g", MAPS[map], nan);
    }
}

/* A hook with one adapter of 2 layers, 2 heads of length 4, and nodes that look like a graph's. */
struct world {
    struct layer layers[2];
    struct ptplus_llama_adapter adapter;
    struct ptplus_llama * hook;
    struct plain plain[2];
    ggml_backend_buffer_t buffer;
    struct ggml_context * context;
};

enum { D = 4, H = 2, T = 3 };

static struct world make(enum tap tap, bool normalizer) {
    struct world w = { .adapter = { .architecture = &ARCHITECTURES[0], .n_layers = 2, .n_heads = H, .n_heads_kv = H, .key_length = D, .value_length = D,
        .n_features = D, .n_memories = H, .features_padded = padded(D), .values_padded = padded(D), .map = RELU, .tap = tap, .query_scale = 1, .memory_scale = 1 } };
    for (int i = 0; i < 2; i++) w.plain[i] = fill(&w.adapter, &w.layers[i], false, false, normalizer);
    w.context = ggml_init((struct ggml_init_params) { .mem_size = 1 << 20, .no_alloc = true });
    return w;
}

static void attach(struct world * w) {
    w->adapter.layers = w->layers;
    struct llama_context_params params = { .n_threads = 1, .n_threads_batch = 1 };
    w->hook = ptplus_llama_attach(&params, &w->adapter);
    EXPECT(w->hook != NULL, "%s", ptplus_llama_error());
    EXPECT(params.cb_eval == on_node && params.abort_callback == on_abort, "callbacks");
}

static void finish(struct world * w) {
    ptplus_llama_detach(w->hook);
    for (int i = 0; i < 2; i++) {
        free_plain(&w->plain[i]);
        free(w->layers[i].memory);
        free(w->layers[i].normalizer);
    }
    ggml_free(w->context);
}

/* A node with `values` as its data; freed by `forget`. */
static struct ggml_tensor * node(struct world * w, const char * name, enum ggml_op op, int64_t ne0, int64_t ne1, int64_t ne2) {
    struct ggml_tensor * t = ggml_new_tensor_3d(w->context, GGML_TYPE_F32, ne0, ne1, ne2);
    ggml_set_name(t, name);
    t->op = op;
    t->buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), ggml_nbytes(t));
    t->data = ggml_backend_buffer_get_base(t->buffer);
    for (int64_t i = 0; i < ggml_nelements(t); i++) ((float *) t->data)[i] = noise();
    return t;
}

static void forget(struct ggml_tensor * t) { ggml_backend_buffer_free(t->buffer); }

/* As the scheduler: ask, and where asked for, give. */
static bool offer(struct world * w, struct ggml_tensor * t) {
    const bool wanted = on_node(t, true, w->hook);
    if (wanted) on_node(t, false, w->hook);
    return wanted;
}

static bool complains(struct world * w, const char * part) {
    const bool aborts = on_abort(w->hook);
    const char * reason = ptplus_llama_check(w->hook);
    if (!reason || !strstr(reason, part)) printf("expected a complaint with \"%s\", found: %s\n", part, reason ? reason : "none");
    return aborts && reason && strstr(reason, part);
}

static void a_whole_graph_is_fine_and_a_missing_layer_is_not(void) {
    struct world w = make(POST_ROPE, false);
    attach(&w);
    for (int missing = -1; missing < 2; missing++) {
        for (int il = 0; il < 2; il++) {
            if (il == missing) continue;
            char name[32];
            snprintf(name, sizeof name, "Qcur-%d", il);
            struct ggml_tensor * product = node(&w, name, GGML_OP_MUL_MAT, D * H, T, 1), * q = node(&w, name, GGML_OP_ROPE, D, H, T);
            snprintf(name, sizeof name, "kqv_out-%d", il);
            struct ggml_tensor * out = node(&w, name, GGML_OP_RESHAPE, D * H, T, 1);
            float before = ((float *) out->data)[0];
            EXPECT(!offer(&w, product), "a node before RoPE was taken");
            EXPECT(offer(&w, q) && offer(&w, out), "layer %d", il);
            const double expected = before + term(&w.adapter, &w.plain[il], q->data, 0, 0);
            EXPECT(fabs(expected - ((float *) out->data)[0]) < 1e-5, "layer %d: expected %g, found %g", il, expected, ((float *) out->data)[0]);
            forget(product);
            forget(q);
            forget(out);
        }
        struct ggml_tensor * last = node(&w, "result_output", GGML_OP_MUL_MAT, 8, T, 1);
        EXPECT(!offer(&w, last), "the last node was taken");
        forget(last);
        if (missing < 0) EXPECT(!on_abort(w.hook) && ptplus_llama_check(w.hook) == NULL, "a whole graph");
        else EXPECT(complains(&w, "never appeared"), "layer %d missing", missing);
    }
    finish(&w);
}

static void a_graph_cut_short_is_forgotten(void) {
    struct world w = make(POST_ROPE, false);
    attach(&w);
    for (int round = 0; round < 2; round++) {
        /* Both layers, but no end; then one layer and the end. */
        for (int il = 0; il < 2 - round; il++) {
            char name[32];
            snprintf(name, sizeof name, "Qcur-%d", il);
            struct ggml_tensor * q = node(&w, name, GGML_OP_ROPE, D, H, T);
            snprintf(name, sizeof name, "kqv_out-%d", il);
            struct ggml_tensor * out = node(&w, name, GGML_OP_RESHAPE, D * H, T, 1);
            offer(&w, q);
            offer(&w, out);
            forget(q);
            forget(out);
        }
    }
    struct ggml_tensor * last = node(&w, "result_output", GGML_OP_MUL_MAT, 8, T, 1);
    offer(&w, last);
    forget(last);
    EXPECT(complains(&w, "Qcur-1"), "what the first graph had is not what the second lacks");
    finish(&w);
}

static void what_is_not_as_expected_gives_nan_and_a_reason(void) {
    static const struct { const char * what, * reason; } cases[] = {
        { "no query", "query" }, { "query of other length", "node Qcur-0" }, { "output of other length", "node kqv_out-0" },
        { "other number of tokens", "query" }, { "denominator of 0", "denominator is 0" }, { "quantized cache", "quantized" },
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct world w = make(POST_ROPE, c == 4);
        attach(&w);
        struct ggml_tensor * q = node(&w, "Qcur-0", GGML_OP_ROPE, c == 1 ? D + 1 : D, H, c == 3 ? T + 1 : T);
        struct ggml_tensor * out = node(&w, "kqv_out-0", GGML_OP_RESHAPE, c == 2 ? D * H + 1 : D * H, T, 1);
        /* relu of a negative query is 0 */
        for (int64_t i = 0; c == 4 && i < ggml_nelements(q); i++) ((float *) q->data)[i] = i / (D * H) == 1 && i / D % H == 1 ? -1.0f : 1.0f;
        struct ggml_tensor * cache = ggml_new_tensor_1d(w.context, GGML_TYPE_Q8_0, 32);
        cache->op = GGML_OP_SET_ROWS;
        if (c == 5) offer(&w, cache);
        if (c != 0) offer(&w, q);
        offer(&w, out);
        const bool poisoned = isnan(((float *) out->data)[0]);
        EXPECT(poisoned || c == 2, "%s: the output is %g", cases[c].what, ((float *) out->data)[0]);
        if (c == 4) EXPECT(strstr(w.hook->message, "layer 0, head 1, token 1"), "%s", w.hook->message);
        EXPECT(complains(&w, cases[c].reason), "%s", cases[c].what);
        forget(q);
        forget(out);
        finish(&w);
    }
}

static void before_rope_the_source_of_the_rotation_is_taken(void) {
    for (int wrong = 0; wrong < 2; wrong++) {
        struct world w = make(PRE_ROPE, false);
        attach(&w);
        struct ggml_tensor * source = node(&w, "Qcur-0", GGML_OP_RESHAPE, D, H, T), * other = node(&w, "Qcur-0", GGML_OP_ADD, D, H, T);
        struct ggml_tensor * q = node(&w, "Qcur-0", GGML_OP_ROPE, D, H, T), * out = node(&w, "kqv_out-0", GGML_OP_RESHAPE, D * H, T, 1);
        q->src[0] = wrong ? other : source;
        const float before = ((float *) out->data)[0];
        EXPECT(offer(&w, source), "the source was not taken");
        offer(&w, q);
        offer(&w, out);
        if (wrong) {
            EXPECT(complains(&w, "before RoPE"), "another source");
        } else {
            const double expected = before + term(&w.adapter, &w.plain[0], source->data, 0, 0);
            EXPECT(fabs(expected - ((float *) out->data)[0]) < 1e-5, "expected %g, found %g", expected, ((float *) out->data)[0]);
        }
        forget(source);
        forget(other);
        forget(q);
        forget(out);
        finish(&w);
    }
}

static void a_query_with_strides_is_gathered(void) {
    struct world w = make(POST_ROPE, false);
    attach(&w);
    struct ggml_tensor * all = node(&w, "all", GGML_OP_NONE, 3 * D, H, T), * out = node(&w, "kqv_out-1", GGML_OP_RESHAPE, D * H, T, 1);
    struct ggml_tensor * q = ggml_view_3d(w.context, all, D, H, T, all->nb[1], all->nb[2], D * sizeof(float));
    ggml_set_name(q, "Qcur-1");
    q->op = GGML_OP_ROPE;
    q->data = (float *) all->data + D;
    const float before = ((float *) out->data)[(2 * H + 1) * D + 3];
    offer(&w, q);
    offer(&w, out);
    const double expected = before + term(&w.adapter, &w.plain[1], (float *) all->data + (2 * H + 1) * 3 * D + D, 1, 3);
    EXPECT(fabs(expected - ((float *) out->data)[(2 * H + 1) * D + 3]) < 1e-5, "expected %g", expected);
    forget(all);
    forget(out);
    finish(&w);
}

static void names_are_read_strictly(void) {
    EXPECT(layer_of("kqv_out-12", "kqv_out") == 12, "plain");
    EXPECT(layer_of("kqv_out", "kqv_out") < 0 && layer_of("kqv_out-", "kqv_out") < 0, "no number");
    EXPECT(layer_of("kqv_out-1 (view)", "kqv_out") < 0 && layer_of("kqv_out--1", "kqv_out") < 0, "more than a number");
    EXPECT(layer_of("Qcur_normed-1", "Qcur") < 0 && layer_of("Qcur-99999999999", "Qcur") < 0, "another node");
}

static void the_first_zero_is_reported(void) {
    struct job job = { 0 };
    const int64_t places[] = { 7, 9, 3, 5 }, expected[] = { 7, 7, 3, 3 };
    for (int i = 0; i < 4; i++) {
        report_zero(&job, places[i]);
        EXPECT(job.zero == expected[i], "%lld", (long long) job.zero);
    }
}

int main(void) {
    terms_are_what_the_formula_says();
    activations_keep_their_ends();
    a_whole_graph_is_fine_and_a_missing_layer_is_not();
    a_graph_cut_short_is_forgotten();
    what_is_not_as_expected_gives_nan_and_a_reason();
    before_rope_the_source_of_the_rotation_is_taken();
    a_query_with_strides_is_gathered();
    names_are_read_strictly();
    the_first_zero_is_reported();
    printf("%d failures\n", n_failures);
    return n_failures > 100 ? 100 : n_failures;
}
