/* The operations of the kill test's load, each verified on the spot. See kill.h.
 *
 * What counts as acknowledged: a put when close returned 0, a rename or unlink when the call did.
 */
#include "tests/model/kill.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core/base/id.h"
#include "core/base/util.h"

enum { CHUNK_BYTES = 128 * 1024, LARGE_BYTES = 8 << 20, BUFFER_BYTES = 1 << 20 };

const char *fact_path(struct worker *worker, const char *name)
{
    static char ring[4][PATH_MAX];
    static unsigned next;
    char *out = ring[next++ % 4];

    snprintf(out, PATH_MAX, "%s/%s", worker->directory, name);
    return out;
}

/* An open file of the operation under way, so that it doesn't leak if that is cut off. */
static int work_open(struct worker *worker, const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);

    if (fd < 0) {
        work_error(worker, "open", path, errno);
        return -1;
    }
    if (worker->open_fd < 0)
        worker->open_fd = fd;
    else
        worker->second_fd = fd;
    return fd;
}

static int work_close(struct worker *worker, int fd, const char *path)
{
    if (worker->open_fd == fd)
        worker->open_fd = -1;
    else
        worker->second_fd = -1;
    if (close(fd) == 0)
        return 0;
    work_error(worker, "close", path, errno);
    return -1;
}

/* Reads all of it through `fd` and compares. False after having counted what is wrong. */
static bool compare_content(struct worker *worker, int fd, const struct fact *fact)
{
    static unsigned char buffer[CHUNK_BYTES + 1];
    uint64_t done = 0;

    for (;;) {
        ssize_t got = pread(fd, buffer, sizeof(buffer), (off_t)done);
        ssize_t wrong;

        if (got < 0) {
            work_error(worker, "pread", fact->name, errno);
            return false;
        }
        if (got == 0)
            break;
        wrong = content_differs(fact->seed, done, buffer, (size_t)got);
        if (done + (uint64_t)got > fact->size || wrong >= 0) {
            fprintf(stderr, "kill: %s: byte %" PRIu64 " of %" PRIu64 " is 0x%02x\n", fact->name,
                    done + (uint64_t)(wrong < 0 ? 0 : wrong), fact->size,
                    buffer[wrong < 0 ? 0 : wrong]);
            work_lost(worker, "other content", fact);
            return false;
        }
        done += (uint64_t)got;
    }
    if (done != fact->size) {
        work_lost(worker, "too short", fact);
        return false;
    }
    return true;
}

void fact_verify(struct worker *worker, const struct fact *fact)
{
    char path[PATH_MAX], target[512] = "";
    int fd;

    snprintf(path, sizeof(path), "%s", fact_path(worker, fact->name));
    if (!kill_options.plain) {
        ssize_t got = readlink(path, target, sizeof(target) - 1);

        if (got < 0 && errno == ENOENT) {
            work_lost(worker, "the name is gone", fact);
            return;
        }
        if (got < 0) {
            work_error(worker, "readlink", path, errno);
            return;
        }
        if (got < 40 || strcmp(target + got - 40, fact->id) != 0) {
            fprintf(stderr, "kill: %s is a link to %s, was %s\n", path, target, fact->id);
            work_lost(worker, "another object", fact);
            return;
        }
    }
    fd = work_open(worker, path, O_RDONLY);
    if (fd < 0)
        return;
    compare_content(worker, fd, fact);
    work_close(worker, fd, path);
}

/* --- puts --- */

