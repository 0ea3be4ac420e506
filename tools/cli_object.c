/* Waiting for objects and copying bytes. */
#include "tools/cli_object.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/xattr.h>

/* --- errors --- */

static const char *object_sentence(errint_t code)
{
    switch (-code) {
    case ENOENT:
        return "no such object: it never existed, or was freed";
    case EIO:
        return "it can't be read";
    case ECANCELED:
        return "its job was cancelled";
    case ETIMEDOUT:
        return "its job ran past its time limit";
    case EOWNERDEAD:
        return "its owner node is gone, and with it the object";
    case ENODATA:
        return "every copy is lost and it can't be made again";
    case EACCES:
        return "it belongs to someone who did not share it";
    case ENOTCONN:
        return "the daemon is dead";
    default:
        return cli_errno_text(code);
    }
}

errint_t cli_object_error(const struct cli_mount *mount, const struct mob_id *object,
                          const char *given, errint_t code, struct mob_error *err)
{
    cleanup_free char *cause = NULL;
    if (code != -ENOENT && code != -ENOTCONN)
        cause = cli_mount_xattr(mount, object, "error");
    if (cause && *cause)
        return mob_error_set(err, code, "%s: %s", given, cause);
    return mob_error_set(err, code, "%s: %s", given, object_sentence(code));
}

int cli_object_status(errint_t code)
{
    return code == -EIO ? EX_UNAVAILABLE : cli_status(code);
}

/* --- waiting --- */

int cli_object_watch(const struct cli_mount *mount, const struct mob_id *object)
{
    char path[64] = "objects/";
    mob_id_format(object, path + 8);
    int fd = openat(mount->fd, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

errint_t cli_object_state(int watch_fd)
{
    char state[32];
    ssize_t length = fgetxattr(watch_fd, "user.mobula.state", state, sizeof state - 1);
    if (length > 0) {
        state[length] = '\0';
        state[strcspn(state, "\n")] = '\0';
        if (!strcmp(state, "ready"))
            return 0;
        if (!strcmp(state, "pending"))
            return -EAGAIN;
    }
    /* It has failed: only reading tells with which errno, and there is nothing to fetch. */
    char byte;
    ssize_t got;
    do
        got = pread(watch_fd, &byte, 1, 0);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : 0;
}

int cli_object_open(const struct cli_mount *mount, const struct mob_id *object, const char *given,
                    uint64_t deadline, struct mob_error *err)
{
    struct cli_progress progress;
    cli_progress_start(&progress);
    cleanup_fd int watch = cli_object_watch(mount, object);
    if (watch < 0)
        return cli_object_error(mount, object, given, steal_fd(&watch), err);
    for (;;) {
        int wait_ms = cli_poll_ms(deadline, 500);
        struct pollfd poller = {.fd = watch, .events = POLLIN};
        int ready = poll(&poller, 1, wait_ms);
        if (ready < 0 && errno != EINTR)
            return mob_error_set(err, -errno, "poll: %s", strerror(errno));
        errint_t state = ready > 0 ? cli_object_state(watch) : -EAGAIN;
        if (!state)
            break;
        if (state != -EAGAIN) {
            cli_progress_clear(&progress);
            return cli_object_error(mount, object, given, state, err);
        }
        if (!cli_poll_ms(deadline, 1)) {
            cli_progress_clear(&progress);
            return mob_error_set(err, -ETIME, "%s: still pending when the timeout ran out", given);
        }
        if (cli_progress_due(&progress))
            cli_progress_show(&progress, "waiting for %s", given);
    }
    cli_progress_clear(&progress);
    /* Opened again while the first descriptor holds the object: a descriptor of a ready object can
     * be read past the daemon (passthrough), one opened while it was pending can't. */
    char path[64] = "objects/";
    mob_id_format(object, path + 8);
    int fd = openat(mount->fd, path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? cli_object_error(mount, object, given, -errno, err) : fd;
}

/* --- copying --- */

enum { COPY_CHUNK_BYTES = 64 << 20, COPY_BUFFER_BYTES = 1 << 20 };

static void show_copy(struct cli_progress *progress, uint64_t copied)
{
    char size[32], rate[32];
    if (!progress || !cli_progress_due(progress))
        return;
    uint64_t elapsed_ns = mob_monotonic_ns() - progress->started_ns;
    mob_format_size((uint64_t)((double)copied * 1e9 / (double)elapsed_ns), rate);
    cli_progress_show(progress, "%s copied, %s/s", mob_format_size(copied, size), rate);
}

/* One kind of in-kernel copy. 1 = all done, 0 = does not work for these files (nothing was lost),
 * negative = an error in the middle. */
static int copy_in_kernel(int in, int out, bool same_kind, uint64_t *copied,
                          struct cli_progress *progress)
{
    for (bool first = true;; first = false) {
        ssize_t moved = same_kind ? copy_file_range(in, NULL, out, NULL, COPY_CHUNK_BYTES, 0)
                                  : sendfile(out, in, NULL, COPY_CHUNK_BYTES / 8);
        if (moved > 0) {
            *copied += (uint64_t)moved;
            show_copy(progress, *copied);
            continue;
        }
        if (moved < 0 && errno == EINTR)
            continue;
        /* Nothing at all at the start: a file of /proc, say, whose length reads as 0. */
        if (moved == 0)
            return !first;
        if (first || errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
            return 0;
        return -errno;
    }
}

static errint_t copy_through_buffer(int in, int out, uint64_t *copied, bool *reading,
                                    struct cli_progress *progress)
{
    cleanup_free char *buffer = malloc(COPY_BUFFER_BYTES);
    if (!buffer)
        return -ENOMEM;
    for (;;) {
        *reading = true;
        ssize_t got = read(in, buffer, COPY_BUFFER_BYTES);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : 0;
        *reading = false;
        errint_t error = mob_write_full(out, buffer, (size_t)got);
        if (error)
            return error;
        *copied += (uint64_t)got;
        show_copy(progress, *copied);
    }
}

errint_t cli_copy(int in, int out, uint64_t *copied, bool *reading, struct cli_progress *progress)
{
    uint64_t count = 0;
    struct stat from = {0}, to = {0};
    if (!copied)
        copied = &count;
    *copied = 0;
    *reading = true;
    if (fstat(in, &from) || fstat(out, &to))
        return -errno;
    if (S_ISDIR(from.st_mode))
        return -EISDIR;
    int done = 0;
    if (S_ISREG(from.st_mode) && S_ISREG(to.st_mode))
        done = copy_in_kernel(in, out, true, copied, progress);
    if (!done && S_ISREG(from.st_mode))
        done = copy_in_kernel(in, out, false, copied, progress);
    if (done < 0)
        *reading = done == -EIO || done == -EISDIR;
    if (!done)
        done = copy_through_buffer(in, out, copied, reading, progress);
    if (progress)
        cli_progress_clear(progress);
    return done > 0 ? 0 : done;
}
