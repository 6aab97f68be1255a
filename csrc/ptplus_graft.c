/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Copyright (c) 2026 the ptplus authors */
/*
 * Prefix-Tuning+ adapters (GGUF files that `ptplus` writes) as nodes of llama.cpp's own graph, in any program that calls ggml_mul_mat through a dynamic
 * relocation. No header of ggml or llama.cpp: functions are looked up by name, layouts measured. Use and variables: docs/LLAMA_CPP.md; functions: ptplus.h.
 *
 *   cc -O2 -shared -fPIC -fvisibility=hidden -Iinclude -o libptplus_graft.so csrc/ptplus_graft.c -ldl
 *   LD_PRELOAD=$PWD/libptplus_graft.so PTPLUS_ADAPTER_1=adapter.gguf PTPLUS_SCALE_1=1 PTPLUS_CONTROL=file PTPLUS_VERBOSE=1 PROGRAM ...
 *
 * The output projection of layer i is ggml_mul_mat(ctx, w, x) with w named blk.{i}.attn_output.weight. From x the graph is walked back to the query q
 * [D, H, T] that attention took, and x + scale * term goes on in its place. What is not as expected ends the program with one line, or is an error of ptplus.h.
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
enum { F32 = 0, F16 = 1, I32 = 26, OF_U32 = 4, OF_I32 = 5, OF_F32 = 6, OF_TEXT = 8, OF_ARRAY = 9 }; /* in GGUF files: fixed for good */

/* ---- ggml, found at run time ---- */
typedef struct ggml_tensor * node;
typedef void * any; /* a context, buffer, buffer type, device, file or graph of ggml */
typedef void (*function)(void); typedef void custom1(node dst, node a, int ith, int nth, void * data);
typedef void custom2(node dst, node a, node b, int ith, int nth, void * data);
struct init_params { size_t size; void * memory; bool no_alloc; }; struct gguf_params { bool no_alloc; any * ctx; };
/* Integers that became 64 bits wide over the years are declared as `int`: its bits are right in both. */
#define UNARY(X, name) X(node, name, (any, node))
#define BINARY(X, name) X(node, name, (any, node, node))
#define NEEDED(X) \
    BINARY(X, ggml_mul_mat) BINARY(X, ggml_add) BINARY(X, ggml_mul) BINARY(X, ggml_div) UNARY(X, ggml_cont) UNARY(X, ggml_sqr) UNARY(X, ggml_abs) \
    UNARY(X, ggml_neg) UNARY(X, ggml_exp) UNARY(X, ggml_tanh) UNARY(X, ggml_sigmoid) UNARY(X, ggml_elu) UNARY(X, ggml_relu) UNARY(X, ggml_silu) \
    X(node, ggml_scale, (any, node, float)) X(node, ggml_permute, (any, node, int, int, int, int)) \
    X(node, ggml_reshape_3d, (any, node, int64_t, int64_t, int64_t)) X(node, ggml_reshape_4d, (any, node, int64_t, int64_t, int64_t, int64_t)) \
    X(node, ggml_map_custom1, (any, node, custom1 *, int, void *)) X(node, ggml_map_custom2, (any, node, node, custom2 *, int, void *)) \
    X(const char *, ggml_get_name, (node)) X(const char *, ggml_op_desc, (node)) X(node, ggml_set_name, (node, const char *)) X(void *, ggml_get_data, (node)) \
    X(size_t, ggml_nbytes, (node)) X(bool, ggml_is_contiguous, (node)) X(size_t, ggml_tensor_overhead, (void)) X(any, ggml_init, (struct init_params)) \
    X(void, ggml_free, (any)) X(node, ggml_new_tensor, (any, int, int, const int64_t *)) X(node, ggml_get_tensor, (any, const char *)) \
    X(bool, ggml_validate_row_data, (int, const void *, size_t)) X(any, ggml_backend_cpu_buffer_type, (void)) X(bool, ggml_backend_buft_is_host, (any)) \
    X(any, ggml_backend_buft_get_device, (any)) X(const char *, ggml_backend_buft_name, (any)) X(any, ggml_backend_dev_buffer_type, (any)) \
    X(any, ggml_backend_alloc_ctx_tensors_from_buft, (any, any)) X(void, ggml_backend_tensor_set, (node, const void *, size_t, size_t)) \
    X(any, ggml_backend_buffer_get_type, (any)) X(void, ggml_backend_buffer_free, (any)) X(void, ggml_backend_buffer_set_usage, (any, int)) \
    X(any, gguf_init_from_file, (const char *, struct gguf_params)) X(void, gguf_free, (any)) X(int, gguf_find_key, (any, const char *)) \
    X(int, gguf_get_kv_type, (any, int64_t)) X(const char *, gguf_get_val_str, (any, int64_t)) X(uint32_t, gguf_get_val_u32, (any, int64_t)) \
    X(float, gguf_get_val_f32, (any, int64_t)) X(int, gguf_get_arr_type, (any, int64_t)) X(int, gguf_get_arr_n, (any, int64_t)) \
    X(const void *, gguf_get_arr_data, (any, int64_t)) X(int, gguf_get_n_tensors, (any)) X(int, gguf_find_tensor, (any, const char *)) \
    X(size_t, gguf_get_tensor_offset, (any, int64_t)) X(size_t, gguf_get_data_offset, (any)) X(int, ggml_graph_n_nodes, (any)) \
    X(node, ggml_graph_node, (any, int)) X(void, ggml_backend_sched_synchronize, (any))
/* These may be missing: `gelu` on devices needs the first; memories of a type that cannot be decoded go to ggml's own product. */
#define DECODER(X, name) X(void, name, (const void *, float *, int64_t))
#define OPTIONAL(X) \
    UNARY(X, ggml_gelu_erf) DECODER(X, ggml_fp16_to_fp32_row) DECODER(X, ggml_bf16_to_fp32_row) DECODER(X, dequantize_row_q4_0) \
    DECODER(X, dequantize_row_q4_1) DECODER(X, dequantize_row_q5_0) DECODER(X, dequantize_row_q5_1) DECODER(X, dequantize_row_q8_0) \
    DECODER(X, dequantize_row_q2_K) DECODER(X, dequantize_row_q3_K) DECODER(X, dequantize_row_q4_K) DECODER(X, dequantize_row_q5_K) \
    DECODER(X, dequantize_row_q6_K)
#define FIELD(result, name, arguments) result(*name) arguments;
static struct { NEEDED(FIELD) OPTIONAL(FIELD) } g;
static struct { size_t type, buffer, ne, nb, src; } at; /* where a tensor keeps what has no function: offsets in bytes */
static char broken[MESSAGE];                            /* why there can be no adapters */
static const int64_t * ne(node t) { return (const int64_t *) ((const char *) t + at.ne); }
static const size_t * nb(node t) { return (const size_t *) ((const char *) t + at.nb); }
static node src(node t, int i) { return ((node *) ((char *) t + at.src))[i]; }
static int type_of(node t) { return *(const int *) ((const char *) t + at.type); } static any buffer_of(node t) { return *(any *) ((char *) t + at.buffer); }
static bool is(node t, const char * op) { return t && strcmp(g.ggml_op_desc(t), op) == 0; }
/* The offset of `size` bytes like `value` in a tensor, else beyond its end. */
static size_t offset_in(node t, const void * value, size_t size) {
    size_t i = 0; while (i < g.ggml_tensor_overhead() && memcmp((const char *) t + i, value, size) != 0) i += sizeof(int);
    return i; }
