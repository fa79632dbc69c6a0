#define _GNU_SOURCE
// filesystem: changes its root file system in every way that an overlay records, remembers
// every entry of the result, and compares again and again.
//
// Prints "ready entries=N", then twice a second "check C OK" or "FAIL PATH: what". A restore
// that loses a deletion, a mode, an owner, a time, a link or an attribute shows. /srv is
// expected to hold what the image brings; see `image/catalog.rs`.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 20000 };

struct entry {
    char *path;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    nlink_t links;
    off_t size;
    struct timespec changed;
    dev_t device;
    uint64_t content, attributes;
    ino_t inode; // for grouping hard links; the number itself may change
};

static struct entry *remembered, *current;
static size_t remembered_count, current_count;
static dev_t root_device;

static void must(int ok, const char *what) {
    if (!ok) {
        printf("FAIL %s: %s\n", what, strerror(errno));
        fflush(stdout);
        exit(1);
    }
}

static uint64_t mix(uint64_t hash, const void *data, size_t length) {
    const unsigned char *bytes = data;
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ bytes[i]) * 1099511628211ull;
    }
    return hash;
}

static uint64_t content_of(const char *path, mode_t mode) {
    static char buffer[1 << 16];
    uint64_t hash = 14695981039346656037ull;
    ssize_t n;
    if (S_ISLNK(mode)) {
        n = readlink(path, buffer, sizeof buffer);
        return n < 0 ? 0 : mix(hash, buffer, (size_t)n);
    }
    if (!S_ISREG(mode)) {
        return 0;
    }
    int file = open(path, O_RDONLY | O_NOFOLLOW);
    if (file < 0) {
        return 0;
    }
    while ((n = read(file, buffer, sizeof buffer)) > 0) {
        hash = mix(hash, buffer, (size_t)n);
    }
    close(file);
    return hash;
}

// Sum over the attributes, so that their order does not matter.
static uint64_t attributes_of(const char *path) {
    char names[4096], value[4096];
    uint64_t sum = 0;
    ssize_t length = llistxattr(path, names, sizeof names);
    for (char *name = names; length > 0 && name < names + length; name += strlen(name) + 1) {
        ssize_t n = lgetxattr(path, name, value, sizeof value);
        uint64_t hash = mix(14695981039346656037ull, name, strlen(name) + 1);
        sum += mix(hash, value, n < 0 ? 0 : (size_t)n);
    }
    return sum;
}

static int visit(const char *path, const struct stat *st, int kind, struct FTW *place) {
    (void)kind, (void)place;
    if (st->st_dev != root_device) {
        // What is mounted on top is not of this file system.
        return S_ISDIR(st->st_mode) ? FTW_SKIP_SUBTREE : FTW_CONTINUE;
    }
    if (current_count == MOST) {
        return FTW_STOP;
    }
    current[current_count++] = (struct entry){
        .path = strdup(path),
        .mode = st->st_mode,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .links = st->st_nlink,
        .size = S_ISDIR(st->st_mode) ? 0 : st->st_size,
        // CRIU makes and removes a directory in these while it dumps.
        .changed = strcmp(path, "/") && strcmp(path, "/tmp") ? st->st_mtim : (struct timespec){0, 0},
        .device = st->st_rdev,
        .content = content_of(path, st->st_mode),
        .attributes = attributes_of(path),
        .inode = st->st_ino,
    };
    return FTW_CONTINUE;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->path, ((const struct entry *)b)->path);
}

static void walk(void) {
    for (size_t i = 0; i < current_count; i++) {
        free(current[i].path);
    }
    current_count = 0;
    // nftw skips other file systems by itself too, but tells nothing about files bound over.
    must(nftw("/", visit, 32, FTW_PHYS | FTW_ACTIONRETVAL) == 0, "walk");
    qsort(current, current_count, sizeof *current, by_path);
}

// Index of the first entry that is the same file.
static size_t first_of(const struct entry *entries, size_t count, size_t index) {
    for (size_t i = 0; i < count; i++) {
        if (entries[i].inode == entries[index].inode) {
            return i;
        }
    }
    return index;
}

static int compare(void) {
    int wrong = 0;
    size_t a = 0, b = 0;
    while (a < remembered_count || b < current_count) {
        const struct entry *was = &remembered[a], *is = &current[b];
        int order = a == remembered_count ? 1 : b == current_count ? -1 : strcmp(was->path, is->path);
        const char *what = NULL;
        if (order < 0) {
            printf("FAIL %s: is missing\n", was->path);
            a++, wrong++;
            continue;
        }
        if (order > 0) {
            printf("FAIL %s: was not there\n", is->path);
            b++, wrong++;
            continue;
        }
        if (was->mode != is->mode) {
            what = "mode";
        } else if (was->uid != is->uid || was->gid != is->gid) {
            what = "owner";
        } else if (was->size != is->size || was->content != is->content) {
            what = "content";
        } else if (was->device != is->device) {
            what = "device number";
        } else if (was->changed.tv_sec != is->changed.tv_sec || was->changed.tv_nsec != is->changed.tv_nsec) {
            what = "modification time";
        } else if (was->attributes != is->attributes) {
            what = "extended attributes";
        } else if (!S_ISDIR(was->mode) && was->links != is->links) {
            what = "link count";
        } else if (was->links > 1 && !S_ISDIR(was->mode) &&
                   first_of(remembered, remembered_count, a) != first_of(current, current_count, b)) {
            what = "hard link to another file";
        }
        if (what != NULL) {
            printf("FAIL %s: %s\n", was->path, what);
            wrong++;
        }
        a++, b++;
    }
    return wrong;
}

