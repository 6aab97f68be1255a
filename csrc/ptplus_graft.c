/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Copyright (c) 2026 the ptplus authors */
/*
 * Prefix-Tuning+ adapters (GGUF files that `ptplus` writes) as nodes of llama.cpp's own graph, in any program that calls
 * ggml_mul_mat through a dynamic relocation. No header of ggml or llama.cpp: functions are looked up by name, layouts measured.
 *
 *   cc -O2 -shared -fPIC -fvisibility=hidden -Iinclude -o libptplus_graft.so csrc/ptplus_graft.c -ldl
 *   LD_PRELOAD=$PWD/libptplus_graft.so PTPLUS_ADAPTER_1=adapter.gguf PROGRAM ...
 *
 * PTPLUS_ADAPTER_1=PATH, PTPLUS_ADAPTER_2 ..  adapters, numbered without a gap, at most 16; PTPLUS_SCALE_1=0.5 ..  their factors, else 1
 * PTPLUS_CONTROL=PATH      a file of lines `NAME SCALE`; NAME is an adapter's file without .gguf, or its number. A regular file, the user's
 *                          own, not writable by others, at most 4 KiB. Read before a graph is computed, if it has changed.
 * PTPLUS_VERBOSE=1         one line on stderr once the adapters are in a graph
 * PTPLUS_GRAFT_OPS=ggml    activations as ggml's operations on the CPU too, as on other devices
 *
 * The output projection of layer i is ggml_mul_mat(ctx, w, x) with w named blk.{i}.attn_output.weight. From x the graph is walked
 * back to the query q [D, H, T] that attention took, and x + scale * term goes on in its place:
 *
 *   term = memory_scale * phi(query_scale * q) M  [ / (phi . N) ]        phi(x) = act(x) or act(x W^T + b)
 *
 * What is not as expected ends the program with one line on stderr and an exit code of `ptplus`. Programs that know of adapters use
 * include/ptplus.h instead of the environment, and get the line as an error. docs/LLAMA_CPP.md describes both.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "ptplus.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __FAST_MATH__
#error "ptplus_graft.c tells NaN from numbers: compile it without -ffast-math"
#endif

enum { MAX_ADAPTERS = 16, MAX_LAYERS = 1024, MAX_FEATURES = 65536, MAX_MODULES = 64, MESSAGE = 512 };
enum { OTHER = 1, USAGE = 2, CORRUPT = 3, MISFIT = 4, WRONG = 5, UNSUPPORTED = 7 }; /* exit codes */
enum { F32 = 0, F16 = 1, I32 = 26, OF_U32 = 4, OF_I32 = 5, OF_F32 = 6, OF_TEXT = 8, OF_ARRAY = 9 }; /* GGUF files have these, so they never change */

static bool fail(struct ptplus * set, int code, const char * format, ...) __attribute__((format(printf, 3, 4)));
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

/* ---- ggml, found at run time ---- */

typedef struct ggml_tensor * node;
struct init_params { size_t size; void * memory; bool no_alloc; };
struct gguf_params { bool no_alloc; void ** ctx; };
typedef void custom1(node dst, node a, int ith, int nth, void * data);
typedef void custom2(node dst, node a, node b, int ith, int nth, void * data);

/* Integers that became 64 bits wide over the years are declared as `int`: its bits are right in both. */
#define NEEDED(X) \
    X(node, ggml_mul_mat, (void *, node, node)) X(const char *, ggml_get_name, (node)) X(const char *, ggml_op_desc, (node)) \
    X(void *, ggml_get_data, (node)) X(size_t, ggml_nbytes, (node)) X(bool, ggml_is_contiguous, (node)) X(size_t, ggml_tensor_overhead, (void)) \
    X(void *, ggml_init, (struct init_params)) X(void, ggml_free, (void *)) X(node, ggml_new_tensor, (void *, int, int, const int64_t *)) \
    X(node, ggml_set_name, (node, const char *)) X(node, ggml_get_tensor, (void *, const char *)) X(node, ggml_cont, (void *, node)) \
    X(node, ggml_permute, (void *, node, int, int, int, int)) X(node, ggml_reshape_3d, (void *, node, int64_t, int64_t, int64_t)) \
    X(node, ggml_scale, (void *, node, float)) X(node, ggml_add, (void *, node, node)) X(node, ggml_mul, (void *, node, node)) \
    X(node, ggml_div, (void *, node, node)) X(node, ggml_map_custom1, (void *, node, custom1 *, int, void *)) \
    X(node, ggml_map_custom2, (void *, node, node, custom2 *, int, void *)) X(void *, ggml_backend_alloc_ctx_tensors_from_buft, (void *, void *)) \
    X(void, ggml_backend_tensor_set, (node, const void *, size_t, size_t)) X(void *, ggml_backend_buffer_get_type, (void *)) \
    X(void *, ggml_backend_buft_get_device, (void *)) X(bool, ggml_backend_buft_is_host, (void *)) X(void *, ggml_backend_dev_buffer_type, (void *)) \
    X(const char *, ggml_backend_buft_name, (void *)) X(void, ggml_backend_buffer_free, (void *)) X(void, ggml_backend_buffer_set_usage, (void *, int)) \
    X(void *, ggml_backend_cpu_buffer_type, (void)) X(void *, gguf_init_from_file, (const char *, struct gguf_params)) X(void, gguf_free, (void *)) \
    X(int, gguf_find_key, (void *, const char *)) X(int, gguf_get_kv_type, (void *, int64_t)) X(const char *, gguf_get_val_str, (void *, int64_t)) \
    X(uint32_t, gguf_get_val_u32, (void *, int64_t)) X(float, gguf_get_val_f32, (void *, int64_t)) X(int, gguf_get_arr_type, (void *, int64_t)) \
    X(int, gguf_get_arr_n, (void *, int64_t)) X(const void *, gguf_get_arr_data, (void *, int64_t)) X(int, gguf_get_n_tensors, (void *)) \
    X(int, gguf_find_tensor, (void *, const char *)) X(size_t, gguf_get_tensor_offset, (void *, int64_t)) X(size_t, gguf_get_data_offset, (void *)) \
    X(bool, ggml_validate_row_data, (int, const void *, size_t))
/* Needed where an adapter on a device asks for them, or used where they are. */
#define WELCOME(X) \
    X(node, ggml_sqr, (void *, node)) X(node, ggml_elu, (void *, node)) X(node, ggml_relu, (void *, node)) X(node, ggml_silu, (void *, node)) \
    X(node, ggml_gelu_erf, (void *, node)) X(node, ggml_sigmoid, (void *, node)) X(node, ggml_tanh, (void *, node)) X(node, ggml_exp, (void *, node)) \
    X(node, ggml_abs, (void *, node)) X(node, ggml_neg, (void *, node)) X(void, ggml_backend_sched_synchronize, (void *)) \
    X(int, ggml_graph_n_nodes, (void *)) X(node, ggml_graph_node, (void *, int))

#define FIELD(result, name, arguments) result(*name) arguments;
static struct { NEEDED(FIELD) WELCOME(FIELD) } g;
static struct { size_t type, buffer, ne, nb, src; } at; /* where a tensor keeps what has no function: offsets in bytes */

static const int64_t * ne(node t) { return (const int64_t *) ((const char *) t + at.ne); }
static const size_t * nb(node t) { return (const size_t *) ((const char *) t + at.nb); }
static node src(node t, int i) { return ((node *) ((char *) t + at.src))[i]; }
static int type_of(node t) { return *(const int *) ((const char *) t + at.type); }
static void * buffer_of(node t) { return *(void **) ((char *) t + at.buffer); }
static bool is(node t, const char * op) { return t && strcmp(g.ggml_op_desc(t), op) == 0; }

/* The offset of `size` bytes like `value` in a tensor, else SIZE_MAX. */
static size_t offset_in(node t, const void * value, size_t size) {
    for (size_t i = 0; i + size <= g.ggml_tensor_overhead(); i += sizeof(int)) {
        if (memcmp((const char *) t + i, value, size) == 0) return i;
    }
    return SIZE_MAX;
}

