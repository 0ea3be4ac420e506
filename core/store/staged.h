/* Staged files: being written in staging/ or run/, to become an object or a job at their last
 * close.
 *
 * A staged file has a data file in memory_dir, or in a spill directory when memory is short. With
 * FUSE passthrough, writers hold their own open files on it, and the store keeps only a read-only
 * descriptor; otherwise all writes come through staged_write(). Its record (name, mode, owner) is
 * kept in a file mapped shared, not in LMDB, so that making one costs no transaction; a successor
 * of a killed server takes it up from there. */
#ifndef MOBULA_CORE_STORE_STAGED_H
#define MOBULA_CORE_STORE_STAGED_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/store/names.h"
#include "core/store/store.h"

struct staged_info {
    uint64_t number;
    uint64_t parent; /* directory it is named in; of an unlinked one, where it was */
    uint64_t root;   /* NAMES_STAGING or NAMES_RUN */
    uint64_t file;   /* its data file */
    uint64_t size;
    uint64_t blocks; /* of 512 bytes, as stat's */
    uint64_t mtime_ns;
    mode_t mode; /* S_IFREG | bits */
    uid_t uid;
    gid_t gid;
    uint32_t opens;
    bool unlinked;
    bool on_disk;   /* its data file is in a spill directory */
    bool split;     /* a part of it is */
    bool moves;     /* a part of it, or more of it, may come there */
    bool mediated;  /* all writes must come through staged_write() */
    bool closed;    /* every writer has closed it: staged_mark_closed() */
    bool committed; /* already an object (or job): only its handles are left */
};

/* Makes a staged file under a name, opened once (as by staged_opened()). The data file is taken
 * from the spare ones if there is one. `request` identifies the FUSE request (0 = none): the same
 * non-zero one given again after a restart returns the file made then instead of -EEXIST. `access`:
 * O_WRONLY or O_RDWR, how it is opened. -EEXIST,
 * -ENOENT, -ENAMETOOLONG, -ENOSPC (memory or table full), -EMFILE. */
MOB_MUST_CHECK errint_t staged_create_for(struct store *store, uint64_t parent, const char *name,
                                          mode_t mode, uid_t uid, gid_t gid, uint64_t request,
                                          int access, struct staged_info *out);
static inline errint_t staged_create(struct store *store, uint64_t parent, const char *name,
                                     mode_t mode, uid_t uid, gid_t gid, uint64_t request,
                                     struct staged_info *out)
{
    return staged_create_for(store, parent, name, mode, uid, gid, request, O_WRONLY, out);
}

/* -ENOENT: discarded, or committed and closed. */
MOB_MUST_CHECK errint_t staged_info(struct store *store, uint64_t number, struct staged_info *out);
/* The same without asking the filesystem: size, blocks and mtime_ns are 0. */
MOB_MUST_CHECK errint_t staged_peek(struct store *store, uint64_t number, struct staged_info *out);

/* Nobody has the file open for reading (`alone`), as far as the mount knows; or somebody has again.
 * Without that its data file is checked for readers that map it before it serves another put, and
 * does not move to disk. False: a part of it is on disk, so that the kernel can't read its data
 * file by itself: staged_read() must. */
bool staged_mark_write_only(struct store *store, uint64_t number, bool alone);

/* Every staged file; after a restart, those the dead server left. */
void staged_each(struct store *store, void (*each)(void *argument, const struct staged_info *info),
                 void *argument);

/* One more open file; -ENOENT. After a restart fs calls it for each handle that lives on. */
MOB_MUST_CHECK errint_t staged_opened(struct store *store, uint64_t number);
/* One less; returns how many are left. At 0 an unlinked or committed one is discarded by this call;
 * any other must be committed (or discarded) by the caller. */
uint32_t staged_closed(struct store *store, uint64_t number);

/* Notes in its record that every writer has closed it (or that one writes again), before the close
 * is answered: if the mount itself dies before the commit, the next start commits it rather than
 * discarding it. */
void staged_mark_closed(struct store *store, uint64_t number, bool closed);

/* A descriptor of the data file, owned by the store, valid until the staged file goes. With
 * passthrough it is read-only; register it itself with the kernel, since a file that is open
 * elsewhere can't serve the next put. */
int staged_fd(struct store *store, uint64_t number);

/* -ENOSPC past the memory budget, -EFBIG. Returns bytes. */
ssize_t staged_write(struct store *store, uint64_t number, const void *buffer, size_t bytes,
                     uint64_t offset);
/* The same, unless it would have to wait for the disk, for memory, or for another thread that does:
 * -EAGAIN then, and maybe a part of it is written. Doesn't block. */
ssize_t staged_write_now(struct store *store, uint64_t number, const void *buffer, size_t bytes,
                         uint64_t offset);
/* Blocks for the disk, if the file or a part of it is there. */
ssize_t staged_read(struct store *store, uint64_t number, void *buffer, size_t bytes,
                    uint64_t offset);
