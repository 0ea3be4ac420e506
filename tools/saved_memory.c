/* What is kept of memory on disk between an orderly end and the next start. See saved_memory.h. */
#include "tools/saved_memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/util.h"

enum { CHUNK_BYTES = 1 << 20 };

/* Behind the bytes of each file. The checksum is that of the file's name and its bytes. */
struct trailer {
    char magic[8];
    uint64_t bytes;
    XXH128_canonical_t sum;
};
static const char magic[8] = "mobulasv";

_Static_assert(sizeof(struct trailer) == 32, "no padding goes to disk");

/* Where what is at `offset` ends: a hole, or data. */
static uint64_t end_of_stretch(int fd, uint64_t offset, uint64_t end, bool *hole)
{
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    *hole = data < 0 ? errno == ENXIO : (uint64_t)data > offset;
    off_t next = *hole ? data : lseek(fd, (off_t)offset, SEEK_HOLE);
    return next > (off_t)offset && (uint64_t)next < end ? (uint64_t)next : end;
}

/* The next bytes, at most CHUNK_BYTES. 0: the file has become shorter. */
static ssize_t copy_chunk(int from, int to, uint64_t offset, uint64_t end, char *buffer)
{
    bool hole;
    uint64_t left = end_of_stretch(from, offset, end, &hole) - offset;
    size_t bytes = left < CHUNK_BYTES ? (size_t)left : CHUNK_BYTES;
    if (hole) {
        memset(buffer, 0, bytes);
        return (ssize_t)bytes;
    }
    ssize_t got = mob_pread_full(from, buffer, bytes, (off_t)offset);
    errint_t error = got > 0 ? mob_pwrite_full(to, buffer, (size_t)got, (off_t)offset) : 0;
    return error ? error : got;
}

/* The first `end` bytes; *out describes them. Holes stay holes: of a file that has outgrown memory,
 * what is on the disk is a hole in memory, where there would be no room for it. */
