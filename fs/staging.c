/* Staged files: open, write, close. What a close turns them into is in staging_finish.c. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "fs/staging_internal.h"

/* The kernel sees every change of a staged file's size itself; what it may miss for so long are the
 * times of a mapping's writes. */
#define ATTRIBUTE_SECONDS 1.0
/* On a thread that serves, for a commit that may wait for the disk. */
#define LONGEST_WAIT_NS UINT64_C(100000000)

/* One more handle. -ESTALE: it is being finished; the kernel looks the name up again, and that
 * waits for what takes long. */
static errint_t count_open(struct fs *fs, const struct staged_info *info, bool writes, bool fresh)
{
    uint64_t number = info->number, until_ns = mob_monotonic_ns() + LONGEST_WAIT_NS;
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    struct state *state;
    /* The kernel looks the name up but once more: then it must be a link. */
    while ((state = state_get(fs->staging, number, true)) && !fresh && state->finishing &&
           (!state->put_off || mob_monotonic_ns() < until_ns))
        wait_a_tick(fs->staging, &fs->staging->changed);
    if (!state)
        return -ENOMEM;
    if (!fresh && (state->finishing || state->finished))
        return -ESTALE;
    if (writes && !fresh && !state->unflushed)
        staged_mark_closed(fs->store, number, false);
    state->opens++;
    state->unflushed += writes;
    state->spec = info->root == NAMES_RUN;
    return 0;
}

/* 0: no passthrough, for any open of the file. Not every filesystem that may be a spill directory
 * can be read and written by it (overlayfs can't). */
static int staged_backing(struct fs *fs, const struct staged_info *info)
{
    if (!staged_passthrough(fs))
        return 0;
    int id = info->mediated ? 0 : backing_get(fs->backing, info->file, -1);
    if (id == -EBADF)
        id = backing_get(fs->backing, info->file, staged_fd(fs->store, info->number));
    if (!info->mediated && (id >= 0 || !info->on_disk))
        return id;
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    struct state *state = state_get(fs->staging, info->number, false);
    if (state)
        state->mediated = true;
    return 0;
}

enum open_kind {
    OPEN_FRESH,    /* it was just made */
    OPEN_AGAIN,    /* it was there */
    OPEN_MEDIATED, /* it was there, and is to be read through us */
};

/* Counts the open that a handle stands for, and fills the handle. On error nothing is left. */
static errint_t open_handle(fuse_req_t request, const struct staged_info *info, int flags,
                            enum open_kind kind, struct handle **handle, uint64_t *fh)
{
    struct fs *fs = fs_of(request);
    bool existed, writes = (flags & O_ACCMODE) != O_RDONLY;
    errint_t error = count_open(fs, info, writes, kind == OPEN_FRESH);
    if (error) {
        staged_closed(fs->store, info->number);
        return error;
    }
    error = handles_new(fs->handles, transport_current_unique(), transport_current_is_resent(),
                        node_id(NODE_STAGED, 0, info->number), writes ? HANDLE_WRITE : 0,
                        (uint32_t)fuse_req_ctx(request)->pid, handle, fh, &existed);
    if (!error && !(*handle)->backing_id && kind != OPEN_MEDIATED) {
        int id = staged_backing(fs, info);
        if (id < 0) {
            handles_free(fs->handles, *fh);
            error = id;
        } else {
            (*handle)->file = info->file;
            (*handle)->backing_id = id;
        }
    }
    if (error)
        mob_log_debug("staged file %llu: open: %s", (unsigned long long)info->number,
                      strerror(-error));
    if (error || existed) { /* counted already when it was taken over */
        cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
        struct state *state = state_get(fs->staging, info->number, false);
        state->opens--;
        state->unflushed -= writes;
        staged_closed(fs->store, info->number);
        if (error && !state->opens && !state->finishing)
            state_drop(fs->staging, state);
    }
    return error;
}

