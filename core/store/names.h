/* Names: the directories staging/ and run/, what is in them, and what each name holds.
 *
 * A name is a directory, a link to an object (which holds one reference), a link to a job, a plain
 * symbolic link (tar and cp -a bring them; it holds nothing unless its text ends in the ID of an
 * object that exists, then it is a link to that object), or a staged file that is being written
 * (staged.h). Names live in LMDB keyed by directory and hash of the name (the hash is also the
 * readdir cursor, so listing needs no state); only directories, staged files and counts are in
 * memory. */
#ifndef MOBULA_CORE_STORE_NAMES_H
#define MOBULA_CORE_STORE_NAMES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/store/store.h"

/* The numbers of the two roots, which always exist. */
#define NAMES_STAGING UINT64_C(1)
#define NAMES_RUN UINT64_C(2)
#define NAMES_FIRST_FREE_NUMBER UINT64_C(16)
#define NAMES_LENGTH_LIMIT 255u
#define NAMES_DEPTH_LIMIT 200u

enum name_type { NAME_DIRECTORY, NAME_STAGED, NAME_OBJECT, NAME_JOB, NAME_SYMLINK };

struct name_info {
    enum name_type type;
    uint64_t
        number; /* of the directory, staged file, symbolic link, or the object linked to; jobs: 0 */
    struct mob_id target; /* NAME_OBJECT, NAME_JOB */
    uint64_t parent;
    unsigned depth; /* of the directory the name is in: 1 in a root */
    mode_t mode;    /* directories: S_IFDIR | bits; symbolic links 0777; staged files: see
                       staged_info() */
    uid_t uid;
    gid_t gid;
    uint64_t mtime_ns;
    uint32_t links;   /* directories: 2 + subdirectories */
    uint64_t entries; /* directories */
};

/* By name. -ENOENT, -ENOTDIR (parent is no directory any more), -ENAMETOOLONG. */
MOB_MUST_CHECK errint_t names_find(struct store *store, uint64_t parent, const char *name,
                                   struct name_info *out);
/* A directory by number. -ENOENT. */
MOB_MUST_CHECK errint_t names_directory(struct store *store, uint64_t number,
                                        struct name_info *out);
/* The text of a plain symbolic link by number; caller frees. -ENOENT. */
MOB_MUST_CHECK errint_t names_symlink_text(struct store *store, uint64_t number, char **text);

struct name_entry {
    struct name_info info;
    uint64_t cursor; /* where to go on after this entry; < 2^62 */
    char name[NAMES_LENGTH_LIMIT + 1];
};
/* Up to `count` entries of a directory from `cursor` (0 at the start). Returns how many, 0 = end.
 * An entry that exists throughout is returned exactly once. `.` and `..` are not included. -ENOENT.
 */
ssize_t names_list(struct store *store, uint64_t directory, uint64_t cursor, struct name_entry *out,
                   size_t count);

/* -EEXIST, -ENOENT (parent gone), -ENAMETOOLONG, -EMLINK (depth), -ENOSPC. */
MOB_MUST_CHECK errint_t names_make_directory(struct store *store, uint64_t parent, const char *name,
                                             mode_t mode, uid_t uid, gid_t gid,
                                             struct name_info *out);
/* Only staging and run are its roots; removing those is -EBUSY. -ENOTEMPTY, -ENOTDIR, -ENOENT. */
MOB_MUST_CHECK errint_t names_remove_directory(struct store *store, uint64_t parent,
                                               const char *name);
/* Removes any name but a directory (-EISDIR), dropping what it holds; a staged file is only
 * unlinked: it lives while it is open, and is discarded at its last close. If it was a link to a
 * job, *job gets the ID and *was_job is set (both may be NULL). */
MOB_MUST_CHECK errint_t names_unlink(struct store *store, uint64_t parent, const char *name,
                                     bool *was_job, struct mob_id *job);
/* POSIX rename within or across directories of the same root (-EXDEV between staging and run):
 * replaces what is there by its rules
 * (-EISDIR, -ENOTDIR, -ENOTEMPTY, -EINVAL into itself, -EMLINK too deep). RENAME_NOREPLACE gives
 * -EEXIST, RENAME_EXCHANGE swaps; a staged file only with another staged file (else -EBUSY). Names
 * of one object are replaced as any other, since they are links, not inodes. A job link that was
 * replaced is reported as in names_unlink(). */
MOB_MUST_CHECK errint_t names_rename(struct store *store, uint64_t parent, const char *name,
                                     uint64_t new_parent, const char *new_name, unsigned flags,
                                     bool *replaced_job, struct mob_id *job);
/* Another name for an object (ln, ln -s). -EEXIST, -ENOENT (no such object). */
MOB_MUST_CHECK errint_t names_link_object(struct store *store, uint64_t parent, const char *name,
                                          const struct mob_id *object, uid_t uid, gid_t gid,
                                          struct name_info *out);
/* Another name for a job; the caller knows that the job exists, and counts the name. -EEXIST. */
MOB_MUST_CHECK errint_t names_link_job(struct store *store, uint64_t parent, const char *name,
                                       const struct mob_id *job, uid_t uid, gid_t gid,
                                       struct name_info *out);
/* A plain symbolic link. */
MOB_MUST_CHECK errint_t names_make_symlink(struct store *store, uint64_t parent, const char *name,
                                           const char *text, uid_t uid, gid_t gid,
                                           struct name_info *out);
/* chmod, chown, utimes of a directory; fields with no bit in `valid` are kept. */
enum { NAMES_SET_MODE = 1, NAMES_SET_UID = 2, NAMES_SET_GID = 4, NAMES_SET_MTIME = 8 };
MOB_MUST_CHECK errint_t names_set_directory(struct store *store, uint64_t number, unsigned valid,
                                            mode_t mode, uid_t uid, gid_t gid, uint64_t mtime_ns,
                                            struct name_info *out);

/* "staging/a/b" of a directory or of a name in it (`name` may be NULL), into a new string. */
MOB_MUST_CHECK errint_t names_path(struct store *store, uint64_t directory, const char *name,
                                   char **path);

/* Every name that is a link to a job, after a restart: jobs count their names from it. */
errint_t names_each_job(struct store *store, int (*each)(void *argument, const struct mob_id *job),
                        void *argument);

#endif
