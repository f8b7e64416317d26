/* Records what a process does to the files below one directory, in the order in which it happened, with all data.

   Preloaded (LD_PRELOAD) with RECORD_DIRECTORY and RECORD_LOG set; `recording.py` reads the log. A call is noted when it has
   succeeded, a sync also before it begins: what was noted before that had been written when it began. Directly by system
   calls, which are the same on every 64-bit Linux. What is changed through a mapping (SQLite's -shm) is not seen. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *directory;
static size_t directory_length;
static int log_descriptor = -1;
static uint64_t syncs;

struct record {
    uint8_t kind;
    uint8_t padding[7];
    uint64_t inode;
    int64_t number; /* offset, size, or which sync */
    uint64_t name_length;
    uint64_t data_length; /* a second name, for `link` and `rename` */
};

__attribute__((constructor)) static void begin(void)
{
    directory = getenv("RECORD_DIRECTORY");
    const char *log = getenv("RECORD_LOG");
    if (directory == NULL || log == NULL)
        return;
    directory_length = strlen(directory);
    log_descriptor = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void note(char kind, uint64_t inode, int64_t number, const char *name, const void *data, size_t data_length)
{
    struct record record = {.kind = kind, .inode = inode, .number = number, .data_length = data_length};
    record.name_length = strlen(name);
    struct iovec parts[] = {
        {&record, sizeof record}, {(void *)name, record.name_length}, {(void *)data, data_length}};
    ssize_t whole = sizeof record + record.name_length + data_length;
    /* One write in append mode: the records of threads and processes do not mix. */
    if (syscall(SYS_writev, log_descriptor, parts, 3L) != whole)
        abort();
}

static int is_below(const char *name)
{
    if (log_descriptor < 0 || strncmp(name, directory, directory_length) != 0)
        return 0;
    return name[directory_length] == '/' || name[directory_length] == '\0';
}

/* The name as it is without `at`, a directory that is open, or AT_FDCWD. */
static const char *whole_name(int at, const char *name, char *buffer)
{
    if (log_descriptor < 0 || at == AT_FDCWD || name[0] == '/')
        return name;
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, buffer, PATH_MAX);
    length = length < 0 ? 0 : length;
    snprintf(buffer + length, PATH_MAX, "/%s", name);
    return buffer;
}

static uint64_t inode_of(int descriptor)
{
    struct stat status;
    return fstat(descriptor, &status) == 0 ? status.st_ino : 0;
}

/* The name under which a descriptor was opened, if that is to be recorded; else an empty one. */
static void find_name(int descriptor, char *name)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = log_descriptor < 0 ? -1 : readlink(link, name, PATH_MAX);
    name[length < 0 ? 0 : length] = '\0';
    if (!is_below(name))
        name[0] = '\0';
}

static void note_change(char kind, int descriptor, int64_t number, const void *data, size_t data_length)
{
    char name[PATH_MAX + 1];
    find_name(descriptor, name);
    if (name[0] != '\0')
        note(kind, inode_of(descriptor), number, "", data, data_length);
}

/* Files */

static int opened(int at, const char *name, int flags, mode_t mode)
{
    char buffer[2 * PATH_MAX + 1];
    int descriptor = syscall(SYS_openat, at, name, flags, mode);
    name = whole_name(at, name, buffer);
    if (descriptor >= 0 && (flags & (O_CREAT | O_TRUNC)) && is_below(name))
        note(flags & O_TRUNC ? 'O' : 'o', inode_of(descriptor), 0, name, NULL, 0);
    return descriptor;
}

static mode_t mode_of(int flags, va_list more)
{
    return flags & O_CREAT ? va_arg(more, mode_t) : 0;
}

int open(const char *name, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    return opened(AT_FDCWD, name, flags, mode);
}

int openat(int at, const char *name, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    return opened(at, name, flags, mode);
}

int open64(const char *, int, ...) __attribute__((alias("open")));
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));

ssize_t write(int descriptor, const void *data, size_t length)
{
    ssize_t written = syscall(SYS_write, descriptor, data, length);
    if (written > 0)
        note_change('w', descriptor, lseek(descriptor, 0, SEEK_CUR) - written, data, written);
    return written;
}

ssize_t pwrite(int descriptor, const void *data, size_t length, off_t offset)
{
    ssize_t written = syscall(SYS_pwrite64, descriptor, data, length, offset);
    if (written > 0)
        note_change('w', descriptor, offset, data, written);
    return written;
}

int ftruncate(int descriptor, off_t size)
{
    int result = syscall(SYS_ftruncate, descriptor, size);
    if (result == 0)
        note_change('t', descriptor, size, NULL, 0);
    return result;
}

ssize_t pwrite64(int, const void *, size_t, off64_t) __attribute__((alias("pwrite")));
int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));

static int synced(long call, int descriptor)
{
    char name[PATH_MAX + 1];
    find_name(descriptor, name);
    uint64_t inode = name[0] == '\0' ? 0 : inode_of(descriptor);
    int64_t number = __atomic_add_fetch(&syncs, 1, __ATOMIC_RELAXED);
    if (name[0] != '\0')
        note('s', inode, number, name, NULL, 0);
    int result = syscall(call, descriptor);
    if (name[0] != '\0' && result == 0)
        note('S', inode, number, name, NULL, 0);
    return result;
}

int fsync(int descriptor) { return synced(SYS_fsync, descriptor); }
int fdatasync(int descriptor) { return synced(SYS_fdatasync, descriptor); }

/* Names */

int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    char buffers[2][2 * PATH_MAX + 1];
    int result = syscall(SYS_linkat, from_at, from, to_at, to, flags);
    from = whole_name(from_at, from, buffers[0]), to = whole_name(to_at, to, buffers[1]);
    if (result == 0 && is_below(to))
        note('l', 0, 0, from, to, strlen(to));
    return result;
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    char buffers[2][2 * PATH_MAX + 1];
    int result = syscall(SYS_renameat2, from_at, from, to_at, to, 0);
    from = whole_name(from_at, from, buffers[0]), to = whole_name(to_at, to, buffers[1]);
    if (result == 0 && is_below(to))
        note('r', 0, 0, from, to, strlen(to));
    return result;
}

int unlinkat(int at, const char *name, int flags)
{
    char buffer[2 * PATH_MAX + 1];
    int result = syscall(SYS_unlinkat, at, name, flags);
    name = whole_name(at, name, buffer);
    if (result == 0 && is_below(name))
        note('u', 0, 0, name, NULL, 0);
    return result;
}

int mkdirat(int at, const char *name, mode_t mode)
{
    char buffer[2 * PATH_MAX + 1];
    int result = syscall(SYS_mkdirat, at, name, mode);
    name = whole_name(at, name, buffer);
    if (result == 0 && is_below(name))
        note('d', 0, 0, name, NULL, 0);
    return result;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