void staging_create(fuse_req_t request, uint64_t parent, const char *name, mode_t mode,
                    struct fuse_file_info *file)
{
    struct fs *fs = fs_of(request);
    const struct fuse_ctx *context = fuse_req_ctx(request);
    struct staged_info info;
    errint_t error =
        staged_create_for(fs->store, node_number(parent), name, mode & 07777, context->uid,
                          context->gid, transport_current_unique(), file->flags & O_ACCMODE, &info);
    struct handle *handle;
    uint64_t fh;
    if (!error) {
        error = open_handle(request, &info, file->flags, OPEN_FRESH, &handle, &fh);
        if (error)
            staged_discard(fs->store, info.number);
        else if ((file->flags & O_ACCMODE) == O_WRONLY)
            staged_mark_write_only(fs->store, info.number, true);
    }
    if (error) {
        fuse_reply_err(request, -error);
        return;
    }
    struct fuse_entry_param entry = {.ino = node_id(NODE_STAGED, 0, info.number),
                                     .generation = 1,
                                     .attr_timeout = ATTRIBUTE_SECONDS};
    stat_fill(&entry.attr, entry.ino, info.mode, info.uid, info.gid, info.size, info.mtime_ns);
    transport_reply_create(request, &entry, fh, 0, handle->backing_id);
}

static void staged_open(fuse_req_t request, uint64_t node, struct fuse_file_info *file)
{
    struct fs *fs = fs_of(request);
    struct staged_info info;
    struct handle *handle;
    uint64_t fh;
    bool direct = true; /* the kernel may read it by itself */
    errint_t error = staged_opened(fs->store, node_number(node));
    if (!error)
        error = staged_peek(fs->store, node_number(node), &info);
    if (!error && (file->flags & O_ACCMODE) != O_WRONLY)
        direct = staged_mark_write_only(fs->store, node_number(node), false);
    if (!error && !direct && (file->flags & O_ACCMODE) == O_RDWR) {
        staged_closed(fs->store, node_number(node));
        fuse_reply_err(request, ETXTBSY); /* mobula-fs(7): it has outgrown memory */
        return;
    }
    if (!error)
        error = open_handle(request, &info, file->flags, direct ? OPEN_AGAIN : OPEN_MEDIATED,
                            &handle, &fh);
    if (!error && (file->flags & O_TRUNC)) /* sent again or not: it may not have come so far */
        error = staged_truncate(fs->store, info.number, 0);
    if (error)
        fuse_reply_err(request, error == -ENOENT ? ESTALE : -error);
    else
        transport_reply_open(request, fh, direct ? 0 : OPEN_DIRECT_IO, handle->backing_id);
}

void staging_adopt(struct fs *fs, const struct handle *handle)
{
    uint64_t number = node_number(handle->node);
    bool released = handle->flags & HANDLE_RELEASED;
    if (staged_opened(fs->store, number))
        return; /* discarded: its release is all that is left to come */
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    struct state *state = state_get(fs->staging, number, true);
    if (!state)
        return;
    if (released) {
        staged_closed(fs->store, number);
        return;
    }
    state->opens++;
    if ((handle->flags & HANDLE_WRITE) && !(handle->flags & HANDLE_FLUSHED))
        state->unflushed++;
}

static void settle_released(void *argument, struct handle *handle, uint64_t fh)
{
    struct fs *fs = argument;
    if (node_kind(handle->node) != NODE_STAGED || !(handle->flags & HANDLE_RELEASED))
        return;
    uint64_t number = node_number(handle->node);
    {
        cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
        struct state *state = state_get(fs->staging, number, false);
        if (state)
            state->released = fh;
    }
    if (finish(fs, number, true) == -EBUSY)
        finish_when_unwritten(fs, number);
}

/* What was closed when the whole mount died, its release still to come; or what an earlier server
 * could not finish. */
static void settle_closed(void *argument, const struct staged_info *info)
{
    struct fs *fs = argument;
    if (info->opens || !info->closed || info->committed || info->unlinked)
        return;
    pthread_mutex_lock(&fs->staging->mutex);
    struct state *state = state_get(fs->staging, info->number, true);
    pthread_mutex_unlock(&fs->staging->mutex);
    errint_t error = state ? finish(fs, info->number, true) : -ENOMEM;
    (void)error; /* it has been logged, and a look-up tries again */
}

