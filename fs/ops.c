/* Requests: libfuse's table. Each is counted, its node decoded, and given to the node's kind. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <string.h>
#include <sys/statvfs.h>

#include "fs/directory.h"
#include "fs/internal.h"

const char *const fs_operation_names[OP_COUNT] = {
    "LOOKUP",    "GETATTR",     "SETATTR",  "READLINK",  "MKNOD",    "MKDIR",
    "UNLINK",    "RMDIR",       "SYMLINK",  "RENAME",    "LINK",     "OPEN",
    "READ",      "WRITE",       "FLUSH",    "RELEASE",   "FSYNC",    "OPENDIR",
    "READDIR",   "RELEASEDIR",  "FSYNCDIR", "STATFS",    "SETXATTR", "GETXATTR",
    "LISTXATTR", "REMOVEXATTR", "CREATE",   "FALLOCATE", "POLL"};

const struct node_operations *node_operations(uint64_t node)
{
    static const struct node_operations *const kinds[NODE_KINDS] = {
        [NODE_FIXED] = &fixed_operations,
        [NODE_OBJECT] = &object_operations,
        [NODE_OBJECT_LINK] = &object_link_operations,
        [NODE_JOB_LINK] = &job_link_operations,
        [NODE_DIRECTORY] = &directory_operations,
        [NODE_STAGED] = &staged_operations,
        [NODE_SYMLINK] = &symlink_operations,
        [NODE_JOB] = &job_operations,
        [NODE_JOB_FILE] = &job_file_operations,
        [NODE_JOB_OUTPUT] = &job_output_operations,
    };
    enum node_kind kind = node_kind(node);
    return kind < NODE_KINDS ? kinds[kind] : NULL;
}

/* Counts the request and finds its kind; answers ESTALE for a node that can't be ours. */
static const struct node_operations *begin(fuse_req_t request, enum fs_operation operation,
                                           uint64_t node)
{
    static const struct node_operations nothing;
    /* Relaxed: a counter that nothing is ordered by. */
    __atomic_fetch_add(&fs_of(request)->operations[operation], 1, __ATOMIC_RELAXED);
    const struct node_operations *found = node_operations(node);
    return found ? found : &nothing;
}

static void op_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    const struct node_operations *kind = begin(request, OP_LOOKUP, parent);
    if (kind->lookup)
        kind->lookup(request, parent, name);
    else
        fuse_reply_err(request, ENOTDIR);
}

static void op_getattr(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file)
{
    (void)file;
    if (begin(request, OP_GETATTR, node)->attributes)
        reply_attributes(request, node);
    else
        fuse_reply_err(request, ESTALE);
}

static void op_setattr(fuse_req_t request, fuse_ino_t node, struct stat *wanted, int valid,
                       struct fuse_file_info *file)
{
    const struct node_operations *kind = begin(request, OP_SETATTR, node);
    if (kind->set_attributes)
        kind->set_attributes(request, node, wanted, valid, file);
    else
        fuse_reply_err(request, EPERM);
}

static void op_readlink(fuse_req_t request, fuse_ino_t node)
{
    const struct node_operations *kind = begin(request, OP_READLINK, node);
    cleanup_free char *target = NULL;
    errint_t error = kind->link_target ? kind->link_target(fs_of(request), node, &target) : -EINVAL;
    if (error)
        fuse_reply_err(request, -error);
    else
        fuse_reply_readlink(request, target);
}

/* Whether the directory is one that users change: staging/, run/ and below. */
static bool changeable(fuse_req_t request, enum fs_operation operation, uint64_t parent)
{
    begin(request, operation, parent);
    if (node_kind(parent) == NODE_DIRECTORY)
        return true;
    fuse_reply_err(request, EPERM);
    return false;
}

static void op_mknod(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode,
                     dev_t dev)
{
    (void)name;
    (void)mode;
    (void)dev;
    if (changeable(request, OP_MKNOD, parent))
        fuse_reply_err(request, EPERM); /* no devices, sockets or pipes here */
}

