/* What the tests that play through a mount share: seeded randomness and content, the daemon's
 * figures as the mount shows them, and a watchdog over operations that may hang. */
#ifndef MOBULA_TESTS_MODEL_SUPPORT_H
#define MOBULA_TESTS_MODEL_SUPPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* --- randomness: the same seed plays the same game --- */

struct dice {
    uint64_t state;
};
uint64_t dice_next(struct dice *dice);
/* 0 .. limit - 1; 0 for limit 0. */
uint64_t dice_below(struct dice *dice, uint64_t limit);
/* True `percent` times out of 100. */
bool dice_percent(struct dice *dice, unsigned percent);
/* A size a test should try: around 0, a page, the inline limit (100 KiB), up to a few MiB. */
size_t dice_size(struct dice *dice);

/* --- content: every byte follows from a seed and its offset --- */

void content_fill(uint64_t seed, uint64_t offset, void *buffer, size_t bytes);
/* The first offset in buffer that differs, or -1. */
ssize_t content_differs(uint64_t seed, uint64_t offset, const void *buffer, size_t bytes);

/* --- the daemon, as its mount shows it --- */

/* Finds the node's folder in `root`/nodes, once; false and errno set if it can't. */
bool mount_open(const char *root);
/* The number after `key` in nodes/ID/`file`; -1 if it can't be read (errno says why). */
int64_t mount_number(const char *file, const char *key);
/* The text after `key` into `out`; false if it isn't there. */
bool mount_text(const char *file, const char *key, char *out, size_t bytes);
/* "MNT/objects/ID" of 40 digits, into a ring of static buffers of this thread. */
const char *mount_object_path(const char *id);
const char *mount_root(void);

/* A /proc/PID of a process named mobulad? Guards against killing somebody else's. */
bool process_is_daemon(pid_t pid);

/* The kernel stacks of all threads of a process, to standard error (root only). */
void process_print_stacks(pid_t pid);

/* What is in the daemon's memory directory. */
struct data_files {
    uint64_t filled; /* regular files with bytes in memory_dir/data */
    uint64_t empty;  /* there, without */
    uint64_t others; /* regular files elsewhere under memory_dir (of jobs) */
    uint64_t bytes;  /* of all of them, as allocated */
};
bool data_files_count(const char *memory_dir, struct data_files *out);

/* --- watchdog --- */

/* One for each process or thread that is watched; in shared memory when the watcher is another
 * process. */
struct watched {
    _Atomic(const char *) operation; /* a string literal: the same address in forked processes */
    _Atomic uint64_t began_ns;       /* 0: none under way */
    _Atomic pid_t pid;               /* its process */
};
void watched_begin(struct watched *watched, const char *operation);
void watched_end(struct watched *watched);
/* Starts a thread that looks at all of them, and at the first that takes longer than `limit_ns`
 * prints its name and the kernel stacks of its process, calls `at_hang` (may be NULL), and exits
 * with status 2. */
void watchdog_start(struct watched *watched, size_t count, uint64_t limit_ns,
                    void (*at_hang)(void));

#endif
