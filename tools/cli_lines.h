/* Lines of a descriptor, without waiting for one: for loops that have other things to wait for. */
#ifndef MOBULA_TOOLS_CLI_LINES_H
#define MOBULA_TOOLS_CLI_LINES_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/error.h"

struct cli_lines {
    int fd;
    char end; /* of each line: a newline, or 0 as from find -print0 */
    bool at_end;
    char *buffer;
    size_t used, capacity, taken;
};

#define CLI_LINES_LIMIT_BYTES ((size_t)1 << 20)

/* The next line, terminated and without its newline, valid until the next call: 1. 0: the end.
 * -EAGAIN: none yet (poll the descriptor); any other negative errno: an error, -EFBIG for a line
 * past the limit, -EILSEQ for one with a 0 in it. */
int cli_lines_next(struct cli_lines *lines, const char **line);
void cli_lines_free(struct cli_lines *lines);

#endif
