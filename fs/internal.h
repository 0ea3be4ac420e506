/* What the files of fs/ share: the context, replies, and one interface a kind of node.
 *
 * Lock order: struct staged_state's mutex or one of prefill.c's, then the store's own. Replies are
 * sent with no lock held but where a comment says why. */
#ifndef MOBULA_FS_INTERNAL_H
#define MOBULA_FS_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/job/job.h"
#include "core/store/names.h"
#include "core/store/staged.h"
#include "core/store/store.h"
#include "fs/backing.h"
#include "fs/fs.h"
#include "fs/handles.h"
#include "fs/known.h"
#include "fs/node.h"
#include "fs/prefill.h"
#include "fs/transport.h"
#include "fs/waiting.h"

/* Kernel flags that libfuse 3.14 does not name. */
#define OPEN_DIRECT_IO (1u << 0)
#define OPEN_KEEP_CACHE (1u << 1)
#define OPEN_NOFLUSH (1u << 5)

/* For what never changes unless the kernel is told: an immutable object, a directory entry. */
#define TIMEOUT_FOREVER 31536000.0

enum fs_operation {
    OP_LOOKUP,
    OP_GETATTR,
    OP_SETATTR,
    OP_READLINK,
    OP_MKNOD,
    OP_MKDIR,
    OP_UNLINK,
    OP_RMDIR,
    OP_SYMLINK,
    OP_RENAME,
    OP_LINK,
    OP_OPEN,
    OP_READ,
    OP_WRITE,
    OP_FLUSH,
    OP_RELEASE,
    OP_FSYNC,
    OP_OPENDIR,
    OP_READDIR,
    OP_RELEASEDIR,
    OP_FSYNCDIR,
    OP_STATFS,
    OP_SETXATTR,
    OP_GETXATTR,
    OP_LISTXATTR,
    OP_REMOVEXATTR,
    OP_CREATE,
    OP_FALLOCATE,
    OP_POLL,
    OP_COUNT,
};
extern const char *const fs_operation_names[OP_COUNT];

struct staging; /* staging.c: which staged files are open */
struct slow;    /* slow.c */

struct fs {
    struct fs_identity identity;
    struct session *session;
    struct transport *transport;
    struct store *store;
    struct jobs *jobs;
    struct handles *handles;
    struct backing *backing;
    struct waiting *waiting;
    struct known *known;
    struct prefill *prefill;
    struct staging *staging;
    struct slow *slow;   /* one thread */
    struct slow *syncs;  /* several: they wait for the disk together */
    struct slow *writes; /* likewise: staging_late.c */
    struct slow *reads;  /* likewise: reads.c */
    struct slow *sums;   /* two: SHA-256 of objects, wherever they are */
    uint64_t started_ns;
    uint64_t started_wall_ns;
    uid_t uid;
    gid_t gid;
    char id[17]; /* this node's name under nodes/ */
    uint64_t operations[OP_COUNT];
};

static inline struct fs *fs_of(fuse_req_t request)
{
    return fuse_req_userdata(request);
}

/* What a directory hands out of its entries. */
typedef bool list_emit(void *context, const char *name, uint64_t node, mode_t type,
                       uint64_t next_offset);

/* One kind of node. Those left out give the error of an object that can't do it (see tree.c). Each
 * replies to the request, now or later. */
