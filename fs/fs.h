/* The FUSE view: paths and requests become calls of core, core's events become kernel
 * notifications.
 *
 * It holds no state that core lacks, but for what belongs to the mount itself: which files are open
 * (handles.h), which requests wait (waiting.h), what is registered for passthrough (backing.h). */
#ifndef MOBULA_FS_FS_H
#define MOBULA_FS_FS_H

#include <stdbool.h>

#include "core/base/error.h"
#include "core/job/job.h"
#include "core/store/store.h"
#include "fs/session.h"
#include "fs/transport.h"

struct fs;

/* What nodes/ID/daemon shows of the process around the mount. Strings live as long as the fs. */
struct fs_identity {
    const char *node_name;
    const char *version;
    const char *state_dir;
    const char *memory_dir;
    const char *mountpoint;
    uint8_t owner[MOB_ID_OWNER_BYTES];
    int keeper_pid;
    double cpus;
};

struct fs_options {
    struct session *session;
    struct transport_options transport;
    struct fs_identity identity;
};

/* Bytes that fs needs in the session memory (session_create). */
size_t fs_session_bytes(void);

/* Makes the view without a store, so that its hooks can be given to store_open() and jobs_open().
 */
MOB_MUST_CHECK errint_t fs_create(const struct fs_options *options, struct fs **out,
                                  struct mob_error *err);
void fs_destroy(struct fs *fs);

/* Settles with the kernel what this mount can do, before the store is opened: *passthrough says
 * whether writers will have data files open themselves. Blocks for the mount's first request. */
MOB_MUST_CHECK errint_t fs_negotiate(struct fs *fs, bool *passthrough, struct mob_error *err);

/* The hooks for store_open() and jobs_open(). */
struct store_hooks fs_store_hooks(struct fs *fs);
struct jobs_hooks fs_jobs_hooks(struct fs *fs);

/* Gives it the opened store and jobs (both outlive the fs), and takes up the handles and staged
 * files that an earlier server of the same session left. Before store_collect(). */
MOB_MUST_CHECK errint_t fs_attach(struct fs *fs, struct store *store, struct jobs *jobs,
                                  struct mob_error *err);

/* Serves until the mount goes or fs_stop(). Blocks. */
MOB_MUST_CHECK errint_t fs_serve(struct fs *fs, struct mob_error *err);

/* After fs_serve(): ends the threads that call the store, so that it can be closed. */
void fs_detach(struct fs *fs);

/* From any thread and from signal handlers. */
void fs_stop(struct fs *fs);

#endif
