/* What the parts of the disk tier's bench share. */
#ifndef MOBULA_TESTS_BENCH_BENCH_SPILL_H
#define MOBULA_TESTS_BENCH_BENCH_SPILL_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/bench/bench.h"

enum { SPILL_BLOCK = 1 << 20, SPILL_SMALL_BYTES = 10 * 1024 };

/* --- bench_fio.c: in the mount's state directory, so on the disk that it spills to --- */

extern char fio_state[PATH_MAX - 16]; /* that directory, after fio_open() */

/* False, and a warning, if there is no fio. */
bool fio_open(void);
void fio_close(void);
/* Until the filesystem has written all back. */
void sync_disk(void);
/* GB/s of io_uring, direct, blocks of 1 MiB, 16 in flight: into a new file, as a spilled one is;
 * and of reading that. */
void fio_writes(struct figure *figure, uint64_t bytes);
void fio_reads(struct figure *figure, uint64_t bytes);
/* The same of `count` small files, through the page cache, in which they are not when read. */
void fio_reads_and_writes_files(struct figure *writes, struct figure *reads, unsigned count);

/* --- bench_spill.c: large objects, in numbers --- */

extern char *spill_block; /* SPILL_BLOCK bytes to write and to read into, after spill_prepare() */

/* Is there fio? */
bool spill_prepare(void);
void spill_end(void);
/* So many that they are three times the memory. */
unsigned spill_object_count(void);
void spill_put_object(unsigned number);
/* Those that are there. */
void spill_free_objects(unsigned from, unsigned to);
/* Until the number in nodes/ID/`file` is `most` or less. */
void spill_wait_for(const char *file, const char *key, int64_t most);

#endif