/* Finds the layout of a tensor with tensors whose fields are known. False where it does not answer. */
static bool measure(void) {
    /* Room behind the tensors that are looked at: the overhead is a little more than a tensor. */
    const struct init_params params = { 16 * g.ggml_tensor_overhead(), NULL, true };
    const int64_t ne_a[4] = { 5, 7, 11, 1 }, ne_b[4] = { 5, 3, 11, 1 }, ne_product[4] = { 7, 3, 11, 1 }, n = 32;
    const size_t nb_product[4] = { 4, 28, 84, 924 };
    void * ctx = g.ggml_init(params), * allocated = g.ggml_init(params);
    const node a = g.ggml_new_tensor(ctx, F32, 4, ne_a), b = g.ggml_new_tensor(ctx, F32, 4, ne_b), sources[] = { a, b };
    const node half = g.ggml_new_tensor(ctx, F16, 1, &n), whole = g.ggml_new_tensor(ctx, I32, 1, &n), product = g.ggml_mul_mat(ctx, a, b);
    const node stored = g.ggml_new_tensor(allocated, F32, 1, &n);
    void * buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(allocated, g.ggml_backend_cpu_buffer_type());
    g.ggml_set_name(a, "ptplus");
    at.ne = offset_in(product, ne_product, sizeof ne_product);
    at.nb = offset_in(product, nb_product, sizeof nb_product);
    at.src = offset_in(product, sources, sizeof sources);
    at.buffer = offset_in(stored, &buffer, sizeof buffer);
    for (at.type = 0; at.type < g.ggml_tensor_overhead() && !(type_of(a) == F32 && type_of(half) == F16 && type_of(whole) == I32);) at.type += sizeof(int);
    const bool known = buffer && at.ne != SIZE_MAX && at.nb != SIZE_MAX && at.src != SIZE_MAX && at.buffer != SIZE_MAX && at.type < g.ggml_tensor_overhead() &&
        memcmp(ne(a), ne_a, sizeof ne_a) == 0 && nb(a)[1] == 20 && nb(a)[2] == 140 && !src(a, 0) && !src(a, 1) && !buffer_of(a) && type_of(product) == F32 &&
        is(product, "MUL_MAT") && strcmp(g.ggml_get_name(a), "ptplus") == 0;
    if (buffer) g.ggml_backend_buffer_free(buffer);
    g.ggml_free(allocated);
    g.ggml_free(ctx);
    return known;
}

/* ---- adapters ---- */

/* The architectures whose row order is known. q is what the last RoPE before attention makes; where layers have none, it is Qcur-{i}. */
static const struct architecture { const char * name, * order; bool some_without_rope; } ARCHITECTURES[] = {
    { "llama", "norm", false }, { "qwen2", "neox", false }, { "qwen3", "neox", false }, { "qwen2moe", "neox", false }, { "qwen3moe", "neox", false },
    { "gemma", "neox", false }, { "gemma2", "neox", false }, { "gemma3", "neox", false }, { "phi3", "neox", false }, { "olmo2", "neox", false },
    { "granite", "norm", false }, { "smollm3", "norm", true },
};

static const struct architecture * architecture_of(const char * name) {
    for (size_t i = 0; name && i < sizeof ARCHITECTURES / sizeof *ARCHITECTURES; i++) {
        if (strcmp(name, ARCHITECTURES[i].name) == 0) return &ARCHITECTURES[i];
    }
    return NULL;
}

enum map { IDENTITY, ELU, ELU_PLUS_ONE, RELU, SILU, GELU, GELU_TANH, SOFTPLUS, SIGMOID, TANH, EXP, N_MAPS };
static const char * const MAPS[] = { "identity", "elu", "elu_plus_one", "relu", "silu", "gelu", "gelu_tanh", "softplus", "sigmoid", "tanh", "exp", NULL };
enum tap { POST_ROPE, PRE_ROPE };
static const char * const TAPS[] = { "post_rope", "pre_rope", NULL }, * const SHARINGS[] = { "per_head", "per_kv_head", "shared", NULL };

enum part { MEMORY, WEIGHT, BIAS, NORMALIZER, N_PARTS }; /* ne [F, D_v, H'], [D, F, H'], [F, H'], [F, H'] */
static const char * const PARTS[] = { "memory.weight", "feature.weight", "feature.bias", "normalizer.weight" };
struct stored { int type; int64_t ne[3]; uint64_t offset; size_t len_bytes; }; /* a tensor in the adapter's file; 0 bytes: not there */

/* Numbers that ggml's operations take as tensors of one element; the first is the adapter's factor. */
static const float CONSTANTS[] = { 1, 1, 2, 1 / 3.0f, 1 / 5.0f, 1 / 7.0f, 1 / 9.0f, 1 / 11.0f, 1 / 13.0f, 0.797884561f };
enum { FACTOR, ONE, TWO, THIRD, ROOT_2_PI = 9, N_CONSTANTS };

/* A layer's weights on one device. */
struct place {
    struct place * next;
    const struct adapter * adapter;
    void * ctx, * buft, * buffer;
    int layer;
    bool cpu; /* with our own activations */
    node parts[N_PARTS], constants[N_CONSTANTS];
    float * bias; /* [H', F], where `cpu` */
};

struct layer { bool adapted; struct stored parts[N_PARTS]; };
struct adapter {
    struct ptplus * set;
    char * path, name[256]; /* the file's name without .gguf */
    int file;
    const struct architecture * architecture;
    int64_t n_layers, n_heads, n_heads_kv, key_length, value_length, n_features, n_memories;
    int map, tap;
    float query_scale, memory_scale;
    _Atomic float scale;
    struct layer * layers; /* n_layers */
    struct place * places;
};

struct progress { const void * ctx; int n; bool had[MAX_LAYERS]; }; /* the layers of the graph being built that have their terms */

struct ptplus {
    bool of_environment, complete; /* complete: a graph has had all layers */
    struct adapter adapters[MAX_ADAPTERS];
    int n;
    _Atomic bool failed;
    char message[MESSAGE], returned[MESSAGE];
    struct progress progress;
};

static _Thread_local char last_error[MESSAGE];

/* Ends the program, with one line. */
static _Noreturn void die(int code, const char * text) {
    char line[MESSAGE + 16];
    const int len = snprintf(line, sizeof line, "ptplus: %s\n", text);
    _exit(write(STDERR_FILENO, line, (size_t) len) < 0 ? OTHER : code);
}

/* Ends the program for adapters of the environment, or NULL; else keeps the first reason for `ptplus_check`. False. */
static bool fail(struct ptplus * set, int code, const char * format, ...) {
    char text[MESSAGE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!set || set->of_environment) die(code, text);
    pthread_mutex_lock(&lock);
    if (!set->failed) memcpy(set->message, text, sizeof text);
    set->failed = true;
    pthread_mutex_unlock(&lock);
    return false;
}

static const char * text_at(void * file, const char * key) {
    const int id = g.gguf_find_key(file, key);
    return id >= 0 && g.gguf_get_kv_type(file, id) == OF_TEXT ? g.gguf_get_val_str(file, id) : NULL;
}

/* A size, or the one that an array repeats; -1 for another type or different ones, `absent` where the key is not there. */
static int64_t size_at(void * file, const char * key, int64_t absent) {
    const int id = g.gguf_find_key(file, key), type = id < 0 ? -1 : g.gguf_get_kv_type(file, id);
    if (type == OF_U32) return g.gguf_get_val_u32(file, id);
    const int element = type == OF_ARRAY ? g.gguf_get_arr_type(file, id) : -1, n = element == OF_U32 || element == OF_I32 ? g.gguf_get_arr_n(file, id) : 0;
    const int32_t * values = n > 0 ? g.gguf_get_arr_data(file, id) : NULL;
    for (int i = 1; i < n; i++) {
        if (values[i] != values[0]) return -1;
    }
    return n > 0 ? values[0] : id < 0 ? absent : -1;
}

#define KEY "adapter.prefix_tuning_plus."

/* The place of the key's text in `names`, else fails and is -1. */
static int choice_at(struct adapter * a, void * file, const char * key, const char * const * names) {
    const char * text = text_at(file, key);
    for (int i = 0; text && names[i]; i++) {
        if (strcmp(text, names[i]) == 0) return i;
    }
    fail(a->set, UNSUPPORTED, "%s: %s: expected %s%s, found %.64s", a->path, key, names[0], names[1] ? ", .." : "", text ? text : "none");
    return -1;
}

