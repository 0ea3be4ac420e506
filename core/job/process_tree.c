/* Processes as /proc shows them.
 *
 * Reading all of /proc costs a millisecond or more, too much for each end of a short job. Processes
 * are listed there by rising pid, and a directory position is the pid plus a constant, so a scan
 * can begin at a job's own pid: whatever it started is newer. The constant is found by looking,
 * never assumed. */
#include "core/job/process_tree.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/util.h"

static pid_t entry_pid(const struct dirent64 *entry)
{
    if (!isdigit((unsigned char)entry->d_name[0]))
        return 0;
    return (pid_t)strtol(entry->d_name, NULL, 10);
}

/* `d_off` of an entry is where the next one begins to be looked for: at that pid + 1, plus a
 * constant. */
static long find_offset(int proc_fd)
{
    char buffer[32768];
    long offset = -1;
    int seen = 0;
    lseek(proc_fd, 0, SEEK_SET);
    for (;;) {
        ssize_t got = syscall(SYS_getdents64, proc_fd, buffer, sizeof buffer);
        if (got <= 0)
            break;
        long before = -1; /* d_off of the entry before */
        for (ssize_t at = 0; at < got;) {
            const struct dirent64 *entry = (const struct dirent64 *)(buffer + at);
            pid_t pid = entry_pid(entry);
            if (pid > 0 && before >= 0) { /* the entry before says where this one stands */
                if (offset >= 0 && before - pid != offset)
                    return -1;
                offset = before - pid;
                seen++;
            }
            before = pid > 0 ? (long)entry->d_off : -1;
            at += entry->d_reclen;
        }
    }
    return seen >= 2 ? offset : -1;
}

errint_t process_scanner_open(struct process_scanner *scanner)
{
    scanner->offset = -1;
    scanner->proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (scanner->proc_fd < 0)
        return -errno;
    scanner->offset = find_offset(scanner->proc_fd);
    return 0;
}

void process_scanner_close(struct process_scanner *scanner)
{
    mob_cleanup_fd(&scanner->proc_fd);
}

static ssize_t read_small(struct process_scanner *scanner, const char *path, char *buffer,
                          size_t bytes)
{
    cleanup_fd int fd = openat(scanner->proc_fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t got = mob_read_full(fd, buffer, bytes - 1);
    if (got >= 0)
        buffer[got] = '\0';
    return got;
}

bool process_read(struct process_scanner *scanner, pid_t pid, struct process_entry *out)
{
    char path[32], text[1024];
    snprintf(path, sizeof path, "%d/stat", (int)pid);
    if (read_small(scanner, path, text, sizeof text) <= 0)
        return false;
    const char *rest = strrchr(text, ')'); /* the name before it may contain anything */
    char state;
    int parent, session;
    unsigned long long start;
    if (!rest || sscanf(rest + 1,
                        " %c %d %*d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
                        "%*d %llu",
                        &state, &parent, &session, &start) != 4)
        return false;
    *out = (struct process_entry){.pid = pid,
                                  .parent = parent,
                                  .session = session,
                                  .start_ticks = start,
                                  .zombie = state == 'Z' || state == 'X'};
    return true;
}

static errint_t add(struct process_scanner *scanner, struct process_table *table, pid_t pid)
{
    if (table->count == table->capacity) {
        size_t capacity = table->capacity ? table->capacity * 2 : 64;
        struct process_entry *larger = reallocarray(table->entries, capacity, sizeof *larger);
        if (!larger)
            return -ENOMEM;
        table->entries = larger;
        table->capacity = capacity;
    }
    if (process_read(scanner, pid, &table->entries[table->count]))
        table->count++;
    return 0;
}

static int compare_pids(const void *a, const void *b)
{
    const struct process_entry *left = a, *right = b;
    return (left->pid > right->pid) - (left->pid < right->pid);
}

errint_t process_scan(struct process_scanner *scanner, pid_t from, pid_t to,
                      struct process_table *table)
{
    char buffer[32768];
    bool past = false; /* the list rises, so what follows is past `to` as well */
    table->count = 0;
    bool all = from <= 1 || scanner->offset < 0;
    /* The list of an open directory is not cached by the kernel, so seeking is enough to see it
     * anew. */
    if (lseek(scanner->proc_fd, all ? 0 : scanner->offset + from, SEEK_SET) < 0)
        return -errno;
    while (!past) {
        ssize_t got = syscall(SYS_getdents64, scanner->proc_fd, buffer, sizeof buffer);
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        for (ssize_t at = 0; at < got;) {
            const struct dirent64 *entry = (const struct dirent64 *)(buffer + at);
            pid_t pid = entry_pid(entry);
            past |= pid > to && scanner->offset >= 0;
            errint_t error = pid > 0 && pid >= from && pid <= to ? add(scanner, table, pid) : 0;
            if (error)
                return error;
            at += entry->d_reclen;
        }
    }
    if (table->count > 1)
        qsort(table->entries, table->count, sizeof *table->entries, compare_pids);
    return 0;
}

void process_table_free(struct process_table *table)
{
    free(table->entries);
    *table = (struct process_table){0};
}

pid_t process_last_pid(struct process_scanner *scanner)
{
    char text[128];
    if (read_small(scanner, "loadavg", text, sizeof text) <= 0)
        return 0;
    const char *last = strrchr(text, ' ');
    return last ? (pid_t)strtol(last + 1, NULL, 10) : 0;
}

static struct process_entry *find(const struct process_table *table, pid_t pid)
{
    struct process_entry key = {.pid = pid};
    return table->count ? bsearch(&key, table->entries, table->count, sizeof key, compare_pids)
                        : NULL;
}

void process_mark_descendants(struct process_table *table)
{
    bool changed = true;
    while (changed) { /* children mostly have higher pids, so that one pass and a check do */
        changed = false;
        for (size_t i = 0; i < table->count; i++) {
            struct process_entry *entry = &table->entries[i];
            if (entry->marked)
                continue;
            const struct process_entry *parent = find(table, entry->parent);
            if (parent && parent->marked)
                entry->marked = changed = true;
        }
    }
}

bool process_job(struct process_scanner *scanner, pid_t pid, char job[64])
{
    static const char name[] = "MOBULA_JOB=";
    char path[32];
    cleanup_free char *text = NULL;
    size_t bytes;
    snprintf(path, sizeof path, "%d/environ", (int)pid);
    if (mob_read_file(scanner->proc_fd, path, 4u << 20, &text, &bytes))
        return false;
    for (size_t at = 0; at < bytes; at += strlen(text + at) + 1) {
        if (strncmp(text + at, name, sizeof name - 1) != 0)
            continue;
        snprintf(job, 64, "%s", text + at + sizeof name - 1);
        return true;
    }
    return false;
}

void process_signal(struct process_scanner *scanner, const struct process_entry *entry, int signal)
{
    cleanup_fd int fd = (int)syscall(SYS_pidfd_open, entry->pid, 0);
    struct process_entry now;
    if (fd < 0 || !process_read(scanner, entry->pid, &now) || now.start_ticks != entry->start_ticks)
        return;
    syscall(SYS_pidfd_send_signal, fd, signal, NULL, 0);
}