struct node_operations {
    void (*lookup)(fuse_req_t request, uint64_t parent, const char *name);
    /* 0 or a negative errno; *timeout is 0 unless it is set. */
    errint_t (*attributes)(struct fs *fs, uint64_t node, struct stat *out, double *timeout);
    void (*set_attributes)(fuse_req_t request, uint64_t node, struct stat *wanted, int valid,
                           struct fuse_file_info *file);
    void (*open)(fuse_req_t request, uint64_t node, struct fuse_file_info *file);
    void (*read)(fuse_req_t request, uint64_t node, size_t bytes, uint64_t offset, uint64_t fh);
    void (*write)(fuse_req_t request, uint64_t node, const char *data, size_t bytes,
                  uint64_t offset, uint64_t fh);
    void (*flush)(fuse_req_t request, uint64_t node, uint64_t fh);
    /* True: the caller frees the handle afterwards. */
    bool (*release)(struct fs *fs, uint64_t node, struct handle *handle, uint64_t fh);
    /* Emits entries from `offset` until `emit` returns false. */
    errint_t (*list)(struct fs *fs, uint64_t node, uint64_t offset, list_emit *emit, void *context);
    /* A new string. */
    errint_t (*link_target)(struct fs *fs, uint64_t node, char **target);
    ssize_t (*xattr_get)(struct fs *fs, uint64_t node, const char *name, void *value, size_t bytes);
    ssize_t (*xattr_list)(struct fs *fs, uint64_t node, char *list, size_t bytes);
    unsigned (*poll)(struct fs *fs, uint64_t node, struct handle *handle, uint64_t fh);
};
/* NULL for what can't be a node of ours. */
const struct node_operations *node_operations(uint64_t node);

extern const struct node_operations fixed_operations, object_operations, object_link_operations,
    job_link_operations, directory_operations, staged_operations, symlink_operations,
    job_operations, job_file_operations, job_output_operations;

/* The libfuse table (ops.c). */
extern const struct fuse_lowlevel_ops fs_operations;

/* --- replies.c: what several kinds need --- */

void reply_entry(fuse_req_t request, uint64_t node, const struct stat *st, double entry_timeout,
                 double attribute_timeout);
/* As reply_entry(), with the node's own attributes. */
void reply_node(fuse_req_t request, uint64_t node, double entry_timeout);
void reply_attributes(fuse_req_t request, uint64_t node);
/* Drops the kernel's copy of the node's attributes, if it may have one. It takes no lock in the
 * kernel that a request of ours may hold, so any thread may do it. */
void forget_attributes(struct fs *fs, uint64_t node);
/* SETATTR's `valid` as NAMES_SET_* bits, and the time that it asks for. */
unsigned wanted_fields(const struct stat *wanted, int valid, uint64_t *mtime_ns);
/* Answers a read from text, cut to `offset` and `bytes`. */
void reply_text(fuse_req_t request, const char *text, size_t text_bytes, size_t bytes,
                uint64_t offset);
/* Makes a handle for a file that needs nothing else, and answers the open. */
void reply_plain_open(fuse_req_t request, uint64_t node, struct fuse_file_info *file,
                      uint32_t open_flags);
/* A thread's own buffer of at least `bytes` (at most 1 MiB is asked for); NULL = out of memory. */
char *reply_buffer(size_t bytes);
/* Answers a read: with `got` bytes of the buffer, NULL = out of memory, or with an error. */
void reply_read(fuse_req_t request, const char *buffer, ssize_t got);
void stat_fill(struct stat *st, uint64_t node, mode_t mode, uid_t uid, gid_t gid, uint64_t size,
               uint64_t mtime_ns);
/* "../../objects/ID" */
errint_t link_text(unsigned depth, const char *directory, const struct mob_id *id, char **target);
/* Value of an xattr call from text: its length, copied if `bytes` allows. -ERANGE. */
ssize_t xattr_value(const void *text, size_t text_bytes, void *value, size_t bytes);

/* --- reads.c --- */

struct read_call;
/* Reads into `buffer`, which has room for call->bytes: as pread(2), or a negative errno. */
typedef ssize_t read_function(struct fs *fs, const struct read_call *call, char *buffer);

/* A READ of what may be on disk. */
struct read_call {
    fuse_req_t request;
    read_function *wait; /* may wait for the disk; on a thread of its own */
    uint64_t number;
    size_t bytes;
    uint64_t offset, fh;
    struct mob_id object; /* jobs.c */
    int fd;               /* closed after the reply; -1: none */
};
/* Answers it: with what `now` gives, which must not wait; or, if that is -EAGAIN, later. */
void read_now_or_later(const struct read_call *call, read_function *now);
void read_later(const struct read_call *call);

