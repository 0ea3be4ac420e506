/* The data of staged files: reading, writing, and what it takes of the memory budget.
 *
 * memory_dir may be a filesystem with a limit of its own or a folder of a shared one; the budget is
 * kept here in both cases, for what is written through the store. With FUSE passthrough the kernel
 * writes without asking, and the filesystem's own limit is what holds. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

enum {
    PAGE_BYTES = 4096,
    SMALL_BYTES = 128 << 10,
    SMALL_SHARE = 16,
};

uint64_t data_bytes(const struct data_file *data, const struct stat *info)
{
    uint64_t bytes = (uint64_t)info->st_size;
    return data->encrypted ? cipher_content_bytes(bytes) : bytes;
}

void staged_settle(struct store *store, struct staged *staged)
{
    struct stat info;
    if (staged->keeps_file && fstat(staged->data.fd, &info) == 0)
        staged_charge(store, staged, &info);
}

static void charge(struct store *store, struct staged *staged, uint64_t bytes)
{
    int64_t change = (int64_t)(bytes - staged->charged_bytes);
    staged->charged_bytes = bytes;
    if (staged->data.dir != DISK_NO_DIR) {
        disk_count(&store->disk, change);
        return;
    }
    atomic_fetch_add(&store->memory_used, change);
    if (change > 0)
        spill_nudge(store);
}

void staged_charge(struct store *store, struct staged *staged, const struct stat *info)
{
    charge(store, staged, (uint64_t)info->st_blocks * 512);
}

void staged_uncharge(struct store *store, struct staged *staged)
{
    charge(store, staged, 0);
}

/* A descriptor to write with: the store's own, or with passthrough one opened for the moment. */
static int writable_fd(struct store *store, struct staged *staged, int *opened)
{
    *opened = -1;
    if (!store->passthrough)
        return staged->data.fd;
    *opened = data_open_at(store, staged->data.dir, staged->data.file, O_RDWR);
    return *opened;
}

/* Of the memory budget. What the kernel writes by itself, only the filesystem knows. */
static uint64_t memory_used(struct store *store)
{
    int64_t used = atomic_load(&store->memory_used);
    if (store->passthrough)
        return spill_memory_used(store);
    return used > 0 ? (uint64_t)used : 0;
}

/* Up to where a write to `end` may fill the memory. The last sixteenth is for small files: those
 * that wait for the disk with large ones must not keep them from being put. */
static uint64_t memory_limit(struct store *store, struct staged *staged, uint64_t end)
{
    bool waits = end > SMALL_BYTES && grow_is_possible(store, staged);
    return store->memory_bytes - (waits ? store->memory_bytes / SMALL_SHARE : 0);
}

static bool is_allocated(int fd, uint64_t offset, uint64_t bytes)
{
    off_t hole = lseek(fd, (off_t)offset, SEEK_HOLE);
    return hole >= 0 && (uint64_t)hole >= offset + bytes;
}

static errint_t check_budget(struct store *store, struct staged *staged, uint64_t offset,
                             uint64_t bytes)
{
    uint64_t first = offset / PAGE_BYTES, last = (offset + bytes + PAGE_BYTES - 1) / PAGE_BYTES;
    uint64_t limit = memory_limit(store, staged, offset + bytes);
    if (staged->data.dir != DISK_NO_DIR)
        return bytes <= disk_room(&store->disk) || is_allocated(staged->data.fd, offset, bytes)
                   ? 0
                   : -ENOSPC;
    uint64_t used = memory_used(store);
    if (used <= limit && (last - first) * PAGE_BYTES <= limit - used)
        return 0;
    return is_allocated(staged->data.fd, offset, bytes) ? 0 : -ENOSPC;
}

static bool is_moved(struct staged *staged, uint64_t end)
{
    return staged->growing && end <= growing_moved(staged->growing);
}

/* What nobody uses goes first: the evictor is at it, and sooner done with it than this file would
 * be with a part of itself. False: there is nothing, or it was waited for in vain a moment ago. Who
 * waits keeps a thread of the server: not again for each piece of a file. */
