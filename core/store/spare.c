/* Data files: one file each in memory_dir/data, and the empty ones kept ready for the next put.
 *
 * A small put leaves its data file empty again, so that it can serve another: that saves making and
 * removing a file, and with passthrough registering it with the kernel. */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

int data_open(struct store *store, uint64_t file, int flags)
{
    char name[DATA_NAME_BYTES];
    int fd = openat(store->data_fd, data_name(file, name), flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? -errno : fd;
}

int data_open_at(struct store *store, unsigned dir, uint64_t file, int flags)
{
    return dir == DISK_NO_DIR ? data_open(store, file, flags)
                              : disk_open_file(&store->disk, dir, file, flags);
}

/* With passthrough the kernel opens files of its own for the writers. The store's descriptor then
 * must be read-only, or it would itself count as a writer and no read lease could be had. */
static int staged_flags(const struct store *store)
{
    return store->passthrough ? O_RDONLY : O_RDWR;
}

errint_t data_make(struct store *store, bool on_disk, struct data_file *out)
{
    enum { LEAST_ROOM = 1 << 20 };
    unsigned dir = DISK_NO_DIR;
    errint_t error = store_new_number(store, &out->file);
    if (error)
        return error;
    int fd = on_disk
                 ? disk_make_file(&store->disk, out->file, LEAST_ROOM, staged_flags(store), &dir)
                 : data_open(store, out->file, staged_flags(store) | O_CREAT | O_EXCL);
    if (fd < 0)
        return fd;
    out->fd = fd;
    out->dir = (uint8_t)dir;
    return 0;
}

static struct spare_files *spares(struct store *store, bool on_disk)
{
    return on_disk ? &store->spare_on_disk : &store->spare;
}

bool spare_take(struct spare_files *spare, struct data_file *out)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spare->lock);
    if (!spare->count)
        return false;
    *out = spare->files[--spare->count];
    return true;
}

errint_t data_take(struct store *store, bool on_disk, struct data_file *out)
{
    if (on_disk)
        return disk_take(store, out);
    return spare_take(&store->spare, out) ? 0 : data_make(store, false, out);
}

errint_t data_clear(struct store *store)
{
    int fd = openat(store->data_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        errint_t error = -errno;
        mob_cleanup_fd(&fd);
        return error;
    }
    const struct dirent *entry;
    uint64_t file;
    while ((entry = readdir(dir)))
        if (data_name_parse(entry->d_name, &file))
            unlinkat(store->data_fd, entry->d_name, 0);
    closedir(dir);
    return 0;
}

static bool lease(int fd, int kind)
{
    if (fcntl(fd, F_SETLEASE, kind) < 0)
        return false;
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return true;
}

bool data_has_writers(int fd)
{
    return !lease(fd, F_RDLCK);
}

bool data_is_alone(int fd)
{
    return lease(fd, F_WRLCK);
}

bool spare_push(struct store *store, const struct data_file *file)
{
    struct spare_files *spare = spares(store, file->dir != DISK_NO_DIR);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spare->lock);
    if (spare->count >= spare->capacity)
        return false;
    spare->files[spare->count++] = *file;
    return true;
}

errint_t spare_empty(const struct store *store, int fd)
{
    char path[40];
    if (!store->passthrough)
        return ftruncate(fd, 0) < 0 ? -errno : 0;
    /* The descriptor is read-only. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return truncate(path, 0) < 0 ? -errno : 0;
}

static void discard(struct store *store, struct data_file *file)
{
    data_remove(store, file->file);
    mob_cleanup_fd(&file->fd);
}

/* `unread`: nobody can have mapped the file to read it. Who has must not see the next put's bytes.
 */
void data_give_back(struct store *store, struct data_file *file, bool unread)
{
    bool reusable = file->fd >= 0 && (!store->passthrough || unread || data_is_alone(file->fd));
    if (file->dir != DISK_NO_DIR)
        disk_give_back(store, file, reusable);
    else if (!reusable || spare_empty(store, file->fd) || !spare_push(store, file))
        discard(store, file);
    file->fd = -1;
}

void data_remove(struct store *store, uint64_t file)
{
    char name[DATA_NAME_BYTES];
    if (store->hooks.file_gone)
        store->hooks.file_gone(store->hooks.context, file);
    if (unlinkat(store->data_fd, data_name(file, name), 0) < 0 && errno != ENOENT)
        mob_log_error("store: can't remove data/%s: %s", name, strerror(errno));
}

static errint_t open_pool(struct spare_files *spare, unsigned capacity)
{
    spare->capacity = capacity;
    spare->files = calloc(capacity, sizeof *spare->files);
    return spare->files ? 0 : -ENOMEM;
}

errint_t spare_open(struct store *store)
{
    errint_t error = open_pool(&store->spare, store->spare_target * 2);
    return error ? error : open_pool(&store->spare_on_disk, store->spare_target);
}

bool spare_adopt(struct store *store, uint64_t file)
{
    if (store->spare.count >= store->spare_target)
        return false;
    struct data_file adopted = {
        .file = file, .fd = data_open(store, file, staged_flags(store)), .dir = DISK_NO_DIR};
    struct stat info;
    if (adopted.fd < 0)
        return false;
    bool good = fstat(adopted.fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0 &&
                info.st_nlink == 1 && (info.st_mode & 07777) == 0600 &&
                !data_has_writers(adopted.fd);
    if (good && spare_push(store, &adopted))
        return true;
    close(adopted.fd);
    return false;
}

static void close_pool(struct store *store, struct spare_files *spare)
{
    struct data_file file;
    while (spare_take(spare, &file)) {
        if (file.dir == DISK_NO_DIR)
            discard(store, &file);
        else
            disk_give_back(store, &file, false);
    }
    free(spare->files);
    spare->files = NULL;
    spare->count = spare->capacity = 0;
}

void spare_close(struct store *store)
{
    close_pool(store, &store->spare);
    close_pool(store, &store->spare_on_disk);
}
