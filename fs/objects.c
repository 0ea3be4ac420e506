/* objects/ID: immutable files. Opening a pending one waits; large ones are handed to the kernel. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

#include "fs/internal.h"

#define FRESH_RESULT_NS UINT64_C(5000000000)

static errint_t object_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    struct object_info info;
    errint_t error = store_info(fs->store, node_number(node), &info);
    if (error)
        return error;
    bool ready = info.state == OBJECT_READY;
    stat_fill(out, node, info.mode, info.uid, info.gid, ready ? info.size : 0, info.mtime_ns);
    out->st_nlink = info.links;
    if (ready)
        *timeout = TIMEOUT_FOREVER; /* fs_object_changed() tells the kernel of new links */
    known_mark(fs->known, node);
    return 0;
}

void fs_object_changed(void *context, uint64_t number)
{
    forget_attributes(context, node_id(NODE_OBJECT, 0, number));
}

/* The name stays in the kernel's cache, but leads nowhere: every use of it asks for attributes
 * first, and gets ENOENT. Dropping the name itself (FUSE_NOTIFY_INVAL_ENTRY) would take the
 * directory's lock, which a look-up may hold whose server has just been killed: then that server
 * could never die (seen in the kill test). */
void fs_object_freed(void *context, uint64_t number, const struct mob_id *id)
{
    (void)id;
    forget_attributes(context, node_id(NODE_OBJECT, 0, number));
}

/* Registers the object's data file for one more passthrough open. 0: not this time, or it is
 * encrypted. */
static int object_backing(struct fs *fs, uint64_t number, uint64_t file)
{
    int id = backing_get(fs->backing, file, -1);
    if (id == -EBADF) {
        struct store_file opened;
        errint_t error = store_open_file_now(fs->store, number, &opened);
        if (error == -EAGAIN)
            return 0; /* its file was just looked at: hardly ever */
        if (!error && opened.form != STORE_ENCRYPTED)
            id = backing_get(fs->backing, file, opened.fd);
        if (!error)
            close(opened.fd);
        if (!error && opened.form == STORE_ENCRYPTED)
            return 0;
        id = error ? error : id;
    }
    if (id < 0)
        mob_log_debug("no passthrough for data file %llx: %s", (unsigned long long)file,
                      strerror(-id));
    return id > 0 ? id : 0;
}

/* Answers an open of a ready object. The open has been counted (store_opened()). */
static void open_ready(struct fs *fs, const struct parked *open, const struct object_info *info,
                       bool resent)
{
    struct handle *handle;
    uint64_t fh;
    bool existed;
    errint_t error = handles_new(fs->handles, open->unique, resent, open->node, 0, open->pid,
                                 &handle, &fh, &existed);
    if (error || existed)
        store_open_dropped(fs->store, open->number); /* counted when it was taken over */
    if (error) {
        fuse_reply_err(open->request, -error);
        return;
    }
    uint32_t flags = OPEN_KEEP_CACHE | OPEN_NOFLUSH;
    /* The kernel may still hold the size that it had while it was pending, 0, and drop the true one
     * when many ask at once (an answer that was overtaken by another's is not used): such a reader
     * would find an empty file. So a result's first readers ask us. */
    if (mob_id_index(&info->id) != MOB_INDEX_JOB &&
        mob_realtime_ns() - info->mtime_ns < FRESH_RESULT_NS)
        flags = OPEN_DIRECT_IO | OPEN_NOFLUSH;
    if (info->tier == TIER_INLINE)
        prefill_before_open(fs->prefill, fs->transport, fs->store, open->node,
                            flags & OPEN_KEEP_CACHE);
    if (info->file) {
        handle->file = info->file;
        if (!handle->backing_id && transport_passthrough(fs->transport))
            handle->backing_id = object_backing(fs, open->number, info->file);
        if (handle->backing_id)
            flags = OPEN_NOFLUSH;
        else if (transport_passthrough(fs->transport))
            flags = OPEN_NOFLUSH | OPEN_DIRECT_IO; /* others may have it open by passthrough */
    }
    transport_reply_open(open->request, fh, flags, handle->backing_id);
}

