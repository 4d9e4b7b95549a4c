/* Preloaded into `spo` by the tests: make the disk fail, the process die, or the view of a folder lag, at one chosen call.

   Counted are the calls that change something below one folder. The library does nothing until `fault_arm` is called,
   and only in the process that called it. `log` receives a line for each counted call. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sendfile.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, KILL, TEAR, FULL, CLOCK, WATCH };

static struct {
  pid_t process;
  int kind, log;
  long at, count;
  char root[PATH_MAX];
} fault;

static struct {
  char path[PATH_MAX], folder[PATH_MAX], name[NAME_MAX + 1];
  long lookups, listings;
  int is_ghost; /* listed although it does not exist, instead of hidden although it exists */
} lag;

/* kind: what happens at the call number `at`, from 1, or at each call:
     KILL  the process is killed before the call.
     TEAR  a write puts half of its bytes on the disk, then the process is killed; any other call: it is killed after it.
     FULL  from this call on, calls that need room fail with ENOSPC; a write puts half of its bytes on the disk first.
     CLOCK from this call on, each reading of the time of day is off by up to 30 days in either direction.
     WATCH the process stops before each call, and in the middle of each write, until it receives SIGCONT. */
void fault_arm(const char *root, int kind, long at, int log) {
  fault.kind = kind, fault.at = at, fault.log = log, fault.count = 0;
  if (!realpath(root, fault.root)) abort();
  fault.process = getpid();
}

/* For `lookups` calls by name and `listings` listings of its folder, a file seems absent (or, a ghost, seems listed). */
void fault_lag(const char *folder, const char *name, long lookups, long listings, int is_ghost) {
  snprintf(lag.path, sizeof lag.path, "%s/%s", folder, name);
  snprintf(lag.folder, sizeof lag.folder, "%s", folder);
  snprintf(lag.name, sizeof lag.name, "%s", name);
  lag.lookups = lookups, lag.listings = listings, lag.is_ghost = is_ghost;
}

#define NEXT(type, name, ...) \
  static type (*next)(__VA_ARGS__); \
  if (!next) next = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int is_armed(void) { return fault.process && fault.process == getpid(); }

static int absolute(int folder, const char *path, char *found) {
  char base[PATH_MAX] = "", link[64];
  if (!path) return 0;
  if (path[0] != '/') {
    if (folder == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) return 0;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
      ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
      if (length < 0) return 0;
      base[length] = 0;
    }
    strncat(base, "/", sizeof base - strlen(base) - 1);
  }
  return snprintf(found, PATH_MAX, "%s%s", base, path) < PATH_MAX;
}

static int of_handle(int handle, char *found) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, found, PATH_MAX - 1);
  if (length < 0) return 0;
  found[length] = 0;
  return 1;
}

static int is_below(const char *path) {
  size_t length = strlen(fault.root);
  return !strncmp(path, fault.root, length) && (!path[length] || path[length] == '/');
}

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

static void stop(void) { syscall(SYS_kill, getpid(), SIGSTOP); }

/* Count one call on `path`; return the kind of the fault that happens to it. */
static int reach(const char *call, const char *path, int needs_room) {
  if (!is_armed() || !is_below(path)) return NONE;
  char line[PATH_MAX + 64];
  int kept = errno, length = snprintf(line, sizeof line, "%s %s\n", call, path + strlen(fault.root));
  long number = __atomic_add_fetch(&fault.count, 1, __ATOMIC_SEQ_CST);
  if (fault.log >= 0) syscall(SYS_write, fault.log, line, (size_t)length);
  errno = kept;
  if (fault.kind == FULL) return needs_room && number >= fault.at ? FULL : NONE;
  if (fault.kind == WATCH) {
    stop();
    return WATCH;
  }
  if (number != fault.at) return NONE;
  if (fault.kind == KILL) die();
  return fault.kind == TEAR ? TEAR : NONE;
}

static int reach_at(const char *call, int folder, const char *path, int needs_room) {
  char found[PATH_MAX];
  return is_armed() && absolute(folder, path, found) ? reach(call, found, needs_room) : NONE;
}

static int reach_handle(const char *call, int handle, int needs_room) {
  char found[PATH_MAX];
  return is_armed() && of_handle(handle, found) ? reach(call, found, needs_room) : NONE;
}

/* Make a call that changes names or metadata, unless the disk is full; die after it if it is to be torn. */
#define CHANGE(reached, call) \
  int reached_kind = reached; \
  if (reached_kind == FULL) { errno = ENOSPC; return -1; } \
  __typeof__(call) result = call; \
  if (reached_kind == TEAR) die(); \
  return result

