/* staging/ and run/ and the directories below them: names, and what changes them. */
#include "fs/directory.h"

#include <errno.h>
#include <string.h>

#include "fs/internal.h"

static uint64_t entry_node(struct fs *fs, const struct name_info *info)
{
    struct job_info job;
    switch (info->type) {
    case NAME_DIRECTORY:
        return node_id(NODE_DIRECTORY, 0, info->number);
    case NAME_STAGED:
        return node_id(NODE_STAGED, 0, info->number);
    case NAME_OBJECT:
        return node_id(NODE_OBJECT_LINK, info->depth, info->number);
    case NAME_SYMLINK:
        return node_id(NODE_SYMLINK, 0, info->number);
    case NAME_JOB:
        if (jobs_find(fs->jobs, &info->target, &job))
            return 0;
        return node_id(NODE_JOB_LINK, info->depth, job.number);
    }
    return 0;
}

/* Names of directories only change through the kernel, so it may keep them. Links and staged files
 * are asked for each time: a staged file becomes a link behind the kernel's back, and a link's text
 * depends on where its directory is. */
static void reply_name(fuse_req_t request, const struct name_info *info)
{
    uint64_t node = entry_node(fs_of(request), info);
    if (!node)
        fuse_reply_err(request, ENOENT);
    else
        reply_node(request, node, info->type == NAME_DIRECTORY ? TIMEOUT_FOREVER : 0);
}

/* Finds a name; a staged file that is closed already is finished first. The caller may have to wait
 * for that: *wait_ns says how long. */
static errint_t find(struct fs *fs, uint64_t directory, const char *name, struct name_info *info,
                     uint64_t *wait_ns)
{
    for (int tries = 0; tries < 3; tries++) {
        errint_t error = names_find(fs->store, directory, name, info);
        *wait_ns = 0;
        if (error || info->type != NAME_STAGED ||
            !staging_finish_if_closed(fs, info->number, wait_ns))
            return error;
    }
    return 0;
}

static void directory_lookup(fuse_req_t request, uint64_t parent, const char *name)
{
    struct fs *fs = fs_of(request);
    struct name_info info;
    uint64_t wait_ns;
    errint_t error = find(fs, node_number(parent), name, &info, &wait_ns);
    if (error) {
        fuse_reply_err(request, -error);
        return;
    }
    struct parked parked = {
        .request = request,
        .kind = WAITING_RELEASE,
        .node = parent,
        .number = info.number,
        .deadline_ns = mob_monotonic_ns() + wait_ns,
        .name = wait_ns ? strdup(name) : NULL,
    };
    uint64_t id;
    if (!parked.name || waiting_add(fs->waiting, &parked, &id)) {
        free(parked.name);
        reply_name(request, &info);
        return;
    }
    staging_start_timer(fs);
    /* The release may have come in between; whoever takes the look-up out answers it. */
    if (!find(fs, node_number(parent), name, &info, &wait_ns) && !wait_ns &&
        waiting_take(fs->waiting, id, &parked))
        directory_lookup_continue(&parked);
}

void directory_lookup_continue(struct parked *parked)
{
    struct name_info info;
    errint_t error =
        names_find(fs_of(parked->request)->store, node_number(parked->node), parked->name, &info);
    if (error)
        fuse_reply_err(parked->request, -error);
    else
        reply_name(parked->request, &info);
    free(parked->name);
}

static errint_t directory_attributes(struct fs *fs, uint64_t node, struct stat *out,
                                     double *timeout)
{
    struct name_info info;
    errint_t error = names_directory(fs->store, node_number(node), &info);
    if (error)
        return error == -ENOENT ? -ESTALE : error;
    stat_fill(out, node, info.mode, info.uid, info.gid, 0, info.mtime_ns);
    out->st_nlink = info.links;
    *timeout = TIMEOUT_FOREVER; /* the kernel itself forgets times and counts when it changes one */
    return 0;
}

static void directory_set_attributes(fuse_req_t request, uint64_t node, struct stat *wanted,
                                     int valid, struct fuse_file_info *file)
{
    (void)file;
    struct name_info info;
    uint64_t mtime_ns;
    unsigned set = wanted_fields(wanted, valid, &mtime_ns);
    errint_t error =
        names_set_directory(fs_of(request)->store, node_number(node), set, wanted->st_mode,
                            wanted->st_uid, wanted->st_gid, mtime_ns, &info);
    if (error)
        fuse_reply_err(request, -error);
    else
        reply_attributes(request, node);
}

