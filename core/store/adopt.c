/* Files that others have written become data files where they are, without a copy: in memory, or on
 * a spill directory's filesystem. They get a second name; who gave them takes the first away. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

static bool is_below(const char *path, const char *dir)
{
    size_t length = dir ? strlen(dir) : 0;
    return length && !strncmp(path, dir, length) && path[length] == '/';
}

/* The spill directory whose filesystem the file is on; DISK_NO_DIR: it is in memory, if anywhere.
 * The work directory is known by its path: tests have memory and disk on one filesystem, and some
 * filesystems give files another device than their directories. */
static unsigned place_of(const struct store *store, const struct stat *info, const char *path)
{
    struct stat memory;
    if (is_below(path, store->disk.work_dir))
        return 0;
    if (fstat(store->data_fd, &memory) == 0 && memory.st_dev == info->st_dev)
        return DISK_NO_DIR;
    for (unsigned i = 0; i < store->disk.count; i++)
        if (store->disk.dirs[i].device == info->st_dev)
            return i;
    return DISK_NO_DIR;
}

static errint_t link_as(int fd, const char *path, int dir_fd, const char *name, struct stat *mine)
{
    struct stat linked;
    if (linkat(AT_FDCWD, path, dir_fd, name, 0) < 0)
        return -errno;
    errint_t error = 0;
    if (fstat(fd, mine) < 0 || fstatat(dir_fd, name, &linked, AT_SYMLINK_NOFOLLOW) < 0)
        error = -errno;
    else if (mine->st_dev != linked.st_dev || mine->st_ino != linked.st_ino)
        error = -EINVAL; /* the path is another file's by now */
    if (error)
        unlinkat(dir_fd, name, 0);
    return error;
}

static errint_t refuse(errint_t error, const char *path, struct mob_error *err)
{
    if (error == -EXDEV)
        return mob_error_set(err, error,
                             "%s is on another filesystem than the store's memory and disk", path);
    return mob_error_set(err, error, "%s can't become an object: %s", path, strerror(-error));
}

errint_t data_adopt(struct store *store, int fd, const char *path, struct object *object,
                    struct mob_error *err)
{
    char name[DATA_NAME_BYTES];
    struct stat info;
    uint64_t file;
    if (fstat(fd, &info) < 0)
        return refuse(-errno, path, err);
    unsigned dir = place_of(store, &info, path);
    bool on_disk = dir != DISK_NO_DIR;
    uint64_t disk_bytes = on_disk ? object_disk_bytes(object->size, false) : 0;
    if (on_disk && !disk_fits(&store->disk, disk_bytes))
        return mob_error_set(err, -ENOSPC, "the budget of the spill directories is used up: %s",
                             strerror(ENOSPC));
    errint_t error = store_new_number_locked(store, &file);
    if (error)
        return error;
    if (fchown(fd, geteuid(), getegid()) < 0 || fchmod(fd, 0600) < 0)
        mob_log_warning("store: %s keeps its owner: %s", path, strerror(errno));
    error = link_as(fd, path, on_disk ? store->disk.dirs[dir].objects_fd : store->data_fd,
                    data_name(file, name), &info);
    if (error)
        return refuse(error, path, err);
    object->file = file;
    object->tier = on_disk ? TIER_DISK : TIER_MEMORY;
    object->disk = (uint8_t)dir;
    object->flags |= on_disk ? OBJECT_ON_DISK : 0;
    object->pages = on_disk ? 0 : (uint32_t)(info.st_blocks / (STORE_PAGE_BYTES / 512));
    atomic_fetch_add(&store->memory_used, (int64_t)object_memory(object));
    disk_count(&store->disk, (int64_t)disk_bytes);
    if (on_disk)
        object_describe(store, object, dir, fd, NULL, false);
    return 0;
}

void data_adopt_undo(struct store *store, const struct object *object)
{
    char name[DATA_NAME_BYTES];
    if (object->tier == TIER_DISK) {
        disk_remove_file(&store->disk, object->disk, object->file,
                         object_disk_bytes(object->size, false));
        return;
    }
    unlinkat(store->data_fd, data_name(object->file, name), 0);
    atomic_fetch_sub(&store->memory_used, (int64_t)object_memory(object));
}