static bool wait_for_others(struct store *store, uint64_t *least, unsigned *waits)
{
    enum { WAITS = 4 };
    const uint64_t pause_ns = UINT64_C(10000000000);
    uint64_t now_ns = mob_monotonic_ns();
    uint64_t used = memory_used(store);
    if (atomic_load(&store->ready_memory) <= 0 || now_ns < atomic_load(&store->grow.vain_until_ns))
        return false;
    *waits = used < *least ? 0 : *waits + 1;
    *least = used;
    if (*waits > WAITS) {
        atomic_store(&store->grow.vain_until_ns, now_ns + pause_ns);
        return false;
    }
    spill_nudge(store);
    spill_wait_settled(store);
    return true;
}

/* The same; where that can be done, room is made: others' memory is waited for; else what the file
 * wrote first goes to disk; else what is to be written goes there at once, which makes the file as
 * long: not if it `keeps_size`. */
static errint_t make_budget(struct store *store, struct staged *staged, uint64_t offset,
                            uint64_t bytes, bool keeps_size)
{
    errint_t error;
    uint64_t least = UINT64_MAX;
    unsigned waits = 0;
    while (!is_moved(staged, offset + bytes) &&
           (error = check_budget(store, staged, offset, bytes)) != 0) {
        if (error != -ENOSPC || !grow_is_possible(store, staged))
            return error;
        if (wait_for_others(store, &least, &waits))
            continue;
        error = grow_make_room(store, staged);
        if (error == -EAGAIN && !keeps_size)
            error = grow_claim(store, staged, offset + bytes);
        if (error)
            return error == -EAGAIN ? -ENOSPC : error;
    }
    return 0;
}

/* What may not be changed any more has been committed or has lost its file. */
static struct staged *get_to_change(struct store *store, uint64_t number, errint_t *error)
{
    struct staged *staged = staged_get(store, number);
    *error = -ENOENT;
    if (!staged)
        return NULL;
    pthread_mutex_lock(&staged->lock);
    *error = staged->committed ? -EPERM : 0;
    if (!*error)
        return staged;
    pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
    return NULL;
}

static void put_changed(struct store *store, struct staged *staged)
{
    staged_settle(store, staged);
    pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
    objects_settle(store);
}

static errint_t write_data(struct store *store, struct staged *staged, const void *buffer,
                           size_t bytes, uint64_t offset)
{
    if (staged->growing)
        return growing_write(staged->growing, buffer, bytes, offset);
    int opened, fd = writable_fd(store, staged, &opened);
    errint_t error = fd < 0 ? fd : mob_pwrite_full(fd, buffer, bytes, (off_t)offset);
    mob_cleanup_fd(&opened);
    return error;
}

/* Its memory and a processor are all that a write takes. */
static bool is_at_hand(struct store *store, struct staged *staged, uint64_t offset, size_t bytes)
{
    const struct growing *growing = staged->growing;
    return staged->data.dir == DISK_NO_DIR && (!growing || growing_is_in_memory(growing, offset)) &&
           check_budget(store, staged, offset, bytes) == 0;
}

ssize_t staged_write_now(struct store *store, uint64_t number, const void *buffer, size_t bytes,
                         uint64_t offset)
{
    errint_t error = -EAGAIN;
    if (offset > INT64_MAX || bytes > (uint64_t)INT64_MAX - offset)
        return -EFBIG;
    struct staged *staged = staged_get(store, number);
    if (!staged)
        return -ENOENT;
    if (!pthread_mutex_trylock(&staged->lock)) {
        if (staged->committed)
            error = -EPERM;
        else if (is_at_hand(store, staged, offset, bytes))
            error = write_data(store, staged, buffer, bytes, offset);
        if (error == -ENOSPC && grow_is_possible(store, staged))
            error = -EAGAIN;
        if (!error)
            staged->made_ns = 0;
        staged_settle(store, staged);
        pthread_mutex_unlock(&staged->lock);
    }
    staged_put(store, staged);
    objects_settle(store);
    return error ? error : (ssize_t)bytes;
}

