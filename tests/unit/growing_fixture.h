/* What the unit tests of growing files share: a file and its model, the place where they are, and
 * faults. There is one file at a time. The programs link with GROWING_WRAPS of tests/Makemodule.am.
 */
#ifndef MOBULA_TESTS_GROWING_FIXTURE_H
#define MOBULA_TESTS_GROWING_FIXTURE_H

#include "unit.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "core/base/util.h"
#include "core/store/growing.h"

#define UNIT ((uint64_t)GROWING_UNIT_BYTES)
#define BLOCK ((uint64_t)CIPHER_BLOCK_BYTES)
enum { PAGE = 4096, TAIL = 12345, FILE_NUMBER = 77 };
#define SMALL (3 * UNIT + TAIL) /* size of the plain file of most tests */

/* Programs with hundreds of children, many of them killed, take it minutes, and most have but one
 * thread: they are skipped. */
#if defined(__SANITIZE_THREAD__)
#define UNDER_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_THREAD_SANITIZER 1
#endif
#endif
#ifndef UNDER_THREAD_SANITIZER
#define UNDER_THREAD_SANITIZER 0
#endif

/* --- what is injected: -Wl,--wrap=... --- */

/* Each call that changes a file or a pipe is a step, and each note. */
struct faults {
    atomic_int steps;    /* so many there were */
    atomic_int kill_at;  /* before this one the process is killed */
    atomic_int write_at; /* before this one somebody writes */
    void (*write)(void);
    int quarters; /* so much is done of a write that fails, or in which the process is killed */
    int disk_writes;
    int fail_from, fail_until, fail_error; /* see fail_disk_writes() */
    size_t disk_write_at_most;
    bool no_direct; /* the disk has no direct I/O */
};
extern struct faults faults;

/* The writes to disk from the `from`th to the one before the `until`th fail when half is done. */
void fail_disk_writes(int from, int until, int error);
void mend_disk(void);
#define FOR_EVER INT32_MAX

/* Calls it in a child that is killed at a step, a write when that many quarters of it are done.
 * Returns whether it was; else the call must give 0. */
bool dies(int at, int quarters, errint_t (*call)(const void *), const void *argument);
/* The same of resume(). */
bool dies_resuming(int at, int quarters);

/* Past all injections. */
ssize_t __real_pwrite64(int fd, const void *buffer, size_t bytes, off_t offset);
int __real_fallocate64(int fd, int mode, off_t offset, off_t bytes);
int __real_ftruncate64(int fd, off_t size);

/* --- the place --- */

extern char place[], memory_dir[64], fast_dir[64];
extern bool mounted;         /* memory_dir is a tmpfs of our own */
extern const char *disk_dir; /* place, or fast_dir where the disk doesn't matter */
extern struct growing_pipes pipes;
extern bool have_pipes;
extern struct cipher_key *key; /* of set_up_encrypted() */

/* A group's: for plain files, with huge pages and pipes; and for encrypted ones. What fails leaves
 * nothing behind. */
int set_up(void **state);
int set_up_encrypted(void **state);
int tear_down(void **state);

/* A tmpfs, in a mount namespace of our own: it goes with us, whatever happens. */
bool mount_private(const char *path, const char *options);

#define NEED_PIPES                                                                                 \
    do {                                                                                           \
        if (!have_pipes)                                                                           \
            skip();                                                                                \
    } while (0)

/* --- a file, and what it should be --- */

/* Shared with the processes that write, move and die. */
struct shared {
    struct growing_state state; /* as noted */
    int notes, note_fails_at;   /* this one fails */
    errint_t note_error;        /* with this, -ENOSPC at first */
    bool in_write;              /* the last step was a write */
    atomic_bool stop;
    unsigned char model[];
};

struct file {
    struct growing growing;
    struct growing_mover mover;
    struct mob_error err;
    struct shared *shared;
    uint64_t size;
    int memory_fd, writer_fd, disk_fd;
    bool exclusive, encrypted;
};
extern struct file file;

int open_in(const char *dir, const char *name, int flags);

/* An empty file of at most `limit` bytes. */
void file_new(uint64_t limit, bool exclusive);
void file_new_encrypted(uint64_t limit);
/* Its faults end with it. */
void file_close(void);

/* Without the file: a server begins with what was noted (NULL: nothing yet), and ends. */
void attach(const struct growing_state *state);
void detach(void);
/* A server dies, the next one finds the files and what was noted. */
void restart(void);
void resume(void);
/* Both. */
void succeed(void);

errint_t note(void *argument, const struct growing_state *state);

/* --- changing it --- */

/* A writer's write, past us and all injections. */
void put(const void *bytes, size_t count, uint64_t offset);
void make_pattern(unsigned char *out, uint64_t offset, size_t bytes);
void put_pattern(uint64_t offset, uint64_t end);

/* Through us. */
void put_through(const void *bytes, size_t count, uint64_t offset);
void cut(uint64_t size);
void punch(uint64_t offset, uint64_t bytes);
void move_to(uint64_t until);
/* Nothing is in memory then, and what is on disk is the content. */
void assemble(void);

/* No two writes have the same bytes, and all of them have a marker that must not get to disk. */
void make_bytes(unsigned char *out, size_t bytes);
void put_new(size_t count, uint64_t offset);

/* --- looking at it --- */

bool is_torn(void);
uint64_t size_in_memory(void);
uint64_t memory_bytes(void);
/* The caller frees it. */
unsigned char *read_everything(void);
void assert_reads(void);
/* The disk file alone is the content. */
void assert_disk(void);
void assert_assembles(void);
/* Exact or torn, and if `whole`, exact. Returns whether it was torn. */
bool assert_exact_or_torn(bool whole);
/* The marker isn't on disk. */
void assert_secret(void);

#endif
