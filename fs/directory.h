/* Requests that change staging/ and run/. The parent is a NODE_DIRECTORY; each replies. */
#ifndef MOBULA_FS_DIRECTORY_H
#define MOBULA_FS_DIRECTORY_H

#include <sys/types.h>

#include "fs/transport.h"

void directory_mkdir(fuse_req_t request, uint64_t parent, const char *name, mode_t mode);
void directory_unlink(fuse_req_t request, uint64_t parent, const char *name);
void directory_rmdir(fuse_req_t request, uint64_t parent, const char *name);
void directory_symlink(fuse_req_t request, const char *text, uint64_t parent, const char *name);
void directory_link(fuse_req_t request, uint64_t node, uint64_t parent, const char *name);
void directory_rename(fuse_req_t request, uint64_t parent, const char *name, uint64_t new_parent,
                      const char *new_name, unsigned flags);

#endif
