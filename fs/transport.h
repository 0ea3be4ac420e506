/* Transport: how FUSE requests reach the server and how replies go back.
 *
 * Two ways behind one interface: FUSE over io_uring (a queue and a pinned thread a possible core;
 * kernel 6.14+ with the module parameter enable_uring), and /dev/fuse with a cloned, pinned
 * descriptor a core. Decoding is libfuse's (fuse_session_process_buf); replies are made with
 * libfuse's fuse_reply_* from any thread, at once or later ("parked"): a parked request keeps its
 * ring entry, and the transport registers more as requests park.
 *
 * It also carries a mount over the death of its server: see fs/session.h. A request that the dead
 * server had taken and not answered is handled again by the successor; one whose reply was already
 * written is never handled twice. */
#ifndef MOBULA_FS_TRANSPORT_H
#define MOBULA_FS_TRANSPORT_H

#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "fs/session.h"

struct transport;

/* What a program that serves must know:
 * - A thread of the server must not wait for its own mount: killed while it waits, the process
 * cannot die, and no successor comes. Leave that to another process.
 * - transport_serve() takes SIGRTMIN + 3 for itself, to end read(2) in its threads, and may have a
 *   child for a moment (which sends no SIGCHLD).
 * - A request that waits counts for the kernel's fs.fuse.default_request_timeout (6.14+), which
 * must be 0, as it is unless somebody set it. */

enum transport_kind { TRANSPORT_AUTO, TRANSPORT_RING, TRANSPORT_DEVICE };

/* --- mounting: the keeper's part --- */

struct mount_options {
    const char *mountpoint; /* absolute */
    const char *source;     /* shown in mountinfo, e.g. "mobula"; the type is fuse.mobula */
    bool allow_other;       /* root: always; a user: only if /etc/fuse.conf allows */
};

/* Opens /dev/fuse and mounts: mount(2) as root, fusermount3 otherwise. *fd is the connection; it
 * must stay open in the keeper for as long as the mount is to live. Sentences in `err` say what to
 * do (no /dev/fuse, mountpoint missing or busy or not a directory, fusermount3 missing, ...).
 * Blocks. */
MOB_MUST_CHECK errint_t transport_mount(const struct mount_options *options, int *fd,
                                        struct mob_error *err);

/* Unmounts (umount2 MNT_DETACH when `lazy`), by fusermount3 -u when not root. */
MOB_MUST_CHECK errint_t transport_unmount(const char *mountpoint, bool lazy, struct mob_error *err);

/* Answers everything with EIO until the mount goes, and what servers left in the ring of the
 * session that they shared: what the keeper runs when no server can be started, so that nobody
 * hangs. Returns when the connection is gone. Starts threads, so not in a keeper that means to fork
 * again. */
MOB_MUST_CHECK errint_t transport_refuse_session(int fd, struct session *session,
                                                 struct mob_error *err);

/* --- serving: the server's part --- */

struct transport_options {
    int fd;                  /* the connection, kept open by the caller */
    struct session *session; /* the keeper's */
    enum transport_kind kind;
    bool want_passthrough;
    bool idle_polling;        /* see fs/wakeups.h */
    unsigned ring_depth;      /* entries a queue to start with; 0 = default */
    uint32_t max_write_bytes; /* 0 = 1 MiB */
};

/* Makes the libfuse session over `fd` (fuse_session_custom_io), with `ops` and `context`
 * (fuse_req_userdata). Nothing is served yet. */
MOB_MUST_CHECK errint_t transport_create(const struct transport_options *options,
                                         const struct fuse_lowlevel_ops *ops, size_t ops_bytes,
                                         void *context, struct transport **out,
                                         struct mob_error *err);

/* Answers INIT (or replays the saved one), so that transport_passthrough() is known before anything
 * is served; waits for the mount's INIT. Once; transport_serve() does it if it was not done.
 * -ECANCELED: stopped meanwhile. */
MOB_MUST_CHECK errint_t transport_negotiate(struct transport *transport, struct mob_error *err);

/* Serves until the mount goes or transport_stop() is called; blocks. 0, or a negative errno. After
 * it returns no op is running and none will be called. */
MOB_MUST_CHECK errint_t transport_serve(struct transport *transport, struct mob_error *err);

/* Asks transport_serve() to return. Any thread, and from a signal handler. */
void transport_stop(struct transport *transport);
void transport_destroy(struct transport *transport);

/* What was chosen and why, known once INIT was answered ("io_uring, 2 queues" / "device, 2 threads:
 * enable_uring is off"). The string lives as long as the transport. */
enum transport_kind transport_kind(const struct transport *transport);
const char *transport_describe(const struct transport *transport);
/* True once the kernel has agreed to passthrough. */
bool transport_passthrough(const struct transport *transport);

/* True if the kernel may be given content by transport_store(); also known once INIT was answered.
 */
bool transport_can_store(const struct transport *transport);

/* --- inside an op, on the thread that libfuse called it on --- */

/* The raw request that is being handled: fuse_in_header and what follows, as in <linux/fuse.h> of
 * the running kernel's protocol. Valid until the op returns. NULL outside an op. */
const void *transport_current_request(size_t *bytes);
/* Its `unique` without the resend bit: the same for the same request in every server that handles
 * it. */
uint64_t transport_current_unique(void);
/* True if an earlier server may already have handled this request. */
bool transport_current_is_resent(void);

/* --- notifications and passthrough; any thread, not blocking on the mount --- */

/* Invalidates attributes (offset < 0), or attributes and cached pages. -ENOENT (the kernel does not
 * know it) is returned as 0. */
errint_t transport_invalidate_inode(struct transport *transport, uint64_t nodeid, int64_t offset,
                                    int64_t bytes);
/* Puts the whole content of a file into the kernel's cache. Waits for pages that are locked, by a
 * READ for example: the caller must know that none is on its way. -ENOENT: the kernel does not know
 * the file; -ENOMEM, ... */
errint_t transport_store(struct transport *transport, uint64_t nodeid, const void *content,
                         size_t bytes);
/* Wakes pollers: `poll_handle` is fuse_poll_in.kh of the POLL request (read it from
 * transport_current_request(), so that it can be kept in session memory). */
errint_t transport_notify_poll(struct transport *transport, uint64_t poll_handle);

/* Registers `fd` for passthrough; returns the backing ID (> 0) or a negative errno. The kernel
 * opens its own file from it with each opener's flags, so `fd` may be O_RDONLY and closed
 * afterwards. */
int transport_backing_open(struct transport *transport, int fd);
errint_t transport_backing_close(struct transport *transport, int backing_id);

/* fuse_reply_open/create with a backing ID (> 0: FOPEN_PASSTHROUGH is added to `open_flags`, else
 * they go as they are). `open_flags` are the kernel's FOPEN_*. libfuse 3.14 has no field for the
 * backing ID, so the reply is made raw. */
int transport_reply_open(fuse_req_t request, uint64_t handle, uint32_t open_flags, int backing_id);
int transport_reply_create(fuse_req_t request, const struct fuse_entry_param *entry,
                           uint64_t handle, uint32_t open_flags, int backing_id);

/* Counters since this server began. */
struct transport_counters {
    uint64_t ring_requests;
    uint64_t device_requests;
    uint64_t parked; /* now */
    uint64_t ring_entries;
    uint64_t taken_over;
};
void transport_count(const struct transport *transport, struct transport_counters *out);

#endif
