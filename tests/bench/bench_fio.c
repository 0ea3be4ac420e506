/* What the disk itself gives, as fio measures it. See bench_spill.h. */
#include "tests/bench/bench_spill.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/bench/bench.h"
#include "tests/model/support.h"

char fio_state[PATH_MAX - 16];
static char fio_file[PATH_MAX], fio_files[PATH_MAX];

static void make_fio_names(void)
{
    if (!mount_text("daemon", "state_dir", fio_state, sizeof(fio_state)))
        bench_fail("no state_dir:", bench_options.dir);
    snprintf(fio_file, sizeof(fio_file), "%s/fio", fio_state);
    snprintf(fio_files, sizeof(fio_files), "%s/fio-files", fio_state);
}

/* What it reports, in GB/s. */
static double run_fio(const char *options)
{
    char command[2 * PATH_MAX], line[8192];
    double reads = 0, writes = 0;
    char *field = line;
    FILE *pipe;

    snprintf(command, sizeof(command),
             "fio --name=bench --output-format=terse --terse-version=3 %s", options);
    pipe = popen(command, "re");
    if (!pipe)
        bench_fail("popen", "fio");
    if (!fgets(line, sizeof(line), pipe))
        line[0] = '\0';
    if (pclose(pipe) != 0)
        bench_fail("failed:", command);
    for (unsigned i = 1; field; i++) { /* KiB a second: of reads, of writes */
        if (i == 7)
            reads = strtod(field, NULL);
        if (i == 48)
            writes = strtod(field, NULL);
        field = strchr(field, ';');
        field = field ? field + 1 : NULL;
    }
    return (reads + writes) * 1024 / 1e9;
}

static double run_fio_large(const char *kind, uint64_t bytes)
{
    char options[PATH_MAX + 200];

    snprintf(options, sizeof(options),
             "--filename='%s' --size=%" PRIu64 " --rw=%s --bs=1M --ioengine=io_uring --iodepth=16 "
             "--direct=1",
             fio_file, bytes, kind);
    return run_fio(options);
}

/* A file each, through the page cache; those that are read are not in it. */
static double run_fio_files(const char *kind, unsigned count)
{
    char options[PATH_MAX + 300];

    snprintf(options, sizeof(options),
             "--directory='%s' --nrfiles=%u --filesize=%d --rw=%s --bs=%d --ioengine=sync "
             "--openfiles=1 --create_on_open=1 --file_service_type=sequential",
             fio_files, count, SPILL_SMALL_BYTES, kind, SPILL_SMALL_BYTES);
    return run_fio(options);
}

bool fio_open(void)
{
    bool is;

    make_fio_names();
    is = system("command -v fio >/dev/null 2>&1") == 0;

    if (!is)
        fprintf(stderr, "bench: no fio: nothing to compare with\n");
    return is;
}

void sync_disk(void)
{
    char command[PATH_MAX + 32];

    snprintf(command, sizeof(command), "sync -f '%s'", fio_state);
    if (system(command) != 0)
        bench_fail("failed:", command);
}

void fio_writes(struct figure *figure, uint64_t bytes)
{
    unlink(fio_file);
    figure_add(figure, run_fio_large("write", bytes));
}

void fio_reads(struct figure *figure, uint64_t bytes)
{
    figure_add(figure, run_fio_large("read", bytes));
}

void fio_reads_and_writes_files(struct figure *writes, struct figure *reads, unsigned count)
{
    char command[PATH_MAX + 32];

    if (mkdir(fio_files, 0755) < 0)
        bench_fail("mkdir", fio_files);
    figure_add(writes, run_fio_files("write", count));
    sync_disk();
    figure_add(reads, run_fio_files("read", count));
    snprintf(command, sizeof(command), "rm -r '%s'", fio_files);
    if (system(command) != 0)
        bench_fail("failed:", command);
}

void fio_close(void)
{
    unlink(fio_file);
}
