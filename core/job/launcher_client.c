/* The server's side of the launcher's socket. */
#include "core/job/launcher_client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "core/base/util.h"

#define SYNC_TIMEOUT_MS 10000

static errint_t send_packet(int fd, const struct launch_command *command, const void *body,
                            size_t body_bytes, const int *fds, size_t fd_count)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control;
    struct iovec parts[2] = {{(void *)command, sizeof *command}, {(void *)body, body_bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = body_bytes ? 2 : 1};
    if (fd_count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(part), fds, fd_count * sizeof(int));
    }
    for (;;) {
        if (sendmsg(fd, &message, MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno == EAGAIN) { /* the caller's end is non-blocking: wait here */
            struct pollfd ready = {.fd = fd, .events = POLLOUT};
            poll(&ready, 1, -1);
        } else if (errno != EINTR) {
            return errno == ECONNRESET ? -EPIPE : -errno;
        }
    }
}

static errint_t send_command(int fd, enum launch_command_type type, uint64_t number,
                             uint32_t attempt, uint32_t value)
{
    struct launch_command command = {
        .magic = LAUNCH_MAGIC, .type = type, .number = number, .attempt = attempt, .value = value};
    return send_packet(fd, &command, NULL, 0, NULL, 0);
}

errint_t launcher_start(int fd, uint64_t number, uint32_t attempt, uint64_t timeout_ns,
                        const struct launch_request *request, int stdout_fd, int stderr_fd)
{
    cleanup_free uint8_t *body = NULL;
    size_t bytes;
    errint_t error = launch_request_encode(request, &body, &bytes);
    if (error)
        return error;
    struct launch_command command = {.magic = LAUNCH_MAGIC,
                                     .type = LAUNCH_RUN,
                                     .number = number,
                                     .attempt = attempt,
                                     .timeout_ns = timeout_ns,
                                     .body_bytes = (uint32_t)bytes};
    int fds[3] = {stdout_fd, stderr_fd, -1};
    if (bytes <= LAUNCH_INLINE_LIMIT)
        return send_packet(fd, &command, body, bytes, fds, 2);
    cleanup_fd int large = memfd_create("mobula-request", MFD_CLOEXEC);
    if (large < 0)
        return -errno;
    error = mob_write_full(large, body, bytes);
    if (error)
        return error;
    fds[2] = large;
    command.body_in_fd = 1;
    return send_packet(fd, &command, NULL, 0, fds, 3);
}

errint_t launcher_stop(int fd, uint64_t number, uint32_t attempt, enum launch_stop why)
{
    return send_command(fd, LAUNCH_STOP, number, attempt, why);
}

errint_t launcher_signal(int fd, uint64_t number, uint32_t attempt, int signal)
{
    return send_command(fd, LAUNCH_SIGNAL, number, attempt, (uint32_t)signal);
}

errint_t launcher_acknowledge(int fd, uint64_t number, uint32_t attempt)
{
    return send_command(fd, LAUNCH_ACK, number, attempt, 0);
}

errint_t launcher_next(int fd, struct launch_report *report)
{
    for (;;) {
        ssize_t got = recv(fd, report, sizeof *report, MSG_DONTWAIT | MSG_TRUNC);
        if (got == 0)
            return -EPIPE;
        if (got < 0 && errno != EINTR)
            return errno == ECONNRESET ? -EPIPE : -errno;
        if (got == (ssize_t)sizeof *report && report->magic == LAUNCH_MAGIC &&
            report->type >= LAUNCHED_SYNC_BEGIN && report->type <= LAUNCHED_SYNC_END &&
            report->stop <= LAUNCH_STOP_DOWN && report->stage <= LAUNCH_STAGE_EXEC)
            return 0;
    }
}

/* The same, waiting. */
static errint_t wait_next(int fd, struct launch_report *report)
{
    for (;;) {
        errint_t error = launcher_next(fd, report);
        if (error != -EAGAIN)
            return error;
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        int count = poll(&ready, 1, SYNC_TIMEOUT_MS);
        if (count == 0)
            return -ETIMEDOUT;
        if (count < 0 && errno != EINTR)
            return -errno;
    }
}

errint_t launcher_sync(int fd, launcher_known *known, void *argument, struct mob_error *err)
{
    uint64_t cookie;
    struct launch_report report;
    if (getrandom(&cookie, sizeof cookie, 0) != (ssize_t)sizeof cookie)
        return mob_error_set(err, -EIO, "the kernel gives no random bytes");
    errint_t error = send_command(fd, LAUNCH_SYNC, cookie, 0, 0);
    bool begun = false;
    while (!error) {
        error = wait_next(fd, &report);
        if (error)
            break;
        if (report.type == LAUNCHED_SYNC_BEGIN)
            begun = report.number == cookie;
        else if (begun && report.type == LAUNCHED_SYNC_END)
            return 0;
        else if (begun)
            known(argument, &report);
    }
    return mob_error_set(err, error, "the launcher does not answer: %s", strerror(-error));
}