static void op_mkdir(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode)
{
    if (changeable(request, OP_MKDIR, parent))
        directory_mkdir(request, parent, name, mode);
}

static void op_unlink(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    if (changeable(request, OP_UNLINK, parent))
        directory_unlink(request, parent, name);
}

static void op_rmdir(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    if (changeable(request, OP_RMDIR, parent))
        directory_rmdir(request, parent, name);
}

static void op_symlink(fuse_req_t request, const char *text, fuse_ino_t parent, const char *name)
{
    if (changeable(request, OP_SYMLINK, parent))
        directory_symlink(request, text, parent, name);
}

static void op_rename(fuse_req_t request, fuse_ino_t parent, const char *name,
                      fuse_ino_t new_parent, const char *new_name, unsigned flags)
{
    if (!changeable(request, OP_RENAME, parent))
        return;
    if (node_kind(new_parent) != NODE_DIRECTORY)
        fuse_reply_err(request, EPERM);
    else
        directory_rename(request, parent, name, new_parent, new_name, flags);
}

static void op_link(fuse_req_t request, fuse_ino_t node, fuse_ino_t parent, const char *name)
{
    if (changeable(request, OP_LINK, parent))
        directory_link(request, node, parent, name);
}

static void op_create(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *file)
{
    if (changeable(request, OP_CREATE, parent))
        staging_create(request, parent, name, mode, file);
}

static void op_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file)
{
    const struct node_operations *kind = begin(request, OP_OPEN, node);
    if (kind->open)
        kind->open(request, node, file);
    else
        fuse_reply_err(request, EPERM);
}

static void op_read(fuse_req_t request, fuse_ino_t node, size_t bytes, off_t offset,
                    struct fuse_file_info *file)
{
    const struct node_operations *kind = begin(request, OP_READ, node);
    if (kind->read)
        kind->read(request, node, bytes, (uint64_t)offset, file->fh);
    else
        fuse_reply_err(request, EBADF);
}

static void op_write(fuse_req_t request, fuse_ino_t node, const char *data, size_t bytes,
                     off_t offset, struct fuse_file_info *file)
{
    const struct node_operations *kind = begin(request, OP_WRITE, node);
    if (kind->write)
        kind->write(request, node, data, bytes, (uint64_t)offset, file->fh);
    else
        fuse_reply_err(request, EPERM);
}

static void op_flush(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file)
{
    const struct node_operations *kind = begin(request, OP_FLUSH, node);
    if (kind->flush)
        kind->flush(request, node, file->fh);
    else
        fuse_reply_err(request, 0);
}

static void op_release(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file)
{
    const struct node_operations *kind = begin(request, OP_RELEASE, node);
    struct fs *fs = fs_of(request);
    struct handle *handle = handles_get(fs->handles, file->fh);
    if (handle && handle->node == node && !(handle->flags & HANDLE_RELEASED))
        if (!kind->release || kind->release(fs, node, handle, file->fh))
            handles_free(fs->handles, file->fh);
    fuse_reply_err(request, 0);
}

static void op_fsync(fuse_req_t request, fuse_ino_t node, int data_only,
                     struct fuse_file_info *file)
{
    (void)data_only;
    (void)file;
    begin(request, OP_FSYNC, node);
    sync_node(request, node);
}

static void op_opendir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file)
{
    const struct node_operations *kind = begin(request, OP_OPENDIR, node);
    if (kind->list)
        fuse_reply_open(request, file);
    else
        fuse_reply_err(request, ENOTDIR);
}

struct listing {
    fuse_req_t request;
    char *buffer;
    size_t bytes, used;
};

/* Offsets 1 and 2 are those after "." and ".."; a directory's own begin after them. */
static bool add_entry(void *context, const char *name, uint64_t node, mode_t type,
                      uint64_t next_offset)
{
    struct listing *listing = context;
    struct stat st = {.st_ino = node, .st_mode = type};
    size_t needed =
        fuse_add_direntry(listing->request, listing->buffer + listing->used,
                          listing->bytes - listing->used, name, &st, (off_t)(next_offset + 2));
    if (needed > listing->bytes - listing->used)
        return false;
    listing->used += needed;
    return true;
}