static bool read_config(struct adapter * a, void * file) {
    static const char * const ADAPTER[] = { "adapter", NULL }, * const KIND[] = { "prefix_tuning_plus", NULL };
    if (choice_at(a, file, "general.type", ADAPTER) < 0 || choice_at(a, file, "adapter.type", KIND) < 0) return false;
    const char * name = text_at(file, "general.architecture");
    a->architecture = architecture_of(name);
    if (!a->architecture) return fail(a->set, UNSUPPORTED, "%s: general.architecture: expected one whose row order is known, found %.64s", a->path, name ? name : "none");
    const char * const order[] = { a->architecture->order, NULL };
    int64_t version;
    const struct { const char * key; int64_t most, * to; } sizes[] = {
        { KEY "version", 1, &version }, { KEY "block_count", MAX_LAYERS, &a->n_layers }, { KEY "head_count", INT32_MAX, &a->n_heads },
        { KEY "head_count_kv", INT32_MAX, &a->n_heads_kv }, { KEY "key_length", INT32_MAX, &a->key_length },
        { KEY "value_length", INT32_MAX, &a->value_length }, { KEY "feature_length", MAX_FEATURES, &a->n_features },
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *sizes[i].to = size_at(file, sizes[i].key, -1);
        if (*sizes[i].to < 1 || *sizes[i].to > sizes[i].most) return fail(a->set, CORRUPT, "%s: %s: expected 1 to %lld", a->path, sizes[i].key, (long long) sizes[i].most);
    }
    const struct { const char * key; float * to; } factors[] = { { KEY "query_scale", &a->query_scale }, { KEY "memory_scale", &a->memory_scale } };
    for (int i = 0; i < 2; i++) {
        const int id = g.gguf_find_key(file, factors[i].key);
        *factors[i].to = id >= 0 && g.gguf_get_kv_type(file, id) == OF_F32 ? g.gguf_get_val_f32(file, id) : NAN;
        if (!isfinite(*factors[i].to)) return fail(a->set, CORRUPT, "%s: %s: expected a finite F32", a->path, factors[i].key);
    }
    int sharing;
    if (choice_at(a, file, KEY "query_order", order) < 0 || (a->map = choice_at(a, file, KEY "feature_map", MAPS)) < 0 ||
        (a->tap = choice_at(a, file, KEY "query_tap", TAPS)) < 0 || (sharing = choice_at(a, file, KEY "memory_sharing", SHARINGS)) < 0) {
        return false;
    }
    a->n_memories = sharing == 0 ? a->n_heads : sharing == 1 ? a->n_heads_kv : 1;
    return a->n_heads % a->n_memories == 0 || fail(a->set, CORRUPT, "%s: " KEY "head_count: expected a multiple of head_count_kv", a->path);
}

/* The bytes of a tensor, to be freed; NULL where memory is out or the file has become shorter. */
static char * bytes_of(const struct adapter * a, const struct stored * s) {
    char * bytes = malloc(s->len_bytes);
    for (size_t done = 0; bytes && done < s->len_bytes;) {
        const ssize_t n = pread(a->file, bytes + done, s->len_bytes - done, (off_t) (s->offset + done));
        if (n <= 0) {
            free(bytes);
            return NULL;
        }
        done += (size_t) n;
    }
    return bytes;
}

static bool read_part(struct adapter * a, void * file, void * tensors, uint64_t file_len, uint32_t layer, int part, int * n_read) {
    const int64_t f = a->n_features, h = a->n_memories, shapes[N_PARTS][4] = { { f, a->value_length, h, 1 }, { a->key_length, f, h, 1 }, { f, h, 1, 1 }, { f, h, 1, 1 } };
    struct stored * s = &a->layers[layer].parts[part];
    char name[64];
    snprintf(name, sizeof name, "blk.%u.attn_prefix_%s", layer, PARTS[part]);
    const int id = g.gguf_find_tensor(file, name);
    if (id < 0) return !(part == MEMORY || (part == WEIGHT && f != a->key_length)) || fail(a->set, CORRUPT, "%s: %s: expected this tensor, found none", a->path, name);
    const node t = g.ggml_get_tensor(tensors, name);
    if (!t || memcmp(ne(t), shapes[part], sizeof shapes[part]) != 0) {
        return fail(a->set, CORRUPT, "%s: %s: expected [%lld, %lld, %lld]", a->path, name, (long long) shapes[part][0], (long long) shapes[part][1], (long long) shapes[part][2]);
    }
    *s = (struct stored) { .type = type_of(t), .offset = g.gguf_get_data_offset(file) + g.gguf_get_tensor_offset(file, id), .len_bytes = g.ggml_nbytes(t) };
    memcpy(s->ne, shapes[part], sizeof s->ne);
    /* 24 to 28 are integers and F64. */
    if ((s->type >= 24 && s->type <= 28) || (part >= BIAS && s->type != F32)) return fail(a->set, UNSUPPORTED, "%s: %s: type %d cannot be decoded", a->path, name, s->type);
    if (s->offset > file_len || s->len_bytes > file_len - s->offset) return fail(a->set, CORRUPT, "%s: %s: the file ends before this tensor does", a->path, name);
    char * bytes = bytes_of(a, s);
    if (!bytes) return fail(a->set, OTHER, "%s: %s: cannot be read", a->path, name);
    const bool finite = g.ggml_validate_row_data(s->type, bytes, s->len_bytes);
    free(bytes);
    ++*n_read;
    return finite || fail(a->set, CORRUPT, "%s: %s: expected finite values", a->path, name);
}

static bool read_layers(struct adapter * a, void * file, void * tensors, uint64_t file_len) {
    const int id = g.gguf_find_key(file, KEY "layers");
    const bool is_list = id >= 0 && g.gguf_get_kv_type(file, id) == OF_ARRAY && g.gguf_get_arr_type(file, id) == OF_U32;
    const int n = is_list ? g.gguf_get_arr_n(file, id) : 0;
    const uint32_t * list = n > 0 ? g.gguf_get_arr_data(file, id) : NULL;
    int n_read = 0;
    if (n < 1 || n > a->n_layers) return fail(a->set, CORRUPT, "%s: " KEY "layers: expected 1 to %lld layers, as u32", a->path, (long long) a->n_layers);
    if (!(a->layers = calloc((size_t) a->n_layers, sizeof *a->layers))) return fail(a->set, OTHER, "out of memory");
    for (int i = 0; i < n; i++) {
        struct layer * l = list[i] < a->n_layers ? &a->layers[list[i]] : NULL;
        if (!l || l->adapted) return fail(a->set, CORRUPT, "%s: " KEY "layers: expected different layers below %lld", a->path, (long long) a->n_layers);
        l->adapted = true;
        for (int part = 0; part < N_PARTS; part++) {
            if (!read_part(a, file, tensors, file_len, list[i], part, &n_read)) return false;
        }
        if (l->parts[BIAS].len_bytes && !l->parts[WEIGHT].len_bytes) return fail(a->set, CORRUPT, "%s: blk.%u.attn_prefix_feature.weight: expected one beside the bias", a->path, list[i]);
    }
    return n_read == g.gguf_get_n_tensors(file) || fail(a->set, CORRUPT, "%s: some tensors are no part of the adapter", a->path);
}

/* Why the adapter is not for the model of this file: writes it to `why` and is true. */
static bool misfits(const struct adapter * a, void * file, char * why, size_t len) {
    const char * name = text_at(file, "general.architecture");
    if (!name || strcmp(name, a->architecture->name) != 0) {
        return snprintf(why, len, "%.120s: general.architecture: expected %.32s, as the model has, found %s", a->path, name ? name : "none", a->architecture->name), true;
    }
    char key[96];
#define OF_MODEL(field, absent) (snprintf(key, sizeof key, "%s." field, name), size_at(file, key, absent))
    const int64_t heads = OF_MODEL("attention.head_count", -1), d = heads > 0 ? OF_MODEL("embedding_length", -1) / heads : -1;
    const struct { const char * field; int64_t expected, found; } sizes[] = {
        { "block_count", OF_MODEL("block_count", -1), a->n_layers }, { "head_count", heads, a->n_heads }, { "head_count_kv", OF_MODEL("attention.head_count_kv", heads), a->n_heads_kv },
        { "key_length", OF_MODEL("attention.key_length", d), a->key_length }, { "value_length", OF_MODEL("attention.value_length", d), a->value_length },
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i].expected == sizes[i].found) continue;
        return snprintf(why, len, "%.120s: %s: expected %lld, as the model has, found %lld", a->path, sizes[i].field, (long long) sizes[i].expected, (long long) sizes[i].found), true;
    }
    return false;
}

/* Reads an adapter into the next slot. */
static bool load(struct ptplus * set, const char * path, float scale) {
    struct adapter * a = &set->adapters[set->n++];
    struct stat status;
    const char * stem = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const size_t len = strlen(stem), suffix = len > 5 && strcmp(stem + len - 5, ".gguf") == 0 ? 5 : 0;
    a->set = set;
    a->scale = scale;
    a->path = strdup(path);
    a->file = open(path, O_RDONLY | O_CLOEXEC);
    if (!a->path || len - suffix >= sizeof a->name) return fail(set, OTHER, "%.256s: too long a name, or out of memory", path);
    memcpy(a->name, stem, len - suffix);
    if (a->file < 0 || fstat(a->file, &status) != 0 || !S_ISREG(status.st_mode)) return fail(set, OTHER, "%.256s: cannot be read", path);
    void * tensors = NULL, * file = g.gguf_init_from_file(path, (struct gguf_params) { true, &tensors });
    if (!file) return fail(set, CORRUPT, "%.256s: expected a GGUF file that ggml can read", path);
    const bool good = read_config(a, file) && read_layers(a, file, tensors, (uint64_t) status.st_size);
    g.gguf_free(file);
    g.ggml_free(tensors);
    return good;
}

