/* What the files of the journal share. */
#ifndef MOBULA_CORE_STORE_JOURNAL_INTERNAL_H
#define MOBULA_CORE_STORE_JOURNAL_INTERNAL_H

#include <stdatomic.h>

#include "core/store/journal.h"

/* --- on disk --- */

enum { JOURNAL_VERSION = 1 };
#define JOURNAL_MAGIC "mobulajl"
#define JOURNAL_FRAME_MAGIC UINT32_C(0x6d624672)
/* Of one frame: more can't come from us, whatever its header says. */
#define JOURNAL_FRAME_LIMIT (UINT64_C(1) << 31)

struct journal_file_header {
    char magic[8];
    uint32_t version, byte_order; /* 1 in the machine's own */
    uint8_t owner[MOB_ID_OWNER_BYTES];
    uint64_t base; /* of a log: the sequence number before its first; of a snapshot: its own */
    uint64_t sum;  /* XXH3-64 of what precedes */
};

enum journal_frame_kind { FRAME_CHANGES = 1, FRAME_SNAPSHOT = 2, FRAME_SNAPSHOT_END = 3 };

/* More is not a sequence number, whatever its checksum says; half of it is the limit for files. */
#define JOURNAL_SEQUENCE_LIMIT (UINT64_C(1) << 62)

/* A frame is this header, the operations, zeros up to a multiple of 8, and the length of all that
 * (8 bytes), by which the last frame of a file is found.
 *
 * Frames are a chain: each names the one before it. Where a link is missing, `durable` of those
 * behind it tells why. If what is missing was durable, it is damage: the rest is still taken. If
 * not, the disk had not written everything when the power failed, in whatever order it chose; the
 * rest was not durable either, and must not be taken without what precedes it. */
struct journal_frame {
    uint32_t magic, kind;
    uint64_t sequence, txn; /* txn: LMDB's number of the transaction */
    uint64_t previous;      /* sequence number of the frame before; in a snapshot: frames before */
    uint64_t durable;       /* up to this, all was durable when the frame was made */
    uint64_t bytes;         /* of the operations */
    uint64_t sum[2];        /* XXH3-128 of the operations and the zeros */
    uint64_t header_sum;    /* XXH3-64 of what precedes, with the file's base as its seed */
};

/* An operation is this, the key, and the value. */
struct journal_operation {
    uint8_t kind, table;
    uint16_t key_bytes;
    uint32_t value_bytes;
};
enum journal_operation_kind { OPERATION_PUT = 1, OPERATION_DELETE = 2 };

_Static_assert(sizeof(struct journal_file_header) == 40, "no padding goes to disk");
_Static_assert(sizeof(struct journal_frame) == 72, "no padding goes to disk");
_Static_assert(sizeof(struct journal_operation) == 8, "no padding goes to disk");

static inline uint64_t journal_padded(uint64_t bytes)
{
    return (bytes + 7) / 8 * 8;
}
static inline uint64_t journal_frame_length(uint64_t bytes)
{
    return sizeof(struct journal_frame) + journal_padded(bytes) + sizeof(uint64_t);
}

/* --- a frame that is being put together --- */

struct journal_buffer {
    uint8_t *bytes; /* room for the frame's header first */
    size_t used, capacity;
    size_t later; /* where a value is still to be copied to; 0: none */
    const void *later_place;
    size_t later_bytes;
};

void journal_buffer_clear(struct journal_buffer *buffer);
/* `place` is where the value goes, if it isn't NULL. -ENOMEM. */
MOB_MUST_CHECK errint_t journal_buffer_add(struct journal_buffer *buffer,
                                           enum journal_operation_kind kind, unsigned table,
                                           const void *key, size_t key_bytes, const void *value,
                                           size_t value_bytes);
static inline uint64_t journal_buffer_bytes(const struct journal_buffer *buffer)
{
    return buffer->used - sizeof(struct journal_frame);
}
/* Completes the frame and writes it at `offset`; *length: of the frame. */
MOB_MUST_CHECK errint_t journal_buffer_write(struct journal_buffer *buffer, int fd, uint64_t offset,
                                             uint64_t base, struct journal_frame frame,
                                             uint64_t *length);

/* --- the journal --- */

