/* readrace CONTENT READERS TIMES: standard input has lines "OFFSET BYTES PATH". READERS threads
 * open PATH at once, read it in several ways, find it to be these bytes of CONTENT, and drop its
 * pages from the cache; one file after the other, and all of them TIMES times. Prints how often
 * files were read. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, FILES = 10000 };

static struct file {
    size_t offset, bytes;
    char path[512];
} files[FILES];
static unsigned file_count, times;
static const char *content;
static pthread_barrier_t barrier;

static void die(const struct file *file, const char *what)
{
    fprintf(stderr, "readrace: %s: %s: %s\n", file->path, what, strerror(errno));
    exit(1);
}

static void compare(const struct file *file, size_t from, const char *got, size_t bytes)
{
    if (memcmp(content + file->offset + from, got, bytes) != 0) {
        errno = 0;
        die(file, "other bytes");
    }
}

static void read_first_to_last(const struct file *file, int fd)
{
    char buffer[3 * PAGE];
    size_t done = 0;
    ssize_t bytes;
    while ((bytes = read(fd, buffer, sizeof(buffer))) > 0) {
        compare(file, done, buffer, (size_t)bytes);
        done += (size_t)bytes;
    }
    if (bytes < 0 || done != file->bytes)
        die(file, "read");
}

static void read_last_to_first(const struct file *file, int fd)
{
    char buffer[PAGE];
    for (size_t page = (file->bytes + PAGE - 1) / PAGE; page-- > 0;) {
        size_t start = page * PAGE;
        size_t bytes = file->bytes - start < PAGE ? file->bytes - start : PAGE;
        if (pread(fd, buffer, PAGE, (off_t)start) != (ssize_t)bytes)
            die(file, "pread");
        compare(file, start, buffer, bytes);
    }
}

/* In the last page, what is behind the end of the file is 0. */
static void read_map(const struct file *file, int fd)
{
    size_t mapped = (file->bytes + PAGE - 1) / PAGE * PAGE;
    const char *map = mmap(NULL, mapped, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        die(file, "mmap");
    compare(file, 0, map, file->bytes);
    for (size_t i = file->bytes; i < mapped; i++)
        if (map[i] != 0)
            die(file, "bytes behind the end");
    munmap((void *)(size_t)map, mapped);
}

static void *read_all(void *argument)
{
    static void (*const ways[])(const struct file *file, int fd) = {read_first_to_last,
                                                                    read_last_to_first, read_map};
    unsigned reader = (unsigned)(size_t)argument;
    for (unsigned i = 0; i < times * file_count; i++) {
        const struct file *file = &files[i % file_count];
        pthread_barrier_wait(&barrier);
        int fd = open(file->path, O_RDONLY);
        if (fd < 0)
            die(file, "open");
        ways[(reader + i) % 3](file, fd);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct stat status;
    if (argc != 4) {
        fprintf(stderr, "usage: readrace CONTENT READERS TIMES\n");
        return 2;
    }
    int fd = open(argv[1], O_RDONLY);
    unsigned readers = (unsigned)strtoul(argv[2], NULL, 10);
    times = (unsigned)strtoul(argv[3], NULL, 10);
    pthread_t *threads = calloc(readers + 1, sizeof(*threads));
    if (fd < 0 || fstat(fd, &status) != 0 || !threads ||
        (content = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) ==
            MAP_FAILED) {
        perror("readrace");
        return 1;
    }
    struct file *file = files;
    while (file_count < FILES &&
           scanf("%zu %zu %511s", &file->offset, &file->bytes, file->path) == 3) {
        file++;
        file_count++;
    }
    pthread_barrier_init(&barrier, NULL, readers);
    for (unsigned i = 0; i < readers; i++)
        if (pthread_create(&threads[i], NULL, read_all, (void *)(size_t)i) != 0)
            return 1;
    for (unsigned i = 0; i < readers; i++)
        pthread_join(threads[i], NULL);
    free(threads);
    printf("%u\n", readers * times * file_count);
    return 0;
}
