/* Put before the C library (LD_PRELOAD): calls fail as they do on the file systems of clusters, or at a limit.

   FAIL names them: "flock:37,fsyncdir:22,pthread_create:11:4", each with the errno, from the n-th call on (the first
   unless given); "NAME:4:0:3" fails in the first 3 calls only. SHORT=N lets no call read or write more bytes at once. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

struct entry { const char *name; atomic_int calls; };

static int fails(struct entry *entry)
{
    const char *list = getenv("FAIL");
    size_t length = strlen(entry->name);
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, entry->name, length) == 0 && at[length] == ':') {
            int code = 0, first = 0, count = 1 << 30, number = entry->calls++;
            sscanf(at + length, ":%d:%d:%d", &code, &first, &count);
            if (number >= first && number < first + count) {
                errno = code;
                return code;
            }
            return 0;
        }
    }
    return 0;
}

static size_t most(size_t size)
{
    const char *limit = getenv("SHORT");
    size_t largest = limit ? (size_t)atoi(limit) : size;
    return size < largest ? size : largest;
}

#define REAL(NAME) __typeof__(&NAME) real = (__typeof__(&NAME))dlsym(RTLD_NEXT, #NAME)
#define FAILS(NAME) static struct entry entry = {#NAME, 0}; if (fails(&entry)) return -1

int flock(int fd, int how) { FAILS(flock); REAL(flock); return real(fd, how); }

int fsync(int fd)
{
    struct stat facts;
    if (fstat(fd, &facts) == 0 && S_ISDIR(facts.st_mode)) { FAILS(fsyncdir); }
    REAL(fsync);
    return real(fd);
}

int fallocate(int fd, int mode, off_t offset, off_t size)
{ FAILS(fallocate); REAL(fallocate); return real(fd, mode, offset, size); }
int fallocate64(int fd, int mode, off64_t offset, off64_t size) { return fallocate(fd, mode, offset, size); }
int posix_fallocate(int fd, off_t offset, off_t size) { (void)fd, (void)offset, (void)size; abort(); }
int posix_fallocate64(int fd, off64_t offset, off64_t size) { return posix_fallocate(fd, offset, size); }

int link(const char *from, const char *to) { FAILS(link); REAL(link); return real(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags)
{ FAILS(link); REAL(linkat); return real(a, from, b, to, flags); }

int renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{ FAILS(renameat2); REAL(renameat2); return real(a, from, b, to, flags); }

int sync_file_range(int fd, off64_t offset, off64_t size, unsigned flags)
{ FAILS(sync_file_range); REAL(sync_file_range); return real(fd, offset, size, flags); }

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{ FAILS(pwrite); REAL(pwrite64); return real(fd, data, most(size), offset); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

static ssize_t read_some(int fd, const struct iovec *parts, int count, off64_t offset)
{
    FAILS(preadv);
    REAL(pread64);
    return count ? real(fd, parts[0].iov_base, most(parts[0].iov_len), offset) : 0;
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t at) { return read_some(fd, parts, count, at); }
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t at) { return read_some(fd, parts, count, at); }
ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{ (void)flags; return read_some(fd, parts, count, at); }
ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags)
{ (void)flags; return read_some(fd, parts, count, at); }

int statvfs64(const char *path, struct statvfs64 *facts)
{
    FAILS(statvfs);
    if (getenv("NO_COUNT")) { memset(facts, 0, sizeof *facts); return 0; }
    REAL(statvfs64);
    return real(path, facts);
}
int statvfs(const char *path, struct statvfs *facts) { return statvfs64(path, (struct statvfs64 *)facts); }

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *given)
{
    static struct entry entry = {"pthread_create", 0};
    int code = fails(&entry);
    REAL(pthread_create);
    return code ? code : real(thread, how, start, given);
}
