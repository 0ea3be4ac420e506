/* Open files of the mount, kept in session memory so that they outlive a server.
 *
 * A handle (fuse_file_info.fh) is a slot and a generation: a RELEASE that is sent again after its
 * slot was given to another file finds the generation changed and does nothing. */
#ifndef MOBULA_FS_HANDLES_H
#define MOBULA_FS_HANDLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/store/store.h"

enum {
    HANDLE_WRITE = 1,    /* opened for writing */
    HANDLE_NONBLOCK = 2, /* of an object that was pending: reads ask again */
    HANDLE_FLUSHED = 4,  /* closed at least once (a duplicate may still be open) */
    HANDLE_RELEASED = 8, /* closed for good; kept until a mapping of its staged file goes */
};

/* One open file. Plain stores in an order that a reader can trust: see handles.c. */
struct handle {
    uint64_t request;     /* `unique` of the OPEN or CREATE that made it */
    uint64_t node;        /* node ID */
    uint64_t file;        /* data file, or 0 */
    uint64_t poll_handle; /* kernel's, when somebody polls; 0 = nobody */
    int32_t backing_id;   /* 0 = no passthrough */
    uint32_t flags;
    uint32_t generation;
    uint32_t valid;
    uint32_t pid; /* of the opener, for people */
    uint32_t reserved[3];
};

struct handles;

/* Bytes of session memory needed. */
size_t handles_bytes(void);

/* Over `area` (handles_bytes() of it), which may hold an earlier server's handles. -ENOMEM. */
MOB_MUST_CHECK errint_t handles_open(void *area, struct handles **out);
void handles_close(struct handles *handles);

/* A new handle. With `resent`, the one that the same request made before is returned if there is
 * one, and *existed is set. -ENFILE. `*out` stays valid until handles_free(). */
MOB_MUST_CHECK errint_t handles_new(struct handles *handles, uint64_t request, bool resent,
                                    uint64_t node, uint32_t flags, uint32_t pid,
                                    struct handle **out, uint64_t *fh, bool *existed);
/* NULL: no such handle (any more). */
struct handle *handles_get(struct handles *handles, uint64_t fh);
void handles_free(struct handles *handles, uint64_t fh);

/* Every valid one. */
void handles_each(struct handles *handles,
                  void (*each)(void *argument, struct handle *handle, uint64_t fh), void *argument);

/* The data file that this server has opened for mediated reads of the handle; it is the handle's.
 * -ENOENT: none yet; -EBADF: no such handle (any more). */
MOB_MUST_CHECK errint_t handles_file(struct handles *handles, uint64_t fh, struct store_file *out);
/* Gives the handle one, in any case. Another thread may have been quicker: *file is what the handle
 * has. -EBADF, -ENOMEM. */
MOB_MUST_CHECK errint_t handles_keep_file(struct handles *handles, uint64_t fh,
                                          struct store_file *file);
/* Closes it before handles_free() does. */
void handles_close_file(struct handles *handles, uint64_t fh);

/* --- data files registered with the kernel, also in session memory --- */

struct backing_slot {
    uint64_t file; /* 0 = free */
    int32_t id;    /* 0 = being registered */
    uint32_t reserved;
};
#define BACKING_SLOTS 65536u
struct backing_slot *handles_backing_slots(struct handles *handles);

#endif
