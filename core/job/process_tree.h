/* Which processes exist, from /proc: to find what a job has left behind. */
#ifndef MOBULA_CORE_JOB_PROCESS_TREE_H
#define MOBULA_CORE_JOB_PROCESS_TREE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"

struct process_entry {
    pid_t pid, parent, session;
    uint64_t start_ticks; /* since boot */
    bool zombie;
    bool marked; /* for the user of the table */
};

struct process_table {
    struct process_entry *entries; /* by pid, rising */
    size_t count, capacity;
};

struct process_scanner {
    int proc_fd;
    long offset; /* of a pid in the directory's positions; -1: not known, always read from the start
                  */
};

/* -errno if /proc is not there. */
MOB_MUST_CHECK errint_t process_scanner_open(struct process_scanner *scanner);
void process_scanner_close(struct process_scanner *scanner);

/* Reads every process whose pid is in from..to; 1..INT_MAX: all. */
MOB_MUST_CHECK errint_t process_scan(struct process_scanner *scanner, pid_t from, pid_t to,
                                     struct process_table *table);
void process_table_free(struct process_table *table);

/* The process ID that was given out last, or 0 if the kernel doesn't tell. */
pid_t process_last_pid(struct process_scanner *scanner);

/* One process. False: there is none. */
bool process_read(struct process_scanner *scanner, pid_t pid, struct process_entry *out);

/* Marks every descendant of a marked entry. */
void process_mark_descendants(struct process_table *table);

/* The value of MOBULA_JOB in the environment that the process was started with. False: none, or not
 * readable. */
bool process_job(struct process_scanner *scanner, pid_t pid, char job[64]);

/* Sends a signal to the process that the entry means, and to no other that has got its number
 * since. */
void process_signal(struct process_scanner *scanner, const struct process_entry *entry, int signal);

#endif