/* A pending object opened with O_NONBLOCK: reads say EAGAIN until it's ready. */
static void open_nonblocking(struct fs *fs, const struct parked *open, bool resent)
{
    struct handle *handle;
    uint64_t fh;
    bool existed;
    errint_t error = handles_new(fs->handles, open->unique, resent, open->node, HANDLE_NONBLOCK,
                                 open->pid, &handle, &fh, &existed);
    if (error || existed)
        store_open_dropped(fs->store, open->number);
    if (error)
        fuse_reply_err(open->request, -error);
    else
        transport_reply_open(open->request, fh, OPEN_DIRECT_IO | OPEN_NOFLUSH, 0);
}

static void open_counted(struct fs *fs, const struct parked *open, bool resent)
{
    struct object_info info;
    errint_t error = store_opened(fs->store, open->number);
    if (error) {
        fuse_reply_err(open->request, -error);
        return;
    }
    error = store_info(fs->store, open->number, &info);
    if (!error && info.state == OBJECT_READY) {
        error = info.tier == TIER_DISK ? store_readable_now(fs->store, open->number) : 0;
        if (!error) {
            open_ready(fs, open, &info, resent);
            return;
        }
        if (error == -EAGAIN || error == -EIO) { /* it is verified first, or once more */
            park(open->request, WAITING_OBJECT, open->node, open->number, open->open_flags);
            return;
        }
    }
    if (!error && info.state == OBJECT_PENDING && (open->open_flags & O_NONBLOCK)) {
        open_nonblocking(fs, open, resent);
        return;
    }
    if (!error && info.state == OBJECT_PENDING) { /* who waits holds it, as an open file does */
        park(open->request, WAITING_OBJECT, open->node, open->number, open->open_flags);
        return;
    }
    store_open_dropped(fs->store, open->number);
    fuse_reply_err(open->request, error ? -error : -info.failure);
}

static void object_open(fuse_req_t request, uint64_t node, struct fuse_file_info *file)
{
    if ((file->flags & O_ACCMODE) != O_RDONLY || (file->flags & O_TRUNC)) {
        fuse_reply_err(request, EPERM);
        return;
    }
    struct parked open = {
        .request = request,
        .node = node,
        .number = node_number(node),
        .unique = transport_current_unique(),
        .open_flags = (uint32_t)file->flags,
        .pid = (uint32_t)fuse_req_ctx(request)->pid,
    };
    open_counted(fs_of(request), &open, transport_current_is_resent());
}

void object_open_continue(struct fs *fs, struct parked *parked, enum object_state state)
{
    struct object_info info;
    errint_t error = state == OBJECT_PENDING ? -ENOENT /* it went away */
                                             : store_info(fs->store, parked->number, &info);
    if (!error && info.state == OBJECT_READY)
        error = store_readable(fs->store, parked->number);
    if (!error && info.state == OBJECT_READY) {
        /* If it was pending, the kernel may hold its size, 0. */
        (void)transport_invalidate_inode(fs->transport, parked->node, -1, 0);
        open_ready(fs, parked, &info, true);
        return;
    }
    /* A result on disk that was waited for may just be getting its header, which changes its ctime:
     * it is asked for again. Not for ever: what can't be verified for want of memory is EIO. */
    if (error == -EAGAIN && parked->tries < STORE_FETCH_TRIES) {
        park_again(fs, parked);
        return;
    }
    store_open_dropped(fs->store, parked->number);
    if (!error)
        error = info.failure ? info.failure : -EIO;
    if (error == -EAGAIN)
        error = -EIO;
    fuse_reply_err(parked->request, -error);
}

static errint_t ready_info(struct fs *fs, uint64_t number, struct object_info *info)
{
    errint_t error = store_info(fs->store, number, info);
    if (!error && info->state == OBJECT_PENDING)
        error = -EAGAIN;
    if (!error && info->state == OBJECT_FAILED)
        error = info->failure;
    return error;
}

