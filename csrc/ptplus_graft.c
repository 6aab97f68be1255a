/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Copyright (c) 2026 the ptplus authors */
/*
 * Prefix-Tuning+ adapters (GGUF files that `ptplus` writes) as nodes of llama.cpp's own graph, in any program that calls ggml_mul_mat through a dynamic relocation. No
 * header of ggml or llama.cpp: functions are looked up by name, layouts measured. docs/LLAMA_CPP.md has the use and the variables, include/ptplus.h the functions.
 *
 *   cc -O2 -shared -fPIC -fvisibility=hidden -Iinclude -o libptplus_graft.so csrc/ptplus_graft.c -ldl
 *   LD_PRELOAD=$PWD/libptplus_graft.so PTPLUS_ADAPTER_1=adapter.gguf PTPLUS_SCALE_1=1 PTPLUS_CONTROL=file PTPLUS_VERBOSE=1 PROGRAM ...
 *
 * The output projection of layer i is ggml_mul_mat(ctx, w, x) with w named blk.{i}.attn_output.weight. From x the graph is walked back to the query q [D, H, T] that
 * attention took, and x + scale * term goes on in its place. What is not as expected ends the program with one line on stderr, or is an error of include/ptplus.h.
 *
 *   term = memory_scale * phi(query_scale * q) M  [ / (phi . N) ]        phi(x) = act(x) or act(x W^T + b)
 */
#undef _GNU_SOURCE
#define _GNU_SOURCE
#ifndef PTPLUS_LINKED
#define PTPLUS_LINKED 0 /* 1: in a program itself, which has no adapters of the environment */
#endif
#include "ptplus.h"
#include <dlfcn.h>
#include <fcntl.h>
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
_Static_assert(__FINITE_MATH_ONLY__ == 0, "NaN is told from numbers: compile without -ffast-math");
enum { MAX_ADAPTERS = 16, MAX_LAYERS = 1024, MAX_FEATURES = 65536, MAX_MODULES = 64, MAX_CONTROL = 4096, MESSAGE = 512 };
enum { OTHER = 1, USAGE = 2, CORRUPT = 3, MISFIT = 4, WRONG = 5, UNSUPPORTED = 7 }; /* exit codes */
enum { F32 = 0, F16 = 1, I32 = 26, OF_U32 = 4, OF_I32 = 5, OF_F32 = 6, OF_TEXT = 8, OF_ARRAY = 9 }; /* in GGUF files, so they never change */

/* ---- ggml, found at run time ---- */
typedef struct ggml_tensor * node;
typedef void * any; /* a context, buffer, buffer type, device, file or graph of ggml */
typedef void (*function)(void); typedef void custom1(node dst, node a, int ith, int nth, void * data);
typedef void custom2(node dst, node a, node b, int ith, int nth, void * data);
struct init_params { size_t size; void * memory; bool no_alloc; }; struct gguf_params { bool no_alloc; any * ctx; };
/* Integers that became 64 bits wide over the years are declared as `int`: its bits are right in both. */
#define NEEDED(X) \
    X(node, ggml_mul_mat, (any, node, node)) X(node, ggml_add, (any, node, node)) X(node, ggml_mul, (any, node, node)) X(node, ggml_div, (any, node, node)) \
    X(node, ggml_cont, (any, node)) X(node, ggml_sqr, (any, node)) X(node, ggml_abs, (any, node)) X(node, ggml_neg, (any, node)) X(node, ggml_exp, (any, node)) \
    X(node, ggml_tanh, (any, node)) X(node, ggml_sigmoid, (any, node)) X(node, ggml_elu, (any, node)) X(node, ggml_relu, (any, node)) X(node, ggml_silu, (any, node)) \
    X(node, ggml_scale, (any, node, float)) X(node, ggml_permute, (any, node, int, int, int, int)) X(node, ggml_reshape_3d, (any, node, int64_t, int64_t, int64_t)) \
    X(node, ggml_map_custom1, (any, node, custom1 *, int, void *)) X(node, ggml_map_custom2, (any, node, node, custom2 *, int, void *)) \
    X(const char *, ggml_get_name, (node)) X(const char *, ggml_op_desc, (node)) X(void *, ggml_get_data, (node)) X(size_t, ggml_nbytes, (node)) \
    X(bool, ggml_is_contiguous, (node)) X(node, ggml_set_name, (node, const char *)) X(node, ggml_get_tensor, (any, const char *)) X(size_t, ggml_tensor_overhead, (void)) \
    X(any, ggml_init, (struct init_params)) X(void, ggml_free, (any)) X(node, ggml_new_tensor, (any, int, int, const int64_t *)) \
    X(bool, ggml_validate_row_data, (int, const void *, size_t)) X(any, ggml_backend_cpu_buffer_type, (void)) X(bool, ggml_backend_buft_is_host, (any)) \
    X(any, ggml_backend_alloc_ctx_tensors_from_buft, (any, any)) X(void, ggml_backend_tensor_set, (node, const void *, size_t, size_t)) \
    X(any, ggml_backend_buffer_get_type, (any)) X(void, ggml_backend_buffer_free, (any)) X(void, ggml_backend_buffer_set_usage, (any, int)) \
    X(any, ggml_backend_buft_get_device, (any)) X(const char *, ggml_backend_buft_name, (any)) X(any, ggml_backend_dev_buffer_type, (any)) \
    X(any, gguf_init_from_file, (const char *, struct gguf_params)) X(void, gguf_free, (any)) X(int, gguf_find_key, (any, const char *)) \
    X(int, gguf_get_kv_type, (any, int64_t)) X(const char *, gguf_get_val_str, (any, int64_t)) X(uint32_t, gguf_get_val_u32, (any, int64_t)) \
    X(float, gguf_get_val_f32, (any, int64_t)) X(int, gguf_get_arr_type, (any, int64_t)) X(int, gguf_get_arr_n, (any, int64_t)) \
    X(const void *, gguf_get_arr_data, (any, int64_t)) X(int, gguf_get_n_tensors, (any)) X(int, gguf_find_tensor, (any, const char *)) \
    X(size_t, gguf_get_tensor_offset, (any, int64_t)) X(size_t, gguf_get_data_offset, (any)) X(node, ggml_reshape_4d, (any, node, int64_t, int64_t, int64_t, int64_t)) \
    X(void, ggml_backend_sched_synchronize, (any)) X(int, ggml_graph_n_nodes, (any)) X(node, ggml_graph_node, (any, int)) \
    X(node, ggml_gelu_erf, (any, node)) /* the only one that may be missing: `gelu` on devices needs it */
#define FIELD(result, name, arguments) result(*name) arguments;
static struct { NEEDED(FIELD) } g;
static struct { size_t type, buffer, ne, nb, src; } at; /* where a tensor keeps what has no function: offsets in bytes */
static char broken[MESSAGE];                            /* why there can be no adapters */
static const int64_t * ne(node t) { return (const int64_t *) ((const char *) t + at.ne); }
static const size_t * nb(node t) { return (const size_t *) ((const char *) t + at.nb); } static node src(node t, int i) { return ((node *) ((char *) t + at.src))[i]; }
static int type_of(node t) { return *(const int *) ((const char *) t + at.type); } static any buffer_of(node t) { return *(any *) ((char *) t + at.buffer); }
static bool is(node t, const char * op) { return t && strcmp(g.ggml_op_desc(t), op) == 0; }
/* The offset of `size` bytes like `value` in a tensor, else beyond its end. */
static size_t offset_in(node t, const void * value, size_t size) {
    size_t i = 0;
    while (i < g.ggml_tensor_overhead() && memcmp((const char *) t + i, value, size) != 0) i += sizeof(int);
    return i; }
