/* Data files: one file each in memory_dir/data, and the empty ones kept ready for the next put.
 *
 * A small put leaves its data file empty again, so that it can serve another: that saves making and
 * removing a file, and with passthrough registering it with the kernel. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

char *data_name(uint64_t file, char out[DATA_NAME_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++)
        out[i] = digits[file >> (60 - 4 * i) & 15];
    out[16] = '\0';
    return out;
}

int data_open(struct store *store, uint64_t file, int flags)
{
    char name[DATA_NAME_BYTES];
    int fd = openat(store->data_fd, data_name(file, name), flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? -errno : fd;
}

/* With passthrough the kernel opens files of its own for the writers. The store's descriptor then
 * must be read-only, or it would itself count as a writer and no read lease could be had. */
static int staged_flags(const struct store *store)
{
    return store->passthrough ? O_RDONLY : O_RDWR;
}

static errint_t make(struct store *store, struct spare_file *out)
{
    errint_t error = store_new_number(store, &out->file);
    if (error)
        return error;
    int fd = data_open(store, out->file, staged_flags(store) | O_CREAT | O_EXCL);
    if (fd < 0)
        return fd;
    out->fd = fd;
    return 0;
}

errint_t data_take(struct store *store, uint64_t *file, int *fd)
{
    struct spare_files *spare = &store->spare;
    struct spare_file taken = {0, -1};
    pthread_mutex_lock(&spare->lock);
    if (spare->count)
        taken = spare->files[--spare->count];
    pthread_mutex_unlock(&spare->lock);
    if (taken.fd < 0) {
        errint_t error = make(store, &taken);
        if (error)
            return error;
    }
    *file = taken.file;
    *fd = taken.fd;
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

static bool spare_push(struct store *store, uint64_t file, int fd)
{
    struct spare_files *spare = &store->spare;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spare->lock);
    if (spare->count >= spare->capacity)
        return false;
    spare->files[spare->count++] = (struct spare_file){file, fd};
    return true;
}

static errint_t empty(struct store *store, int fd)
{
    char path[40];
    if (!store->passthrough)
        return ftruncate(fd, 0) < 0 ? -errno : 0;
    /* The descriptor is read-only. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return truncate(path, 0) < 0 ? -errno : 0;
}

/* `unread`: nobody can have mapped the file to read it. Who has must not see the next put's bytes.
 */
void data_give_back(struct store *store, uint64_t file, int fd, bool unread)
{
    bool reusable =
        fd >= 0 && (!store->passthrough || unread || data_is_alone(fd)) && empty(store, fd) == 0;
    if (reusable && spare_push(store, file, fd))
        return;
    data_remove(store, file);
    if (fd >= 0)
        close(fd);
}

void data_remove(struct store *store, uint64_t file)
{
    char name[DATA_NAME_BYTES];
    if (store->hooks.file_gone)
        store->hooks.file_gone(store->hooks.context, file);
    if (unlinkat(store->data_fd, data_name(file, name), 0) < 0 && errno != ENOENT)
        mob_log_error("store: can't remove data/%s: %s", name, strerror(errno));
}

errint_t spare_open(struct store *store)
{
    struct spare_files *spare = &store->spare;
    spare->capacity = store->spare_target * 2;
    spare->files = calloc(spare->capacity, sizeof *spare->files);
    return spare->files ? 0 : -ENOMEM;
}

bool spare_adopt(struct store *store, uint64_t file)
{
    if (store->spare.count >= store->spare_target)
        return false;
    int fd = data_open(store, file, staged_flags(store));
    struct stat info;
    if (fd < 0)
        return false;
    bool good = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0 &&
                info.st_nlink == 1 && (info.st_mode & 07777) == 0600 && !data_has_writers(fd);
    if (good && spare_push(store, file, fd))
        return true;
    close(fd);
    return false;
}

void spare_close(struct store *store)
{
    struct spare_files *spare = &store->spare;
    for (unsigned i = 0; i < spare->count; i++) {
        data_remove(store, spare->files[i].file);
        close(spare->files[i].fd);
    }
    free(spare->files);
    spare->files = NULL;
    spare->count = spare->capacity = 0;
}
