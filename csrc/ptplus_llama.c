/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Copyright (c) 2026 the ptplus authors */
/*
 * Applies Prefix-Tuning+ adapters inside llama.cpp's graph, through cb_eval. See include/ptplus_llama.h for the use and
 * docs/LLAMA_CPP.md for the nodes.
 *
 *   q, copied from its node          before attention reuses the buffer
 *   term = memory_scale * phi(query_scale * q) M  [ / (phi . N) ]        phi(x) = act(x) or act(x W^T + b)
 *   kqv_out += scale * term          what goes into the output projection
 */
#include "ptplus_llama.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml.h"
#include "gguf.h"

#ifdef __FAST_MATH__
#error "ptplus_llama.c tells NaN from numbers: compile it without -ffast-math"
#endif

enum {
    COLUMNS = 16,        /* columns of a weight are padded to this many */
    BLOCK = 32,          /* tokens in one unit of work */
    MAX_THREADS = 64,
    MAX_FEATURES = 65536,
    MESSAGE = 512,
};

/* Below this many multiplications waking threads costs more than they save. */
static const int64_t THREADS_FROM = 1 << 19;

#define KEY "adapter.prefix_tuning_plus."

enum map { IDENTITY, ELU, ELU_PLUS_ONE, RELU, SILU, GELU, GELU_TANH, SOFTPLUS, SIGMOID, TANH, EXP, N_MAPS };
static const char * const MAPS[N_MAPS] = {
    "identity", "elu", "elu_plus_one", "relu", "silu", "gelu", "gelu_tanh", "softplus", "sigmoid", "tanh", "exp",
};

enum tap { POST_ROPE, PRE_ROPE, N_TAPS };
static const char * const TAPS[N_TAPS] = { "post_rope", "pre_rope" };

/*
 * The architectures that were run against PyTorch. q after RoPE is the node `Qcur-{il}` that a ROPE made, in all of
 * them; before RoPE it is that node's source, which is called:
 */
static const struct architecture {
    const char * name;
    const char * order;
    const char * pre_rope;
    enum ggml_op pre_rope_op;
} ARCHITECTURES[] = {
    { "llama", "norm", "Qcur", GGML_OP_RESHAPE },
    { "qwen2", "neox", "Qcur", GGML_OP_RESHAPE },
    { "qwen3", "neox", "Qcur_normed", GGML_OP_MUL },
};

bool ptplus_llama_supports(const char * architecture) {
    for (size_t i = 0; i < sizeof ARCHITECTURES / sizeof *ARCHITECTURES; i++) {
        if (strcmp(architecture, ARCHITECTURES[i].name) == 0) return true;
    }
    return false;
}

struct layer {
    float * memory;     /* M [H', F, Dv padded]; NULL: not adapted */
    float * weight;     /* W [H', D, F padded] or NULL */
    float * bias;       /* b [H', F padded] or NULL */
    float * normalizer; /* N [H', F] or NULL */
};

struct ptplus_llama_adapter {
    const struct architecture * architecture;
    int64_t n_layers, n_heads, n_heads_kv, key_length, value_length, n_features, n_memories;
    int64_t features_padded, values_padded;
    enum map map;
    enum tap tap;
    float query_scale, memory_scale;
    struct layer * layers; /* n_layers */
};

static _Thread_local char last_error[MESSAGE];

const char * ptplus_llama_error(void) { return last_error; }

size_t ptplus_llama_context_params_size(void) { return sizeof(struct llama_context_params); }

__attribute__((format(printf, 1, 2))) static bool refuse(const char * format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return false;
}

static int64_t padded(int64_t n) { return (n + COLUMNS - 1) / COLUMNS * COLUMNS; }

/* ---- loading ---- */

/* The key's id if it is there with the right type, else -1. */
static int64_t find_key(const struct gguf_context * file, const char * key, enum gguf_type type) {
    const int64_t id = gguf_find_key(file, key);
    if (id < 0) {
        refuse("%s: expected this key, found none", key);
    } else if (gguf_get_kv_type(file, id) != type) {
        refuse("%s: expected %s, found %s", key, gguf_type_name(type), gguf_type_name(gguf_get_kv_type(file, id)));
        return -1;
    }
    return id;
}

static const char * get_text(const struct gguf_context * file, const char * key) {
    const int64_t id = find_key(file, key, GGUF_TYPE_STRING);
    return id < 0 ? NULL : gguf_get_val_str(file, id);
}

/* The place of the key's text in `names`, else -1. */
static int get_choice(const struct gguf_context * file, const char * key, const char * const * names, int n) {
    const char * text = get_text(file, key);
    for (int i = 0; text && i < n; i++) {
        if (strcmp(text, names[i]) == 0) return i;
    }
    if (text) refuse("%s: expected %s, ..., found \"%.64s\"", key, names[0], text);
    return -1;
}

static bool get_factor(const struct gguf_context * file, const char * key, float * out) {
    const int64_t id = find_key(file, key, GGUF_TYPE_FLOAT32);
    if (id < 0) return false;
    *out = gguf_get_val_f32(file, id);
    return isfinite(*out) || refuse("%s: expected a finite number", key);
}

static bool get_size(const struct gguf_context * file, const char * key, int64_t max, int64_t * out) {
    const int64_t id = find_key(file, key, GGUF_TYPE_UINT32);
    if (id < 0) return false;
    *out = gguf_get_val_u32(file, id);
    return (*out >= 1 && *out <= max) || refuse("%s: expected 1 to %lld, found %lld", key, (long long) max, (long long) *out);
}

static bool get_size_of_model(const struct gguf_context * file, const char * key, int64_t model, int64_t * out) {
    if (!get_size(file, key, INT32_MAX, out)) return false;
    return *out == model || refuse("%s: expected %lld, as the model has, found %lld", key, (long long) model, (long long) *out);
}

