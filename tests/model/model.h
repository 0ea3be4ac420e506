/* The model of the model-based random test: what the mount must look like, and how an operation
 * that finds it otherwise reports that. One thread, one process; the killer is another. */
#ifndef MOBULA_TESTS_MODEL_MODEL_H
#define MOBULA_TESTS_MODEL_MODEL_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "tests/model/support.h"

enum {
    NODE_LIMIT = 400,   /* names at once: what is over is unlinked first */
    HELD_LIMIT = 40,    /* open files at once */
    OBJECT_LIMIT = 700, /* more than names + held: objects are also held by objects */
    ATTRIBUTE_LIMIT = 4,
    REF_LIMIT = 6,
    DEPTH_LIMIT = 8,
    FREED_RING = 64,
};

struct attribute {
    char name[32];
    unsigned char value[64];
    size_t bytes;
};

/* A committed object. Freed when nothing of names, containers and opens is left. */
struct object {
    char id[41];
    unsigned char *data;
    size_t size;
    mode_t mode; /* permission bits */
    time_t committed_from, committed_to;
    unsigned names, containers, opens;
    struct attribute attributes[ATTRIBUTE_LIMIT];
    unsigned attribute_count;
    struct object *refs[REF_LIMIT];
    unsigned ref_count;
};

/* A file being written. */
struct staged {
    unsigned char *data;
    size_t size, capacity;
    mode_t mode;
    unsigned opens;
    struct node *node; /* NULL: unlinked */
    struct attribute attributes[ATTRIBUTE_LIMIT];
    unsigned attribute_count;
};

enum node_kind { NODE_DIRECTORY, NODE_OBJECT, NODE_STAGED, NODE_TEXT };

/* A name in staging/. */
struct node {
    enum node_kind kind;
    struct node *parent; /* NULL: the root, staging/ itself */
    char name[256];
    struct object *object;
    struct staged *staged;
    char text[128]; /* NODE_TEXT: what readlink gives */
    unsigned entries, subdirectories;
};

/* An open file that is kept. One of staged and object. */
struct held {
    int fd;
    struct staged *staged;
    struct object *object;
    bool readable, writable, append;
};

struct model {
    struct dice dice;
    uint64_t step; /* number of the operation under way */
    struct node *nodes[NODE_LIMIT + 64];
    unsigned node_count; /* nodes[0] is staging/ */
    struct object *objects[OBJECT_LIMIT + 64];
    unsigned object_count;
    struct held held[HELD_LIMIT];
    unsigned held_count;
    char freed[FREED_RING][41];
    unsigned freed_count;
    unsigned job_percent;
    bool verbose;
    /* what came late but came: caches that were told a moment after the reply */
    uint64_t late_links, late_frees;
    uint64_t late_worst_ns;
};

extern struct model model;

/* --- reporting (model.c) --- */

/* One line for the log; its last 50 are printed at a failure. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Prints the failure, the seed and the log's end; exits with status 1. */
void fail(const char *function, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4), noreturn));
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail(__func__, __LINE__, __VA_ARGS__);                                                 \
    } while (0)
/* `rc` of a call that must succeed. */
#define CHECK_CALL(rc, what, path)                                                                 \
    CHECK((rc) >= 0, "%s %s: %s (%d), expected to work", what, path, strerror(errno), errno)
/* `rc` of a call that must fail with one of the errnos, listed and ended by 0. */
void check_refused(int line, long rc, const char *what, const char *path, ...);
#define CHECK_REFUSED(rc, what, path, ...)                                                         \
    check_refused(__LINE__, (long)(rc), what, path, __VA_ARGS__, 0)

/* --- the state (model_state.c) --- */

/* The absolute path of a node, or of `name` in a directory node; in a ring of static buffers. */
const char *path_of(const struct node *node);
const char *path_in(const struct node *directory, const char *name);
/* What of it is shown in messages: without the mount's path. */
const char *short_path(const char *path);
unsigned depth_of(const struct node *directory);                       /* staging/ is 0 */
bool is_inside(const struct node *node, const struct node *directory); /* or is it */

struct node *child_of(const struct node *directory, const char *name);
struct node *node_add(struct node *directory, const char *name, enum node_kind kind);
void node_move(struct node *node, struct node *directory, const char *name);
/* Takes the name away, with what it holds. */
void node_remove(struct node *node);

struct node *any_directory(void);
struct node *any_node(void); /* not the root; NULL if there is none */
struct node *any_of(enum node_kind kind);
struct object *any_object(void);
struct object *any_named_object(void); /* with a name: can be linked again */
const char *any_name(void);            /* out of few, so that they meet */

void object_hold_name(struct object *object);
/* Frees it in the model when nothing holds it any more, and whom it held. */
void object_release(struct object *object);
struct object *object_new(const char *id, const void *data, size_t size, mode_t mode);
void staged_write_model(struct staged *staged, size_t offset, const void *data, size_t bytes);
void staged_resize_model(struct staged *staged, size_t size);
void staged_free(struct staged *staged);

/* --- checks (model_check.c) --- */

/* "../" as often as needed, then "objects/ID" or so. */
void expected_target(const struct node *directory, const char *what, const char *id, char *out,
                     size_t bytes);
void check_node(const struct node *node);
void check_object_stat(const struct object *object, const char *path);
void check_object_content(const struct object *object, const char *path);
void check_held(struct held *held);
void check_directory(const struct node *directory);
void check_objects_directory(void);
void check_freed(const char *id);
void check_attributes(const char *path, const struct attribute *attributes, unsigned count);
/* After a commit under `node` (which was staged): reads the link, makes the object known, checks
 * it. */
struct object *check_commit(struct node *node, time_t from);

/* --- operations: each does one thing, chosen with the dice, and updates the model --- */

void op_put(void);
void op_put_refs(void);
void op_hold_staged(void);
void op_reopen_staged(void);
void op_write_held(void);
void op_truncate_held(void);
void op_map_held(void);
void op_allocate_held(void);
void op_duplicate_held(void);
void op_sync_held(void);
void op_mode_held(void);
void op_attribute_held(void);
void op_check_held(void);
void op_close_held(void);
void op_copy_object(void);

void op_hold_object(void);
void op_read_object(void);
void op_read_name(void);
void op_map_object(void);
void op_rename(void);
void op_unlink(void);
void op_make_directory(void);
void op_remove_directory(void);
void op_link(void);
void op_symlink(void);
void op_list(void);
void op_list_objects(void);
void op_stat(void);
void op_freed(void);

void op_refused_object(void);
void op_refused_name(void);
void op_refused_attribute(void);
void op_job(void);

void held_close(unsigned index);

#endif