void staging_settle(struct fs *fs, bool discard)
{
    if (discard)
        store_discard_unopened(fs->store);
    handles_each(fs->handles, settle_released, fs);
    staged_each(fs->store, settle_closed, fs);
}

static ssize_t read_now(struct fs *fs, const struct read_call *call, char *buffer)
{
    return staged_read_now(fs->store, call->number, buffer, call->bytes, call->offset);
}

static ssize_t read_wait(struct fs *fs, const struct read_call *call, char *buffer)
{
    return staged_read(fs->store, call->number, buffer, call->bytes, call->offset);
}

static void staged_read_op(fuse_req_t request, uint64_t node, size_t bytes, uint64_t offset,
                           uint64_t fh)
{
    struct read_call call = {.request = request,
                             .wait = read_wait,
                             .number = node_number(node),
                             .bytes = bytes,
                             .offset = offset,
                             .fh = fh,
                             .fd = -1};
    read_now_or_later(&call, read_now);
}

static void mark_flushed(struct fs *fs, struct handle *handle, bool flushed)
{
    if (!(handle->flags & HANDLE_WRITE))
        return;
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    struct state *state = state_get(fs->staging, node_number(handle->node), false);
    if (!state || flushed == !!(handle->flags & HANDLE_FLUSHED))
        return;
    if (flushed) {
        handle->flags |= HANDLE_FLUSHED;
        if (--state->unflushed == 0)
            staged_mark_closed(fs->store, state->number, true);
    } else {
        handle->flags &= ~(uint32_t)HANDLE_FLUSHED;
        if (state->unflushed++ == 0)
            staged_mark_closed(fs->store, state->number, false);
    }
}

static void staged_write_op(fuse_req_t request, uint64_t node, const char *data, size_t bytes,
                            uint64_t offset, uint64_t fh)
{
    struct fs *fs = fs_of(request);
    struct handle *handle = handles_get(fs->handles, fh);
    if (handle && (handle->flags & HANDLE_FLUSHED))
        mark_flushed(fs, handle, false);
    staging_write(request, node_number(node), data, bytes, offset);
}

static void keep_hold(struct fs *fs, uint64_t number, struct job_hold *hold)
{
    struct job_hold *old = hold;
    pthread_mutex_lock(&fs->staging->mutex);
    struct state *state = state_get(fs->staging, number, false);
    if (state && !state->finished) {
        old = state->hold;
        state->hold = hold;
        fs->staging->jobs = fs->jobs;
    }
    pthread_mutex_unlock(&fs->staging->mutex);
    jobs_hold_drop(fs->jobs, old);
}

errint_t staging_check_close(struct fs *fs, uint64_t number)
{
    struct staged_info info;
    struct mob_error err = {0};
    errint_t error = staged_peek(fs->store, number, &info);
    if (error || info.committed || info.unlinked)
        return 0;
    if (info.root == NAMES_STAGING)
        return staged_check(fs->store, number, &err);
    cleanup_free char *text = NULL;
    size_t bytes = 0;
    error = spec_text(fs, number, &text, &bytes);
    struct job_credentials who = credentials(&info);
    struct job_hold *hold;
    if (!error)
        error = jobs_check_here(fs->jobs, &who, text, bytes, &hold, &err);
    if (!error)
        keep_hold(fs, number, hold);
    return error;
}

static void staged_flush(fuse_req_t request, uint64_t node, uint64_t fh)
{
    struct fs *fs = fs_of(request);
    struct handle *handle = handles_get(fs->handles, fh);
    errint_t error = 0;
    if (handle && (handle->flags & HANDLE_WRITE)) {
        mark_flushed(fs, handle, true);
        if (staging_put_off_close(request, node_number(node)))
            return;
        error = staging_check_close(fs, node_number(node));
    }
    fuse_reply_err(request, -error);
}

