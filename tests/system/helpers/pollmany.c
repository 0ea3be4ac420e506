/* pollmany poll|epoll SECONDS: opens the files named on its input with O_NONBLOCK and checks that
 * those not ready answer a read with EAGAIN; prints "pending N"; waits for all of them in one
 * poll(2) or epoll(7); prints "ready PATH BYTES" or "failed PATH ERRNO" for each as it comes; then
 * "done". Exits 1 if some did not come within SECONDS, or if a descriptor was said to be ready and
 * wasn't. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { LIMIT = 20000 };

static struct pollfd wanted[LIMIT];
static char *paths[LIMIT];
static unsigned count, pending;

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* Reads all of one file and tells about it. False: it isn't ready. */
static bool take(unsigned index)
{
    static char buffer[1 << 16];
    long long total = 0;
    ssize_t bytes;
    while ((bytes = read(wanted[index].fd, buffer, sizeof(buffer))) > 0)
        total += bytes;
    if (bytes < 0 && errno == EAGAIN)
        return false;
    if (bytes < 0)
        printf("failed %s %s\n", paths[index], strerrorname_np(errno));
    else
        printf("ready %s %lld\n", paths[index], total);
    fflush(stdout);
    close(wanted[index].fd);
    wanted[index].fd = -1;
    pending--;
    return true;
}

static void open_all(void)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    while (count < LIMIT && (length = getline(&line, &room, stdin)) > 0) {
        line[length - 1] = '\0';
        int fd = open(line, O_RDONLY | O_NONBLOCK);
        if (fd < 0) {
            printf("failed %s %s\n", line, strerrorname_np(errno));
            continue;
        }
        paths[count] = strdup(line);
        wanted[count] = (struct pollfd){.fd = fd, .events = POLLIN};
        count++;
    }
    free(line);
}

static void wait_poll(long long deadline)
{
    while (pending > 0 && now_ms() < deadline) {
        if (poll(wanted, count, (int)(deadline - now_ms())) < 0)
            continue;
        for (unsigned i = 0; i < count; i++) {
            if (wanted[i].fd >= 0 && wanted[i].revents && !take(i)) {
                printf("not-ready %s\n", paths[i]);
                exit(1);
            }
        }
    }
}

static void wait_epoll(long long deadline)
{
    struct epoll_event events[64];
    int set = epoll_create1(EPOLL_CLOEXEC);
    for (unsigned i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        if (wanted[i].fd >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, wanted[i].fd, &event) != 0) {
            printf("failed %s epoll %s\n", paths[i], strerrorname_np(errno));
            exit(1);
        }
    }
    while (pending > 0 && now_ms() < deadline) {
        int found = epoll_wait(set, events, 64, (int)(deadline - now_ms()));
        for (int i = 0; i < found; i++) {
            if (!take(events[i].data.u32)) {
                printf("not-ready %s\n", paths[events[i].data.u32]);
                exit(1);
            }
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: pollmany poll|epoll SECONDS\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    open_all();
    pending = count;
    for (unsigned i = 0; i < count; i++)
        take(i);
    printf("pending %u\n", pending);
    fflush(stdout);

    long long deadline = now_ms() + strtoll(argv[2], NULL, 10) * 1000;
    if (strcmp(argv[1], "epoll") == 0)
        wait_epoll(deadline);
    else
        wait_poll(deadline);
    puts(pending > 0 ? "timeout" : "done");
    return pending > 0;
}