ssize_t staged_write(struct store *store, uint64_t number, const void *buffer, size_t bytes,
                     uint64_t offset)
{
    errint_t error;
    if (offset > INT64_MAX || bytes > (uint64_t)INT64_MAX - offset)
        return -EFBIG;
    struct staged *staged = get_to_change(store, number, &error);
    if (!staged)
        return error;
    error = make_budget(store, staged, offset, bytes, false);
    if (!error) {
        error = write_data(store, staged, buffer, bytes, offset);
        /* Its filesystem may be full before the budget is: others write there, too. */
        if (error == -ENOSPC && grow_is_possible(store, staged) &&
            !grow_claim(store, staged, offset + bytes))
            error = write_data(store, staged, buffer, bytes, offset);
        staged->made_ns = 0;
    }
    put_changed(store, staged);
    return error ? error : (ssize_t)bytes;
}

/* Lock held. */
static bool is_in_memory(const struct staged *staged)
{
    return !staged->growing && staged->data.dir == DISK_NO_DIR;
}

ssize_t staged_read(struct store *store, uint64_t number, void *buffer, size_t bytes,
                    uint64_t offset)
{
    if (offset > INT64_MAX)
        return 0;
    struct staged *staged = staged_get(store, number);
    if (!staged)
        return -ENOENT;
    /* What is in memory may be moved to disk meanwhile. What is there stays, or growing.h sees to
     * it: nobody is to wait for this lock while the disk stalls. */
    pthread_mutex_lock(&staged->lock);
    bool in_memory = is_in_memory(staged);
    if (!in_memory)
        pthread_mutex_unlock(&staged->lock);
    ssize_t got = staged_pread(staged, buffer, bytes, offset);
    if (in_memory)
        pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
    return got;
}

/* Lock held. */
static ssize_t pread_now(struct staged *staged, void *buffer, size_t bytes, uint64_t offset)
{
    struct stat info;
    if (is_in_memory(staged))
        return staged_pread(staged, buffer, bytes, offset);
    if (staged->growing)
        return growing_read_now(staged->growing, buffer, bytes, offset);
    if (staged->data.encrypted)
        return -EAGAIN;
    if (fstat(staged->data.fd, &info) < 0)
        return -errno;
    return mob_pread_cached(staged->data.fd, (uint64_t)info.st_size, buffer, bytes, offset);
}

ssize_t staged_read_now(struct store *store, uint64_t number, void *buffer, size_t bytes,
                        uint64_t offset)
{
    if (offset > INT64_MAX)
        return 0;
    struct staged *staged = staged_get(store, number);
    if (!staged)
        return -ENOENT;
    ssize_t got = -EAGAIN;
    if (!pthread_mutex_trylock(&staged->lock)) {
        got = pread_now(staged, buffer, bytes, offset);
        pthread_mutex_unlock(&staged->lock);
    }
    staged_put(store, staged);
    return got;
}

errint_t staged_truncate(struct store *store, uint64_t number, uint64_t size)
{
    errint_t error;
    int opened = -1;
    if (size > INT64_MAX)
        return -EFBIG;
    struct staged *staged = get_to_change(store, number, &error);
    if (!staged)
        return error;
    int fd = staged->growing ? -1 : writable_fd(store, staged, &opened);
    if (staged->growing)
        error = growing_truncate(staged->growing, size);
    else if (fd < 0)
        error = fd;
    else if (ftruncate(fd, (off_t)size) < 0)
        error = -errno;
    staged->made_ns = 0;
    staged->torn = false; /* as far as is known */
    mob_cleanup_fd(&opened);
    put_changed(store, staged);
    return error;
}

