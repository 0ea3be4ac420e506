/* Directories of --spill: making and judging them. */
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
    return !statfs(path, &fs) &&
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

static errint_t refuse_inside(const char *path, const char *mount_path, struct mob_error *err)
{
    return mob_error_set(err, -EINVAL,
                         "--spill: %s lies in the directory %s, which is mounted over", path,
                         mount_path);
}

errint_t spill_place_make(const char *path, const char *mount_path, char real[PATH_MAX],
                          struct mob_error *err)
{
    char nearest[PATH_MAX];
    if (strlen(path) >= PATH_MAX)
        return mob_error_set(err, -ENAMETOOLONG, "--spill: the path is too long");
    spill_place_nearest(path, nearest);
    if (realpath(nearest, real) && spill_place_is_inside(real, mount_path))
        return refuse_inside(path, mount_path, err);
    errint_t error = mob_make_directories(path, 0700);
    if (error)
        return mob_error_set(err, error, "--spill: can't make the directory %s: %s", path,
                             strerror(-error));
    if (!realpath(path, real))
        return mob_error_set(err, -errno, "--spill: %s: %s", path, strerror(errno));
    /* Once more: ".." in a part that was not there yet may lead anywhere. */
    if (spill_place_is_inside(real, mount_path))
        return refuse_inside(path, mount_path, err);
    if (access(real, R_OK | W_OK | X_OK))
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
        size_t i = 0;
        if (stat(*paths, &st) || statvfs(*paths, &fs))
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
