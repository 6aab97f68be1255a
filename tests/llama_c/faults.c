/*
 * Loaded behind the graft, this takes dlsym's place and gives it what a version of llama.cpp that is not as expected would:
 * MISSING=NAME hides a function, SPOIL=WHAT spoils a field of every product that the graft makes to measure tensors,
 * FULL=1 lets no device have memory but for the first buffer, FULL=aligned gives no aligned memory, FULL=N none of N bytes. Compiled
 * with AROUND and loaded ahead of the graft, it takes ggml_mul_mat past it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml.h"

#ifdef AROUND
__attribute__((visibility("default"))) struct ggml_tensor * ggml_mul_mat(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b) {
    static struct ggml_tensor * (*next)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *);
    if (!next) *(void **) &next = dlsym(dlopen("libggml-base.so.0", RTLD_LAZY | RTLD_NOLOAD), "ggml_mul_mat");
    return next(ctx, a, b);
}
#else

typedef void * (*dlsym_fn)(void *, const char *);

static void * real(void * handle, const char * name) {
    static dlsym_fn next;
    if (!next) *(void **) &next = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
    return next(handle, name);
}

static struct ggml_tensor * spoilt_mul_mat(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b) {
    struct ggml_tensor * (*next)(struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *);
    *(void **) &next = real(RTLD_NEXT, "ggml_mul_mat");
    struct ggml_tensor * t = next(ctx, a, b);
    const char * what = getenv("SPOIL");
    if (!strcmp(what, "ne")) t->ne[1] = 4;
    if (!strcmp(what, "nb")) t->nb[2] = 80;
    if (!strcmp(what, "src")) t->src[1] = t->src[0];
    if (!strcmp(what, "type")) t->type = GGML_TYPE_F16;
    if (!strcmp(what, "op")) t->op = GGML_OP_ADD;
    if (!strcmp(what, "source")) a->src[0] = b;
    if (!strcmp(what, "name")) strcpy(a->name, "other");
    return t;
}

static ggml_backend_buffer_t full_device(struct ggml_context * ctx, ggml_backend_buffer_type_t buft) {
    static int n;
    ggml_backend_buffer_t (*next)(struct ggml_context *, ggml_backend_buffer_type_t);
    *(void **) &next = real(RTLD_NEXT, "ggml_backend_alloc_ctx_tensors_from_buft");
    return n++ == 0 ? next(ctx, buft) : NULL;
}

__attribute__((visibility("default"))) void * dlsym(void * handle, const char * name) {
    void * found = real(handle, name);
    if (getenv("MISSING") && !strcmp(name, getenv("MISSING"))) return NULL;
    if (getenv("SPOIL") && !strcmp(name, "ggml_mul_mat")) {
        static int n; /* the first is what the program's own calls go on to */
        return n++ == 0 ? found : (void *) spoilt_mul_mat;
    }
    if (getenv("FULL") && !strcmp(getenv("FULL"), "1") && !strcmp(name, "ggml_backend_alloc_ctx_tensors_from_buft")) return (void *) full_device;
    return found;
}

/* glibc's own, whoever takes their names. */
extern void * __libc_malloc(size_t size);
extern void * __libc_memalign(size_t alignment, size_t size);

__attribute__((visibility("default"))) void * malloc(size_t size) {
    const char * full = getenv("FULL");
    return full && size > 1 && strtoul(full, NULL, 10) == size ? NULL : __libc_malloc(size);
}

__attribute__((visibility("default"))) void * aligned_alloc(size_t alignment, size_t size) {
    const char * full = getenv("FULL");
    return full && !strcmp(full, "aligned") ? NULL : __libc_memalign(alignment, size);
}
#endif
