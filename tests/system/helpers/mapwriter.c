/* mapwriter FILE BYTES LETTER: makes FILE, maps it shared and writable, closes the descriptor,
 * prints "closed" and waits for a line; fills the map with LETTER, unmaps it, prints "unmapped" and
 * waits for the end of its input. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char line[80];
    if (argc != 4) {
        fprintf(stderr, "usage: mapwriter FILE BYTES LETTER\n");
        return 2;
    }
    size_t bytes = strtoul(argv[2], NULL, 10);
    int fd = open(argv[1], O_RDWR | O_CREAT, 0666);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        perror("mapwriter: open and ftruncate");
        return 1;
    }
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED || close(fd) != 0) {
        perror("mapwriter: mmap and close");
        return 1;
    }
    puts("closed");
    fflush(stdout);
    if (!fgets(line, sizeof(line), stdin))
        return 1;
    memset(map, argv[3][0], bytes);
    if (munmap(map, bytes) != 0) {
        perror("mapwriter: munmap");
        return 1;
    }
    puts("unmapped");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin))
        continue;
    return 0;
}