/* The data file, as the handle has it, or opened by `open_file` and kept. */
static errint_t data_file(struct fs *fs, const struct read_call *call,
                          errint_t (*open_file)(struct store *, uint64_t, struct store_file *),
                          struct store_file *out)
{
    errint_t error = handles_file(fs->handles, call->fh, out);
    if (error != -ENOENT)
        return error;
    error = open_file(fs->store, call->number, out);
    return error ? error : handles_keep_file(fs->handles, call->fh, out);
}

static ssize_t object_read_now(struct fs *fs, const struct read_call *call, char *buffer)
{
    struct store_file file;
    errint_t error = data_file(fs, call, store_open_file_now, &file);
    return error ? error
                 : store_read_file_now(fs->store, call->number, &file, buffer, call->bytes,
                                       call->offset);
}

ssize_t object_read_wait(struct fs *fs, const struct read_call *call, char *buffer)
{
    struct store_file file;
    struct object_info info;
    errint_t error = ready_info(fs, call->number, &info);
    if (!error && !info.file)
        return store_read_inline(fs->store, call->number, buffer, call->bytes, call->offset);
    if (!error)
        error = data_file(fs, call, store_open_file, &file);
    return error
               ? error
               : store_read_file(fs->store, call->number, &file, buffer, call->bytes, call->offset);
}

void object_read(fuse_req_t request, uint64_t number, size_t bytes, uint64_t offset, uint64_t fh)
{
    struct fs *fs = fs_of(request);
    struct object_info info;
    errint_t error = ready_info(fs, number, &info);
    if (error) {
        fuse_reply_err(request, -error);
        return;
    }
    if (info.file) {
        struct handle *handle = handles_get(fs->handles, fh);
        if (handle && !handle->file)
            handle->file = info.file;
        struct read_call call = {.request = request,
                                 .wait = object_read_wait,
                                 .number = number,
                                 .bytes = bytes,
                                 .offset = offset,
                                 .fh = fh,
                                 .fd = -1};
        read_now_or_later(&call, object_read_now);
        return;
    }
    char *buffer = reply_buffer(bytes);
    reply_read(request, buffer,
               buffer ? store_read_inline(fs->store, number, buffer, bytes, offset) : 0);
}

static void object_read_op(fuse_req_t request, uint64_t node, size_t bytes, uint64_t offset,
                           uint64_t fh)
{
    object_read(request, node_number(node), bytes, offset, fh);
}

static bool object_release(struct fs *fs, uint64_t node, struct handle *handle, uint64_t fh)
{
    if (handle->backing_id)
        backing_put(fs->backing, handle->file);
    /* Before it may be removed: the last to close it frees what it takes on the disk, and waits. */
    handles_close_file(fs->handles, fh);
    store_open_dropped(fs->store, node_number(node));
    return true;
}

/* --- poll --- */

struct poller {
    struct fs *fs;
    uint64_t fh;
};

static void poll_ready(void *argument, uint64_t number, enum object_state state)
{
    struct poller *poller = argument;
    (void)number;
    (void)state;
    struct handle *handle = handles_get(poller->fs->handles, poller->fh);
    uint64_t wake = handle ? __atomic_exchange_n(&handle->poll_handle, 0, __ATOMIC_ACQ_REL) : 0;
    if (wake)
        (void)transport_notify_poll(poller->fs->transport, wake);
    free(poller);
}

/* Wakes the handle's poller when the object is ready; also for handles of an earlier server. */
void object_poll_again(struct fs *fs, uint64_t fh, struct handle *handle)
{
    struct poller *poller = malloc(sizeof *poller);
    uint64_t token;
    if (poller) {
        *poller = (struct poller){fs, fh};
        if (!store_wait(fs->store, node_number(handle->node), poll_ready, poller, &token))
            return;
        free(poller);
    }
    uint64_t wake = __atomic_exchange_n(&handle->poll_handle, 0, __ATOMIC_ACQ_REL);
    if (wake)
        (void)transport_notify_poll(fs->transport, wake); /* it asks again, and reads the error */
}

