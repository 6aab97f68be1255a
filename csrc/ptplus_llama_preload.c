/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Copyright (c) 2026 the ptplus authors */
/*
 * LD_PRELOAD=libptplus_llama_preload.so PTPLUS_ADAPTER=adapter.gguf PROGRAM ...
 *
 * Applies adapters in a program that is dynamically linked against libllama and knows nothing of them, by wrapping
 * llama_init_from_model. PTPLUS_ADAPTER is a list of PATH or PATH:SCALE, separated by commas. Unset or empty, every call
 * goes straight through. An adapter that cannot be applied makes llama_init_from_model return NULL, with the reason on
 * stderr: a program must not go on without it.
 *
 * Compile it together with ptplus_llama.c, against the llama.h of the program's own libllama: the parameters are passed
 * by value.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ptplus_llama.h"

enum { MAX_LISTED = 64 };

/* Hooks and adapters live as long as the process: nobody tells when a context is freed. */
static struct ptplus_llama * attach_one(struct llama_context_params * params, const struct llama_model * model, char * item) {
    float scale = 1.0f;
    char * colon = strrchr(item, ':');
    if (colon && colon[1] != '\0') {
        char * end;
        const float value = strtof(colon + 1, &end);
        if (*end == '\0') {
            scale = value;
            *colon = '\0';
        }
    }
    struct ptplus_llama_adapter * adapter = ptplus_llama_load(item, model);
    struct ptplus_llama * hook = adapter ? ptplus_llama_attach(params, adapter) : NULL;
    if (!hook || !ptplus_llama_set_scale(hook, adapter, scale)) {
        fprintf(stderr, "ptplus: %s: %s\n", item, ptplus_llama_error());
        return NULL;
    }
    return hook;
}

__attribute__((visibility("default"))) struct llama_context * llama_init_from_model(struct llama_model * model, struct llama_context_params params) {
    struct llama_context * (*next)(struct llama_model *, struct llama_context_params);
    *(void **) &next = dlsym(RTLD_NEXT, "llama_init_from_model");
    if (!next) {
        fprintf(stderr, "ptplus: llama_init_from_model: %s\n", dlerror());
        return NULL;
    }
    const char * list = getenv("PTPLUS_ADAPTER");
    if (!list || list[0] == '\0' || !model) return next(model, params);
    char * items = strdup(list);
    int n = 0;
    char * rest = NULL;
    for (char * item = items ? strtok_r(items, ",", &rest) : NULL; item; item = strtok_r(NULL, ",", &rest)) {
        if (++n > MAX_LISTED || !attach_one(&params, model, item)) {
            free(items);
            return NULL;
        }
    }
    free(items);
    if (n == 0) {
        fprintf(stderr, "ptplus: PTPLUS_ADAPTER: expected PATH or PATH:SCALE, separated by commas, found none\n");
        return NULL;
    }
    return next(model, params);
}