static void op_readdir(fuse_req_t request, fuse_ino_t node, size_t bytes, off_t offset,
                       struct fuse_file_info *file)
{
    (void)file;
    const struct node_operations *kind = begin(request, OP_READDIR, node);
    struct listing listing = {request, reply_buffer(bytes), bytes, 0};
    errint_t error = !kind->list ? -ENOTDIR : listing.buffer ? 0 : -ENOMEM;
    /* next_offset of the dots: add_entry adds 2. */
    bool more = true;
    if (!error && offset < 1)
        more = add_entry(&listing, ".", node, S_IFDIR, (uint64_t)-1);
    if (!error && more && offset < 2)
        more = add_entry(&listing, "..", FUSE_ROOT_ID, S_IFDIR, 0);
    if (!error && more)
        error = kind->list(fs_of(request), node, offset > 2 ? (uint64_t)offset - 2 : 0, add_entry,
                           &listing);
    if (error)
        fuse_reply_err(request, -error);
    else
        fuse_reply_buf(request, listing.buffer, listing.used);
}

static void op_releasedir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file)
{
    (void)file;
    begin(request, OP_RELEASEDIR, node);
    fuse_reply_err(request, 0);
}

static void op_fsyncdir(fuse_req_t request, fuse_ino_t node, int data_only,
                        struct fuse_file_info *file)
{
    (void)data_only;
    (void)file;
    begin(request, OP_FSYNCDIR, node);
    sync_node(request, node);
}

static void op_statfs(fuse_req_t request, fuse_ino_t node)
{
    begin(request, OP_STATFS, node);
    struct store_usage usage;
    store_usage(fs_of(request)->store, &usage);
    uint64_t used =
        usage.memory_used_bytes < usage.memory_bytes ? usage.memory_used_bytes : usage.memory_bytes;
    uint64_t whole = usage.memory_bytes + usage.disk_bytes;
    uint64_t free_bytes = usage.memory_bytes - used + usage.disk_free_bytes;
    struct statvfs st = {
        .f_bsize = 4096,
        .f_frsize = 4096,
        .f_blocks = whole / 4096,
        .f_bfree = free_bytes / 4096,
        .f_bavail = free_bytes / 4096,
        .f_files = usage.objects_ready + (UINT64_C(1) << 30),
        .f_ffree = UINT64_C(1) << 30,
        .f_favail = UINT64_C(1) << 30,
        .f_namemax = NAMES_LENGTH_LIMIT,
    };
    fuse_reply_statfs(request, &st);
}

static void op_setxattr(fuse_req_t request, fuse_ino_t node, const char *name, const char *value,
                        size_t bytes, int flags)
{
    begin(request, OP_SETXATTR, node);
    struct mob_error err = {0};
    errint_t error = -EOPNOTSUPP;
    if (node_kind(node) == NODE_STAGED)
        error = staged_xattr_set(fs_of(request)->store, node_number(node), name, value, bytes,
                                 flags, &err);
    else if (node_kind(node) == NODE_OBJECT)
        error = -EPERM;
    if (error == -EINVAL)
        mob_log_info("setxattr %s refused: %s", name, err.message);
    if (error == -EEXIST && transport_current_is_resent())
        error = 0;
    fuse_reply_err(request, -error);
}

static void op_removexattr(fuse_req_t request, fuse_ino_t node, const char *name)
{
    begin(request, OP_REMOVEXATTR, node);
    errint_t error = -EOPNOTSUPP;
    if (node_kind(node) == NODE_STAGED)
        error = staged_xattr_remove(fs_of(request)->store, node_number(node), name);
    else if (node_kind(node) == NODE_OBJECT)
        error = -EPERM;
    if (error == -ENODATA && transport_current_is_resent())
        error = 0;
    fuse_reply_err(request, -error);
}

/* --- reading extended attributes; those that take long, on the slow thread --- */

struct xattr_call {
    fuse_req_t request;
    uint64_t node;
    size_t bytes;
    char *name; /* NULL: list them */
};

