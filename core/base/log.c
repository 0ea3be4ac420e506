/* Log: one line a message, on standard error. */
#include "core/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int threshold = -1;

void mob_log_set_level(enum mob_log_level level)
{
    __atomic_store_n(&threshold, (int)level, __ATOMIC_RELAXED);
}

static int current_threshold(void)
{
    /* Relaxed: the value is a lone int that every thread would compute alike. */
    int level = __atomic_load_n(&threshold, __ATOMIC_RELAXED);
    if (level < 0) {
        level = getenv("MOBULA_DEBUG") ? MOB_LOG_DEBUG : MOB_LOG_INFO;
        __atomic_store_n(&threshold, level, __ATOMIC_RELAXED);
    }
    return level;
}

void mob_log(enum mob_log_level level, const char *format, ...)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    if ((int)level > current_threshold())
        return;
    int saved_errno = errno;
    char line[1000];
    struct timespec now;
    struct tm calendar;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &calendar);
    size_t used = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &calendar);
    used += (size_t)snprintf(line + used, sizeof line - used, ".%03ldZ %s ", now.tv_nsec / 1000000,
                             names[level]);
    va_list args;
    va_start(args, format);
    int added = vsnprintf(line + used, sizeof line - used - 1, format, args);
    va_end(args);
    size_t message = used;
    if (added > 0)
        used += (size_t)added < sizeof line - used - 1 ? (size_t)added : sizeof line - used - 2;
    for (size_t i = message; i < used; i++) /* a user's name of a file must not make lines */
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written; /* nobody is left to tell */
    errno = saved_errno;
}
