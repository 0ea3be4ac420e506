/* What session memory looks like: for fs/session.c and fs/transport*.c only.
 *
 * A slot is the shared part of one ring entry. The kernel writes a request into `header` and the
 * payload, `header.commit_id` being the request's unique ID; the server writes its reply. The rules
 * that make a SIGKILL at any instruction harmless:
 * - a reply never overwrites the request before it is whole: reply bytes go beyond the request's
 *   payload (at reply_offset), and the header is written last;
 * - `replied_id` is stored (release) after everything else of the reply; so header.commit_id ==
 *   replied_id says "answered, these are the bytes", anything else "not answered";
 * - `taken_id` is stored once the kernel has been given the reply; so replied_id != taken_id says
 *   "give it again". (The kernel answers ENOENT if it had it already.) */
#ifndef MOBULA_FS_SESSION_LAYOUT_H
#define MOBULA_FS_SESSION_LAYOUT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fs/fuse_abi.h"
#include "fs/session.h"

enum {
    SESSION_PAGE_BYTES = 4096,
    SESSION_PAYLOAD_BYTES = 1 << 20, /* the largest max_write */
    SESSION_MAX_SLOTS = 16384 + 4096,
    SESSION_INIT_BYTES = 512,
    SESSION_MAX_QUEUES = 1024,
    SESSION_FILES = 64,
};

/* Payload areas: a page before (the request's headers are put right before a large payload, so that
 * libfuse gets one piece), and one after (for the reply to a write of the full size). */
#define SESSION_STRIDE_BYTES                                                                       \
    ((size_t)SESSION_PAGE_BYTES + SESSION_PAYLOAD_BYTES + SESSION_PAGE_BYTES)

struct session_slot {
    _Atomic uint32_t queue; /* of the entry, + 1; 0: free */
    _Atomic uint64_t replied_id;
    _Atomic uint64_t taken_id;
    _Atomic uint64_t interrupted_id; /* a request that was interrupted */
    int32_t reply_error;
    uint32_t reply_bytes;
    uint32_t reply_offset;
    uint32_t padding[4];
};
_Static_assert(sizeof(struct session_slot) == 64, "one cache line");

/* Padded, so that entries of two cores share no line. */
struct session_header {
    struct abi_ring_header abi;
    char padding[384 - sizeof(struct abi_ring_header)];
};

struct session {
    uint64_t total_bytes;
    size_t handle_offset;
    size_t handle_bytes;
    int memfd;
    _Atomic unsigned generation;
    atomic_bool settled;

    /* INIT, written once: init_request whole, then init_bytes (release). */
    _Atomic uint32_t init_bytes;
    _Atomic bool init_answered;
    _Atomic bool ring; /* negotiated: the kernel sends by the ring */
    _Atomic bool passthrough;
    _Atomic uint32_t max_write_bytes;
    _Atomic uint32_t slots_used; /* slots from here on were never used */
    _Atomic uint32_t servings;   /* transport_serve() calls so far */
    char init_request[SESSION_INIT_BYTES];

    /* Regular files that the kernel was heard to know of late: see transport_kick.c. */
    _Atomic uint64_t files_noted;
    _Atomic uint64_t spares_made;
    _Atomic uint64_t files[SESSION_FILES];

    struct session_slot slots[SESSION_MAX_SLOTS];
    struct session_header headers[SESSION_MAX_SLOTS];
};

/* Start of the slot's payload area, SESSION_PAYLOAD_BYTES long, with a page on each side. */
char *session_slot_payload(struct session *session, unsigned slot);

#endif
