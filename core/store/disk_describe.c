/* What files on disk say of themselves: an object's header is set from what the store knows. */
#include <string.h>

#include "core/store/store_internal.h"

static void log_refusal(struct disk_dir *dir, errint_t error)
{
    if (atomic_exchange(&dir->undescribed, true))
        return;
    if (error == -EOPNOTSUPP)
        mob_log_info("store: files in %s/objects can't say which object they are: its filesystem "
                     "has no user attributes",
                     dir->path);
    else
        mob_log_warning("store: a file in %s/objects can't say which object it is: %s", dir->path,
                        strerror(-error));
}

void object_describe(struct store *store, const struct object *object, unsigned dir, int fd,
                     const struct spill_sum *sums, bool encrypted)
{
    struct disk_header header = {
        .id = object->id,
        .file = object->file,
        .size = object->size,
        .mtime_ns = object->mtime_ns,
        .mode = object->mode,
        .uid = object->uid,
        .gid = object->gid,
        .encrypted = encrypted,
    };
    if (dir >= store->disk.count)
        return;
    if (sums)
        disk_header_seal(&header, sums);
    errint_t error = disk_header_write(fd, &header);
    if (error)
        log_refusal(&store->disk.dirs[dir], error);
}

void object_describe_number(struct store *store, uint64_t number, unsigned dir, int fd,
                            const struct spill_sum *sums, bool encrypted)
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return;
    struct object known = *object;
    table_unlock(shard);
    object_describe(store, &known, dir, fd, sums, encrypted);
}
