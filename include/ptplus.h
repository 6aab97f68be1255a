/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Copyright (c) 2026 the ptplus authors */
/*
 * Prefix-Tuning+ adapters (GGUF files that `ptplus` writes) in llama.cpp, for programs that know of them.
 *
 *   const char * paths[] = { "adapter.gguf" };
 *   struct ptplus * adapters = ptplus_load("model.gguf", paths, 1);
 *   ptplus_activate(adapters);                       // for this thread: contexts that it makes and decodes with
 *   llama_context * context = llama_init_from_model(model, params);
 *   llama_decode(context, batch);
 *   if (ptplus_check(adapters)) ...                  // what went wrong, in words
 *   llama_free(context); ptplus_activate(NULL); ptplus_free(adapters);
 *
 * Add csrc/ptplus_graft.c to the program (GNU C11: GCC or Clang; Linux). Linked with llama.cpp's shared libraries that is
 * all; with static ones compile it with -DPTPLUS_STATIC and link with -Wl,--wrap=ggml_mul_mat. No header of llama.cpp is
 * needed, and any version works that has the functions; ptplus_load says what is missing.
 */
#ifndef PTPLUS_H
#define PTPLUS_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Adapters with a scale each, for contexts of one model. */
struct ptplus;

/*
 * Reads `n` adapters, at most 16, and checks them against the model's GGUF file: architecture, row order, blocks, heads, key
 * and value length, every tensor's shape and values. Each starts with scale 1; their terms add up. NULL where one is
 * refused: ptplus_error() says why.
 */
struct ptplus * ptplus_load(const char * model, const char * const * paths, int n);

/*
 * From now on, contexts that this thread makes and decodes with have these adapters; NULL: none. llama.cpp builds a graph when
 * a context is made and whenever a batch has another shape, so the same adapters must be active in both.
 */
void ptplus_activate(struct ptplus * adapters);

/*
 * Changes the factor on the term of adapter number `index`, from 0; 0 switches it off. Not while a decode runs. False for a number
 * that is not there or a scale that is not finite. Keys and values in the cache keep the old scale: clear them for a fresh start.
 */
bool ptplus_set_scale(struct ptplus * adapters, int index, float scale);

/*
 * After a decode: NULL if all adapters were applied in all their layers, else what is wrong, valid until the next call; a
 * failure is forgotten once it was returned. After a failure logits are NaN, so that they cannot pass for right ones.
 */
const char * ptplus_check(struct ptplus * adapters);

/* Frees the adapters, after all contexts that used them. NULL is ignored. */
void ptplus_free(struct ptplus * adapters);

/* Whether adapters of this GGUF architecture can run in llama.cpp. */
bool ptplus_supports(const char * architecture);

/* Why the last ptplus_load on this thread returned NULL. */
const char * ptplus_error(void);

#ifdef __cplusplus
}
#endif

#endif
