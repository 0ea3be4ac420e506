/* Reading the journal's files. Nothing in them is trusted before its checksum is right. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/journal_internal.h"

enum { WINDOW_BYTES = 1 << 20, SECTOR_BYTES = 512 };

/* `bytes` of the file from `offset` on, in *out. -ENODATA: it ends before. */
static errint_t get(struct journal_source *source, uint64_t offset, uint64_t bytes,
                    const uint8_t **out)
{
    if (offset > source->size || bytes > source->size - offset)
        return -ENODATA;
    if (offset < source->start || offset + bytes > source->start + source->filled) {
        uint64_t left = source->size - offset;
        size_t wanted = (size_t)(bytes > WINDOW_BYTES ? bytes : WINDOW_BYTES);
        if (wanted > left)
            wanted = (size_t)left;
        if (wanted > source->capacity) {
            free(source->bytes);
            source->filled = source->capacity = 0;
            source->bytes = malloc(wanted);
            if (!source->bytes)
                return -ENOMEM;
            source->capacity = wanted;
        }
        source->filled = 0;
        ssize_t got = mob_pread_full(source->fd, source->bytes, wanted, (off_t)offset);
        if (got == -EIO && wanted > bytes) /* a bad sector may be behind it */
            got = mob_pread_full(source->fd, source->bytes, (size_t)bytes, (off_t)offset);
        if (got < 0)
            return (errint_t)got;
        source->start = offset;
        source->filled = (size_t)got;
        if ((uint64_t)got < bytes)
            return -ENODATA;
    }
    *out = source->bytes + (offset - source->start);
    return 0;
}

static errint_t check_header(const struct journal *journal, const char *name, uint64_t base,
                             const struct journal_file_header *header, struct mob_error *err)
{
    if (memcmp(header->magic, JOURNAL_MAGIC, sizeof header->magic) != 0)
        return mob_error_set(err, -EBADMSG, "%s/%s has no journal's header", journal->path, name);
    struct journal_file_header ours = *header;
    ours.version = JOURNAL_VERSION;
    bool good = header->sum == XXH3_64bits(header, offsetof(struct journal_file_header, sum));
    bool was_ours = header->sum == XXH3_64bits(&ours, offsetof(struct journal_file_header, sum));
    if (header->byte_order == __builtin_bswap32(1))
        return mob_error_set(err, -EINVAL, "%s/%s was made on a machine of another byte order",
                             journal->path, name);
    if (header->version != JOURNAL_VERSION && !was_ours)
        return mob_error_set(err, -EINVAL, "%s/%s is of another version: %u, expected %u",
                             journal->path, name, header->version, JOURNAL_VERSION);
    if (!good || header->byte_order != 1)
        return mob_error_set(err, -EBADMSG, "the header of %s/%s is damaged", journal->path, name);
    if (memcmp(header->owner, journal->owner, sizeof header->owner) != 0)
        return mob_error_set(err, -EINVAL, "%s/%s belongs to another node", journal->path, name);
    if (header->base != base)
        return mob_error_set(err, -EBADMSG, "%s/%s has another file's header", journal->path, name);
    return 0;
}

