/* Growing files: what is where, reading and changing it, and the small calls on both files. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/growing_internal.h"

/* --- the two files --- */

errint_t growing_size(int fd, uint64_t *size)
{
    struct stat info;
    *size = 0;
    if (fstat(fd, &info) < 0)
        return -errno;
    *size = (uint64_t)info.st_size;
    return 0;
}

errint_t growing_find_data(int fd, uint64_t offset, uint64_t *at)
{
    off_t found = lseek(fd, (off_t)offset, SEEK_DATA);
    *at = UINT64_MAX;
    if (found < 0 && errno != ENXIO)
        return -errno;
    if (found >= 0)
        *at = (uint64_t)found;
    return 0;
}

errint_t growing_find_hole(int fd, uint64_t offset, uint64_t *at)
{
    off_t found = lseek(fd, (off_t)offset, SEEK_HOLE);
    *at = offset;
    if (found < 0 && errno != ENXIO)
        return -errno;
    if (found >= 0)
        *at = (uint64_t)found;
    return 0;
}

int growing_open_memory(const struct growing *growing)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", growing->memory_fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

errint_t growing_punch_fd(int fd, uint64_t offset, uint64_t bytes)
{
    int result;
    do
        result =
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

/* --- what is where --- */

uint64_t growing_begin(const struct growing *growing)
{
    return growing->exclusive || growing->state.head_moved ? 0 : GROWING_UNIT_BYTES;
}

uint64_t growing_next(const struct growing *growing)
{
    uint64_t begin = growing_begin(growing);
    return growing->state.moved > begin ? growing->state.moved : begin;
}

uint64_t growing_motion(const struct growing *growing)
{
    uint64_t next = growing_next(growing);
    return growing->state.intent <= next ? 0 : next;
}

uint64_t growing_moved(struct growing *growing)
{
    cleanup_growing pthread_rwlock_t *held = growing_lock_shared(growing);
    return growing->state.moved;
}

errint_t growing_find_tear(struct growing *growing, uint64_t *at)
{
    *at = growing->state.torn ? 0 : UINT64_MAX;
    uint64_t begin = growing_begin(growing);
    if (growing->exclusive || growing->state.torn || begin >= growing->state.moved)
        return 0;
    errint_t error = growing_find_data(growing->memory_fd, begin, at);
    if (!error && *at >= growing->state.moved)
        *at = UINT64_MAX;
    return error;
}

errint_t growing_is_torn(struct growing *growing, bool *torn)
{
    cleanup_growing pthread_rwlock_t *held = growing_lock_shared(growing);
    uint64_t at;
    errint_t error = growing_find_tear(growing, &at);
    *torn = !error && at != UINT64_MAX;
    return error;
}

/* A part of a range that is all on disk or all in memory. */
struct part {
    uint64_t offset, bytes;
    bool on_disk;
};

static struct part first_part(const struct growing *growing, uint64_t offset, uint64_t bytes)
{
    uint64_t begin = growing_begin(growing), moved = growing->state.moved;
    uint64_t limit = UINT64_MAX;
    if (offset < begin && begin < moved)
        limit = begin;
    else if (offset >= begin && offset < moved)
        limit = moved;
    if (bytes > limit - offset)
        bytes = limit - offset;
    return (struct part){offset, bytes, limit == moved};
}

/* --- reading --- */

static ssize_t read_part(const struct growing *growing, void *buffer, const struct part *part)
{
    if (part->on_disk) {
        errint_t error = growing_disk_read(growing, buffer, (size_t)part->bytes, part->offset);
        return error ? error : (ssize_t)part->bytes;
    }
    if (growing->punched && part->offset < growing->state.intent &&
        part->offset + part->bytes > growing_motion(growing))
        return -EIO;
    return mob_pread_full(growing->memory_fd, buffer, (size_t)part->bytes, (off_t)part->offset);
}

ssize_t growing_read(struct growing *growing, void *buffer, size_t bytes, uint64_t offset)
{
    cleanup_growing pthread_rwlock_t *held = growing_lock_shared(growing);
    uint64_t size, tear;
    bool from_disk = false;
    size_t done = 0;
    errint_t error = growing_size(growing->memory_fd, &size);
    if (error || offset >= size)
        return error;
    if (bytes > size - offset)
        bytes = (size_t)(size - offset);
    while (done < bytes) {
        struct part part = first_part(growing, offset + done, bytes - done);
        ssize_t got = read_part(growing, (char *)buffer + done, &part);
        if (got < 0)
            return got;
        from_disk |= part.on_disk;
        done += (size_t)got;
        if ((uint64_t)got < part.bytes)
            break;
    }
    /* After reading: what was written before the read began is noticed. */
    error = from_disk ? growing_find_tear(growing, &tear) : 0;
    if (error || (from_disk && tear != UINT64_MAX))
        return error ? error : -EIO;
    return (ssize_t)done;
}

ssize_t growing_read_now(struct growing *growing, void *buffer, size_t bytes, uint64_t offset)
{
    if (pthread_rwlock_tryrdlock(&growing->lock))
        return -EAGAIN;
    cleanup_growing pthread_rwlock_t *held = &growing->lock;
    uint64_t size;
    errint_t error = growing_size(growing->memory_fd, &size);
    if (error || offset >= size)
        return error;
    if (bytes > size - offset)
        bytes = (size_t)(size - offset);
    struct part part = first_part(growing, offset, bytes);
    return part.on_disk || part.bytes < bytes ? -EAGAIN : read_part(growing, buffer, &part);
}

/* --- writing --- */

/* The size is the tmpfs file's. It grows before the bytes are there: bytes on disk past the size
 * would show up when the file is made longer. */
static errint_t write_disk(struct growing *growing, int memory, const void *buffer,
                           const struct part *part)
{
    uint64_t size, end = part->offset + part->bytes;
    errint_t error = growing_size(memory, &size);
    if (!error && end > size && ftruncate(memory, (off_t)end) < 0)
        error = -errno;
    if (error)
        return error;
    error = growing_disk_write(growing, buffer, (size_t)part->bytes, part->offset);
    if (error && end > size) {
        /* A part may have been written. If it can't be cut off, it stays a part of the file. */
        if (growing_disk_cut(growing, size) == 0 && ftruncate(memory, (off_t)size) < 0)
            return -errno;
    }
    return error;
}

bool growing_is_in_memory(const struct growing *growing, uint64_t offset)
{
    return growing->exclusive && !growing->unnoted && !growing->state.redo &&
           offset >= growing->state.moved;
}

errint_t growing_write(struct growing *growing, const void *buffer, size_t bytes, uint64_t offset)
{
    if (!growing->exclusive)
        return -EPERM;
    if (offset > INT64_MAX || bytes > (uint64_t)INT64_MAX - offset)
        return -EFBIG;
    cleanup_fd int memory = growing_open_memory(growing);
    if (memory < 0)
        return memory;
    errint_t error = growing_disk_settle(growing);
    for (size_t done = 0; done < bytes && !error;) {
        struct part part = first_part(growing, offset + done, bytes - done);
        const char *place = (const char *)buffer + done;
        if (part.on_disk)
            error = write_disk(growing, memory, place, &part);
        else
            error = mob_pwrite_full(memory, place, (size_t)part.bytes, (off_t)part.offset);
        done += (size_t)part.bytes;
    }
    return error;
}

errint_t growing_punch(struct growing *growing, uint64_t offset, uint64_t bytes)
{
    uint64_t tear;
    if (growing->state.intent || growing->unnoted)
        return -EBUSY;
    if (!bytes)
        return -EINVAL;
    if (offset > INT64_MAX || bytes > (uint64_t)INT64_MAX - offset)
        return -EFBIG;
    errint_t error = growing_find_tear(growing, &tear);
    if (error || tear != UINT64_MAX)
        return error ? error : -EIO;
    cleanup_fd int memory = growing_open_memory(growing);
    if (memory < 0)
        return memory;
    error = growing_disk_settle(growing);
    while (bytes && !error) {
        struct part part = first_part(growing, offset, bytes);
        error = part.on_disk ? growing_disk_clear(growing, part.offset, part.bytes)
                             : growing_punch_fd(memory, part.offset, part.bytes);
        offset += part.bytes;
        bytes -= part.bytes;
    }
    return error;
}

/* --- truncating --- */

static errint_t copy_back(struct growing *growing, int memory, uint64_t offset, uint64_t end)
{
    enum { PIECE = 1 << 18 };
    cleanup_free char *buffer = malloc(PIECE);
    if (!buffer)
        return -ENOMEM;
    errint_t error = 0;
    while (offset < end && !error) {
        struct part part = {offset, end - offset < PIECE ? end - offset : PIECE, true};
        ssize_t got = read_part(growing, buffer, &part);
        if (got < 0)
            return (errint_t)got;
        error = mob_pwrite_full(memory, buffer, (size_t)part.bytes, (off_t)offset);
        offset += part.bytes;
    }
    return error;
}

/* A unit that is to be cut comes back first, while the intent says so: a crash until the new state
 * is stored leaves it on disk as well, and growing_resume() takes it out of memory again. */
static errint_t cut(struct growing *growing, int memory, uint64_t size, bool back,
                    const struct growing_state *after)
{
    cleanup_growing pthread_rwlock_t *held = growing_lock_alone(growing);
    uint64_t now, unit = size - size % GROWING_UNIT_BYTES;
    errint_t error = growing_size(memory, &now);
    if (!error && back)
        error = copy_back(growing, memory, unit, size < now ? size : now);
    if (!error && ftruncate(memory, (off_t)size) < 0)
        error = -errno;
    if (!error)
        growing->state = *after;
    if (!error || !back)
        return error;
    /* If this fails, the intent remains: growing_resume() does it again. */
    if (growing_punch_fd(memory, unit, GROWING_UNIT_BYTES) == 0)
        growing->state.intent = 0;
    return error;
}

static errint_t truncate_moved(struct growing *growing, int memory, uint64_t size)
{
    uint64_t unit = size - size % GROWING_UNIT_BYTES, begin = growing_begin(growing);
    bool back = size > unit && unit >= begin && begin < growing->state.moved;
    struct growing_state state = growing->state;
    struct growing_state after = {.moved = unit,
                                  .head_moved = state.head_moved && unit,
                                  .filled = state.filled < unit ? state.filled : unit};
    if (!growing->exclusive && !after.head_moved && unit <= GROWING_UNIT_BYTES)
        after.moved = 0; /* nothing but the head, which is in memory */
    state.intent = back ? unit + GROWING_UNIT_BYTES : 0;
    errint_t error = back ? growing_announce(growing, &state) : 0;
    if (error)
        return error;
    error = cut(growing, memory, size, back, &after);
    errint_t unsettled = error && !back ? 0 : growing_settle(growing);
    if (error || unsettled)
        return error ? error : unsettled;
    return growing_disk_drop(growing, unit);
}

errint_t growing_truncate(struct growing *growing, uint64_t size)
{
    uint64_t tear, now;
    if (growing->state.intent || growing->unnoted)
        return -EBUSY;
    if (size > INT64_MAX)
        return -EFBIG;
    errint_t error = growing_find_tear(growing, &tear);
    if (!error && tear < size)
        error = -EIO;
    if (!error)
        error = growing_size(growing->memory_fd, &now);
    if (!error)
        error = growing_disk_settle(growing);
    if (!error)
        error = growing_disk_cut(growing, now);
    if (error)
        return error;
    cleanup_fd int memory = growing_open_memory(growing);
    if (memory < 0)
        return memory;
    if (size < growing->state.moved || growing->state.torn)
        return truncate_moved(growing, memory, size);
    return ftruncate(memory, (off_t)size) < 0 ? -errno : 0;
}
