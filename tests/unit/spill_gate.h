/* Faults for the tests of spilling: the engine can be stopped (the gate), and allocations can fail.
 * Needs -Wl,--wrap=spill_io_run -Wl,--wrap=calloc. */
#ifndef MOBULA_TESTS_SPILL_GATE_H
#define MOBULA_TESTS_SPILL_GATE_H

#include "tests/unit/spill_fixture.h"

static struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed;
    unsigned waiting[2], runs[2]; /* of the evictor, the fetcher */
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

void __real_spill_io_run(struct spill_io *io, struct spill_copy *copies, size_t count);
void __wrap_spill_io_run(struct spill_io *io, struct spill_copy *copies, size_t count);
void __wrap_spill_io_run(struct spill_io *io, struct spill_copy *copies, size_t count)
{
    bool fetcher = copies[0].check || copies[0].discard;
    pthread_mutex_lock(&gate.lock);
    gate.runs[fetcher]++;
    gate.waiting[fetcher]++;
    while (gate.closed)
        pthread_cond_wait(&gate.changed, &gate.lock);
    gate.waiting[fetcher]--;
    pthread_mutex_unlock(&gate.lock);
    __real_spill_io_run(io, copies, count);
}

static inline void gate_close(bool closed)
{
    pthread_mutex_lock(&gate.lock);
    gate.closed = closed;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

enum { EVICTOR, FETCHER };

static inline unsigned gate_waiting(int thread)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&gate.lock);
    return gate.waiting[thread];
}

static inline unsigned fetcher_runs(void)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&gate.lock);
    return gate.runs[FETCHER];
}

/* calloc() fails in the threads of this name. */
static _Atomic(const char *) starved;

void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes)
{
    char name[16] = "";
    const char *whose = atomic_load(&starved);
    if (whose && pthread_getname_np(pthread_self(), name, sizeof name) == 0 && !strcmp(name, whose))
        return NULL;
    return __real_calloc(count, bytes);
}

static inline int gate_teardown(void **state)
{
    gate_close(false);
    atomic_store(&starved, NULL);
    return spilling_teardown(state);
}

#endif