static unsigned object_poll(struct fs *fs, uint64_t node, struct handle *handle, uint64_t fh)
{
    (void)fh;
    (void)handle;
    struct object_info info;
    errint_t error = store_info(fs->store, node_number(node), &info);
    if (error)
        return POLLERR | POLLHUP | POLLIN;
    if (info.state == OBJECT_PENDING)
        return 0;
    return info.state == OBJECT_READY ? POLLIN | POLLRDNORM : POLLIN | POLLRDNORM | POLLERR;
}

/* --- extended attributes --- */

static const char *const own_xattrs[] = {"state",  "tier", "owner", "nodes",   "refs",
                                         "sha256", "job",  "error", "holders", "place"};

static errint_t text_copy(const char *text, char **out)
{
    *out = strdup(text);
    return *out ? 0 : -ENOMEM;
}

static errint_t holders_text(struct fs *fs, const struct object_info *info, char **text)
{
    errint_t error = store_holders(fs->store, info->number, text);
    return error ? error : jobs_holders(fs->jobs, &info->id, text);
}

static errint_t own_xattr(struct fs *fs, const struct object_info *info, const char *name,
                          char **text)
{
    static const char *const states[] = {"pending", "ready", "failed"};
    static const char *const tiers[] = {"none", "inline", "memory", "disk"};
    char digits[MOB_ID_STRING_BYTES];
    *text = NULL;
    if (!strcmp(name, "state"))
        return text_copy(states[info->state], text);
    if (!strcmp(name, "tier"))
        return info->state == OBJECT_READY ? text_copy(tiers[info->tier], text) : -ENODATA;
    if (!strcmp(name, "owner") || !strcmp(name, "nodes")) {
        mob_id_format(&info->id, digits)[16] = '\0';
        return text_copy(digits, text);
    }
    if (!strcmp(name, "job")) {
        if (mob_id_index(&info->id) == MOB_INDEX_JOB)
            return -ENODATA;
        struct mob_id job = mob_id_with_index(&info->id, MOB_INDEX_JOB);
        return text_copy(mob_id_format(&job, digits), text);
    }
    if (!strcmp(name, "error")) {
        errint_t error = store_failure(fs->store, info->number, text);
        return error == -ENOENT ? -ENODATA : error;
    }
    if (!strcmp(name, "refs")) {
        size_t bytes;
        return store_refs(fs->store, info->number, text, &bytes);
    }
    if (!strcmp(name, "place")) {
        errint_t error = store_place(fs->store, info->number, text);
        return error == -ENOENT ? -ENODATA : error;
    }
    if (!strcmp(name, "holders"))
        return holders_text(fs, info, text);
    if (!strcmp(name, "sha256")) {
        char digest[65];
        if (info->state != OBJECT_READY)
            return info->state == OBJECT_PENDING ? -EAGAIN : info->failure;
        errint_t error = store_sha256(fs->store, info->number, digest);
        return error ? error : text_copy(digest, text);
    }
    return -ENODATA;
}

static ssize_t object_xattr_get(struct fs *fs, uint64_t node, const char *name, void *value,
                                size_t bytes)
{
    static const char prefix[] = "user.mobula.";
    struct object_info info;
    errint_t error = store_info(fs->store, node_number(node), &info);
    if (error)
        return error;
    if (strncmp(name, prefix, sizeof prefix - 1))
        return store_xattr_get(fs->store, info.number, name, value, bytes);
    cleanup_free char *text = NULL;
    error = own_xattr(fs, &info, name + sizeof prefix - 1, &text);
    if (error)
        return error;
    return xattr_value(text, text ? strlen(text) : 0, value, bytes);
}

