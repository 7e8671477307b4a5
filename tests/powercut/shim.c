/* Records what a process writes below POWERCUT_ROOT, and fails or delays calls when told to.

   Preloaded, it stands before the C library's calls, and makes the system's itself. Every call
   and its record are one step, also among processes: the log is locked meanwhile. What it does
   not see (shared memory) must not matter.

   POWERCUT_ROOT   the folder
   POWERCUT_LOG    where the records go
   POWERCUT_FAIL   "KIND:N:ERRNO:ENDING": the N-th call of a kind (0: every one), on paths that end
                   so, fails; "short" writes a part; "lie" says that it synced
   POWERCUT_DELAY  milliseconds that a sync takes  */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, MARK };
#define FILES 1024
#define MARKS "/powercut/"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *paths[FILES]; /* of open files below the root */
static uint64_t nodes[FILES];
static const char *root, *fail_kind, *fail_ending = "";
static int log_fd = -1, fail_number, fail_error;
static long delay;

static void start(void) {
    const char *text = getenv("POWERCUT_FAIL");
    root = getenv("POWERCUT_ROOT");
    delay = getenv("POWERCUT_DELAY") ? atol(getenv("POWERCUT_DELAY")) : 0;
    if (text) {
        char *rest = strdup(text);
        fail_kind = strsep(&rest, ":");
        fail_number = rest ? atoi(strsep(&rest, ":")) : 0;
        fail_error = rest ? atoi(strsep(&rest, ":")) : 0;
        fail_ending = rest ? rest : "";
    }
    if (root && getenv("POWERCUT_LOG")) {
        int fd = syscall(SYS_openat, AT_FDCWD, getenv("POWERCUT_LOG"),
                         O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
        log_fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);
        syscall(SYS_close, fd);
    }
}
__attribute__((constructor)) static void started(void) { if (!root) start(); }

static void enter(void) {
    if (!root) start();
    pthread_mutex_lock(&lock);
    if (log_fd >= 0) syscall(SYS_flock, log_fd, LOCK_EX);
}
static void leave(void) {
    int kept = errno;
    if (log_fd >= 0) syscall(SYS_flock, log_fd, LOCK_UN);
    pthread_mutex_unlock(&lock);
    errno = kept;
}
static int watched(const char *path) {
    size_t length = root ? strlen(root) : 0;
    return length && path && !strncmp(path, root, length) && (!path[length] || path[length] == '/');
}
static const char *path_of(int fd) { return fd >= 0 && fd < FILES ? paths[fd] : NULL; }

static void record(int kind, int error, uint64_t node, int64_t number, const char *path,
                   const void *data, size_t size) {
    struct { uint32_t kind, error, path, data; uint64_t node; int64_t number; } head =
        {kind, error, path ? strlen(path) : 0, size, node, number};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)data, size}};
    int kept = errno;
    if (log_fd >= 0) syscall(SYS_writev, log_fd, parts, 3);
    errno = kept;
}
static int fails(const char *kind, const char *path) {
    size_t length = path ? strlen(path) : 0, ending = strlen(fail_ending);
    if (!fail_kind || strcmp(kind, fail_kind)) return 0;
    if (length < ending || strcmp(path + length - ending, fail_ending)) return 0;
    if (!fail_number) return 1;
    return fail_number > 0 && --fail_number == 0 ? (fail_number = -1) : 0;
}