/* ---- models: the GGUF files that the program opens, and whose tensors it makes of them ---- */

struct model {
    struct model * next;
    dev_t device;
    ino_t inode;
    bool fits, embeds; /* embeds: it says how it pools, and may lie beside the adapted one */
    char name[128], why[MESSAGE];
};
static struct ptplus * environment;          /* the adapters that the environment names, or NULL */
static struct model * models, * adapted;
static _Thread_local struct model * opening; /* what this thread opened last: its tensors are made next */
static struct model * latest; /* what any thread opened last: newer loaders make the tensors on another thread (seen in Node) */
static struct bound { node weight; struct model * model; } * bound;
static size_t n_bound;
static bool grafted;

/* The layer whose output projection, or its LoRA, has this name; else -1. */
static int layer_of(const char * name, bool * lora) {
    static const char PROJECTION[] = ".attn_output.weight";
    if (strncmp(name, "blk.", 4) != 0 || name[4] < '0' || name[4] > '9') return -1;
    char * end;
    const long layer = strtol(name + 4, &end, 10);
    if (layer >= MAX_LAYERS || strncmp(end, PROJECTION, sizeof PROJECTION - 1) != 0) return -1;
    end += sizeof PROJECTION - 1;
    *lora = strcmp(end, ".lora_a") == 0;
    return *lora || !*end ? (int) layer : -1;
}

/* Takes note of a model's file. Further files of a split model have no architecture, and change nothing. */
static void note_model(void * file, const struct stat * status, const char * name) {
    const char * type = text_at(file, "general.type"), * architecture = text_at(file, "general.architecture");
    if (!architecture || (type && strcmp(type, "model") != 0)) return;
    pthread_mutex_lock(&lock);
    struct model * m = models;
    while (m && (m->device != status->st_dev || m->inode != status->st_ino)) m = m->next;
    if (!m) {
        if (!(m = calloc(1, sizeof *m))) die(OTHER, "out of memory");
        char key[96];
        snprintf(key, sizeof key, "%.64s.pooling_type", architecture);
        *m = (struct model) { .next = models, .device = status->st_dev, .inode = status->st_ino, .fits = true, .embeds = g.gguf_find_key(file, key) >= 0 };
        snprintf(m->name, sizeof m->name, "%s", name);
        for (int i = 0; i < environment->n && m->fits; i++) m->fits = !misfits(&environment->adapters[i], file, m->why, sizeof m->why);
        models = m;
    }
    opening = latest = m;
    pthread_mutex_unlock(&lock);
}

/* A tensor like one of the model that this thread opened is made. */
static void note_weight(node made, node like) {
    bool lora;
    if (layer_of(g.ggml_get_name(like), &lora) < 0 || lora) return;
    pthread_mutex_lock(&lock);
    size_t i = 0;
    while (i < n_bound && bound[i].weight != made) i++;
    if (i == n_bound && n_bound % 256 == 0 && !(bound = realloc(bound, (n_bound + 256) * sizeof *bound))) die(OTHER, "out of memory");
    bound[i] = (struct bound) { made, opening ? opening : latest };
    n_bound += i == n_bound;
    pthread_mutex_unlock(&lock);
}

/* Whether `w` is of the model that the environment's adapters are for, or else of one beside it. Ends the program where there is none. */
static bool is_adapted(node w) {
    struct model * m = NULL;
    bool any_fits = false;
    for (size_t i = 0; i < n_bound && !m; i++) m = bound[i].weight == w ? bound[i].model : NULL;
    if (!m) die(UNSUPPORTED, "a model runs whose file was not seen when it was opened: whether the adapters fit it is unknown");
    for (struct model * other = models; other; other = other->next) any_fits |= other->fits;
    if (!m->fits && !any_fits && !m->embeds) die(MISFIT, m->why);
    if (m->fits && adapted && adapted != m) fail(NULL, MISFIT, "the adapters fit two models that are open: %s and %s", adapted->name, m->name);
    if (m->fits) adapted = m;
    return m->fits;
}

/* ---- activations on the CPU: one definition for each map, with PyTorch's tails ---- */

#pragma GCC diagnostic ignored "-Wpsabi" /* no function takes or returns such vectors: all are inlined */
#define INLINE static inline __attribute__((always_inline))
typedef float lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(32), aligned(4), may_alias));

INLINE lanes all(float x) { return (lanes) { x, x, x, x, x, x, x, x }; }
INLINE lanes pick(ints where, lanes a, lanes b) { return (lanes) ((where & (ints) a) | (~where & (ints) b)); }
INLINE lanes magnitude(lanes x) { return (lanes) ((ints) x & 0x7fffffff); }

