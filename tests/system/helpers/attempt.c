/* attempt OPERATION PATH [ARGUMENT]: does one thing to a file and prints "ok" or the name of the
 * errno, so that a test can say exactly which error it expects. Exits 0 for ok, 1 for an error, 2
 * for bad usage. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <unistd.h>

static const char *path, *argument;

static int open_and_close(int flags)
{
    int fd = open(path, flags, 0666);
    return fd < 0 ? -1 : close(fd);
}

static int open_read(void)
{
    return open_and_close(O_RDONLY);
}
static int open_write(void)
{
    return open_and_close(O_WRONLY);
}
static int open_rdwr(void)
{
    return open_and_close(O_RDWR);
}
static int open_truncate(void)
{
    return open_and_close(O_WRONLY | O_TRUNC);
}
static int open_append(void)
{
    return open_and_close(O_WRONLY | O_APPEND);
}
static int open_create(void)
{
    return open_and_close(O_WRONLY | O_CREAT);
}
static int open_exclusive(void)
{
    return open_and_close(O_WRONLY | O_CREAT | O_EXCL);
}

/* Opens without waiting and reads: EAGAIN while the object is pending. */
static int open_nonblock(void)
{
    char byte;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    return fd < 0 || read(fd, &byte, 1) < 0 ? -1 : 0;
}

static void on_alarm(int signal)
{
    (void)signal;
}

/* Opens, with a signal after ARGUMENT milliseconds whose handler doesn't restart the call. */
static int open_alarm(void)
{
    struct sigaction action = {.sa_handler = on_alarm};
    long ms = strtol(argument, NULL, 10);
    /* Again and again, in case the first came before the open. */
    struct itimerval timer = {.it_value = {ms / 1000, ms % 1000 * 1000},
                              .it_interval = {ms / 1000, ms % 1000 * 1000}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    return open(path, O_RDONLY) < 0 ? -1 : 0;
}

/* Opens for reading, then tries to write through /proc/self/fd. */
static int reopen_write(void)
{
    char link[64];
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return -1;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    return open(link, O_WRONLY) < 0 ? -1 : 0;
}

static int map_with(int protection, int flags)
{
    int fd = open(path, O_RDONLY);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, 1, protection, flags, fd, 0);
    return map == MAP_FAILED ? -1 : 0;
}
static int map_write(void)
{
    return map_with(PROT_READ | PROT_WRITE, MAP_SHARED);
}
/* Maps for reading, then asks for the right to write. */
static int map_protect(void)
{
    int fd = open(path, O_RDONLY);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
    return map == MAP_FAILED ? -1 : mprotect(map, 1, PROT_READ | PROT_WRITE);
}

static int truncate_path(void)
{
    return truncate(path, strtoll(argument, NULL, 10));
}
static int change_mode(void)
{
    return chmod(path, (mode_t)strtoul(argument, NULL, 8));
}
/* chmod through a descriptor that is open for reading only. */
static int change_mode_open(void)
{
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : fchmod(fd, (mode_t)strtoul(argument, NULL, 8));
}
static int change_owner(void)
{
    return chown(path, (uid_t)strtoul(argument, NULL, 10), (gid_t)-1);
}
static int set_times(void)
{
    struct timespec times[2] = {{1, 0}, {1, 0}};
    return utimensat(AT_FDCWD, path, times, 0);
}
static int set_times_now(void)
{
    return utimensat(AT_FDCWD, path, NULL, 0);
}
static int allocate(void)
{
    int fd = open(path, O_WRONLY);
    return fd < 0 ? -1 : fallocate(fd, 0, 0, strtoll(argument, NULL, 10));
}
static int allocate_open(void) /* on a descriptor for reading */
{
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : fallocate(fd, 0, 0, strtoll(argument, NULL, 10));
}
/* ARGUMENT is NAME=VALUE. */
static int set_xattr(void)
{
    const char *equals = strchr(argument, '=');
    char name[256];
    if (!equals || (size_t)(equals - argument) >= sizeof(name)) {
        errno = E2BIG;
        return -1;
    }
    memcpy(name, argument, (size_t)(equals - argument));
    name[equals - argument] = '\0';
    return setxattr(path, name, equals + 1, strlen(equals + 1), 0);
}
static int get_xattr(void)
{
    char value[65536];
    return getxattr(path, argument, value, sizeof(value)) < 0 ? -1 : 0;
}
static int remove_xattr(void)
{
    return removexattr(path, argument);
}
static int rename_to(void)
{
    return rename(path, argument);
}
static int rename_noreplace(void)
{
    return renameat2(AT_FDCWD, path, AT_FDCWD, argument, RENAME_NOREPLACE);
}
static int rename_exchange(void)
{
    return renameat2(AT_FDCWD, path, AT_FDCWD, argument, RENAME_EXCHANGE);
}
static int link_to(void)
{
    return link(path, argument);
}
static int symlink_text(void) /* PATH is made, with ARGUMENT as its text */
{
    return symlink(argument, path);
}
static int unlink_path(void)
{
    return unlink(path);
}
static int make_directory(void)
{
    return mkdir(path, 0777);
}
static int remove_directory(void)
{
    return rmdir(path);
}
static int make_fifo(void)
{
    return mkfifo(path, 0666);
}
static int stat_path(void)
{
    struct stat status;
    return stat(path, &status);
}

static const struct operation {
    const char *name;
    int (*run)(void);
    bool needs_argument;
} operations[] = {
    {"open-read", open_read, false},
    {"open-write", open_write, false},
    {"open-rdwr", open_rdwr, false},
    {"open-truncate", open_truncate, false},
    {"open-append", open_append, false},
    {"open-create", open_create, false},
    {"open-exclusive", open_exclusive, false},
    {"open-nonblock", open_nonblock, false},
    {"open-alarm", open_alarm, true},
    {"reopen-write", reopen_write, false},
    {"map-write", map_write, false},
    {"map-protect", map_protect, false},
    {"truncate", truncate_path, true},
    {"chmod", change_mode, true},
    {"chmod-open", change_mode_open, true},
    {"chown", change_owner, true},
    {"utimes", set_times, false},
    {"touch", set_times_now, false},
    {"fallocate", allocate, true},
    {"fallocate-open", allocate_open, true},
    {"setxattr", set_xattr, true},
    {"getxattr", get_xattr, true},
    {"removexattr", remove_xattr, true},
    {"rename", rename_to, true},
    {"rename-noreplace", rename_noreplace, true},
    {"rename-exchange", rename_exchange, true},
    {"link", link_to, true},
    {"symlink", symlink_text, true},
    {"unlink", unlink_path, false},
    {"mkdir", make_directory, false},
    {"rmdir", remove_directory, false},
    {"mkfifo", make_fifo, false},
    {"stat", stat_path, false},
};

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: attempt OPERATION PATH [ARGUMENT]\n");
        return 2;
    }
    path = argv[2];
    argument = argv[3];
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        if (strcmp(operations[i].name, argv[1]) != 0)
            continue;
        if (operations[i].needs_argument && !argument) {
            fprintf(stderr, "attempt %s: needs an argument\n", argv[1]);
            return 2;
        }
        if (operations[i].run() == 0) {
            puts("ok");
            return 0;
        }
        puts(strerrorname_np(errno));
        return 1;
    }
    fprintf(stderr, "attempt: unknown operation %s\n", argv[1]);
    return 2;
}
