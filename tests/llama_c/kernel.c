/*
 * The graft's own kernel, in every form that this processor can run, beside sums in double precision: all maps, parts, sharings
 * and odd sizes; the same bits whatever batch a token comes in and however many threads share the work; and where there is
 * no term, x bit for bit.
 */
#include "../../csrc/ptplus_graft.c"

static uint64_t state = 1;
static float noise(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float) (int32_t) (state >> 32) / 2147483648.0f;
}

static double act(int map, double x) {
    switch (map) {
    case ELU: return x > 0 ? x : expm1(x);
    case ELU_PLUS_ONE: return x > 0 ? x + 1 : exp(x);
    case RELU: return x > 0 ? x : 0;
    case SILU: return x / (1 + exp(-x));
    case GELU: return 0.5 * x * (1 + erf(x * sqrt(0.5)));
    case GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case SOFTPLUS: return x > 30 ? x : log1p(exp(x));
    case SIGMOID: return 1 / (1 + exp(-x));
    case TANH: return tanh(x);
    case EXP: return exp(x);
    default: return x;
    }
}

struct shape { int64_t d, f, v, heads, memories; bool weight, bias, normalizer; };
static float * numbers_of(size_t n, float size, float more) {
    float * out = malloc(n * sizeof *out);
    for (size_t i = 0; i < n; i++) out[i] = size * noise() + more;
    return out;
}

static int n_checked;
static void expect(bool good, const char * what, const char * machine, int map, const struct shape * s) {
    n_checked++;
    if (good) return;
    printf("%s, %s, map %s, d %d f %d v %d heads %d memories %d\n", what, machine, MAPS[map], (int) s->d, (int) s->f, (int) s->v,
        (int) s->heads, (int) s->memories);
    exit(1);
}

/* dst [v H, T] of some tokens of a batch, by a number of threads. */
static void run(custom2 * kernel, struct place * p, const struct shape * s, const float * x, const float * q, int64_t n, float * out, int nth) {
    const size_t size = (size_t) (n * s->heads * (s->d + 2 * s->v)) * sizeof(float) + 10000;
    const int64_t of_query[] = { s->d, s->heads, n }, of_result[] = { s->v * s->heads, n };
    const any ctx = g.ggml_init((struct init_params) { size, NULL, false });
    const node tq = g.ggml_new_tensor(ctx, F32, 3, of_query), tx = g.ggml_new_tensor(ctx, F32, 2, of_result);
    const node dst = g.ggml_new_tensor(ctx, F32, 2, of_result);
    memcpy(g.ggml_get_data(tq), q, g.ggml_nbytes(tq));
    memcpy(g.ggml_get_data(tx), x, g.ggml_nbytes(tx));
    memset(g.ggml_get_data(dst), 0xff, g.ggml_nbytes(dst));
    for (int i = 0; i < nth; i++) kernel(dst, tx, tq, i, nth, p);
    memcpy(out, g.ggml_get_data(dst), g.ggml_nbytes(dst));
    g.ggml_free(ctx);
}