static void xattr_answer(void *argument)
{
    struct xattr_call *call = argument;
    struct fs *fs = fs_of(call->request);
    const struct node_operations *kind = node_operations(call->node);
    char *value = call->bytes ? malloc(call->bytes) : NULL;
    ssize_t got = -ENOMEM;
    if (value || !call->bytes)
        got = call->name ? kind->xattr_get(fs, call->node, call->name, value, call->bytes)
                         : kind->xattr_list(fs, call->node, value, call->bytes);
    if (got < 0)
        fuse_reply_err(call->request, (int)-got);
    else if (!call->bytes)
        fuse_reply_xattr(call->request, (size_t)got);
    else
        fuse_reply_buf(call->request, value, (size_t)got);
    free(value);
    free(call->name);
    free(call);
}

/* NULL: it takes no time. */
static struct slow *slow_for(const struct fs *fs, const char *name)
{
    if (!strcmp(name, "user.mobula.sha256"))
        return fs->sums;
    return !strcmp(name, "user.mobula.holders") ? fs->slow : NULL;
}

static void op_getxattr(fuse_req_t request, fuse_ino_t node, const char *name, size_t bytes)
{
    const struct node_operations *kind = begin(request, OP_GETXATTR, node);
    if (!kind->xattr_get || strncmp(name, "user.", 5)) {
        fuse_reply_err(request, strncmp(name, "user.", 5) ? EOPNOTSUPP : ENODATA);
        return;
    }
    struct xattr_call *call = malloc(sizeof *call);
    char *copy = strdup(name);
    if (!call || !copy) {
        free(call);
        free(copy);
        fuse_reply_err(request, ENOMEM);
        return;
    }
    *call = (struct xattr_call){request, node, bytes, copy};
    struct slow *slow = slow_for(fs_of(request), name);
    if (!slow || !slow_run(slow, xattr_answer, call))
        xattr_answer(call);
}

static void op_listxattr(fuse_req_t request, fuse_ino_t node, size_t bytes)
{
    const struct node_operations *kind = begin(request, OP_LISTXATTR, node);
    struct xattr_call *call = kind->xattr_list ? malloc(sizeof *call) : NULL;
    if (!kind->xattr_list) {
        if (bytes)
            fuse_reply_buf(request, NULL, 0);
        else
            fuse_reply_xattr(request, 0);
    } else if (!call) {
        fuse_reply_err(request, ENOMEM);
    } else {
        *call = (struct xattr_call){request, node, bytes, NULL};
        xattr_answer(call);
    }
}

static void op_fallocate(fuse_req_t request, fuse_ino_t node, int mode, off_t offset, off_t bytes,
                         struct fuse_file_info *file)
{
    (void)file;
    begin(request, OP_FALLOCATE, node);
    if (node_kind(node) == NODE_STAGED)
        staging_allocate(request, node_number(node), mode, (uint64_t)offset, (uint64_t)bytes);
    else
        fuse_reply_err(request, EPERM);
}

static void op_poll(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *file,
                    struct fuse_pollhandle *poll_handle)
{
    const struct node_operations *kind = begin(request, OP_POLL, node);
    struct fs *fs = fs_of(request);
    struct handle *handle = handles_get(fs->handles, file->fh);
    unsigned ready = POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM;
    if (poll_handle) /* its number is kept in session memory instead */
        fuse_pollhandle_destroy(poll_handle);
    if (kind->poll && handle) {
        ready = kind->poll(fs, node, handle, file->fh);
        size_t bytes = 0;
        const struct fuse_in_header *header = transport_current_request(&bytes);
        const struct fuse_poll_in *in = (const void *)(header + 1);
        if (!ready && header && bytes >= sizeof *header + sizeof *in &&
            (in->flags & FUSE_POLL_SCHEDULE_NOTIFY)) {
            bool armed = __atomic_exchange_n(&handle->poll_handle, in->kh, __ATOMIC_ACQ_REL) != 0;
            if (!armed && node_kind(node) == NODE_OBJECT)
                object_poll_again(fs, file->fh, handle);
            else if (!armed)
                job_poll_again(fs, file->fh, handle);
            ready = kind->poll(fs, node, handle, file->fh); /* it may just have become ready */
        }
    }
    fuse_reply_poll(request, ready);
}

