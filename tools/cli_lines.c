/* Lines of a descriptor, without waiting for one. */
#include "tools/cli_lines.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A line that is in the buffer already: 1, 0 or -EILSEQ. */
static int take(struct cli_lines *lines, const char **line)
{
    char *start = lines->buffer + lines->taken;
    size_t left = lines->used - lines->taken;
    char *newline = left ? memchr(start, lines->end, left) : NULL;
    if (!newline && lines->at_end && left)
        newline = start + left; /* the last line has no newline; there is room for the terminator */
    if (!newline)
        return 0;
    *newline = '\0';
    size_t end = (size_t)(newline - lines->buffer) + 1;
    lines->taken = end < lines->used ? end : lines->used;
    *line = start;
    return start + strlen(start) == newline ? 1 : -EILSEQ;
}

static errint_t make_room(struct cli_lines *lines)
{
    if (lines->taken) {
        memmove(lines->buffer, lines->buffer + lines->taken, lines->used - lines->taken);
        lines->used -= lines->taken;
        lines->taken = 0;
    }
    if (lines->used + 1 < lines->capacity)
        return 0;
    if (lines->capacity > CLI_LINES_LIMIT_BYTES)
        return -EFBIG;
    size_t capacity = lines->capacity ? lines->capacity * 2 : 65536;
    char *larger = realloc(lines->buffer, capacity);
    if (!larger)
        return -ENOMEM;
    lines->buffer = larger;
    lines->capacity = capacity;
    return 0;
}

int cli_lines_next(struct cli_lines *lines, const char **line)
{
    for (;;) {
        int taken = take(lines, line);
        if (taken)
            return taken;
        if (lines->at_end)
            return 0;
        errint_t error = make_room(lines);
        if (error)
            return error;
        struct pollfd poller = {.fd = lines->fd, .events = POLLIN};
        if (poll(&poller, 1, 0) == 0)
            return -EAGAIN;
        ssize_t got =
            read(lines->fd, lines->buffer + lines->used, lines->capacity - 1 - lines->used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        lines->at_end = got == 0;
        lines->used += (size_t)got;
    }
}

void cli_lines_free(struct cli_lines *lines)
{
    free(lines->buffer);
    *lines = (struct cli_lines){.fd = -1};
}
