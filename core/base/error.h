/* Errors: one convention for the whole tree.
 *
 * A function that can fail returns `errint_t`: 0, or a negative errno. What a person must read goes
 * into a `struct mob_error`, which is passed last and may be NULL. A function that fills it returns
 * the same code. (The convention is composefs' errint_t, libcomposefs/lcfs-internal.h, and crun's
 * libcrun_error_t, docs/error_handling.md; the code is our own.) */
#ifndef MOBULA_BASE_ERROR_H
#define MOBULA_BASE_ERROR_H

#include <stddef.h>

typedef int errint_t;

#define MOB_MUST_CHECK __attribute__((warn_unused_result))
#define MOB_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* One sentence for a person, and where it happened. `line` and `column` are 1-based, 0 = not known;
 * `field` names the field of a job spec, a file, or an option; "" = none. */
struct mob_error {
    errint_t code;
    unsigned line;
    unsigned column;
    char field[64];
    char message[400];
};

/* Fills `err` (may be NULL) and returns `code`, so that `return mob_error_set(...)` works.
 * Messages longer than the field are cut. Never fails, never blocks, any thread. */
errint_t mob_error_set(struct mob_error *err, errint_t code, const char *format, ...)
    MOB_PRINTF(3, 4);

/* The same, with the place. `field` may be NULL. */
errint_t mob_error_set_at(struct mob_error *err, errint_t code, unsigned line, unsigned column,
                          const char *field, const char *format, ...) MOB_PRINTF(6, 7);

/* Writes "line 3, column 7: command: expected a list" (without what isn't known) into `out`, always
 * terminated. Returns `out`. */
const char *mob_error_format(const struct mob_error *err, char *out, size_t out_bytes);

#endif
