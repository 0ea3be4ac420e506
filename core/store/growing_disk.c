/* Growing files: the file on disk, a plain one; an encrypted one is handed on. */
#include <fcntl.h>
#include <string.h>

#include "core/store/growing_internal.h"

enum {
    DISK_BLOCK_BYTES = 4096,     /* as direct I/O wants it */
    ZERO_PIECE_BYTES = 64 << 10, /* of a unit with holes, pieces of zeros are not written */
};

/* --- moving --- */

/* Waits until it is on disk, as direct I/O does: an error after the punch would be too late. */
static errint_t write_buffered(int fd, const unsigned char *buffer, size_t bytes, uint64_t offset)
{
    errint_t error = mob_pwrite_full(fd, buffer, bytes, (off_t)offset);
    if (error)
        return error;
    if (sync_file_range(fd, (off_t)offset, (off_t)bytes,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER) < 0)
        return -errno;
    posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
    return 0;
}

errint_t growing_write_through(const struct growing_move *move, unsigned char *buffer, size_t bytes,
                               uint64_t offset)
{
    size_t whole = (bytes + DISK_BLOCK_BYTES - 1) / DISK_BLOCK_BYTES * DISK_BLOCK_BYTES;
    errint_t error = -EINVAL;
    if (move->direct >= 0) {
        memset(buffer + bytes, 0, whole - bytes);
        error = mob_pwrite_full(move->direct, buffer, whole, (off_t)offset);
    }
    /* EINVAL also from the rest of a short count, which may be at any offset. */
    if (error == -EINVAL)
        error = write_buffered(move->growing->disk.fd, buffer, bytes, offset);
    return error;
}

static errint_t write_batch(const struct growing_move *move, unsigned char *buffer,
                            const struct growing_batch *batch)
{
    errint_t error = growing_write_through(move, buffer, batch->bytes, batch->offset);
    /* Nothing may be left past the end of the file: it would show up when that grows. */
    if (!error && batch->bytes % GROWING_UNIT_BYTES &&
        ftruncate(move->growing->disk.fd, (off_t)(batch->offset + batch->bytes)) < 0)
        error = -errno;
    return error;
}

static errint_t write_zeros(int fd, uint64_t offset, uint64_t bytes)
{
    static const char zeros[65536];
    uint64_t size;
    errint_t error = growing_size(fd, &size);
    if (error || offset >= size)
        return error;
    if (bytes > size - offset)
        bytes = size - offset;
    for (uint64_t done = 0; done < bytes && !error; done += sizeof zeros) {
        size_t piece = bytes - done < sizeof zeros ? (size_t)(bytes - done) : sizeof zeros;
        error = mob_pwrite_full(fd, zeros, piece, (off_t)(offset + done));
    }
    return error;
}

static errint_t clear(int fd, uint64_t offset, uint64_t bytes)
{
    uint64_t data;
    errint_t error = growing_find_data(fd, offset, &data);
    if (error || data >= offset + bytes)
        return error;
    error = growing_punch_fd(fd, offset, bytes);
    return error == -EOPNOTSUPP ? write_zeros(fd, offset, bytes) : error;
}

static bool is_zero(const unsigned char *buffer, size_t bytes)
{
    return bytes == 0 || (buffer[0] == 0 && memcmp(buffer, buffer + 1, bytes - 1) == 0);
}

/* A unit with holes: what is zero stays a hole on disk. */
static errint_t write_sparse(const struct growing_move *move, unsigned char *buffer,
                             const struct growing_batch *batch)
{
    int disk_fd = move->growing->disk.fd;
    errint_t error = 0;
    if (batch->bytes < GROWING_UNIT_BYTES)
        return write_batch(move, buffer, batch);
    for (size_t done = 0; done < batch->bytes && !error;) {
        size_t piece = 0;
        while (done + piece < batch->bytes && is_zero(buffer + done + piece, ZERO_PIECE_BYTES))
            piece += ZERO_PIECE_BYTES;
        if (piece)
            error = clear(disk_fd, batch->offset + done, piece);
        done += piece;
        if (done >= batch->bytes || error)
            break;
        struct growing_batch part = {batch->offset + done, ZERO_PIECE_BYTES};
        error = mob_pwrite_full(disk_fd, buffer + done, part.bytes, (off_t)part.offset);
        done += part.bytes;
    }
    if (!error && sync_file_range(disk_fd, (off_t)batch->offset, (off_t)batch->bytes,
                                  SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                      SYNC_FILE_RANGE_WAIT_AFTER) < 0)
        error = -errno;
    return error;
}

errint_t growing_disk_move(const struct growing_move *move, unsigned char *buffer,
                           const struct growing_batch *batch, bool sparse)
{
    if (move->growing->disk.key)
        return growing_encrypted_move(move, buffer, batch);
    return sparse ? write_sparse(move, buffer, batch) : write_batch(move, buffer, batch);
}

/* --- what was moved --- */

errint_t growing_disk_settle(struct growing *growing)
{
    /* In exclusive mode nothing waits for the note but this. */
    errint_t error = growing->unnoted && growing->exclusive ? growing_settle(growing) : 0;
    return error || !growing->disk.key ? error : growing_encrypted_settle(growing);
}

errint_t growing_disk_read(const struct growing *growing, void *buffer, size_t bytes,
                           uint64_t offset)
{
    if (growing->disk.key)
        return growing_encrypted_read(growing, buffer, bytes, offset);
    ssize_t got = mob_pread_full(growing->disk.fd, buffer, bytes, (off_t)offset);
    if (got < 0)
        return (errint_t)got;
    /* It is short where the file ends with a hole. */
    memset((char *)buffer + got, 0, bytes - (size_t)got);
    return 0;
}

errint_t growing_disk_write(struct growing *growing, const void *buffer, size_t bytes,
                            uint64_t offset)
{
    return growing->disk.key ? growing_encrypted_write(growing, buffer, bytes, offset)
                             : mob_pwrite_full(growing->disk.fd, buffer, bytes, (off_t)offset);
}

errint_t growing_disk_clear(struct growing *growing, uint64_t offset, uint64_t bytes)
{
    return growing->disk.key ? growing_encrypted_clear(growing, offset, bytes)
                             : clear(growing->disk.fd, offset, bytes);
}

errint_t growing_disk_cut(struct growing *growing, uint64_t size)
{
    uint64_t disk_size;
    if (growing->disk.key)
        return growing_encrypted_cut(growing, size);
    if (growing->state.moved <= size)
        return 0;
    errint_t error = growing_size(growing->disk.fd, &disk_size);
    if (!error && disk_size > size && ftruncate(growing->disk.fd, (off_t)size) < 0)
        error = -errno;
    return error;
}

errint_t growing_disk_drop(const struct growing *growing, uint64_t offset)
{
    if (growing->disk.key)
        offset = cipher_block_offset(offset / CIPHER_BLOCK_BYTES);
    return ftruncate(growing->disk.fd, (off_t)offset) < 0 ? -errno : 0;
}

errint_t growing_disk_finish(struct growing *growing, uint64_t size)
{
    if (growing->disk.key)
        return growing_encrypted_finish(growing, size);
    return ftruncate(growing->disk.fd, (off_t)size) < 0 ? -errno : 0;
}
