/* What the files of growing.h share. */
#ifndef MOBULA_CORE_STORE_GROWING_INTERNAL_H
#define MOBULA_CORE_STORE_GROWING_INTERNAL_H

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
/* *at: where the first data at or after `offset` is, UINT64_MAX = none. */
MOB_MUST_CHECK errint_t growing_find_data(int fd, uint64_t offset, uint64_t *at);
/* Whether [offset, end) has a hole; that must be within the file's size. */
MOB_MUST_CHECK errint_t growing_has_hole(int fd, uint64_t offset, uint64_t end, bool *hole);
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