/* Finds the layout of a tensor with tensors whose fields are known. False where it does not answer. */
static bool measure(void) {
    const size_t end = g.ggml_tensor_overhead(), nb_product[4] = { 4, 28, 84, 924 };
    const int64_t ne_a[4] = { 5, 7, 11, 1 }, ne_b[4] = { 5, 3, 11, 1 }, ne_product[4] = { 7, 3, 11, 1 }, n = 32;
    const struct init_params params = { 16 * end, NULL, true }; /* room behind the tensors that are looked at */
    const any ctx = g.ggml_init(params), allocated = g.ggml_init(params);
    const node a = g.ggml_new_tensor(ctx, F32, 4, ne_a), b = g.ggml_new_tensor(ctx, F32, 4, ne_b), sources[] = { a, b };
    const node product = g.ggml_mul_mat(ctx, a, b), half = g.ggml_new_tensor(ctx, F16, 1, &n), whole = g.ggml_new_tensor(ctx, I32, 1, &n);
    const node stored = g.ggml_new_tensor(allocated, F32, 1, &n);
    const any buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(allocated, g.ggml_backend_cpu_buffer_type()); g.ggml_set_name(a, "ptplus");
    at.ne = offset_in(product, ne_product, sizeof ne_product); at.nb = offset_in(product, nb_product, sizeof nb_product);
    at.src = offset_in(product, sources, sizeof sources); at.buffer = offset_in(stored, &buffer, sizeof buffer); at.type = 0;
    while (at.type < end && !(type_of(a) == F32 && type_of(half) == F16 && type_of(whole) == I32)) at.type += sizeof(int);
    const bool known = buffer && at.ne < end && at.nb < end && at.src < end && at.buffer < end && at.type < end &&
        memcmp(ne(a), ne_a, sizeof ne_a) == 0 && nb(a)[1] == 20 && nb(a)[2] == 140 && !src(a, 0) && !src(a, 1) && !buffer_of(a) &&
        type_of(product) == F32 && is(product, "MUL_MAT") && strcmp(g.ggml_get_name(a), "ptplus") == 0;
    if (buffer) g.ggml_backend_buffer_free(buffer);
    g.ggml_free(allocated); g.ggml_free(ctx); return known; }

/* ---- adapters ---- */
/* Architectures of known row order. q is what the last RoPE before attention makes; in layers that have none, it is Qcur-{i}. */
static const struct architecture { const char * name, * order; bool some_without_rope; } ARCHITECTURES[] = {
    { "llama", "norm", false }, { "qwen2", "neox", false }, { "qwen3", "neox", false }, { "qwen2moe", "neox", false }, { "qwen3moe", "neox", false },
    { "gemma", "neox", false }, { "gemma2", "neox", false }, { "gemma3", "neox", false }, { "phi3", "neox", false }, { "olmo2", "neox", false },
    { "granite", "norm", false }, { "smollm3", "norm", true }, { NULL, NULL, false } };
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
/* parts: as in the file, NULL: not there; data: in F32 where it can be decoded, else in the file's type */
struct layer { bool adapted; node parts[N_PARTS]; int types[N_PARTS]; const void * data[N_PARTS]; float * decoded[N_PARTS]; };
struct place { /* a layer's weights on one device: for the CPU in F32 and an order of ours, elsewhere as tensors */
    struct place * next; const struct adapter * adapter; int layer; any buft, ctx, buffer;
    /* M [H', F, D_v], W [H', D, F], b and N [H', F]; the last axis has zeros up to a multiple of WIDTH. NULL: not there */
    float * numbers[N_PARTS]; node parts[N_PARTS], constants[N_CONSTANTS]; };
struct adapter { /* name: the file's, without .gguf; tensors and bytes: of the file, that layers refer to */
    struct ptplus * set; const struct architecture * architecture; char path[256], name[256], * bytes; int64_t size[N_SIZES], n_memories;
    float query_scale, memory_scale, scale; int map, tap; any tensors; struct layer * layers; struct place * places; };
struct progress { const void * ctx; int n; bool had[MAX_LAYERS]; }; /* the layers of the graph being built that have their terms */
struct ptplus { /* complete: a graph has had all layers */
    bool of_environment, complete, failed; int n; struct adapter adapters[MAX_ADAPTERS]; char message[MESSAGE]; struct progress progress; };
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP; static _Thread_local char last_error[MESSAGE];
static struct ptplus * environment; static bool grafted; /* the adapters that the environment names, or NULL; a graph has had all layers */
/* Ends the program with one line, for adapters of the environment or NULL; else keeps the first reason for `ptplus_check`. False. */
__attribute__((format(printf, 3, 4))) static bool fail(struct ptplus * set, int code, const char * format, ...) {
    char text[MESSAGE] = "ptplus: "; va_list args; va_start(args, format); vsnprintf(text + 8, sizeof text - 9, format, args); va_end(args);
    if (!set || set->of_environment) {
        strcat(text, "\n"); _exit(write(STDERR_FILENO, text, strlen(text)) < 0 ? OTHER : code); }
    pthread_mutex_lock(&lock); if (!set->failed) strcpy(set->message, text + 8);
    set->failed = true; pthread_mutex_unlock(&lock); return false; }
static const struct architecture * architecture_of(const char * name) {
    const struct architecture * a = ARCHITECTURES; while (a->name && name && strcmp(name, a->name) != 0) a++;
    return name && a->name ? a : NULL; }
static const char * text_at(any file, const char * key) {
    const int id = g.gguf_find_key(file, key); return id >= 0 && g.gguf_get_kv_type(file, id) == OF_TEXT ? g.gguf_get_val_str(file, id) : NULL; }
/* A size, or the one that an array repeats; -1 for another type or different ones, `absent` where the key is not there. */
static int64_t size_at(any file, const char * key, int64_t absent) {
    const int id = g.gguf_find_key(file, key), type = id < 0 ? -1 : g.gguf_get_kv_type(file, id); if (type == OF_U32) return g.gguf_get_val_u32(file, id);
    const int element = type == OF_ARRAY ? g.gguf_get_arr_type(file, id) : -1;
    const int n = element == OF_U32 || element == OF_I32 ? g.gguf_get_arr_n(file, id) : 0;
    const int32_t * values = n > 0 ? g.gguf_get_arr_data(file, id) : NULL; for (int i = 1; i < n; i++) if (values[i] != values[0]) return -1;
    return n > 0 ? values[0] : id < 0 ? absent : -1; }
#define KEY "adapter.prefix_tuning_plus."
/* The place of the key's text in `names`, else fails and is -1. */
static int choice_at(struct adapter * a, any file, const char * key, const char * const * names) {
    const char * text = text_at(file, key), * more = names[1] ? ", .." : ""; for (int i = 0; text && names[i]; i++) if (strcmp(text, names[i]) == 0) return i;
    fail(a->set, UNSUPPORTED, "%s: %s: expected %s%s, found %.64s", a->path, key, names[0], more, text ? text : "none"); return -1; }
static bool read_config(struct adapter * a, any file) {
    static const char * const ADAPTER[] = { "adapter", NULL }, * const KIND[] = { "prefix_tuning_plus", NULL };
    const char * name = text_at(file, "general.architecture"), * order[] = { NULL, NULL }; float * const factors[] = { &a->query_scale, &a->memory_scale };
    char key[96]; if (choice_at(a, file, "general.type", ADAPTER) < 0 || choice_at(a, file, "adapter.type", KIND) < 0) return false;
    if (!(a->architecture = architecture_of(name))) {
        return fail(a->set, UNSUPPORTED, "%s: general.architecture: expected one whose row order is known, found %.64s", a->path, name ? name : "none"); }
    for (int i = 0; i < N_SIZES; i++) {
        snprintf(key, sizeof key, KEY "%s", SIZES[i]); a->size[i] = size_at(file, key, -1); if (a->size[i] >= 1 && a->size[i] <= MOST[i]) continue;
        return fail(a->set, CORRUPT, "%s: %s: expected 1 to %lld", a->path, key, (long long) MOST[i]); }
    for (int i = 0; i < 2; i++) {
        const char * factor = i ? KEY "memory_scale" : KEY "query_scale"; const int id = g.gguf_find_key(file, factor);
        *factors[i] = id >= 0 && g.gguf_get_kv_type(file, id) == OF_F32 ? g.gguf_get_val_f32(file, id) : NAN;
        if (!isfinite(*factors[i])) return fail(a->set, CORRUPT, "%s: %s: expected a finite F32", a->path, factor); }
    order[0] = a->architecture->order; if (choice_at(a, file, KEY "query_order", order) < 0) return false;
    if ((a->map = choice_at(a, file, KEY "feature_map", MAPS)) < 0 || (a->tap = choice_at(a, file, KEY "query_tap", TAPS)) < 0) return false;
    const int sharing = choice_at(a, file, KEY "memory_sharing", SHARINGS); if (sharing < 0) return false;
    a->n_memories = sharing == 0 ? a->size[HEADS] : sharing == 1 ? a->size[HEADS_KV] : 1;
    return a->size[HEADS] % a->n_memories == 0 || fail(a->set, CORRUPT, "%s: " KEY "head_count: expected a multiple of head_count_kv", a->path); }
