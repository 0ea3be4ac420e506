/* Directories of --spill, as both `mobula up` and mobulad take them. */
#ifndef MOBULA_TOOLS_SPILL_PLACE_H
#define MOBULA_TOOLS_SPILL_PLACE_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"

#define SPILL_PLACES_LIMIT 8
#define SPILL_PLACE_NONE "none" /* the value that turns spilling off */
#define SPILL_DISK_LEAST_BYTES (1u << 20)

/* The path of a directory without links, in `real`, though a part of it, or all, may not be there:
 * `path` is then taken as it is from there on. -EINVAL: that part has a ".."; -ENOTDIR, -EACCES,
 * ... with a sentence that names `option`. */
MOB_MUST_CHECK errint_t spill_place_locate(const char *path, const char *option,
                                           char real[PATH_MAX], struct mob_error *err);

/* The same for a directory of --spill, which is not made: it may be on a disk that is not mounted,
 * and the store knows. It must not lie in the directory `mount_path` (absolute), which is about to
 * be mounted over: -EINVAL; and one that is there must be this user's to write in. */
MOB_MUST_CHECK errint_t spill_place_check(const char *path, const char *mount_path,
                                          char real[PATH_MAX], struct mob_error *err);

/* True if `path` is `directory` or lies in it. Both absolute and without links. */
bool spill_place_is_inside(const char *path, const char *directory);

/* True if `path`, or what is nearest above it, is on a tmpfs or ramfs: spilling there frees no
 * memory. False if that can't be told. */
bool spill_place_is_in_memory(const char *path);

/* The directory itself, or the nearest one above it that is there. */
void spill_place_nearest(const char *path, char out[PATH_MAX]);

/* Size of the filesystems of these directories (NULL at the end), there or not yet, each filesystem
 * once: what "%" of --disk is of. 0 if none can be asked. */
uint64_t spill_places_whole_bytes(char *const *paths);

/* The value of --disk; "%" is of `whole_bytes`. -EINVAL and a sentence without the option's name,
 * for less than SPILL_DISK_LEAST_BYTES, too. */
MOB_MUST_CHECK errint_t spill_disk_parse(const char *text, uint64_t whole_bytes, uint64_t *bytes,
                                         struct mob_error *err);

#endif
