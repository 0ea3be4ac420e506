/* Job specs: text that a user dropped becomes a checked struct job_spec, or an error with a place.
 *
 * The text is a JSON object, or a script whose first line is `#!` with options in `#MOBULA key =
 * value` lines (mobula-job(5)). Nothing here knows the store: whether an object exists is checked
 * at submission. */
#ifndef MOBULA_CORE_JOB_SPEC_H
#define MOBULA_CORE_JOB_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/base/id.h"

#define SPEC_TEXT_LIMIT ((size_t)16 << 20)
#define SPEC_DEPTH_LIMIT 32
#define SPEC_OUTPUT_LIMIT 1000
#define SPEC_NAME_LIMIT 255
/* Linux: an argument is at most 128 KiB with its terminator, all of them with the environment 2 MiB
 * (a quarter of the usual stack limit). */
#define SPEC_ARGUMENT_LIMIT ((size_t)128 << 10)
#define SPEC_ARGUMENTS_LIMIT ((size_t)2 << 20)
#define SPEC_RETRIES_LIMIT 1000
#define SPEC_IDS_LIMIT 1000000

enum spec_word_kind { SPEC_WORD_TEXT, SPEC_WORD_OBJECT, SPEC_WORD_REF, SPEC_WORD_OUTPUT };

struct spec_word {
    enum spec_word_kind kind;
    char *text;       /* SPEC_WORD_TEXT */
    struct mob_id id; /* SPEC_WORD_OBJECT, SPEC_WORD_REF */
    size_t output;    /* SPEC_WORD_OUTPUT: its place in `outputs` */
};

enum spec_stdin { SPEC_STDIN_NULL, SPEC_STDIN_TEXT, SPEC_STDIN_OBJECT };

struct spec_ids {
    struct mob_id *ids;
    size_t count;
};

struct job_spec {
    struct spec_word *words; /* empty for a script */
    size_t word_count;
    size_t script_bytes; /* a script: the whole text runs; 0: `words` do */
    char *interpreter;   /* of its first line, and the one argument there, or NULL */
    char *interpreter_argument;
    enum spec_stdin stdin_kind;
    char *stdin_text;
    size_t stdin_bytes;
    struct mob_id stdin_object;
    char **outputs;
    size_t output_count;
    char **env; /* "NAME=value" */
    size_t env_count;
    char *cwd;           /* absolute, or NULL */
    uint64_t timeout_ns; /* 0 = none */
    uint32_t milli_cpus;
    unsigned retries;
    bool retry_node, retry_exit;
    int priority;
    struct spec_ids after; /* jobs */
    struct spec_ids refs;  /* objects */
};

/* 0 and *out, which the caller frees by spec_free(); -EINVAL with line, column, field and what was
 * expected; -EFBIG is not used: a text that is too long is -EINVAL too; -ENOMEM. `text` needs no
 * terminator and is not kept. */
MOB_MUST_CHECK errint_t spec_parse(const char *text, size_t bytes, struct job_spec **out,
                                   struct mob_error *err);
void spec_free(struct job_spec *spec);

/* Where a field stands, for errors found after parsing (an object that does not exist): line and
 * column of the `place`th element of `field` (SIZE_MAX: of the field itself). Zero where it can't
 * be found. */
void spec_place(const char *text, size_t bytes, const char *field, size_t place, unsigned *line,
                unsigned *column);

/* Makes text of a user's fit for a sentence, in place: one line of well-formed UTF-8. */
void spec_make_printable(char *text);

#endif