typedef void decode_numbers(const void * from, float * out, int64_t n);
/* What decodes a type to F32. NULL: nothing here; F32 needs none. */
static decode_numbers * decoder(int type) {
    decode_numbers * const known[] = { [F16] = g.ggml_fp16_to_fp32_row, [2] = g.dequantize_row_q4_0, [3] = g.dequantize_row_q4_1,
        [6] = g.dequantize_row_q5_0, [7] = g.dequantize_row_q5_1, [8] = g.dequantize_row_q8_0, [10] = g.dequantize_row_q2_K,
        [11] = g.dequantize_row_q3_K, [12] = g.dequantize_row_q4_K, [13] = g.dequantize_row_q5_K, [14] = g.dequantize_row_q6_K,
        [30] = g.ggml_bf16_to_fp32_row };
    return type < 31 ? known[type] : NULL; }
static bool read_part(struct adapter * a, any file, uint64_t file_len, uint32_t layer, int part, int * n_found) {
    const int64_t f = a->size[FEATURES], h = a->n_memories, d = a->size[KEY_LENGTH];
    const int64_t shapes[][4] = { { f, a->size[VALUE_LENGTH], h, 1 }, { d, f, h, 1 }, { f, h, 1, 1 }, { f, h, 1, 1 } }, * s = shapes[part]; char name[64];
    snprintf(name, sizeof name, "blk.%u.attn_prefix_%s", layer, PARTS[part]); const int id = g.gguf_find_tensor(file, name);
    struct layer * l = &a->layers[layer]; const bool may_miss = part != MEMORY && (part != WEIGHT || f == d);
    if (id < 0) return may_miss || fail(a->set, CORRUPT, "%s: %s: expected this tensor, found none", a->path, name);
    const node t = l->parts[part] = g.ggml_get_tensor(a->tensors, name);
    const uint64_t offset = g.gguf_get_data_offset(file) + g.gguf_get_tensor_offset(file, id), len = g.ggml_nbytes(t); const int type = type_of(t); ++*n_found;
    if (memcmp(ne(t), s, sizeof *shapes) != 0)
        return fail(a->set, CORRUPT, "%s: %s: expected [%lld, %lld, %lld]", a->path, name, (long long) s[0], (long long) s[1], (long long) s[2]);
    if ((type >= 24 && type <= 28) || (part >= BIAS && type != F32) || offset % sizeof(float) != 0) { /* 24 to 28 are integers and F64 */
        return fail(a->set, UNSUPPORTED, "%s: %s: type %d cannot be decoded", a->path, name, type); }
    if (offset > file_len || len > file_len - offset) return fail(a->set, CORRUPT, "%s: %s: the file ends before this tensor does", a->path, name);
    if (!g.ggml_validate_row_data(type, a->bytes + offset, len)) return fail(a->set, CORRUPT, "%s: %s: expected finite values", a->path, name);
    decode_numbers * const decode = decoder(type); const size_t n = (size_t) (s[0] * s[1] * s[2]); l->types[part] = decode ? F32 : type;
    l->decoded[part] = decode ? malloc(n * sizeof(float)) : NULL; l->data[part] = decode ? (const void *) l->decoded[part] : a->bytes + offset;
    if (!l->data[part]) return fail(a->set, OTHER, "%s: out of memory", a->path);
    if (decode) decode(a->bytes + offset, l->decoded[part], (int64_t) n);
    return true; }
static bool read_layers(struct adapter * a, any file, uint64_t file_len) {
    const int id = g.gguf_find_key(file, KEY "layers");
    const bool is_list = id >= 0 && g.gguf_get_kv_type(file, id) == OF_ARRAY && g.gguf_get_arr_type(file, id) == OF_U32;
    const int n = is_list ? g.gguf_get_arr_n(file, id) : 0; const uint32_t * list = n > 0 ? g.gguf_get_arr_data(file, id) : NULL;
    const long long n_layers = a->size[LAYERS]; int n_found = 0;
    if (n < 1 || n > n_layers) return fail(a->set, CORRUPT, "%s: " KEY "layers: expected 1 to %lld layers, as u32", a->path, n_layers);
    if (!(a->layers = calloc((size_t) n_layers, sizeof *a->layers))) return fail(a->set, OTHER, "out of memory");
    for (int i = 0; i < n; i++) {
        struct layer * l = list[i] < n_layers ? &a->layers[list[i]] : NULL;
        if (!l || l->adapted) return fail(a->set, CORRUPT, "%s: " KEY "layers: expected different layers below %lld", a->path, n_layers);
        l->adapted = true; for (int part = 0; part < N_PARTS; part++) if (!read_part(a, file, file_len, list[i], part, &n_found)) return false;
        if (!l->parts[BIAS] || l->parts[WEIGHT]) continue;
        return fail(a->set, CORRUPT, "%s: blk.%u.attn_prefix_feature.weight: expected one beside the bias", a->path, list[i]); }
    return n_found == g.gguf_get_n_tensors(file) || fail(a->set, CORRUPT, "%s: some tensors are no part of the adapter", a->path); }
/* Why the adapter is not for the model of this file: writes it to `why` and is true. */
static bool misfits(const struct adapter * a, any file, char why[MESSAGE]) {
    const char * name = text_at(file, "general.architecture"), * own = a->architecture->name; char key[128];
    if (!name || strcmp(name, own) != 0) {
        snprintf(why, MESSAGE, "%s: general.architecture: expected %.64s, as the model has, found %s", a->path, name ? name : "none", own); return true; }
#define OF_MODEL(field) (snprintf(key, sizeof key, "%s.%s", name, field), key)
    const int64_t heads = size_at(file, OF_MODEL("attention.head_count"), -1), absent[] = { -1, -1, heads, 0, 0 };
    const int64_t head_length = heads > 0 ? size_at(file, OF_MODEL("embedding_length"), -1) / heads : -1;
    for (int i = LAYERS; i <= VALUE_LENGTH; i++) {
        snprintf(key, sizeof key, "%s.%s%s", name, i == LAYERS ? "" : "attention.", SIZES[i]);
        const long long expected = size_at(file, key, i >= KEY_LENGTH ? head_length : absent[i]), found = a->size[i]; if (expected == found) continue;
        snprintf(why, MESSAGE, "%s: %s: expected %lld, as the model has, found %lld", a->path, SIZES[i], expected, found); return true; }
    return false; }
/* Reads an adapter into the next slot, for a model's file if there is one. */
static bool load(struct ptplus * set, const char * path, any model, float scale) {
    struct adapter * a = &set->adapters[set->n++]; struct stat status; const char * slash = strrchr(path, '/'), * stem = slash ? slash + 1 : path;
    const int len = (int) strlen(stem), suffix = len > 5 && strcmp(stem + len - 5, ".gguf") == 0 ? 5 : 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); char why[MESSAGE]; size_t n_read = 0; a->set = set; a->scale = scale;
    snprintf(a->path, sizeof a->path, "%s", path); snprintf(a->name, sizeof a->name, "%.*s", len - suffix, stem);
    if (fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && (a->bytes = malloc((size_t) status.st_size + 1))) {
        for (ssize_t n; (n = read(fd, a->bytes + n_read, (size_t) status.st_size - n_read)) > 0;) n_read += (size_t) n; }
    close(fd); if (!n_read) return fail(set, OTHER, "%s: cannot be read", a->path);
    const any file = g.gguf_init_from_file(path, (struct gguf_params) { true, &a->tensors });
    bool good = file ? read_config(a, file) : fail(set, CORRUPT, "%s: expected a GGUF file that ggml can read", a->path);
    good = good && (!model || !misfits(a, model, why) || fail(set, MISFIT, "%s", why)) && read_layers(a, file, n_read); if (file) g.gguf_free(file);
    return good; }

/* ---- models: the GGUF files that the program opens, and the tensors that it makes of them ---- */
struct model { /* embeds: it says how it pools, and may lie beside the adapted one */
    struct model * next; dev_t device; ino_t inode; bool fits, embeds; char name[128], why[MESSAGE]; };