/* `{architecture}.attention.{name}` of the model, or its default: embedding length / heads. */
static int64_t head_length(const struct llama_model * model, const char * architecture, const char * name) {
    char key[128], text[32];
    snprintf(key, sizeof key, "%s.attention.%s", architecture, name);
    if (llama_model_meta_val_str(model, key, text, sizeof text) > 0) return strtoll(text, NULL, 10);
    return llama_model_n_embd(model) / (llama_model_n_head(model) > 0 ? llama_model_n_head(model) : 1);
}

static bool read_config(struct ptplus_llama_adapter * a, const struct gguf_context * file, const struct llama_model * model) {
    const char * text = get_text(file, "general.type");
    if (!text) return false;
    if (strcmp(text, "adapter") != 0) return refuse("general.type: expected adapter, found \"%.64s\"", text);
    if (!(text = get_text(file, "adapter.type"))) return false;
    if (strcmp(text, "prefix_tuning_plus") != 0) return refuse("adapter.type: expected prefix_tuning_plus, found \"%.64s\"", text);
    int64_t version;
    if (!get_size(file, KEY "version", UINT32_MAX, &version)) return false;
    if (version != 1) return refuse(KEY "version: expected 1, found %lld", (long long) version);

    if (!(text = get_text(file, "general.architecture"))) return false;
    char found[64] = "";
    llama_model_meta_val_str(model, "general.architecture", found, sizeof found);
    if (strcmp(text, found) != 0) {
        return refuse("general.architecture: expected %s, as the model has, found \"%.64s\"", found, text);
    }
    for (size_t i = 0; i < sizeof ARCHITECTURES / sizeof *ARCHITECTURES; i++) {
        if (strcmp(text, ARCHITECTURES[i].name) == 0) a->architecture = &ARCHITECTURES[i];
    }
    if (!a->architecture) {
        return refuse("general.architecture: expected one that was tested (llama, qwen2, qwen3), found \"%.64s\"", text);
    }
    if (!(text = get_text(file, KEY "query_order"))) return false;
    if (strcmp(text, a->architecture->order) != 0) {
        return refuse(KEY "query_order: expected %s, the order of %s, found \"%.64s\"", a->architecture->order, a->architecture->name, text);
    }

    if (!get_size_of_model(file, KEY "block_count", llama_model_n_layer(model), &a->n_layers) ||
        !get_size_of_model(file, KEY "head_count", llama_model_n_head(model), &a->n_heads) ||
        !get_size_of_model(file, KEY "head_count_kv", llama_model_n_head_kv(model), &a->n_heads_kv) ||
        !get_size_of_model(file, KEY "key_length", head_length(model, found, "key_length"), &a->key_length) ||
        !get_size_of_model(file, KEY "value_length", head_length(model, found, "value_length"), &a->value_length) ||
        !get_size(file, KEY "feature_length", MAX_FEATURES, &a->n_features)) {
        return false;
    }
    static const char * const SHARING[] = { "per_head", "per_kv_head", "shared" };
    const int map = get_choice(file, KEY "feature_map", MAPS, N_MAPS);
    const int tap = map < 0 ? -1 : get_choice(file, KEY "query_tap", TAPS, N_TAPS);
    const int sharing = tap < 0 ? -1 : get_choice(file, KEY "memory_sharing", SHARING, 3);
    if (sharing < 0) return false;
    a->map = (enum map) map;
    a->tap = (enum tap) tap;
    a->n_memories = sharing == 0 ? a->n_heads : sharing == 1 ? a->n_heads_kv : 1;
    if (a->n_heads % a->n_memories != 0) return refuse(KEY "head_count: expected a multiple of head_count_kv");
    a->features_padded = padded(a->n_features);
    a->values_padded = padded(a->value_length);
    return get_factor(file, KEY "query_scale", &a->query_scale) && get_factor(file, KEY "memory_scale", &a->memory_scale);
}

/* What is needed to read tensors one after the other. */
struct reader {
    const struct gguf_context * file;
    FILE * stream;
    uint64_t len_bytes; /* of the whole file */
    int64_t n_read;     /* tensors */
};

/*
 * Reads `blk.{il}.{suffix}`, rows of `n` elements, `n_rows` rows in each of `n_matrices` matrices. The result, to be freed,
 * is [n_matrices, n_rows, n]. An absent tensor leaves `*out` NULL, and is an error if it is `required`.
 */