/* exp(x) = 2 half (1 + tail): Cephes' expf (Moshier). NaN stays NaN. */
INLINE lanes exp_parts(lanes x, lanes * half) {
    x = pick(x < -87.0f, all(-87.0f), pick(x > 89.0f, all(89.0f), x));
    const lanes whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;      /* adding 1.5 * 2^23 rounds to a whole number */
    const lanes r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;   /* ln 2 in two parts: the first product is exact */
    *half = (lanes) ((__builtin_convertvector(whole, ints) + 126) << 23);   /* 2^128 is no number */
    return (((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r + 1.6666665459e-1f) * r + 5.0000001201e-1f) * (r * r) + r;
}
INLINE lanes exponential(lanes x) {
    lanes half, tail = exp_parts(x, &half);
    return pick(x < -87.0f, all(0.0f), (1.0f + tail) * half * 2.0f);
}
INLINE lanes exponential_minus_1(lanes x) {
    lanes half, tail = exp_parts(x, &half);
    return 2.0f * (half * tail + (half - 0.5f)); /* nothing cancels where x is small */
}
INLINE lanes hyperbolic_tangent(lanes x) {
    const lanes twice = 2.0f * magnitude(x), e = exponential_minus_1(pick(twice > 30.0f, all(30.0f), twice));
    return (lanes) ((ints) (e / (e + 2.0f)) | ((ints) x & INT32_MIN));
}
INLINE lanes error_function(lanes x) { /* a quotient of polynomials, as in Eigen */
    x = pick(x < -4.0f, all(-4.0f), pick(x > 4.0f, all(4.0f), x));
    const lanes s = x * x, p = (((((-2.72614225801306e-10f * s + 2.77068142495902e-8f) * s - 2.10102402082508e-6f) * s - 5.69250639462346e-5f) * s -
        7.34990630326855e-4f) * s - 2.95459980854025e-3f) * s - 1.60960333262415e-2f;
    return x * p / ((((-1.45660718464996e-5f * s - 2.13374055278905e-4f) * s - 1.68282697438203e-3f) * s - 7.37332916720468e-3f) * s - 1.42647390514189e-2f);
}
INLINE lanes log_1_plus(lanes u) { /* for u of 0 to 1: 2 artanh(z) */
    const lanes z = u / (2.0f + u), w = z * z;
    return 2.0f * z * ((((((w * (1 / 13.0f) + 1 / 11.0f) * w + 1 / 9.0f) * w + 1 / 7.0f) * w + 1 / 5.0f) * w + 1 / 3.0f) * w + 1.0f);
}
INLINE lanes apply(const int map, lanes x) {
    switch (map) {
    case ELU: return pick(x > 0.0f, x, exponential_minus_1(x));
    case ELU_PLUS_ONE: return pick(x > 0.0f, x, exponential_minus_1(x)) + 1.0f;
    case RELU: return pick(x < 0.0f, all(0.0f), x);
    case SILU: return x / (1.0f + exponential(-x));
    case GELU: return 0.5f * x * (1.0f + error_function(x * 0.707106781f));
    case GELU_TANH: return 0.5f * x * (1.0f + hyperbolic_tangent(x * (0.797884561f + 0.0356774081f * x * x)));
    case SOFTPLUS: return pick(x < 0.0f, all(0.0f), x) + log_1_plus(exponential(-magnitude(x)));
    case SIGMOID: return 1.0f / (1.0f + exponential(-x));
    case TANH: return hyperbolic_tangent(x);
    case EXP: return exponential(x);
    default: return x;
    }
}

/* out [n] = act(scale * in [n] + bias [n]) */
INLINE void activate_row(const int map, float * out, const float * in, int64_t n, float scale, const float * bias) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) *(lanes *) (out + i) = apply(map, *(const lanes *) (in + i) * scale + (bias ? *(const lanes *) (bias + i) : all(0.0f)));
    lanes rest = all(0.0f);
    for (int64_t j = i; j < n; j++) rest[j - i] = in[j] * scale + (bias ? bias[j] : 0.0f);
    rest = apply(map, rest);
    for (int64_t j = i; j < n; j++) out[j] = rest[j - i];
}
/* dst [F, T, H] = act(scale * a + bias), where a may be permuted */
INLINE void activate_rows(node dst, node a, int ith, int nth, const struct place * p) {
    const struct adapter * of = p->adapter;
    const int64_t n = ne(dst)[0], n_tokens = ne(dst)[1], rows = n_tokens * ne(dst)[2];
    const float scale = p->parts[WEIGHT] ? 1.0f : of->query_scale;
    const char * in = g.ggml_get_data(a);
    float * out = g.ggml_get_data(dst);
    for (int64_t row = rows * ith / nth; row < rows * (ith + 1) / nth; row++) {
        const float * from = (const float *) (const void *) (in + (size_t) (row % n_tokens) * nb(a)[1] + (size_t) (row / n_tokens) * nb(a)[2]);
        const float * bias = p->bias ? p->bias + row / n_tokens / (of->n_heads / of->n_memories) * n : NULL;
#define CASE(M) case M: activate_row(M, out + row * n, from, n, scale, bias); break;
        switch (of->map) {
            CASE(IDENTITY) CASE(ELU) CASE(ELU_PLUS_ONE) CASE(RELU) CASE(SILU) CASE(GELU) CASE(GELU_TANH) CASE(SOFTPLUS) CASE(SIGMOID) CASE(TANH) CASE(EXP)
        }
    }
}
/* dst [D_v H, T] = x + factor * term [D_v, T, H] */
INLINE void combine_rows(node dst, node x, node term, int ith, int nth, const struct place * p) {
    const int64_t n = p->adapter->value_length, n_heads = p->adapter->n_heads, n_tokens = ne(term)[1], units = n_tokens * n_heads;
    const float scale = p->adapter->scale, factor = scale * p->adapter->memory_scale, * in = g.ggml_get_data(x), * terms = g.ggml_get_data(term);
    float * out = g.ggml_get_data(dst);
    for (int64_t unit = units * ith / nth; unit < units * (ith + 1) / nth; unit++) {
        const float * from = in + unit * n, * add = terms + (unit % n_heads * n_tokens + unit / n_heads) * n;
        int64_t i = scale == 0.0f ? n : 0; /* a term that is off may be no number */
        if (i == n) memcpy(out + unit * n, from, (size_t) n * sizeof *out);
        for (; i + 8 <= n; i += 8) *(lanes *) (out + unit * n + i) = *(const lanes *) (from + i) + factor * *(const lanes *) (add + i);
        for (; i < n; i++) out[unit * n + i] = from[i] + factor * add[i];
    }
}
static void features_plain(node dst, node a, int ith, int nth, void * data) { activate_rows(dst, a, ith, nth, data); }
static void combine_plain(node dst, node x, node term, int ith, int nth, void * data) { combine_rows(dst, x, term, ith, nth, data); }
static custom1 * features = features_plain;
static custom2 * combine = combine_plain;
#ifdef __x86_64__
#define AVX2 __attribute__((target("avx2,fma"))) static void
AVX2 features_avx2(node dst, node a, int ith, int nth, void * data) { activate_rows(dst, a, ith, nth, data); }
AVX2 combine_avx2(node dst, node x, node term, int ith, int nth, void * data) { combine_rows(dst, x, term, ith, nth, data); }
#endif

/* Copies the normaliser's denominators [1, T, H], which may not be 0. */
static void check_denominators(node dst, node a, int ith, int nth, void * data) {
    const struct place * p = data;
    const float * in = g.ggml_get_data(a);
    const int64_t n_tokens = ne(a)[1], n = n_tokens * ne(a)[2];
    for (int64_t i = n * ith / nth; i < n * (ith + 1) / nth; i++) {
        ((float *) g.ggml_get_data(dst))[i] = in[i] == 0.0f ? NAN : in[i];
        if (in[i] != 0.0f || p->adapter->scale == 0.0f) continue;
        fail(p->adapter->set, WRONG, "%.256s: layer %d, head %lld, token %lld of the batch: the normaliser's denominator is 0", p->adapter->path, p->layer,
            (long long) (i / n_tokens), (long long) (i % n_tokens));
    }
}

/* ---- the graph ---- */

/* The layer's weights on the device that has `w`, put there at the first time. NULL after a failure. */
static struct place * place_for(struct adapter * a, int layer, node w) {
    void * buft = buffer_of(w) ? g.ggml_backend_buffer_get_type(buffer_of(w)) : g.ggml_backend_cpu_buffer_type();
    /* Not into a repacked buffer; the CPU's own type may name no device. */
    void * device = g.ggml_backend_buft_is_host(buft) ? NULL : g.ggml_backend_buft_get_device(buft);
    if (device) buft = g.ggml_backend_dev_buffer_type(device);
    struct place * p = a->places;
    while (p && (p->layer != layer || p->buft != buft)) p = p->next;
    if (p) return p->buffer ? p : NULL;
    if (!(p = calloc(1, sizeof *p))) return fail(a->set, OTHER, "out of memory"), NULL;
    const char * ops = getenv("PTPLUS_GRAFT_OPS");
    const struct stored * parts = a->layers[layer].parts;
    const int64_t f = a->n_features, one = 1, bias[] = { f, 1, a->n_heads }, normalizer[] = { f, 1, a->n_memories };
    *p = (struct place) { .next = a->places, .adapter = a, .buft = buft, .layer = layer, .cpu = g.ggml_backend_buft_is_host(buft) && !(ops && strcmp(ops, "ggml") == 0),
        .ctx = g.ggml_init((struct init_params) { (N_PARTS + N_CONSTANTS + 1) * g.ggml_tensor_overhead(), NULL, true }) };
    a->places = p;
    for (int i = 0; i < N_PARTS; i++) {
        if (parts[i].len_bytes && !(i == BIAS && p->cpu)) p->parts[i] = g.ggml_new_tensor(p->ctx, parts[i].type, 3, i == BIAS ? bias : i == NORMALIZER ? normalizer : parts[i].ne);
    }
    for (int i = 0; i < N_CONSTANTS && !p->cpu; i++) p->constants[i] = g.ggml_new_tensor(p->ctx, F32, 1, &one);
    void * buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(p->ctx, buft);
    if (!buffer) return fail(a->set, OTHER, "%.256s: layer %d: out of memory on %s", a->path, layer, g.ggml_backend_buft_name(buft)), NULL;
    g.ggml_backend_buffer_set_usage(buffer, 1); /* weights */
    for (int i = 0; i < N_PARTS; i++) {
        char * bytes = parts[i].len_bytes ? bytes_of(a, &parts[i]) : NULL;
        if (parts[i].len_bytes && !bytes) return fail(a->set, OTHER, "%.256s: cannot be read any more", a->path), NULL;
        /* ggml repeats a bias in another order than products do, so it is spread over the heads. */
        const size_t row = (size_t) f * sizeof(float);
        for (int64_t head = 0; bytes && i == BIAS && !p->cpu && head < a->n_heads; head++) {
            g.ggml_backend_tensor_set(p->parts[BIAS], bytes + (size_t) (head * a->n_memories / a->n_heads) * row, (size_t) head * row, row);
        }
        if (bytes && i != BIAS) g.ggml_backend_tensor_set(p->parts[i], bytes, 0, parts[i].len_bytes);
        if (i == BIAS && p->cpu) p->bias = (float *) (void *) bytes;
        else free(bytes);
    }
    for (int i = 0; i < N_CONSTANTS && !p->cpu; i++) {
        const float value = i == FACTOR ? a->scale * a->memory_scale : CONSTANTS[i];
        g.ggml_backend_tensor_set(p->constants[i], &value, 0, sizeof value);
    }
    p->buffer = buffer;
    return p;
}

static bool only_moves(node t) { return is(t, "RESHAPE") || is(t, "VIEW") || is(t, "PERMUTE") || is(t, "TRANSPOSE") || is(t, "CONT") || is(t, "CPY"); }
/* A product with no weight of the model: the rotation around a quantized cache. */
static bool rotates(node t) { return is(t, "MUL_MAT") && strncmp(g.ggml_get_name(src(t, 0)), "blk.", 4) != 0; }