errint_t staged_allocate(struct store *store, uint64_t number, int mode, uint64_t offset,
                         uint64_t bytes)
{
    errint_t error;
    int opened = -1;
    if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
        return -EOPNOTSUPP;
    if (!bytes)
        return -EINVAL;
    if (offset > INT64_MAX || bytes > (uint64_t)INT64_MAX - offset)
        return -EFBIG;
    struct staged *staged = get_to_change(store, number, &error);
    if (!staged)
        return error;
    if (!(mode & FALLOC_FL_PUNCH_HOLE))
        error = make_budget(store, staged, offset, bytes, mode & FALLOC_FL_KEEP_SIZE);
    if (staged->growing && !(mode & FALLOC_FL_PUNCH_HOLE)) { /* what was moved has its room */
        uint64_t moved = growing_moved(staged->growing), end = offset + bytes;
        offset = offset > moved ? offset : moved < end ? moved : end;
        bytes = end - offset;
    }
    int fd = error ? error : writable_fd(store, staged, &opened);
    if (!error && staged->growing && mode & FALLOC_FL_PUNCH_HOLE)
        error = growing_punch(staged->growing, offset, bytes);
    else if (!error && !bytes)
        error = 0;
    else if (fd < 0)
        error = fd;
    else if (fallocate(fd, mode, (off_t)offset, (off_t)bytes) < 0)
        error = -errno;
    staged->made_ns = 0;
    mob_cleanup_fd(&opened);
    put_changed(store, staged);
    return error;
}

static errint_t set_record(struct store *store, struct staged *staged, unsigned valid, mode_t mode,
                           uid_t uid, gid_t gid)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    mode_t old_mode = staged->mode;
    uid_t old_uid = staged->uid;
    gid_t old_gid = staged->gid;
    if (staged->gone)
        return -ENOENT;
    if (valid & NAMES_SET_MODE)
        staged->mode = mode & 07777;
    if (valid & NAMES_SET_UID)
        staged->uid = uid;
    if (valid & NAMES_SET_GID)
        staged->gid = gid;
    errint_t error = records_write(&store->records, staged);
    if (error) {
        staged->mode = old_mode;
        staged->uid = old_uid;
        staged->gid = old_gid;
    }
    return error;
}

errint_t staged_set(struct store *store, uint64_t number, unsigned valid, mode_t mode, uid_t uid,
                    gid_t gid, uint64_t mtime_ns)
{
    errint_t error;
    struct staged *staged = get_to_change(store, number, &error);
    if (!staged)
        return error;
    if (valid & (NAMES_SET_MODE | NAMES_SET_UID | NAMES_SET_GID))
        error = set_record(store, staged, valid, mode, uid, gid);
    if (!error && valid & NAMES_SET_MTIME) {
        struct timespec times[2] = {
            {.tv_nsec = UTIME_OMIT},
            {.tv_sec = (time_t)(mtime_ns / 1000000000u), .tv_nsec = (long)(mtime_ns % 1000000000u)},
        };
        error = futimens(staged->data.fd, times) < 0 ? -errno : 0;
        if (!error)
            staged->made_ns = 0;
    }
    put_changed(store, staged);
    return error;
}

errint_t staged_content_of(struct staged *staged, size_t limit, char **content, size_t *bytes)
{
    struct stat info;
    if (fstat(staged->data.fd, &info) < 0)
        return -errno;
    uint64_t size = data_bytes(&staged->data, &info);
    if (size > limit)
        return -EFBIG;
    cleanup_free char *buffer = malloc((size_t)size + 1);
    if (!buffer)
        return -ENOMEM;
    ssize_t got = staged_pread(staged, buffer, (size_t)size, 0);
    if (got < 0)
        return (errint_t)got;
    buffer[got] = '\0';
    *content = steal_pointer(&buffer);
    *bytes = (size_t)got;
    return 0;
}

errint_t staged_content(struct store *store, uint64_t number, size_t limit, char **content,
                        size_t *bytes)
{
    struct staged *staged = staged_get(store, number);
    if (!staged)
        return -ENOENT;
    errint_t error = staged_content_of(staged, limit, content, bytes);
    staged_put(store, staged);
    return error;
}