static bool read_tensor(struct reader * r, int64_t il, const char * suffix, bool required, int64_t n, int64_t n_rows, int64_t n_matrices, float ** out) {
    char name[GGML_MAX_NAME];
    snprintf(name, sizeof name, "blk.%lld.%s", (long long) il, suffix);
    const int64_t id = gguf_find_tensor(r->file, name);
    if (id < 0) return !required || refuse("%s: expected this tensor, found none", name);
    const enum ggml_type type = gguf_get_tensor_type(r->file, id);
    const int64_t * ne = gguf_get_tensor_ne(r->file, id);
    const bool matrix = n_rows > 0; /* otherwise [n, n_matrices] */
    if (ne[0] != n || ne[1] != (matrix ? n_rows : n_matrices) || ne[2] != (matrix ? n_matrices : 1) || ne[3] != 1) {
        return refuse("%s: expected [%lld, %lld, %lld], found [%lld, %lld, %lld]", name, (long long) n,
            (long long) (matrix ? n_rows : n_matrices), (long long) (matrix ? n_matrices : 1), (long long) ne[0], (long long) ne[1], (long long) ne[2]);
    }
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    if (!to_float && type != GGML_TYPE_F32) return refuse("%s: type %s cannot be decoded", name, ggml_type_name(type));
    const int64_t n_all_rows = (matrix ? n_rows : 1) * n_matrices;
    const size_t row_bytes = ggml_row_size(type, n);
    const uint64_t offset = gguf_get_data_offset(r->file) + gguf_get_tensor_offset(r->file, id);
    /* Before anything is allocated: that the file has it all. Neither side can overflow, each being bounded by the file. */
    if (offset > r->len_bytes || (uint64_t) n_all_rows > (r->len_bytes - offset) / row_bytes) {
        return refuse("%s: expected %lld rows of %zu bytes, found the end of the file", name, (long long) n_all_rows, row_bytes);
    }
    float * values = malloc((size_t) n_all_rows * (size_t) n * sizeof(float));
    char * row = malloc(row_bytes);
    bool ok = values && row && fseeko(r->stream, (off_t) offset, SEEK_SET) == 0;
    if (!ok) refuse("%s: out of memory, or the file cannot be read", name);
    for (int64_t i = 0; ok && i < n_all_rows; i++) {
        if (fread(row, row_bytes, 1, r->stream) != 1) {
            ok = refuse("%s: cannot be read", name);
        } else if (to_float) {
            to_float(row, values + i * n, n);
        } else {
            memcpy(values + i * n, row, row_bytes);
        }
    }
    for (int64_t i = 0; ok && i < n_all_rows * n; i++) {
        if (!isfinite(values[i])) ok = refuse("%s: expected finite values, found NaN or Inf at element %lld", name, (long long) i);
    }
    free(row);
    if (!ok) {
        free(values);
        return false;
    }
    r->n_read++;
    *out = values;
    return true;
}

/* [m, rows, columns] to [m, columns, rows padded with 0], so that a multiply runs along memory. Frees `*values`. */
static bool transpose(float ** values, int64_t m, int64_t rows, int64_t columns) {
    if (!*values) return true;
    const int64_t width = padded(rows);
    float * out = calloc((size_t) (m * columns * width), sizeof(float));
    for (int64_t i = 0; out && i < m; i++) {
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t column = 0; column < columns; column++) {
                out[(i * columns + column) * width + row] = (*values)[(i * rows + row) * columns + column];
            }
        }
    }
    free(*values);
    *values = out;
    return out || refuse("out of memory");
}

static bool read_layers(struct ptplus_llama_adapter * a, struct reader * r) {
    const int64_t id = find_key(r->file, KEY "layers", GGUF_TYPE_ARRAY);
    if (id < 0) return false;
    if (gguf_get_arr_type(r->file, id) != GGUF_TYPE_UINT32) return refuse(KEY "layers: expected an array of u32");
    const size_t n = gguf_get_arr_n(r->file, id);
    if (n == 0 || n > (size_t) a->n_layers) return refuse(KEY "layers: expected 1 to %lld layers, found %zu", (long long) a->n_layers, n);
    const uint32_t * list = gguf_get_arr_data(r->file, id);
    a->layers = calloc((size_t) a->n_layers, sizeof *a->layers);
    if (!a->layers) return refuse("out of memory");
    for (size_t i = 0; i < n; i++) {
        const int64_t il = list[i];
        if (il >= a->n_layers || a->layers[il].memory) {
            return refuse(KEY "layers: expected different layers below %lld, found %lld", (long long) a->n_layers, (long long) il);
        }
        struct layer * l = &a->layers[il];
        const int64_t f = a->n_features, h = a->n_memories;
        if (!read_tensor(r, il, "attn_prefix_memory.weight", true, f, a->value_length, h, &l->memory) ||
            !read_tensor(r, il, "attn_prefix_feature.weight", f != a->key_length, a->key_length, f, h, &l->weight) ||
            !read_tensor(r, il, "attn_prefix_feature.bias", false, f, 0, h, &l->bias) ||
            !read_tensor(r, il, "attn_prefix_normalizer.weight", false, f, 0, h, &l->normalizer)) {
            return false;
        }
        if (l->bias && !l->weight) return refuse("blk.%lld.attn_prefix_feature.weight: expected a weight beside the bias, found none", (long long) il);
        /* A bias is [h, f]; as [h, f, 1] transposed it is [h, 1, f padded]. */
        if (!transpose(&l->memory, h, a->value_length, f) || !transpose(&l->weight, h, f, a->key_length) || !transpose(&l->bias, h, f, 1)) {
            return false;
        }
    }
    const int64_t n_tensors = gguf_get_n_tensors(r->file);
    return r->n_read == n_tensors || refuse("expected %lld tensors, found %lld: some belong to no part of the adapter", (long long) r->n_read, (long long) n_tensors);
}

struct ptplus_llama_adapter * ptplus_llama_load(const char * path, const struct llama_model * model) {
    struct ptplus_llama_adapter * a = calloc(1, sizeof *a);
    /* Without data: a file may declare more than it has, and ggml would abort when memory ends. */
    struct gguf_context * file = a ? gguf_init_from_file(path, (struct gguf_init_params) { .no_alloc = true, .ctx = NULL }) : NULL;
    struct reader r = { .file = file, .stream = file ? fopen(path, "rb") : NULL };
    bool ok = false;
    if (!file) {
        refuse("%s: expected a GGUF file that ggml can read", path);
    } else if (!r.stream || fseeko(r.stream, 0, SEEK_END) != 0 || ftello(r.stream) < 0) {
        refuse("%s: cannot be read", path);
    } else {
        r.len_bytes = (uint64_t) ftello(r.stream);
        ok = read_config(a, file, model) && read_layers(a, &r);
    }
    if (r.stream) fclose(r.stream);
    if (file) gguf_free(file);
    if (!ok) {
        ptplus_llama_free(a);
        return NULL;
    }
    return a;
}

void ptplus_llama_free(struct ptplus_llama_adapter * a) {
    for (int64_t i = 0; a && a->layers && i < a->n_layers; i++) {
        struct layer * l = &a->layers[i];
        free(l->memory);
        free(l->weight);
        free(l->bias);
        free(l->normalizer);
    }
    if (a) free(a->layers);
    free(a);
}