static struct model * models, * adapted, * latest; /* latest: what any thread opened last, for loaders that make the tensors on another one */
static _Thread_local struct model * opening;       /* what this thread opened last: its tensors are made next */
static struct { node weight; struct model * model; } * bound; static size_t n_bound;
/* The layer whose output projection, or its LoRA, has this name; else -1. */
static int layer_of(const char * name, bool * lora) {
    int layer = -1, end = 0; if (strncmp(name, "blk.", 4) != 0 || sscanf(name, "blk.%4d.attn_output.weight%n", &layer, &end) != 1 || !end) return -1;
    *lora = strcmp(name + end, ".lora_a") == 0; return layer >= 0 && layer < MAX_LAYERS && (*lora || !name[end]) ? layer : -1; }
/* Takes note of a file that the program opened. Further files of a split model have no architecture, and change nothing. */
static any note_model(any file, int descriptor) {
    const char * architecture = environment && file ? text_at(file, "general.architecture") : NULL;
    const char * type = architecture ? text_at(file, "general.type") : NULL; struct stat status; char key[96];
    if (!architecture || (type && strcmp(type, "model") != 0) || fstat(descriptor, &status) != 0) return file;
    pthread_mutex_lock(&lock); struct model * m = models; while (m && (m->device != status.st_dev || m->inode != status.st_ino)) m = m->next;
    if (!m && (m = calloc(1, sizeof *m))) {
        snprintf(key, sizeof key, "%.64s.pooling_type", architecture);
        *m = (struct model) { .next = models, .device = status.st_dev, .inode = status.st_ino, .fits = true }; m->embeds = g.gguf_find_key(file, key) >= 0;
        snprintf(key, sizeof key, "/proc/self/fd/%d", descriptor); if (readlink(key, m->name, sizeof m->name - 1) < 0) strcpy(m->name, "a file");
        for (int i = 0; i < environment->n && m->fits; i++) m->fits = !misfits(&environment->adapters[i], file, m->why);
        models = m; }
    opening = latest = m; pthread_mutex_unlock(&lock); return file; }
/* A tensor like one of the model that this thread opened is made. */
static void note_weight(node made, node like) {
    if (strncmp(g.ggml_get_name(like), "blk.", 4) != 0 || strstr(g.ggml_get_name(like), ".lora_")) return;
    size_t i = 0; pthread_mutex_lock(&lock); while (i < n_bound && bound[i].weight != made) i++;
    if (i == n_bound && n_bound % 256 == 0 && !(bound = realloc(bound, (n_bound + 256) * sizeof *bound))) fail(NULL, OTHER, "out of memory");
    bound[i].weight = made; bound[i].model = opening ? opening : latest; n_bound += i == n_bound; pthread_mutex_unlock(&lock); }
static struct model * model_of(node w) {
    size_t i = 0; while (i < n_bound && bound[i].weight != w) i++;
    return i < n_bound ? bound[i].model : NULL; }
/* Whether `w` is of the model that the environment's adapters are for, or of one beside it. Ends the program where there is none. */
static bool is_adapted(node w) {
    struct model * m = model_of(w); bool any_fits = false; for (struct model * other = models; other; other = other->next) any_fits |= other->fits;
    if (!m) return fail(NULL, UNSUPPORTED, "a model runs whose file was not seen when it was opened: whether the adapters fit it is unknown");
    if (!m->fits && !any_fits && !m->embeds) fail(NULL, MISFIT, "%s", m->why);
    if (m->fits && adapted && adapted != m) fail(NULL, MISFIT, "the adapters fit two models that are open: %s and %s", adapted->name, m->name);
    return m->fits && (adapted = m); }

/* ---- the term on the CPU; one definition for each activation, with PyTorch's tails ---- */
#pragma GCC diagnostic ignored "-Wpsabi" /* no function takes or returns such vectors: all are inlined */
#define INLINE static inline __attribute__((always_inline))
#define VECTOR(type, size) type __attribute__((vector_size(size), aligned(4), may_alias))
typedef VECTOR(float, 16) narrow; typedef VECTOR(float, 32) lanes; typedef VECTOR(int32_t, 32) ints; typedef VECTOR(float, 64) wide;
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
    return (p * r + 5.0000001201e-1f) * (r * r) + r; }
INLINE lanes exponential(lanes x) { lanes half, tail = exp_parts(x, &half); return pick(x < -87.0f, all(0.0f), (1.0f + tail) * half * 2.0f); }
INLINE lanes exponential_minus_1(lanes x) { /* nothing cancels where x is small */
    lanes half, tail = exp_parts(x, &half); return 2.0f * (half * tail + (half - 0.5f)); }
INLINE lanes hyperbolic_tangent(lanes x) {
    const lanes e = exponential_minus_1(within(0.0f, 2.0f * magnitude(x), 30.0f)); return (lanes) ((ints) (e / (e + 2.0f)) | ((ints) x & INT32_MIN)); }
INLINE lanes error_function(lanes x) { /* a quotient of polynomials, as in Eigen */
    x = within(-4.0f, x, 4.0f);
    const lanes s = x * x, p = (((((-2.72614225801306e-10f * s + 2.77068142495902e-8f) * s - 2.10102402082508e-6f) * s -
        5.69250639462346e-5f) * s - 7.34990630326855e-4f) * s - 2.95459980854025e-3f) * s - 1.60960333262415e-2f;
    return x * p / ((((-1.45660718464996e-5f * s - 2.13374055278905e-4f) * s - 1.68282697438203e-3f) * s - 7.37332916720468e-3f) * s - 1.42647390514189e-2f); }
INLINE lanes log_1_plus(lanes u) { /* for u of 0 to 1: 2 artanh(z) */
    const lanes z = u / (2.0f + u), w = z * z;
    return 2.0f * z * ((((((w * (1 / 13.0f) + 1 / 11.0f) * w + 1 / 9.0f) * w + 1 / 7.0f) * w + 1 / 5.0f) * w + 1 / 3.0f) * w + 1.0f); }
INLINE lanes apply(int map, lanes x) {
    switch (map) {
    case ELU: return pick(x > 0.0f, x, exponential_minus_1(x));
    case ELU_PLUS_ONE: return pick(x > 0.0f, x, exponential_minus_1(x)) + 1.0f;
    case RELU: return pick(x < 0.0f, all(0.0f), x); case SILU: return x / (1.0f + exponential(-x));
    case GELU: return 0.5f * x * (1.0f + error_function(x * 0.707106781f));
    case GELU_TANH: return 0.5f * x * (1.0f + hyperbolic_tangent(x * (0.797884561f + 0.0356774081f * x * x)));
    case SOFTPLUS: return pick(x < 0.0f, all(0.0f), x) + log_1_plus(exponential(-magnitude(x)));
    case SIGMOID: return 1.0f / (1.0f + exponential(-x)); case TANH: return hyperbolic_tangent(x); case EXP: return exponential(x); default: return x; } }
enum { WIDTH = 16, TILE = 6 /* rows at once: tokens of heads that share a memory */ };
static int64_t padded(int64_t n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }
/* out[r][..] = the sum over i of in[r][i] * m[i][..], `width` numbers each; every sum goes up from i = 0, so no token's result depends on its batch. */
typedef void product(int64_t n_rows, const float * const * in, int64_t n, const float * m, int64_t width, float * out);
#define EACH _Pragma("GCC unroll 32") for (int s = 0; s < rows * columns; s++) /* in registers: the bounds are known */
#define PRODUCT(machine, target, vector, of_tile, alone) \
    INLINE void block_##machine(int rows, int columns, const float * const * in, int64_t n, const float * m, int64_t width, float * out) { \
        vector sum[TILE * of_tile]; \
        EACH sum[s] = (vector) { 0 }; \
        for (int64_t i = 0; i < n; i++, m += width) { EACH sum[s] += in[s / columns][i] * ((const vector *) m)[s % columns]; } \
        EACH ((vector *) (out + s / columns * width))[s % columns] = sum[s]; \
    } \
    target static void product_##machine(int64_t n_rows, const float * const * in, int64_t n, const float * m, int64_t width, float * out) { \
        const int64_t size = sizeof(vector) / sizeof(float), most = size * (n_rows == TILE ? of_tile : alone); \
        for (int64_t c = 0, r; c < width; c += c + most <= width ? most : size) { \
            const bool full = c + most <= width; \
            if (full && n_rows == TILE) block_##machine(TILE, of_tile, in, n, m + c, width, out + c); \
            for (r = 0; full && r < n_rows && n_rows < TILE; r++) block_##machine(1, alone, in + r, n, m + c, width, out + r * width + c); \
            for (r = 0; !full && r < n_rows; r++) block_##machine(1, 1, in + r, n, m + c, width, out + r * width + c); \
        } \
    }
