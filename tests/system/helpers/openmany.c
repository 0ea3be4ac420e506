/* openmany FILE COUNT: COUNT threads open FILE at once and read all of it. Prints "started" when
 * every thread is about to open, and at the end a line an outcome: "COUNT ok BYTES" or "COUNT
 * ERRNO". */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const char *path;
static pthread_barrier_t barrier;

/* What a thread ends with: the number of bytes, or a negative errno. */
static void *open_and_read(void *outcome)
{
    char buffer[4096];
    long total = 0;
    ssize_t bytes = 0;
    pthread_barrier_wait(&barrier);
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        *(long *)outcome = -errno;
        return NULL;
    }
    while ((bytes = read(fd, buffer, sizeof(buffer))) > 0)
        total += bytes;
    *(long *)outcome = bytes < 0 ? -errno : total;
    close(fd);
    return NULL;
}

static int compare(const void *a, const void *b)
{
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

static void report(long outcome, unsigned times)
{
    if (outcome < 0)
        printf("%u %s\n", times, strerrorname_np((int)-outcome));
    else
        printf("%u ok %ld\n", times, outcome);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: openmany FILE COUNT\n");
        return 2;
    }
    path = argv[1];
    unsigned count = (unsigned)strtoul(argv[2], NULL, 10);
    pthread_t *threads = calloc(count, sizeof(*threads));
    long *outcomes = calloc(count, sizeof(*outcomes));
    struct rlimit files;
    pthread_attr_t attributes;

    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    pthread_barrier_init(&barrier, NULL, count + 1);
    for (unsigned i = 0; i < count; i++) {
        int error = pthread_create(&threads[i], &attributes, open_and_read, &outcomes[i]);
        if (error) {
            fprintf(stderr, "openmany: thread %u: %s\n", i, strerror(error));
            return 1;
        }
    }
    pthread_barrier_wait(&barrier);
    puts("started");
    fflush(stdout);
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    qsort(outcomes, count, sizeof(*outcomes), compare);
    for (unsigned i = 0, first = 0; i < count; i++) {
        if (i + 1 == count || outcomes[i + 1] != outcomes[i]) {
            report(outcomes[i], i + 1 - first);
            first = i + 1;
        }
    }
    free(threads);
    free(outcomes);
    return 0;
}