ssize_t write(int handle, const void *bytes, size_t length) {
  NEXT(ssize_t, "write", int, const void *, size_t);
  int kind = reach_handle("write", handle, 1);
  if (kind == NONE) return next(handle, bytes, length);
  if (kind == WATCH && length < 2) return next(handle, bytes, length);
  ssize_t done = length > 1 ? next(handle, bytes, length / 2) : 0;
  if (kind == TEAR) die();
  if (kind == WATCH) {
    stop();
    ssize_t rest = next(handle, (const char *)bytes + done, length - (size_t)done);
    return rest < 0 ? rest : done + rest;
  }
  if (fault.count > fault.at || done <= 0) { errno = ENOSPC; return -1; }
  return done;
}

ssize_t writev(int handle, const struct iovec *pieces, int count) {
  NEXT(ssize_t, "writev", int, const struct iovec *, int);
  int kind = reach_handle("writev", handle, 1);
  if (kind == NONE || kind == WATCH) return next(handle, pieces, count);
  if (count > 1) next(handle, pieces, count / 2);
  if (kind == TEAR) die();
  errno = ENOSPC;
  return -1;
}

ssize_t pwrite64(int handle, const void *bytes, size_t length, off_t offset) {
  NEXT(ssize_t, "pwrite64", int, const void *, size_t, off_t);
  CHANGE(reach_handle("pwrite", handle, 1), next(handle, bytes, length, offset));
}
ssize_t pwrite(int handle, const void *bytes, size_t length, off_t offset) {
  return pwrite64(handle, bytes, length, offset);
}

ssize_t sendfile64(int to, int from, off_t *offset, size_t length) {
  NEXT(ssize_t, "sendfile64", int, int, off_t *, size_t);
  int kind = reach_handle("sendfile", to, 1);
  if (kind == NONE || kind == WATCH) return next(to, from, offset, length);
  next(to, from, offset, length / 2);
  if (kind == TEAR) die();
  errno = ENOSPC;
  return -1;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t length) { return sendfile64(to, from, offset, length); }