/* ---- computing ---- */

/*
 * The loops below are compiled for several instruction sets, and one is chosen at run time. Everything they call must be
 * inlined into them.
 */
#define INLINE static inline __attribute__((always_inline))

/* exp(x) = 2^n (1 + tail): Cephes' expf (Moshier), straight-line so that it becomes vector code. NaN stays NaN. */
INLINE float exp_parts(float x, float * scale) {
    x = x < -87.0f ? -87.0f : x > 88.73f ? 88.73f : x;
    const float shifter = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    const float whole = (x * 1.44269504f + shifter) - shifter;
    /* ln 2 in two parts: the first has so few bits that the product is exact. */
    const float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    /* NaN to an integer is undefined: it goes into the tail alone. */
    const int32_t n = whole == whole ? (int32_t) whole : 0;
    const uint32_t bits = (uint32_t) (n + 126) << 23; /* half the scale, since 2^128 is no number */
    memcpy(scale, &bits, sizeof bits);
    return p * (r * r) + r;
}

INLINE float exponential(float x) {
    float half;
    const float tail = exp_parts(x, &half);
    return x < -87.0f ? 0.0f : (1.0f + tail) * half * 2.0f;
}

INLINE float exponential_minus_1(float x) {
    float half;
    const float tail = exp_parts(x, &half);
    /* Nothing cancels where x is small. */
    return 2.0f * (half * tail + (half - 0.5f));
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE void activate(enum map map, float * x, int64_t n) {
    switch (map) {
    case IDENTITY: break;
    case ELU: for (int64_t i = 0; i < n; i++) x[i] = x[i] > 0.0f ? x[i] : exponential_minus_1(x[i]); break;
    case ELU_PLUS_ONE: for (int64_t i = 0; i < n; i++) x[i] = x[i] > 0.0f ? x[i] + 1.0f : exponential(x[i]); break;
    case RELU: for (int64_t i = 0; i < n; i++) x[i] = x[i] < 0.0f ? 0.0f : x[i]; break;
    case SILU: for (int64_t i = 0; i < n; i++) x[i] = x[i] * sigmoid(x[i]); break;
    case SIGMOID: for (int64_t i = 0; i < n; i++) x[i] = sigmoid(x[i]); break;
    case EXP: for (int64_t i = 0; i < n; i++) x[i] = exponential(x[i]); break;
    case GELU: for (int64_t i = 0; i < n; i++) x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f)); break;
    case GELU_TANH:
        for (int64_t i = 0; i < n; i++) {
            x[i] = 0.5f * x[i] * (1.0f + tanhf(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
        }
        break;
    /* The threshold of torch.nn.functional.softplus. */
    case SOFTPLUS: for (int64_t i = 0; i < n; i++) x[i] = x[i] > 20.0f ? x[i] : log1pf(expf(x[i])); break;
    case TANH: for (int64_t i = 0; i < n; i++) x[i] = tanhf(x[i]); break;
    case N_MAPS: break;
    }
}

/*
 * multiplyN: y [rows, n] = start [n] + x [rows, k] a [k, n], in vectors of N floats; n is a multiple of COLUMNS. tileN is
 * `rows` x `vectors` of it, all in registers.
 */
#define MULTIPLY(N)                                                                                                                                   \
    typedef float lanes##N __attribute__((vector_size(N * sizeof(float)), aligned(4), may_alias));                                                   \
    INLINE void tile##N(const int rows, const int vectors, float * y, int64_t ldy, const float * x, int64_t ldx, const float * a, int64_t lda,       \
        int64_t k, const float * start) {                                                                                                            \
        lanes##N sum[4][4];                                                                                                                          \
        for (int r = 0; r < rows; r++) {                                                                                                             \
            for (int v = 0; v < vectors; v++) sum[r][v] = start ? *(const lanes##N *) (start + v * N) : (lanes##N) { 0 };                            \
        }                                                                                                                                            \
        for (int64_t i = 0; i < k; i++) {                                                                                                            \
            for (int v = 0; v < vectors; v++) {                                                                                                      \
                const lanes##N w = *(const lanes##N *) (a + i * lda + v * N);                                                                        \
                for (int r = 0; r < rows; r++) sum[r][v] += x[r * ldx + i] * w;                                                                      \
            }                                                                                                                                        \
        }                                                                                                                                            \
        for (int r = 0; r < rows; r++) {                                                                                                             \
            for (int v = 0; v < vectors; v++) *(lanes##N *) (y + r * ldy + v * N) = sum[r][v];                                                       \
        }                                                                                                                                            \
    }                                                                                                                                                \
    INLINE void multiply##N(float * y, int64_t ldy, const float * x, int64_t ldx, const float * a, int64_t n, int64_t k, int64_t rows,               \
        const float * start) {                                                                                                                       \
        int64_t row = 0;                                                                                                                             \
        for (; row + 4 <= rows; row += 4) {                                                                                                          \
            int64_t j = 0;                                                                                                                           \
            for (; j + 2 * N <= n; j += 2 * N) {                                                                                                     \
                tile##N(4, 2, y + row * ldy + j, ldy, x + row * ldx, ldx, a + j, n, k, start ? start + j : NULL);                                    \
            }                                                                                                                                        \
            for (; j < n; j += N) tile##N(4, 1, y + row * ldy + j, ldy, x + row * ldx, ldx, a + j, n, k, start ? start + j : NULL);                  \
        }                                                                                                                                            \
        for (; row < rows; row++) {                                                                                                                  \
            int64_t j = 0;                                                                                                                           \
            for (; j + 4 * N <= n; j += 4 * N) {                                                                                                     \
                tile##N(1, 4, y + row * ldy + j, ldy, x + row * ldx, ldx, a + j, n, k, start ? start + j : NULL);                                    \
            }                                                                                                                                        \
            for (; j < n; j += N) tile##N(1, 1, y + row * ldy + j, ldy, x + row * ldx, ldx, a + j, n, k, start ? start + j : NULL);                  \
        }                                                                                                                                            \
    }

/* Vectors wider than the machine's are slow, so each instruction set has its own. */
MULTIPLY(4)
#if defined(__x86_64__)
MULTIPLY(8)
MULTIPLY(16)
#endif

INLINE void multiply(const int width, float * y, int64_t ldy, const float * x, int64_t ldx, const float * a, int64_t n, int64_t k, int64_t rows,
    const float * start) {
#if defined(__x86_64__)
    if (width == 16) {
        multiply16(y, ldy, x, ldx, a, n, k, rows, start);
        return;
    }
    if (width == 8) {
        multiply8(y, ldy, x, ldx, a, n, k, rows, start);
        return;
    }
#endif
    (void) width;
    multiply4(y, ldy, x, ldx, a, n, k, rows, start);
}

/* One layer's term for all tokens, cut into units of one head and up to BLOCK tokens. */
struct job {
    const struct ptplus_llama_adapter * adapter;
    const struct layer * layer;
    float scale;
    const float * q; /* [T, H, D] */
    float * out;     /* [T, H, D_v] */
    int64_t n_tokens, n_blocks;
    _Atomic int64_t next;
    _Atomic int64_t zero; /* 1 + head * T + token of a denominator that is 0 */
};

/* Keeps the smallest, so that the message does not depend on threads. */
static void report_zero(struct job * job, int64_t place) {
    int64_t seen = 0;
    while (!atomic_compare_exchange_weak(&job->zero, &seen, place) && (seen == 0 || seen > place)) {}
}

INLINE void compute_unit(const int lanes, struct job * job, int64_t unit, float * scratch) {
    const struct ptplus_llama_adapter * a = job->adapter;
    const struct layer * l = job->layer;
    const int64_t head = unit / job->n_blocks, first = unit % job->n_blocks * BLOCK;
    const int64_t rows = job->n_tokens - first < BLOCK ? job->n_tokens - first : BLOCK;
    const int64_t memory = head / (a->n_heads / a->n_memories);
    const int64_t d = a->key_length, f = a->n_features, width = a->features_padded, values = a->values_padded;
    float * x = scratch, * phi = x + BLOCK * d, * term = phi + BLOCK * width;

    for (int64_t t = 0; t < rows; t++) {
        const float * q = job->q + ((first + t) * a->n_heads + head) * d;
        float * to = l->weight ? x + t * d : phi + t * width;
        for (int64_t i = 0; i < d; i++) to[i] = q[i] * a->query_scale;
    }
    if (l->weight) multiply(lanes, phi, width, x, d, l->weight + memory * d * width, width, d, rows, l->bias ? l->bias + memory * width : NULL);
    for (int64_t t = 0; t < rows; t++) activate(a->map, phi + t * width, f);
    multiply(lanes, term, values, phi, width, l->memory + memory * f * values, values, f, rows, NULL);

    for (int64_t t = 0; t < rows; t++) {
        float factor = a->memory_scale;
        if (l->normalizer) {
            float denominator = 0.0f;
            for (int64_t i = 0; i < f; i++) denominator += phi[t * width + i] * l->normalizer[memory * f + i];
            if (denominator == 0.0f) report_zero(job, 1 + head * job->n_tokens + first + t);
            factor /= denominator;
        }
        factor *= job->scale;
        float * out = job->out + ((first + t) * a->n_heads + head) * a->value_length;
        for (int64_t i = 0; i < a->value_length; i++) out[i] += factor * term[t * values + i];
    }
}

typedef void (*unit_fn)(struct job * job, int64_t unit, float * scratch);

static void unit_plain(struct job * job, int64_t unit, float * scratch) { compute_unit(4, job, unit, scratch); }

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void unit_avx2(struct job * job, int64_t unit, float * scratch) {
    compute_unit(8, job, unit, scratch);
}
__attribute__((target("avx512f,avx2,fma"))) static void unit_avx512(struct job * job, int64_t unit, float * scratch) {
    compute_unit(16, job, unit, scratch);
}
#endif

static unit_fn best_unit(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return unit_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return unit_avx2;
#endif
    return unit_plain;
}

/* ---- threads ---- */

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    pthread_t threads[MAX_THREADS];
    int n_started;       /* helpers: the caller works too */
    int n_wanted, n_busy; /* of the job at hand */
    uint64_t n_jobs;
    bool stop;
    struct job * job;
    unit_fn unit;
    float * scratch[MAX_THREADS + 1];
    size_t scratch_len;
};

