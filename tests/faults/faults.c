/* Makes system calls on the files below $FAULTS_DIRECTORY fail, in the process that is started with this in LD_PRELOAD.

   The calls are counted by kind. The process says through `faults_arm` which one is to fail, and how; see `injection.py`.
   A descriptor belongs to the directory if the path that it was opened by does. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the order of `KINDS` in injection.py. "create" is an "open" that would make a file. */
enum kind { READ, WRITE, SYNC, OPEN, CREATE, LINK, RENAME, UNLINK, TRUNCATE, MAP, MKDIR, KINDS };

#define DESCRIPTORS 65536
static _Atomic unsigned char below[DESCRIPTORS];

static atomic_long calls[KINDS], fired;
static atomic_int armed = -1;
static long first;          /* the number of the call that fails */
static int number_of_error; /* 0: none */
static int for_ever;        /* so do the calls after it */
static int is_short;        /* the first of them writes half */
static int has_no_links;    /* and the file system knows no links */

void faults_arm(int kind, long nth, int error, int ever, int half, int no_links) {
    for (int i = 0; i < KINDS; i++) calls[i] = 0;
    fired = 0;
    first = nth, number_of_error = error, for_ever = ever, is_short = half, has_no_links = no_links;
    armed = kind;
}

long faults_disarm(void) {
    armed = -1;
    has_no_links = 0;
    return fired;
}

long faults_calls(int kind) { return calls[kind]; }

/* 0: go on; -1: fail, `errno` says how; 1: do half. */
static int verdict(enum kind kind) {
    long number = atomic_fetch_add(&calls[kind], 1) + 1;
    if (armed != (int)kind || number < first || (number > first && !for_ever)) return 0;
    fired++;
    if (is_short && number == first) return 1;
    errno = number_of_error;
    return number_of_error ? -1 : 0;
}

static int is_below(const char *path) {
    static const char *directory;
    if (!directory) directory = getenv("FAULTS_DIRECTORY");
    if (!directory || !path) return 0;
    size_t length = strlen(directory);
    return !strncmp(path, directory, length) && (path[length] == '/' || !path[length]);
}

static int is_watched(int fd) { return fd >= 0 && fd < DESCRIPTORS && below[fd]; }

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* The name as `at` has it: a directory that is open, or AT_FDCWD. */
static int is_below_at(int at, const char *path) {
    return path && path[0] != '/' && at != AT_FDCWD ? is_watched(at) : is_below(path);
}

static int opened(int fd, int at, const char *path) {
    if (fd >= 0 && fd < DESCRIPTORS) below[fd] = is_below_at(at, path);
    return fd;
}

static int refuses_to_open(int at, const char *path, int flags) {
    struct stat status;
    if (!is_below_at(at, path)) return 0;
    if ((flags & O_CREAT) && fstatat(at, path, &status, AT_SYMLINK_NOFOLLOW) && verdict(CREATE)) return 1;
    return verdict(OPEN);
}

#define MODE                                                                                                               \
    mode_t mode = 0;                                                                                                       \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                                                 \
        va_list more;                                                                                                      \
        va_start(more, flags);                                                                                             \
        mode = va_arg(more, mode_t);                                                                                       \
        va_end(more);                                                                                                      \
    }

int open(const char *path, int flags, ...) {
    MODE
    return refuses_to_open(AT_FDCWD, path, flags) ? -1 : opened(REAL(open)(path, flags, mode), AT_FDCWD, path);
}

int open64(const char *path, int flags, ...) {
    MODE
    return refuses_to_open(AT_FDCWD, path, flags) ? -1 : opened(REAL(open64)(path, flags, mode), AT_FDCWD, path);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE
    return refuses_to_open(at, path, flags) ? -1 : opened(REAL(openat64)(at, path, flags, mode), at, path);
}

int close(int fd) {
    if (is_watched(fd)) below[fd] = 0;
    return REAL(close)(fd);
}

/* `call` works on `count` bytes. */
#define BYTES(kind, call)                                                                                                  \
    int how = is_watched(fd) ? verdict(kind) : 0;                                                                          \
    if (how < 0) return -1;                                                                                                \
    if (how > 0 && count > 1) count /= 2;                                                                                  \
    return call;

ssize_t read(int fd, void *data, size_t count) { BYTES(READ, REAL(read)(fd, data, count)) }
ssize_t pread(int fd, void *data, size_t count, off_t at) { BYTES(READ, REAL(pread)(fd, data, count, at)) }
ssize_t pread64(int fd, void *data, size_t count, off64_t at) { BYTES(READ, REAL(pread64)(fd, data, count, at)) }
ssize_t write(int fd, const void *data, size_t count) { BYTES(WRITE, REAL(write)(fd, data, count)) }
ssize_t pwrite(int fd, const void *data, size_t count, off_t at) { BYTES(WRITE, REAL(pwrite)(fd, data, count, at)) }
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) { BYTES(WRITE, REAL(pwrite64)(fd, data, count, at)) }

int fsync(int fd) { return is_watched(fd) && verdict(SYNC) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return is_watched(fd) && verdict(SYNC) ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { return is_watched(fd) && verdict(TRUNCATE) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return is_watched(fd) && verdict(TRUNCATE) ? -1 : REAL(ftruncate64)(fd, size); }

void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t at) {
    return is_watched(fd) && verdict(MAP) ? MAP_FAILED : REAL(mmap64)(address, size, protection, flags, fd, at);
}

int link(const char *from, const char *to) {
    if (has_no_links) return errno = EPERM, -1;
    return is_below(to) && verdict(LINK) ? -1 : REAL(link)(from, to);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    if (has_no_links) return errno = EPERM, -1;
    return is_below_at(to_at, to) && verdict(LINK) ? -1 : REAL(linkat)(from_at, from, to_at, to, flags);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    return is_below_at(to_at, to) && verdict(RENAME) ? -1 : REAL(renameat)(from_at, from, to_at, to);
}

int rename(const char *from, const char *to) { return is_below(to) && verdict(RENAME) ? -1 : REAL(rename)(from, to); }
int unlink(const char *path) { return is_below(path) && verdict(UNLINK) ? -1 : REAL(unlink)(path); }
int rmdir(const char *path) { return is_below(path) && verdict(UNLINK) ? -1 : REAL(rmdir)(path); }
int unlinkat(int at, const char *path, int flags) {
    return is_below_at(at, path) && verdict(UNLINK) ? -1 : REAL(unlinkat)(at, path, flags);
}
int mkdir(const char *path, mode_t mode) { return is_below(path) && verdict(MKDIR) ? -1 : REAL(mkdir)(path, mode); }
