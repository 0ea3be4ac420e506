/* The kernel's FUSE ABI, where the <linux/fuse.h> of the build machine may be older than the kernel
 * that we run on (Debian 12 has 7.38; FUSE over io_uring is 7.42). Taken from the kernel's
 * include/uapi/linux/fuse.h, which is BSD-2-Clause as well as GPL with the syscall note. Names are
 * our own, so that a newer header does not collide. */
#ifndef MOBULA_FS_FUSE_ABI_H
#define MOBULA_FS_FUSE_ABI_H

#include <stdint.h>
#include <sys/ioctl.h>

#include <linux/fuse.h>

enum {
    ABI_RING_IN_OUT_BYTES = 128,
    ABI_RING_OP_BYTES = 128,
    ABI_NOTIFY_RESEND = 7,
    ABI_NOTIFY_INC_EPOCH = 8, /* 7.44, Linux 6.16 */
    ABI_RING_CMD_REGISTER = 1,
    ABI_RING_CMD_COMMIT_AND_FETCH = 2,
    ABI_OPEN_PASSTHROUGH = 1 << 7,
    /* Linux 6.12. Before 6.11 the kernel did not clear the rest of the last page of what it was
     * given (CVE-2024-44947), and who mapped the file saw what had been there. */
    ABI_MINOR_STORE_ZEROES = 41,
};

/* INIT flags: the first 32 in `flags`, the others in `flags2` once ABI_INIT_EXT is set. */
#define ABI_INIT_EXT (1ull << 30)
#define ABI_INIT_PASSTHROUGH (1ull << 37)
#define ABI_INIT_DIRECT_IO_ALLOW_MMAP (1ull << 36)
#define ABI_INIT_HAS_RESEND (1ull << 39)
#define ABI_INIT_OVER_IO_URING (1ull << 41)

/* Bits of `unique`. */
#define ABI_UNIQUE_INTERRUPT 1ull
#define ABI_UNIQUE_RESEND (1ull << 63)
#define ABI_UNIQUE_STEP 2ull

struct abi_init_in {
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint32_t flags2;
    uint32_t unused[11];
};

struct abi_init_out {
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint16_t max_background;
    uint16_t congestion_threshold;
    uint32_t max_write;
    uint32_t time_gran;
    uint16_t max_pages;
    uint16_t map_alignment;
    uint32_t flags2;
    uint32_t max_stack_depth;
    uint32_t unused[6];
};

struct abi_open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};

struct abi_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};

#define ABI_IOC_BACKING_OPEN _IOW(229, 1, struct abi_backing_map)
#define ABI_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

/* What the kernel copies to and from an entry of the ring; the payload is apart. */
struct abi_ring_header {
    char in_out[ABI_RING_IN_OUT_BYTES]; /* fuse_in_header, or fuse_out_header */
    char op_in[ABI_RING_OP_BYTES];
    uint64_t flags;
    uint64_t commit_id;
    uint32_t payload_bytes;
    uint32_t padding;
    uint64_t reserved;
};

/* The 80 bytes of command space in an SQE128. */
struct abi_ring_command {
    uint64_t flags;
    uint64_t commit_id;
    uint16_t queue;
    uint8_t padding[6];
};

_Static_assert(sizeof(struct abi_ring_header) == 288, "kernel ABI");
_Static_assert(sizeof(struct abi_ring_command) == 24, "kernel ABI");
_Static_assert(sizeof(struct abi_init_in) == 64, "kernel ABI");
_Static_assert(sizeof(struct abi_init_out) == 64, "kernel ABI");
_Static_assert(sizeof(struct abi_open_out) == sizeof(struct fuse_open_out), "kernel ABI");
_Static_assert(sizeof(struct fuse_in_header) == 40, "kernel ABI");

#endif
