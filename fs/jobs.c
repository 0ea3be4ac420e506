/* jobs/ID: what a job is and how it goes, as files. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fs/internal.h"

enum job_node_file {
    FILE_SPEC,
    FILE_STATE,
    FILE_NODE,
    FILE_STDOUT,
    FILE_STDERR,
    FILE_EXIT_CODE,
    FILE_RESULT,
    FILE_OUTPUTS,
    FILE_ERROR,
    FILE_USAGE,
    FILE_CTL,
    FILE_COUNT,
};

static const char *const file_names[FILE_COUNT] = {"spec",   "state",     "node",   "stdout",
                                                   "stderr", "exit_code", "result", "outputs",
                                                   "error",  "usage",     "ctl"};

static mode_t file_type(unsigned file)
{
    return file == FILE_RESULT ? S_IFLNK : file == FILE_OUTPUTS ? S_IFDIR : S_IFREG;
}

/* The core's name of a file that is text; false for the others. */
static bool text_file(unsigned file, enum job_file *out)
{
    switch (file) {
    case FILE_SPEC:
        *out = JOB_FILE_SPEC;
        return true;
    case FILE_STATE:
        *out = JOB_FILE_STATE;
        return true;
    case FILE_NODE:
        *out = JOB_FILE_NODE;
        return true;
    case FILE_EXIT_CODE:
        *out = JOB_FILE_EXIT_CODE;
        return true;
    case FILE_ERROR:
        *out = JOB_FILE_ERROR;
        return true;
    case FILE_USAGE:
        *out = JOB_FILE_USAGE;
        return true;
    default:
        return false;
    }
}

static bool file_exists(const struct job_info *info, unsigned file)
{
    return file != FILE_RESULT || info->has_result;
}

void fs_job_gone(void *context, uint64_t number, const struct mob_id *id)
{
    (void)id;
    forget_attributes(context, node_id(NODE_JOB, 0, number));
}

/* --- the directory --- */

static errint_t job_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    struct job_info info;
    errint_t error = jobs_info(fs->jobs, node_number(node), &info);
    if (error)
        return error;
    uint64_t changed = info.ended_ns ? info.ended_ns : info.started_ns;
    stat_fill(out, node, S_IFDIR | 0755, info.uid, info.gid, 0,
              changed ? changed : info.submitted_ns);
    out->st_nlink = 3;
    *timeout = job_state_is_end(info.state) ? TIMEOUT_FOREVER : 1;
    return 0;
}

static void job_lookup(fuse_req_t request, uint64_t parent, const char *name)
{
    struct job_info info;
    errint_t error = jobs_info(fs_of(request)->jobs, node_number(parent), &info);
    for (unsigned file = 0; !error && file < FILE_COUNT; file++)
        if (!strcmp(name, file_names[file]) && file_exists(&info, file)) {
            reply_node(request, node_id(NODE_JOB_FILE, file, info.number), TIMEOUT_FOREVER);
            return;
        }
    fuse_reply_err(request, error ? -error : ENOENT);
}

static errint_t job_list(struct fs *fs, uint64_t node, uint64_t offset, list_emit *emit,
                         void *context)
{
    struct job_info info;
    errint_t error = jobs_info(fs->jobs, node_number(node), &info);
    for (unsigned file = (unsigned)offset; !error && file < FILE_COUNT; file++)
        if (file_exists(&info, file) &&
            !emit(context, file_names[file], node_id(NODE_JOB_FILE, file, info.number),
                  file_type(file), file + 1))
            break;
    return error;
}

const struct node_operations job_operations = {
    .lookup = job_lookup,
    .attributes = job_attributes,
    .list = job_list,
};

/* --- the files --- */

static errint_t stream_attributes(struct fs *fs, const struct job_info *info, unsigned file,
                                  uint64_t *bytes, uint64_t *mtime_ns)
{
    return jobs_stream_size(fs->jobs, info->number, file == FILE_STDOUT ? 1 : 2, bytes, mtime_ns);
}

/* What was dropped in a private file, and what comes of it, is private: arguments, variables,
 * output. How the job stands is for all to see, as in ps(1). */