static bool read_id(struct worker *worker, const char *path, struct fact *fact)
{
    char target[512] = "";
    struct mob_id parsed;
    ssize_t got;

    if (kill_options.plain)
        return true;
    got = readlink(path, target, sizeof(target) - 1);
    if (got < 0) {
        int error = errno;

        usleep(10000);
        if (!kill_shared->down)
            fprintf(stderr, "kill: %s is %s after close returned, and %s 10 ms later\n", path,
                    error == EINVAL ? "a staged file still" : strerror(error),
                    readlink(path, target, sizeof(target) - 1) > 0 ? "a link" : strerror(errno));
        work_error(worker, "readlink right after close of", path, error);
        return false;
    }
    if (got < 40 || !mob_id_parse(target + got - 40, 40, &parsed)) {
        fprintf(stderr, "kill: %s is a link to %s right after close\n", path, target);
        work_lost(worker, "no object", fact);
        return false;
    }
    mob_id_format(&parsed, fact->id);
    return true;
}

/* A write failed: what is there is no object of ours. A file that outgrows memory while there is no
 * server to make room gets ENOSPC. */
static void give_up_put(struct worker *worker, int fd, const char *path, int error)
{
    if (error == ENOSPC && kill_options.large_mib)
        kill_shared->refused++;
    else
        work_error(worker, "write", path, error);
    if (worker->open_fd == fd)
        worker->open_fd = -1;
    close(fd);
    if (unlink(path) < 0)
        work_error(worker, "unlink of what was not written", path, errno);
    worker->doubt = DOUBT_NONE;
}

/* Writes a new file under its name and commits it. */
static bool put(struct worker *worker, struct fact *fact, size_t chunk)
{
    static unsigned char buffer[BUFFER_BYTES];
    char path[PATH_MAX];
    int fd;

    snprintf(path, sizeof(path), "%s", fact_path(worker, fact->name));
    worker->doubt = DOUBT_PUT;
    worker->doubt_fact = *fact;
    fd = work_open(worker, path, O_WRONLY | O_CREAT | O_EXCL);
    if (fd < 0)
        return false;
    for (uint64_t done = 0; done < fact->size;) {
        size_t count = fact->size - done < chunk ? (size_t)(fact->size - done) : chunk;
        ssize_t wrote;

        content_fill(fact->seed, done, buffer, count);
        wrote = write(fd, buffer, count);
        if (wrote < 0 && errno == EINTR) { /* the kernel was giving it to a server that died */
            kill_shared->interrupted++;
            continue;
        }
        if (wrote < 0) {
            give_up_put(worker, fd, path, errno);
            return false;
        }
        done += (uint64_t)wrote;
    }
    if (work_close(worker, fd, path) < 0)
        return false;
    worker->doubt = DOUBT_CLOSED;
    if (!read_id(worker, path, fact))
        return false;
    worker->doubt = DOUBT_NONE;
    return true;
}

static void new_fact(struct worker *worker, struct fact *fact, uint64_t size)
{
    memset(fact, 0, sizeof(*fact));
    snprintf(fact->name, sizeof(fact->name), "f%" PRIu64, worker->next_name++);
    fact->seed = dice_next(&worker->dice);
    fact->size = size;
}

static void put_kept(struct worker *worker, uint64_t size, size_t chunk)
{
    struct fact fact;

    if (worker->fact_count == FACT_LIMIT)
        work_unlink(worker);
    new_fact(worker, &fact, size);
    if (put(worker, &fact, chunk))
        worker->facts[worker->fact_count++] = fact;
}

void work_put(struct worker *worker)
{
    size_t size = dice_size(&worker->dice);

    put_kept(worker, size > 1 << 20 ? size / 8 : size, 64 * 1024);
}

/* As cp does it: 8 MiB in blocks. */
void work_copy_large(struct worker *worker)
{
    put_kept(worker, LARGE_BYTES, CHUNK_BYTES);
    /* not too many of these: the memory is for all workers */
    for (unsigned i = 0, large = 0; i < worker->fact_count; i++)
        if (worker->facts[i].size == LARGE_BYTES && ++large > 4) {
            struct fact swap = worker->facts[0];

            worker->facts[0] = worker->facts[i];
            worker->facts[i] = swap;
            work_unlink(worker);
            return;
        }
}

