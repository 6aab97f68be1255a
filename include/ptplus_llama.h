/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Copyright (c) 2026 the ptplus authors */
/*
 * Prefix-Tuning+ adapters (GGUF files that `ptplus` writes) on an unmodified llama.cpp.
 *
 *   llama_model * model = llama_model_load_from_file(...);
 *   struct ptplus_llama_adapter * adapter = ptplus_llama_load("adapter.gguf", model);
 *   struct llama_context_params params = llama_context_default_params();
 *   params.cb_eval = mine;                                        // optional: it is called as before
 *   struct ptplus_llama * hook = ptplus_llama_attach(&params, adapter);
 *   llama_context * ctx = llama_init_from_model(model, params);
 *   llama_decode(ctx, batch);
 *   if (ptplus_llama_check(hook) != NULL) ...                     // what went wrong, in words
 *   llama_free(ctx); ptplus_llama_detach(hook); ptplus_llama_free(adapter);
 *
 * Compile csrc/ptplus_llama.c (GNU C11: GCC or Clang, POSIX threads) against the llama.h of the library that it will
 * run with. Nothing else is needed: only the public headers of ggml and llama.cpp are used.
 *
 * Functions that can fail return NULL or false; ptplus_llama_error() then says why, per thread.
 */
#ifndef PTPLUS_LLAMA_H
#define PTPLUS_LLAMA_H

#include <stdbool.h>
#include <stddef.h>

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The weights of an adapter: constant, so that contexts on several threads can share them. */
struct ptplus_llama_adapter;

/* What connects adapters to one context. */
struct ptplus_llama;

/* Reads an adapter and checks it against the model: architecture, block count, head counts, key and value length. */
struct ptplus_llama_adapter * ptplus_llama_load(const char * path, const struct llama_model * model);

/* Frees an adapter that no context uses any more. NULL is ignored. */
void ptplus_llama_free(struct ptplus_llama_adapter * adapter);

/*
 * Makes a context that is created from `params` apply the adapter, with scale 1. Call it last: after everything else in
 * `params` is set and right before llama_init_from_model. A second call with the same `params` adds a further adapter
 * to the same hook, and returns that; the terms of several adapters add up. Each hook serves one context.
 *
 * A cb_eval that is set already is called as if it were alone, after the term has been added; an abort_callback too.
 * Quantized KV caches are refused.
 */
struct ptplus_llama * ptplus_llama_attach(struct llama_context_params * params, struct ptplus_llama_adapter * adapter);

/*
 * Changes the factor on an attached adapter's term; 0 switches it off, at the cost of stock llama.cpp when all are off.
 * Not while a decode runs. Keys and values in the cache keep the old scale: clear the memory for a fresh start.
 */
bool ptplus_llama_set_scale(struct ptplus_llama * hook, const struct ptplus_llama_adapter * adapter, float scale);

/*
 * After a decode: NULL if every adapter that is on has been applied in all its layers, otherwise what is wrong, valid
 * until the next call; a failure is forgotten once it was returned. A failed hook also makes llama_decode return 2
 * (aborted) and the logits NaN, so that a wrong number cannot pass for a right one.
 */
const char * ptplus_llama_check(struct ptplus_llama * hook);

/* Frees the hook, after its context was freed. NULL is ignored. */
void ptplus_llama_detach(struct ptplus_llama * hook);

/* Whether adapters of this GGUF architecture can run here: those that were tested are listed, no others. */
bool ptplus_llama_supports(const char * architecture);

/* Why the last call on this thread failed. */
const char * ptplus_llama_error(void);

/*
 * sizeof(struct llama_context_params) as this file was compiled: callers from other languages compare it with their
 * own, since the struct changes between versions of llama.cpp.
 */
size_t ptplus_llama_context_params_size(void);

#ifdef __cplusplus
}
#endif

#endif