/* Finds the layout of a tensor with tensors whose fields are known. False where it does not answer. */
static bool measure(void) {
    const size_t end = g.ggml_tensor_overhead(), nb_product[4] = { 4, 28, 84, 924 };
    const int64_t ne_a[4] = { 5, 7, 11, 1 }, ne_b[4] = { 5, 3, 11, 1 }, ne_product[4] = { 7, 3, 11, 1 }, n = 32;
    const struct init_params params = { 16 * end, NULL, true }; /* room behind the tensors that are looked at */
    const any ctx = g.ggml_init(params), allocated = g.ggml_init(params);
    const node a = g.ggml_new_tensor(ctx, F32, 4, ne_a), b = g.ggml_new_tensor(ctx, F32, 4, ne_b), sources[] = { a, b }, product = g.ggml_mul_mat(ctx, a, b);
    const node half = g.ggml_new_tensor(ctx, F16, 1, &n), whole = g.ggml_new_tensor(ctx, I32, 1, &n), stored = g.ggml_new_tensor(allocated, F32, 1, &n);
    const any buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(allocated, g.ggml_backend_cpu_buffer_type()); g.ggml_set_name(a, "ptplus");
    at.ne = offset_in(product, ne_product, sizeof ne_product), at.nb = offset_in(product, nb_product, sizeof nb_product);
    at.src = offset_in(product, sources, sizeof sources), at.buffer = offset_in(stored, &buffer, sizeof buffer);
    for (at.type = 0; at.type < end && !(type_of(a) == F32 && type_of(half) == F16 && type_of(whole) == I32);) at.type += sizeof(int);
    const bool known = buffer && at.ne < end && at.nb < end && at.src < end && at.buffer < end && at.type < end && memcmp(ne(a), ne_a, sizeof ne_a) == 0 &&
        nb(a)[1] == 20 && nb(a)[2] == 140 && !src(a, 0) && !src(a, 1) && !buffer_of(a) && type_of(product) == F32 && is(product, "MUL_MAT") &&
        strcmp(g.ggml_get_name(a), "ptplus") == 0;
    if (buffer) g.ggml_backend_buffer_free(buffer);
    return g.ggml_free(allocated), g.ggml_free(ctx), known;
}

/* ---- adapters ---- */
/* The architectures whose row order is known. q is what the last RoPE before attention makes; where layers have none, it is Qcur-{i}. */
static const struct architecture { const char * name, * order; bool some_without_rope; } ARCHITECTURES[] = {
    { "llama", "norm", false }, { "qwen2", "neox", false }, { "qwen3", "neox", false }, { "qwen2moe", "neox", false }, { "qwen3moe", "neox", false },
    { "gemma", "neox", false }, { "gemma2", "neox", false }, { "gemma3", "neox", false }, { "phi3", "neox", false }, { "olmo2", "neox", false },
    { "granite", "norm", false }, { "smollm3", "norm", true }, { NULL, NULL, false },
};
enum map { IDENTITY, ELU, ELU_PLUS_ONE, RELU, SILU, GELU, GELU_TANH, SOFTPLUS, SIGMOID, TANH, EXP }; enum tap { POST_ROPE, PRE_ROPE };
static const char * const MAPS[] = { "identity", "elu", "elu_plus_one", "relu", "silu", "gelu", "gelu_tanh", "softplus", "sigmoid", "tanh", "exp", NULL };
static const char * const TAPS[] = { "post_rope", "pre_rope", NULL }, * const SHARINGS[] = { "per_head", "per_kv_head", "shared", NULL };
enum part { MEMORY, WEIGHT, BIAS, NORMALIZER, N_PARTS };
static const char * const PARTS[] = { "memory.weight", "feature.weight", "feature.bias", "normalizer.weight" };
enum size { LAYERS, HEADS, HEADS_KV, KEY_LENGTH, VALUE_LENGTH, FEATURES, VERSION, N_SIZES };
static const char * const SIZES[] = { "block_count", "head_count", "head_count_kv", "key_length", "value_length", "feature_length", "version" };
static const int64_t MOST[] = { MAX_LAYERS, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, MAX_FEATURES, 1 };
/* Numbers that ggml's operations take as tensors of one element; the first is the adapter's factor. */
static const float CONSTANTS[] = { 1, 1, 2, 1 / 3.0f, 1 / 5.0f, 1 / 7.0f, 1 / 9.0f, 1 / 11.0f, 1 / 13.0f, 0.797884561f };
enum { FACTOR, ONE, TWO, THIRD, ROOT_2_PI = 9, N_CONSTANTS };
struct layer { bool adapted; node parts[N_PARTS]; const char * data[N_PARTS]; }; /* as in the file; NULL: not there */
struct place { /* a layer's weights on one device; cpu: with our own activations */
    struct place * next; const struct adapter * adapter; any ctx, buft, buffer; node parts[N_PARTS], constants[N_CONSTANTS]; int layer, cpu;
};
struct adapter { /* name: the file's, without .gguf; tensors and bytes: of the file, that layers refer to */
    struct ptplus * set; const struct architecture * architecture; char path[256], name[256], * bytes; int64_t size[N_SIZES], n_memories;
    float query_scale, memory_scale, scale; int map, tap; any tensors; struct layer * layers; struct place * places;
};
struct progress { const void * ctx; int n; bool had[MAX_LAYERS]; }; /* the layers of the graph being built that have their terms */
struct ptplus { bool of_environment, complete /* a graph has had all layers */, failed; int n; struct adapter adapters[MAX_ADAPTERS]; char message[MESSAGE]; struct progress progress; };
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP; static _Thread_local char last_error[MESSAGE];
static struct ptplus * environment; /* the adapters that the environment names, or NULL */
/* Ends the program with one line, for adapters of the environment or NULL; else keeps the first reason for `ptplus_check`. False. */
__attribute__((format(printf, 3, 4))) static bool fail(struct ptplus * set, int code, const char * format, ...) {
    char text[MESSAGE] = "ptplus: "; va_list args; va_start(args, format); vsnprintf(text + 8, sizeof text - 9, format, args); va_end(args);
    if (!set || set->of_environment) { strcat(text, "\n"); _exit(write(STDERR_FILENO, text, strlen(text)) < 0 ? OTHER : code); }
    pthread_mutex_lock(&lock);
    if (!set->failed) strcpy(set->message, text + 8);
    set->failed = true; return pthread_mutex_unlock(&lock) != 0; }
static const struct architecture * architecture_of(const char * name) {
    const struct architecture * a = ARCHITECTURES;
    while (a->name && name && strcmp(name, a->name) != 0) a++;
    return name && a->name ? a : NULL; }
static const char * text_at(any file, const char * key) {
    const int id = g.gguf_find_key(file, key); return id >= 0 && g.gguf_get_kv_type(file, id) == OF_TEXT ? g.gguf_get_val_str(file, id) : NULL; }
/* A size, or the one that an array repeats; -1 for another type or different ones, `absent` where the key is not there. */
static int64_t size_at(any file, const char * key, int64_t absent) {
    const int id = g.gguf_find_key(file, key), type = id < 0 ? -1 : g.gguf_get_kv_type(file, id);
    if (type == OF_U32) return g.gguf_get_val_u32(file, id);
    const int element = type == OF_ARRAY ? g.gguf_get_arr_type(file, id) : -1, n = element == OF_U32 || element == OF_I32 ? g.gguf_get_arr_n(file, id) : 0;
    const int32_t * values = n > 0 ? g.gguf_get_arr_data(file, id) : NULL;
    for (int i = 1; i < n; i++) if (values[i] != values[0]) return -1;
    return n > 0 ? values[0] : id < 0 ? absent : -1;
}
#define KEY "adapter.prefix_tuning_plus."
/* The place of the key's text in `names`, else fails and is -1. */
static int choice_at(struct adapter * a, any file, const char * key, const char * const * names) {
    const char * text = text_at(file, key);
    for (int i = 0; text && names[i]; i++) if (strcmp(text, names[i]) == 0) return i;
    fail(a->set, UNSUPPORTED, "%s: %s: expected %s%s, found %.64s", a->path, key, names[0], names[1] ? ", .." : "", text ? text : "none"); return -1; }
