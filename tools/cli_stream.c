/* A job's standard output and error, passed on as they grow. */
#include "tools/cli_job.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>

enum { STREAM_BUFFER_BYTES = 256 << 10, POLL_LEAST_MS = 5, POLL_MOST_MS = 100 };

void cli_stream_init(struct cli_stream *stream, const struct mob_id *job, const char *name, int out)
{
    char id[MOB_ID_STRING_BYTES];
    *stream = (struct cli_stream){.in = -1, .out = out};
    snprintf(stream->path, sizeof stream->path, "jobs/%s/%s", mob_id_format(job, id), name);
}

void cli_stream_close(struct cli_stream *stream)
{
    mob_cleanup_fd(&stream->in);
}

/* An interrupted write to a reader that does not read must end, so that a signal can cancel the
 * job; mob_write_full() would go on. */
static errint_t write_or_signal(struct cli_stream *stream, const char *buffer, size_t bytes)
{
    while (bytes) {
        ssize_t put = write(stream->out, buffer, bytes);
        if (put < 0 && errno == EINTR && !cli_caught_signal())
            continue;
        if (put < 0)
            return -errno;
        stream->offset += put;
        buffer += put;
        bytes -= (size_t)put;
    }
    return 0;
}

errint_t cli_stream_pump(const struct cli_mount *mount, struct cli_stream *stream, bool last,
                         bool *moved, bool *reading)
{
    static char buffer[STREAM_BUFFER_BYTES];
    if (last)
        cli_stream_close(stream);
    *reading = true;
    if (stream->in < 0)
        stream->in = openat(mount->fd, stream->path, O_RDONLY | O_CLOEXEC);
    if (stream->in < 0)
        return -errno;
    for (;;) {
        *reading = true;
        ssize_t got = pread(stream->in, buffer, sizeof buffer, stream->offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : 0;
        *reading = false;
        errint_t error = write_or_signal(stream, buffer, (size_t)got);
        if (error)
            return error;
        *moved = true;
    }
}

static errint_t pump_both(const struct cli_mount *mount, struct cli_stream streams[2], bool last,
                          bool *moved, struct mob_error *err)
{
    *moved = false;
    for (int i = 0; i < 2; i++) {
        bool reading;
        errint_t error = cli_stream_pump(mount, &streams[i], last, moved, &reading);
        /* A job that never ran may have no output at all. */
        if (error == -ENOENT && reading)
            continue;
        if (error)
            return mob_error_set(err, error,
                                 reading ? "cannot read %s: %s" : "cannot pass %s on: %s",
                                 streams[i].path, cli_errno_text(error));
    }
    return 0;
}

/* Waits for the job's end or a signal, `wait_ms` at most. */
static void wait_a_little(int watch_fd, int wake_fd, int wait_ms)
{
    struct pollfd pollers[2] = {{.fd = watch_fd, .events = POLLIN},
                                {.fd = wake_fd, .events = POLLIN}};
    poll(pollers, wake_fd < 0 ? 1 : 2, wait_ms);
}

static errint_t follow(const struct cli_mount *mount, const struct mob_id *job,
                       struct cli_stream streams[2], int watch, int wake_fd, bool cancel,
                       struct cli_job_end *end, struct mob_error *err)
{
    int wait_ms = POLL_LEAST_MS;
    bool cancelled = false;
    for (;;) {
        bool moved;
        cli_job_end(mount, job, watch, end);
        errint_t error = pump_both(mount, streams, end->over, &moved, err);
        if (error == -EINTR && cli_caught_signal())
            error = 0;
        if (end->over || error)
            return error;
        if (cli_caught_signal() && !cancel)
            return 0;
        if (cli_caught_signal() && !cancelled) {
            error = cli_job_control(mount, job, "cancel\n");
            if (error && error != -ESRCH)
                return mob_error_set(err, error, "cannot cancel the job: %s",
                                     cli_errno_text(error));
            cancelled = true;
        }
        wait_ms = moved ? POLL_LEAST_MS : wait_ms * 2 < POLL_MOST_MS ? wait_ms * 2 : POLL_MOST_MS;
        wait_a_little(watch, cancelled ? -1 : wake_fd, wait_ms);
    }
}

errint_t cli_job_follow(const struct cli_mount *mount, const struct mob_id *job, int wake_fd,
                        bool cancel, struct cli_job_end *end, struct mob_error *err)
{
    struct cli_stream streams[2];
    cleanup_fd int watch = cli_job_watch(mount, job);
    *end = (struct cli_job_end){.over = false};
    if (watch < 0)
        return mob_error_set(err, watch, "cannot follow the job: %s", cli_errno_text(watch));
    cli_stream_init(&streams[0], job, "stdout", STDOUT_FILENO);
    cli_stream_init(&streams[1], job, "stderr", STDERR_FILENO);
    errint_t error = follow(mount, job, streams, watch, wake_fd, cancel, end, err);
    cli_stream_close(&streams[0]);
    cli_stream_close(&streams[1]);
    return error;
}