/*
 * The query of the attention whose result is x, after RoPE or before it (after bias and norm). NULL where anything else than moves,
 * rotations and factors lies between: that would be another query than the adapter was trained on.
 */
static node find_query(node x, int layer, int tap, bool some_without_rope) {
    enum { DEEPEST = 24 };
    char name[32];
    node t = x, scores = NULL, named = NULL;
    for (int i = 0; t && i < DEEPEST && !is(t, "FLASH_ATTN_EXT"); i++) {
        if (is(t, "MUL_MAT") && is(src(t, 1), "SOFT_MAX")) {
            scores = src(src(t, 1), 0);
            break;
        }
        t = only_moves(t) ? src(t, 0) : rotates(t) ? src(t, 1) : NULL;
    }
    while (is(scores, "SCALE") || is(scores, "TANH") || is(scores, "ADD")) scores = src(scores, 0); /* a cap on the scores, a bias */
    t = is(t, "FLASH_ATTN_EXT") ? src(t, 0) : is(scores, "MUL_MAT") ? src(scores, 1) : NULL;
    snprintf(name, sizeof name, "Qcur-%d", layer);
    for (int i = 0; t && i < DEEPEST && !is(t, "ROPE"); i++) {
        if (!named && !is(t, "SCALE") && strcmp(g.ggml_get_name(t), name) == 0) named = t;
        t = only_moves(t) || is(t, "SCALE") ? src(t, 0) : rotates(t) ? src(t, 1) : NULL;
    }
    return is(t, "ROPE") ? (tap == PRE_ROPE ? src(t, 0) : t) : some_without_rope && !t ? named : NULL;
}

/* What `apply` computes, by ggml's operations. NULL after a failure. */
static node activate(void * ctx, const struct place * p, node x) {
#define HAS(f) if (!g.f) return fail(p->adapter->set, UNSUPPORTED, "this llama.cpp has no function " #f ", which the adapter needs on this device"), NULL
    const node * number = p->constants;
    node t, w, series;
    switch (p->adapter->map) {
    case ELU: HAS(ggml_elu); return g.ggml_elu(ctx, x);
    case ELU_PLUS_ONE: HAS(ggml_elu); return g.ggml_add(ctx, g.ggml_elu(ctx, x), number[ONE]);
    case RELU: HAS(ggml_relu); return g.ggml_relu(ctx, x);
    case SILU: HAS(ggml_silu); return g.ggml_silu(ctx, x);
    case GELU: HAS(ggml_gelu_erf); return g.ggml_gelu_erf(ctx, x);
    case GELU_TANH: /* ggml's own is a table of F16 on the CPU */
        HAS(ggml_sqr); HAS(ggml_tanh);
        t = g.ggml_mul(ctx, x, g.ggml_add(ctx, g.ggml_scale(ctx, g.ggml_sqr(ctx, x), 0.0356774081f), number[ROOT_2_PI]));
        return g.ggml_mul(ctx, g.ggml_scale(ctx, x, 0.5f), g.ggml_add(ctx, g.ggml_tanh(ctx, t), number[ONE]));
    case SOFTPLUS:
        HAS(ggml_exp); HAS(ggml_abs); HAS(ggml_neg); HAS(ggml_sqr); HAS(ggml_relu);
        t = g.ggml_exp(ctx, g.ggml_neg(ctx, g.ggml_abs(ctx, x)));
        t = g.ggml_div(ctx, t, g.ggml_add(ctx, t, number[TWO]));
        w = g.ggml_sqr(ctx, t);
        series = g.ggml_add(ctx, g.ggml_scale(ctx, w, CONSTANTS[THIRD + 5]), number[THIRD + 4]);
        for (int i = 3; i >= -1; i--) series = g.ggml_add(ctx, g.ggml_mul(ctx, series, w), number[i < 0 ? (int) ONE : THIRD + i]);
        return g.ggml_add(ctx, g.ggml_relu(ctx, x), g.ggml_scale(ctx, g.ggml_mul(ctx, t, series), 2.0f));
    case SIGMOID: HAS(ggml_sigmoid); return g.ggml_sigmoid(ctx, x);
    case TANH: HAS(ggml_tanh); return g.ggml_tanh(ctx, x);
    case EXP: HAS(ggml_exp); return g.ggml_exp(ctx, x);
    default: return x;
    }
}

/* x + scale * term of one adapter, for q [D, H, T]. NULL after a failure. */
static node with_term(void * ctx, struct place * p, node q, node x) {
    const struct adapter * a = p->adapter;
    const int64_t h = a->n_heads, n = ne(q)[2];
    const bool in_place = n == 1 && g.ggml_is_contiguous(q);
    node phi = in_place ? g.ggml_reshape_3d(ctx, q, a->key_length, 1, h) : g.ggml_permute(ctx, q, 0, 2, 1, 3); /* [D, T, H] */
    if (!in_place && (!p->cpu || p->parts[WEIGHT])) phi = g.ggml_cont(ctx, phi); /* ggml's fast product wants it so */
    if (a->query_scale != 1.0f && (!p->cpu || p->parts[WEIGHT])) phi = g.ggml_scale(ctx, phi, a->query_scale);
    if (p->parts[WEIGHT]) phi = g.ggml_mul_mat(ctx, p->parts[WEIGHT], phi);
    if (p->parts[BIAS]) phi = g.ggml_add(ctx, phi, p->parts[BIAS]);
    phi = p->cpu ? g.ggml_map_custom1(ctx, phi, features, -1, p) : activate(ctx, p, phi); /* [F, T, H] */
    if (!phi) return NULL;
    node term = g.ggml_mul_mat(ctx, p->parts[MEMORY], phi); /* [D_v, T, H] */
    /* Wherever it is computed, only the denominators come to the CPU. */
    if (p->parts[NORMALIZER]) term = g.ggml_div(ctx, term, g.ggml_map_custom1(ctx, g.ggml_mul_mat(ctx, p->parts[NORMALIZER], phi), check_denominators, -1, p));
    if (p->cpu) return g.ggml_map_custom2(ctx, x, term, combine, -1, p);
    term = g.ggml_mul(ctx, term, p->constants[FACTOR]);
    if (n > 1) term = g.ggml_cont(ctx, g.ggml_permute(ctx, term, 0, 2, 1, 3));
    return g.ggml_add(ctx, x, g.ggml_reshape_3d(ctx, term, a->value_length * h, n, 1));
}

/* A graph has been built: it has all adapted layers, or none, being another model's. */
static void end_graph(struct ptplus * set, struct progress * progress) {
    for (int i = 0; i < set->n && progress->n; i++) {
        for (int layer = 0; layer < set->adapters[i].n_layers; layer++) {
            if (!set->adapters[i].layers[layer].adapted || progress->had[layer]) continue;
            fail(set, UNSUPPORTED, "layer %d: its output projection is not in the graph, so the adapter does nothing there", layer);
            progress->n = 0;
            break;
        }
    }
    if (progress->n && !grafted && getenv("PTPLUS_VERBOSE")) fprintf(stderr, "ptplus: %d adapters in llama.cpp's graph\n", set->n);
    if (progress->n) grafted = set->complete = true;
    memset(progress, 0, sizeof *progress);
}

/* What goes into the output projection `w` of a layer instead of x. NULL after a failure. */
static node graft(struct ptplus * set, struct progress * progress, void * ctx, int layer, node w, node x) {
    if (progress->ctx != ctx || progress->had[layer]) end_graph(set, progress);
    progress->ctx = ctx;
    for (int i = 0; i < set->n; i++) {
        struct adapter * a = &set->adapters[i];
        if (layer >= a->n_layers || !a->layers[layer].adapted) continue;
        const node q = find_query(x, layer, a->tap, a->architecture->some_without_rope);
        if (!q) return fail(set, UNSUPPORTED, "layer %d: the query of its attention is not found in the graph", layer), NULL;
        if (type_of(q) != F32 || type_of(x) != F32 || ne(q)[0] != a->key_length || ne(q)[1] != a->n_heads || ne(q)[3] != 1 || nb(q)[0] != sizeof(float) ||
            ne(x)[0] != a->value_length * a->n_heads || ne(x)[1] != ne(q)[2] || ne(x)[2] != 1 || ne(x)[3] != 1 || !g.ggml_is_contiguous(x)) {
            return fail(set, MISFIT, "layer %d: expected a query of [%lld, %lld, T] in F32, found [%lld, %lld, %lld] with a result of [%lld, %lld]", layer, (long long) a->key_length,
                (long long) a->n_heads, (long long) ne(q)[0], (long long) ne(q)[1], (long long) ne(q)[2], (long long) ne(x)[0], (long long) ne(x)[1]), NULL;
        }
        struct place * p = place_for(a, layer, w);
        if (!p || !(x = with_term(ctx, p, q, x))) return NULL;
        progress->had[layer] = true;
        progress->n++;
    }
    return x;
}