struct helper {
    struct pool * pool;
    int index;
};

static void work(struct pool * p, struct job * job, float * scratch) {
    const int64_t n_units = job->n_blocks * job->adapter->n_heads;
    for (int64_t unit; (unit = atomic_fetch_add(&job->next, 1)) < n_units;) p->unit(job, unit, scratch);
}

static void * helper_main(void * argument) {
    struct helper self = *(struct helper *) argument;
    free(argument);
    struct pool * p = self.pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    while (true) {
        while (!p->stop && p->n_jobs == seen) pthread_cond_wait(&p->wake, &p->lock);
        if (p->stop) break;
        seen = p->n_jobs;
        if (self.index >= p->n_wanted) continue;
        struct job * job = p->job;
        float * scratch = p->scratch[1 + self.index];
        pthread_mutex_unlock(&p->lock);
        work(p, job, scratch);
        pthread_mutex_lock(&p->lock);
        if (--p->n_busy == 0) pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Starts helpers up to `n`; fewer if the system gives none. Threads start with the first prompt, and stay. */
static void start_helpers(struct pool * p, int n) {
    pthread_mutex_lock(&p->lock);
    while (p->n_started < n) {
        struct helper * h = malloc(sizeof *h);
        if (h) *h = (struct helper) { p, p->n_started };
        if (!h || pthread_create(&p->threads[p->n_started], NULL, helper_main, h) != 0) {
            free(h);
            break;
        }
        p->n_started++;
    }
    pthread_mutex_unlock(&p->lock);
}

static void run(struct pool * p, struct job * job, int n_threads) {
    const struct ptplus_llama_adapter * a = job->adapter;
    const int64_t cost = job->n_tokens * a->n_heads * a->n_features * (a->value_length + (job->layer->weight ? a->key_length : 0));
    if (n_threads > 1 && cost >= THREADS_FROM) {
        start_helpers(p, n_threads - 1);
        pthread_mutex_lock(&p->lock);
        const int n = n_threads - 1 < p->n_started ? n_threads - 1 : p->n_started;
        p->job = job;
        p->n_wanted = p->n_busy = n;
        p->n_jobs++;
        if (n > 0) pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
        work(p, job, p->scratch[0]);
        pthread_mutex_lock(&p->lock);
        while (p->n_busy > 0) pthread_cond_wait(&p->done, &p->lock);
        pthread_mutex_unlock(&p->lock);
    } else {
        work(p, job, p->scratch[0]);
    }
}

/* ---- the hook ---- */

enum { MAX_ADAPTERS = 64 };

/* A query as it was at a tap, [T, H, D], of the layer that is being computed. */
struct query {
    float * values;
    size_t len;
    int64_t layer, n_tokens;
    const struct ggml_tensor * source;
};

struct ptplus_llama {
    struct { const struct ptplus_llama_adapter * adapter; float scale; } on[MAX_ADAPTERS];
    int n_adapters;
    int n_threads, n_threads_batch;
    ggml_backend_sched_eval_callback next;
    void * next_data;
    bool next_wants;
    ggml_abort_callback next_abort;
    void * next_abort_data;

    struct query queries[N_TAPS];
    float * staging; /* kqv_out of a device */
    size_t staging_len;
    uint8_t * applied; /* [n_layers], in the graph that is being computed */
    int64_t n_graphs;  /* computed in full since the adapters or scales changed */
    _Atomic bool failed;
    char message[MESSAGE], returned[MESSAGE];
    struct pool pool;
};

__attribute__((format(printf, 2, 3))) static void fail(struct ptplus_llama * hook, const char * format, ...) {
    if (hook->failed) return;
    va_list args;
    va_start(args, format);
    vsnprintf(hook->message, sizeof hook->message, format, args);
    va_end(args);
    hook->failed = true;
}

/* Whether an adapter that is on adapts this layer, and at this tap; N_TAPS stands for any. */
static bool adapts(const struct ptplus_llama * hook, int64_t il, int tap) {
    for (int i = 0; i < hook->n_adapters; i++) {
        const struct ptplus_llama_adapter * a = hook->on[i].adapter;
        if (hook->on[i].scale != 0.0f && il >= 0 && il < a->n_layers && a->layers[il].memory && (tap == N_TAPS || tap == (int) a->tap)) return true;
    }
    return false;
}

static bool any_on(const struct ptplus_llama * hook) {
    for (int i = 0; i < hook->n_adapters; i++) {
        if (hook->on[i].scale != 0.0f) return true;
    }
    return false;
}

/* The first layer that should have had a term and has not, or -1. */
static int64_t first_missing(const struct ptplus_llama * hook) {
    for (int64_t il = 0; il < hook->on[0].adapter->n_layers; il++) {
        if (adapts(hook, il, N_TAPS) && !hook->applied[il]) return il;
    }
    return -1;
}

static void forget_graph(struct ptplus_llama * hook) {
    memset(hook->applied, 0, (size_t) hook->on[0].adapter->n_layers);
    for (int tap = 0; tap < N_TAPS; tap++) hook->queries[tap].layer = -1;
}

/* The number after `{prefix}-`, if that is all of the name, else -1. */
static int64_t layer_of(const char * name, const char * prefix) {
    const size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) != 0 || name[n] != '-' || name[n + 1] < '0' || name[n + 1] > '9') return -1;
    char * end;
    const long il = strtol(name + n + 1, &end, 10);
    return *end == '\0' && il < INT32_MAX ? il : -1;
}