static void no_denominator(const struct place * p, int64_t head, int64_t token) {
    fail(p->adapter->set, WRONG, "%s: layer %d, head %d, token %d of the batch: the normaliser's denominator is 0", p->adapter->path,
        p->layer, (int) head, (int) token); }
INLINE float denominator_of(const float * phi, const float * normalizer, int64_t n) { /* phi . N */
    lanes sums = all(0.0f); float sum = 0; for (int64_t i = 0; i < n; i += 8) sums += *(const lanes *) (phi + i) * *(const lanes *) (normalizer + i);
    for (int i = 0; i < 8; i++) sum += sums[i];
    return sum; }
/* dst = x + factor * term, [D_v H, T], for q [D, H, T] */
INLINE void add_terms(node dst, node x, node q, int ith, int nth, const struct place * p, product * product) {
    const struct adapter * a = p->adapter;
    const int64_t d = a->size[KEY_LENGTH], f = a->size[FEATURES], v = a->size[VALUE_LENGTH], f_row = padded(f), v_row = padded(v);
    const int64_t n_heads = a->size[HEADS], group = n_heads / a->n_memories, n_tokens = ne(q)[2], n_rows = group * n_tokens;
    const int64_t tile = f > 4096 ? 1 : TILE, n_tiles = (n_rows + tile - 1) / tile, n_units = a->n_memories * n_tiles;
    const float scale = a->scale, * weight = p->numbers[WEIGHT], * bias = p->numbers[BIAS], * normalizer = p->numbers[NORMALIZER];
    const float * queries[TILE], * phis[TILE], * in = g.ggml_get_data(x); float phi[tile * f_row], term[tile * v_row], * out = g.ggml_get_data(dst);
    if (scale == 0.0f) { /* a term that is off may be no number */
        const int64_t n = n_tokens * n_heads * v, begin = n * ith / nth; memcpy(out + begin, in + begin, (size_t) (n * (ith + 1) / nth - begin) * sizeof *out);
        return; }
    for (int64_t unit = n_units * ith / nth; unit < n_units * (ith + 1) / nth; unit++) {
        const int64_t memory = unit / n_tiles, first = unit % n_tiles * tile, n = first + tile <= n_rows ? tile : n_rows - first;
        for (int64_t r = 0; r < n; r++) {
            const size_t head = (size_t) (memory * group + (first + r) / n_tokens), token = (size_t) ((first + r) % n_tokens);
            queries[r] = (const float *) ((uintptr_t) g.ggml_get_data(q) + token * nb(q)[2] + head * nb(q)[1]);
            phis[r] = memset(phi + r * f_row, 0, (size_t) f_row * sizeof *phi); if (!weight) memcpy(phi + r * f_row, queries[r], (size_t) f * sizeof *phi); }
        if (weight) product(n, queries, d, weight + memory * d * f_row, f_row, phi);
        for (int64_t i = 0; i < n * f_row; i += 8) {
            lanes z = *(lanes *) (phi + i) * a->query_scale; if (bias) z += *(const lanes *) (bias + memory * f_row + i % f_row);
            *(lanes *) (phi + i) = apply(a->map, z); }
        product(n, phis, f, p->numbers[MEMORY] + memory * f * v_row, v_row, term);
        for (int64_t r = 0; r < n; r++) {
            const int64_t head = memory * group + (first + r) / n_tokens, token = (first + r) % n_tokens, at = (token * n_heads + head) * v;
            const float denominator = normalizer ? denominator_of(phis[r], normalizer + memory * f_row, f_row) : 1.0f;
            const float factor = denominator == 0.0f ? NAN : scale * a->memory_scale / denominator, * add = term + r * v_row;
            if (denominator == 0.0f) no_denominator(p, head, token);
            int64_t i = 0;
            for (; i + 8 <= v; i += 8) { /* where there is no term x stays, also -0, to which adding 0 makes 0 */
                const lanes was = *(const lanes *) (in + at + i), more = *(const lanes *) (add + i);
                *(lanes *) (out + at + i) = pick(more == 0.0f, was, was + factor * more); }
            for (; i < v; i++) out[at + i] = add[i] == 0.0f ? in[at + i] : in[at + i] + factor * add[i]; } } }
#define FOR(machine, target, vector, of_tile, alone) \
    PRODUCT(machine, target, vector, of_tile, alone) \
    target static void fused_##machine(node dst, node x, node q, int ith, int nth, void * p) { add_terms(dst, x, q, ith, nth, p, product_##machine); }
FOR(every, , narrow, 2, 8)
#ifdef __x86_64__
FOR(avx2, __attribute__((target("avx2,fma"))), lanes, 2, 8)
FOR(avx512, __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), wide, 4, 4)
#endif
static custom2 * fused = fused_every;
/* Lays a layer's weights out in `p->numbers`. False where there is no memory for them. */
static bool lay_out(struct place * p, const struct layer * l) {
    const struct adapter * a = p->adapter; const int64_t d = a->size[KEY_LENGTH], f = a->size[FEATURES], v = a->size[VALUE_LENGTH], h = a->n_memories;
    const int64_t lengths[] = { f, d, f, f }, heights[] = { v, f, 1, 1 }; /* of rows in the file, which become columns of matrices */
    for (int part = 0; part < N_PARTS; part++) {
        if (!l->parts[part]) continue;
        const bool matrix = part < BIAS; const int64_t n = lengths[part], n_rows = heights[part], width = padded(matrix ? n_rows : n), height = matrix ? n : 1;
        const size_t len = (size_t) (h * height * width) * sizeof(float); const float * row = l->data[part];
        float * const out = p->numbers[part] = aligned_alloc(64, len); if (!out || !memset(out, 0, len)) return false;
        for (int64_t r = 0; r < h * n_rows; r++, row += n) {
            for (int64_t i = 0; i < n; i++) out[matrix ? (r / n_rows * n + i) * width + r % n_rows : r * width + i] = row[i]; } }
    return true; }

/* ---- the graph ---- */
/* Copies the normaliser's denominators [1, T, H] of a device, which may not be 0. */
static void check_denominators(node dst, node a, int ith, int nth, void * data) {
    const struct place * p = data; const float * in = g.ggml_get_data(a); float * out = g.ggml_get_data(dst);
    const int64_t n_tokens = ne(a)[1], n = n_tokens * ne(a)[2];
    for (int64_t i = n * ith / nth; i < n * (ith + 1) / nth; i++) {
        out[i] = in[i] == 0.0f ? NAN : in[i]; if (in[i] == 0.0f && p->adapter->scale != 0.0f) no_denominator(p, i / n_tokens, i % n_tokens); } }
static void free_place(struct place * p) {
    for (int i = 0; i < N_PARTS; i++) free(p->numbers[i]);
    if (p->buffer) g.ggml_backend_buffer_free(p->buffer);
    if (p->ctx) g.ggml_free(p->ctx);
    free(p); }
/* Puts a layer's weights on a device as tensors. False where there is no memory for them. */
static bool upload(struct place * p, const struct layer * l) {
    const struct adapter * a = p->adapter;
    const int64_t f = a->size[FEATURES], h = a->n_memories, one = 1, bias[] = { f, 1, 1, h }, normalizer[] = { f, 1, h, 1 };
    p->ctx = g.ggml_init((struct init_params) { (N_PARTS + N_CONSTANTS + 1) * g.ggml_tensor_overhead(), NULL, true });
    for (int i = 0; i < N_PARTS; i++) {
        const node t = l->parts[i]; if (t) p->parts[i] = g.ggml_new_tensor(p->ctx, l->types[i], 4, i == BIAS ? bias : i == NORMALIZER ? normalizer : ne(t)); }
    for (int i = 0; i < N_CONSTANTS; i++) p->constants[i] = g.ggml_new_tensor(p->ctx, F32, 1, &one);
    if (!(p->buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(p->ctx, p->buft))) return false;
    g.ggml_backend_buffer_set_usage(p->buffer, 1); /* weights */
    for (int i = 0; i < N_PARTS; i++) if (p->parts[i]) g.ggml_backend_tensor_set(p->parts[i], l->data[i], 0, g.ggml_nbytes(p->parts[i]));
    for (int i = 0; i < N_CONSTANTS; i++) {
        const float value = i == FACTOR ? a->scale * a->memory_scale : CONSTANTS[i]; g.ggml_backend_tensor_set(p->constants[i], &value, 0, sizeof value); }
    return true; }