/* The same without waiting for the disk, nor for one who changes the file: -EAGAIN. */
ssize_t staged_read_now(struct store *store, uint64_t number, void *buffer, size_t bytes,
                        uint64_t offset);
MOB_MUST_CHECK errint_t staged_truncate(struct store *store, uint64_t number, uint64_t size);
/* fallocate(2)'s modes, as tmpfs has them; else -EOPNOTSUPP. */
MOB_MUST_CHECK errint_t staged_allocate(struct store *store, uint64_t number, int mode,
                                        uint64_t offset, uint64_t bytes);
MOB_MUST_CHECK errint_t staged_set(struct store *store, uint64_t number, unsigned valid,
                                   mode_t mode, uid_t uid, gid_t gid, uint64_t mtime_ns);

/* Extended attributes until the commit. `user.mobula.refs` is checked here: each ID must be one of
 * an existing object (-EINVAL with a sentence): an object can only list what existed before it, so
 * no cycle can be made. They are held from then on. The value "content" defers this to the commit.
 * Other user.mobula.* are -EPERM, other namespaces than user. -EOPNOTSUPP. `flags` are
 * setxattr(2)'s. Values up to 64 KiB, 128 attributes. */
MOB_MUST_CHECK errint_t staged_xattr_set(struct store *store, uint64_t number, const char *name,
                                         const void *value, size_t bytes, int flags,
                                         struct mob_error *err);
MOB_MUST_CHECK errint_t staged_xattr_remove(struct store *store, uint64_t number, const char *name);
ssize_t staged_xattr_get(struct store *store, uint64_t number, const char *name, void *value,
                         size_t bytes);
ssize_t staged_xattr_list(struct store *store, uint64_t number, char *list, size_t bytes);

/* Whether some process can still write the data file behind the store's back: 1 yes (an open file
 * or a writable mapping), 0 no. It asks with a read lease (fcntl F_SETLEASE), which the kernel
 * grants only while nobody has the file open for writing. Always 0 without passthrough. */
int staged_has_writers(struct store *store, uint64_t number);

/* Calls `callback` once, from a thread of the store, when the last writer has gone (inotify
 * IN_CLOSE_WRITE on the data file, then the lease again). At most one a staged file; a second call
 * replaces the first. It isn't called for one that goes before. */
typedef void staged_unwritten(void *argument, uint64_t number);
MOB_MUST_CHECK errint_t staged_when_unwritten(struct store *store, uint64_t number,
                                              staged_unwritten *callback, void *argument);

/* After a close: of a file that has outgrown memory, moves what it can to disk now, so that the
 * commit finds little left. Blocks for as long as writing it takes. -ENOSPC, -EIO. */
MOB_MUST_CHECK errint_t staged_settle_growth(struct store *store, uint64_t number,
                                             struct mob_error *err);

/* fsync(2): what the file has now survives a power cut, under the name it has, whether or not it is
 * closed before; or, if it is an object by now, that. A spec in run/ is not durable before it is a
 * job. -EOPNOTSUPP: it is too large for LMDB and there is no spill directory; -ENOSPC, -EIO.
 * Blocks for as long as writing it takes. */
MOB_MUST_CHECK errint_t staged_sync(struct store *store, uint64_t number, struct mob_error *err);

/* Would staged_commit() succeed now: room for it, refs well-formed. For FLUSH, so that close
 * reports it. */
MOB_MUST_CHECK errint_t staged_check(struct store *store, uint64_t number, struct mob_error *err);

/* Commits a staged file of staging/: it becomes a ready object, the name a link to it, in one
 * transaction. Calling it again while it is open returns the same ID; once nobody has it open, the
 * staged file is gone (-ENOENT). *object_number may be NULL. -EBUSY: has writers still; -EINVAL:
 * refs; -ENOSPC, -EIO: nothing has changed, the staged file stays. An unlinked one is -ENOENT. */
MOB_MUST_CHECK errint_t staged_commit(struct store *store, uint64_t number, struct mob_id *id,
                                      uint64_t *object_number, struct mob_error *err);

/* Each keeps its lock meanwhile; ThreadSanitizer follows no more than 64 locks of a thread. */
enum { STAGED_COMMIT_MANY = 48 };
/* The same for up to STAGED_COMMIT_MANY files in one transaction; no number may be there twice, nor
 * in another thread's call. results[i] is 0 (also if it was an object already) or staged_commit()'s
 * error: -EINVAL if it isn't in staging/, and when there was no room for all, that error for each:
 * try them one by one then. */
void staged_commit_many(struct store *store, const uint64_t *numbers, size_t count,
                        errint_t *results);

/* The whole content, up to `limit`, for job specs: a new, terminated buffer. -EFBIG. */
MOB_MUST_CHECK errint_t staged_content(struct store *store, uint64_t number, size_t limit,
                                       char **content, size_t *bytes);

/* Throws it away: name, data, record. Opens that are left get -ENOENT. */
void staged_discard(struct store *store, uint64_t number);

#endif