static struct fact *any_fact(struct worker *worker)
{
    if (worker->fact_count == 0)
        return NULL;
    return &worker->facts[dice_below(&worker->dice, worker->fact_count)];
}

/* Removes the worker's oldest large objects until they are at most so many bytes. */
static void thin_out(struct worker *worker, uint64_t limit)
{
    uint64_t kept = 0;

    for (unsigned i = worker->fact_count; i-- > 0;) {
        struct fact swap = worker->facts[i];

        kept += swap.size;
        if (swap.size <= LARGE_BYTES || kept <= limit)
            continue;
        worker->facts[i] = worker->facts[0];
        worker->facts[0] = swap;
        work_unlink(worker);
    }
}

/* --large: a file that is too much for memory, with what is there. Most are of some MiB. */
void work_put_large(struct worker *worker)
{
    uint64_t most = (uint64_t)kill_options.large_mib << 20;

    if (!most)
        return;
    if (most > UINT64_C(64) << 20 && dice_percent(&worker->dice, 50))
        most = UINT64_C(64) << 20;
    thin_out(worker, (uint64_t)kill_options.large_mib << 21);
    put_kept(worker, (1 << 20) + dice_below(&worker->dice, most - (1 << 20)),
             dice_percent(&worker->dice, 50) ? CHUNK_BYTES : BUFFER_BYTES);
}

/* --large: the same object again and again, so that it comes back to memory. */
void work_get_again(struct worker *worker)
{
    struct fact *fact = any_fact(worker);

    for (unsigned i = 0; fact && kill_options.large_mib && i < 3; i++)
        fact_verify(worker, fact);
}

/* --- reads --- */

void work_get(struct worker *worker)
{
    struct fact *fact = any_fact(worker);

    if (fact)
        fact_verify(worker, fact);
}

void work_map(struct worker *worker)
{
    struct fact *fact = any_fact(worker);
    ssize_t wrong;
    void *map;
    int fd;

    if (!fact || fact->size == 0)
        return;
    fd = work_open(worker, fact_path(worker, fact->name), O_RDONLY);
    if (fd < 0)
        return;
    map = mmap(NULL, fact->size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        work_error(worker, "mmap", fact->name, errno);
    } else if (!kill_options.both) { /* a fault on a mount that is gone is SIGBUS */
        wrong = content_differs(fact->seed, 0, map, fact->size);
        if (wrong >= 0)
            work_lost(worker, "other content in the mapping", fact);
    }
    if (map != MAP_FAILED)
        munmap(map, fact->size);
    work_close(worker, fd, fact->name);
}

/* Opens, unlinks the name sometimes, and keeps the descriptor for later. */
void work_hold(struct worker *worker)
{
    struct fact *fact = any_fact(worker);
    int fd;

    if (!fact || worker->hold_count == HOLD_LIMIT) {
        work_release(worker);
        return;
    }
    fd = work_open(worker, fact_path(worker, fact->name), O_RDONLY);
    if (fd < 0)
        return;
    worker->open_fd = -1;
    worker->holds[worker->hold_count].fd = fd;
    worker->holds[worker->hold_count++].fact = *fact;
    if (dice_percent(&worker->dice, 50)) {
        struct fact swap = worker->facts[0];

        worker->facts[0] = *fact;
        *fact = swap;
        work_unlink(worker);
    }
}

void work_release(struct worker *worker)
{
    unsigned i;

    if (worker->hold_count == 0)
        return;
    i = (unsigned)dice_below(&worker->dice, worker->hold_count);
    compare_content(worker, worker->holds[i].fd, &worker->holds[i].fact);
    if (close(worker->holds[i].fd) < 0)
        work_error(worker, "close of held", worker->holds[i].fact.name, errno);
    worker->holds[i] = worker->holds[--worker->hold_count];
}

