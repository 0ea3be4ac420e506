/* See support.h. */
#include "tests/model/support.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/util.h"

/* splitmix64 (Steele, Lea, Flood 2014, public domain). */
static uint64_t mix(uint64_t value)
{
    value += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

uint64_t dice_next(struct dice *dice)
{
    uint64_t value = mix(dice->state);

    dice->state += UINT64_C(0x9e3779b97f4a7c15);
    return value;
}

uint64_t dice_below(struct dice *dice, uint64_t limit)
{
    return limit ? dice_next(dice) % limit : 0;
}

bool dice_percent(struct dice *dice, unsigned percent)
{
    return dice_below(dice, 100) < percent;
}

size_t dice_size(struct dice *dice)
{
    static const size_t edges[] = {0, 1, 4095, 4096, 4097, 102399, 102400, 102401, 131072, 1048577};
    uint64_t kind = dice_below(dice, 100);

    if (kind < 25)
        return edges[dice_below(dice, sizeof(edges) / sizeof(*edges))];
    if (kind < 75)
        return (size_t)dice_below(dice, 8192);
    if (kind < 96)
        return (size_t)dice_below(dice, 200 * 1024);
    return (size_t)dice_below(dice, 4 << 20);
}

static uint64_t content_word(uint64_t seed, uint64_t word)
{
    return mix(seed ^ mix(word));
}

void content_fill(uint64_t seed, uint64_t offset, void *buffer, size_t bytes)
{
    unsigned char *out = buffer;
    size_t done = 0;

    while (done < bytes) {
        uint64_t at = offset + done;
        uint64_t word = content_word(seed, at / 8);
        size_t skip = (size_t)(at % 8);
        size_t count = 8 - skip < bytes - done ? 8 - skip : bytes - done;

        memcpy(out + done, (unsigned char *)&word + skip, count);
        done += count;
    }
}

ssize_t content_differs(uint64_t seed, uint64_t offset, const void *buffer, size_t bytes)
{
    const unsigned char *got = buffer;
    unsigned char expected[4096];

    for (size_t done = 0; done < bytes;) {
        size_t count = bytes - done < sizeof(expected) ? bytes - done : sizeof(expected);

        content_fill(seed, offset + done, expected, count);
        if (memcmp(expected, got + done, count) != 0) {
            for (size_t i = 0; i < count; i++)
                if (expected[i] != got[done + i])
                    return (ssize_t)(done + i);
        }
        done += count;
    }
    return -1;
}

/* --- the daemon --- */

static char root_path[PATH_MAX];
static char node_path[PATH_MAX + 300];

bool mount_open(const char *root)
{
    char nodes[PATH_MAX + 16];
    struct dirent *entry;
    DIR *directory;

    snprintf(root_path, sizeof(root_path), "%s", root);
    snprintf(nodes, sizeof(nodes), "%s/nodes", root_path);
    directory = opendir(nodes);
    if (!directory)
        return false;
    node_path[0] = '\0';
    while ((entry = readdir(directory)))
        if (entry->d_name[0] != '.')
            snprintf(node_path, sizeof(node_path), "%s/%s", nodes, entry->d_name);
    closedir(directory);
    errno = ENOENT;
    return node_path[0] != '\0';
}

const char *mount_root(void)
{
    return root_path;
}

const char *mount_object_path(const char *id)
{
    static _Thread_local char ring[4][PATH_MAX + 64];
    static _Thread_local unsigned next;
    char *out = ring[next++ % 4];

    snprintf(out, sizeof(ring[0]), "%s/objects/%.40s", root_path, id);
    return out;
}

bool mount_text(const char *file, const char *key, char *out, size_t bytes)
{
    char path[PATH_MAX + 400];
    cleanup_free char *content = NULL;
    size_t key_bytes = strlen(key);
    size_t content_bytes;
    errint_t rc;

    snprintf(path, sizeof(path), "%s/%s", node_path, file);
    rc = mob_read_file(AT_FDCWD, path, 1 << 20, &content, &content_bytes);
    if (rc < 0) {
        errno = -rc;
        return false;
    }
    for (char *line = content; line && *line;) {
        char *end = strchr(line, '\n');

        if (end)
            *end = '\0';
        if (strncmp(line, key, key_bytes) == 0 && line[key_bytes] == ' ') {
            snprintf(out, bytes, "%s", line + key_bytes + 1);
            return true;
        }
        line = end ? end + 1 : NULL;
    }
    errno = ENODATA;
    return false;
}

int64_t mount_number(const char *file, const char *key)
{
    char text[PATH_MAX];
    char *end;
    long long value;

    if (!mount_text(file, key, text, sizeof(text)))
        return -1;
    value = strtoll(text, &end, 10);
    if (end == text) {
        errno = ENODATA;
        return -1;
    }
    return value;
}

bool process_is_daemon(pid_t pid)
{
    char path[64];
    char name[64] = "";
    int fd;
    ssize_t got;

    if (pid <= 1)
        return false;
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    got = read(fd, name, sizeof(name) - 1);
    close(fd);
    return got > 0 && strncmp(name, "mobula", 6) == 0;
}

static _Thread_local struct data_files *counted;
static _Thread_local size_t counted_prefix;

static int count_file(const char *path, const struct stat *info, int type, struct FTW *place)
{
    (void)place;
    if (type != FTW_F || !S_ISREG(info->st_mode))
        return 0;
    counted->bytes += (uint64_t)info->st_blocks * 512;
    if (strncmp(path + counted_prefix, "/data/", 6) != 0)
        counted->others++;
    else if (info->st_size > 0 || info->st_blocks > 0)
        counted->filled++;
    else
        counted->empty++;
    return 0;
}

bool data_files_count(const char *memory_dir, struct data_files *out)
{
    memset(out, 0, sizeof(*out));
    counted = out;
    counted_prefix = strlen(memory_dir);
    return nftw(memory_dir, count_file, 16, FTW_PHYS) == 0;
}

/* --- watchdog --- */

void watched_begin(struct watched *watched, const char *operation)
{
    atomic_store(&watched->operation, operation);
    atomic_store(&watched->began_ns, mob_monotonic_ns());
}

void watched_end(struct watched *watched)
{
    atomic_store(&watched->began_ns, 0);
}

static void print_file(const char *path)
{
    char buffer[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    if (fd < 0)
        return;
    while ((got = read(fd, buffer, sizeof(buffer))) > 0)
        fwrite(buffer, 1, (size_t)got, stderr);
    close(fd);
}

void process_print_stacks(pid_t pid)
{
    char path[400];
    struct dirent *entry;
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    tasks = opendir(path);
    while (tasks && (entry = readdir(tasks))) {
        if (entry->d_name[0] == '.')
            continue;
        fprintf(stderr, "--- stack of %d thread %s\n", (int)pid, entry->d_name);
        snprintf(path, sizeof(path), "/proc/%d/task/%s/stack", (int)pid, entry->d_name);
        print_file(path);
    }
    if (tasks)
        closedir(tasks);
}

struct watchdog {
    struct watched *watched;
    size_t count;
    uint64_t limit_ns;
    void (*at_hang)(void);
};

static void *watch(void *argument)
{
    struct watchdog *dog = argument;

    for (;;) {
        usleep(250 * 1000);
        for (size_t i = 0; i < dog->count; i++) {
            uint64_t began = atomic_load(&dog->watched[i].began_ns);
            uint64_t now = mob_monotonic_ns();

            if (!began || now < began || now - began < dog->limit_ns)
                continue;
            fprintf(stderr, "HANG: %s of process %d takes over %.0f s\n",
                    atomic_load(&dog->watched[i].operation), (int)dog->watched[i].pid,
                    (double)dog->limit_ns / 1e9);
            process_print_stacks(dog->watched[i].pid);
            if (dog->at_hang)
                dog->at_hang();
            fflush(NULL);
            _exit(2);
        }
    }
    return NULL;
}

void watchdog_start(struct watched *watched, size_t count, uint64_t limit_ns, void (*at_hang)(void))
{
    static struct watchdog dog;
    pthread_t thread;

    dog = (struct watchdog){watched, count, limit_ns, at_hang};
    if (pthread_create(&thread, NULL, watch, &dog) == 0)
        pthread_detach(thread);
}
