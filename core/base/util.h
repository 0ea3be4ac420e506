/* Small things everything uses: cleanup types, whole reads and writes, sizes and times as text. */
#ifndef MOBULA_BASE_UTIL_H
#define MOBULA_BASE_UTIL_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#include "core/base/error.h"

#define MOB_CLEANUP(function) __attribute__((cleanup(function)))

/* Closes `*fd` if it is one, keeps errno, leaves -1. */
static inline void mob_cleanup_fd(int *fd)
{
    if (*fd >= 0) {
        int saved_errno = errno;
        close(*fd);
        errno = saved_errno;
        *fd = -1;
    }
}
static inline void mob_cleanup_free(void *pointer)
{
    int saved_errno = errno;
    free(*(void **)pointer);
    errno = saved_errno;
}
static inline void mob_cleanup_file(FILE **file)
{
    if (*file)
        fclose(*file);
    *file = NULL;
}
#define cleanup_fd MOB_CLEANUP(mob_cleanup_fd)
#define cleanup_free MOB_CLEANUP(mob_cleanup_free)
#define cleanup_file MOB_CLEANUP(mob_cleanup_file)

/* Ownership moves out of the variable. */
static inline int steal_fd(int *fd)
{
    int value = *fd;
    *fd = -1;
    return value;
}
static inline void *mob_steal_pointer(void *pointer)
{
    void *value = *(void **)pointer;
    *(void **)pointer = NULL;
    return value;
}
#define steal_pointer(variable) ((__typeof__(*(variable)))mob_steal_pointer(variable))

/* `cleanup_lock pthread_mutex_t *held = mob_lock(&mutex);` unlocks at the end of the scope. */
static inline pthread_mutex_t *mob_lock(pthread_mutex_t *mutex)
{
    pthread_mutex_lock(mutex);
    return mutex;
}
static inline void mob_cleanup_unlock(pthread_mutex_t **mutex)
{
    if (*mutex)
        pthread_mutex_unlock(*mutex);
}
#define cleanup_lock MOB_CLEANUP(mob_cleanup_unlock) __attribute__((unused))

#define MOB_ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* Reads or writes all of `bytes`, going on after EINTR and short counts. mob_read_full returns the
 * number read (less than `bytes` only at end of file) or a negative errno. */
ssize_t mob_read_full(int fd, void *buffer, size_t bytes);
MOB_MUST_CHECK errint_t mob_write_full(int fd, const void *buffer, size_t bytes);
ssize_t mob_pread_full(int fd, void *buffer, size_t bytes, off_t offset);
/* The same without waiting for a disk: all of it, up to the end of the file, or -EAGAIN: it isn't
 * in the page cache, or the filesystem doesn't say (tmpfs doesn't). Ask mob_is_cached() first: the
 * kernel begins to read what is missing, and may have to wait before it can (for where the file has
 * it, for room in the disk's queue). */
ssize_t mob_pread_now(int fd, void *buffer, size_t bytes, off_t offset);
/* Whether the range, none of it past the end of the file, is in the page cache (cachestat(2), from
 * Linux 6.5 on). Also true if the kernel doesn't say. */
bool mob_is_cached(int fd, uint64_t offset, uint64_t bytes);
/* Both, of a file of `size` bytes. */
ssize_t mob_pread_cached(int fd, uint64_t size, void *buffer, size_t bytes, uint64_t offset);
MOB_MUST_CHECK errint_t mob_pwrite_full(int fd, const void *buffer, size_t bytes, off_t offset);

/* Reads a whole file (at `dir_fd`, which may be AT_FDCWD) of at most `limit_bytes` into a new,
 * terminated buffer that the caller frees. -EFBIG past the limit. */
MOB_MUST_CHECK errint_t mob_read_file(int dir_fd, const char *path, size_t limit_bytes,
                                      char **content, size_t *content_bytes);

/* Writes a file so that it is there whole or not at all (temporary name, rename). */
MOB_MUST_CHECK errint_t mob_write_file(int dir_fd, const char *path, const void *content,
                                       size_t content_bytes, mode_t mode);

/* mkdir -p. Existing directories are no error; -ENOTDIR where something else is in the way. */
MOB_MUST_CHECK errint_t mob_make_directories(const char *path, mode_t mode);

/* "512M", "4 GiB", "100000", "1.5G": binary units K M G T, with or without B or iB, any case.
 * "30%" is of `whole_bytes`. -EINVAL and a sentence in `err` for anything else or an overflow. */
MOB_MUST_CHECK errint_t mob_parse_size(const char *text, uint64_t whole_bytes, uint64_t *bytes,
                                       struct mob_error *err);

/* "90", "1.5", "250ms", "10m", "2h", "1d"; bare numbers are seconds. -EINVAL as above. */
MOB_MUST_CHECK errint_t mob_parse_duration(const char *text, uint64_t *ns, struct mob_error *err);

/* "1.2 GiB" into `out`. Returns `out`. */
char *mob_format_size(uint64_t bytes, char out[32]);

/* "4.2 s", "1 min 03 s", "850 ms". Returns `out`. */
char *mob_format_duration(uint64_t ns, char out[32]);

/* Nanoseconds of CLOCK_MONOTONIC and CLOCK_REALTIME. */
uint64_t mob_monotonic_ns(void);
uint64_t mob_realtime_ns(void);

/* Gives the calling thread priority: nice(2) value `nice`, where that is allowed, else as it was;
 * and short turns, so that it runs soon when it has something to do, and those who wait for its
 * core soon after it: on kernels from 6.12 on, whose scheduler (EEVDF) lets a thread ask for
 * another slice (sched_setattr(2), sched_runtime). False: there is no priority. */
bool mob_hurry(int nice);
/* Takes back what priority the calling thread has from the one that made it. */
void mob_no_hurry(void);

/* True if `bytes` of `text` are well-formed UTF-8 without NUL. */
bool mob_is_utf8(const char *text, size_t bytes);
/* A new string for a line that is UTF-8: as in /proc/mounts, control characters and backslashes
 * become "\ooo", and all that is no ASCII where `text` is no UTF-8. NULL = out of memory. */
char *mob_printable(const char *text);

/* Time, injected where logic depends on it. `now_ns` is monotonic. */
struct mob_clock {
    uint64_t (*now_ns)(void *context);
    uint64_t (*wall_ns)(void *context);
    void *context;
};
extern const struct mob_clock mob_system_clock;

#endif
