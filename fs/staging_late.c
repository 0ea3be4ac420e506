/* What staged files do that may wait for the disk, on threads of its own: a write into a memory
 * that is full, into a file that has outgrown it or began on disk; the close of such a file, and
 * making an object of it. The serving threads have others to serve meanwhile. */
#include <string.h>

#include "fs/staging_internal.h"

/* What is to be written is copied, up to so much at a time. What is more waits on the thread that
 * serves it. */
#define LATE_WRITES_BYTES (UINT64_C(256) << 20)

/* Calls function() with a copy of what it is given, which it frees. False: out of memory. */
static bool put_off(struct fs *fs, void (*function)(void *argument), const void *call, size_t bytes)
{
    void *copy = malloc(bytes);
    if (copy && slow_run(fs->writes, function, memcpy(copy, call, bytes)))
        return true;
    free(copy);
    return false;
}

/* --- writes --- */

struct late_write {
    fuse_req_t request;
    uint64_t number, offset;
    size_t bytes;
    char data[];
};

static void reply_written(fuse_req_t request, ssize_t put)
{
    if (put < 0)
        fuse_reply_err(request, (int)-put);
    else
        fuse_reply_write(request, (size_t)put);
}

static void write_late(void *argument)
{
    struct late_write *write = argument;
    struct fs *fs = fs_of(write->request);
    ssize_t put = staged_write(fs->store, write->number, write->data, write->bytes, write->offset);
    atomic_fetch_sub(&fs->staging->late_bytes, write->bytes);
    reply_written(write->request, put);
    free(write);
}

static bool put_off_write(fuse_req_t request, uint64_t number, const char *data, size_t bytes,
                          uint64_t offset)
{
    struct fs *fs = fs_of(request);
    struct staging *staging = fs->staging;
    struct late_write *write = NULL;
    if (atomic_fetch_add(&staging->late_bytes, bytes) <= LATE_WRITES_BYTES)
        write = malloc(sizeof *write + bytes);
    if (write) {
        *write = (struct late_write){request, number, offset, bytes};
        memcpy(write->data, data, bytes);
        if (slow_run(fs->writes, write_late, write))
            return true;
    }
    atomic_fetch_sub(&staging->late_bytes, bytes);
    free(write);
    return false;
}

void staging_write(fuse_req_t request, uint64_t number, const char *data, size_t bytes,
                   uint64_t offset)
{
    struct store *store = fs_of(request)->store;
    ssize_t put = staged_write_now(store, number, data, bytes, offset);
    if (put == -EAGAIN && put_off_write(request, number, data, bytes, offset))
        return;
    if (put == -EAGAIN)
        put = staged_write(store, number, data, bytes, offset);
    reply_written(request, put);
}

/* --- fallocate --- */

struct late_allocation {
    fuse_req_t request;
    uint64_t number, offset, bytes;
    int mode;
};

static void allocate_late(void *argument)
{
    struct late_allocation *late = argument;
    errint_t error = staged_allocate(fs_of(late->request)->store, late->number, late->mode,
                                     late->offset, late->bytes);
    fuse_reply_err(late->request, -error);
    free(late);
}

void staging_allocate(fuse_req_t request, uint64_t number, int mode, uint64_t offset,
                      uint64_t bytes)
{
    struct fs *fs = fs_of(request);
    struct late_allocation *late = malloc(sizeof *late);
    if (!late) {
        fuse_reply_err(request, ENOMEM);
        return;
    }
    *late = (struct late_allocation){request, number, offset, bytes, mode};
    if (!slow_run(fs->writes, allocate_late, late))
        allocate_late(late);
}

/* --- attributes --- */

struct late_attributes {
    fuse_req_t request;
    uint64_t node;
    struct stat wanted;
    int valid;
};

static void set_attributes_late(void *argument)
{
    struct late_attributes *late = argument;
    staging_set_attributes(late->request, late->node, &late->wanted, late->valid);
    free(late);
}

bool staging_put_off_attributes(fuse_req_t request, uint64_t node, const struct stat *wanted,
                                int valid)
{
    struct fs *fs = fs_of(request);
    struct staged_info info;
    if (staged_peek(fs->store, node_number(node), &info) || !(info.split || info.on_disk))
        return false;
    const struct late_attributes late = {request, node, *wanted, valid};
    return put_off(fs, set_attributes_late, &late, sizeof late);
}

/* --- the close of what has outgrown memory --- */

bool is_split(struct fs *fs, uint64_t number)
{
    struct staged_info info;
    return !staged_peek(fs->store, number, &info) && info.split && !info.committed &&
           info.root == NAMES_STAGING;
}

struct late_close {
    fuse_req_t request;
    uint64_t number;
};

static void close_late(void *argument)
{
    struct late_close *close = argument;
    struct fs *fs = fs_of(close->request);
    struct mob_error err = {0};
    errint_t error = staged_settle_growth(fs->store, close->number, &err);
    if (error && error != -EBUSY)
        mob_log_warning("a file that is larger than memory: %s", err.message);
    if (error == -EBUSY)
        error = 0; /* the commit does it */
    if (!error)
        error = staging_check_close(fs, close->number);
    fuse_reply_err(close->request, -error);
    free(close);
}

bool staging_put_off_close(fuse_req_t request, uint64_t number)
{
    struct fs *fs = fs_of(request);
    const struct late_close close = {request, number};
    return is_split(fs, number) && put_off(fs, close_late, &close, sizeof close);
}

/* --- its commit --- */

struct late_finish {
    struct fs *fs;
    uint64_t number;
};

static void not_put_off(struct staging *staging, uint64_t number)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&staging->mutex);
    struct state *state = state_get(staging, number, false);
    if (state)
        state->put_off = false;
}

static void finish_late(void *argument)
{
    struct late_finish *late = argument;
    errint_t error = finish(late->fs, late->number, true);
    not_put_off(late->fs->staging, late->number);
    if (error == -EBUSY)
        finish_when_unwritten(late->fs, late->number);
    free(late);
}

bool staging_put_off_finish(struct fs *fs, uint64_t number)
{
    const struct late_finish late = {fs, number};
    if (!is_split(fs, number))
        return false;
    {
        cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
        struct state *state = state_get(fs->staging, number, false);
        if (!state || state->put_off || state->finishing)
            return state != NULL;
        state->put_off = true;
    }
    if (put_off(fs, finish_late, &late, sizeof late))
        return true;
    not_put_off(fs->staging, number);
    return false;
}