static mode_t file_mode(const struct job_info *info, unsigned file)
{
    bool private =
        file == FILE_SPEC || file == FILE_STDOUT || file == FILE_STDERR || file == FILE_ERROR;
    return S_IFREG | (0444 & ~(private ? info->umask : 0));
}

static errint_t job_file_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    unsigned file = node_auxiliary(node);
    struct job_info info;
    errint_t error = jobs_info(fs->jobs, node_number(node), &info);
    if (error)
        return error;
    uint64_t changed = info.ended_ns ? info.ended_ns : info.started_ns;
    changed = changed ? changed : info.submitted_ns;
    enum job_file text_kind;
    uint64_t bytes = 0;
    mode_t mode = file_mode(&info, file);
    if (file == FILE_CTL) {
        mode = S_IFREG | 0200;
    } else if (file == FILE_OUTPUTS) {
        mode = S_IFDIR | 0755;
    } else if (file == FILE_RESULT) {
        mode = S_IFLNK | 0777;
        bytes = strlen("../../objects/") + MOB_ID_DIGITS;
    } else if (file == FILE_STDOUT || file == FILE_STDERR) {
        error = stream_attributes(fs, &info, file, &bytes, &changed);
    } else if (text_file(file, &text_kind)) {
        cleanup_free char *text = NULL;
        size_t length = 0;
        error = jobs_text(fs->jobs, info.number, text_kind, &text, &length);
        bytes = length;
        if (error == -EAGAIN)
            error = 0; /* pending: no bytes yet */
    } else {
        error = -ENOENT;
    }
    if (error)
        return error;
    stat_fill(out, node, mode, info.uid, info.gid, bytes, changed);
    /* Nothing that can still change is cached. */
    *timeout =
        file == FILE_OUTPUTS || file == FILE_RESULT || file == FILE_CTL ? TIMEOUT_FOREVER : 0;
    return 0;
}

static void job_file_set_attributes(fuse_req_t request, uint64_t node, struct stat *wanted,
                                    int valid, struct fuse_file_info *file)
{
    (void)wanted;
    (void)file;
    /* `echo cancel > ctl` may truncate first. */
    if (node_auxiliary(node) == FILE_CTL && !(valid & ~FUSE_SET_ATTR_SIZE))
        reply_attributes(request, node);
    else
        fuse_reply_err(request, EPERM);
}

static bool is_pending(struct fs *fs, uint64_t node)
{
    unsigned file = node_auxiliary(node);
    struct job_info info;
    return (file == FILE_EXIT_CODE || file == FILE_USAGE) &&
           !jobs_info(fs->jobs, node_number(node), &info) && !job_state_is_end(info.state);
}

static void job_file_open(fuse_req_t request, uint64_t node, struct fuse_file_info *file)
{
    struct fs *fs = fs_of(request);
    bool writes = (file->flags & O_ACCMODE) != O_RDONLY;
    if (writes != (node_auxiliary(node) == FILE_CTL)) {
        fuse_reply_err(request, writes ? EPERM : EACCES);
        return;
    }
    struct job_info info;
    errint_t error = jobs_info(fs->jobs, node_number(node), &info);
    if (error)
        fuse_reply_err(request, -error);
    else if (is_pending(fs, node) && !(file->flags & O_NONBLOCK))
        park(request, WAITING_JOB, node, node_number(node), (uint32_t)file->flags);
    else
        reply_plain_open(request, node, file, OPEN_DIRECT_IO | OPEN_NOFLUSH);
}

void job_open_continue(struct fs *fs, struct parked *parked)
{
    struct handle *handle;
    uint64_t fh;
    bool existed;
    errint_t error = handles_new(fs->handles, parked->unique, true, parked->node, 0, parked->pid,
                                 &handle, &fh, &existed);
    if (error)
        fuse_reply_err(parked->request, -error);
    else
        transport_reply_open(parked->request, fh, OPEN_DIRECT_IO | OPEN_NOFLUSH, 0);
}