static int opening(const char *path, int flags, mode_t mode) {
    struct stat status;
    if (!root) start();
    if (!watched(path)) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    enter();
    int is_new = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0, fd = -1;
    if (fails("open", path)) errno = fail_error;
    else fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && fd < FILES && !fstat(fd, &status)) {
        free(paths[fd]);
        paths[fd] = strdup(path);
        nodes[fd] = status.st_ino;
        if (is_new) record(CREATE, 0, status.st_ino, 0, path, NULL, 0);
        else if (flags & O_TRUNC) record(TRUNCATE, 0, status.st_ino, 0, path, NULL, 0);
    }
    leave();
    return fd;
}
#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
int open(const char *path, int flags, ...) { MODE(flags) return opening(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opening(path, flags, mode); }

int close(int fd) {
    if (!path_of(fd)) return syscall(SYS_close, fd);
    enter();
    free(paths[fd]);
    paths[fd] = NULL;
    int result = syscall(SYS_close, fd);
    leave();
    return result;
}

static ssize_t writing(int fd, const void *data, size_t size, int64_t offset, int at) {
    if (!path_of(fd))
        return at ? syscall(SYS_pwrite64, fd, data, size, offset) : syscall(SYS_write, fd, data, size);
    enter();
    ssize_t result = -1;
    if (!at) offset = syscall(SYS_lseek, fd, 0, SEEK_CUR);
    if (fails("write", paths[fd])) errno = fail_error;
    else {
        if (fails("short", paths[fd])) size = size > 1 ? size / 2 : size;
        result = at ? syscall(SYS_pwrite64, fd, data, size, offset) : syscall(SYS_write, fd, data, size);
    }
    if (result > 0) record(WRITE, 0, nodes[fd], offset, paths[fd], data, result);
    leave();
    return result;
}
ssize_t write(int fd, const void *data, size_t size) { return writing(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return writing(fd, data, size, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return writing(fd, data, size, at, 1); }

static int truncating(int fd, int64_t size) {
    if (!path_of(fd)) return syscall(SYS_ftruncate, fd, size);
    enter();
    int result = -1;
    if (fails("truncate", paths[fd])) errno = fail_error;
    else result = syscall(SYS_ftruncate, fd, size);
    if (!result) record(TRUNCATE, 0, nodes[fd], size, paths[fd], NULL, 0);
    leave();
    return result;
}
int ftruncate(int fd, off_t size) { return truncating(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncating(fd, size); }

static int syncing(int fd) {
    if (!path_of(fd)) return syscall(SYS_fsync, fd);
    struct timespec pause = {delay / 1000, delay % 1000 * 1000000};
    if (delay) nanosleep(&pause, NULL); /* the disk's time, not the recorder's */
    enter();
    int result = 0;
    if (fails("lie", paths[fd])) ;
    else if (fails("sync", paths[fd])) {
        record(SYNC, fail_error, nodes[fd], 0, paths[fd], NULL, 0);
        errno = fail_error;
        result = -1;
    } else record(SYNC, 0, nodes[fd], 0, paths[fd], NULL, 0);
    leave();
    return result;
}
int fsync(int fd) { return syncing(fd); }
int fdatasync(int fd) { return syncing(fd); }

int rename(const char *from, const char *to) {
    if (!watched(from)) return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    enter();
    int result = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (!result) record(RENAME, 0, 0, 0, from, to, strlen(to));
    leave();
    return result;
}
int unlink(const char *path) {
    if (!watched(path)) return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    enter();
    int result = -1;
    if (fails("unlink", path)) errno = fail_error;
    else result = syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (!result) record(UNLINK, 0, 0, 0, path, NULL, 0);
    leave();
    return result;
}
int mkdir(const char *path, mode_t mode) {
    if (!watched(path)) return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    enter();
    int result = -1;
    if (fails("mkdir", path)) errno = fail_error;
    else result = syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (!result) record(MKDIR, 0, 0, 0, path, NULL, 0);
    leave();
    return result;
}

static void *mapping(void *at, size_t size, int protection, int flags, int fd, off64_t offset) {
    if (path_of(fd) && fails("mmap", paths[fd])) {
        errno = fail_error;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mapping(at, size, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t offset) {
    return mapping(at, size, protection, flags, fd, offset);
}

/* The program says what it promised: access("/powercut/..."). */
int access(const char *path, int mode) {
    if (!strncmp(path, MARKS, strlen(MARKS))) {
        enter();
        record(MARK, 0, 0, 0, NULL, path + strlen(MARKS), strlen(path) - strlen(MARKS));
        leave();
        return 0;
    }
    return syscall(SYS_faccessat, AT_FDCWD, path, mode);
}
