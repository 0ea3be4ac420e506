/* Staged files: open, write, close, and what a close turns them into.
 *
 * A staged file is finished (committed, or submitted if it is in run/) at its last close. RELEASE
 * comes after close has returned, so a look-up may overtake it: the look-up then finishes the file
 * itself, if every descriptor that could write has been closed at least once (FLUSH) and the kernel
 * says that nobody has the data file open for writing any more. Without passthrough the kernel
 * can't be asked, and the look-up waits a little for the release. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "fs/internal.h"

#define BUCKETS 4096u
#define SPEC_LIMIT_BYTES (16u << 20)
#define RELEASE_TICK_NS 2000000
/* The kernel sees every change of a staged file's size itself; what it may miss for so long are the
 * times of a mapping's writes. */
#define ATTRIBUTE_SECONDS 1.0

struct state {
    struct state *next;
    uint64_t number;
    uint32_t opens;        /* handles */
    uint32_t unflushed;    /* handles for writing that were never closed */
    bool finishing;        /* some thread is at it */
    bool finished;         /* an object or a job already */
    struct job_hold *hold; /* arguments of a spec that a close accepted, until it is submitted */
    uint64_t released;     /* handle kept for the time until a mapping goes; 0 = none */
};

struct staging {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct state *buckets[BUCKETS];
    pthread_t timer;
    pthread_cond_t tick;
    bool stop;
    struct jobs *jobs;
    uint64_t *retries; /* closed files to be tried again at the next tick */
    size_t retry_count, retry_capacity;
    struct fs *timer_fs; /* set once somebody waits for a release */
};

static void *timer_main(void *argument);

errint_t staging_open(struct staging **out)
{
    struct staging *staging = calloc(1, sizeof *staging);
    if (!staging)
        return -ENOMEM;
    pthread_mutex_init(&staging->mutex, NULL);
    pthread_cond_init(&staging->changed, NULL);
    pthread_cond_init(&staging->tick, NULL);
    int error = pthread_create(&staging->timer, NULL, timer_main, staging);
    if (error) {
        free(staging);
        return -error;
    }
    pthread_setname_np(staging->timer, "releases");
    *out = staging;
    return 0;
}

void staging_stop(struct staging *staging)
{
    pthread_mutex_lock(&staging->mutex);
    bool stopped = staging->stop;
    staging->stop = true;
    pthread_cond_signal(&staging->tick);
    pthread_mutex_unlock(&staging->mutex);
    if (!stopped)
        pthread_join(staging->timer, NULL);
}

void staging_close(struct staging *staging)
{
    if (!staging)
        return;
    staging_stop(staging);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct state *state = staging->buckets[i], *next; state; state = next) {
            next = state->next;
            free(state); /* what it holds goes with the jobs */
        }
    free(staging->retries);
    pthread_cond_destroy(&staging->tick);
    pthread_cond_destroy(&staging->changed);
    pthread_mutex_destroy(&staging->mutex);
    free(staging);
}

/* --- states: call with the mutex held --- */

static struct state **state_place(struct staging *staging, uint64_t number)
{
    struct state **link = &staging->buckets[number % BUCKETS];
    while (*link && (*link)->number != number)
        link = &(*link)->next;
    return link;
}

static struct state *state_get(struct staging *staging, uint64_t number, bool make)
{
    struct state **link = state_place(staging, number);
    if (!*link && make && (*link = calloc(1, sizeof **link)))
        (*link)->number = number;
    return *link;
}

static void state_drop(struct staging *staging, struct state *state)
{
    if (state->hold)
        jobs_hold_drop(staging->jobs, state->hold);
    *state_place(staging, state->number) = state->next;
    free(state);
}

/* One more handle. -ESTALE: it is being finished; the kernel looks the name up again. */
static errint_t count_open(struct fs *fs, uint64_t number, bool writes, bool fresh)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    struct state *state = state_get(fs->staging, number, true);
    if (!state)
        return -ENOMEM;
    if (!fresh && (state->finishing || state->finished))
        return -ESTALE;
    if (writes && !fresh && !state->unflushed)
        staged_mark_closed(fs->store, number, false);
    state->opens++;
    state->unflushed += writes;
    return 0;
}

/* --- finishing --- */

static void wake_lookups(struct fs *fs, uint64_t number)
{
    struct parked parked;
    while (waiting_take_for(fs->waiting, WAITING_RELEASE, number, 0, &parked))
        directory_lookup_continue(&parked);
}

