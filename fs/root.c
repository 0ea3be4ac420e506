/* What is always there: the root, objects/, jobs/, actors/, nodes/ID, README, metrics. */
#include <errno.h>
#include <string.h>

#include "fs/internal.h"

struct fixed_entry {
    const char *name;
    uint64_t node;
    mode_t mode;
};

/* staging/ and run/ are directories of names, with numbers of their own. */
static const struct fixed_entry root_entries[] = {
    {"README", FIXED_README, S_IFREG | 0444},
    {"objects", FIXED_OBJECTS, S_IFDIR | 0755},
    {"staging", (uint64_t)NODE_DIRECTORY << 58 | NAMES_STAGING, S_IFDIR},
    {"run", (uint64_t)NODE_DIRECTORY << 58 | NAMES_RUN, S_IFDIR},
    {"jobs", FIXED_JOBS, S_IFDIR | 0755},
    {"actors", FIXED_ACTORS, S_IFDIR | 0755},
    {"nodes", FIXED_NODES, S_IFDIR | 0755},
    {"metrics", FIXED_METRICS, S_IFREG | 0444},
};

static errint_t fixed_text(struct fs *fs, uint64_t number, char **text, size_t *bytes)
{
    if (number == FIXED_METRICS)
        return metrics_text(fs, text, bytes);
    return node_file_text(fs, number == FIXED_README ? 0 : (unsigned)(number - FIXED_NODE_FILE),
                          text, bytes);
}

static bool is_file(uint64_t number)
{
    return number == FIXED_README || number == FIXED_METRICS || number >= FIXED_NODE_FILE;
}

static errint_t fixed_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    uint64_t number = node_number(node);
    if (!is_file(number)) {
        if (number < FIXED_ROOT || number > FIXED_NODE)
            return -ENOENT;
        stat_fill(out, node, S_IFDIR | 0755, fs->uid, fs->gid, 0, fs->started_wall_ns);
        *timeout = TIMEOUT_FOREVER;
        return 0;
    }
    cleanup_free char *text = NULL;
    size_t bytes = 0;
    errint_t error = fixed_text(fs, number, &text, &bytes);
    if (error)
        return error;
    stat_fill(out, node, S_IFREG | 0444, fs->uid, fs->gid, bytes,
              number == FIXED_README ? fs->started_wall_ns : mob_realtime_ns());
    return 0;
}

static void lookup_object(fuse_req_t request, const char *name)
{
    struct fs *fs = fs_of(request);
    struct object_info info;
    struct mob_id id;
    if (!mob_id_parse(name, strlen(name), &id) || store_find(fs->store, &id, &info)) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    uint64_t node = node_id(NODE_OBJECT, 0, info.number);
    prefill_looked_up(fs->prefill, node);
    reply_node(request, node, TIMEOUT_FOREVER);
}

static void lookup_job(fuse_req_t request, const char *name)
{
    struct fs *fs = fs_of(request);
    struct job_info info;
    struct mob_id id;
    if (!mob_id_parse(name, strlen(name), &id) || jobs_find(fs->jobs, &id, &info)) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    uint64_t node = node_id(NODE_JOB, 0, info.number);
    known_mark(fs->known, node);
    reply_node(request, node, TIMEOUT_FOREVER);
}

static void fixed_lookup(fuse_req_t request, uint64_t parent, const char *name)
{
    struct fs *fs = fs_of(request);
    switch (node_number(parent)) {
    case FIXED_ROOT:
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(root_entries); i++)
            if (!strcmp(name, root_entries[i].name)) {
                reply_node(request, root_entries[i].node, TIMEOUT_FOREVER);
                return;
            }
        break;
    case FIXED_OBJECTS:
        lookup_object(request, name);
        return;
    case FIXED_JOBS:
        lookup_job(request, name);
        return;
    case FIXED_NODES:
        if (!strcmp(name, fs->id)) {
            reply_node(request, FIXED_NODE, TIMEOUT_FOREVER);
            return;
        }
        break;
    case FIXED_NODE:
        for (unsigned i = 1; node_file_name(i); i++)
            if (!strcmp(name, node_file_name(i))) {
                reply_node(request, FIXED_NODE_FILE + i, TIMEOUT_FOREVER);
                return;
            }
        break;
    default:
        break;
    }
    fuse_reply_err(request, ENOENT);
}