static bool read_config(struct adapter * a, any file) {
    static const char * const ADAPTER[] = { "adapter", NULL }, * const KIND[] = { "prefix_tuning_plus", NULL };
    const char * name = text_at(file, "general.architecture"), * order[] = { NULL, NULL }; float * const factors[] = { &a->query_scale, &a->memory_scale }; char key[96];
    int sharing;
    if (choice_at(a, file, "general.type", ADAPTER) < 0 || choice_at(a, file, "adapter.type", KIND) < 0) return false;
    a->architecture = architecture_of(name);
    if (!a->architecture) return fail(a->set, UNSUPPORTED, "%s: general.architecture: expected one whose row order is known, found %.64s", a->path, name ? name : "none");
    for (int i = 0; i < N_SIZES; i++) {
        snprintf(key, sizeof key, KEY "%s", SIZES[i]); a->size[i] = size_at(file, key, -1);
        if (a->size[i] < 1 || a->size[i] > MOST[i]) return fail(a->set, CORRUPT, "%s: %s: expected 1 to %lld", a->path, key, (long long) MOST[i]);
    }
    for (int i = 0; i < 2; i++) {
        const int id = g.gguf_find_key(file, i ? KEY "memory_scale" : KEY "query_scale");
        *factors[i] = id >= 0 && g.gguf_get_kv_type(file, id) == OF_F32 ? g.gguf_get_val_f32(file, id) : NAN;
        if (!isfinite(*factors[i])) return fail(a->set, CORRUPT, "%s: " KEY "%s: expected a finite F32", a->path, i ? "memory_scale" : "query_scale");
    }
    order[0] = a->architecture->order;
    if (choice_at(a, file, KEY "query_order", order) < 0 || (a->map = choice_at(a, file, KEY "feature_map", MAPS)) < 0 ||
        (a->tap = choice_at(a, file, KEY "query_tap", TAPS)) < 0 || (sharing = choice_at(a, file, KEY "memory_sharing", SHARINGS)) < 0) return false;
    a->n_memories = sharing == 0 ? a->size[HEADS] : sharing == 1 ? a->size[HEADS_KV] : 1;
    return a->size[HEADS] % a->n_memories == 0 || fail(a->set, CORRUPT, "%s: " KEY "head_count: expected a multiple of head_count_kv", a->path);
}
static bool read_part(struct adapter * a, any file, uint64_t file_len, uint32_t layer, int part, int * n_found) {
    const int64_t f = a->size[FEATURES], h = a->n_memories, d = a->size[KEY_LENGTH];
    const int64_t shapes[][4] = { { f, a->size[VALUE_LENGTH], h, 1 }, { d, f, h, 1 }, { f, h, 1, 1 }, { f, h, 1, 1 } }, * s = shapes[part]; char name[64];
    snprintf(name, sizeof name, "blk.%u.attn_prefix_%s", layer, PARTS[part]); const int id = g.gguf_find_tensor(file, name);
    if (id < 0) return (part != MEMORY && (part != WEIGHT || f == d)) || fail(a->set, CORRUPT, "%s: %s: expected this tensor, found none", a->path, name);
    const node t = a->layers[layer].parts[part] = g.ggml_get_tensor(a->tensors, name);
    const uint64_t offset = g.gguf_get_data_offset(file) + g.gguf_get_tensor_offset(file, id), len = g.ggml_nbytes(t); ++*n_found;
    if (memcmp(ne(t), s, sizeof *shapes) != 0) return fail(a->set, CORRUPT, "%s: %s: expected [%lld, %lld, %lld]", a->path, name, (long long) s[0], (long long) s[1], (long long) s[2]);
    /* 24 to 28 are integers and F64. */
    if ((type_of(t) >= 24 && type_of(t) <= 28) || (part >= BIAS && type_of(t) != F32)) return fail(a->set, UNSUPPORTED, "%s: %s: type %d cannot be decoded", a->path, name, type_of(t));
    if (offset > file_len || len > file_len - offset) return fail(a->set, CORRUPT, "%s: %s: the file ends before this tensor does", a->path, name);
    a->layers[layer].data[part] = a->bytes + offset;
    return g.ggml_validate_row_data(type_of(t), a->bytes + offset, len) || fail(a->set, CORRUPT, "%s: %s: expected finite values", a->path, name);
}
static bool read_layers(struct adapter * a, any file, uint64_t file_len) {
    const int id = g.gguf_find_key(file, KEY "layers");
    const bool is_list = id >= 0 && g.gguf_get_kv_type(file, id) == OF_ARRAY && g.gguf_get_arr_type(file, id) == OF_U32;
    const int n = is_list ? g.gguf_get_arr_n(file, id) : 0; const uint32_t * list = n > 0 ? g.gguf_get_arr_data(file, id) : NULL; int n_found = 0;
    if (n < 1 || n > a->size[LAYERS]) return fail(a->set, CORRUPT, "%s: " KEY "layers: expected 1 to %lld layers, as u32", a->path, (long long) a->size[LAYERS]);
    if (!(a->layers = calloc((size_t) a->size[LAYERS], sizeof *a->layers))) return fail(a->set, OTHER, "out of memory");
    for (int i = 0; i < n; i++) {
        struct layer * l = list[i] < a->size[LAYERS] ? &a->layers[list[i]] : NULL;
        if (!l || l->adapted) return fail(a->set, CORRUPT, "%s: " KEY "layers: expected different layers below %lld", a->path, (long long) a->size[LAYERS]);
        l->adapted = true;
        for (int part = 0; part < N_PARTS; part++) if (!read_part(a, file, file_len, list[i], part, &n_found)) return false;
        if (l->parts[BIAS] && !l->parts[WEIGHT]) return fail(a->set, CORRUPT, "%s: blk.%u.attn_prefix_feature.weight: expected one beside the bias", a->path, list[i]);
    }
    return n_found == g.gguf_get_n_tensors(file) || fail(a->set, CORRUPT, "%s: some tensors are no part of the adapter", a->path);
}
/* Why the adapter is not for the model of this file: writes it to `why` and is true. */
static bool misfits(const struct adapter * a, any file, char why[MESSAGE]) {
    const char * name = text_at(file, "general.architecture"); char key[128];
    if (!name || strcmp(name, a->architecture->name) != 0) {
        return snprintf(why, MESSAGE, "%s: general.architecture: expected %.64s, as the model has, found %s", a->path, name ? name : "none", a->architecture->name) > 0;
    }
#define OF_MODEL(field) (snprintf(key, sizeof key, "%s.%s", name, field), key)
    const int64_t heads = size_at(file, OF_MODEL("attention.head_count"), -1), absent[] = { -1, -1, heads, 0, 0 };
    const int64_t head_length = heads > 0 ? size_at(file, OF_MODEL("embedding_length"), -1) / heads : -1;
    for (int i = LAYERS; i <= VALUE_LENGTH; i++) {
        snprintf(key, sizeof key, "%s.%s%s", name, i == LAYERS ? "" : "attention.", SIZES[i]);
        const int64_t expected = size_at(file, key, i >= KEY_LENGTH ? head_length : absent[i]);
        if (expected == a->size[i]) continue;
        return snprintf(why, MESSAGE, "%s: %s: expected %lld, as the model has, found %lld", a->path, SIZES[i], (long long) expected, (long long) a->size[i]) > 0;
    }
    return false;
}
/* Reads an adapter into the next slot, for a model's file if there is one. */
static bool load(struct ptplus * set, const char * path, any model, float scale) {
    struct adapter * a = &set->adapters[set->n++]; struct stat status; const char * stem = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const int len = (int) strlen(stem), suffix = len > 5 && strcmp(stem + len - 5, ".gguf") == 0 ? 5 : 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char why[MESSAGE]; size_t n_read = 0; a->set = set, a->scale = scale; snprintf(a->path, sizeof a->path, "%s", path);
    snprintf(a->name, sizeof a->name, "%.*s", len - suffix, stem);
    if (fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && (a->bytes = malloc((size_t) status.st_size + 1))) {
        for (ssize_t n; (n = read(fd, a->bytes + n_read, (size_t) status.st_size - n_read)) > 0;) n_read += (size_t) n;
    }
    if (fd >= 0) close(fd);
    if (!n_read) return fail(set, OTHER, "%s: cannot be read", a->path);
    const any file = g.gguf_init_from_file(path, (struct gguf_params) { true, &a->tensors });
    bool good = file ? read_config(a, file) : fail(set, CORRUPT, "%s: expected a GGUF file that ggml can read", a->path);
    good = good && (!model || !misfits(a, model, why) || fail(set, MISFIT, "%s", why)) && read_layers(a, file, n_read);
    if (file) g.gguf_free(file);
    return good;
}