ssize_t copy_file_range(int from, off_t *from_offset, int to, off_t *to_offset, size_t length, unsigned flags) {
  NEXT(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
  CHANGE(reach_handle("copy_file_range", to, 1), next(from, from_offset, to, to_offset, length, flags));
}

int fsync(int handle) {
  NEXT(int, "fsync", int);
  CHANGE(reach_handle("fsync", handle, 0), next(handle));
}
int fdatasync(int handle) {
  NEXT(int, "fdatasync", int);
  CHANGE(reach_handle("fdatasync", handle, 0), next(handle));
}

int ftruncate64(int handle, off_t length) {
  NEXT(int, "ftruncate64", int, off_t);
  CHANGE(reach_handle("ftruncate", handle, length > 0), next(handle, length));
}
int ftruncate(int handle, off_t length) { return ftruncate64(handle, length); }
int truncate64(const char *path, off_t length) {
  NEXT(int, "truncate64", const char *, off_t);
  CHANGE(reach_at("truncate", AT_FDCWD, path, length > 0), next(path, length));
}
int truncate(const char *path, off_t length) { return truncate64(path, length); }
int posix_fallocate64(int handle, off_t offset, off_t length) {
  NEXT(int, "posix_fallocate64", int, off_t, off_t);
  CHANGE(reach_handle("fallocate", handle, 1), next(handle, offset, length));
}
int posix_fallocate(int handle, off_t offset, off_t length) { return posix_fallocate64(handle, offset, length); }

/* A process sees its own changes at once: a lag of this name ends when the process itself puts a file there. */
static void end_lag(int folder, const char *path) {
  char found[PATH_MAX];
  if (lag.path[0] && !lag.is_ghost && is_armed() && absolute(folder, path, found) && !strcmp(found, lag.path))
    lag.lookups = lag.listings = 0;
}

int renameat(int from, const char *old, int to, const char *new) {
  NEXT(int, "renameat", int, const char *, int, const char *);
  end_lag(to, new);
  CHANGE(reach_at("rename", to, new, 1), next(from, old, to, new));
}
int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
  NEXT(int, "linkat", int, const char *, int, const char *, int);
  CHANGE(reach_at("link", to, new, 1), next(from, old, to, new, flags));
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
int symlink(const char *target, const char *path) {
  NEXT(int, "symlink", const char *, const char *);
  CHANGE(reach_at("symlink", AT_FDCWD, path, 1), next(target, path));
}

int unlinkat(int folder, const char *path, int flags) {
  NEXT(int, "unlinkat", int, const char *, int);
  CHANGE(reach_at(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path, 0), next(folder, path, flags));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *path, mode_t mode) {
  NEXT(int, "mkdirat", int, const char *, mode_t);
  CHANGE(reach_at("mkdir", folder, path, 1), next(folder, path, mode));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
int chmod(const char *path, mode_t mode) {
  NEXT(int, "chmod", const char *, mode_t);
  CHANGE(reach_at("chmod", AT_FDCWD, path, 0), next(path, mode));
}

/* Lookups and listings that lag. */

static int is_lagging(int folder, const char *path) {
  char found[PATH_MAX];
  if (!lag.path[0] || lag.is_ghost || lag.lookups <= 0 || !is_armed() || !absolute(folder, path, found)) return 0;
  size_t length = strlen(lag.path); /* the file itself, or what is in a folder that seems absent */
  if (strncmp(found, lag.path, length) || (found[length] && found[length] != '/')) return 0;
  lag.lookups--;
  errno = ENOENT;
  return 1;
}

int openat64(int folder, const char *path, int flags, ...) {
  NEXT(int, "openat64", int, const char *, int, ...);
  va_list arguments;
  va_start(arguments, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  if (!(flags & O_CREAT) && is_lagging(folder, path)) return -1;
  if (!(flags & (O_CREAT | O_TRUNC))) return next(folder, path, flags, mode);
  CHANGE(reach_at("open", folder, path, 1), next(folder, path, flags, mode));
}

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list arguments; \
    va_start(arguments, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0; \
    va_end(arguments); \
    return openat64(AT_FDCWD, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
int openat(int folder, const char *path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return openat64(folder, path, flags, mode);
}

#define LOOKUP(name, folder, declared, passed, ...) \
  int name declared { \
    NEXT(int, #name, __VA_ARGS__); \
    return is_lagging(folder, path) ? -1 : next passed; \
  }
LOOKUP(stat, AT_FDCWD, (const char *path, struct stat *into), (path, into), const char *, struct stat *)
LOOKUP(stat64, AT_FDCWD, (const char *path, struct stat64 *into), (path, into), const char *, struct stat64 *)
LOOKUP(lstat, AT_FDCWD, (const char *path, struct stat *into), (path, into), const char *, struct stat *)
LOOKUP(lstat64, AT_FDCWD, (const char *path, struct stat64 *into), (path, into), const char *, struct stat64 *)
LOOKUP(fstatat, folder, (int folder, const char *path, struct stat *into, int flags), (folder, path, into, flags),
       int, const char *, struct stat *, int)
LOOKUP(fstatat64, folder, (int folder, const char *path, struct stat64 *into, int flags), (folder, path, into, flags),
       int, const char *, struct stat64 *, int)
LOOKUP(__xstat64, AT_FDCWD, (int version, const char *path, struct stat64 *into), (version, path, into),
       int, const char *, struct stat64 *)
LOOKUP(access, AT_FDCWD, (const char *path, int mode), (path, mode), const char *, int)

static DIR *lagging_stream;

DIR *opendir(const char *path) {
  NEXT(DIR *, "opendir", const char *);
  char found[PATH_MAX];
  if (!(lag.path[0] && lag.is_ghost) && is_lagging(AT_FDCWD, path)) return NULL;
  DIR *stream = next(path);
  if (stream && is_armed() && lag.listings > 0 && absolute(AT_FDCWD, path, found) && !strcmp(found, lag.folder)) {
    lag.listings--;
    lagging_stream = stream;
  }
  return stream;
}

int closedir(DIR *stream) {
  NEXT(int, "closedir", DIR *);
  if (stream == lagging_stream) lagging_stream = NULL;
  return next(stream);
}

struct dirent64 *readdir64(DIR *stream) {
  NEXT(struct dirent64 *, "readdir64", DIR *);
  static struct dirent64 ghost;
  struct dirent64 *entry = next(stream);
  if (stream != lagging_stream) return entry;
  if (!lag.is_ghost && entry && !strcmp(entry->d_name, lag.name)) return next(stream);
  if (lag.is_ghost && !entry && strcmp(ghost.d_name, lag.name)) {
    ghost.d_type = DT_REG;
    snprintf(ghost.d_name, sizeof ghost.d_name, "%s", lag.name);
    return &ghost;
  }
  return entry;
}
struct dirent *readdir(DIR *stream) { return (struct dirent *)readdir64(stream); }

/* A clock that jumps. */

static time_t jump(void) {
  static unsigned state = 1;
  if (!is_armed() || fault.kind != CLOCK || fault.count < fault.at) return 0;
  state = state * 1103515245u + 12345u;
  return (time_t)(state % (60u * 86400u)) - 30 * 86400;
}
int clock_gettime(clockid_t clock, struct timespec *into) {
  int result = (int)syscall(SYS_clock_gettime, clock, into);
  if (clock == CLOCK_REALTIME && !result) into->tv_sec += jump();
  return result;
}
int gettimeofday(struct timeval *restrict into, void *restrict zone) {
  int result = (int)syscall(SYS_gettimeofday, into, zone);
  if (!result) into->tv_sec += jump();
  return result;
}
time_t time(time_t *into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}