static void check(custom2 * kernel, const char * machine, int map, const struct shape * s) {
    enum { T = 15 };
    const int64_t lens[] = { s->memories * s->f * s->v, s->memories * s->f * s->d, s->memories * s->f, s->memories * s->f };
    const int64_t row = s->v * s->heads, group = s->heads / s->memories;
    const float norm = 1.0f / sqrtf((float) s->d);
    float * parts[] = { numbers_of((size_t) lens[0], 1, 0), numbers_of((size_t) lens[1], norm, 0), numbers_of((size_t) lens[2], 0.3f, 0),
        numbers_of((size_t) lens[3], 0.5f, 1) };
    const bool has[] = { true, s->weight, s->bias, s->normalizer };
    struct ptplus * set = calloc(1, sizeof *set);
    struct adapter * a = &set->adapters[0];
    struct place p = { .adapter = a };
    struct layer l = { .adapted = true };
    *a = (struct adapter) { .set = set, .n_memories = s->memories, .query_scale = 0.75f, .memory_scale = 1.25f, .scale = 0.5f, .map = map,
        .size = { 1, s->heads, s->memories, s->d, s->v, s->f, 1 } };
    for (int i = 0; i < N_PARTS; i++) {
        l.parts[i] = has[i] ? (node) &l : NULL; /* any: that it is there */
        l.data[i] = parts[i];
    }
    expect(lay_out(&p, &l), "memory", machine, map, s);
    float * q = numbers_of((size_t) (T * s->heads * s->d), 4, 0), * x = numbers_of((size_t) (T * row), 1, 0);
    float * whole = calloc(T * (size_t) row, sizeof *whole), * part = calloc(T * (size_t) row, sizeof *part);
    double * phi = calloc((size_t) s->f, sizeof *phi);
    run(kernel, &p, s, x, q, T, whole, 1);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t h = 0; h < s->heads; h++) {
            const float * qh = q + (t * s->heads + h) * s->d, * m = parts[MEMORY] + h / group * s->v * s->f;
            double denominator = s->normalizer ? 0 : 1;
            for (int64_t f = 0; f < s->f; f++) {
                double z = 0;
                for (int64_t d = 0; d < s->d && s->weight; d++) z += (double) qh[d] * parts[WEIGHT][(h / group * s->f + f) * s->d + d];
                z = 0.75 * (s->weight ? z : qh[f]) + (s->bias ? parts[BIAS][h / group * s->f + f] : 0);
                phi[f] = act(map, z);
                if (s->normalizer) denominator += phi[f] * parts[NORMALIZER][h / group * s->f + f];
            }
            for (int64_t v = 0; v < s->v; v++) {
                double term = 0, size = 1;
                for (int64_t f = 0; f < s->f; f++) term += phi[f] * m[v * s->f + f], size += fabs(phi[f] * m[v * s->f + f]);
                const int64_t i = t * row + h * s->v + v;
                const double expected = x[i] + 0.5 * 1.25 * term / denominator;
                /* A normaliser's sum may cancel. */
                const double limit = 5e-6 * size * (s->normalizer ? 1 + (double) s->f / fabs(denominator) : 1) / fmin(1, fabs(denominator));
                expect(fabs(whole[i] - expected) <= limit, "number", machine, map, s);
            }
        }
    }
    static const int sizes[] = { 1, 2, 5, 6, 7, 13 };
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (int64_t t = 0; t < T; t += sizes[k]) {
            const int64_t n = t + sizes[k] <= T ? sizes[k] : T - t;
            run(kernel, &p, s, x + t * row, q + t * s->heads * s->d, n, part + t * row, 1 + (int) k);
        }
        expect(memcmp(whole, part, T * (size_t) row * sizeof *whole) == 0, "batch", machine, map, s);
    }
    for (int64_t i = 0; i < T * row; i += 3) x[i] = -0.0f;
    a->scale = 0;
    run(kernel, &p, s, x, q, T, part, 4);
    expect(memcmp(x, part, T * (size_t) row * sizeof *x) == 0, "scale 0", machine, map, s);
    a->scale = 1;
    memset(p.numbers[MEMORY], 0, (size_t) (s->memories * s->f * padded(s->v)) * sizeof(float));
    run(kernel, &p, s, x, q, T, part, 4);
    expect(memcmp(x, part, T * (size_t) row * sizeof *x) == 0, "M = 0", machine, map, s);
    for (int i = 0; i < N_PARTS; i++) free(parts[i]), free(p.numbers[i]);
    free(q), free(x), free(whole), free(part), free(phi), free(set);
}

int main(void) {
    static const struct shape SHAPES[] = {
        { 64, 64, 64, 9, 9, false, false, false }, { 64, 64, 64, 6, 2, false, false, true }, { 16, 16, 20, 4, 1, false, false, false },
        { 24, 24, 24, 2, 2, false, false, true }, { 20, 37, 13, 4, 2, true, false, false }, { 32, 48, 96, 4, 4, true, true, true },
        { 8, 4100, 8, 2, 1, true, true, false }, { 128, 128, 128, 2, 2, false, false, false },
    };
    find_ggml();
    if (*broken || !g.ggml_init) return printf("%s\n", broken), 1;
    for (size_t k = 0; k < sizeof SHAPES / sizeof *SHAPES; k++) {
        for (int map = IDENTITY; map <= EXP; map++) {
            const bool positive = map == ELU_PLUS_ONE || map == SOFTPLUS || map == SIGMOID || map == EXP;
            if (SHAPES[k].normalizer && !positive) continue;
            check(fused_every, "every", map, &SHAPES[k]);
#ifdef __x86_64__
            if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) check(fused_avx2, "avx2", map, &SHAPES[k]);
            if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) check(fused_avx512, "avx512", map, &SHAPES[k]);
#endif
        }
    }
    printf("%d checks\n", n_checked);
    return n_checked > 100000 ? 0 : 1;
}
