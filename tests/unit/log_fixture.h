/* What is logged, for unit tests that look at it. */
#ifndef MOBULA_TESTS_LOG_FIXTURE_H
#define MOBULA_TESTS_LOG_FIXTURE_H

#include "unit.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* With *kept = -1, standard error goes to a file from then on; the second call ends that and
 * returns what was written, which the caller frees. */
static inline char *log_caught(int *kept)
{
    char *text;
    if (*kept < 0) {
        *kept = dup(2);
        int fd = open("/tmp", O_RDWR | O_TMPFILE, 0600);
        assert_true(fd >= 0 && dup2(fd, 2) == 2);
        close(fd);
        return NULL;
    }
    off_t bytes = lseek(2, 0, SEEK_END);
    text = calloc(1, (size_t)bytes + 1);
    assert_int_equal(pread(2, text, (size_t)bytes, 0), bytes);
    dup2(*kept, 2);
    close(*kept);
    return text;
}

#endif