/* --- parking --- */

static void give_up(struct fs *fs, const struct parked *parked, int error)
{
    if (parked->kind == WAITING_OBJECT)
        store_open_dropped(fs->store, parked->number);
    fuse_reply_err(parked->request, error);
}

static void interrupted(fuse_req_t request, void *argument)
{
    struct fs *fs = fs_of(request);
    struct parked parked;
    if (!waiting_take(fs->waiting, (uint64_t)(uintptr_t)argument, &parked))
        return;
    if (parked.token && parked.kind == WAITING_OBJECT)
        store_wait_cancel(fs->store, parked.number, parked.token);
    else if (parked.token)
        jobs_wait_cancel(fs->jobs, parked.number, parked.token);
    give_up(fs, &parked, EINTR);
}

/* The callbacks carry the parked request's ID only: a server has one fs. */
static struct fs *the_fs;

void park_in(struct fs *fs)
{
    the_fs = fs;
}

static void object_ended(void *argument, uint64_t number, enum object_state state)
{
    struct parked parked;
    (void)number;
    if (waiting_take(the_fs->waiting, (uint64_t)(uintptr_t)argument, &parked))
        object_open_continue(the_fs, &parked, state);
}

static void job_ended(void *argument, uint64_t number, enum job_state state)
{
    struct parked parked;
    (void)number;
    (void)state;
    if (waiting_take(the_fs->waiting, (uint64_t)(uintptr_t)argument, &parked))
        job_open_continue(the_fs, &parked);
}

void park(fuse_req_t request, enum waiting_kind kind, uint64_t node, uint64_t number,
          uint32_t open_flags)
{
    struct parked parked = {
        .request = request,
        .kind = kind,
        .node = node,
        .number = number,
        .unique = transport_current_unique(),
        .open_flags = open_flags,
        .pid = (uint32_t)fuse_req_ctx(request)->pid,
    };
    park_again(fs_of(request), &parked);
}

void park_again(struct fs *fs, const struct parked *again)
{
    struct parked parked = *again;
    uint64_t id, token = 0;
    parked.token = 0;
    parked.tries++;
    if (waiting_add(fs->waiting, &parked, &id)) {
        give_up(fs, &parked, ENOMEM);
        return;
    }
    /* First the signal, then the event: from here on either may take it out, and answer it. */
    void *argument = (void *)(uintptr_t)id;
    fuse_req_interrupt_func(parked.request, interrupted, argument);
    errint_t error = parked.kind == WAITING_OBJECT
                         ? store_fetch(fs->store, parked.number, object_ended, argument, &token)
                         : jobs_wait(fs->jobs, parked.number, job_ended, argument, &token);
    if (error && waiting_take(fs->waiting, id, &parked))
        give_up(fs, &parked, -error);
    if (error || waiting_set_token(fs->waiting, id, token))
        return;
    if (again->kind == WAITING_OBJECT)
        store_wait_cancel(fs->store, again->number, token);
    else
        jobs_wait_cancel(fs->jobs, again->number, token);
}

const struct fuse_lowlevel_ops fs_operations = {
    .lookup = op_lookup,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .readlink = op_readlink,
    .mknod = op_mknod,
    .mkdir = op_mkdir,
    .unlink = op_unlink,
    .rmdir = op_rmdir,
    .symlink = op_symlink,
    .rename = op_rename,
    .link = op_link,
    .open = op_open,
    .read = op_read,
    .write = op_write,
    .flush = op_flush,
    .release = op_release,
    .fsync = op_fsync,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .releasedir = op_releasedir,
    .fsyncdir = op_fsyncdir,
    .statfs = op_statfs,
    .setxattr = op_setxattr,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .removexattr = op_removexattr,
    .create = op_create,
    .fallocate = op_fallocate,
    .poll = op_poll,
};
