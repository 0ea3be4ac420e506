/* Reads of what may be on disk. A disk may stall for seconds, and a thread of the transport that
 * waited for it would keep everybody waiting. So it only takes what is in the page cache; the rest
 * is read by other threads, which answer later.
 *
 * The kernel closes a file (RELEASE) only after each READ of it was answered, also when the reader
 * was killed, since its request is with us: so the handle and its object are there until the reply.
 */
#include <string.h>

#include "fs/internal.h"

static void answer(const struct read_call *call, read_function *get)
{
    char *buffer = reply_buffer(call->bytes);
    reply_read(call->request, buffer, buffer ? get(fs_of(call->request), call, buffer) : 0);
}

static void answer_later(void *argument)
{
    struct read_call *call = argument;
    answer(call, call->wait);
    mob_cleanup_fd(&call->fd);
    free(call);
}

void read_later(const struct read_call *call)
{
    struct read_call *copy = malloc(sizeof *copy);
    if (copy)
        *copy = *call;
    if (copy && slow_run(fs_of(call->request)->reads, answer_later, copy))
        return;
    fuse_reply_err(call->request, ENOMEM);
    if (call->fd >= 0)
        close(call->fd);
    free(copy);
}

void read_now_or_later(const struct read_call *call, read_function *now)
{
    char *buffer = reply_buffer(call->bytes);
    ssize_t got = buffer ? now(fs_of(call->request), call, buffer) : 0;
    if (got == -EAGAIN) {
        read_later(call);
        return;
    }
    reply_read(call->request, buffer, got);
    if (call->fd >= 0)
        close(call->fd);
}
