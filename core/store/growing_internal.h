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

/* --- growing_disk.c: the disk file; offsets and sizes are the content's --- */

/* Brings a batch, or (`sparse`) a unit with holes, to disk, and waits until it is there. `buffer`
 * has room for whole units. In an encrypted file it begins where the moved part ends. */
MOB_MUST_CHECK errint_t growing_disk_move(const struct growing_move *move, unsigned char *buffer,
                                          const struct growing_batch *batch, bool sparse);
/* Finishes what was begun with an encrypted file; comes before everything below but reads. */
MOB_MUST_CHECK errint_t growing_disk_settle(struct growing *growing);
/* Reads in the moved part; what is not there is zeros. The lock is held, or nobody changes it. */
MOB_MUST_CHECK errint_t growing_disk_read(const struct growing *growing, void *buffer, size_t bytes,
                                          uint64_t offset);
/* Writes in the moved part. The lock is not held, here and below. */
MOB_MUST_CHECK errint_t growing_disk_write(struct growing *growing, const void *buffer,
                                           size_t bytes, uint64_t offset);
/* Makes a range read as zeros. A plain file takes no room for it if it can, and may be cleared
 * behind the moved part. */
MOB_MUST_CHECK errint_t growing_disk_clear(struct growing *growing, uint64_t offset,
                                           uint64_t bytes);
/* Cuts off what it has past `size`, the end of the file, where that is in the moved part. */
MOB_MUST_CHECK errint_t growing_disk_cut(struct growing *growing, uint64_t size);
/* Gives back what it has behind `offset`, the end of the moved part. */
MOB_MUST_CHECK errint_t growing_disk_drop(const struct growing *growing, uint64_t offset);
/* Everything was moved: makes it what the object has. */
MOB_MUST_CHECK errint_t growing_disk_finish(struct growing *growing, uint64_t size);
/* Direct I/O if there is any; else buffered, and waits. `buffer` has room up to a multiple of 4096.
 * The offset is the disk file's. */
MOB_MUST_CHECK errint_t growing_write_through(const struct growing_move *move,
                                              unsigned char *buffer, size_t bytes, uint64_t offset);

/* --- growing_encrypted.c: the same of an encrypted file --- */

/* Whether the state can be that of an encrypted file. */
bool growing_encrypted_is_valid(const struct growing_state *state);
MOB_MUST_CHECK errint_t growing_encrypted_move(const struct growing_move *move,
                                               const unsigned char *buffer,
                                               const struct growing_batch *batch);
MOB_MUST_CHECK errint_t growing_encrypted_settle(struct growing *growing);
MOB_MUST_CHECK errint_t growing_encrypted_read(const struct growing *growing, void *buffer,
                                               size_t bytes, uint64_t offset);
MOB_MUST_CHECK errint_t growing_encrypted_write(struct growing *growing, const void *buffer,
                                                size_t bytes, uint64_t offset);
MOB_MUST_CHECK errint_t growing_encrypted_clear(struct growing *growing, uint64_t offset,
                                                uint64_t bytes);
MOB_MUST_CHECK errint_t growing_encrypted_cut(struct growing *growing, uint64_t size);
MOB_MUST_CHECK errint_t growing_encrypted_finish(struct growing *growing, uint64_t size);

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
