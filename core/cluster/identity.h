/* Identity: the key pair of this node. The owner part of every ID it makes is the start of the
 * SHA-256 of its public key (SPEC.md 2). */
#ifndef MOBULA_CORE_CLUSTER_IDENTITY_H
#define MOBULA_CORE_CLUSTER_IDENTITY_H

#include <stdint.h>

#include "core/base/error.h"
#include "core/base/id.h"

/* Reads state_dir/node.key (PEM, Ed25519, mode 0600), or makes it. -EINVAL: not such a key; -EPERM:
 * others can read it; -EIO, -ENOSPC, -EACCES. `err` names the file. Blocks for the disk. */
MOB_MUST_CHECK errint_t identity_load(const char *state_dir, uint8_t owner[MOB_ID_OWNER_BYTES],
                                      struct mob_error *err);

#endif
