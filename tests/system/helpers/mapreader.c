/* mapreader FILE COPY: maps FILE for reading, closes the descriptor, prints "mapped"; then, for
 * each line on its input, compares the map with the file COPY and prints "equal" or "different". */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *map_file(const char *path, size_t *bytes)
{
    struct stat status;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &status) != 0) {
        perror(path);
        exit(1);
    }
    *bytes = (size_t)status.st_size;
    void *map = mmap(NULL, *bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        perror(path);
        exit(1);
    }
    close(fd);
    return map;
}

int main(int argc, char **argv)
{
    char line[80];
    size_t bytes, copy_bytes;
    if (argc != 3) {
        fprintf(stderr, "usage: mapreader FILE COPY\n");
        return 2;
    }
    const char *map = map_file(argv[1], &bytes);
    const char *copy = map_file(argv[2], &copy_bytes);
    puts("mapped");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        int equal = bytes == copy_bytes && memcmp(map, copy, bytes) == 0;
        puts(equal ? "equal" : "different");
        fflush(stdout);
    }
    return 0;
}