/* The layer's weights on the device that has `w`, put there at the first time. NULL after a failure. */
static struct place * place_for(struct adapter * a, int layer, node w) {
    any buft = buffer_of(w) ? g.ggml_backend_buffer_get_type(buffer_of(w)) : g.ggml_backend_cpu_buffer_type();
    /* Not into a repacked buffer; the CPU's own type may name no device. */
    const any device = g.ggml_backend_buft_is_host(buft) ? NULL : g.ggml_backend_buft_get_device(buft); const char * ops = getenv("PTPLUS_GRAFT_OPS");
    const struct layer * l = &a->layers[layer]; struct place * p = a->places; if (device) buft = g.ggml_backend_dev_buffer_type(device);
    while (p && (p->layer != layer || p->buft != buft)) p = p->next;
    if (p) return p;
    bool own = g.ggml_backend_buft_is_host(buft) && !(ops && strcmp(ops, "ggml") == 0); for (int i = 0; i < N_PARTS; i++) own = own && l->types[i] == F32;
    if (!(p = calloc(1, sizeof *p))) return fail(a->set, OTHER, "out of memory"), NULL;
    *p = (struct place) { .next = a->places, .adapter = a, .layer = layer, .buft = buft }; if (own ? lay_out(p, l) : upload(p, l)) return a->places = p;
    fail(a->set, OTHER, "%s: layer %d: out of memory on %s", a->path, layer, g.ggml_backend_buft_name(buft)); free_place(p); return NULL; }
static bool only_moves(node t) { return is(t, "RESHAPE") || is(t, "VIEW") || is(t, "PERMUTE") || is(t, "TRANSPOSE") || is(t, "CONT") || is(t, "CPY"); }
/* A product with no weight of the model: the rotation around a quantized cache. */
static bool rotates(node t) { return is(t, "MUL_MAT") && strncmp(g.ggml_get_name(src(t, 0)), "blk.", 4) != 0; }
/* The query of the attention whose result is x, after RoPE or before it (after bias and norm). NULL where anything else than moves, rotations and factors
 * lies between: that would be another query than the adapter was trained on. */
static node find_query(node x, int layer, int tap, bool some_without_rope) {
    enum { DEEPEST = 24 }; char name[32]; node t = x, scores = NULL, named = NULL;
    for (int i = 0; t && i < DEEPEST && !scores && !is(t, "FLASH_ATTN_EXT"); i++) {
        if (is(t, "MUL_MAT") && is(src(t, 1), "SOFT_MAX")) scores = src(src(t, 1), 0);
        else t = only_moves(t) ? src(t, 0) : rotates(t) ? src(t, 1) : NULL; }
    while (is(scores, "SCALE") || is(scores, "TANH") || is(scores, "ADD")) scores = src(scores, 0); /* a cap on the scores, a bias */
    t = is(t, "FLASH_ATTN_EXT") ? src(t, 0) : is(scores, "MUL_MAT") ? src(scores, 1) : NULL; snprintf(name, sizeof name, "Qcur-%d", layer);
    for (int i = 0; t && i < DEEPEST && !is(t, "ROPE"); i++) {
        if (!named && !is(t, "SCALE") && strcmp(g.ggml_get_name(t), name) == 0) named = t;
        t = only_moves(t) || is(t, "SCALE") ? src(t, 0) : rotates(t) ? src(t, 1) : NULL; }
    return is(t, "ROPE") ? (tap == PRE_ROPE ? src(t, 0) : t) : some_without_rope && !t ? named : NULL; }
/* What `apply` computes, by ggml's operations. NULL after a failure. */
static node activate(any ctx, const struct place * p, node x) {
    const node * number = p->constants; node t, w, series;
    switch (p->adapter->map) {
    case ELU: return g.ggml_elu(ctx, x); case ELU_PLUS_ONE: return g.ggml_add(ctx, g.ggml_elu(ctx, x), number[ONE]);
    case RELU: return g.ggml_relu(ctx, x); case SILU: return g.ggml_silu(ctx, x);
    case GELU: return g.ggml_gelu_erf ? g.ggml_gelu_erf(ctx, x) : (fail(p->adapter->set, UNSUPPORTED, "this llama.cpp has no function ggml_gelu_erf"), NULL);
    case GELU_TANH: /* ggml's own is a table of F16 on the CPU */
        t = g.ggml_mul(ctx, x, g.ggml_add(ctx, g.ggml_scale(ctx, g.ggml_sqr(ctx, x), 0.0356774081f), number[ROOT_2_PI]));
        return g.ggml_mul(ctx, g.ggml_scale(ctx, x, 0.5f), g.ggml_add(ctx, g.ggml_tanh(ctx, t), number[ONE]));
    case SOFTPLUS: /* relu(x) + log(1 + u), u = exp(-|x|): a series in t = u / (2 + u) */
        t = g.ggml_exp(ctx, g.ggml_neg(ctx, g.ggml_abs(ctx, x))); w = g.ggml_sqr(ctx, t = g.ggml_div(ctx, t, g.ggml_add(ctx, t, number[TWO])));
        series = g.ggml_add(ctx, g.ggml_scale(ctx, w, CONSTANTS[THIRD + 5]), number[THIRD + 4]);
        for (int i = 3; i >= -1; i--) series = g.ggml_add(ctx, g.ggml_mul(ctx, series, w), number[i < 0 ? (int) ONE : THIRD + i]);
        return g.ggml_add(ctx, g.ggml_relu(ctx, x), g.ggml_scale(ctx, g.ggml_mul(ctx, t, series), 2.0f));
    case SIGMOID: return g.ggml_sigmoid(ctx, x); case TANH: return g.ggml_tanh(ctx, x); case EXP: return g.ggml_exp(ctx, x); default: return x; } }
/* x + scale * term of one adapter, for q [D, H, T]. NULL after a failure. */
static node with_term(any ctx, struct place * p, node q, node x) {
    if (p->numbers[MEMORY]) return g.ggml_map_custom2(ctx, x, q, fused, -1, p);
    const struct adapter * a = p->adapter;
    const int64_t d = a->size[KEY_LENGTH], f = a->size[FEATURES], h = a->size[HEADS], n = ne(q)[2], group = h / a->n_memories;
    const bool in_place = n == 1 && g.ggml_is_contiguous(q);
    node phi = in_place ? g.ggml_reshape_3d(ctx, q, d, 1, h) : g.ggml_cont(ctx, g.ggml_permute(ctx, q, 0, 2, 1, 3)); /* [D, T, H] */
    if (a->query_scale != 1.0f) phi = g.ggml_scale(ctx, phi, a->query_scale);
    if (p->parts[WEIGHT]) phi = g.ggml_mul_mat(ctx, p->parts[WEIGHT], phi);
    /* Heads that share a memory are neighbours. */
    if (p->parts[BIAS]) phi = g.ggml_add(ctx, g.ggml_reshape_4d(ctx, phi, f, n, group, a->n_memories), p->parts[BIAS]);
    if (p->parts[BIAS]) phi = g.ggml_reshape_3d(ctx, phi, f, n, h);
    if (!(phi = activate(ctx, p, phi))) return NULL;
    node term = g.ggml_mul_mat(ctx, p->parts[MEMORY], phi); /* [D_v, T, H] */
    if (p->parts[NORMALIZER]) { /* wherever the rest is computed, the denominators come to the CPU */
        const node denominators = g.ggml_mul_mat(ctx, p->parts[NORMALIZER], phi);
        term = g.ggml_div(ctx, term, g.ggml_map_custom1(ctx, denominators, check_denominators, -1, p)); }
    term = g.ggml_mul(ctx, term, p->constants[FACTOR]); if (n > 1) term = g.ggml_cont(ctx, g.ggml_permute(ctx, term, 0, 2, 1, 3));
    return g.ggml_add(ctx, x, g.ggml_reshape_3d(ctx, term, ne(x)[0], n, 1)); }