/* What the parser is to see: all of the file, or a byte more than it takes. */
static errint_t spec_text(struct fs *fs, uint64_t number, char **text, size_t *bytes)
{
    errint_t error = staged_content(fs->store, number, SPEC_LIMIT_BYTES, text, bytes);
    if (error != -EFBIG)
        return error;
    *text = malloc(SPEC_LIMIT_BYTES + 1);
    if (!*text)
        return -ENOMEM;
    ssize_t got = staged_read(fs->store, number, *text, SPEC_LIMIT_BYTES + 1, 0);
    *bytes = got > 0 ? (size_t)got : 0;
    return got < 0 ? (errint_t)got : 0;
}

/* A job is its file's owner's; its outputs are as open to others as the file was made. */
static struct job_credentials credentials(const struct staged_info *info)
{
    return (struct job_credentials){
        .uid = info->uid, .gid = info->gid, .umask = ~info->mode & 0666};
}

/* A refused spec is a job too, in state `rejected`: its name shows why. */
static errint_t submit(struct fs *fs, const struct staged_info *info)
{
    if (staged_has_writers(fs->store, info->number) > 0)
        return -EBUSY;
    cleanup_free char *text = NULL;
    size_t bytes = 0;
    errint_t error = spec_text(fs, info->number, &text, &bytes);
    if (error)
        return error;
    struct job_credentials who = credentials(info);
    struct mob_id id;
    struct mob_error err = {0};
    error = jobs_submit(fs->jobs, &who, info->number, text, bytes, &id, &err);
    if (error && error != -EINVAL)
        mob_log_error("a job can't be submitted: %s", err.message);
    return error == -EINVAL ? 0 : error;
}

static errint_t finish_now(struct fs *fs, uint64_t number)
{
    struct staged_info info;
    errint_t error = staged_info(fs->store, number, &info);
    if (error == -ENOENT || (!error && (info.committed || info.unlinked)))
        return 0;
    if (error)
        return error;
    if (info.root == NAMES_RUN)
        return submit(fs, &info);
    struct mob_id id;
    struct mob_error err = {0};
    error = staged_commit(fs->store, number, &id, NULL, &err);
    if (error == -ENOENT) /* unlinked meanwhile */
        return 0;
    if (error && error != -EBUSY)
        mob_log_error("a staged file can't be committed: %s",
                      err.message[0] ? err.message : strerror(-error));
    return error;
}

static errint_t finish(struct fs *fs, uint64_t number, bool only_if_unopened);

static void unwritten(void *argument, uint64_t number)
{
    (void)finish(argument, number, true);
}

/* Finishes a staged file once, whoever asks first; others wait for that one. */
static errint_t finish(struct fs *fs, uint64_t number, bool only_if_unopened)
{
    struct staging *staging = fs->staging;
    uint64_t released = 0;
    struct job_hold *hold = NULL;
    pthread_mutex_lock(&staging->mutex);
    struct state *state;
    while ((state = state_get(staging, number, false)) && state->finishing)
        pthread_cond_wait(&staging->changed, &staging->mutex);
    if (!state || state->finished || state->unflushed || (only_if_unopened && state->opens)) {
        pthread_mutex_unlock(&staging->mutex);
        return state && !state->finished ? -EBUSY : 0;
    }
    state->finishing = true;
    pthread_mutex_unlock(&staging->mutex);

    errint_t error = finish_now(fs, number);

    pthread_mutex_lock(&staging->mutex);
    state->finishing = false;
    if (!error) {
        state->finished = true;
        hold = state->hold;
        state->hold = NULL;
        released = state->released;
        state->released = 0;
        if (!state->opens)
            state_drop(staging, state);
    }
    pthread_cond_broadcast(&staging->changed);
    pthread_mutex_unlock(&staging->mutex);
    jobs_hold_drop(fs->jobs, hold);
    if (released)
        handles_free(fs->handles, released);
    if (!error)
        wake_lookups(fs, number);
    return error;
}

bool staging_finish_if_closed(struct fs *fs, uint64_t number, bool *wait)
{
    bool passthrough = transport_passthrough(fs->transport);
    bool open, closed;
    {
        cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
        struct state *state = state_get(fs->staging, number, false);
        closed = state && !state->unflushed;
        open = state && state->opens;
    }
    *wait = closed && open && !passthrough;
    if (!closed || *wait || staged_has_writers(fs->store, number) > 0)
        return false;
    return finish(fs, number, false) == 0;
}