/* ---- finding ggml ---- */

typedef void (*function)(void);
static _Thread_local struct ptplus * active; /* the adapters that the program made active */
static _Thread_local struct progress of_thread;
static char broken[MESSAGE]; /* why there can be no adapters */

#ifdef PTPLUS_STATIC
#define ggml_mul_mat __real_ggml_mul_mat
#define DECLARE(result, name, arguments) extern __attribute__((weak)) result name arguments;
NEEDED(DECLARE) WELCOME(DECLARE)
#define FOUND(name) (function) name
#else
/* What a program is linked with is found by RTLD_NEXT; a library that was dlopened (Node, Python) needs its own handle. */
static function find(void * library, const char * name) {
    void * symbol = dlsym(RTLD_NEXT, name);
    if (!symbol && library) symbol = dlsym(library, name);
    function found;
    memcpy(&found, &symbol, sizeof found);
    return found;
}
#define FOUND(name) find(library, #name)
#endif

static void start(void * library) {
    const struct { const char * name; function found; void * to; bool needed; } functions[] = {
#define WANT(result, name, arguments) { #name, FOUND(name), &g.name, true },
#define TAKE(result, name, arguments) { #name, FOUND(name), &g.name, false },
        NEEDED(WANT) WELCOME(TAKE)
    };
    (void) library;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        memcpy(functions[i].to, &functions[i].found, sizeof(function));
        if (functions[i].needed && !functions[i].found) snprintf(broken, sizeof broken, "this llama.cpp has no function %s, and cannot take adapters", functions[i].name);
    }
    if (!*broken && !measure()) snprintf(broken, sizeof broken, "the layout of this llama.cpp's tensors is not known, and it cannot take adapters");
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) features = features_avx2, combine = combine_avx2;
#endif
}

/* What the product of w and x takes for x. */
static node with_terms(struct ptplus * set, void * ctx, node w, node x) {
    static _Thread_local struct { void * ctx; node x, with; } last; /* a LoRA's first matrix multiplies the same x */
    bool lora;
    const int layer = layer_of(g.ggml_get_name(w), &lora);
    /* llama.cpp also calls this while it loads a model, to ask what a device supports: there x is a bare tensor. */
    if (layer < 0 || !src(x, 0)) return x;
    if (lora) return last.ctx == ctx && last.x == x ? last.with : x;
    node with = x;
    pthread_mutex_lock(&lock);
    if (!set->of_environment || is_adapted(w)) with = graft(set, set->of_environment ? &of_thread : &set->progress, ctx, layer, w, x);
    pthread_mutex_unlock(&lock);
    if (!with) with = g.ggml_scale(ctx, x, NAN); /* what follows must not pass for a result */
    last.ctx = ctx;
    last.x = x;
    return last.with = with;
}

static void set_scale(struct adapter * a, float scale) {
    const float value = scale * a->memory_scale;
    a->scale = scale;
    for (struct place * p = a->places; p; p = p->next) {
        if (p->buffer && !p->cpu) g.ggml_backend_tensor_set(p->constants[FACTOR], &value, 0, sizeof value);
    }
}

#ifdef PTPLUS_STATIC

node __wrap_ggml_mul_mat(void * ctx, node w, node x);
node __wrap_ggml_mul_mat(void * ctx, node w, node x) { return __real_ggml_mul_mat(ctx, w, active ? with_terms(active, ctx, w, x) : x); }

static void find_ggml(void) {
    if (!g.ggml_mul_mat) start(NULL);
}

#else

/* ---- adapters of the environment, and their scales while the program runs ---- */

/* A finite number that is all of the text, whatever the program's locale. */
static bool read_number(const char * text, float * out) {
    char * end;
    const locale_t c = newlocale(LC_ALL_MASK, "C", NULL);
    *out = strtof_l(text, &end, c);
    freelocale(c);
    return end != text && !*end && isfinite(*out);
}

static struct ptplus * of_environment(void) {
    struct ptplus * set = NULL;
    for (int i = 1; i <= MAX_ADAPTERS + 1; i++) {
        char name[32];
        float scale = 1.0f;
        snprintf(name, sizeof name, "PTPLUS_ADAPTER_%d", i);
        const char * path = getenv(name);
        if (!path || !*path) continue;
        if (*broken) die(UNSUPPORTED, broken);
        if (i > MAX_ADAPTERS || i != (set ? set->n : 0) + 1) fail(NULL, USAGE, "%s: expected at most %d adapters, numbered without a gap", name, MAX_ADAPTERS);
        snprintf(name, sizeof name, "PTPLUS_SCALE_%d", i);
        if (getenv(name) && !read_number(getenv(name), &scale)) fail(NULL, USAGE, "%s: expected a number, found %.64s", name, getenv(name));
        if (!set && !(set = calloc(1, sizeof *set))) die(OTHER, "out of memory");
        set->of_environment = true;
        load(set, path, scale);
    }
    return set;
}

/* What is wrong with the text of a control file, or NULL. Fills in the scales that it names. */
static const char * read_scales(const struct ptplus * set, char * text, float * scales) {
    for (char * rest = NULL, * line = strtok_r(text, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest)) {
        char number[16], * gap = strrchr(line, ' ');
        if (line[strspn(line, " ")] == '\0' || *line == '#') continue;
        float scale;
        if (!gap || !read_number(gap + 1, &scale)) return "expected lines of a NAME and a SCALE";
        *gap = '\0';
        int found = -1, n_found = 0;
        for (int i = 0; i < set->n; i++) {
            if (strcmp(line, set->adapters[i].name) == 0) found = i, n_found++;
        }
        for (int i = 0; i < set->n && found < 0; i++) {
            snprintf(number, sizeof number, "%d", i + 1);
            if (strcmp(line, number) == 0) found = i, n_found++;
        }
        if (n_found != 1) return n_found ? "a name means several adapters: give the number" : "a name means none of the adapters";
        scales[found] = scale;
    }
    return NULL;
}

static pthread_rwlock_t computing = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

/* Takes over the scales of the control file, if it has changed. One that is refused is said once, and changes nothing. */
static void follow_control(struct ptplus * set, void * sched) {
    static struct stat seen;
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    const char * path = getenv("PTPLUS_CONTROL"), * wrong = "expected a regular file of this user, not writable by others, of at most 4096 bytes";
    struct stat now;
    if (!path || stat(path, &now) != 0) return;
    pthread_mutex_lock(&one);
    if (memcmp(&now.st_mtim, &seen.st_mtim, sizeof now.st_mtim) != 0 || now.st_ino != seen.st_ino || now.st_size != seen.st_size) {
        char text[4097];
        float scales[MAX_ADAPTERS];
        for (int i = 0; i < set->n; i++) scales[i] = set->adapters[i].scale;
        seen = now;
        const int file = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (file >= 0 && fstat(file, &now) == 0 && S_ISREG(now.st_mode) && now.st_uid == geteuid() && !(now.st_mode & 022) && now.st_size < (off_t) sizeof text) {
            const ssize_t n = read(file, text, sizeof text - 1);
            text[n < 0 ? 0 : n] = '\0';
            wrong = n < 0 ? "cannot be read" : read_scales(set, text, scales);
        }
        if (file >= 0) close(file);
        if (wrong) fprintf(stderr, "ptplus: %s: %s; the scales stay as they are\n", path, wrong);
        pthread_rwlock_wrlock(&computing); /* no graph is computed with two scales */
        for (int i = 0; i < set->n && !wrong; i++) {
            if (scales[i] == set->adapters[i].scale) continue;
            if (g.ggml_backend_sched_synchronize) g.ggml_backend_sched_synchronize(sched);
            set_scale(&set->adapters[i], scales[i]);
        }
        pthread_rwlock_unlock(&computing);
    }
    pthread_mutex_unlock(&one);
}

/* ---- what the program calls in our place ---- */

/* A library that calls us, and where its calls go on to. */
enum { MUL_MAT, DUP_TENSOR, OPEN_FILE, OPEN_STREAM, RESERVE, ALLOCATE, COMPUTE, N_WRAPPED };
static const char * const WRAPPED[] = { "ggml_mul_mat", "ggml_dup_tensor", "gguf_init_from_file", "gguf_init_from_file_ptr", "ggml_backend_sched_reserve",
    "ggml_backend_sched_alloc_graph", "ggml_backend_sched_graph_compute_async" };