/* Which tap of which layer `t` is; N_TAPS for none. */
static int tap_of(const struct ptplus_llama * hook, const struct ggml_tensor * t, int64_t * il) {
    const struct architecture * architecture = hook->on[0].adapter->architecture;
    if (t->op == GGML_OP_ROPE && (*il = layer_of(t->name, "Qcur")) >= 0) return POST_ROPE;
    if (t->op == architecture->pre_rope_op && (*il = layer_of(t->name, architecture->pre_rope)) >= 0) return PRE_ROPE;
    return N_TAPS;
}

static bool reserve(float ** values, size_t * len, size_t wanted) {
    if (*len >= wanted) return true;
    free(*values);
    *values = malloc(wanted * sizeof(float));
    *len = *values ? wanted : 0;
    return *values != NULL;
}

static const char * host_data(const struct ggml_tensor * t) {
    const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return buffer && ggml_backend_buffer_is_host(buffer) ? t->data : NULL;
}

static void take_query(struct ptplus_llama * hook, const struct ggml_tensor * t, enum tap tap, int64_t il) {
    const struct ptplus_llama_adapter * a = hook->on[0].adapter;
    struct query * q = &hook->queries[tap];
    if (t->type != GGML_TYPE_F32 || t->ne[0] != a->key_length || t->ne[1] != a->n_heads || t->ne[3] != 1 || t->nb[0] != sizeof(float)) {
        fail(hook, "node %s: expected F32 [%lld, %lld, T], found %s [%lld, %lld, %lld]", t->name, (long long) a->key_length,
            (long long) a->n_heads, ggml_type_name(t->type), (long long) t->ne[0], (long long) t->ne[1], (long long) t->ne[2]);
        return;
    }
    const size_t row = (size_t) a->key_length * sizeof(float);
    if (!reserve(&q->values, &q->len, (size_t) ggml_nelements(t))) {
        fail(hook, "node %s: out of memory", t->name);
        return;
    }
    const char * data = host_data(t);
    if (data && ggml_is_contiguous(t)) {
        memcpy(q->values, data, ggml_nbytes(t));
    } else if (data) {
        for (int64_t i = 0; i < t->ne[1] * t->ne[2]; i++) {
            memcpy((char *) q->values + (size_t) i * row, data + (size_t) (i % t->ne[1]) * t->nb[1] + (size_t) (i / t->ne[1]) * t->nb[2], row);
        }
    } else if (ggml_is_contiguous(t)) {
        ggml_backend_tensor_get(t, q->values, 0, ggml_nbytes(t));
    } else {
        fail(hook, "node %s: expected it to be contiguous on its device", t->name);
        return;
    }
    /* A layer that comes again belongs to a new graph: the one before was cut short. */
    if (hook->applied[il]) forget_graph(hook);
    q->layer = il;
    q->n_tokens = t->ne[2];
    q->source = t;
}

