/* Preloaded: no SQLite shared-memory file (its name ends in -shm) can be mapped. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int is_shared_memory(int fd)
{
    char link[32], path[4096];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path);
    return length >= 4 && memcmp(path + length - 4, "-shm", 4) == 0;
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    static void *(*next)(void *, size_t, int, int, int, off64_t);

    if (fd >= 0 && is_shared_memory(fd)) {
        errno = ENODEV;
        return MAP_FAILED;
    }
    if (next == NULL)
        next = dlsym(RTLD_NEXT, "mmap64");
    return next(address, length, protection, flags, fd, offset);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return mmap64(address, length, protection, flags, fd, offset);
}