static errint_t copy_bytes(int from, int to, uint64_t end, const char *name, struct trailer *out)
{
    cleanup_free char *buffer = malloc(CHUNK_BYTES);
    XXH3_state_t *state = XXH3_createState();
    errint_t error = buffer && state ? 0 : -ENOMEM;
    ssize_t got = error ? 0 : 1;
    *out = (struct trailer){0};
    memcpy(out->magic, magic, sizeof magic);
    if (!error) {
        XXH3_128bits_reset(state);
        XXH3_128bits_update(state, name, strlen(name));
    }
    while (!error && got > 0 && out->bytes < end) {
        got = copy_chunk(from, to, out->bytes, end, buffer);
        error = got < 0 ? (errint_t)got : 0;
        if (!error) {
            XXH3_128bits_update(state, buffer, (size_t)got);
            out->bytes += (uint64_t)got;
        }
    }
    if (!error && ftruncate(to, (off_t)out->bytes)) /* it may end with a hole */
        error = -errno;
    if (!error)
        XXH128_canonicalFromHash(&out->sum, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    return error;
}

static errint_t open_both(int from_dir, int to_dir, const char *name, int *from, int *to)
{
    *from = openat(from_dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (*from < 0)
        return -errno;
    *to = openat(to_dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return *to < 0 ? -errno : 0;
}

static errint_t keep_file(int from_dir, int to_dir, const char *name)
{
    cleanup_fd int from = -1;
    cleanup_fd int to = -1;
    struct trailer trailer;
    struct stat info;
    errint_t error = open_both(from_dir, to_dir, name, &from, &to);
    if (!error && fstat(from, &info) < 0)
        error = -errno;
    if (!error)
        error = copy_bytes(from, to, (uint64_t)info.st_size, name, &trailer);
    if (!error)
        error = mob_pwrite_full(to, &trailer, sizeof trailer, (off_t)trailer.bytes);
    return error ? error : fsync(to) ? -errno : 0;
}

/* 1: it is not what was saved. */
static errint_t restore_file(int from_dir, int to_dir, const char *name)
{
    cleanup_fd int from = -1;
    cleanup_fd int to = -1;
    struct stat info;
    struct trailer is, expected = {0};
    errint_t error = open_both(from_dir, to_dir, name, &from, &to);
    if (!error && fstat(from, &info) < 0)
        error = -errno;
    if (error)
        return error;
    uint64_t bytes = (uint64_t)info.st_size - sizeof expected;
    if ((uint64_t)info.st_size < sizeof expected ||
        mob_pread_full(from, &expected, sizeof expected, (off_t)bytes) != sizeof expected)
        error = 1;
    if (!error)
        error = copy_bytes(from, to, bytes, name, &is);
    return !error && memcmp(&is, &expected, sizeof is) != 0 ? 1 : error == -EIO ? 1 : error;
}

static void put_aside(int saved_dir, int data_dir, const char *saved_path, const char *name)
{
    char aside[NAME_MAX + sizeof SAVED_DAMAGED_PREFIX];
    snprintf(aside, sizeof aside, SAVED_DAMAGED_PREFIX "%s", name);
    unlinkat(data_dir, name, 0);
    bool moved = renameat(saved_dir, name, saved_dir, aside) == 0;
    mob_log_error("store: %s/%s is damaged, and its object is lost; the file is kept as %s",
                  saved_path, name, moved ? aside : name);
}

static bool is_aside(const char *name)
{
    return strncmp(name, SAVED_DAMAGED_PREFIX, sizeof SAVED_DAMAGED_PREFIX - 1) == 0;
}

/* Is this entry a file to be copied? */
static bool is_data(int dir, const char *name)
{
    struct stat info;
    return !is_aside(name) && fstatat(dir, name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISREG(info.st_mode) && info.st_size;
}

/* The directory too, if nothing stays in it. */
static void remove_files(const char *path, bool aside_too)
{
    DIR *dir = opendir(path);
    if (!dir)
        return;
    struct dirent *entry;
    while ((entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") &&
            (aside_too || !is_aside(entry->d_name)))
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    rmdir(path);
}

errint_t saved_memory_keep(const char *data_dir, const char *saved_dir)
{
    errint_t error = mob_make_directories(saved_dir, 0700);
    cleanup_fd int to = error ? -1 : open(saved_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = error ? NULL : opendir(data_dir);
    if (!error && (to < 0 || (!dir && errno != ENOENT)))
        error = -errno;
    for (struct dirent *entry; !error && dir && (entry = readdir(dir));)
        if (is_data(dirfd(dir), entry->d_name))
            error = keep_file(dirfd(dir), to, entry->d_name);
    if (dir)
        closedir(dir);
    if (error)
        remove_files(saved_dir, false);
    else
        rmdir(saved_dir); /* if it is empty */
    return error;
}

bool saved_memory_is_any(const char *data_dir)
{
    DIR *dir = opendir(data_dir);
    bool any = false;
    for (struct dirent *entry; dir && !any && (entry = readdir(dir));)
        any = is_data(dirfd(dir), entry->d_name);
    if (dir)
        closedir(dir);
    return any;
}

errint_t saved_memory_restore(const char *saved_dir, const char *data_dir)
{
    DIR *dir = opendir(saved_dir);
    if (!dir)
        return errno == ENOENT ? 0 : -errno;
    cleanup_fd int to = open(data_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    errint_t error = to < 0 ? -errno : 0;
    for (struct dirent *entry; !error && (entry = readdir(dir));) {
        if (!is_data(dirfd(dir), entry->d_name))
            continue;
        error = restore_file(dirfd(dir), to, entry->d_name);
        if (!error)
            unlinkat(dirfd(dir), entry->d_name, 0);
        if (error == 1) {
            put_aside(dirfd(dir), to, saved_dir, entry->d_name);
            error = 0;
        }
    }
    closedir(dir);
    rmdir(saved_dir);
    return error;
}

void saved_memory_remove(const char *path)
{
    remove_files(path, true);
}