static void store(const char *path, const char *text, mode_t mode) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    must(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text), path);
    must(fchmod(file, mode) == 0, path);
    close(file);
}

static void age(const char *path, time_t seconds, long nanoseconds) {
    struct timespec times[2] = {{seconds, nanoseconds}, {seconds, nanoseconds}};
    must(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) == 0, path);
}

static void change(void) {
    // Over the image's files: change, delete, rename, replace by another kind.
    // First what only our image has: run elsewhere, this ends here.
    must(unlink("/srv/gone") == 0, "/srv/gone");
    store("/srv/edited", "edited by the container\n", 0604);
    must(unlink("/etc/group") == 0, "/etc/group");
    must(chown("/etc/passwd", 1000, 2000) == 0, "/etc/passwd");
    must(rename("/srv/keep", "/srv/kept") == 0, "/srv/keep");
    must(unlink("/srv/removed/deep/two") == 0 && rmdir("/srv/removed/deep") == 0, "/srv/removed/deep");
    must(unlink("/srv/removed/one") == 0 && rmdir("/srv/removed") == 0, "/srv/removed");
    // A directory deleted and made again hides what was below it.
    must(unlink("/srv/hidden/one") == 0 && unlink("/srv/hidden/two") == 0 && rmdir("/srv/hidden") == 0, "/srv/hidden");
    must(mkdir("/srv/hidden", 0750) == 0, "/srv/hidden");
    store("/srv/hidden/three", "new\n", 0640);

    // New entries of every kind.
    must(mkdir("/tmp/made", 02775) == 0 && chmod("/tmp/made", 02775) == 0, "/tmp/made");
    store("/tmp/made/plain", "plain\n", 0644);
    store("/tmp/made/setuid", "#!/bin/sh\n", 04755);
    store("/tmp/made/empty", "", 0);
    store("/tmp/made/name with spaces and \xc3\xbcml\xc3\xa4uts", "x\n", 0644);
    must(link("/tmp/made/plain", "/tmp/made/second") == 0, "link");
    must(link("/tmp/made/plain", "/home/third") == 0, "link");
    must(symlink("../nowhere", "/tmp/made/dangling") == 0, "symlink");
    must(symlink("/etc/passwd", "/tmp/made/absolute") == 0, "symlink");
    must(mkfifo("/tmp/made/fifo", 0620) == 0, "mkfifo");
    must(chown("/tmp/made/plain", 1000, 1000) == 0, "chown");
    must(lchown("/tmp/made/dangling", 1000, 2000) == 0, "lchown");
    int sparse = open("/tmp/made/sparse", O_WRONLY | O_CREAT, 0600);
    must(sparse >= 0 && pwrite(sparse, "end", 3, 8 << 20) == 3, "sparse");
    close(sparse);
    char deep[512] = "/tmp/made";
    for (int level = 0; level < 20; level++) {
        strcat(deep, "/directory");
        must(mkdir(deep, 0700) == 0, deep);
    }
    char longest[256] = {0};
    memset(longest, 'n', 200);
    char path[512];
    snprintf(path, sizeof path, "/tmp/made/%s", longest);
    store(path, "long name\n", 0644);
    int result = setxattr("/tmp/made/second", "user.note", "v\0w", 3, 0);
    must(result == 0 || errno == EOPNOTSUPP, "user attribute");

    age("/tmp/made/plain", 1, 1);
    age("/srv/edited", 4102444800, 999999999);
    age("/tmp/made/dangling", 86400, 5);
    age("/tmp/made/directory", 1000000000, 123456789);
    age("/tmp/made", 1111111111, 987654321);
    age("/srv/hidden", 1234567890, 1000);
    age("/srv", 1222222222, 2000);
}

int main(void) {
    struct stat root;
    must(stat("/", &root) == 0, "/");
    root_device = root.st_dev;
    remembered = calloc(MOST, sizeof *remembered);
    current = calloc(MOST, sizeof *current);
    must(remembered != NULL && current != NULL, "memory");
    change();
    walk();
    struct entry *fresh = remembered;
    remembered = current, remembered_count = current_count;
    current = fresh, current_count = 0;
    must(remembered_count < MOST, "too many entries");
    printf("ready entries=%zu\n", remembered_count);
    for (unsigned long check = 1;; check++) {
        struct timespec half = {0, 500000000};
        nanosleep(&half, NULL);
        struct stat again;
        must(stat("/", &again) == 0, "/");
        root_device = again.st_dev;
        walk();
        if (compare() == 0) {
            printf("check %lu OK\n", check);
        }
        fflush(stdout);
    }
}