/* ---- models: the GGUF files that the program opens, and the tensors that it makes of them ---- */
struct model { /* embeds: it says how it pools, and may lie beside the adapted one */
    struct model * next; dev_t device; ino_t inode; bool fits, embeds; char name[128], why[MESSAGE];
};
static struct model * models, * adapted, * latest; /* latest: what any thread opened last, for loaders that make the tensors on another one */
static _Thread_local struct model * opening; /* what this thread opened last: its tensors are made next */
static struct bound { node weight; struct model * model; } * bound;
static size_t n_bound;
/* The layer whose output projection, or its LoRA, has this name; else -1. */
static int layer_of(const char * name, bool * lora) {
    int layer = -1, end = 0;
    if (strncmp(name, "blk.", 4) != 0 || sscanf(name, "blk.%4d.attn_output.weight%n", &layer, &end) != 1 || !end || layer < 0 || layer >= MAX_LAYERS) return -1;
    *lora = strcmp(name + end, ".lora_a") == 0;
    return *lora || !name[end] ? layer : -1; }
/* Takes note of a file that the program opened. Further files of a split model have no architecture, and change nothing. */
static any note_model(any file, int descriptor) {
    struct stat status;
    const char * architecture = environment && file ? text_at(file, "general.architecture") : NULL, * type = architecture ? text_at(file, "general.type") : NULL;
    if (!architecture || (type && strcmp(type, "model") != 0) || fstat(descriptor, &status) != 0) return file;
    pthread_mutex_lock(&lock); struct model * m = models;
    while (m && (m->device != status.st_dev || m->inode != status.st_ino)) m = m->next;
    if (!m && (m = calloc(1, sizeof *m))) {
        char key[96]; snprintf(key, sizeof key, "%.64s.pooling_type", architecture);
        *m = (struct model) { .next = models, .device = status.st_dev, .inode = status.st_ino, .fits = true, .embeds = g.gguf_find_key(file, key) >= 0 };
        snprintf(key, sizeof key, "/proc/self/fd/%d", descriptor);
        if (readlink(key, m->name, sizeof m->name - 1) < 0) strcpy(m->name, "a file");
        for (int i = 0; i < environment->n && m->fits; i++) m->fits = !misfits(&environment->adapters[i], file, m->why);
        models = m;
    }
    opening = latest = m; return pthread_mutex_unlock(&lock), file;
}
/* A tensor like one of the model that this thread opened is made. */
static void note_weight(node made, node like) {
    if (strncmp(g.ggml_get_name(like), "blk.", 4) != 0 || strstr(g.ggml_get_name(like), ".lora_")) return;
    pthread_mutex_lock(&lock); size_t i = 0;
    while (i < n_bound && bound[i].weight != made) i++;
    if (i == n_bound && n_bound % 256 == 0 && !(bound = realloc(bound, (n_bound + 256) * sizeof *bound))) fail(NULL, OTHER, "out of memory");
    bound[i] = (struct bound) { made, opening ? opening : latest }; n_bound += i == n_bound; pthread_mutex_unlock(&lock); }
static struct model * model_of(node w) {
    size_t i = 0;
    while (i < n_bound && bound[i].weight != w) i++;
    return i < n_bound ? bound[i].model : NULL; }
/* Whether `w` is of the model that the environment's adapters are for, or of one beside it. Ends the program where there is none. */
static bool is_adapted(node w) {
    struct model * m = model_of(w); bool any_fits = false;
    for (struct model * other = models; other; other = other->next) any_fits |= other->fits;
    if (!m) return fail(NULL, UNSUPPORTED, "a model runs whose file was not seen when it was opened: whether the adapters fit it is unknown");
    if (!m->fits && !any_fits && !m->embeds) fail(NULL, MISFIT, "%s", m->why);
    if (m->fits && adapted && adapted != m) fail(NULL, MISFIT, "the adapters fit two models that are open: %s and %s", adapted->name, m->name);
    if (m->fits) adapted = m;
    return m->fits;
}