void staging_finish_closed(struct fs *fs)
{
    enum { BATCH = 256 };
    uint64_t numbers[BATCH];
    size_t count = 0;
    pthread_mutex_lock(&fs->staging->mutex);
    for (size_t i = 0; i < BUCKETS && count < BATCH; i++)
        for (struct state *state = fs->staging->buckets[i]; state && count < BATCH;
             state = state->next)
            if (!state->unflushed && !state->finished)
                numbers[count++] = state->number;
    pthread_mutex_unlock(&fs->staging->mutex);
    bool wait;
    while (count-- > 0)
        (void)staging_finish_if_closed(fs, numbers[count], &wait);
}

/* --- files that are closed but still seem to be written ---
 *
 * Mostly it is only that the kernel has put off the last fput of the writer, whose close has told
 * us already: in a moment it is done. What is still written then is mapped, and is watched until
 * the mapping goes. */

/* False: out of memory. */
static bool retry_soon(struct fs *fs, uint64_t number)
{
    struct staging *staging = fs->staging;
    cleanup_lock pthread_mutex_t *held = mob_lock(&staging->mutex);
    if (staging->retry_count == staging->retry_capacity) {
        size_t capacity = staging->retry_capacity ? staging->retry_capacity * 2 : 256;
        uint64_t *larger = realloc(staging->retries, capacity * sizeof *larger);
        if (!larger)
            return false;
        staging->retries = larger;
        staging->retry_capacity = capacity;
    }
    staging->retries[staging->retry_count++] = number;
    if (!staging->timer_fs) {
        staging->timer_fs = fs;
        pthread_cond_signal(&staging->tick);
    }
    return true;
}

/* On the timer's thread. */
static void retry_all(struct fs *fs)
{
    struct staging *staging = fs->staging;
    pthread_mutex_lock(&staging->mutex);
    uint64_t *numbers = staging->retries;
    size_t count = staging->retry_count;
    staging->retries = NULL;
    staging->retry_count = staging->retry_capacity = 0;
    pthread_mutex_unlock(&staging->mutex);
    for (size_t i = 0; i < count; i++)
        if (finish(fs, numbers[i], true) == -EBUSY &&
            staged_when_unwritten(fs->store, numbers[i], unwritten, fs))
            mob_log_warning("a closed staged file is committed at its next look-up");
    free(numbers);
}

/* --- look-ups that wait for a release --- */

static void *timer_main(void *argument)
{
    struct staging *staging = argument;
    pthread_mutex_lock(&staging->mutex);
    while (!staging->stop) {
        struct fs *fs = staging->timer_fs;
        if (!fs) {
            pthread_cond_wait(&staging->tick, &staging->mutex);
            continue;
        }
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += RELEASE_TICK_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&staging->tick, &staging->mutex, &until);
        pthread_mutex_unlock(&staging->mutex);
        struct parked parked;
        while (waiting_take_for(fs->waiting, WAITING_RELEASE, 0, mob_monotonic_ns(), &parked))
            directory_lookup_continue(&parked);
        retry_all(fs);
        pthread_mutex_lock(&staging->mutex);
        if (!staging->retry_count && !waiting_has(fs->waiting, WAITING_RELEASE))
            staging->timer_fs = NULL;
    }
    pthread_mutex_unlock(&staging->mutex);
    return NULL;
}

void staging_start_timer(struct fs *fs)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
    fs->staging->timer_fs = fs;
    pthread_cond_signal(&fs->staging->tick);
}

/* --- open files --- */

static int staged_backing(struct fs *fs, uint64_t number, uint64_t file)
{
    if (!transport_passthrough(fs->transport))
        return 0;
    int id = backing_get(fs->backing, file, -1);
    if (id == -EBADF)
        id = backing_get(fs->backing, file, staged_fd(fs->store, number));
    return id;
}