static void fixed_open(fuse_req_t request, uint64_t node, struct fuse_file_info *file)
{
    if ((file->flags & O_ACCMODE) != O_RDONLY)
        fuse_reply_err(request, EPERM);
    else
        reply_plain_open(request, node, file, OPEN_DIRECT_IO | OPEN_NOFLUSH);
}

static void fixed_read(fuse_req_t request, uint64_t node, size_t bytes, uint64_t offset,
                       uint64_t fh)
{
    (void)fh;
    cleanup_free char *text = NULL;
    size_t text_bytes = 0;
    errint_t error = fixed_text(fs_of(request), node_number(node), &text, &text_bytes);
    if (error)
        fuse_reply_err(request, -error);
    else
        reply_text(request, text, text_bytes, bytes, offset);
}

static errint_t list_objects(struct fs *fs, uint64_t offset, list_emit *emit, void *context)
{
    enum { BATCH = 128 };
    if (offset == 0)
        staging_finish_closed(fs);
    struct object_info objects[BATCH];
    uint64_t cursors[BATCH];
    char name[MOB_ID_STRING_BYTES];
    size_t got;
    while ((got = store_list_cursors(fs->store, offset, objects, cursors, BATCH)) > 0)
        for (size_t i = 0; i < got; i++) {
            offset = cursors[i];
            if (!emit(context, mob_id_format(&objects[i].id, name),
                      node_id(NODE_OBJECT, 0, objects[i].number), S_IFREG, offset))
                return 0;
        }
    return 0;
}

static errint_t list_jobs(struct fs *fs, uint64_t offset, list_emit *emit, void *context)
{
    enum { BATCH = 64 };
    if (offset == 0)
        staging_finish_closed(fs);
    struct job_info jobs[BATCH];
    uint64_t cursors[BATCH];
    char name[MOB_ID_STRING_BYTES];
    size_t got;
    while ((got = jobs_list(fs->jobs, offset, jobs, cursors, BATCH)) > 0)
        for (size_t i = 0; i < got; i++) {
            offset = cursors[i];
            if (!emit(context, mob_id_format(&jobs[i].id, name),
                      node_id(NODE_JOB, 0, jobs[i].number), S_IFDIR, offset))
                return 0;
        }
    return 0;
}

static errint_t fixed_list(struct fs *fs, uint64_t node, uint64_t offset, list_emit *emit,
                           void *context)
{
    switch (node_number(node)) {
    case FIXED_ROOT:
        for (size_t i = offset; i < MOB_ARRAY_LENGTH(root_entries); i++)
            if (!emit(context, root_entries[i].name, root_entries[i].node,
                      root_entries[i].mode & S_IFMT, i + 1))
                break;
        return 0;
    case FIXED_OBJECTS:
        return list_objects(fs, offset, emit, context);
    case FIXED_JOBS:
        return list_jobs(fs, offset, emit, context);
    case FIXED_NODES:
        if (offset == 0)
            emit(context, fs->id, FIXED_NODE, S_IFDIR, 1);
        return 0;
    case FIXED_NODE:
        for (unsigned i = (unsigned)offset + 1; node_file_name(i); i++)
            if (!emit(context, node_file_name(i), FIXED_NODE_FILE + i, S_IFREG, i))
                break;
        return 0;
    case FIXED_ACTORS:
        return 0;
    default:
        return -ENOTDIR;
    }
}

const struct node_operations fixed_operations = {
    .lookup = fixed_lookup,
    .attributes = fixed_attributes,
    .open = fixed_open,
    .read = fixed_read,
    .list = fixed_list,
};