/* Every acknowledged name is listed, once. */
void work_list(struct worker *worker)
{
    DIR *stream = opendir(worker->directory);
    unsigned char found[FACT_LIMIT] = {0};
    struct dirent *entry;

    if (!stream) {
        work_error(worker, "opendir", worker->directory, errno);
        return;
    }
    while ((errno = 0, entry = readdir(stream))) {
        for (unsigned i = 0; i < worker->fact_count; i++)
            if (strcmp(entry->d_name, worker->facts[i].name) == 0)
                found[i]++;
    }
    if (errno) {
        int error = errno;

        closedir(stream);
        work_error(worker, "readdir", worker->directory, error);
        return;
    }
    closedir(stream);
    for (unsigned i = 0; i < worker->fact_count; i++)
        if (found[i] != 1)
            work_lost(worker, found[i] ? "listed twice" : "not listed", &worker->facts[i]);
}

/* --- names --- */

void work_rename(struct worker *worker)
{
    struct fact *fact = any_fact(worker);
    char to[64], before[64];
    struct stat info;

    if (!fact)
        return;
    snprintf(to, sizeof(to), "r%" PRIu64, worker->next_name++);
    memcpy(before, fact->name, sizeof(before));
    worker->doubt = DOUBT_RENAME;
    worker->doubt_fact = *fact;
    memcpy(worker->doubt_name, to, sizeof(to));
    if (rename(fact_path(worker, before), fact_path(worker, to)) < 0) {
        work_error(worker, "rename", before, errno);
        return;
    }
    memcpy(fact->name, to, sizeof(to));
    worker->doubt = DOUBT_NONE;
    if (lstat(fact_path(worker, before), &info) == 0)
        work_lost(worker, "the old name is still there after rename", fact);
    else if (errno != ENOENT)
        work_error(worker, "lstat", before, errno);
    fact_verify(worker, fact);
}

/* A new object over an old name, by rename, as programs replace files. */
void work_replace(struct worker *worker)
{
    struct fact *fact = any_fact(worker);
    struct fact fresh;
    char old[64];

    if (!fact || kill_options.both)
        return;
    new_fact(worker, &fresh, dice_below(&worker->dice, 3000));
    if (!put(worker, &fresh, CHUNK_BYTES))
        return;
    memcpy(old, fact->name, sizeof(old));
    if (rename(fact_path(worker, fresh.name), fact_path(worker, old)) < 0) {
        work_error(worker, "rename over", old, errno);
        return;
    }
    memcpy(fresh.name, old, sizeof(old));
    *fact = fresh;
    fact_verify(worker, fact);
}

void work_unlink(struct worker *worker)
{
    struct fact fact;
    struct stat info;

    if (worker->fact_count == 0)
        return;
    fact = worker->facts[0];
    worker->facts[0] = worker->facts[--worker->fact_count];
    worker->doubt = DOUBT_UNLINK;
    worker->doubt_fact = fact;
    if (unlink(fact_path(worker, fact.name)) < 0) {
        work_error(worker, "unlink", fact.name, errno);
        return;
    }
    worker->doubt = DOUBT_NONE;
    if (lstat(fact_path(worker, fact.name), &info) == 0)
        work_lost(worker, "the name is still there after unlink", &fact);
    else if (errno != ENOENT)
        work_error(worker, "lstat", fact.name, errno);
}

void work_directory(struct worker *worker)
{
    char path[PATH_MAX];

    if (kill_options.both)
        return;
    snprintf(path, sizeof(path), "%s", fact_path(worker, "directory"));
    if (mkdir(path, 0755) < 0)
        work_error(worker, "mkdir", path, errno);
    if (mkdir(path, 0755) == 0 || errno != EEXIST)
        work_error(worker, "second mkdir", path, errno);
    if (rmdir(path) < 0)
        work_error(worker, "rmdir", path, errno);
}

/* What the mount's death cut off is there whole or not at all, as it was before or as it should be.
 */