static errint_t directory_list(struct fs *fs, uint64_t node, uint64_t offset, list_emit *emit,
                               void *context)
{
    static const mode_t types[] = {
        [NAME_DIRECTORY] = S_IFDIR, [NAME_STAGED] = S_IFREG,  [NAME_OBJECT] = S_IFLNK,
        [NAME_JOB] = S_IFLNK,       [NAME_SYMLINK] = S_IFLNK,
    };
    enum { BATCH = 64 };
    if (offset == 0) /* what has been closed is listed as what it is now */
        staging_finish_closed(fs);
    struct name_entry *entries = malloc(sizeof *entries * BATCH);
    if (!entries)
        return -ENOMEM;
    ssize_t got;
    bool more = true;
    while (more && (got = names_list(fs->store, node_number(node), offset, entries, BATCH)) > 0)
        for (ssize_t i = 0; more && i < got; i++) {
            uint64_t child = entry_node(fs, &entries[i].info);
            if (child)
                more = emit(context, entries[i].name, child, types[entries[i].info.type],
                            entries[i].cursor);
            offset = entries[i].cursor;
        }
    free(entries);
    return more && got < 0 ? (errint_t)got : 0;
}

const struct node_operations directory_operations = {
    .lookup = directory_lookup,
    .attributes = directory_attributes,
    .set_attributes = directory_set_attributes,
    .list = directory_list,
};

/* --- plain symbolic links --- */

static errint_t symlink_target(struct fs *fs, uint64_t node, char **target)
{
    return names_symlink_text(fs->store, node_number(node), target);
}

static errint_t symlink_attributes(struct fs *fs, uint64_t node, struct stat *out, double *timeout)
{
    cleanup_free char *text = NULL;
    errint_t error = names_symlink_text(fs->store, node_number(node), &text);
    if (error)
        return error;
    stat_fill(out, node, S_IFLNK | 0777, fs->uid, fs->gid, strlen(text), fs->started_wall_ns);
    *timeout = TIMEOUT_FOREVER;
    return 0;
}

static void symlink_set_attributes(fuse_req_t request, uint64_t node, struct stat *wanted,
                                   int valid, struct fuse_file_info *file)
{
    (void)wanted;
    (void)file;
    /* Owner and times of a plain link are not kept (mobula-fs(7)). */
    if (valid & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_SIZE))
        fuse_reply_err(request, EOPNOTSUPP);
    else
        reply_attributes(request, node);
}

const struct node_operations symlink_operations = {
    .attributes = symlink_attributes,
    .link_target = symlink_target,
    .set_attributes = symlink_set_attributes,
};

/* --- what changes a directory ---
 *
 * A request may be carried out, its server killed before the reply, and the request sent to the
 * successor: which then finds the work done, and says so instead of failing. */

static bool done_before(errint_t error, errint_t expected)
{
    return error == expected && transport_current_is_resent();
}

static void forget_job(struct fs *fs, bool was_job, const struct mob_id *job)
{
    if (was_job)
        jobs_name_dropped(fs->jobs, job);
}

void directory_mkdir(fuse_req_t request, uint64_t parent, const char *name, mode_t mode)
{
    struct fs *fs = fs_of(request);
    const struct fuse_ctx *context = fuse_req_ctx(request);
    struct name_info info;
    errint_t error = names_make_directory(fs->store, node_number(parent), name, mode & 07777,
                                          context->uid, context->gid, &info);
    if (done_before(error, -EEXIST))
        error = names_find(fs->store, node_number(parent), name, &info);
    if (error)
        fuse_reply_err(request, -error);
    else
        reply_name(request, &info);
}

void directory_unlink(fuse_req_t request, uint64_t parent, const char *name)
{
    struct fs *fs = fs_of(request);
    struct name_info info;
    struct mob_id job;
    bool was_job = false;
    uint64_t wait_ns;
    /* rm of what has just been closed removes the object, not the staged file under it. */
    errint_t error = find(fs, node_number(parent), name, &info, &wait_ns);
    if (!error)
        error = names_unlink(fs->store, node_number(parent), name, &was_job, &job);
    if (!error)
        forget_job(fs, was_job, &job);
    fuse_reply_err(request, done_before(error, -ENOENT) ? 0 : -error);
}

void directory_rmdir(fuse_req_t request, uint64_t parent, const char *name)
{
    errint_t error = names_remove_directory(fs_of(request)->store, node_number(parent), name);
    fuse_reply_err(request, done_before(error, -ENOENT) ? 0 : -error);
}