errint_t journal_source_open_any(struct journal *journal, uint64_t base, const char *suffix,
                                 struct journal_source *out, bool *good, struct mob_error *err)
{
    char name[JOURNAL_NAME_BYTES];
    struct stat info;
    const uint8_t *bytes;
    struct journal_file_header header;
    struct journal_source source = {.base = base};
    journal_name(base, suffix, name);
    source.fd = openat(journal->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (source.fd < 0 || fstat(source.fd, &info) < 0) {
        errint_t error = -errno;
        journal_source_close(&source);
        return mob_error_set(err, error, "%s/%s: %s", journal->path, name, strerror(-error));
    }
    source.size = (uint64_t)info.st_size;
    errint_t error = get(&source, 0, sizeof header, &bytes);
    if (error) {
        error = error == -ENODATA || error == -EIO ? -EBADMSG : error;
        mob_error_set(err, error, "%s/%s: its header can't be read", journal->path, name);
    } else {
        memcpy(&header, bytes, sizeof header);
        error = check_header(journal, name, base, &header, err);
    }
    *good = !error;
    if (error && error != -EBADMSG) {
        journal_source_close(&source);
        return error;
    }
    *out = source;
    return 0;
}

errint_t journal_source_open(struct journal *journal, uint64_t base, const char *suffix,
                             struct journal_source *out, struct mob_error *err)
{
    bool good;
    errint_t error = journal_source_open_any(journal, base, suffix, out, &good, err);
    if (error || good)
        return error;
    journal_source_close(out);
    return -EBADMSG;
}

void journal_source_close(struct journal_source *source)
{
    mob_cleanup_fd(&source->fd);
    free(source->bytes);
    source->bytes = NULL;
}

/* A sector that can't be read is as bad as one that is wrong. */
static bool is_damage(errint_t error)
{
    return error == -ENODATA || error == -EIO;
}

/* Is there a good frame at `offset`? 0: yes. */
static errint_t read_frame(struct journal_source *source, uint64_t offset,
                           struct journal_frame *frame, const uint8_t **operations)
{
    const uint8_t *bytes;
    errint_t error = get(source, offset, sizeof *frame, &bytes);
    if (error)
        return is_damage(error) ? -EBADMSG : error;
    memcpy(frame, bytes, sizeof *frame);
    if (frame->magic != JOURNAL_FRAME_MAGIC || frame->kind < FRAME_CHANGES ||
        frame->kind > FRAME_SNAPSHOT_END || frame->bytes > JOURNAL_FRAME_LIMIT ||
        frame->sequence > JOURNAL_SEQUENCE_LIMIT ||
        frame->header_sum !=
            XXH3_64bits_withSeed(frame, offsetof(struct journal_frame, header_sum), source->base))
        return -EBADMSG;
    uint64_t length = journal_frame_length(frame->bytes), end;
    error = get(source, offset, length, &bytes);
    if (error)
        return is_damage(error) ? -EBADMSG : error;
    XXH128_hash_t sum = XXH3_128bits(bytes + sizeof *frame, journal_padded(frame->bytes));
    memcpy(&end, bytes + length - sizeof end, sizeof end);
    if (sum.low64 != frame->sum[0] || sum.high64 != frame->sum[1] || end != length)
        return -EBADMSG;
    *operations = bytes + sizeof *frame;
    return 0;
}

int journal_next(struct journal_source *source, uint64_t *offset, struct journal_frame *frame,
                 const uint8_t **operations)
{
    if (*offset >= source->size)
        return 0;
    errint_t error = read_frame(source, *offset, frame, operations);
    if (error)
        return error;
    *offset += journal_frame_length(frame->bytes);
    return 1;
}

bool journal_skip(struct journal_source *source, uint64_t *offset)
{
    struct journal_frame frame;
    const uint8_t *bytes;
    for (uint64_t at = *offset + 8; at + sizeof frame <= source->size; at += 8) {
        uint32_t magic;
        errint_t error = get(source, at, sizeof frame, &bytes);
        if (error == -EIO)
            at = at / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES - 8;
        if (error == -EIO)
            continue;
        if (error)
            return false;
        memcpy(&magic, bytes, sizeof magic);
        if (magic == JOURNAL_FRAME_MAGIC && read_frame(source, at, &frame, &bytes) == 0) {
            *offset = at;
            return true;
        }
    }
    return false;
}

errint_t journal_last(struct journal_source *source, uint64_t *offset, struct journal_frame *frame)
{
    const uint8_t *bytes;
    uint64_t length;
    const uint64_t least = sizeof(struct journal_file_header);
    if (source->size == least)
        return -ENOENT;
    if (source->size < least + sizeof length || source->size % 8)
        return -EBADMSG;
    errint_t error = get(source, source->size - sizeof length, sizeof length, &bytes);
    if (error)
        return is_damage(error) ? -EBADMSG : error;
    memcpy(&length, bytes, sizeof length);
    if (length > source->size - least || length < journal_frame_length(0) || length % 8)
        return -EBADMSG;
    *offset = source->size - length;
    error = read_frame(source, *offset, frame, &bytes);
    return !error && journal_frame_length(frame->bytes) != length ? -EBADMSG : error;
}
