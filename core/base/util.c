/* Whole reads and writes, small files, sizes and times as text, clocks. */
#include "core/base/util.h"

#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

ssize_t mob_read_full(int fd, void *buffer, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = read(fd, (char *)buffer + done, bytes - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

errint_t mob_write_full(int fd, const void *buffer, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t put = write(fd, (const char *)buffer + done, bytes - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        if (put == 0)
            return -EIO;
        done += (size_t)put;
    }
    return 0;
}

ssize_t mob_pread_full(int fd, void *buffer, size_t bytes, off_t offset)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(fd, (char *)buffer + done, bytes - done, offset + (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

ssize_t mob_pread_now(int fd, void *buffer, size_t bytes, off_t offset)
{
    size_t done = 0;
    while (done < bytes) {
        struct iovec part = {(char *)buffer + done, bytes - done};
        ssize_t got = preadv2(fd, &part, 1, offset + (off_t)done, RWF_NOWAIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno == EOPNOTSUPP ? -EAGAIN : -errno;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

bool mob_is_cached(int fd, uint64_t offset, uint64_t bytes)
{
    enum { CACHESTAT = 451 }; /* the same on every architecture; glibc has no name for it */
    struct {
        uint64_t offset, bytes;
    } range = {offset, bytes};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } found;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (!bytes || syscall(CACHESTAT, fd, &range, &found, 0) < 0)
        return true;
    return found.cached > (offset + bytes - 1) / page - offset / page;
}

ssize_t mob_pread_cached(int fd, uint64_t size, void *buffer, size_t bytes, uint64_t offset)
{
    if (offset >= size)
        return 0;
    if (bytes > size - offset)
        bytes = (size_t)(size - offset);
    return mob_is_cached(fd, offset, bytes) ? mob_pread_now(fd, buffer, bytes, (off_t)offset)
                                            : -EAGAIN;
}

errint_t mob_pwrite_full(int fd, const void *buffer, size_t bytes, off_t offset)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t put = pwrite(fd, (const char *)buffer + done, bytes - done, offset + (off_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        if (put == 0)
            return -EIO;
        done += (size_t)put;
    }
    return 0;
}

errint_t mob_read_file(int dir_fd, const char *path, size_t limit_bytes, char **content,
                       size_t *content_bytes)
{
    cleanup_fd int fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    size_t capacity = 4096, used = 0;
    cleanup_free char *buffer = malloc(capacity);
    if (!buffer)
        return -ENOMEM;
    for (;;) {
        ssize_t got = mob_read_full(fd, buffer + used, capacity - 1 - used);
        if (got < 0)
            return (errint_t)got;
        used += (size_t)got;
        if (used > limit_bytes)
            return -EFBIG;
        if (used < capacity - 1)
            break;
        char *larger = realloc(buffer, capacity * 2);
        if (!larger)
            return -ENOMEM;
        buffer = larger;
        capacity *= 2;
    }
    buffer[used] = '\0';
    *content = steal_pointer(&buffer);
    if (content_bytes)
        *content_bytes = used;
    return 0;
}

errint_t mob_write_file(int dir_fd, const char *path, const void *content, size_t content_bytes,
                        mode_t mode)
{
    char temporary[PATH_MAX];
    if (snprintf(temporary, sizeof temporary, "%s.%d.tmp", path, (int)getpid()) >=
        (int)sizeof temporary)
        return -ENAMETOOLONG;
    int fd = openat(dir_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0)
        return -errno;
    errint_t error = mob_write_full(fd, content, content_bytes);
    if (!error && fchmod(fd, mode))
        error = -errno;
    if (close(fd) && !error)
        error = -errno;
    if (!error && renameat(dir_fd, temporary, dir_fd, path))
        error = -errno;
    if (error)
        unlinkat(dir_fd, temporary, 0);
    return error;
}

errint_t mob_make_directories(const char *path, mode_t mode)
{
    char partial[PATH_MAX];
    if (snprintf(partial, sizeof partial, "%s", path) >= (int)sizeof partial)
        return -ENAMETOOLONG;
    for (char *slash = partial + 1; *slash; slash++) {
        if (*slash != '/')
            continue;
        *slash = '\0';
        if (mkdir(partial, mode) && errno != EEXIST)
            return -errno;
        *slash = '/';
    }
    if (mkdir(partial, mode) && errno != EEXIST)
        return -errno;
    struct stat st;
    if (stat(partial, &st))
        return -errno;
    return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

/* A non-negative decimal number with an optional fraction. Signs, hex, inf and nan, which strtod
 * would take, are refused. */
static bool parse_number(const char **text, double *value)
{
    const char *cursor = *text;
    while (isspace((unsigned char)*cursor))
        cursor++;
    if (!isdigit((unsigned char)*cursor))
        return false;
    const char *start = cursor;
    while (isdigit((unsigned char)*cursor))
        cursor++;
    if (*cursor == '.')
        for (cursor++; isdigit((unsigned char)*cursor);)
            cursor++;
    char digits[64];
    size_t length = (size_t)(cursor - start);
    if (length >= sizeof digits)
        return false;
    memcpy(digits, start, length);
    digits[length] = '\0';
    *value = strtod(digits, NULL);
    while (isspace((unsigned char)*cursor))
        cursor++;
    *text = cursor;
    return true;
}

errint_t mob_parse_size(const char *text, uint64_t whole_bytes, uint64_t *bytes,
                        struct mob_error *err)
{
    static const char units[] = "kmgtp";
    const char *cursor = text;
    double value;
    if (!parse_number(&cursor, &value))
        goto invalid;
    if (!strcmp(cursor, "%")) {
        if (value > 100)
            goto invalid;
        *bytes = (uint64_t)((double)whole_bytes * value / 100);
        return 0;
    }
    double scale = 1;
    const char *unit = *cursor ? strchr(units, tolower((unsigned char)*cursor)) : NULL;
    if (unit) {
        scale = pow(1024, (double)(unit - units + 1));
        cursor++;
        if (*cursor == 'i')
            cursor++;
    }
    if (*cursor == 'B' || *cursor == 'b')
        cursor++;
    if (*cursor || value * scale >= 9.2e18)
        goto invalid;
    *bytes = (uint64_t)(value * scale);
    return 0;
invalid:
    return mob_error_set(err, -EINVAL, "'%s' is no size: expected a number with K, M, G, T or %%",
                         text);
}

errint_t mob_parse_duration(const char *text, uint64_t *ns, struct mob_error *err)
{
    static const struct {
        const char *unit;
        double ns;
    } units[] = {{"", 1e9},   {"s", 1e9},    {"ms", 1e6},   {"us", 1e3},
                 {"m", 60e9}, {"min", 60e9}, {"h", 3600e9}, {"d", 86400e9}};
    const char *cursor = text;
    double value;
    if (parse_number(&cursor, &value))
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(units); i++)
            if (!strcmp(cursor, units[i].unit) && value * units[i].ns < 9.2e18) {
                *ns = (uint64_t)(value * units[i].ns);
                return 0;
            }
    return mob_error_set(err, -EINVAL,
                         "'%s' is no duration: expected a number with ms, s, m, h or d", text);
}

char *mob_format_size(uint64_t bytes, char out[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1024 && unit + 1 < MOB_ARRAY_LENGTH(units); unit++)
        value /= 1024;
    snprintf(out, 32, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return out;
}

char *mob_format_duration(uint64_t ns, char out[32])
{
    double seconds = (double)ns / 1e9;
    if (seconds < 1)
        snprintf(out, 32, "%.0f ms", seconds * 1e3);
    else if (seconds < 60)
        snprintf(out, 32, "%.1f s", seconds);
    else if (seconds < 3600)
        snprintf(out, 32, "%d min %02d s", (int)(seconds / 60), (int)seconds % 60);
    else
        snprintf(out, 32, "%d h %02d min", (int)(seconds / 3600), (int)(seconds / 60) % 60);
    return out;
}

static uint64_t read_clock(clockid_t which)
{
    struct timespec now;
    clock_gettime(which, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t mob_monotonic_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t mob_realtime_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

bool mob_is_utf8(const char *text, size_t bytes)
{
    const unsigned char *cursor = (const unsigned char *)text, *end = cursor + bytes;
    while (cursor < end) {
        unsigned first = *cursor++;
        if (first == 0)
            return false;
        if (first < 0x80)
            continue;
        int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
        if (first < 0xc2 || first > 0xf4 || end - cursor < more)
            return false;
        uint32_t code = first & (0x3fu >> more);
        for (int i = 0; i < more; i++, cursor++) {
            if ((*cursor & 0xc0) != 0x80)
                return false;
            code = code << 6 | (*cursor & 0x3f);
        }
        if ((more == 2 && code < 0x800) || (more == 3 && code < 0x10000) || code > 0x10ffff ||
            (code >= 0xd800 && code <= 0xdfff))
            return false;
    }
    return true;
}

char *mob_printable(const char *text)
{
    bool utf8 = mob_is_utf8(text, strlen(text));
    char *out = malloc(4 * strlen(text) + 1), *at = out;
    for (; out && *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte < ' ' || byte == 0x7f || byte == '\\' || (byte > 0x7f && !utf8))
            at += sprintf(at, "\\%03o", byte);
        else
            *at++ = *text;
    }
    if (out)
        *at = '\0';
    return out;
}

static uint64_t system_now(void *context)
{
    (void)context;
    return mob_monotonic_ns();
}

static uint64_t system_wall(void *context)
{
    (void)context;
    return mob_realtime_ns();
}

const struct mob_clock mob_system_clock = {system_now, system_wall, NULL};

/* Not glibc's, which has it from 2.41 on. The first version of the structure. */
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

enum { SHORT_TURN_NS = 100000 }; /* the shortest there is */

bool mob_hurry(int nice)
{
    id_t thread = (id_t)syscall(SYS_gettid);
    bool allowed = setpriority(PRIO_PROCESS, thread, nice) == 0;
    struct scheduling scheduling = {.size = sizeof scheduling, .runtime_ns = SHORT_TURN_NS};
    scheduling.nice = getpriority(PRIO_PROCESS, thread); /* which it sets, too */
    (void)syscall(SYS_sched_setattr, 0, &scheduling, 0);
    return allowed;
}

void mob_no_hurry(void)
{
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 0); /* to give it up is allowed */
}