/* The object that the stream is to become in a moment, while the job ends. -EIO: it was lost. */
static errint_t wait_printed(struct fs *fs, const struct mob_id *id, struct object_info *info)
{
    enum { TRIES = 200, PAUSE_US = 5000 };
    for (unsigned i = 0; i < TRIES; i++) {
        errint_t error = store_find(fs->store, id, info);
        if (error != -ENOENT)
            return error;
        usleep(PAUSE_US);
    }
    return -EIO;
}

/* It may have gone to disk since the file of the job was opened. */
static ssize_t read_printed(struct fs *fs, const struct read_call *call, char *buffer)
{
    struct read_call found = *call;
    struct object_info info;
    errint_t error = wait_printed(fs, &call->object, &info);
    if (!error)
        error = store_opened(fs->store, info.number);
    if (error)
        return error == -ENOENT ? -EIO : error;
    found.number = info.number;
    error = store_verify(fs->store, info.number);
    ssize_t got = error ? error : object_read_wait(fs, &found, buffer);
    store_open_dropped(fs->store, info.number);
    return got == -ENOENT ? -EIO : got;
}

static ssize_t read_file(struct fs *fs, const struct read_call *call, char *buffer)
{
    (void)fs;
    return mob_pread_full(call->fd, buffer, call->bytes, (off_t)call->offset);
}

/* Of a job that runs: in memory, or on disk. */
static ssize_t read_file_now(struct fs *fs, const struct read_call *call, char *buffer)
{
    struct statfs where;
    struct stat info;
    if (fstatfs(call->fd, &where) || fstat(call->fd, &info))
        return -errno;
    if (where.f_type == TMPFS_MAGIC)
        return read_file(fs, call, buffer);
    return mob_pread_cached(call->fd, (uint64_t)info.st_size, buffer, call->bytes, call->offset);
}

static void read_stream(fuse_req_t request, uint64_t number, int which, size_t bytes,
                        uint64_t offset, uint64_t fh)
{
    struct fs *fs = fs_of(request);
    struct object_info info;
    struct read_call call = {
        .request = request, .bytes = bytes, .offset = offset, .fh = fh, .wait = read_file};
    call.fd = jobs_stream(fs->jobs, number, which, &call.object);
    if (call.fd >= 0) {
        (void)fcntl(call.fd, F_SETFL, O_NOATIME); /* to note the time may be to wait */
        read_now_or_later(&call, read_file_now);
        return;
    }
    call.wait = read_printed;
    if (call.fd != -EXDEV)
        fuse_reply_err(request, -call.fd);
    else if (store_find(fs->store, &call.object, &info) ||
             store_readable_now(fs->store, info.number))
        read_later(&call);
    else
        object_read(request, info.number, bytes, offset, fh);
}

static void job_file_read(fuse_req_t request, uint64_t node, size_t bytes, uint64_t offset,
                          uint64_t fh)
{
    unsigned file = node_auxiliary(node);
    enum job_file text_kind;
    if (file == FILE_STDOUT || file == FILE_STDERR) {
        read_stream(request, node_number(node), file == FILE_STDOUT ? 1 : 2, bytes, offset, fh);
        return;
    }
    cleanup_free char *text = NULL;
    size_t text_bytes = 0;
    errint_t error =
        text_file(file, &text_kind)
            ? jobs_text(fs_of(request)->jobs, node_number(node), text_kind, &text, &text_bytes)
            : -EACCES;
    if (error)
        fuse_reply_err(request, -error);
    else
        reply_text(request, text, text_bytes, bytes, offset);
}

static void job_file_write(fuse_req_t request, uint64_t node, const char *data, size_t bytes,
                           uint64_t offset, uint64_t fh)
{
    (void)offset;
    (void)fh;
    struct mob_error err = {0};
    errint_t error = node_auxiliary(node) == FILE_CTL
                         ? jobs_control(fs_of(request)->jobs, node_number(node),
                                        fuse_req_ctx(request)->uid, data, bytes, &err)
                         : -EPERM;
    if (error == -ESRCH && transport_current_is_resent())
        error = 0; /* carried out before the restart */
    if (error)
        fuse_reply_err(request, -error);
    else
        fuse_reply_write(request, bytes);
}

static bool job_file_release(struct fs *fs, uint64_t node, struct handle *handle, uint64_t fh)
{
    (void)fs;
    (void)node;
    (void)handle;
    (void)fh;
    return true;
}