void doubt_settle(struct worker *worker)
{
    struct fact fact = worker->doubt_fact;
    enum doubt doubt = worker->doubt;
    struct stat info;
    bool before, after;

    worker->doubt = DOUBT_NONE;
    if (doubt == DOUBT_NONE)
        return;
    before = lstat(fact_path(worker, fact.name), &info) == 0;
    if (doubt == DOUBT_CLOSED && !before)
        work_lost(worker, "close had returned 0", &fact);
    if ((doubt == DOUBT_PUT || doubt == DOUBT_CLOSED) && before) {
        if (!S_ISLNK(info.st_mode) && !kill_options.plain)
            work_lost(worker, "a staged file that nobody has open", &fact);
        else if (read_id(worker, fact_path(worker, fact.name), &fact))
            worker->facts[worker->fact_count++] = fact;
    }
    if (doubt == DOUBT_UNLINK && before)
        worker->facts[worker->fact_count++] = fact;
    if (doubt == DOUBT_RENAME) {
        after = lstat(fact_path(worker, worker->doubt_name), &info) == 0;
        if (before == after)
            work_lost(worker, "of rename's two names both or none are there", &fact);
        for (unsigned i = 0; i < worker->fact_count && after; i++)
            if (strcmp(worker->facts[i].name, fact.name) == 0)
                memcpy(worker->facts[i].name, worker->doubt_name, sizeof(fact.name));
    }
}

/* --- jobs --- */

static bool drop_job(struct worker *worker, const char *path, const char *spec, char result[41])
{
    char target[512] = "";
    struct mob_id job;
    ssize_t got;
    int fd = work_open(worker, path, O_WRONLY | O_CREAT | O_EXCL);

    if (fd < 0)
        return false;
    if (mob_write_full(fd, spec, strlen(spec)) < 0)
        work_error(worker, "write of a spec", path, errno);
    if (work_close(worker, fd, path) < 0)
        return false;
    got = readlink(path, target, sizeof(target) - 1);
    if (got < 40 || !mob_id_parse(target + got - 40, 40, &job)) {
        work_error(worker, "readlink of a job", path, got < 0 ? errno : EINVAL);
        return false;
    }
    job = mob_id_with_index(&job, MOB_INDEX_FIRST_OUTPUT);
    mob_id_format(&job, result);
    return true;
}

/* Why a job failed, for whoever reads the test's output. */
static void print_reason(const char *path)
{
    char reason[1024];
    ssize_t got = getxattr(path, "user.mobula.error", reason, sizeof(reason));

    if (got > 0)
        fprintf(stderr, "kill: %s: %.*s\n", path, (int)got, reason);
}

static void run_job(struct worker *worker, const char *shell)
{
    struct fact *fact = any_fact(worker);
    char path[PATH_MAX], spec[600], result[41];
    int fd;

    if (!fact || !kill_options.jobs || kill_options.plain || kill_options.both)
        return;
    snprintf(path, sizeof(path), "%s/run/w%u-%" PRIu64, kill_options.dir, worker->number,
             worker->next_name++);
    snprintf(spec, sizeof(spec),
             "{\"command\": [\"sh\", \"-c\", \"%s\", \"sh\", {\"object\": \"%s\"}]}", shell,
             fact->id);
    if (!drop_job(worker, path, spec, result))
        return;
    fd = work_open(worker, mount_object_path(result), O_RDONLY); /* waits for the end */
    if (fd >= 0) {
        struct fact expected = *fact;

        snprintf(expected.name, sizeof(expected.name), "the result of a job");
        memcpy(expected.id, result, sizeof(expected.id));
        compare_content(worker, fd, &expected);
        work_close(worker, fd, path);
    } else {
        print_reason(mount_object_path(result));
    }
    if (unlink(path) < 0)
        work_error(worker, "unlink", path, errno);
}

void work_job(struct worker *worker)
{
    run_job(worker, "exec cat $1");
}

/* A blocked open, long enough that a kill meets it. */
void work_wait(struct worker *worker)
{
    run_job(worker, "sleep 0.3; exec cat $1");
}