static bool staged_release(struct fs *fs, uint64_t node, struct handle *handle, uint64_t fh)
{
    uint64_t number = node_number(node);
    if (handle->backing_id)
        backing_put(fs->backing, handle->file);
    mark_flushed(fs, handle, true);
    bool last = false, finished = false, soon = false;
    {
        cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
        struct state *state = state_get(fs->staging, number, false);
        if (state) {
            while (state->finishing)
                pthread_cond_wait(&fs->staging->changed, &fs->staging->mutex);
            last = --state->opens == 0;
            finished = state->finished;
            soon = staged_passthrough(fs) && !state->spec && !state->mediated;
            if (last && finished)
                state_drop(fs->staging, state);
            else if (last)
                state->released = fh;
        }
    }
    staged_closed(fs->store, number);
    if (!last || finished)
        return true;
    /* With passthrough the kernel tells us before it closes the data file, so that a try now would
     * mostly be too early; in a moment many are committed in one transaction. */
    bool late = is_split(fs, number);
    errint_t error = soon || late ? -EBUSY : finish(fs, number, true);
    if (error == -EBUSY) {
        handle->flags |= HANDLE_RELEASED;
        handle->backing_id = 0;
        if ((late && staging_put_off_finish(fs, number)) || finish_soon(fs, number))
            return false; /* finish() frees the handle */
    }
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    struct state *state = state_get(fs->staging, number, false);
    bool kept = state && state->released == fh;
    if (kept)
        state->released = 0;
    return kept; /* else finish() has freed it */
}

static errint_t staged_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    struct staged_info info;
    errint_t error = staged_info(fs->store, node_number(node), &info);
    if (error)
        return error == -ENOENT ? -ESTALE : error;
    stat_fill(out, node, info.mode, info.uid, info.gid, info.size, info.mtime_ns);
    out->st_blocks = (blkcnt_t)info.blocks;
    out->st_nlink = info.unlinked ? 0 : 1;
    *timeout = ATTRIBUTE_SECONDS;
    return 0;
}

void staging_set_attributes(fuse_req_t request, uint64_t node, const struct stat *wanted, int valid)
{
    struct fs *fs = fs_of(request);
    uint64_t number = node_number(node), mtime_ns;
    unsigned set = wanted_fields(wanted, valid, &mtime_ns);
    errint_t error = 0;
    if (valid & FUSE_SET_ATTR_SIZE)
        error = staged_truncate(fs->store, number, (uint64_t)wanted->st_size);
    if (!error && set)
        error = staged_set(fs->store, number, set, wanted->st_mode, wanted->st_uid, wanted->st_gid,
                           mtime_ns);
    if (error)
        fuse_reply_err(request, error == -ENOENT ? ESTALE : -error);
    else
        reply_attributes(request, node);
}

static void staged_set_attributes(fuse_req_t request, uint64_t node, struct stat *wanted, int valid,
                                  struct fuse_file_info *file)
{
    (void)file;
    if (!staging_put_off_attributes(request, node, wanted, valid))
        staging_set_attributes(request, node, wanted, valid);
}

/* Who finds a file where a link should be is told why. */
static const char failure_xattr[] = "user.mobula.error";

static ssize_t staged_xattr_get_op(struct fs *fs, uint64_t node, const char *name, void *value,
                                   size_t bytes)
{
    if (strcmp(name, failure_xattr) != 0)
        return staged_xattr_get(fs->store, node_number(node), name, value, bytes);
    cleanup_free char *failure = staging_failure(fs, node_number(node));
    return failure ? xattr_value(failure, strlen(failure), value, bytes) : -ENODATA;
}

static ssize_t staged_xattr_list_op(struct fs *fs, uint64_t node, char *list, size_t bytes)
{
    cleanup_free char *failure = staging_failure(fs, node_number(node));
    size_t own = failure ? sizeof failure_xattr : 0;
    ssize_t others =
        staged_xattr_list(fs->store, node_number(node), bytes > own ? list + own : NULL,
                          bytes > own ? bytes - own : 0);
    if (others < 0)
        return others;
    if (bytes && bytes < own + (size_t)others)
        return -ERANGE;
    if (bytes && own)
        memcpy(list, failure_xattr, own);
    return (ssize_t)own + others;
}

const struct node_operations staged_operations = {
    .attributes = staged_attributes,
    .set_attributes = staged_set_attributes,
    .open = staged_open,
    .read = staged_read_op,
    .write = staged_write_op,
    .flush = staged_flush,
    .release = staged_release,
    .xattr_get = staged_xattr_get_op,
    .xattr_list = staged_xattr_list_op,
};
