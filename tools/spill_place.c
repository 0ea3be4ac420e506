/* Directories of --spill: finding and judging them. */
#include "tools/spill_place.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core/base/util.h"

bool spill_place_is_inside(const char *path, const char *directory)
{
    size_t length = strlen(directory);
    while (length && directory[length - 1] == '/')
        length--;
    return !strncmp(path, directory, length) && (!path[length] || path[length] == '/');
}

bool spill_place_is_in_memory(const char *path)
{
    struct statfs fs;
    char place[PATH_MAX];
    spill_place_nearest(path, place);
    return !statfs(place, &fs) &&
           ((uint64_t)fs.f_type == TMPFS_MAGIC || (uint64_t)fs.f_type == RAMFS_MAGIC);
}

void spill_place_nearest(const char *path, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s", path);
    while (access(out, F_OK)) {
        char *slash = strrchr(out, '/');
        if (!slash) {
            snprintf(out, PATH_MAX, ".");
            return;
        }
        slash[slash == out] = '\0';
        if (slash == out)
            return;
    }
}

/* Appends what is not there; its "//" and "." are left out. */
static errint_t append_rest(char real[PATH_MAX], const char *rest)
{
    size_t length = strlen(real);
    while (*(rest += strspn(rest, "/"))) {
        size_t part = strcspn(rest, "/");
        if (part == 2 && !strncmp(rest, "..", 2))
            return -EINVAL;
        bool slash = length > 1; /* else it is "/" */
        if (length + slash + part >= PATH_MAX)
            return -ENAMETOOLONG;
        if (part != 1 || *rest != '.') {
            if (slash)
                real[length++] = '/';
            memcpy(real + length, rest, part);
            length += part;
            real[length] = '\0';
        }
        rest += part;
    }
    return 0;
}

errint_t spill_place_locate(const char *path, const char *option, char real[PATH_MAX],
                            struct mob_error *err)
{
    char nearest[PATH_MAX];
    struct stat st;
    if (strlen(path) >= PATH_MAX)
        return mob_error_set(err, -ENAMETOOLONG, "%s: the path is too long", option);
    spill_place_nearest(path, nearest);
    if (!realpath(nearest, real) || stat(real, &st))
        return mob_error_set(err, -errno, "%s: %s: %s", option, nearest, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return mob_error_set(err, -ENOTDIR, "%s: %s: %s", option, path, strerror(ENOTDIR));
    /* "." stands for no part of a relative path. */
    errint_t error = append_rest(real, path + (strcmp(nearest, ".") ? strlen(nearest) : 0));
    if (error == -EINVAL)
        return mob_error_set(err, error, "%s: %s: there is nothing that '..' could lead out of",
                             option, path);
    return error ? mob_error_set(err, error, "%s: the path is too long", option) : 0;
}

errint_t spill_place_check(const char *path, const char *mount_path, char real[PATH_MAX],
                           struct mob_error *err)
{
    errint_t error = spill_place_locate(path, "--spill", real, err);
    if (error)
        return error;
    if (spill_place_is_inside(real, mount_path))
        return mob_error_set(err, -EINVAL,
                             "--spill: %s lies in the directory %s, which is mounted over", path,
                             mount_path);
    if (access(real, R_OK | W_OK | X_OK) && errno != ENOENT)
        return mob_error_set(err, -errno, "--spill: can't write in %s: %s", real, strerror(errno));
    return 0;
}

uint64_t spill_places_whole_bytes(char *const *paths)
{
    dev_t seen[SPILL_PLACES_LIMIT];
    size_t count = 0;
    uint64_t whole_bytes = 0;
    for (; *paths; paths++) {
        struct stat st;
        struct statvfs fs;
        char place[PATH_MAX];
        size_t i = 0;
        spill_place_nearest(*paths, place);
        if (stat(place, &st) || statvfs(place, &fs))
            continue;
        while (i < count && seen[i] != st.st_dev)
            i++;
        if (i < count || count == SPILL_PLACES_LIMIT)
            continue;
        seen[count++] = st.st_dev;
        whole_bytes += (uint64_t)fs.f_blocks * fs.f_frsize;
    }
    return whole_bytes;
}

errint_t spill_disk_parse(const char *text, uint64_t whole_bytes, uint64_t *bytes,
                          struct mob_error *err)
{
    errint_t error = mob_parse_size(text, whole_bytes, bytes, err);
    if (!error && *bytes < SPILL_DISK_LEAST_BYTES)
        return mob_error_set(err, -EINVAL,
                             "'%s' is too little: expected at least 1M ('--spill none' turns "
                             "spilling off)",
                             text);
    return error;
}