struct journal_files {
    uint64_t *bases; /* ascending */
    size_t count;
};

struct journal {
    int dir_fd;
    char *path;
    uint8_t owner[MOB_ID_OWNER_BYTES];
    pthread_mutex_t *writer;
    uint64_t log_limit;
    struct journal_files logs, snapshots; /* as they were found */

    /* Writer. */
    struct journal_buffer buffer;
    uint64_t next_sequence, end, allocated;
    uint64_t last_length, last_before; /* of the last frame; `written` before it */
    bool broken;                       /* nothing can be appended to this log any more */
    bool failed; /* found: a server before could not sync, and has not made good for it */

    /* Under `lock`, a leaf. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int fd, old_fd; /* the log; the one before it, until it was synced */
    uint64_t base;  /* of the log */
    uint64_t written, synced;
    uint64_t target; /* what will be synced when `syncing` ends */
    bool syncing;
    unsigned dir_changes, dir_synced; /* names in the directory */
    bool covered;                     /* the snapshot and the logs make up everything written */
    bool wanted, urgent;              /* a snapshot is; somebody waits for it */
    bool attempting;                  /* to make one */
    uint64_t attempts;                /* that have ended */
    uint64_t failures;                /* of this log: only a snapshot begun later makes good */
    errint_t last_error;              /* of the last attempt */
    uint64_t snapshot, snapshot_bytes, previous; /* sequence numbers; UINT64_MAX: none */
    uint64_t log_bytes;                          /* of this log */
    struct journal_usage usage;

    pthread_t thread;
    bool runs;
    atomic_bool stop;
    struct meta *meta;
};

/* A new log, whose frames come after `base`, with some room for them; *fd is open for reading and
 * writing. Its name is not synced. */
MOB_MUST_CHECK errint_t journal_make_log(struct journal *journal, uint64_t base, int *fd);
MOB_MUST_CHECK errint_t journal_write_header(struct journal *journal, int fd, uint64_t base);
enum { JOURNAL_NAME_BYTES = 32 };
char *journal_name(uint64_t base, const char *suffix, char out[JOURNAL_NAME_BYTES]);
/* -ENOMEM. */
MOB_MUST_CHECK errint_t journal_note_base(struct journal_files *files, uint64_t base);

/* Nothing in this log is sure to be durable. Locked. */
void journal_note_failure(struct journal *journal, errint_t error);
/* A snapshot has made good for it. Locked. */
void journal_forget_failure(struct journal *journal);

/* Goes on with a log of `end` bytes, open at `fd` (taken). Locked, or before the thread starts. */
void journal_use_log(struct journal *journal, int fd, uint64_t base, uint64_t end);

/* --- journal_read.c --- */

struct journal_source {
    int fd;
    uint64_t size, base;
    uint64_t start; /* of what is in the buffer */
    uint8_t *bytes;
    size_t filled, capacity;
};

/* Opens a file and checks its header. -EINVAL: of another version, byte order or owner; -EBADMSG:
 * damaged. `err` names the file. */
MOB_MUST_CHECK errint_t journal_source_open(struct journal *journal, uint64_t base,
                                            const char *suffix, struct journal_source *out,
                                            struct mob_error *err);
/* The same for a file whose header may be damaged; *good: it isn't. */
MOB_MUST_CHECK errint_t journal_source_open_any(struct journal *journal, uint64_t base,
                                                const char *suffix, struct journal_source *out,
                                                bool *good, struct mob_error *err);
void journal_source_close(struct journal_source *source);
/* The frame at *offset, which goes on behind it: 1. 0: the end. -EBADMSG: there is no good frame
 * (*offset stays), be it that the disk can't read it; -EIO, -ENOMEM. The operations are valid until
 * the next call. */
int journal_next(struct journal_source *source, uint64_t *offset, struct journal_frame *frame,
                 const uint8_t **operations);
/* After -EBADMSG: moves *offset to the next good frame. False: there is none. */
bool journal_skip(struct journal_source *source, uint64_t *offset);
/* The last frame, found from the end. -EBADMSG: there is none there. */
MOB_MUST_CHECK errint_t journal_last(struct journal_source *source, uint64_t *offset,
                                     struct journal_frame *frame);

#endif