/* ---- activations on the CPU: one definition for each map, with PyTorch's tails ---- */
#pragma GCC diagnostic ignored "-Wpsabi" /* no function takes or returns such vectors: all are inlined */
#define INLINE static inline __attribute__((always_inline))
typedef float lanes __attribute__((vector_size(32), aligned(4), may_alias)); typedef int32_t ints __attribute__((vector_size(32), aligned(4), may_alias));
INLINE lanes all(float x) { return (lanes) { x, x, x, x, x, x, x, x }; }
INLINE lanes pick(ints where, lanes a, lanes b) { return (lanes) ((where & (ints) a) | (~where & (ints) b)); }
INLINE lanes within(float low, lanes x, float high) { return pick(x < low, all(low), pick(x > high, all(high), x)); } /* NaN stays NaN */
INLINE lanes magnitude(lanes x) { return (lanes) ((ints) x & 0x7fffffff); }
/* exp(x) = 2 half (1 + tail): Cephes' expf (Moshier). */
INLINE lanes exp_parts(lanes x, lanes * half) {
    x = within(-87.0f, x, 89.0f);
    const lanes whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;    /* adding 1.5 * 2^23 rounds to a whole number */
    const lanes r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f; /* ln 2 in two parts: the first product is exact */
    const lanes p = (((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r + 1.6666665459e-1f;
    *half = (lanes) ((__builtin_convertvector(whole, ints) + 126) << 23); /* 2^128 is no number */
    return (p * r + 5.0000001201e-1f) * (r * r) + r;
}
INLINE lanes exponential(lanes x) { lanes half, tail = exp_parts(x, &half); return pick(x < -87.0f, all(0.0f), (1.0f + tail) * half * 2.0f); }
INLINE lanes exponential_minus_1(lanes x) { lanes half, tail = exp_parts(x, &half); return 2.0f * (half * tail + (half - 0.5f)); } /* nothing cancels where x is small */
INLINE lanes hyperbolic_tangent(lanes x) {
    const lanes e = exponential_minus_1(within(0.0f, 2.0f * magnitude(x), 30.0f)); return (lanes) ((ints) (e / (e + 2.0f)) | ((ints) x & INT32_MIN)); }
INLINE lanes error_function(lanes x) { /* a quotient of polynomials, as in Eigen */
    x = within(-4.0f, x, 4.0f);
    const lanes s = x * x, p = (((((-2.72614225801306e-10f * s + 2.77068142495902e-8f) * s - 2.10102402082508e-6f) * s - 5.69250639462346e-5f) * s -
        7.34990630326855e-4f) * s - 2.95459980854025e-3f) * s - 1.60960333262415e-2f;
    return x * p / ((((-1.45660718464996e-5f * s - 2.13374055278905e-4f) * s - 1.68282697438203e-3f) * s - 7.37332916720468e-3f) * s - 1.42647390514189e-2f); }
INLINE lanes log_1_plus(lanes u) { /* for u of 0 to 1: 2 artanh(z) */
    const lanes z = u / (2.0f + u), w = z * z;
    return 2.0f * z * ((((((w * (1 / 13.0f) + 1 / 11.0f) * w + 1 / 9.0f) * w + 1 / 7.0f) * w + 1 / 5.0f) * w + 1 / 3.0f) * w + 1.0f); }
INLINE lanes apply(int map, lanes x) {
    switch (map) {
    case ELU: return pick(x > 0.0f, x, exponential_minus_1(x)); case ELU_PLUS_ONE: return pick(x > 0.0f, x, exponential_minus_1(x)) + 1.0f;
    case RELU: return pick(x < 0.0f, all(0.0f), x); case GELU: return 0.5f * x * (1.0f + error_function(x * 0.707106781f));
    case GELU_TANH: return 0.5f * x * (1.0f + hyperbolic_tangent(x * (0.797884561f + 0.0356774081f * x * x)));
    case SOFTPLUS: return pick(x < 0.0f, all(0.0f), x) + log_1_plus(exponential(-magnitude(x)));
    case SILU: return x / (1.0f + exponential(-x));
    case SIGMOID: return 1.0f / (1.0f + exponential(-x)); case TANH: return hyperbolic_tangent(x); case EXP: return exponential(x);
    default: return x;
    }
}
/* dst [F, T, H] = act(scale * a), where a may be permuted. */
INLINE void activate_rows(node dst, node a, int ith, int nth, const struct place * p) {
    const int64_t n = ne(dst)[0], n_tokens = ne(dst)[1], rows = n_tokens * ne(dst)[2]; const float scale = p->parts[WEIGHT] ? 1.0f : p->adapter->query_scale;
    const char * in = g.ggml_get_data(a); const int map = p->adapter->map;
    for (int64_t row = rows * ith / nth, i; row < rows * (ith + 1) / nth; row++) {
        const float * from = (const float *) (const void *) (in + (size_t) (row % n_tokens) * nb(a)[1] + (size_t) (row / n_tokens) * nb(a)[2]);
        float * out = (float *) g.ggml_get_data(dst) + row * n, rest[8] = { 0 };
        for (i = 0; i + 8 <= n; i += 8) *(lanes *) (out + i) = apply(map, *(const lanes *) (from + i) * scale);
        if (i == n) continue;
        memcpy(rest, from + i, (size_t) (n - i) * sizeof *rest);
        *(lanes *) rest = apply(map, *(const lanes *) rest * scale);
        memcpy(out + i, rest, (size_t) (n - i) * sizeof *rest);
    }
}
/* dst [D_v H, T] = x + factor * term [D_v, T, H] */
INLINE void combine_rows(node dst, node x, node term, int ith, int nth, const struct place * p) {
    const int64_t n = p->adapter->size[VALUE_LENGTH], n_heads = p->adapter->size[HEADS], n_tokens = ne(term)[1], units = n_tokens * n_heads;
    const float scale = p->adapter->scale, factor = scale * p->adapter->memory_scale, * in = g.ggml_get_data(x), * terms = g.ggml_get_data(term);
    for (int64_t unit = units * ith / nth, i = 0; unit < units * (ith + 1) / nth; unit++, i = 0) {
        const float * from = in + unit * n, * add = terms + (unit % n_heads * n_tokens + unit / n_heads) * n; float * out = (float *) g.ggml_get_data(dst) + unit * n;
        if (scale == 0.0f) memcpy(out, from, (size_t) (i = n) * sizeof *out); /* a term that is off may be no number */
        for (; i + 8 <= n; i += 8) *(lanes *) (out + i) = *(const lanes *) (from + i) + factor * *(const lanes *) (add + i);
        for (; i < n; i++) out[i] = from[i] + factor * add[i];
    }
}
#define FOR(machine, target) \
    target static void features_##machine(node dst, node a, int ith, int nth, void * p) { activate_rows(dst, a, ith, nth, p); } \
    target static void combine_##machine(node dst, node x, node term, int ith, int nth, void * p) { combine_rows(dst, x, term, ith, nth, p); }
FOR(every, )
#ifdef __x86_64__
FOR(avx2, __attribute__((target("avx2,fma"))))
#endif
static custom1 * features = features_every; static custom2 * combine = combine_every;
/* Copies the normaliser's denominators [1, T, H], which may not be 0. */
static void check_denominators(node dst, node a, int ith, int nth, void * data) {
    const struct place * p = data; const float * in = g.ggml_get_data(a); const int64_t n_tokens = ne(a)[1], n = n_tokens * ne(a)[2];
    for (int64_t i = n * ith / nth; i < n * (ith + 1) / nth; i++) {
        ((float *) g.ggml_get_data(dst))[i] = in[i] == 0.0f ? NAN : in[i];
        if (in[i] == 0.0f && p->adapter->scale != 0.0f) fail(p->adapter->set, WRONG, "%s: layer %d, head %d, token %d of the batch: the normaliser's denominator is 0",
            p->adapter->path, p->layer, (int) (i / n_tokens), (int) (i % n_tokens));
    }
}

/* ---- the graph ---- */
/* The layer's weights on the device that has `w`, put there at the first time. NULL after a failure. */
static struct place * place_for(struct adapter * a, int layer, node w) {
    any buft = buffer_of(w) ? g.ggml_backend_buffer_get_type(buffer_of(w)) : g.ggml_backend_cpu_buffer_type();
    /* Not into a repacked buffer; the CPU's own type may name no device. */
    const any device = g.ggml_backend_buft_is_host(buft) ? NULL : g.ggml_backend_buft_get_device(buft);
    if (device) buft = g.ggml_backend_dev_buffer_type(device);
    struct place * p = a->places;
    while (p && (p->layer != layer || p->buft != buft)) p = p->next;
    if (p) return p;
    if (!(p = calloc(1, sizeof *p))) return fail(a->set, OTHER, "out of memory"), NULL;
    const char * ops = getenv("PTPLUS_GRAFT_OPS"); const struct layer * l = &a->layers[layer];
    const int64_t f = a->size[FEATURES], h = a->n_memories, one = 1, bias[] = { f, 1, 1, h }, normalizer[] = { f, 1, h, 1 };
    *p = (struct place) { .adapter = a, .buft = buft, .layer = layer, .cpu = g.ggml_backend_buft_is_host(buft) && !(ops && strcmp(ops, "ggml") == 0),
        .ctx = g.ggml_init((struct init_params) { (N_PARTS + N_CONSTANTS + 1) * g.ggml_tensor_overhead(), NULL, true }) };
    for (int i = 0; i < N_PARTS; i++) if (l->parts[i]) p->parts[i] = g.ggml_new_tensor(p->ctx, type_of(l->parts[i]), 4, i == BIAS ? bias : i == NORMALIZER ? normalizer : ne(l->parts[i]));
    for (int i = 0; i < N_CONSTANTS; i++) p->constants[i] = g.ggml_new_tensor(p->ctx, F32, 1, &one);
    if (!(p->buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(p->ctx, buft))) {
        fail(a->set, OTHER, "%s: layer %d: out of memory on %s", a->path, layer, g.ggml_backend_buft_name(buft)); return g.ggml_free(p->ctx), free(p), NULL;
    }
    g.ggml_backend_buffer_set_usage(p->buffer, 1); /* weights */
    for (int i = 0; i < N_PARTS; i++) if (p->parts[i]) g.ggml_backend_tensor_set(p->parts[i], l->data[i], 0, g.ggml_nbytes(p->parts[i]));
    for (int i = 0; i < N_CONSTANTS; i++) {
        const float value = i == FACTOR ? a->scale * a->memory_scale : CONSTANTS[i]; g.ggml_backend_tensor_set(p->constants[i], &value, 0, sizeof value);
    }
    p->next = a->places; return a->places = p;
}
static bool only_moves(node t) { return is(t, "RESHAPE") || is(t, "VIEW") || is(t, "PERMUTE") || is(t, "TRANSPOSE") || is(t, "CONT") || is(t, "CPY"); }
/* A product with no weight of the model: the rotation around a quantized cache. */
static bool rotates(node t) { return is(t, "MUL_MAT") && strncmp(g.ggml_get_name(src(t, 0)), "blk.", 4) != 0; }
/* The query of the attention whose result is x, after RoPE or before it (after bias and norm). NULL where anything else than moves, rotations and factors lies between:
   that would be another query than the adapter was trained on. */
static node find_query(node x, int layer, int tap, bool some_without_rope) {
    enum { DEEPEST = 24 }; char name[32]; node t = x, scores = NULL, named = NULL;
    for (int i = 0; t && i < DEEPEST && !scores && !is(t, "FLASH_ATTN_EXT"); i++) {
        if (is(t, "MUL_MAT") && is(src(t, 1), "SOFT_MAX")) scores = src(src(t, 1), 0);
        else t = only_moves(t) ? src(t, 0) : rotates(t) ? src(t, 1) : NULL;
    }
    while (is(scores, "SCALE") || is(scores, "TANH") || is(scores, "ADD")) scores = src(scores, 0); /* a cap on the scores, a bias */
    t = is(t, "FLASH_ATTN_EXT") ? src(t, 0) : is(scores, "MUL_MAT") ? src(scores, 1) : NULL; snprintf(name, sizeof name, "Qcur-%d", layer);
    for (int i = 0; t && i < DEEPEST && !is(t, "ROPE"); i++) {
        if (!named && !is(t, "SCALE") && strcmp(g.ggml_get_name(t), name) == 0) named = t;
        t = only_moves(t) || is(t, "SCALE") ? src(t, 0) : rotates(t) ? src(t, 1) : NULL;
    }
    return is(t, "ROPE") ? (tap == PRE_ROPE ? src(t, 0) : t) : some_without_rope && !t ? named : NULL;
}
/* What `apply` computes, by ggml's operations. NULL after a failure. */
static node activate(any ctx, const struct place * p, node x) {
    node t, w, series; const node * number = p->constants;
    switch (p->adapter->map) {
    case ELU: return g.ggml_elu(ctx, x); case ELU_PLUS_ONE: return g.ggml_add(ctx, g.ggml_elu(ctx, x), number[ONE]); case RELU: return g.ggml_relu(ctx, x);
    case GELU: return g.ggml_gelu_erf ? g.ggml_gelu_erf(ctx, x) : (fail(p->adapter->set, UNSUPPORTED, "this llama.cpp has no function ggml_gelu_erf, for a device"), NULL);
    case GELU_TANH: /* ggml's own is a table of F16 on the CPU */
        t = g.ggml_mul(ctx, x, g.ggml_add(ctx, g.ggml_scale(ctx, g.ggml_sqr(ctx, x), 0.0356774081f), number[ROOT_2_PI]));
        return g.ggml_mul(ctx, g.ggml_scale(ctx, x, 0.5f), g.ggml_add(ctx, g.ggml_tanh(ctx, t), number[ONE]));
    case SOFTPLUS: /* relu(x) + log(1 + u), u = exp(-|x|): a series in t = u / (2 + u) */
        t = g.ggml_exp(ctx, g.ggml_neg(ctx, g.ggml_abs(ctx, x))); w = g.ggml_sqr(ctx, t = g.ggml_div(ctx, t, g.ggml_add(ctx, t, number[TWO])));
        series = g.ggml_add(ctx, g.ggml_scale(ctx, w, CONSTANTS[THIRD + 5]), number[THIRD + 4]);
        for (int i = 3; i >= -1; i--) series = g.ggml_add(ctx, g.ggml_mul(ctx, series, w), number[i < 0 ? (int) ONE : THIRD + i]);
        return g.ggml_add(ctx, g.ggml_relu(ctx, x), g.ggml_scale(ctx, g.ggml_mul(ctx, t, series), 2.0f));
    case SILU: return g.ggml_silu(ctx, x); case SIGMOID: return g.ggml_sigmoid(ctx, x); case TANH: return g.ggml_tanh(ctx, x); case EXP: return g.ggml_exp(ctx, x);
    default: return x;
    }
}
/* x + scale * term of one adapter, for q [D, H, T]. NULL after a failure. */
static node with_term(any ctx, struct place * p, node q, node x) {
    const struct adapter * a = p->adapter; const int64_t h = a->size[HEADS], n = ne(q)[2];
    const bool in_place = n == 1 && g.ggml_is_contiguous(q), by_ggml = !p->cpu || p->parts[WEIGHT];
    node phi = in_place ? g.ggml_reshape_3d(ctx, q, a->size[KEY_LENGTH], 1, h) : g.ggml_permute(ctx, q, 0, 2, 1, 3); /* [D, T, H] */
    if (!in_place && by_ggml) phi = g.ggml_cont(ctx, phi); /* ggml's fast product wants it so */
    if (a->query_scale != 1.0f && by_ggml) phi = g.ggml_scale(ctx, phi, a->query_scale);
    if (p->parts[WEIGHT]) phi = g.ggml_mul_mat(ctx, p->parts[WEIGHT], phi);
    /* Heads that share a memory are neighbours. */
    if (p->parts[BIAS]) phi = g.ggml_add(ctx, g.ggml_reshape_4d(ctx, phi, a->size[FEATURES], n, h / a->n_memories, a->n_memories), p->parts[BIAS]);
    if (p->parts[BIAS]) phi = g.ggml_reshape_3d(ctx, phi, a->size[FEATURES], n, h);
    phi = p->cpu ? g.ggml_map_custom1(ctx, phi, features, -1, p) : activate(ctx, p, phi); /* [F, T, H] */
    if (!phi) return NULL;
    node term = g.ggml_mul_mat(ctx, p->parts[MEMORY], phi); /* [D_v, T, H] */
    /* Wherever the rest is computed, the denominators come to the CPU. */
    if (p->parts[NORMALIZER]) term = g.ggml_div(ctx, term, g.ggml_map_custom1(ctx, g.ggml_mul_mat(ctx, p->parts[NORMALIZER], phi), check_denominators, -1, p));
    if (p->cpu) return g.ggml_map_custom2(ctx, x, term, combine, -1, p);
    term = g.ggml_mul(ctx, term, p->constants[FACTOR]);
    if (n > 1) term = g.ggml_cont(ctx, g.ggml_permute(ctx, term, 0, 2, 1, 3));
    return g.ggml_add(ctx, x, g.ggml_reshape_3d(ctx, term, a->size[VALUE_LENGTH] * h, n, 1));
}
static bool grafted;
/* A graph has been built: it has all adapted layers, or none, being another model's. */
static void end_graph(struct ptplus * set, struct progress * progress) {
    int missing = -1;
    for (int i = 0; i < set->n && progress->n; i++) {
        for (int layer = 0; layer < set->adapters[i].size[LAYERS]; layer++) if (set->adapters[i].layers[layer].adapted && !progress->had[layer]) missing = layer;
    }
    if (missing >= 0) fail(set, UNSUPPORTED, "layer %d: its output projection is not in the graph, so the adapter does nothing there", missing);
    if (progress->n && !grafted && getenv("PTPLUS_VERBOSE")) fprintf(stderr, "ptplus: %d adapters in llama.cpp's graph\n", set->n);
    if (progress->n && missing < 0) grafted = set->complete = true;
    memset(progress, 0, sizeof *progress);
}
/* What goes into the output projection `w` of a layer instead of x. NULL after a failure. */
static node graft(struct ptplus * set, struct progress * progress, any ctx, int layer, node w, node x) {
    node with = x;
    if (progress->ctx != ctx || progress->had[layer]) end_graph(set, progress);
    progress->ctx = ctx;
    for (int i = 0; i < set->n; i++) {
        struct adapter * a = &set->adapters[i];
        if (layer >= a->size[LAYERS] || !a->layers[layer].adapted) continue;
        const node q = find_query(x, layer, a->tap, a->architecture->some_without_rope);
        if (!q) return fail(set, UNSUPPORTED, "layer %d: the query of its attention is not found in the graph", layer), NULL;
        if (type_of(q) != F32 || type_of(x) != F32 || ne(q)[0] != a->size[KEY_LENGTH] || ne(q)[1] != a->size[HEADS] || ne(q)[3] != 1 || nb(q)[0] != sizeof(float) ||
            ne(x)[0] != a->size[VALUE_LENGTH] * a->size[HEADS] || ne(x)[1] != ne(q)[2] || ne(x)[2] != 1 || ne(x)[3] != 1 || !g.ggml_is_contiguous(x)) {
            return fail(set, MISFIT, "layer %d: the query [%d, %d, %d] or the result [%d, %d] is not in F32 or of the adapter's sizes", layer, (int) ne(q)[0], (int) ne(q)[1],
                (int) ne(q)[2], (int) ne(x)[0], (int) ne(x)[1]), NULL;
        }
        struct place * p = place_for(a, layer, w);
        if (!p || !(with = with_term(ctx, p, q, with))) return NULL;
        progress->had[layer] = true; progress->n++;
    }
    return with;
}
/* What the product of w and x takes for x. */
static node with_terms(struct ptplus * set, struct progress * progress, any ctx, node w, node x) {
    static _Thread_local struct { any ctx; node x, with; } last; /* a LoRA's first matrix multiplies the same x */
    bool lora; const int layer = layer_of(g.ggml_get_name(w), &lora);
    /* llama.cpp also calls this to ask what a device supports, where x is a bare tensor, and to plan memory for a model without data. */
    if (layer < 0 || !src(x, 0) || !g.ggml_get_data(w)) return x;
    if (lora) return last.ctx == ctx && last.x == x ? last.with : x;
    pthread_mutex_lock(&lock); node with = !set->of_environment || is_adapted(w) ? graft(set, progress, ctx, layer, w, x) : x; pthread_mutex_unlock(&lock);
    if (!with) with = g.ggml_scale(ctx, x, NAN); /* what follows must not pass for a result */
    return last.ctx = ctx, last.x = x, last.with = with;
}
static void set_scale(struct adapter * a, float scale) {
    const float value = scale * a->memory_scale; a->scale = scale;
    for (struct place * p = a->places; p; p = p->next) g.ggml_backend_tensor_set(p->constants[FACTOR], &value, 0, sizeof value); }

/* ---- finding ggml ---- */
static _Thread_local struct ptplus * active; /* the adapters that the program made active */
#define EXPORT __attribute__((visibility("default")))
#ifdef PTPLUS_STATIC
extern node ggml_mul_mat(any, node, node) __asm__("__real_ggml_mul_mat");
#define DECLARE(result, name, arguments) extern __attribute__((weak)) result name arguments;
NEEDED(DECLARE)
#define FOUND(name) (function) name
#else
/* What a program is linked with is found by RTLD_NEXT; a library that was dlopened (Node, Python) needs its own handle. */
static function find(void * library, const char * name) {
    void * symbol = dlsym(RTLD_NEXT, name); function found;
    if (!symbol && library) symbol = dlsym(library, name);
    memcpy(&found, &symbol, sizeof found); return found; }
#define FOUND(name) find(library, #name)
#endif
static void start(void * library) {
#define WANT(result, name, arguments) { #name, FOUND(name), &g.name },
    const struct { const char * name; function found; void * to; } functions[] = { NEEDED(WANT) }; (void) library;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        memcpy(functions[i].to, &functions[i].found, sizeof(function));
        if (functions[i].found || strcmp(functions[i].name, "ggml_gelu_erf") == 0) continue;
        snprintf(broken, sizeof broken, "this llama.cpp has no function %s, and cannot take adapters", functions[i].name);
    }
    if (!*broken && !measure()) snprintf(broken, sizeof broken, "the layout of this llama.cpp's tensors is not known, and it cannot take adapters");
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) features = features_avx2, combine = combine_avx2;
#endif
}
#ifdef PTPLUS_STATIC
static void find_ggml(void) { if (!g.ggml_init) start(NULL), (void) note_model, (void) note_weight; }
node __wrap_ggml_mul_mat(any ctx, node w, node x);
node __wrap_ggml_mul_mat(any ctx, node w, node x) { return ggml_mul_mat(ctx, w, active ? with_terms(active, &active->progress, ctx, w, x) : x); }
#else

/* ---- adapters of the environment, and their scales while the program runs ---- */
/* A finite number that is all of the text, whatever the program's locale. */
static bool read_number(const char * text, float * out) {
    char * end; const locale_t c = newlocale(LC_ALL_MASK, "C", NULL);
    *out = strtof_l(text, &end, c);
    freelocale(c); return end != text && !*end && isfinite(*out); }
static void read_environment(void) {
    struct ptplus * set = NULL;
    for (int i = 1; i <= MAX_ADAPTERS + 1; i++) {
        char name[32], factor[32]; float scale = 1.0f; snprintf(name, sizeof name, "PTPLUS_ADAPTER_%d", i); snprintf(factor, sizeof factor, "PTPLUS_SCALE_%d", i);
        if (!getenv(name) || !*getenv(name)) continue;
        if (*broken) fail(NULL, UNSUPPORTED, "%s", broken);
        if (!set) set = calloc(1, sizeof *set);
        if (!set || i > MAX_ADAPTERS || i != set->n + 1) fail(NULL, USAGE, "%s: expected at most %d adapters, numbered without a gap", name, MAX_ADAPTERS);
        if (getenv(factor) && !read_number(getenv(factor), &scale)) fail(NULL, USAGE, "%s: expected a number, found %.64s", factor, getenv(factor));
        set->of_environment = true; load(set, getenv(name), NULL, scale);
    }
    environment = set;
}
/* What is wrong with the text of a control file, or NULL. Fills in the scales that it names. */
static const char * read_scales(const struct ptplus * set, char * text, float * scales) {
    for (char * rest = NULL, * line = strtok_r(text, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest)) {
        char number[16], * gap = strrchr(line, ' '); float scale; int found = -1, n_found = 0;
        if (*line == '#') continue;
        if (!gap || !read_number(gap + 1, &scale)) return "expected lines of a NAME and a SCALE";
        *gap = '\0';
        for (int i = 0; i < set->n; i++) if (snprintf(number, sizeof number, "%d", i + 1) && strcmp(line, number) == 0) found = i, n_found++;
        for (int i = 0, by_number = n_found; i < set->n && !by_number; i++) if (strcmp(line, set->adapters[i].name) == 0) found = i, n_found++;
        if (n_found != 1) return n_found ? "a name means several adapters: give the number" : "a name means none of the adapters";
        scales[found] = scale;
    }
    return NULL;
}
static pthread_rwlock_t computing = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
/* Takes over the scales of the control file, if it has changed. One that is refused is said once, and changes nothing. */
static void follow_control(struct ptplus * set, any sched) {
    static struct stat seen;
    const char * path = getenv("PTPLUS_CONTROL"), * wrong = "expected a regular file of this user, not writable by others, of at most 4096 bytes"; struct stat now;
    char text[MAX_CONTROL + 1]; float scales[MAX_ADAPTERS];
    if (!path || stat(path, &now) != 0) return;
    pthread_mutex_lock(&lock);
    const bool changed = memcmp(&now.st_mtim, &seen.st_mtim, sizeof now.st_mtim) != 0 || now.st_ino != seen.st_ino || now.st_size != seen.st_size; seen = now;
    for (int i = 0; i < set->n; i++) scales[i] = set->adapters[i].scale;
    const int file = changed ? open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK) : -1;
    if (file >= 0 && fstat(file, &now) == 0 && S_ISREG(now.st_mode) && now.st_uid == geteuid() && !(now.st_mode & 022) && now.st_size <= MAX_CONTROL) {
        const ssize_t n = read(file, text, MAX_CONTROL); text[n < 0 ? 0 : n] = '\0'; wrong = n < 0 ? "cannot be read" : read_scales(set, text, scales);
    }
    if (file >= 0) close(file);
    if (changed && wrong) fprintf(stderr, "ptplus: %s: %s; the scales stay as they are\n", path, wrong);
    for (int i = 0; i < set->n && changed && !wrong; i++) {
        if (scales[i] == set->adapters[i].scale) continue;
        pthread_rwlock_wrlock(&computing); /* no graph is computed with two scales */
        g.ggml_backend_sched_synchronize(sched); set_scale(&set->adapters[i], scales[i]); pthread_rwlock_unlock(&computing);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- what the program calls in our place ---- */
/* A library that calls us, and where its calls go on to. */
enum { MUL_MAT, DUP_TENSOR, OPEN_FILE, OPEN_STREAM, RESERVE, COMPUTE, N_WRAPPED };
static const char * const WRAPPED[] = { "ggml_mul_mat", "ggml_dup_tensor", "gguf_init_from_file", "gguf_init_from_file_ptr", "ggml_backend_sched_reserve",
    "ggml_backend_sched_graph_compute_async" };
static struct module { void * base; function next[N_WRAPPED]; } modules[MAX_MODULES];
static _Thread_local struct progress of_thread; /* of the environment's adapters */
/* The library that `caller` is in. The first one's first call finds ggml and reads the adapters. */
static const struct module * module_of(void * caller) {
    static _Thread_local struct { void * caller; struct module * module; } known[256]; const size_t slot = (uintptr_t) caller / 4 % 256; Dl_info info;
    struct module * m = modules;
    if (known[slot].caller == caller) return known[slot].module;
    pthread_mutex_lock(&lock);
    if (!dladdr(caller, &info)) fail(NULL, OTHER, "ggml is called from no library");
    while (m < &modules[MAX_MODULES - 1] && m->base && m->base != info.dli_fbase) m++;
    if (!m->base) {
        void * library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD); m->base = info.dli_fbase;
        for (int i = 0; i < N_WRAPPED; i++) m->next[i] = find(library, WRAPPED[i]);
        if (m == modules) {
            start(library);
            if (!PTPLUS_LINKED) read_environment();
        }
    }
    if (m->base != info.dli_fbase || !m->next[MUL_MAT]) fail(NULL, UNSUPPORTED, "ggml is not found behind a library that calls it");
    if (environment && m->next[MUL_MAT] != modules[0].next[MUL_MAT]) fail(NULL, UNSUPPORTED, "this process has two copies of ggml: which one is adapted is unknown");
    pthread_mutex_unlock(&lock); return known[slot].caller = caller, known[slot].module = m;
}
/* Where a call of one of WRAPPED goes on to. */
#define NEXT(which, result, arguments) ((result(*) arguments) module_of(__builtin_return_address(0))->next[which])
EXPORT node ggml_mul_mat(any ctx, node w, node x) {
    node (*next)(any, node, node) = NEXT(MUL_MAT, node, (any, node, node));
    return next(ctx, w, active ? with_terms(active, &active->progress, ctx, w, x) : environment ? with_terms(environment, &of_thread, ctx, w, x) : x); }
EXPORT node ggml_dup_tensor(any ctx, node like) {
    const node made = NEXT(DUP_TENSOR, node, (any, node))(ctx, like);
    if (environment && latest) note_weight(made, like);
    return made; }
EXPORT any gguf_init_from_file_ptr(FILE * file, struct gguf_params params) { return note_model(NEXT(OPEN_STREAM, any, (FILE *, struct gguf_params))(file, params), fileno(file)); }
EXPORT any gguf_init_from_file(const char * path, struct gguf_params params) {
    const int file = open(path, O_RDONLY | O_CLOEXEC); const any result = note_model(NEXT(OPEN_FILE, any, (const char *, struct gguf_params))(path, params), file);
    return close(file), result; }
/* A graph is whole. As long as nothing was grafted, it must not be one of the adapted model. */
static void look_at(any graph) {
    pthread_mutex_lock(&lock);
    if (of_thread.n) end_graph(environment, &of_thread);
    for (int i = 0; !grafted && i < g.ggml_graph_n_nodes(graph); i++) {
        const node w = src(g.ggml_graph_node(graph, i), 0); const struct model * m = w && g.ggml_get_data(w) ? model_of(w) : NULL;
        if (m && m->fits) fail(NULL, UNSUPPORTED, "the adapters were applied in no layer: no product with blk.N.attn_output.weight comes through here");
    }
    pthread_mutex_unlock(&lock);
}
EXPORT bool ggml_backend_sched_reserve(any sched, any graph) {
    bool (*next)(any, any) = NEXT(RESERVE, bool, (any, any));
    if (environment) look_at(graph);
    return next(sched, graph); }
EXPORT int ggml_backend_sched_graph_compute_async(any sched, any graph) {
    int (*next)(any, any) = NEXT(COMPUTE, int, (any, any));
    if (!environment) return next(sched, graph);
    look_at(graph); follow_control(environment, sched); pthread_rwlock_rdlock(&computing); const int status = next(sched, graph); pthread_rwlock_unlock(&computing);
    return status; }
static void find_ggml(void) {
    void * symbol = dlsym(RTLD_NEXT, "ggml_get_name");
    if (!modules[0].base && symbol) module_of(symbol); }
#endif

/* ---- include/ptplus.h ---- */
EXPORT struct ptplus * ptplus_load(const char * model, const char * const * paths, int n) {
    struct ptplus * set = calloc(1, sizeof *set);
    if (!set) return NULL;
    pthread_mutex_lock(&lock); find_ggml();
    if (!g.ggml_init && !*broken) return free(set), strcpy(last_error, "this process has not called ggml yet: load the model first"), pthread_mutex_unlock(&lock), NULL;
    bool good = (!*broken || fail(set, UNSUPPORTED, "%s", broken)) && ((n >= 1 && n <= MAX_ADAPTERS) || fail(set, USAGE, "expected 1 to %d adapters", MAX_ADAPTERS));
    const any file = good ? g.gguf_init_from_file(model, (struct gguf_params) { true, NULL }) : NULL;
    if (good && !file) good = fail(set, CORRUPT, "%.200s: expected a GGUF file that ggml can read", model);
    for (int i = 0; i < n && good; i++) good = load(set, paths[i], file, 1.0f);
    if (file) g.gguf_free(file);
    pthread_mutex_unlock(&lock);
    if (good) return set;
    strcpy(last_error, set->message); ptplus_free(set); return NULL;
}
EXPORT void ptplus_activate(struct ptplus * adapters) { active = adapters; }
EXPORT bool ptplus_set_scale(struct ptplus * adapters, int index, float scale) {
    if (index < 0 || index >= adapters->n || !isfinite(scale)) return false;
    set_scale(&adapters->adapters[index], scale); return true; }
EXPORT const char * ptplus_check(struct ptplus * set) {
    pthread_mutex_lock(&lock);
    if (set->progress.n) end_graph(set, &set->progress);
    if (!set->failed && !set->complete) fail(set, UNSUPPORTED, "the adapters are in no graph: they were not active when it was built");
    const bool failed = set->failed; set->failed = false; pthread_mutex_unlock(&lock); return failed ? set->message : NULL; }
EXPORT void ptplus_free(struct ptplus * set) {
    if (active == set) active = NULL;
    for (int i = 0; set && i < set->n; i++) {
        struct adapter * a = &set->adapters[i];
        for (struct place * p = a->places, * next; p; p = next) { next = p->next; g.ggml_backend_buffer_free(p->buffer), g.ggml_free(p->ctx), free(p); }
        if (a->tensors) g.ggml_free(a->tensors);
        free(a->layers), free(a->bytes);
    }
    free(set);
}
EXPORT bool ptplus_supports(const char * architecture) { return architecture_of(architecture) != NULL; } EXPORT const char * ptplus_error(void) { return last_error; }