/* A graph has been built: it has all adapted layers, or none, being another model's. */
static void end_graph(struct ptplus * set, struct progress * progress) {
    int missing = -1;
    for (int i = 0; i < set->n && progress->n; i++) {
        const struct adapter * a = &set->adapters[i];
        for (int layer = 0; layer < a->size[LAYERS]; layer++) if (a->layers[layer].adapted && !progress->had[layer]) missing = layer; }
    if (missing >= 0) fail(set, UNSUPPORTED, "layer %d: its output projection is not in the graph, so the adapter does nothing there", missing);
    if (progress->n && !grafted && getenv("PTPLUS_VERBOSE")) fprintf(stderr, "ptplus: %d adapters in llama.cpp's graph\n", set->n);
    if (progress->n && missing < 0) grafted = set->complete = true;
    memset(progress, 0, sizeof *progress); }
/* What goes into the output projection `w` of a layer instead of x. NULL after a failure. */
static node graft(struct ptplus * set, struct progress * progress, any ctx, int layer, node w, node x) {
    if (progress->ctx != ctx || progress->had[layer]) end_graph(set, progress);
    node with = x; progress->ctx = ctx;
    for (int i = 0; i < set->n; i++) {
        struct adapter * a = &set->adapters[i]; if (layer >= a->size[LAYERS] || !a->layers[layer].adapted) continue;
        const node q = find_query(x, layer, a->tap, a->architecture->some_without_rope);
        if (!q) return fail(set, UNSUPPORTED, "layer %d: the query of its attention is not found in the graph", layer), NULL;
        if (type_of(q) != F32 || type_of(x) != F32 || ne(q)[0] != a->size[KEY_LENGTH] || ne(q)[1] != a->size[HEADS] || ne(q)[3] != 1 ||
            nb(q)[0] != sizeof(float) || ne(x)[0] != a->size[VALUE_LENGTH] * a->size[HEADS] || ne(x)[1] != ne(q)[2] || ne(x)[2] != 1 ||
            ne(x)[3] != 1 || !g.ggml_is_contiguous(x)) {
            return fail(set, MISFIT, "layer %d: the query [%d, %d, %d] or the result [%d, %d] is not in F32 or of the adapter's sizes",
                layer, (int) ne(q)[0], (int) ne(q)[1], (int) ne(q)[2], (int) ne(x)[0], (int) ne(x)[1]), NULL; }
        struct place * p = place_for(a, layer, w); if (!p || !(with = with_term(ctx, p, q, with))) return NULL;
        progress->had[layer] = true; progress->n++; }
    return with; }
/* What the product of w and x takes for x. */
static node with_terms(struct ptplus * set, struct progress * progress, any ctx, node w, node x) {
    static _Thread_local struct { any ctx; node x, with; } last; /* a LoRA's first matrix multiplies the same x */
    bool lora; const int layer = layer_of(g.ggml_get_name(w), &lora);
    /* llama.cpp also calls this to ask what a device supports, where x is a bare tensor, and to plan memory for a model without data. */
    if (layer < 0 || !src(x, 0) || !g.ggml_get_data(w)) return x;
    if (lora) return last.ctx == ctx && last.x == x ? last.with : x;
    pthread_mutex_lock(&lock); node with = !set->of_environment || is_adapted(w) ? graft(set, progress, ctx, layer, w, x) : x; pthread_mutex_unlock(&lock);
    if (!with) with = g.ggml_scale(ctx, x, NAN); /* what follows must not pass for a result */
    last.ctx = ctx, last.x = x; return last.with = with; }
static void set_scale(struct adapter * a, float scale) {
    const float value = scale * a->memory_scale; a->scale = scale;
    for (struct place * p = a->places; p; p = p->next) if (p->buffer) g.ggml_backend_tensor_set(p->constants[FACTOR], &value, 0, sizeof value); }

/* ---- finding ggml ---- */
static _Thread_local struct ptplus * active; /* the adapters that the program made active */
#define EXPORT __attribute__((visibility("default")))
#ifdef PTPLUS_STATIC
extern node ggml_mul_mat(any, node, node) __asm__("__real_ggml_mul_mat");
#define DECLARE(result, name, arguments) extern __attribute__((weak)) result name arguments;
NEEDED(DECLARE) OPTIONAL(DECLARE)
#define FOUND(name) (function) name
#else
/* What a program is linked with is found by RTLD_NEXT; a library that was dlopened (Node, Python) needs its own handle. */
static function find(void * library, const char * name) {
    void * symbol = dlsym(RTLD_NEXT, name); function found; if (!symbol && library) symbol = dlsym(library, name);
    memcpy(&found, &symbol, sizeof found); return found; }
#define FOUND(name) find(library, #name)
#endif
static void start(void * library) {
#define WANT(result, name, arguments) { #name, FOUND(name), &g.name },
    const struct { const char * name; function found; void * to; } needed[] = { NEEDED(WANT) }, optional[] = { OPTIONAL(WANT) }; (void) library;
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++) memcpy(optional[i].to, &optional[i].found, sizeof(function));
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        memcpy(needed[i].to, &needed[i].found, sizeof(function)); if (needed[i].found) continue;
        snprintf(broken, sizeof broken, "this llama.cpp has no function %s, and cannot take adapters", needed[i].name); }
    if (!*broken && !measure()) snprintf(broken, sizeof broken, "the layout of this llama.cpp's tensors is not known, and it cannot take adapters");
#ifdef __x86_64__
#define HAS(feature) __builtin_cpu_supports(feature)
    if (HAS("avx2") && HAS("fma")) fused = fused_avx2;
    if (HAS("avx512vl") && HAS("avx512dq") && HAS("avx512bw") && fused == fused_avx2) fused = fused_avx512;
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
    const locale_t c = newlocale(LC_ALL_MASK, "C", NULL); char * end; *out = strtof_l(text, &end, c); freelocale(c);
    return end != text && !*end && isfinite(*out); }
static void read_environment(void) {
    struct ptplus * set = NULL;
    for (int i = 1; i <= MAX_ADAPTERS + 1; i++) {
        char name[32], factor[32]; float scale = 1.0f; snprintf(name, sizeof name, "PTPLUS_ADAPTER_%d", i);
        snprintf(factor, sizeof factor, "PTPLUS_SCALE_%d", i); const char * path = getenv(name), * number = getenv(factor); if (!path || !*path) continue;
        if (*broken) fail(NULL, UNSUPPORTED, "%s", broken);
        if (!set) set = calloc(1, sizeof *set);
        if (!set || i > MAX_ADAPTERS || i != set->n + 1) fail(NULL, USAGE, "%s: expected at most %d adapters, numbered without a gap", name, MAX_ADAPTERS);
        if (number && !read_number(number, &scale)) fail(NULL, USAGE, "%s: expected a number, found %.64s", factor, number);
        set->of_environment = true; load(set, path, NULL, scale); }
    environment = set; }
/* What is wrong with the text of a control file, or NULL. Fills in the scales that it names. */
static const char * read_scales(const struct ptplus * set, char * text, float * scales) {
    for (char * rest = NULL, * line = strtok_r(text, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest)) {
        char number[16], * gap = strrchr(line, ' '); float scale; int found = -1, n_found = 0; if (*line == '#') continue;
        if (!gap || !read_number(gap + 1, &scale)) return "expected lines of a NAME and a SCALE";
        *gap = '\0';
        for (int i = 0; i < set->n; i++) {
            snprintf(number, sizeof number, "%d", i + 1); if (strcmp(line, number) == 0) found = i, n_found = -set->n;
            if (strcmp(line, set->adapters[i].name) == 0 && n_found >= 0) found = i, n_found++; }
        if (n_found == 0) return "a name means none of the adapters";
        if (n_found > 1) return "a name means several adapters: give the number";
        scales[found] = scale; }
    return NULL; }