/* Another name for a job holds it, as one for an object does. */
static errint_t link_job(struct fs *fs, uint64_t directory, const char *name,
                         const struct mob_id *job, const struct fuse_ctx *who,
                         struct name_info *info)
{
    errint_t error = names_link_job(fs->store, directory, name, job, who->uid, who->gid, info);
    if (!error)
        jobs_name_added(fs->jobs, job);
    return error;
}

/* A name of another store: mv(1) from there would make a link that leads nowhere, and remove the
 * name there, which frees the object. */
static bool is_name_elsewhere(const struct fs *fs, const char *text, const struct mob_id *id)
{
    char tail[MOB_ID_STRING_BYTES + 16], digits[MOB_ID_STRING_BYTES];
    mob_id_format(id, digits);
    if (!strncmp(digits, fs->id, sizeof fs->id - 1))
        return false;
    for (const char *const *root = (const char *const[]){"objects", "jobs", NULL}; *root; root++) {
        int length = snprintf(tail, sizeof tail, "../%s/%s", *root, digits);
        if (strlen(text) >= (size_t)length && !strcmp(text + strlen(text) - length, tail))
            return true;
    }
    return false;
}

void directory_symlink(fuse_req_t request, const char *text, uint64_t parent, const char *name)
{
    struct fs *fs = fs_of(request);
    const struct fuse_ctx *who = fuse_req_ctx(request);
    const char *slash = strrchr(text, '/'), *last = slash ? slash + 1 : text;
    uint64_t directory = node_number(parent);
    struct name_info info;
    struct object_info object;
    struct job_info job;
    struct mob_id id;
    bool is_id = mob_id_parse(last, strlen(last), &id);
    errint_t error;
    if (is_id && !store_find(fs->store, &id, &object))
        error = names_link_object(fs->store, directory, name, &id, who->uid, who->gid, &info);
    else if (is_id && !jobs_find(fs->jobs, &id, &job))
        error = link_job(fs, directory, name, &id, who, &info);
    else if (is_id && is_name_elsewhere(fs, text, &id))
        error = -EXDEV;
    else
        error = names_make_symlink(fs->store, directory, name, text, who->uid, who->gid, &info);
    if (done_before(error, -EEXIST))
        error = names_find(fs->store, directory, name, &info);
    if (error)
        fuse_reply_err(request, -error);
    else
        reply_name(request, &info);
}

void directory_link(fuse_req_t request, uint64_t node, uint64_t parent, const char *name)
{
    struct fs *fs = fs_of(request);
    const struct fuse_ctx *who = fuse_req_ctx(request);
    enum node_kind kind = node_kind(node);
    struct object_info object;
    struct job_info job;
    struct name_info info;
    errint_t error = -EPERM;
    if (kind == NODE_OBJECT || kind == NODE_OBJECT_LINK) {
        error = store_info(fs->store, node_number(node), &object);
        if (!error)
            error = names_link_object(fs->store, node_number(parent), name, &object.id, who->uid,
                                      who->gid, &info);
    } else if (kind == NODE_JOB_LINK) {
        error = jobs_info(fs->jobs, node_number(node), &job);
        if (!error)
            error = link_job(fs, node_number(parent), name, &job.id, who, &info);
    }
    if (done_before(error, -EEXIST))
        error = names_find(fs->store, node_number(parent), name, &info);
    if (error)
        fuse_reply_err(request, -error);
    else if (kind ==
             NODE_OBJECT) /* the kernel wants the inode it named; the next look-up gives the link */
        reply_node(request, node, 0);
    else
        reply_name(request, &info);
}

void directory_rename(fuse_req_t request, uint64_t parent, const char *name, uint64_t new_parent,
                      const char *new_name, unsigned flags)
{
    struct fs *fs = fs_of(request);
    struct name_info info;
    struct mob_id job;
    bool replaced_job = false;
    uint64_t wait_ns;
    /* What is closed becomes what it will be before it moves, or before it is replaced. */
    errint_t error = find(fs, node_number(parent), name, &info, &wait_ns);
    if (!error) {
        (void)find(fs, node_number(new_parent), new_name, &info, &wait_ns);
        error = names_rename(fs->store, node_number(parent), name, node_number(new_parent),
                             new_name, flags, &replaced_job, &job);
    }
    if (!error)
        forget_job(fs, replaced_job, &job);
    if (done_before(error, -ENOENT) &&
        names_find(fs->store, node_number(new_parent), new_name, &info) == 0)
        error = 0;
    fuse_reply_err(request, -error);
}
