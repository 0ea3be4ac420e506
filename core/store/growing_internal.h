/* What the files of growing.h share. */
#ifndef MOBULA_CORE_STORE_GROWING_INTERNAL_H
#define MOBULA_CORE_STORE_GROWING_INTERNAL_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/util.h"
#include "core/store/growing.h"

/* `read` and `write` locks that end with the scope. */
static inline void growing_unlock(pthread_rwlock_t **lock)
{
    pthread_rwlock_unlock(*lock);
}
static inline pthread_rwlock_t *growing_lock_shared(struct growing *growing)
{
    pthread_rwlock_rdlock(&growing->lock);
    return &growing->lock;
}
static inline pthread_rwlock_t *growing_lock_alone(struct growing *growing)
{
    pthread_rwlock_wrlock(&growing->lock);
    return &growing->lock;
}
#define cleanup_growing MOB_CLEANUP(growing_unlock) __attribute__((unused))

/* --- growing_data.c --- */

/* Where the moved part begins: [begin, state.moved) is on disk, if that is not empty. */
uint64_t growing_begin(const struct growing *growing);
/* Where the next move to disk begins, but for the head. */
uint64_t growing_next(const struct growing *growing);
/* Where what is in motion to disk begins. */
uint64_t growing_motion(const struct growing *growing);
/* Up to the end of a unit. */
static inline uint64_t growing_round_up(uint64_t bytes)
{
    return (bytes + GROWING_UNIT_BYTES - 1) / GROWING_UNIT_BYTES * GROWING_UNIT_BYTES;
}
/* *at: where the first data at or after `offset` is, UINT64_MAX = none. */
MOB_MUST_CHECK errint_t growing_find_data(int fd, uint64_t offset, uint64_t *at);
/* *at: where the first hole at or after `offset` is; the end of the file is one. */
MOB_MUST_CHECK errint_t growing_find_hole(int fd, uint64_t offset, uint64_t *at);
MOB_MUST_CHECK errint_t growing_size(int fd, uint64_t *size);
/* The first torn place, UINT64_MAX = none. The lock is held. */
MOB_MUST_CHECK errint_t growing_find_tear(struct growing *growing, uint64_t *at);
/* A writable descriptor on the tmpfs file, to be closed again. -errno. */
int growing_open_memory(const struct growing *growing);
MOB_MUST_CHECK errint_t growing_punch_fd(int fd, uint64_t offset, uint64_t bytes);
/* Makes [offset, offset + bytes) of the disk file read as zeros, without taking room if it can. */
MOB_MUST_CHECK errint_t growing_clear_disk(int fd, uint64_t offset, uint64_t bytes);
/* Cuts off what the disk file has past the end of the file, where that is in the moved part. */
MOB_MUST_CHECK errint_t growing_cut_disk(struct growing *growing);

/* --- growing.c --- */

/* Notes a state, then takes it; if the note fails, the old one remains. */
MOB_MUST_CHECK errint_t growing_announce(struct growing *growing,
                                         const struct growing_state *state);
/* Notes the state that was taken already. `unnoted` if that fails. */
MOB_MUST_CHECK errint_t growing_settle(struct growing *growing);

/* What a move works with. To look for data or holes takes the lock that the writer has most of the
 * time, so what was found is kept: nobody punches or truncates meanwhile. */
struct growing_move {
    struct growing *growing;
    struct growing_mover *mover;
    int memory, direct;   /* writable; direct: -1 = the disk file has no direct I/O */
    uint64_t data;        /* there is data here */
    uint64_t dense_until; /* from the next batch on there is no hole up to here */
};

/* The units that are moved at a time. The last one is not whole at the end of the file. */
struct growing_batch {
    uint64_t offset;
    size_t bytes;
};

/* growing_move_close() is called in any case. */
MOB_MUST_CHECK errint_t growing_move_open(struct growing_move *move, struct growing *growing,
                                          struct growing_mover *mover);
void growing_move_close(struct growing_move *move);
/* The batch is punched, the lock is held: brings the disk file up to date from the pipes. `sum` is
 * of what is on disk, NULL = not known. */
MOB_MUST_CHECK errint_t growing_finish_batch(const struct growing_move *move,
                                             const struct growing_batch *batch,
                                             const XXH128_hash_t *sum);
/* The state is what it should be: notes it, then lets the pages go. */
MOB_MUST_CHECK errint_t growing_release_batch(struct growing *growing, struct growing_mover *mover);
/* Puts an errno into a sentence, and returns it. */
errint_t growing_explain(errint_t error, struct mob_error *err);

/* --- growing_freeze.c --- */

/* Takes the pages of `bytes` at `offset` into the (empty) pipes. They must be pages, not holes. */
MOB_MUST_CHECK errint_t growing_freeze(const struct growing_pipes *pipes, int fd, uint64_t offset,
                                       size_t bytes);
/* How many bytes the pipes hold. */
MOB_MUST_CHECK errint_t growing_frozen_bytes(const struct growing_pipes *pipes, size_t *bytes);
/* Reads what the pipes hold, and leaves it there. */
MOB_MUST_CHECK errint_t growing_read_frozen(const struct growing_mover *mover, void *buffer,
                                            size_t bytes);
MOB_MUST_CHECK errint_t growing_drain(const struct growing_mover *mover);

#endif
