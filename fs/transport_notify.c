/* Transport, what the server sends that is no plain reply: notifications, backing files, and
 * replies to open that carry a backing ID. */
#include "fs/transport_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

errint_t transport_invalidate_inode(struct transport *transport, uint64_t nodeid, int64_t offset,
                                    int64_t bytes)
{
    errint_t failed = fuse_lowlevel_notify_inval_inode(transport->fuse, nodeid, offset, bytes);
    return failed == -ENOENT ? 0 : failed;
}

errint_t transport_store(struct transport *transport, uint64_t nodeid, const void *content,
                         size_t bytes)
{
    struct fuse_notify_store_out body = {.nodeid = nodeid, .size = (uint32_t)bytes};
    struct fuse_out_header out = {.len = (uint32_t)(sizeof(out) + sizeof(body) + bytes),
                                  .error = FUSE_NOTIFY_STORE};
    struct iovec iov[3] = {
        {&out, sizeof(out)}, {&body, sizeof(body)}, {(void *)(uintptr_t)content, bytes}};
    return transport_write_device(transport, iov, 3);
}

errint_t transport_notify_poll(struct transport *transport, uint64_t poll_handle)
{
    struct fuse_notify_poll_wakeup_out body = {.kh = poll_handle};
    struct fuse_out_header out = {.len = sizeof(out) + sizeof(body), .error = FUSE_NOTIFY_POLL};
    struct iovec iov[2] = {{&out, sizeof(out)}, {&body, sizeof(body)}};
    return transport_write_device(transport, iov, 2);
}

int transport_backing_open(struct transport *transport, int fd)
{
    struct abi_backing_map map = {.fd = fd};
    int backing_id = ioctl(transport->fd, ABI_IOC_BACKING_OPEN, &map);
    return backing_id < 0 ? -errno : backing_id;
}

errint_t transport_backing_close(struct transport *transport, int backing_id)
{
    uint32_t id = (uint32_t)backing_id;
    return ioctl(transport->fd, ABI_IOC_BACKING_CLOSE, &id) < 0 ? -errno : 0;
}

static struct abi_open_out make_open_out(uint64_t handle, uint32_t open_flags, int backing_id)
{
    struct abi_open_out out = {.fh = handle, .open_flags = open_flags};
    if (backing_id > 0) {
        out.open_flags |= ABI_OPEN_PASSTHROUGH;
        out.backing_id = backing_id;
    }
    return out;
}

int transport_reply_open(fuse_req_t request, uint64_t handle, uint32_t open_flags, int backing_id)
{
    struct abi_open_out out = make_open_out(handle, open_flags, backing_id);
    return fuse_reply_buf(request, (const char *)&out, sizeof(out));
}

static void fill_attributes(struct fuse_attr *out, const struct stat *in)
{
    out->ino = in->st_ino;
    out->mode = in->st_mode;
    out->nlink = (uint32_t)in->st_nlink;
    out->uid = in->st_uid;
    out->gid = in->st_gid;
    out->rdev = (uint32_t)in->st_rdev;
    out->size = (uint64_t)in->st_size;
    out->blksize = (uint32_t)in->st_blksize;
    out->blocks = (uint64_t)in->st_blocks;
    out->atime = (uint64_t)in->st_atim.tv_sec;
    out->mtime = (uint64_t)in->st_mtim.tv_sec;
    out->ctime = (uint64_t)in->st_ctim.tv_sec;
    out->atimensec = (uint32_t)in->st_atim.tv_nsec;
    out->mtimensec = (uint32_t)in->st_mtim.tv_nsec;
    out->ctimensec = (uint32_t)in->st_ctim.tv_nsec;
}

static void split_seconds(double seconds, uint64_t *whole, uint32_t *nanoseconds)
{
    if (!(seconds > 0)) {
        *whole = 0;
        *nanoseconds = 0;
    } else if (seconds >= 1e15) {
        *whole = UINT64_MAX / 4; /* far more than the kernel can count: for ever */
        *nanoseconds = 0;
    } else {
        *whole = (uint64_t)seconds;
        double rest = (seconds - (double)*whole) * 1e9;
        *nanoseconds = rest > 999999999.0 ? 999999999u : (uint32_t)rest;
    }
}

int transport_reply_create(fuse_req_t request, const struct fuse_entry_param *entry,
                           uint64_t handle, uint32_t open_flags, int backing_id)
{
    struct {
        struct fuse_entry_out entry;
        struct abi_open_out open;
    } out;
    memset(&out, 0, sizeof(out));
    out.entry.nodeid = entry->ino;
    out.entry.generation = entry->generation;
    split_seconds(entry->entry_timeout, &out.entry.entry_valid, &out.entry.entry_valid_nsec);
    split_seconds(entry->attr_timeout, &out.entry.attr_valid, &out.entry.attr_valid_nsec);
    fill_attributes(&out.entry.attr, &entry->attr);
    out.open = make_open_out(handle, open_flags, backing_id);
    return fuse_reply_buf(request, (const char *)&out, sizeof(out));
}