static ssize_t object_xattr_list(struct fs *fs, uint64_t node, char *list, size_t bytes)
{
    char own[MOB_ARRAY_LENGTH(own_xattrs) * 32];
    size_t used = 0;
    struct object_info info;
    errint_t error = store_info(fs->store, node_number(node), &info);
    if (error)
        return error;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(own_xattrs); i++) {
        const char *name = own_xattrs[i];
        cleanup_free char *sentence = NULL;
        if ((!strcmp(name, "error") && store_failure(fs->store, info.number, &sentence)) ||
            (!strcmp(name, "place") && !info.file) ||
            (!strcmp(name, "job") && mob_id_index(&info.id) == MOB_INDEX_JOB) ||
            (!strcmp(name, "sha256") && info.state != OBJECT_READY) ||
            (!strcmp(name, "tier") && info.state != OBJECT_READY))
            continue;
        used += (size_t)snprintf(own + used, sizeof own - used, "user.mobula.%s", name) + 1;
    }
    ssize_t others = store_xattr_list(fs->store, info.number, bytes > used ? list + used : NULL,
                                      bytes > used ? bytes - used : 0);
    if (others < 0)
        return others;
    if (bytes == 0)
        return (ssize_t)used + others;
    if (bytes < used + (size_t)others)
        return -ERANGE;
    memcpy(list, own, used);
    return (ssize_t)used + others;
}

const struct node_operations object_operations = {
    .attributes = object_attributes,
    .open = object_open,
    .read = object_read_op,
    .release = object_release,
    .poll = object_poll,
    .xattr_get = object_xattr_get,
    .xattr_list = object_xattr_list,
};

/* --- links to objects, in staging/ and in jobs/ --- */

static errint_t link_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    struct object_info info;
    errint_t error = store_info(fs->store, node_number(node), &info);
    if (error)
        return error;
    size_t length = 3 * (size_t)node_auxiliary(node) + strlen("objects/") + MOB_ID_DIGITS;
    stat_fill(out, node, S_IFLNK | 0777, info.uid, info.gid, length, info.mtime_ns);
    /* A link keeps the inode number of the file that it was: tar looks whether the file that it
     * made is still the same before it replaces it. */
    if (info.staged)
        out->st_ino = node_id(NODE_STAGED, 0, info.staged);
    *timeout = TIMEOUT_FOREVER;
    return 0;
}

static errint_t link_target(struct fs *fs, uint64_t node, char **target)
{
    struct object_info info;
    errint_t error = store_info(fs->store, node_number(node), &info);
    return error ? error : link_text(node_auxiliary(node), "objects", &info.id, target);
}

/* rsync, tar and touch -h set times and modes of what they made. A link has none of its own: times
 * are taken and forgotten (mtime is the commit's), anything that would change somebody's rights is
 * refused. */
static void link_set_attributes(fuse_req_t request, uint64_t node, struct stat *wanted, int valid,
                                struct fuse_file_info *file)
{
    (void)file;
    struct stat st;
    double timeout;
    errint_t error = node_operations(node)->attributes(fs_of(request), node, &st, &timeout);
    if (!error && (((valid & FUSE_SET_ATTR_UID) && wanted->st_uid != st.st_uid) ||
                   ((valid & FUSE_SET_ATTR_GID) && wanted->st_gid != st.st_gid) ||
                   (valid & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_SIZE))))
        error = -EPERM;
    if (error)
        fuse_reply_err(request, -error);
    else
        fuse_reply_attr(request, &st, TIMEOUT_FOREVER);
}

const struct node_operations object_link_operations = {
    .attributes = link_attributes,
    .link_target = link_target,
    .set_attributes = link_set_attributes,
};

static errint_t job_link_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    struct job_info info;
    errint_t error = jobs_info(fs->jobs, node_number(node), &info);
    if (error)
        return error;
    size_t length = 3 * (size_t)node_auxiliary(node) + strlen("jobs/") + MOB_ID_DIGITS;
    stat_fill(out, node, S_IFLNK | 0777, info.uid, info.gid, length, info.submitted_ns);
    *timeout = TIMEOUT_FOREVER;
    return 0;
}

static errint_t job_link_target(struct fs *fs, uint64_t node, char **target)
{
    struct job_info info;
    errint_t error = jobs_info(fs->jobs, node_number(node), &info);
    return error ? error : link_text(node_auxiliary(node), "jobs", &info.id, target);
}

const struct node_operations job_link_operations = {
    .attributes = job_link_attributes,
    .link_target = job_link_target,
    .set_attributes = link_set_attributes,
};
