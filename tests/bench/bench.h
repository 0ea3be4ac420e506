/* The benchmark of one node: figures, each the median of several runs. See bench.c. */
#ifndef MOBULA_TESTS_BENCH_BENCH_H
#define MOBULA_TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RUN_LIMIT = 64 };

struct bench_options {
    const char *dir;       /* the mount */
    const char *reference; /* a directory of a tmpfs with the same huge-page setting; NULL: none */
    const char *out;       /* file for the figures; NULL: none */
    const char *prefix;    /* before each key */
    unsigned runs;
    bool quick;
    uint64_t scale;        /* objects of the scale test; 0: leave it out */
    const char *up, *down; /* commands that mount and take down; NULL: none were given */
};
extern struct bench_options bench_options;

/* One figure: values are collected, then reported. */
struct figure {
    const char *key;
    const char *unit;
    double values[RUN_LIMIT];
    unsigned count;
};
void figure_add(struct figure *figure, double value);
/* Prints "key TAB median TAB smallest TAB largest TAB unit" to standard output and to --out. */
void figure_report(struct figure *figure);
/* A figure of one value. */
void figure_single(const char *key, double value, const char *unit);

/* Prints what went wrong with errno and exits with status 1. */
void bench_fail(const char *what, const char *path) __attribute__((noreturn));
double bench_seconds(void);
/* `full`, or `quick` with --quick. */
unsigned bench_scaled(unsigned full, unsigned quick);
/* "MNT/REST" into a ring of static buffers. */
const char *bench_path(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The 40 digits that the link at `path` ends in. */
void bench_link_id(const char *path, char id[41]);
/* Creates, writes and closes. */
void bench_put(const char *path, const void *data, size_t bytes);
/* Opens, reads all (at most `bytes`) and closes; returns how many. */
size_t bench_get(const char *path, void *data, size_t bytes);
/* CPU seconds that all threads of a process have used. Negative if they can't be read. */
double bench_process_cpu(int64_t pid);
/* Bytes of anonymous memory of a process. */
int64_t bench_process_anonymous(int64_t pid);

void bench_large(void);
void bench_small(void);
void bench_round_trips(void);
void bench_references(void);
void bench_jobs(void);
void bench_scale(void);
void bench_spill(void);
void bench_spill_gets(void);
void bench_spill_small(void);
void bench_budget(void);
/* One object of twice the memory, which begins there and moves to disk while it is written. */
void bench_outgrow(void);
void bench_start(const char *up, const char *down);

#endif