static void add_terms(struct ptplus_llama * hook, struct ggml_tensor * t, int64_t il) {
    const struct ptplus_llama_adapter * first = hook->on[0].adapter;
    const int64_t n_tokens = t->ne[1];
    if (t->type != GGML_TYPE_F32 || t->ne[0] != first->value_length * first->n_heads || t->ne[2] != 1 || t->ne[3] != 1 || !ggml_is_contiguous(t)) {
        fail(hook, "node %s: expected F32 [%lld, T], contiguous, found %s [%lld, %lld, %lld]", t->name,
            (long long) (first->value_length * first->n_heads), ggml_type_name(t->type), (long long) t->ne[0], (long long) t->ne[1], (long long) t->ne[2]);
        return;
    }
    float * out = (float *) (uintptr_t) host_data(t);
    const bool on_device = out == NULL;
    if (on_device) {
        if (!reserve(&hook->staging, &hook->staging_len, (size_t) ggml_nelements(t))) {
            fail(hook, "node %s: out of memory", t->name);
            return;
        }
        out = hook->staging;
        ggml_backend_tensor_get(t, out, 0, ggml_nbytes(t));
    }
    for (int i = 0; i < hook->n_adapters && !hook->failed; i++) {
        const struct ptplus_llama_adapter * a = hook->on[i].adapter;
        if (hook->on[i].scale == 0.0f || !a->layers[il].memory) continue;
        const struct query * q = &hook->queries[a->tap];
        if (q->layer != il || q->n_tokens != n_tokens) {
            fail(hook, "layer %lld: expected its %s query of %lld tokens before %s, found none", (long long) il, TAPS[a->tap], (long long) n_tokens, t->name);
            break;
        }
        struct job job = { .adapter = a, .layer = &a->layers[il], .scale = hook->on[i].scale, .q = q->values, .out = out,
            .n_tokens = n_tokens, .n_blocks = (n_tokens + BLOCK - 1) / BLOCK };
        run(&hook->pool, &job, n_tokens == 1 ? hook->n_threads : hook->n_threads_batch);
        if (job.zero) {
            fail(hook, "layer %lld, head %lld, token %lld of the batch: the normaliser's denominator is 0", (long long) il,
                (long long) ((job.zero - 1) / n_tokens), (long long) ((job.zero - 1) % n_tokens));
        }
    }
    /* The rest of the graph runs on: it must not give numbers that look right. */
    for (int64_t i = 0; hook->failed && i < ggml_nelements(t); i++) out[i] = NAN;
    if (on_device) ggml_backend_tensor_set(t, out, 0, ggml_nbytes(t));
    hook->applied[il] = 1;
}

/* The last node of a graph: were all layers there? */
static void end_graph(struct ptplus_llama * hook) {
    const int64_t missing = first_missing(hook);
    if (missing >= 0) {
        fail(hook, "layer %lld: its nodes Qcur-%lld and kqv_out-%lld never appeared, so the adapter does nothing there",
            (long long) missing, (long long) missing, (long long) missing);
    } else {
        hook->n_graphs++;
    }
    forget_graph(hook);
}

/* Whether we want to see `t`, once it is computed. */
static bool wants(struct ptplus_llama * hook, const struct ggml_tensor * t) {
    int64_t il;
    const int tap = tap_of(hook, t, &il);
    if (tap == POST_ROPE && adapts(hook, il, PRE_ROPE)) {
        const struct query * q = &hook->queries[PRE_ROPE];
        if (q->layer != il || q->source != t->src[0]) {
            fail(hook, "layer %lld: expected the query before RoPE to be node %s-%lld, found %s", (long long) il,
                hook->on[0].adapter->architecture->pre_rope, (long long) il, t->src[0] ? t->src[0]->name : "none");
        }
    }
    if (tap != N_TAPS) return adapts(hook, il, tap);
    if (t->op == GGML_OP_SET_ROWS && ggml_is_quantized(t->type)) {
        fail(hook, "node %s: expected a cache of keys and values that is not quantized, found %s", t->name, ggml_type_name(t->type));
    }
    if (t->name[0] == 'r' && strcmp(t->name, "result_output") == 0) end_graph(hook);
    return t->name[0] == 'k' && (il = layer_of(t->name, "kqv_out")) >= 0 && adapts(hook, il, N_TAPS);
}

