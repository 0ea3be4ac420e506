/* The FUSE view: made, attached to the store, served, taken down. */
#include "fs/fs.h"

#include <errno.h>
#include <string.h>

#include "fs/internal.h"

size_t fs_session_bytes(void)
{
    return handles_bytes();
}

errint_t fs_create(const struct fs_options *options, struct fs **out, struct mob_error *err)
{
    struct fs *fs = calloc(1, sizeof *fs);
    if (!fs)
        return mob_error_set(err, -ENOMEM, "out of memory");
    fs->identity = options->identity;
    fs->session = options->session;
    fs->started_ns = mob_monotonic_ns();
    fs->started_wall_ns = mob_realtime_ns();
    fs->uid = getuid();
    fs->gid = getgid();
    struct mob_id owner = {0};
    char digits[MOB_ID_STRING_BYTES];
    memcpy(owner.bytes, options->identity.owner, MOB_ID_OWNER_BYTES);
    memcpy(fs->id, mob_id_format(&owner, digits), sizeof fs->id - 1);

    size_t area_bytes;
    void *area = session_handle_area(options->session, &area_bytes);
    errint_t error = area_bytes < handles_bytes()
                         ? mob_error_set(err, -EINVAL, "the session memory is too small")
                         : transport_create(&options->transport, &fs_operations,
                                            sizeof fs_operations, fs, &fs->transport, err);
    if (!error &&
        ((error = handles_open(area, &fs->handles)) ||
         (error = backing_open(handles_backing_slots(fs->handles), fs->transport, &fs->backing)) ||
         (error = waiting_open(&fs->waiting)) || (error = staging_open(&fs->staging)) ||
         (error = slow_open("slow", 1, false, &fs->slow)) ||
         (error = slow_open("syncs", 8, false, &fs->syncs)) ||
         (error = slow_open("reads", 8, true, &fs->reads)) ||
         (error = slow_open("writes", 8, true, &fs->writes)) ||
         (error = slow_open("sums", 2, false, &fs->sums)) ||
         (error = known_open(session_generation(fs->session) > 0, &fs->known)) ||
         (error = prefill_open(&fs->prefill))))
        mob_error_set(err, error, "the mount's tables can't be made: %s", strerror(-error));
    if (error) {
        fs_destroy(fs);
        return error;
    }
    park_in(fs);
    *out = fs;
    return 0;
}

/* They finish what they were given. */
static void close_threads(struct fs *fs)
{
    slow_close(fs->slow);
    slow_close(fs->syncs);
    slow_close(fs->reads);
    slow_close(fs->writes);
    slow_close(fs->sums);
    fs->slow = fs->syncs = fs->reads = fs->writes = fs->sums = NULL;
}

void fs_detach(struct fs *fs)
{
    staging_stop(fs->staging);
    close_threads(fs);
}

void fs_destroy(struct fs *fs)
{
    if (!fs)
        return;
    close_threads(fs);
    staging_close(fs->staging);
    known_close(fs->known);
    prefill_close(fs->prefill);
    if (fs->transport)
        transport_destroy(fs->transport);
    waiting_close(fs->waiting);
    backing_close(fs->backing);
    handles_close(fs->handles);
    free(fs);
}

static void file_gone(void *context, uint64_t file)
{
    struct fs *fs = context;
    backing_forget(fs->backing, file);
}

struct store_hooks fs_store_hooks(struct fs *fs)
{
    return (struct store_hooks){
        .context = fs,
        .object_freed = fs_object_freed,
        .object_changed = fs_object_changed,
        .file_gone = file_gone,
    };
}

struct jobs_hooks fs_jobs_hooks(struct fs *fs)
{
    /* Attributes of a job's files are never cached, so its changes need no word. */
    return (struct jobs_hooks){.context = fs, .job_gone = fs_job_gone};
}

static void adopt(void *argument, struct handle *handle, uint64_t fh)
{
    struct fs *fs = argument;
    enum node_kind kind = node_kind(handle->node);
    (void)fh;
    if (handle->backing_id)
        backing_adopt(fs->backing, handle->file);
    if (kind == NODE_STAGED)
        staging_adopt(fs, handle);
    else if (kind == NODE_OBJECT && store_opened(fs->store, node_number(handle->node)))
        mob_log_warning("an open object is not in the store any more");
}

static void poll_again(void *argument, struct handle *handle, uint64_t fh)
{
    struct fs *fs = argument;
    if (!handle->poll_handle)
        return;
    if (node_kind(handle->node) == NODE_OBJECT)
        object_poll_again(fs, fh, handle);
    else if (node_kind(handle->node) == NODE_JOB_FILE)
        job_poll_again(fs, fh, handle);
}

errint_t fs_attach(struct fs *fs, struct store *store, struct jobs *jobs, struct mob_error *err)
{
    (void)err;
    fs->store = store;
    fs->jobs = jobs;
    handles_each(fs->handles, adopt, fs);
    staging_settle(fs, !session_is_settled(fs->session));
    session_set_settled(fs->session);
    handles_each(fs->handles, poll_again, fs);
    return 0;
}

errint_t fs_negotiate(struct fs *fs, bool *passthrough, struct mob_error *err)
{
    errint_t error = transport_negotiate(fs->transport, err);
    *passthrough = !error && transport_passthrough(fs->transport);
    return error;
}

errint_t fs_serve(struct fs *fs, struct mob_error *err)
{
    return transport_serve(fs->transport, err);
}

void fs_stop(struct fs *fs)
{
    transport_stop(fs->transport);
}
