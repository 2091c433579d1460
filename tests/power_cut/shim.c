/* Writes down, in the order in which they happen, what a process does to the files of one folder: the bytes written, and
 * the syncs. From that the test makes the disks that a power cut could have left. Loaded with LD_PRELOAD.
 *
 * POWER_CUT_FOLDER: the folder, absolute and without links. POWER_CUT_JOURNAL: where to write, outside of it.
 *
 * A record: what happened (W, T, S, U, R, D), the length of the name and of the data (4 bytes each), an offset (8 bytes),
 * all in the machine's order, then the name and the data. One lock around each deed and its record: the journal has the
 * order that the disk has seen. Nothing is really synced: the journal says what would have been. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static char folder[4096];
static size_t folder_len;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_CUT_JOURNAL"), *of = getenv("POWER_CUT_FOLDER");
    if (path == NULL || of == NULL || strlen(of) >= sizeof folder)
        return;
    strcpy(folder, of);
    folder_len = strlen(folder);
    journal = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* The name inside of the folder, "" for the folder itself; NULL: none of ours. The index of the log is made anew after a
 * crash, and of the lock only the holding counts. */
static const char *ours(const char *path) {
    if (journal < 0 || strncmp(path, folder, folder_len) != 0)
        return NULL;
    if (path[folder_len] == '\0')
        return "";
    if (path[folder_len] != '/')
        return NULL;
    const char *name = path + folder_len + 1;
    size_t len = strlen(name);
    if ((len > 4 && strcmp(name + len - 4, "-shm") == 0) || (len > 5 && strcmp(name + len - 5, ".lock") == 0))
        return NULL;
    return name;
}

static const char *opened(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = journal < 0 ? -1 : readlink(link, path, size - 1);
    if (len < 0)
        return NULL;
    path[len] = '\0';
    return ours(path);
}

static void note(char what, const char *name, uint64_t offset, const void *data, uint32_t len) {
    uint32_t name_len = (uint32_t)strlen(name);
    char head[17];
    head[0] = what;
    memcpy(head + 1, &name_len, 4);
    memcpy(head + 5, &len, 4);
    memcpy(head + 9, &offset, 8);
    struct iovec parts[3] = {{head, sizeof head}, {(void *)name, name_len}, {(void *)data, len}};
    /* A journal with a hole proves nothing. */
    if (syscall(SYS_writev, journal, parts, 3) != (long)(sizeof head + name_len + len))
        abort();
}

static ssize_t written(int fd, const void *data, size_t len, off_t at, int moves) {
    char path[4096];
    const char *name = opened(fd, path, sizeof path);
    if (name == NULL)
        return moves ? syscall(SYS_write, fd, data, len) : syscall(SYS_pwrite64, fd, data, len, at);
    pthread_mutex_lock(&lock);
    if (moves)
        at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = moves ? syscall(SYS_write, fd, data, len) : syscall(SYS_pwrite64, fd, data, len, at);
    if (done > 0)
        note('W', name, (uint64_t)at, data, (uint32_t)done);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *data, size_t len) { return written(fd, data, len, 0, 1); }
ssize_t pwrite(int fd, const void *data, size_t len, off_t at) { return written(fd, data, len, at, 0); }
ssize_t pwrite64(int fd, const void *data, size_t len, off_t at) { return written(fd, data, len, at, 0); }

static int cut(int fd, off_t len) {
    char path[4096];
    const char *name = opened(fd, path, sizeof path);
    if (name == NULL)
        return (int)syscall(SYS_ftruncate, fd, len);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_ftruncate, fd, len);
    if (done == 0)
        note('T', name, (uint64_t)len, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t len) { return cut(fd, len); }
int ftruncate64(int fd, off_t len) { return cut(fd, len); }

static int synced(int fd, long call) {
    char path[4096];
    const char *name = opened(fd, path, sizeof path);
    if (name == NULL)
        return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    note(*name == '\0' ? 'D' : 'S', name, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int unlink(const char *path) {
    const char *name = ours(path);
    if (name == NULL)
        return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (done == 0)
        note('U', name, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int rename(const char *from, const char *to) {
    const char *old = ours(from), *new = ours(to);
    if (old == NULL || new == NULL)
        return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (done == 0)
        note('R', old, 0, new, (uint32_t)strlen(new));
    pthread_mutex_unlock(&lock);
    return done;
}
