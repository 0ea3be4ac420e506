/* Freezing units of a growing file: references to its pages in pipes, which keep them as they were
 * written last when the file lets go of them. */
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "core/store/growing_internal.h"

enum {
    PIPE_BYTES = GROWING_BATCH_BYTES / GROWING_PIPES,
    BUFFER_ALIGNMENT = 4096,
    HEADS_BYTES = GROWING_BATCH_BYTES / CIPHER_BLOCK_BYTES * CIPHER_HEAD_BYTES,
};

/* A page that is larger than a unit would be zeroed in place by a punch, and the pipes with it. */
static errint_t check_huge_pages(struct mob_error *err)
{
    cleanup_free char *text = NULL;
    if (mob_read_file(AT_FDCWD, "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", 64, &text,
                      NULL))
        return 0; /* a kernel without them */
    if (strtoull(text, NULL, 10) <= GROWING_UNIT_BYTES)
        return 0;
    return mob_error_set(err, -EOPNOTSUPP,
                         "files can't be moved to disk while they are written: huge pages of %.20s "
                         "bytes are larger than 2 MiB",
                         text);
}

static errint_t make_pipe(int ends[2], struct mob_error *err)
{
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
        ends[0] = ends[1] = -1;
        return mob_error_set(err, -errno, "can't make a pipe: %s", strerror(errno));
    }
    if (fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES) < PIPE_BYTES)
        return mob_error_set(err, -EOPNOTSUPP,
                             "files can't be moved to disk while they are written: pipes can't be "
                             "made %d bytes large (see /proc/sys/fs/pipe-max-size and "
                             "pipe-user-pages-soft)",
                             PIPE_BYTES);
    return 0;
}

errint_t growing_pipes_open(struct growing_pipes *pipes, struct mob_error *err)
{
    memset(pipes, -1, sizeof *pipes);
    errint_t error = check_huge_pages(err);
    if (!error)
        error = make_pipe(pipes->copy, err);
    for (int i = 0; i < GROWING_PIPES && !error; i++)
        error = make_pipe(pipes->frozen[i], err);
    if (error)
        growing_pipes_close(pipes);
    return error;
}

void growing_pipes_close(struct growing_pipes *pipes)
{
    for (int end = 0; end < 2; end++) {
        mob_cleanup_fd(&pipes->copy[end]);
        for (int i = 0; i < GROWING_PIPES; i++)
            mob_cleanup_fd(&pipes->frozen[i][end]);
    }
}

errint_t growing_mover_open(struct growing_mover *mover, struct growing_pipes *pipes)
{
    *mover = (struct growing_mover){.pipes = pipes, .null_fd = -1};
    mover->null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (mover->null_fd < 0)
        return -errno;
    mover->buffer = aligned_alloc(BUFFER_ALIGNMENT, 2 * (size_t)GROWING_BATCH_BYTES + HEADS_BYTES);
    if (mover->buffer)
        return 0;
    growing_mover_close(mover);
    return -ENOMEM;
}

void growing_mover_close(struct growing_mover *mover)
{
    mob_cleanup_fd(&mover->null_fd);
    free(mover->buffer);
    mover->buffer = NULL;
}

errint_t growing_freeze(const struct growing_pipes *pipes, int fd, uint64_t offset, size_t bytes)
{
    for (int i = 0; i < GROWING_PIPES; i++) {
        size_t left = bytes < PIPE_BYTES ? bytes : PIPE_BYTES;
        bytes -= left;
        while (left) {
            off_t at = (off_t)offset;
            ssize_t got = splice(fd, &at, pipes->frozen[i][1], NULL, left, SPLICE_F_NONBLOCK);
            if (got < 0 && errno == EINTR)
                continue;
            if (got <= 0) /* EAGAIN: it took more slots than pages; 0: the file became shorter */
                return got < 0 && errno != EAGAIN ? -errno : -EIO;
            offset += (uint64_t)got;
            left -= (size_t)got;
        }
    }
    return 0;
}

static errint_t waiting(int fd, size_t *bytes)
{
    int count = 0;
    *bytes = 0;
    if (ioctl(fd, FIONREAD, &count) < 0)
        return -errno;
    *bytes = (size_t)count;
    return 0;
}

errint_t growing_frozen_bytes(const struct growing_pipes *pipes, size_t *bytes)
{
    *bytes = 0;
    for (int i = 0; i < GROWING_PIPES; i++) {
        size_t here;
        errint_t error = waiting(pipes->frozen[i][0], &here);
        if (error)
            return error;
        *bytes += here;
    }
    return 0;
}

static errint_t drain_pipe(int fd, int null_fd)
{
    for (;;) {
        ssize_t got = splice(fd, NULL, null_fd, NULL, PIPE_BYTES, SPLICE_F_NONBLOCK);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno == EAGAIN ? 0 : -errno;
        if (got == 0)
            return 0;
    }
}

errint_t growing_read_frozen(const struct growing_mover *mover, void *buffer, size_t bytes)
{
    char *place = buffer;
    for (int i = 0; i < GROWING_PIPES && bytes; i++) {
        const int *copy = mover->pipes->copy;
        size_t here = bytes < PIPE_BYTES ? bytes : PIPE_BYTES;
        /* What a dead server left there. tee(2) begins at the pipe's beginning each time, so it
         * must take everything at once: the other pipe is as large and empty. */
        errint_t error = drain_pipe(copy[0], mover->null_fd);
        if (error)
            return error;
        ssize_t got;
        do
            got = tee(mover->pipes->frozen[i][0], copy[1], here, SPLICE_F_NONBLOCK);
        while (got < 0 && errno == EINTR);
        if (got < 0)
            return -errno;
        if ((size_t)got != here || mob_read_full(copy[0], place, here) != (ssize_t)here)
            return -EIO;
        place += here;
        bytes -= here;
    }
    return 0;
}

errint_t growing_drain(const struct growing_mover *mover)
{
    errint_t error = drain_pipe(mover->pipes->copy[0], mover->null_fd);
    for (int i = 0; i < GROWING_PIPES && !error; i++)
        error = drain_pipe(mover->pipes->frozen[i][0], mover->null_fd);
    return error;
}