static pthread_rwlock_t computing = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
/* Takes over the scales of the control file, if it has changed. One that is refused is said once, and changes nothing. */
static void follow_control(struct ptplus * set, any sched) {
    static struct stat seen; const char * path = getenv("PTPLUS_CONTROL");
    const char * wrong = "expected a regular file of this user, not writable by others, of at most 4096 bytes"; struct stat now; char text[MAX_CONTROL + 1];
    float scales[MAX_ADAPTERS]; if (!path || stat(path, &now) != 0) return;
    pthread_mutex_lock(&lock);
    const bool changed = memcmp(&now.st_mtim, &seen.st_mtim, sizeof now.st_mtim) != 0 || now.st_ino != seen.st_ino || now.st_size != seen.st_size;
    const int file = changed ? open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK) : -1; seen = now;
    for (int i = 0; i < set->n; i++) scales[i] = set->adapters[i].scale;
    if (file >= 0 && fstat(file, &now) == 0 && S_ISREG(now.st_mode) && now.st_uid == geteuid() && !(now.st_mode & 022) && now.st_size <= MAX_CONTROL) {
        const ssize_t n = read(file, text, MAX_CONTROL); text[n < 0 ? 0 : n] = '\0'; wrong = n < 0 ? "cannot be read" : read_scales(set, text, scales); }
    close(file); if (changed && wrong) fprintf(stderr, "ptplus: %s: %s; the scales stay as they are\n", path, wrong);
    for (int i = 0; i < set->n && changed && !wrong; i++) {
        if (scales[i] == set->adapters[i].scale) continue;
        pthread_rwlock_wrlock(&computing); /* no graph is computed with two scales */
        g.ggml_backend_sched_synchronize(sched); set_scale(&set->adapters[i], scales[i]); pthread_rwlock_unlock(&computing); }
    pthread_mutex_unlock(&lock); }

/* ---- what the program calls in our place ---- */
enum { MUL_MAT, DUP_TENSOR, OPEN_FILE, OPEN_STREAM, RESERVE, COMPUTE, N_WRAPPED };
static const char * const WRAPPED[] = { "ggml_mul_mat", "ggml_dup_tensor", "gguf_init_from_file", "gguf_init_from_file_ptr",
    "ggml_backend_sched_reserve", "ggml_backend_sched_graph_compute_async" };
static struct module { void * base; function next[N_WRAPPED]; } modules[MAX_MODULES]; /* a library that calls us, and where its calls go on to */
static _Thread_local struct progress of_thread; /* of the environment's adapters */
/* The library that `caller` is in. The first one's first call finds ggml and reads the adapters. */
static const struct module * module_of(void * caller) {
    static _Thread_local struct { void * caller; struct module * module; } known[256]; const size_t slot = (uintptr_t) caller / 4 % 256;
    struct module * m = modules; Dl_info info; if (known[slot].caller == caller) return known[slot].module;
    pthread_mutex_lock(&lock); if (!dladdr(caller, &info)) fail(NULL, OTHER, "ggml is called from no library");
    while (m < &modules[MAX_MODULES - 1] && m->base && m->base != info.dli_fbase) m++;
    if (!m->base) {
        void * library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD); m->base = info.dli_fbase;
        for (int i = 0; i < N_WRAPPED; i++) m->next[i] = find(library, WRAPPED[i]);
        if (m == modules) start(library), PTPLUS_LINKED ? (void) 0 : read_environment(); }
    if (m->base != info.dli_fbase || !m->next[MUL_MAT]) fail(NULL, UNSUPPORTED, "ggml is not found behind a library that calls it");
    if (environment && m->next[MUL_MAT] != modules[0].next[MUL_MAT])
        fail(NULL, UNSUPPORTED, "this process has two copies of ggml: which one is adapted is unknown");
    pthread_mutex_unlock(&lock); known[slot].caller = caller; return known[slot].module = m; }
/* Where a call of one of WRAPPED goes on to. */
#define NEXT(which, result, arguments) ((result(*) arguments) module_of(__builtin_return_address(0))->next[which])
EXPORT node ggml_mul_mat(any ctx, node w, node x) {
    node (*next)(any, node, node) = NEXT(MUL_MAT, node, (any, node, node)); if (active) return next(ctx, w, with_terms(active, &active->progress, ctx, w, x));
    return next(ctx, w, environment ? with_terms(environment, &of_thread, ctx, w, x) : x); }
EXPORT node ggml_dup_tensor(any ctx, node like) {
    const node made = NEXT(DUP_TENSOR, node, (any, node))(ctx, like); if (environment && latest) note_weight(made, like);
    return made; }
EXPORT any gguf_init_from_file_ptr(FILE * file, struct gguf_params params) {
    return note_model(NEXT(OPEN_STREAM, any, (FILE *, struct gguf_params))(file, params), fileno(file)); }
EXPORT any gguf_init_from_file(const char * path, struct gguf_params params) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    const any result = note_model(NEXT(OPEN_FILE, any, (const char *, struct gguf_params))(path, params), file); close(file); return result; }
/* A graph is whole. As long as nothing was grafted, it must not be one of the adapted model. */
static void look_at(any graph) {
    pthread_mutex_lock(&lock); if (of_thread.n) end_graph(environment, &of_thread);
    for (int i = 0; !grafted && i < g.ggml_graph_n_nodes(graph); i++) {
        const node w = src(g.ggml_graph_node(graph, i), 0); const struct model * m = w && g.ggml_get_data(w) ? model_of(w) : NULL; if (!m || !m->fits) continue;
        fail(NULL, UNSUPPORTED, "the adapters were applied in no layer: no product with blk.N.attn_output.weight comes through here"); }
    pthread_mutex_unlock(&lock); }
EXPORT bool ggml_backend_sched_reserve(any sched, any graph) {
    bool (*next)(any, any) = NEXT(RESERVE, bool, (any, any)); if (environment) look_at(graph);
    return next(sched, graph); }
EXPORT int ggml_backend_sched_graph_compute_async(any sched, any graph) {
    int (*next)(any, any) = NEXT(COMPUTE, int, (any, any)); if (!environment) return next(sched, graph);
    look_at(graph); follow_control(environment, sched); pthread_rwlock_rdlock(&computing); const int status = next(sched, graph);
    pthread_rwlock_unlock(&computing); return status; }
static void find_ggml(void) { void * symbol = dlsym(RTLD_NEXT, "ggml_get_name"); if (!modules[0].base && symbol) module_of(symbol); }
#endif

/* ---- include/ptplus.h ---- */
EXPORT struct ptplus * ptplus_load(const char * model, const char * const * paths, int n) {
    struct ptplus * set = calloc(1, sizeof *set); if (!set) return NULL;
    pthread_mutex_lock(&lock); find_ggml();
    bool good = g.ggml_init || *broken || fail(set, UNSUPPORTED, "this process has not called ggml yet: load the model first");
    good = good && (!*broken || fail(set, UNSUPPORTED, "%s", broken));
    good = good && ((n >= 1 && n <= MAX_ADAPTERS) || fail(set, USAGE, "expected 1 to %d adapters", MAX_ADAPTERS));
    const any file = good ? g.gguf_init_from_file(model, (struct gguf_params) { true, NULL }) : NULL;
    if (good && !file) good = fail(set, CORRUPT, "%.200s: expected a GGUF file that ggml can read", model);
    for (int i = 0; i < n && good; i++) good = load(set, paths[i], file, 1.0f);
    if (file) g.gguf_free(file);
    pthread_mutex_unlock(&lock); if (good) return set;
    strcpy(last_error, set->message); ptplus_free(set); return NULL; }
EXPORT void ptplus_activate(struct ptplus * adapters) { active = adapters; }
EXPORT bool ptplus_set_scale(struct ptplus * adapters, int index, float scale) {
    const bool good = index >= 0 && index < adapters->n && isfinite(scale); if (good) set_scale(&adapters->adapters[index], scale);
    return good; }
EXPORT const char * ptplus_check(struct ptplus * set) {
    pthread_mutex_lock(&lock); if (set->progress.n) end_graph(set, &set->progress);
    if (!set->failed && !set->complete) fail(set, UNSUPPORTED, "the adapters are in no graph: they were not active when it was built");
    const bool failed = set->failed; set->failed = false; pthread_mutex_unlock(&lock); return failed ? set->message : NULL; }
EXPORT void ptplus_free(struct ptplus * set) {
    if (active == set) active = NULL;
    for (int i = 0; set && i < set->n; i++) {
        struct adapter * a = &set->adapters[i]; for (struct place * p = a->places, * next; p; p = next) next = p->next, free_place(p);
        if (a->tensors) g.ggml_free(a->tensors);
        for (int k = 0; a->layers && k < N_PARTS * a->size[LAYERS]; k++) free(a->layers[k / N_PARTS].decoded[k % N_PARTS]);
        free(a->layers); free(a->bytes); }
    free(set); }
EXPORT bool ptplus_supports(const char * architecture) { return architecture_of(architecture) != NULL; }
EXPORT const char * ptplus_error(void) { return last_error; }
