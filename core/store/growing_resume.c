/* Growing files: finishing what a dead server began, or what failed halfway. */
#include <string.h>
#include <time.h>

#include "core/store/growing_internal.h"

enum { COMPARE_TRIES = 32 };

/* See growing.c: after the punch the unit is a hole, or was written anew. */
static errint_t was_punched(const struct growing_move *move, const struct growing_batch *batch,
                            bool *punched)
{
    const struct growing *growing = move->growing;
    unsigned char *frozen = move->mover->buffer, *other = frozen + GROWING_BATCH_BYTES;
    *punched = true;
    if (growing->punched)
        return 0;
    uint64_t hole;
    errint_t error = growing_find_hole(growing->memory_fd, batch->offset, &hole);
    if (error || hole < batch->offset + batch->bytes)
        return error;
    *punched = false;
    for (int i = 0; i < COMPARE_TRIES; i++) {
        error = growing_read_frozen(move->mover, frozen, batch->bytes);
        if (error)
            return error;
        ssize_t got = mob_pread_full(growing->memory_fd, other, batch->bytes, (off_t)batch->offset);
        if (got < 0)
            return (errint_t)got;
        if ((size_t)got == batch->bytes && memcmp(frozen, other, batch->bytes) == 0)
            return 0;
        error = growing_read_frozen(move->mover, other, batch->bytes);
        if (error || memcmp(frozen, other, batch->bytes) != 0)
            return error;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    *punched = true;
    return 0;
}

static errint_t resume_out(const struct growing_move *move, struct mob_error *err)
{
    struct growing *growing = move->growing;
    struct growing_batch batch = {growing_motion(growing), 0};
    bool punched;
    errint_t error = growing_frozen_bytes(move->mover->pipes, &batch.bytes);
    if (error)
        return error;
    if (batch.bytes == 0) {
        struct growing_state state = growing->state;
        state.intent = 0;
        state.torn = true;
        error = growing_announce(growing, &state);
        return error ? error
                     : mob_error_set(err, -EIO, "a part of the file was lost on its way to disk");
    }
    move->mover->busy = growing; /* until this has worked, nobody else gets the pipes */
    error = was_punched(move, &batch, &punched);
    if (error)
        return error;
    {
        cleanup_growing pthread_rwlock_t *held = growing_lock_alone(growing);
        growing->punched = punched;
        if (punched)
            error = growing_finish_batch(move, &batch, NULL);
        else
            growing->state.intent = 0;
    }
    return error ? error : growing_release_batch(growing, move->mover);
}

/* The unit is on disk as well: nothing was written to it in memory but what came from there. */
static errint_t resume_back(const struct growing_move *move)
{
    struct growing *growing = move->growing;
    {
        cleanup_growing pthread_rwlock_t *held = growing_lock_alone(growing);
        errint_t error = growing_punch_fd(move->memory, growing->state.intent - GROWING_UNIT_BYTES,
                                          GROWING_UNIT_BYTES);
        if (error)
            return error;
        growing->state.intent = 0;
    }
    return growing_settle(growing);
}

static errint_t resume(const struct growing_move *move, struct mob_error *err)
{
    struct growing *growing = move->growing;
    const struct growing_state *state = &growing->state;
    uint64_t data, size;
    errint_t error = 0;
    if (growing->unnoted)
        error = move->mover->busy == growing ? growing_release_batch(growing, move->mover)
                                             : growing_settle(growing);
    if (!error && state->intent) {
        uint64_t offset = state->intent - GROWING_UNIT_BYTES;
        bool back = offset >= growing_begin(growing) && offset < state->moved;
        error = back ? resume_back(move) : resume_out(move, err);
    }
    if (!error && growing->exclusive) {
        error = growing_find_data(growing->memory_fd, 0, &data);
        if (!error && data < state->moved)
            error = growing_punch_fd(move->memory, 0, state->moved);
    }
    if (!error)
        error = growing_disk_settle(growing);
    if (!error)
        error = growing_size(growing->memory_fd, &size);
    return error ? error : growing_disk_cut(growing, size);
}

errint_t growing_resume(struct growing *growing, struct growing_mover *mover, struct mob_error *err)
{
    struct growing_move move = {.growing = growing, .mover = mover, .memory = -1, .direct = -1};
    struct mob_error told = {0};
    errint_t error = mover->busy && mover->busy != growing && growing->state.intent ? -EBUSY : 0;
    if (!error && growing->state.intent && !growing->exclusive && !mover->pipes)
        error = -EINVAL;
    if (!error)
        error = growing_move_open(&move, growing, mover);
    if (!error)
        error = resume(&move, &told);
    growing_move_close(&move);
    if (!error)
        return 0;
    return told.code ? mob_error_set(err, error, "%s", told.message) : growing_explain(error, err);
}
