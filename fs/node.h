/* Inode numbers: what each of the kernel's node IDs stands for.
 *
 * A node ID is computed from what is stored, never from a pointer, so that it means the same to
 * every server of a mount: 5 bits kind, 10 bits auxiliary, 48 bits number (of the object, name,
 * job...). Nothing needs to be remembered for it, and FORGET has nothing to do. */
#ifndef MOBULA_FS_NODE_H
#define MOBULA_FS_NODE_H

#include <stdint.h>

enum node_kind {
    NODE_FIXED,       /* number: enum node_fixed */
    NODE_OBJECT,      /* number: of the object */
    NODE_OBJECT_LINK, /* number: of the object; auxiliary: depth, how many ../ lead to the root */
    NODE_JOB_LINK,    /* number: of the job; auxiliary: depth */
    NODE_DIRECTORY,   /* number: of the directory (staging/, run/ and below) */
    NODE_STAGED,      /* number: of the staged file */
    NODE_SYMLINK,     /* number: of the plain symbolic link */
    NODE_JOB,         /* number: of the job: jobs/ID */
    NODE_JOB_FILE,    /* number: of the job; auxiliary: enum job_node_file */
    NODE_JOB_OUTPUT,  /* number: of the job; auxiliary: place of the output */
    NODE_KINDS,
};

enum node_fixed {
    FIXED_ROOT = 1, /* FUSE_ROOT_ID */
    FIXED_OBJECTS,
    FIXED_JOBS,
    FIXED_ACTORS,
    FIXED_NODES,
    FIXED_README,
    FIXED_METRICS,
    FIXED_NODE,          /* nodes/ID of this node */
    FIXED_NODE_FILE = 16 /* and the files in it */
};

#define NODE_NUMBER_BITS 48
#define NODE_NUMBER_MASK ((UINT64_C(1) << NODE_NUMBER_BITS) - 1)

static inline uint64_t node_id(enum node_kind kind, unsigned auxiliary, uint64_t number)
{
    return (uint64_t)kind << 58 | (uint64_t)(auxiliary & 0x3ff) << NODE_NUMBER_BITS |
           (number & NODE_NUMBER_MASK);
}
/* NODE_KINDS for what can't be one of ours. */
static inline enum node_kind node_kind(uint64_t id)
{
    return id >> 58 < NODE_KINDS ? (enum node_kind)(id >> 58) : NODE_KINDS;
}
static inline unsigned node_auxiliary(uint64_t id)
{
    return (unsigned)(id >> NODE_NUMBER_BITS) & 0x3ff;
}
static inline uint64_t node_number(uint64_t id)
{
    return id & NODE_NUMBER_MASK;
}

#endif