static struct module { void * base; function next[N_WRAPPED]; } modules[MAX_MODULES];

/* The library that `caller` is in. The first one's first call finds ggml and reads the adapters. */
static struct module * module_of(void * caller) {
    static _Thread_local struct { void * caller; struct module * module; } known[256];
    const size_t slot = (uintptr_t) caller / 4 % 256;
    if (known[slot].caller == caller) return known[slot].module;
    Dl_info info;
    struct module * m = modules;
    pthread_mutex_lock(&lock);
    if (!dladdr(caller, &info)) die(OTHER, "ggml is called from no library");
    while (m < &modules[MAX_MODULES - 1] && m->base && m->base != info.dli_fbase) m++;
    if (!m->base) {
        void * library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        m->base = info.dli_fbase;
        for (int i = 0; i < N_WRAPPED; i++) m->next[i] = find(library, WRAPPED[i]);
        if (m == modules) {
            start(library);
            environment = of_environment();
        }
    }
    if (m->base != info.dli_fbase || !m->next[MUL_MAT]) die(UNSUPPORTED, "ggml is not found behind a library that calls it");
    pthread_mutex_unlock(&lock);
    known[slot].caller = caller;
    return known[slot].module = m;
}

#define EXPORT __attribute__((visibility("default")))
#define CALLER() module_of(__builtin_return_address(0))
#define NEXT(m, which, result, arguments) ((result(*) arguments) (m)->next[which])

/* A second copy of ggml in the process has tensors of its own, which are left alone. */
static bool is_first(const struct module * m) { return m->next[MUL_MAT] == modules[0].next[MUL_MAT]; }

EXPORT node ggml_mul_mat(void * ctx, node w, node x) {
    const struct module * m = CALLER();
    struct ptplus * set = active ? active : environment;
    return NEXT(m, MUL_MAT, node, (void *, node, node))(ctx, w, set && is_first(m) ? with_terms(set, ctx, w, x) : x);
}

EXPORT node ggml_dup_tensor(void * ctx, node like) {
    const struct module * m = CALLER();
    const node made = NEXT(m, DUP_TENSOR, node, (void *, node))(ctx, like);
    if (environment && latest && is_first(m)) note_weight(made, like);
    return made;
}

static void * opened(const struct module * m, void * file, int descriptor) {
    struct stat status;
    char link[32], name[128] = "a model";
    if (!environment || !file) return file;
    if (!is_first(m)) die(UNSUPPORTED, "a second copy of llama.cpp in this process opens a model: which one is adapted is unknown");
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    const ssize_t n = readlink(link, name, sizeof name - 1);
    if (n > 0) name[n] = '\0';
    if (fstat(descriptor, &status) == 0) note_model(file, &status, name);
    return file;
}

EXPORT void * gguf_init_from_file(const char * path, struct gguf_params params) {
    const struct module * m = CALLER();
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    void * result = opened(m, NEXT(m, OPEN_FILE, void *, (const char *, struct gguf_params))(path, params), file);
    if (file >= 0) close(file);
    return result;
}

EXPORT void * gguf_init_from_file_ptr(FILE * file, struct gguf_params params) {
    const struct module * m = CALLER();
    return opened(m, NEXT(m, OPEN_STREAM, void *, (FILE *, struct gguf_params))(file, params), fileno(file));
}

/* A graph is whole. As long as nothing was grafted, it must not be one of the adapted model. */
static void look_at(const struct module * m, void * graph) {
    if (!environment || !is_first(m)) return;
    pthread_mutex_lock(&lock);
    end_graph(environment, &of_thread);
    for (int i = 0; !grafted && g.ggml_graph_n_nodes && g.ggml_graph_node && i < g.ggml_graph_n_nodes(graph); i++) {
        const node w = src(g.ggml_graph_node(graph, i), 0);
        bool lora;
        if (w && layer_of(g.ggml_get_name(w), &lora) >= 0 && is_adapted(w)) die(UNSUPPORTED, "the adapters were applied in no layer: calls of ggml_mul_mat do not come through here");
    }
    pthread_mutex_unlock(&lock);
}

EXPORT bool ggml_backend_sched_reserve(void * sched, void * graph) {
    const struct module * m = CALLER();
    look_at(m, graph);
    return NEXT(m, RESERVE, bool, (void *, void *))(sched, graph);
}

EXPORT bool ggml_backend_sched_alloc_graph(void * sched, void * graph) {
    const struct module * m = CALLER();
    look_at(m, graph);
    return NEXT(m, ALLOCATE, bool, (void *, void *))(sched, graph);
}

EXPORT int ggml_backend_sched_graph_compute_async(void * sched, void * graph) {
    const struct module * m = CALLER();
    if (!environment || !is_first(m)) return NEXT(m, COMPUTE, int, (void *, void *))(sched, graph);
    if (!grafted) look_at(m, graph);
    follow_control(environment, sched);
    pthread_rwlock_rdlock(&computing);
    const int status = NEXT(m, COMPUTE, int, (void *, void *))(sched, graph);
    pthread_rwlock_unlock(&computing);
    return status;
}

/* Of a program that has not called ggml yet, the first library that has it. */
static void find_ggml(void) {
    void * self = dlopen(NULL, RTLD_LAZY), * symbol = dlsym(RTLD_NEXT, "ggml_get_name");
    struct link_map * map = NULL;
    if (!modules[0].base && self && dlinfo(self, RTLD_DI_LINKMAP, &map) == 0) {
        for (; map && !symbol; map = map->l_next) {
            void * library = dlopen(map->l_name, RTLD_LAZY | RTLD_NOLOAD);
            symbol = library ? dlsym(library, "ggml_get_name") : NULL;
        }
    }
    if (symbol) module_of(symbol);
    if (!modules[0].base) snprintf(broken, sizeof broken, "no ggml is loaded in this process");
}

#endif

/* ---- include/ptplus.h ---- */

#define API __attribute__((visibility("default")))

API struct ptplus * ptplus_load(const char * model, const char * const * paths, int n) {
    pthread_mutex_lock(&lock);
    find_ggml();
    struct ptplus * set = calloc(1, sizeof *set);
    char why[MESSAGE];
    bool good = set && (!*broken || fail(set, UNSUPPORTED, "%s", broken)) && ((n >= 1 && n <= MAX_ADAPTERS) || fail(set, USAGE, "expected 1 to %d adapters", MAX_ADAPTERS));
    void * file = good ? g.gguf_init_from_file(model, (struct gguf_params) { true, NULL }) : NULL;
    if (good && !file) good = fail(set, CORRUPT, "%.256s: expected a GGUF file that ggml can read", model);
    for (int i = 0; i < n && good; i++) good = load(set, paths[i], 1.0f) && (!misfits(&set->adapters[i], file, why, sizeof why) || fail(set, MISFIT, "%s", why));
    if (file) g.gguf_free(file);
    pthread_mutex_unlock(&lock);
    if (good) return set;
    snprintf(last_error, sizeof last_error, "%s", set ? set->message : "out of memory");
    ptplus_free(set);
    return NULL;
}

API void ptplus_activate(struct ptplus * adapters) { active = adapters; }

API bool ptplus_set_scale(struct ptplus * adapters, int index, float scale) {
    if (index < 0 || index >= adapters->n || !isfinite(scale)) return false;
    set_scale(&adapters->adapters[index], scale);
    return true;
}

API const char * ptplus_check(struct ptplus * set) {
    pthread_mutex_lock(&lock);
    if (set->progress.n) end_graph(set, &set->progress);
    if (!set->failed && !set->complete) fail(set, UNSUPPORTED, "the adapters are in no graph: they were not active when it was built");
    memcpy(set->returned, set->message, sizeof set->returned);
    const bool failed = set->failed;
    set->failed = false;
    pthread_mutex_unlock(&lock);
    return failed ? set->returned : NULL;
}

API void ptplus_free(struct ptplus * set) {
    if (active == set) active = NULL;
    for (int i = 0; set && i < set->n; i++) {
        struct adapter * a = &set->adapters[i];
        for (struct place * p = a->places, * next; p; p = next) {
            next = p->next;
            if (p->buffer) g.ggml_backend_buffer_free(p->buffer);
            g.ggml_free(p->ctx);
            free(p->bias);
            free(p);
        }
        if (a->file >= 0) close(a->file);
        free(a->path);
        free(a->layers);
    }
    free(set);
}

API bool ptplus_supports(const char * architecture) { return architecture_of(architecture) != NULL; }

API const char * ptplus_error(void) { return last_error; }