/* --- objects.c --- */
/* Goes on with an open that waited: the object is ready or failed. */
void object_open_continue(struct fs *fs, struct parked *parked, enum object_state state);
/* READs of an object's bytes through the server: also for jobs' stdout. */
void object_read(fuse_req_t request, uint64_t number, size_t bytes, uint64_t offset, uint64_t fh);
/* A read_function of a ready object that may wait. */
ssize_t object_read_wait(struct fs *fs, const struct read_call *call, char *buffer);
void fs_object_changed(void *context, uint64_t number);
void fs_object_freed(void *context, uint64_t number, const struct mob_id *id);
void object_poll_again(struct fs *fs, uint64_t fh, struct handle *handle);

/* --- staging.c, staging_finish.c --- */
MOB_MUST_CHECK errint_t staging_open(struct staging **out);
/* Ends its thread; what was to be tried again is marked as closed, and is for the next server. */
void staging_stop(struct staging *staging);
void staging_close(struct staging *staging);
/* The file system calls of directories that staged files take part in. */
void staging_create(fuse_req_t request, uint64_t parent, const char *name, mode_t mode,
                    struct fuse_file_info *file);
/* As staged_allocate(), and answers. */
void staging_allocate(fuse_req_t request, uint64_t number, int mode, uint64_t offset,
                      uint64_t bytes);
/* A handle that lives on from an earlier server. */
void staging_adopt(struct fs *fs, const struct handle *handle);
/* After all were adopted: finishes what is closed already; discards it if `discard`. */
void staging_settle(struct fs *fs, bool discard);
/* Is the staged file closed by all its writers, its release on the way? Then commits it and returns
 * true; the name must be looked up again. Else, if *wait_ns is not 0, the caller should wait so
 * long for the release (without passthrough), or for the commit, which needs the disk. */
bool staging_finish_if_closed(struct fs *fs, uint64_t number, uint64_t *wait_ns);
/* Finishes what is closed and waits for its release, so that a listing shows it (256 files at
 * most). */
void staging_finish_closed(struct fs *fs);
/* Sees to it that look-ups which wait for a release do not wait for long. */
void staging_start_timer(struct fs *fs);
/* A look-up that waited for a release is answered (directory.c). */
void directory_lookup_continue(struct parked *parked);

/* --- jobs.c --- */
void job_open_continue(struct fs *fs, struct parked *parked);
void job_poll_again(struct fs *fs, uint64_t fh, struct handle *handle);
void fs_job_gone(void *context, uint64_t number, const struct mob_id *id);

/* --- nodes.c, metrics.c --- */
/* The text of a file of nodes/ID, or of metrics or README: a new string. */
MOB_MUST_CHECK errint_t node_file_text(struct fs *fs, unsigned file, char **text, size_t *bytes);
MOB_MUST_CHECK errint_t metrics_text(struct fs *fs, char **text, size_t *bytes);
const char *node_file_name(unsigned file); /* NULL past the end */

/* --- slow.c: threads for what takes long --- */
/* Up to `threads` of them, and no more than 8, each called `name` (a literal); `urgent`: with the
 * priority of who gives them work. -ENOMEM. */
MOB_MUST_CHECK errint_t slow_open(const char *name, unsigned threads, bool urgent,
                                  struct slow **out);
void slow_close(struct slow *slow);
/* Runs function(argument) on one of them. False: out of memory. */
bool slow_run(struct slow *slow, void (*function)(void *argument), void *argument);

/* --- sync.c --- */
/* Answers an fsync of any node, later. */
void sync_node(fuse_req_t request, uint64_t node);

/* --- parking, ops.c --- */
/* Says where requests will be parked, before there is any other thread. */
void park_in(struct fs *fs);
/* Parks the request that is being handled (an open of an object has been counted, and stays so)
 * until the object or job ends, a signal comes, or it goes. */
void park(fuse_req_t request, enum waiting_kind kind, uint64_t node, uint64_t number,
          uint32_t open_flags);
/* The same for a request that was parked, and is taken out; *parked is copied. From any thread. */
void park_again(struct fs *fs, const struct parked *parked);

#endif
