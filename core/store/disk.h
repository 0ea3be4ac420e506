/* The spill directories: data files on disk, striped over up to eight directories.
 *
 *   DIR/mobula-spill   what the directory is: version, owner and identity, as text
 *   DIR/objects/HEX    the bytes of one object, by the number of its data file, from offset 0 on,
 *                      so that the kernel can be given it for passthrough; which object that is
 *                      says an extended attribute (disk_header.h)
 *   DIR/work           of the first directory: where jobs write what may become objects; its
 *                      content is the user's, not the store's (store_work_dir())
 *
 * What is in them is known by the store's records; what no record names is removed at the next
 * start. An object's file never changes once a record names it. */
#ifndef MOBULA_CORE_STORE_DISK_H
#define MOBULA_CORE_STORE_DISK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/store/disk_header.h"

enum { DISK_DIRS = 8, DISK_NO_DIR = 255 };

struct disk_dir {
    char *path;
    int fd, objects_fd; /* -1: it is not there, before disk_make() */
    dev_t device;
    struct disk_identity identity; /* without a `directory` before disk_make(): it has none */
    atomic_bool undescribed;       /* it was logged that its files can't have headers */
};

struct disk {
    struct disk_dir dirs[DISK_DIRS];
    unsigned count;        /* 0: nothing is spilled */
    char *work_dir;        /* DIR/work of the first, without symbolic links */
    const char *key;       /* the name of the key; "": what is written is not encrypted */
    uint64_t budget_bytes; /* 0: what the filesystems have */
    atomic_int_fast64_t used_bytes;
    atomic_uint next; /* the directory that is tried first, next time */
};

/* Opens what is there, and changes nothing: what is missing may be on a disk that is not mounted.
 * -EINVAL with a sentence: a directory of another node or version, the same one twice, or too many;
 * -ENOKEY, -EKEYREJECTED: it is encrypted with another key than `key` (cipher_key_name(), "":
 * none); -errno. `paths` ends with NULL. */
MOB_MUST_CHECK errint_t disk_open(struct disk *disk, const char *const *paths,
                                  uint64_t budget_bytes, const uint8_t owner[MOB_ID_OWNER_BYTES],
                                  const char *key, struct mob_error *err);
/* Makes what is missing, and gives identities, on disk, to those that have none, and the name of
 * the key to those that are encrypted from now on. Root lets everybody pass through the directories
 * it makes, and through the first one, to the work directories of their own jobs; objects/ stays
 * closed. Errors as disk_open(). Blocks for the disk.
 */
MOB_MUST_CHECK errint_t disk_make(struct disk *disk, struct mob_error *err);
void disk_close(struct disk *disk);

/* Opens the data file `file` of directory `dir`. Returns a descriptor or a negative errno. */
int disk_open_file(const struct disk *disk, unsigned dir, uint64_t file, int flags);
/* The same without waiting for the disk: -EAGAIN if the kernel would have to ask it, or can't tell.
 * `flags` make nothing. */
int disk_open_file_now(const struct disk *disk, unsigned dir, uint64_t file, int flags);
/* As disk_open_file(), wherever it is; *dir (may be NULL) says where. */
int disk_find_file(const struct disk *disk, uint64_t file, int flags, unsigned *dir);
/* Makes an empty file that is to hold `bytes`, in the next directory with room for them. `flags`:
 * O_RDONLY, O_RDWR or O_WRONLY, and O_DIRECT, which is left out where the filesystem refuses it.
 * Where somebody has removed DIR/objects, it is made again, which is logged.
 * -ENOSPC: none has room; -EEXIST; what the last one said if each refuses it. */
int disk_make_file(struct disk *disk, uint64_t file, uint64_t bytes, int flags, unsigned *dir);
/* Removes a file; one that is not there is removed already. -errno. Nothing is counted or logged.
 */
MOB_MUST_CHECK errint_t disk_unlink_file(const struct disk *disk, unsigned dir, uint64_t file);
/* The same of a file which counted `bytes`. An error is logged, and the next start tries again. */
void disk_remove_file(struct disk *disk, unsigned dir, uint64_t file, uint64_t bytes);
/* Whether so much more is within the budget. */
bool disk_fits(const struct disk *disk, uint64_t bytes);
/* Removes what an attempt that failed has left of a file, in any directory; it isn't counted.
 * -errno: some of it is still there, and could be taken for the file. */
MOB_MUST_CHECK errint_t disk_clear_file(const struct disk *disk, uint64_t file);
/* Counts what a file has come to take, or takes no more. */
static inline void disk_count(struct disk *disk, int64_t change)
{
    atomic_fetch_add(&disk->used_bytes, change);
}
/* What may still be written, all directories together: within the budget, and less a reserve of 5 %
 * of each filesystem (64 MiB to 4 GiB), which leaves room for metadata and for others. */
uint64_t disk_room(const struct disk *disk);
/* The largest file that one directory may still take. */
uint64_t disk_largest_room(const struct disk *disk);
static inline uint64_t disk_used(const struct disk *disk)
{
    int64_t used = atomic_load(&disk->used_bytes);
    return used > 0 ? (uint64_t)used : 0;
}

/* Calls `each` for every data file there is. A non-zero return ends the walk and is returned. */
MOB_MUST_CHECK errint_t disk_each_file(const struct disk *disk,
                                       errint_t (*each)(void *argument, uint64_t file,
                                                        unsigned dir),
                                       void *argument);
/* "DIR/objects/HEX" as a new string; NULL = no memory. */
char *disk_path(const struct disk *disk, unsigned dir, uint64_t file);

#endif
