/* Replies that several kinds of nodes need. */
#include <string.h>

#include "fs/internal.h"

void stat_fill(struct stat *st, uint64_t node, mode_t mode, uid_t uid, gid_t gid, uint64_t size,
               uint64_t mtime_ns)
{
    memset(st, 0, sizeof *st);
    st->st_ino = node;
    st->st_mode = mode;
    st->st_nlink = S_ISDIR(mode) ? 2 : 1;
    st->st_uid = uid;
    st->st_gid = gid;
    st->st_size = (off_t)size;
    st->st_blocks = (blkcnt_t)((size + 511) / 512);
    st->st_blksize = 4096;
    st->st_mtim.tv_sec = (time_t)(mtime_ns / 1000000000u);
    st->st_mtim.tv_nsec = (long)(mtime_ns % 1000000000u);
    st->st_atim = st->st_ctim = st->st_mtim;
}

void reply_entry(fuse_req_t request, uint64_t node, const struct stat *st, double entry_timeout,
                 double attribute_timeout)
{
    struct fuse_entry_param entry = {
        .ino = node,
        .generation = 1,
        .attr = *st,
        .attr_timeout = attribute_timeout,
        .entry_timeout = entry_timeout,
    };
    fuse_reply_entry(request, &entry);
}

void forget_attributes(struct fs *fs, uint64_t node)
{
    if (fs->known && known_may_have(fs->known, node))
        (void)transport_invalidate_inode(fs->transport, node, -1, 0);
}

unsigned wanted_fields(const struct stat *wanted, int valid, uint64_t *mtime_ns)
{
    unsigned set = 0;
    *mtime_ns = 0;
    set |= valid & FUSE_SET_ATTR_MODE ? NAMES_SET_MODE : 0;
    set |= valid & FUSE_SET_ATTR_UID ? NAMES_SET_UID : 0;
    set |= valid & FUSE_SET_ATTR_GID ? NAMES_SET_GID : 0;
    if (valid & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) {
        set |= NAMES_SET_MTIME;
        *mtime_ns = valid & FUSE_SET_ATTR_MTIME_NOW
                        ? mob_realtime_ns()
                        : (uint64_t)wanted->st_mtim.tv_sec * 1000000000u +
                              (uint64_t)wanted->st_mtim.tv_nsec;
    }
    return set;
}

void reply_node(fuse_req_t request, uint64_t node, double entry_timeout)
{
    struct stat st;
    double timeout = 0;
    errint_t error = node_operations(node)->attributes(fs_of(request), node, &st, &timeout);
    if (error)
        fuse_reply_err(request, -error);
    else
        reply_entry(request, node, &st, entry_timeout, timeout);
}

void reply_attributes(fuse_req_t request, uint64_t node)
{
    struct stat st;
    double timeout = 0;
    errint_t error = node_operations(node)->attributes(fs_of(request), node, &st, &timeout);
    if (error)
        fuse_reply_err(request, -error);
    else
        fuse_reply_attr(request, &st, timeout);
}

void reply_text(fuse_req_t request, const char *text, size_t text_bytes, size_t bytes,
                uint64_t offset)
{
    if (offset >= text_bytes)
        fuse_reply_buf(request, NULL, 0);
    else
        fuse_reply_buf(request, text + offset,
                       bytes < text_bytes - offset ? bytes : text_bytes - offset);
}

void reply_plain_open(fuse_req_t request, uint64_t node, struct fuse_file_info *file,
                      uint32_t open_flags)
{
    struct handle *handle;
    uint64_t fh;
    bool existed;
    uint32_t flags = (file->flags & O_ACCMODE) == O_RDONLY ? 0 : HANDLE_WRITE;
    errint_t error = handles_new(fs_of(request)->handles, transport_current_unique(),
                                 transport_current_is_resent(), node, flags,
                                 (uint32_t)fuse_req_ctx(request)->pid, &handle, &fh, &existed);
    if (error)
        fuse_reply_err(request, -error);
    else
        transport_reply_open(request, fh, open_flags, 0);
}

/* Freed with the thread, by the key's destructor. */
static pthread_key_t buffer_key;

static void make_buffer_key(void)
{
    pthread_key_create(&buffer_key, free);
}

char *reply_buffer(size_t bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Thread_local size_t capacity;
    pthread_once(&once, make_buffer_key);
    char *buffer = pthread_getspecific(buffer_key);
    if (buffer && capacity >= bytes)
        return buffer;
    char *larger = realloc(buffer, bytes ? bytes : 1);
    if (!larger)
        return NULL;
    capacity = bytes;
    pthread_setspecific(buffer_key, larger);
    return larger;
}

void reply_read(fuse_req_t request, const char *buffer, ssize_t got)
{
    if (!buffer)
        fuse_reply_err(request, ENOMEM);
    else if (got < 0)
        fuse_reply_err(request, (int)-got);
    else
        fuse_reply_buf(request, buffer, (size_t)got);
}

errint_t link_text(unsigned depth, const char *directory, const struct mob_id *id, char **target)
{
    char digits[MOB_ID_STRING_BYTES];
    size_t room = 3 * (size_t)depth + strlen(directory) + 1 + MOB_ID_STRING_BYTES;
    char *text = malloc(room), *end = text;
    if (!text)
        return -ENOMEM;
    for (unsigned i = 0; i < depth; i++)
        end = stpcpy(end, "../");
    snprintf(end, room - 3 * (size_t)depth, "%s/%s", directory, mob_id_format(id, digits));
    *target = text;
    return 0;
}

ssize_t xattr_value(const void *text, size_t text_bytes, void *value, size_t bytes)
{
    if (bytes == 0)
        return (ssize_t)text_bytes;
    if (text_bytes > bytes)
        return -ERANGE;
    memcpy(value, text, text_bytes);
    return (ssize_t)text_bytes;
}