/* Counts the open that a handle stands for, and fills the handle. On error nothing is left. */
static errint_t open_handle(fuse_req_t request, const struct staged_info *info, int flags,
                            bool fresh, struct handle **handle, uint64_t *fh)
{
    struct fs *fs = fs_of(request);
    bool existed, writes = (flags & O_ACCMODE) != O_RDONLY;
    errint_t error = count_open(fs, info->number, writes, fresh);
    if (error)
        return error;
    error = handles_new(fs->handles, transport_current_unique(), transport_current_is_resent(),
                        node_id(NODE_STAGED, 0, info->number), writes ? HANDLE_WRITE : 0,
                        (uint32_t)fuse_req_ctx(request)->pid, handle, fh, &existed);
    if (!error && !(*handle)->backing_id) {
        int id = staged_backing(fs, info->number, info->file);
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
    errint_t error = staged_create(fs->store, node_number(parent), name, mode & 07777, context->uid,
                                   context->gid, transport_current_unique(), &info);
    struct handle *handle;
    uint64_t fh;
    if (!error) {
        error = open_handle(request, &info, file->flags, true, &handle, &fh);
        if (error)
            staged_discard(fs->store, info.number);
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
    errint_t error = staged_opened(fs->store, node_number(node));
    if (!error)
        error = staged_info(fs->store, node_number(node), &info);
    if (!error)
        error = open_handle(request, &info, file->flags, false, &handle, &fh);
    if (!error && (file->flags & O_TRUNC)) /* sent again or not: it may not have come so far */
        error = staged_truncate(fs->store, info.number, 0);
    if (error)
        fuse_reply_err(request, error == -ENOENT ? ESTALE : -error);
    else
        transport_reply_open(request, fh, 0, handle->backing_id);
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
    if (finish(fs, number, true) == -EBUSY &&
        staged_when_unwritten(fs->store, number, unwritten, fs))
        mob_log_warning("a closed staged file is committed at its next look-up");
}

/* What was closed when the whole mount died, its release still to come. */
static void settle_closed(void *argument, const struct staged_info *info)
{
    struct fs *fs = argument;
    if (info->opens || !info->closed || info->committed || info->unlinked)
        return;
    pthread_mutex_lock(&fs->staging->mutex);
    struct state *state = state_get(fs->staging, info->number, true);
    pthread_mutex_unlock(&fs->staging->mutex);
    if (!state || finish(fs, info->number, true))
        mob_log_warning("a file that was closed before the mount died can't be committed yet");
}

void staging_settle(struct fs *fs, bool discard)
{
    if (discard) {
        store_discard_unopened(fs->store);
        staged_each(fs->store, settle_closed, fs);
    }
    handles_each(fs->handles, settle_released, fs);
}

static void staged_read_op(fuse_req_t request, uint64_t node, size_t bytes, uint64_t offset,
                           uint64_t fh)
{
    (void)fh;
    char *buffer = reply_buffer(bytes);
    ssize_t got = buffer
                      ? staged_read(fs_of(request)->store, node_number(node), buffer, bytes, offset)
                      : -ENOMEM;
    if (got < 0)
        fuse_reply_err(request, (int)-got);
    else
        fuse_reply_buf(request, buffer, (size_t)got);
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
    ssize_t put = staged_write(fs->store, node_number(node), data, bytes, offset);
    if (put < 0)
        fuse_reply_err(request, (int)-put);
    else
        fuse_reply_write(request, (size_t)put);
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

/* What a close can still report: a spec that will be rejected, an object that would not fit. */
static errint_t check_close(struct fs *fs, uint64_t number)
{
    struct staged_info info;
    struct mob_error err = {0};
    errint_t error = staged_info(fs->store, number, &info);
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
        error = check_close(fs, node_number(node));
    }
    fuse_reply_err(request, -error);
}

static bool staged_release(struct fs *fs, uint64_t node, struct handle *handle, uint64_t fh)
{
    uint64_t number = node_number(node);
    if (handle->backing_id)
        backing_put(fs->backing, handle->file);
    mark_flushed(fs, handle, true);
    bool last = false, finished = false;
    {
        cleanup_lock pthread_mutex_t *held = mob_lock(&fs->staging->mutex);
        struct state *state = state_get(fs->staging, number, false);
        if (state) {
            while (state->finishing)
                pthread_cond_wait(&fs->staging->changed, &fs->staging->mutex);
            last = --state->opens == 0;
            finished = state->finished;
            if (last && finished)
                state_drop(fs->staging, state);
            else if (last)
                state->released = fh;
        }
    }
    staged_closed(fs->store, number);
    if (!last || finished)
        return true;
    errint_t error = finish(fs, number, true);
    if (error == -EBUSY) {
        handle->flags |= HANDLE_RELEASED;
        handle->backing_id = 0;
        if (retry_soon(fs, number))
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

static void staged_set_attributes(fuse_req_t request, uint64_t node, struct stat *wanted, int valid,
                                  struct fuse_file_info *file)
{
    (void)file;
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

static ssize_t staged_xattr_get_op(struct fs *fs, uint64_t node, const char *name, void *value,
                                   size_t bytes)
{
    return staged_xattr_get(fs->store, node_number(node), name, value, bytes);
}

static ssize_t staged_xattr_list_op(struct fs *fs, uint64_t node, char *list, size_t bytes)
{
    return staged_xattr_list(fs->store, node_number(node), list, bytes);
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
