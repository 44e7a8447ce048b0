/* Copyright 2026 The trl-ext authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A library to preload: counts what a process does to the files below one folder, and makes the n-th operation fail.
 *
 * tests/file_faults.py compiles it and says which operation, and how. It stands between a program and the C library, so
 * it also sees what torch, safetensors, tokenizers and pyarrow write without Python.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FULL, BROKEN, DENIED, KILLED };

static char folder[PATH_MAX];
static size_t folder_length;
static long wanted, counted;
static int kind, full, log_file = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* From now on, operation `number` (from 1; 0: none) below `path` fails as `how`. Their names go to the file `log`. */
void faults_arm(const char *path, long number, int how, const char *log)
{
    folder_length = 0;
    if (log_file >= 0)
        REAL(close)(log_file);
    log_file = log[0] ? REAL(open)(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600) : -1;
    snprintf(folder, sizeof folder, "%s/", path);
    wanted = number, counted = 0, kind = how, full = 0;
    folder_length = strlen(folder);
}

/* Whether `path`, relative to the folder that is open as `directory`, is the folder or below it; in full in `found`. */
static int below(int directory, const char *path, char *found)
{
    char name[64], base[PATH_MAX];
    if (!folder_length || !path)
        return 0;
    if (path[0] == '/') {
        snprintf(found, PATH_MAX, "%s", path);
    } else {
        if (directory == AT_FDCWD)
            snprintf(name, sizeof name, "/proc/self/cwd");
        else
            snprintf(name, sizeof name, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(name, base, sizeof base - 1);
        if (length < 0)
            return 0;
        base[length] = 0;
        if (snprintf(found, PATH_MAX, "%s%s%s", base, path[0] ? "/" : "", path) >= PATH_MAX)
            return 0;
    }
    return !strncmp(found, folder, folder_length) || (strlen(found) == folder_length - 1 && !strncmp(found, folder, folder_length - 1));
}

static int open_below(int descriptor, char *found)
{
    return descriptor > 2 && below(descriptor, "", found);
}

/* Counts an operation. Returns 0 if it is to go on, else the error to fail with; -1: kill the process in the middle. */
static int next(const char *what, const char *path, int takes_space)
{
    int error = 0;
    pthread_mutex_lock(&lock);
    counted++;
    if (log_file >= 0)
        dprintf(log_file, "%s %s\n", what, path);
    if (counted == wanted) {
        full = kind == FULL;
        error = kind == FULL ? ENOSPC : kind == BROKEN ? EIO : kind == DENIED ? EACCES : kind == KILLED ? -1 : 0;
    } else if (full && takes_space) {
        error = ENOSPC;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    pause();
}

/* The usual body: fail with what `next` says, else go on. */
#define GUARD(what, path, takes_space, failed)           \
    do {                                                 \
        int error_ = next(what, path, takes_space);      \
        if (error_ < 0)                                  \
            die();                                       \
        if (error_ > 0) {                                \
            errno = error_;                              \
            return failed;                               \
        }                                                \
    } while (0)

/* ---------------------------------------------------------------------------------------------------- opening */

static int creates(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY && !(flags & O_TMPFILE & ~O_DIRECTORY);
}

#define OPEN(name, ...)                                                            \
    mode_t mode = 0;                                                               \
    char found[PATH_MAX];                                                          \
    if (flags & (O_CREAT | O_TMPFILE)) {                                           \
        va_list arguments;                                                         \
        va_start(arguments, flags);                                                \
        mode = va_arg(arguments, mode_t);                                          \
        va_end(arguments);                                                         \
    }                                                                              \
    if (creates(flags) && below(directory, path, found))                           \
        GUARD("open", found, flags & O_CREAT, -1);                                 \
    return REAL(name)(__VA_ARGS__, flags, mode);

int open(const char *path, int flags, ...) { int directory = AT_FDCWD; OPEN(open, path) }
int open64(const char *path, int flags, ...) { int directory = AT_FDCWD; OPEN(open64, path) }
int openat(int directory, const char *path, int flags, ...) { OPEN(openat, directory, path) }
int openat64(int directory, const char *path, int flags, ...) { OPEN(openat64, directory, path) }

FILE *fopen(const char *path, const char *mode)
{
    char found[PATH_MAX];
    if (strpbrk(mode, "wa+") && below(AT_FDCWD, path, found))
        GUARD("open", found, 1, NULL);
    return REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
    char found[PATH_MAX];
    if (strpbrk(mode, "wa+") && below(AT_FDCWD, path, found))
        GUARD("open", found, 1, NULL);
    return REAL(fopen64)(path, mode);
}

/* ---------------------------------------------------------------------------------------------------- writing */

/* A write that fails has written half. A full disk reports that half, and the next write finds no space at all. */
#define WRITE(bytes, half)                                                         \
    char found[PATH_MAX];                                                          \
    if (open_below(descriptor, found)) {                                           \
        int already_full = full, error = next("write", found, 1);                  \
        if (error) {                                                               \
            ssize_t done = already_full || (bytes) < 2 ? 0 : (half);               \
            if (error < 0)                                                         \
                die();                                                             \
            if (error == ENOSPC && done > 0)                                       \
                return done;                                                       \
            errno = error;                                                         \
            return -1;                                                             \
        }                                                                          \
    }

ssize_t write(int descriptor, const void *data, size_t size)
{
    WRITE(size, REAL(write)(descriptor, data, size / 2))
    return REAL(write)(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t place)
{
    WRITE(size, REAL(pwrite)(descriptor, data, size / 2, place))
    return REAL(pwrite)(descriptor, data, size, place);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t place)
{
    WRITE(size, REAL(pwrite64)(descriptor, data, size / 2, place))
    return REAL(pwrite64)(descriptor, data, size, place);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    WRITE(count, REAL(writev)(descriptor, parts, count / 2))
    return REAL(writev)(descriptor, parts, count);
}

ssize_t sendfile(int descriptor, int source, off_t *place, size_t size)
{
    WRITE(0, 0)
    return ((ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile"))(descriptor, source, place, size);
}

ssize_t sendfile64(int descriptor, int source, off64_t *place, size_t size)
{
    WRITE(0, 0)
    return ((ssize_t(*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64"))(descriptor, source, place, size);
}

ssize_t copy_file_range(int source, off64_t *from, int descriptor, off64_t *to, size_t size, unsigned flags)
{
    WRITE(0, 0)
    return REAL(copy_file_range)(source, from, descriptor, to, size, flags);
}

#define ON_DESCRIPTOR(name, what, takes_space, ...)                                \
    char found[PATH_MAX];                                                          \
    if (open_below(descriptor, found))                                             \
        GUARD(what, found, takes_space, -1);                                       \
    return REAL(name)(__VA_ARGS__);

int fsync(int descriptor) { ON_DESCRIPTOR(fsync, "fsync", 0, descriptor) }
int fdatasync(int descriptor) { ON_DESCRIPTOR(fdatasync, "fsync", 0, descriptor) }
int ftruncate(int descriptor, off_t size) { ON_DESCRIPTOR(ftruncate, "truncate", 0, descriptor, size) }
int ftruncate64(int descriptor, off64_t size) { ON_DESCRIPTOR(ftruncate64, "truncate", 0, descriptor, size) }

/* --------------------------------------------------------------------------------------------------- names */

#define ON_PATH(name, what, directory, path, takes_space, ...)                     \
    char found[PATH_MAX];                                                          \
    if (below(directory, path, found))                                             \
        GUARD(what, found, takes_space, -1);                                       \
    return REAL(name)(__VA_ARGS__);

int mkdir(const char *path, mode_t mode) { ON_PATH(mkdir, "mkdir", AT_FDCWD, path, 1, path, mode) }
int mkdirat(int at, const char *path, mode_t mode) { ON_PATH(mkdirat, "mkdir", at, path, 1, at, path, mode) }
int rename(const char *from, const char *to) { ON_PATH(rename, "rename", AT_FDCWD, to, 0, from, to) }
int renameat(int at, const char *from, int to_at, const char *to)
{
    ON_PATH(renameat, "rename", to_at, to, 0, at, from, to_at, to)
}
int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags)
{
    ON_PATH(renameat2, "rename", to_at, to, 0, at, from, to_at, to, flags)
}
int unlink(const char *path) { ON_PATH(unlink, "remove", AT_FDCWD, path, 0, path) }
int unlinkat(int at, const char *path, int flags) { ON_PATH(unlinkat, "remove", at, path, 0, at, path, flags) }
int rmdir(const char *path) { ON_PATH(rmdir, "remove", AT_FDCWD, path, 0, path) }
