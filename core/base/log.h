/* Log: one line a message, on standard error (which mobulad points at its log file or the journal).
 */
#ifndef MOBULA_BASE_LOG_H
#define MOBULA_BASE_LOG_H

#include "core/base/error.h"

enum mob_log_level { MOB_LOG_ERROR, MOB_LOG_WARNING, MOB_LOG_INFO, MOB_LOG_DEBUG };

/* Messages above this level are dropped. Default: MOB_LOG_INFO, or MOB_LOG_DEBUG when the
 * environment has MOBULA_DEBUG set. Set it before threads start. */
void mob_log_set_level(enum mob_log_level level);

/* Writes "TIME LEVEL MESSAGE\n" with one write(2), so that lines of several threads and processes
 * stay whole. Lines over 1,000 bytes are cut. Keeps errno. Any thread. */
void mob_log(enum mob_log_level level, const char *format, ...) MOB_PRINTF(2, 3);

#define mob_log_error(...) mob_log(MOB_LOG_ERROR, __VA_ARGS__)
#define mob_log_warning(...) mob_log(MOB_LOG_WARNING, __VA_ARGS__)
#define mob_log_info(...) mob_log(MOB_LOG_INFO, __VA_ARGS__)
#define mob_log_debug(...) mob_log(MOB_LOG_DEBUG, __VA_ARGS__)

#endif
