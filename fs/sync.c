/* fsync(2): what it makes durable depends on what it is called on. It waits for the disk, so some
 * threads do nothing else; all who wait at a time share one flush of the journal. */
#include <errno.h>
#include <string.h>

#include "fs/internal.h"

struct sync_call {
    fuse_req_t request;
    uint64_t node;
};

/* A directory of the mount itself stands for all that is in it: `sync MNT` is an fsync of that. In
 * staging/ and run/ it is as elsewhere: the names are durable. */
static errint_t sync_now(struct fs *fs, uint64_t node)
{
    struct mob_error err = {0};
    errint_t error;
    switch (node_kind(node)) {
    case NODE_STAGED:
        error = staged_sync(fs->store, node_number(node), &err);
        if (error == -ENOENT) /* it is an object by now, or nothing */
            error = store_sync_names(fs->store);
        break;
    case NODE_OBJECT:
        error = store_sync_object(fs->store, node_number(node));
        break;
    case NODE_FIXED:
        error = store_sync_all(fs->store);
        break;
    default:
        error = store_sync_names(fs->store);
    }
    if (error)
        mob_log_warning("fsync: %s", err.message[0] ? err.message : strerror(-error));
    return error;
}

static void sync_answer(void *argument)
{
    struct sync_call *call = argument;
    fuse_reply_err(call->request, -sync_now(fs_of(call->request), call->node));
    free(call);
}

void sync_node(fuse_req_t request, uint64_t node)
{
    struct sync_call *call = malloc(sizeof *call);
    if (!call) {
        fuse_reply_err(request, ENOMEM);
        return;
    }
    *call = (struct sync_call){request, node};
    if (!slow_run(fs_of(request)->syncs, sync_answer, call)) {
        free(call);
        fuse_reply_err(request, ENOMEM);
    }
}