static errint_t result_target(struct fs *fs, uint64_t node, char **target)
{
    struct job_info info;
    errint_t error = jobs_info(fs->jobs, node_number(node), &info);
    if (!error && (node_auxiliary(node) != FILE_RESULT || !info.has_result))
        error = -EINVAL;
    return error ? error : link_text(2, "objects", &info.result, target);
}

static void outputs_lookup(fuse_req_t request, uint64_t parent, const char *name)
{
    unsigned place;
    struct mob_id object;
    errint_t error =
        node_auxiliary(parent) == FILE_OUTPUTS
            ? jobs_find_output(fs_of(request)->jobs, node_number(parent), name, &place, &object)
            : -ENOTDIR;
    if (error)
        fuse_reply_err(request, -error);
    else
        reply_node(request, node_id(NODE_JOB_OUTPUT, place, node_number(parent)), TIMEOUT_FOREVER);
}

static errint_t outputs_list(struct fs *fs, uint64_t node, uint64_t offset, list_emit *emit,
                             void *context)
{
    char name[256];
    struct mob_id object;
    if (node_auxiliary(node) != FILE_OUTPUTS)
        return -ENOTDIR;
    for (unsigned place = (unsigned)offset;
         jobs_output(fs->jobs, node_number(node), place, name, &object) == 0; place++)
        if (!emit(context, name, node_id(NODE_JOB_OUTPUT, place, node_number(node)), S_IFLNK,
                  place + 1))
            break;
    return 0;
}

struct job_poller {
    struct fs *fs;
    uint64_t fh;
};

static void poll_ended(void *argument, uint64_t number, enum job_state state)
{
    struct job_poller *poller = argument;
    (void)number;
    (void)state;
    struct handle *handle = handles_get(poller->fs->handles, poller->fh);
    uint64_t wake = handle ? __atomic_exchange_n(&handle->poll_handle, 0, __ATOMIC_ACQ_REL) : 0;
    if (wake)
        (void)transport_notify_poll(poller->fs->transport, wake);
    free(poller);
}

void job_poll_again(struct fs *fs, uint64_t fh, struct handle *handle)
{
    struct job_poller *poller = malloc(sizeof *poller);
    uint64_t token;
    if (poller) {
        *poller = (struct job_poller){fs, fh};
        if (!jobs_wait(fs->jobs, node_number(handle->node), poll_ended, poller, &token))
            return;
        free(poller);
    }
    uint64_t wake = __atomic_exchange_n(&handle->poll_handle, 0, __ATOMIC_ACQ_REL);
    if (wake)
        (void)transport_notify_poll(fs->transport, wake);
}

static unsigned job_file_poll(struct fs *fs, uint64_t node, struct handle *handle, uint64_t fh)
{
    (void)handle;
    (void)fh;
    return is_pending(fs, node) ? 0 : POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM;
}

const struct node_operations job_file_operations = {
    .lookup = outputs_lookup,
    .attributes = job_file_attributes,
    .set_attributes = job_file_set_attributes,
    .open = job_file_open,
    .read = job_file_read,
    .write = job_file_write,
    .release = job_file_release,
    .list = outputs_list,
    .link_target = result_target,
    .poll = job_file_poll,
};

/* --- outputs/NAME --- */

static errint_t output_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    struct job_info info;
    errint_t error = jobs_info(fs->jobs, node_number(node), &info);
    if (error)
        return error;
    stat_fill(out, node, S_IFLNK | 0777, info.uid, info.gid,
              strlen("../../../objects/") + MOB_ID_DIGITS, info.submitted_ns);
    *timeout = TIMEOUT_FOREVER;
    return 0;
}

static errint_t output_target(struct fs *fs, uint64_t node, char **target)
{
    char name[256];
    struct mob_id object;
    errint_t error = jobs_output(fs->jobs, node_number(node), node_auxiliary(node), name, &object);
    return error ? error : link_text(3, "objects", &object, target);
}

const struct node_operations job_output_operations = {
    .attributes = output_attributes,
    .link_target = output_target,
};