/* ggml_backend_sched_eval_callback */
static bool on_node(struct ggml_tensor * t, bool ask, void * data) {
    struct ptplus_llama * hook = data;
    const bool on = any_on(hook);
    if (ask) {
        const bool wanted = on && wants(hook, t);
        hook->next_wants = hook->next && hook->next(t, true, hook->next_data);
        return wanted || hook->next_wants;
    }
    int64_t il;
    const int tap = on ? tap_of(hook, t, &il) : N_TAPS;
    if (tap != N_TAPS && adapts(hook, il, tap)) {
        take_query(hook, t, (enum tap) tap, il);
    } else if (on && (il = layer_of(t->name, "kqv_out")) >= 0 && adapts(hook, il, N_TAPS)) {
        add_terms(hook, t, il);
    }
    return !hook->next_wants || hook->next(t, false, hook->next_data);
}

/* ggml_abort_callback: ends a graph that has failed. */
static bool on_abort(void * data) {
    struct ptplus_llama * hook = data;
    return hook->failed || (hook->next_abort && hook->next_abort(hook->next_abort_data));
}

/* Room for the scratch of `compute_unit`, for every thread that may run it. */
static bool reserve_scratch(struct ptplus_llama * hook, const struct ptplus_llama_adapter * a) {
    struct pool * p = &hook->pool;
    const size_t len = (size_t) (BLOCK * (a->key_length + a->features_padded + a->values_padded));
    if (len <= p->scratch_len) return true;
    const int n = hook->n_threads > hook->n_threads_batch ? hook->n_threads : hook->n_threads_batch;
    for (int i = 0; i < n; i++) {
        free(p->scratch[i]);
        /* Zeroed: columns beyond F are multiplied by nothing, but must be numbers. */
        if (!(p->scratch[i] = calloc(len, sizeof(float)))) {
            p->scratch_len = 0;
            return false;
        }
    }
    p->scratch_len = len;
    return true;
}

static int clamp_threads(int32_t n) { return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n; }

struct ptplus_llama * ptplus_llama_attach(struct llama_context_params * params, struct ptplus_llama_adapter * adapter) {
    if (ggml_is_quantized(params->type_k) || ggml_is_quantized(params->type_v)) {
        refuse("type_k, type_v: expected a cache of keys and values that is not quantized, found %s and %s: llama.cpp rotates a quantized cache",
            ggml_type_name(params->type_k), ggml_type_name(params->type_v));
        return NULL;
    }
    const bool more = params->cb_eval == on_node;
    struct ptplus_llama * hook = more ? params->cb_eval_user_data : calloc(1, sizeof *hook);
    if (!hook) {
        refuse("out of memory");
        return NULL;
    }
    if (!more) {
        hook->n_threads = clamp_threads(params->n_threads);
        hook->n_threads_batch = clamp_threads(params->n_threads_batch);
        hook->pool.unit = best_unit();
        pthread_mutex_init(&hook->pool.lock, NULL);
        pthread_cond_init(&hook->pool.wake, NULL);
        pthread_cond_init(&hook->pool.done, NULL);
        hook->applied = calloc((size_t) adapter->n_layers, 1);
    }
    const struct ptplus_llama_adapter * first = more ? hook->on[0].adapter : adapter;
    bool known = false;
    for (int i = 0; i < hook->n_adapters; i++) known |= hook->on[i].adapter == adapter;
    bool ok = true;
    if (known || hook->n_adapters == MAX_ADAPTERS) {
        ok = refuse("expected up to %d different adapters", MAX_ADAPTERS);
    } else if (first->architecture != adapter->architecture || first->n_layers != adapter->n_layers || first->n_heads != adapter->n_heads ||
        first->key_length != adapter->key_length || first->value_length != adapter->value_length) {
        ok = refuse("expected adapters of one model");
    } else if (!hook->applied || !reserve_scratch(hook, adapter)) {
        ok = refuse("out of memory");
    }
    if (!ok) {
        if (!more) ptplus_llama_detach(hook);
        return NULL;
    }
    hook->on[hook->n_adapters].adapter = adapter;
    hook->on[hook->n_adapters++].scale = 1.0f;
    forget_graph(hook);
    if (!more) {
        hook->next = params->cb_eval;
        hook->next_data = params->cb_eval_user_data;
        hook->next_abort = params->abort_callback;
        hook->next_abort_data = params->abort_callback_data;
        params->cb_eval = on_node;
        params->cb_eval_user_data = hook;
        params->abort_callback = on_abort;
        params->abort_callback_data = hook;
    }
    return hook;
}

bool ptplus_llama_set_scale(struct ptplus_llama * hook, const struct ptplus_llama_adapter * adapter, float scale) {
    if (!isfinite(scale)) return refuse("expected a finite scale");
    for (int i = 0; i < hook->n_adapters; i++) {
        if (hook->on[i].adapter == adapter) {
            hook->on[i].scale = scale;
            hook->n_graphs = 0;
            forget_graph(hook);
            return true;
        }
    }
    return refuse("expected an adapter that is attached");
}

const char * ptplus_llama_check(struct ptplus_llama * hook) {
    if (!hook->failed && any_on(hook) && hook->n_graphs == 0) {
        const int64_t missing = first_missing(hook);
        if (missing >= 0) fail(hook, "layer %lld: the adapter has not been applied: no graph with its nodes was computed", (long long) missing);
    }
    if (!hook->failed) return NULL;
    memcpy(hook->returned, hook->message, sizeof hook->returned);
    hook->failed = false;
    forget_graph(hook);
    return hook->returned;
}

void ptplus_llama_detach(struct ptplus_llama * hook) {
    if (!hook) return;
    struct pool * p = &hook->pool;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_started; i++) pthread_join(p->threads[i], NULL);
    for (int i = 0; i <= MAX_THREADS; i++) free(p->scratch[i]);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    for (int tap = 0; tap < N_TAPS; tap++) free(hook->queries[tap].values);
    free(hook->staging);
    free(hook->applied);
    free(hook);
}
